"""Rules on learning curves, as the benchmark compares them, by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
import curve_rules

EPOCHS = np.arange(20) + 0.5


def trained(losses, validation=None, true=16, dataset="one"):
    cost = {width: width / max(losses) for width in losses}
    return curve_rules.Trained(dataset, losses, validation or dict.fromkeys(losses, 0.8), cost, true)


def test_the_narrowest_width_within_a_tolerance():
    assert curve_rules.within({64: -0.7, 32: -0.69, 16: -0.65, 8: -0.3}, 0.06) == 16
    assert curve_rules.within({64: -0.7, 32: -0.69, 16: -0.65, 8: -0.3}, 0.005) == 64


def test_a_power_law_is_continued_to_the_end_of_the_schedule():
    """All curves with one exponent of the grid, the wider ones lower at the end and higher at first."""
    exponent = curve_rules._EXPONENTS[30]
    losses = {64: -0.8 + 0.9 * EPOCHS**-exponent, 16: -0.7 + 0.5 * EPOCHS**-exponent}
    found = curve_rules.foretold_loss(trained(losses), 0.25)
    assert found == pytest.approx({64: -0.8 + 0.9 * 20**-exponent, 16: -0.7 + 0.5 * 20**-exponent}, abs=1e-9)


def test_the_tolerance_comes_from_the_other_data_sets():
    """At the second epoch 16, the right one, is 0.1 above 64, and 8 is 0.2 above it: anything from 0.1 to below 0.2."""
    losses = {64: np.full(20, -0.5), 16: np.full(20, -0.4), 8: np.full(20, -0.3)}
    others = [trained(losses, true=16, dataset="other")]
    assert curve_rules.tolerance_of(curve_rules.last_loss, 0.1, others) == pytest.approx(0.1475, abs=0.003)
    names = [name for name, _, _ in curve_rules.picks(trained(losses), others, 0.01)]
    assert len(names) == len(set(names)) == 3 * len(curve_rules.SHARES) + 3
    alone = [name for name, _, _ in curve_rules.picks(trained(losses), [], 0.01)]
    assert alone == ["law over widths", "gain of 2w", "gain of 4w"]


def test_the_law_over_widths_sees_how_much_wider_ones_would_gain():
    losses = {width: np.zeros(20) for width in (64, 32, 16, 8, 4)}
    exponent = curve_rules._EXPONENTS[52]
    slow = {width: 0.9 - 0.8 * width**-0.5 for width in losses}
    fast = {width: 0.9 - 0.3 * width**-exponent for width in losses}
    assert curve_rules.by_law_over_widths(trained(losses, slow), 0.01) == 64
    # 0.3 * 8^-c is below 0.01 + 0.3 * 64^-c, 0.3 * 4^-c is not.
    assert 0.3 * 8**-exponent < 0.01 < 0.3 * 4**-exponent
    assert curve_rules.by_law_over_widths(trained(losses, fast), 0.01) == 8


def test_what_twice_the_width_does_not_gain():
    losses = {width: np.zeros(20) for width in (64, 32, 16, 8, 4)}
    dice = {64: 0.82, 32: 0.815, 16: 0.812, 8: 0.79, 4: 0.7}
    # 8 gains 0.09 on 4, 16 0.022 on 8, 32 0.003 on 16: trained were 4 to 32.
    assert curve_rules.by_gain(trained(losses, dice), 0.01, 2) == (16, pytest.approx((4 + 8 + 16 + 32) / 64))
    # 64 gains 0.008 on 16.
    assert curve_rules.by_gain(trained(losses, dice), 0.01, 4) == (16, pytest.approx((4 + 8 + 16 + 32 + 64) / 64))
    assert curve_rules.by_gain(trained(losses, dice), 0.001, 2)[0] == 64
