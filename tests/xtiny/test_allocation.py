"""Seeds and images by the variance that is left: by hand, and on scores that are drawn."""

import numpy as np
import pytest

from nnunet_nas.xtiny.allocation import Components, allocate


def components(between, within, network, image):
    return Components(*(np.array(values, dtype=float) for values in (between, within, network, image)))


def test_one_width_by_hand():
    """n = sqrt(0.9 / 0.1 * 4 / 1) = 6; a seed then has variance 0.1 + 0.9 / 6 = 0.25, and ten of them 0.025."""
    seeds, images = allocate(components([0.1], [0.9], [4], [1]), 0.025, most_images=64)
    assert (seeds.tolist(), images.tolist()) == ([10], [6])


def test_expensive_widths_that_vary_little_get_little():
    """Alike in variance, 100 times the cost: a tenth of the seeds."""
    seeds, images = allocate(components([1, 1], [0, 0], [1, 100], [0.1, 10]), 0.01, most_images=64)
    assert images.tolist() == [1, 1]
    assert seeds[0] == pytest.approx(10 * seeds[1], rel=0.05)


@pytest.mark.parametrize("target", [0.5, 0.05, 0.005])
def test_what_was_asked_for_is_reached(target):
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = components(*rng.uniform(0.01, 1, (4, 7)))
        seeds, images = allocate(found, target, most_images=16)
        assert found.variance(seeds, images).mean() <= target
        assert ((images >= 1) & (images <= 16) & (seeds >= 1)).all()


def test_nothing_cheaper_reaches_it():
    """Every other allocation of two widths that reaches the variance, up to 40 seeds and 6 images each."""
    found = components([0.3, 0.05], [0.2, 0.1], [1, 5], [0.5, 9])
    target = 0.02
    ours = found.seconds(*allocate(found, target, most_images=6))
    grid = np.stack(np.meshgrid(*[np.arange(1, 41)] * 2, *[np.arange(1, 7)] * 2, indexing="ij")).reshape(4, -1)
    seeds, images = grid[:2], grid[2:]
    variance = ((found.between[:, None] + found.within[:, None] / images) / seeds).mean(0)
    seconds = (seeds * (found.network[:, None] + images * found.image[:, None])).sum(0)
    best = seconds[variance <= target].min()
    assert best <= ours <= 1.1 * best


def test_images_without_any_influence_of_the_seed_are_all_used():
    seeds, images = allocate(components([0], [1], [1], [1]), 0.5, most_images=8)
    assert (seeds.tolist(), images.tolist()) == ([1], [8])


def test_a_pilot_finds_what_was_drawn():
    rng = np.random.default_rng(0)
    between, within = np.array([0.01, 0.5]), np.array([0.04, 0.09])
    shape = (400, 2, 6)
    drawn = rng.normal(0, np.sqrt(between)[:, None], (400, 2, 1)) + rng.normal(0, np.sqrt(within)[:, None], shape)
    found = Components.of_pilot(drawn, np.ones(2), np.ones(2))
    assert found.between == pytest.approx(between, rel=0.2)
    assert found.within == pytest.approx(within, rel=0.1)
    seeds, images = np.array([5, 5]), np.array([3, 3])
    means = drawn[:, :, :3].mean(2).reshape(80, 5, 2).mean(1)
    assert found.variance(seeds, images) == pytest.approx(means.var(0, ddof=1), rel=0.35)
