"""Seconds and peak memory of `register`, beside greedy's, on a CPU.

    python experiments/speed.py                           # made pairs of several sizes
    python experiments/speed.py pair.npz --threads 1 2    # a pair: m moves to f; u, its true displacement, voxels

Every run is a process of its own, so that its peak memory is its own, and the methods take turns. Error: mean distance
to the true displacement, in voxels, where the fixed image is more than 0.1. Nothing else should run on the machine.
"""

import argparse
import resource
import subprocess
import sys
import time
from io import StringIO

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter, zoom

from deepsimreg import register
from deepsimreg.paper.optimisers import greedy
from deepsimreg.warps import warp_image

SIZES = ["64x64x64", "160x192x224", "256x256x256", "1024x1024", "4096x4096"]
GREEDY = (100, 50, 10)  # iterations, coarse to fine


def made(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moving and fixed image of smooth texture, and the displacement between them, 2.5 voxels at most."""
    rng, coarse = np.random.default_rng(0), [max(4, size // 16) for size in shape]

    def smooth(cells, scale):
        grid = rng.normal(size=cells)
        return zoom(grid, [s / c for s, c in zip(shape, cells, strict=True)], order=1)[tuple(map(slice, shape))] * scale

    moving = 0.5 + smooth(coarse, 0.2) + 0.05 * gaussian_filter(rng.normal(size=shape).astype(np.float32), 1)
    u = np.stack([smooth([max(2, size // 32) for size in shape], 1.0) for _ in shape])
    u *= 2.5 / np.abs(u).max()
    fixed = warp_image(*(torch.from_numpy(one[None].astype(np.float32)) for one in (moving[None], u)))
    return moving.astype(np.float32), fixed[0, 0].numpy(), u


def measure(what: str, method: str, threads: int) -> dict:
    """Register one pair in this process."""
    torch.set_num_threads(threads)
    if what.endswith(".npz"):
        with np.load(what) as pair:
            moving, fixed, u = (pair[name] for name in "mfu")
    else:
        moving, fixed, u = made(tuple(map(int, what.split("x"))))
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    if method == "greedy":
        tensors = [torch.from_numpy(image)[None, None] for image in (moving, fixed)]
        found = greedy(*tensors, [1.0] * fixed.ndim, smoothing=1.0, iterations=GREEDY)
    else:
        found = register(moving, fixed, method, progress=False).displacement
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    error = np.linalg.norm(found[0].numpy() - u, axis=0)[fixed > 0.1].mean()
    found = {"seconds": seconds, "cpu_seconds": cpu, "error": error}
    return found | {"peak_GiB": after.ru_maxrss / 2**20, "images_GiB": before.ru_maxrss / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", default=SIZES)
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--methods", nargs="+", default=["ncc-25", "greedy"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(pd.DataFrame([measure(options.pairs[0], options.methods[0], options.threads[0])]).to_csv(index=False))
        return
    rows = []
    for pair in options.pairs:
        for threads in options.threads:
            for _ in range(options.repeats):
                for method in options.methods:
                    command = [sys.executable, __file__, pair, "--one", "--methods", method, "--threads", str(threads)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                    rows.append(pd.read_csv(StringIO(done)).assign(pair=pair, threads=threads, method=method))
                    print(rows[-1].round(3).to_string(index=False, header=len(rows) == 1), flush=True)
    keys = ["pair", "threads", "method"]
    print(pd.concat(rows).groupby(keys, sort=False).median().round(3).reset_index().to_markdown(index=False))


if __name__ == "__main__":
    main()
