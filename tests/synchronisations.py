"""Counting what makes a GPU wait for the host, on a CPU: reading a value, a shape that depends on values, a copy from
Python's numbers.

On a GPU `torch.cuda.set_sync_debug_mode("warn")` counts the same (tests/gpu).
"""

import collections
import traceback
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "equal", "repeat_interleave")
PLACES = {"deepsimreg", "lightning", "experiments"}  # a line of these is named
COPIES = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor, torch.Tensor.cpu, torch.Tensor.tolist)


class Synchronisations:
    """`with Synchronisations() as found:` counts them by the line of the package that asked."""

    def __enter__(self) -> collections.Counter:
        found = collections.Counter()

        def note():
            places = [one for one in traceback.extract_stack() if PLACES & {*one.filename.split("/")}]
            found[f"{Path(places[-1].filename).name}: {places[-1].line}" if places else "?"] += 1

        class Reads(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                indices = args[1] if func._schema.name == "aten::index" else ()
                masked = any(one is not None and one.dtype == torch.bool for one in indices)
                if masked or func._schema.name.removeprefix("aten::") in READS:
                    note()
                return func(*args, **(kwargs or {}))

        class Copies(TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                if func in COPIES and not (args and isinstance(args[0], torch.Tensor) and func in COPIES[:2]):
                    note()
                return func(*args, **(kwargs or {}))

        self.modes = Reads(), Copies()
        for mode in self.modes:
            mode.__enter__()
        return found

    def __exit__(self, *error):
        for mode in reversed(self.modes):
            mode.__exit__(*error)
