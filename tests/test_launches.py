"""What steps ask of a GPU, counted on fake CUDA by the benchmark of the same name: bounds that must not be lost."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
import launches

# Launches of forward and backward pass at most; of DiNTS with two layers.
BOUNDS = {
    "iac_3d": 3000,
    "retrofit_3d": 800,
    "mixed_2d": 1350,
    "dints_exact": 1200,
    "dints_exact_architecture": 1200,
    "dints_fast": 1600,
    "dints_fast_architecture": 1600,
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_step_launches_no_more_and_never_waits_for_the_cpu(name, monkeypatch):
    monkeypatch.setattr(launches, "LAYERS", 2)
    step = launches.measure(name)
    assert step.launches <= BOUNDS[name]
    assert step.blocking == 0


def test_a_retrofit_launches_at_most_half_as_much_again_as_its_backbone():
    retrofit, plain = (launches.measure(name).launches for name in ("retrofit_3d", "plain_3d"))
    assert retrofit <= 1.5 * plain


def test_the_exact_supernet_keeps_little_more_than_half_in_half_precision(monkeypatch):
    # One half copy of every node, which its convolutions share, and no map that upsampling raises to single precision.
    monkeypatch.setattr(launches, "LAYERS", 2)
    step = launches.measure("dints_exact")
    assert step.kept_mib < 0.6 * step.kept_float32_mib


def test_a_found_network_keeps_half_in_half_precision(monkeypatch):
    monkeypatch.setattr(launches, "LAYERS", 2)
    step = launches.measure("dints_found")
    assert step.kept_mib < 0.55 * step.kept_float32_mib
