"""What `make gpu-check` measures, as tests: on the CPU the values in float32, on a GPU everything."""

import gpu_check
import pytest
import torch
from synchronisations import Synchronisations

from deepsimreg.paper.plan import Profile

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


@pytest.mark.parametrize("where", DEVICES)
def test_losses_warps_and_metrics_are_those_of_the_cpu_in_float64(where):
    found = list(gpu_check.values(torch.device(where)))
    assert len(found) > 60
    assert not [(what, difference) for what, kind, difference in found if not difference <= gpu_check.ALLOWED[kind]]


@needs_gpu
def test_trainings_are_those_of_the_cpu_and_go_on_where_they_were():
    found = list(gpu_check.trainings(20))
    assert not [(what, difference) for what, kind, difference in found if not difference <= gpu_check.ALLOWED[kind]]


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("name", ["registration/ncc/seed-0", "registration/deepsim-seg/seed-0", "extractor-seg"])
def test_a_step_as_it_is_measured_waits_for_nothing(where, name):
    plan = Profile("paper", {"hippocampus-mr": "", "phc-u373": "", "platelet-em": ""})
    (run,) = (one for one in plan.runs("phc-u373") if one.name == name)
    step = gpu_check.step_of(gpu_check.small_run(run), (32, 40), torch.device(where))
    if where == "cuda":
        assert gpu_check.counted(step, torch.device(where)) == 0
        return
    step()
    with Synchronisations() as found:
        step()
    drawn = (
        "augment.py",
        "gpu_check.py: optimizer.step",
        "displacement.py: if grid.device.type",
    )  # on the host, as they are in training
    assert not [place for place in found if not place.startswith(drawn)]
