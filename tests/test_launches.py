"""What steps ask of a GPU, counted on fake CUDA by the benchmark of the same name: bounds that must not be lost."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
from launches import measure

# Launches of forward and backward pass at most.
BOUNDS = {"iac_3d": 3000}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_step_launches_no_more_and_never_waits_for_the_cpu(name):
    step = measure(name)
    assert step.launches <= BOUNDS[name]
    assert step.blocking == 0
