"""Draws by the variance that is left: by hand, against every other allocation, and by the law."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_nas.xtiny.allocation import Components, allocate

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmarks"))
import xtiny_allocation


def components(between, interaction, network, image):
    return Components(*(np.array(values, dtype=float) for values in (between, interaction, network, image)))


def test_one_width_by_hand():
    """With six images a seed has variance 0.1 + 0.9 / 6 = 0.25, and ten of them 0.025."""
    assert allocate(components([0.1], [0.9], [4], [1]), 0.025, images=6).tolist() == [10]


def test_expensive_widths_that_vary_little_get_little():
    """Alike in variance, 100 times the cost: a tenth of the seeds."""
    seeds = allocate(components([1, 1], [0, 0], [1, 100], [0.1, 10]), 0.01, images=1)
    assert seeds[0] == pytest.approx(10 * seeds[1], rel=0.05)


def test_what_every_width_gets_at_least_is_not_asked_of_the_others():
    """The expensive one has two seeds, 0.5 of the 2 * 0.4 that are allowed; the other needs 1 / 0.3, so four."""
    seeds = allocate(components([1, 1], [0, 0], [1, 10_000], [0, 0]), 0.4, images=1, least=2)
    assert seeds.tolist() == [4, 2]
    assert allocate(components([1, 1], [0, 0], [1, 1], [0, 0]), 9.0, images=1, least=3).tolist() == [3, 3]


@pytest.mark.parametrize("target", [0.5, 0.05, 0.005])
@pytest.mark.parametrize("least", [1, 3])
def test_what_was_asked_for_is_reached(target, least):
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = components(*rng.uniform(0.01, 1, (4, 7)))
        seeds = allocate(found, target, images=4, least=least)
        assert found.variance(seeds, 4).mean() <= target
        assert (seeds >= least).all()


@pytest.mark.parametrize("least", [1, 4])
def test_nothing_cheaper_reaches_it(least):
    """Every other allocation of three widths that reaches the variance, up to 40 seeds each."""
    found = components([0.3, 0.05, 0.1], [0.2, 0.1, 0.1], [1, 5, 2], [0.5, 9, 3])
    target = 0.02
    ours = found.cost(allocate(found, target, images=2, least=least), 2)
    grid = np.stack(np.meshgrid(*[np.arange(least, 41)] * 3, indexing="ij")).reshape(3, -1)
    variance = ((found.between + found.interaction / 2)[:, None] / grid).mean(0)
    cost = (grid * (found.network + 2 * found.image)[:, None]).sum(0)
    best = cost[variance <= target].min()
    assert best <= ours <= 1.1 * best


def test_the_law_draws_narrow_widths_most():
    caps = [256, 128, 64, 32, 16, 8, 4, 2, 1]
    features = [[min(cap, width) for width in (32, 64, 128, 256)] for cap in caps]
    costs = [SimpleNamespace(parameters=20 * cap**2, macs=5000 * cap**2, inference_mib=0.06 * cap) for cap in caps]
    law = Components.of_law(features, costs)
    # 1.22 at one channel: 0.02 + 1.2 * 1.
    assert law.between[-1] == pytest.approx(1.22)
    assert (np.diff(law.between) > 0).all()
    seeds = allocate(law, float(law.variance(2.5, 2).mean()), images=2, least=2)
    assert (np.diff(seeds) >= 0).all()
    assert (seeds[0], seeds[-1]) == (2, 4)
    assert law.cost(1, 64) > 5 * law.cost(seeds, 2)


def test_the_benchmark_finds_what_was_drawn():
    """With an effect of the image alone, which is not counted."""
    rng = np.random.default_rng(0)
    between, interaction = np.array([0.01, 0.5]), np.array([0.04, 0.09])
    shape = (400, 2, 6)
    drawn = rng.normal(0, np.sqrt(between)[:, None], (400, 2, 1)) + rng.normal(0, np.sqrt(interaction)[:, None], shape)
    found = xtiny_allocation.components(drawn + rng.normal(0, 3, 6))
    assert found.between == pytest.approx(between, rel=0.2)
    assert found.interaction == pytest.approx(interaction, rel=0.1)
    means = drawn[:, :, :3].mean(2).reshape(80, 5, 2).mean(1)
    assert found.variance(5, 3) == pytest.approx(means.var(0, ddof=1), rel=0.35)
