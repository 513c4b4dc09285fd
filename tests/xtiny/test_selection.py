"""The selection rules, with numbers that can be checked with a pencil."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_nas.errors import BudgetProblem, DataProblem, UsageError
from nnunet_nas.xtiny.selection import (
    MAX_SPREAD,
    fitted_spread,
    log_spread,
    noise_shares,
    numbers_of_seeds,
    resampled_shares,
    select,
    select_by_spread,
    selectable_positions,
    wins,
    within_budget,
)

curves = st.lists(st.floats(0, 1000), min_size=5, max_size=12).filter(lambda values: max(values) - min(values) > 1e-3)


def test_five_candidates_leave_one_choice():
    # y = 0, 0, 0, 0, 1: d = 0, 0, 0, 1; only k = 2: mean(d[1:]) - mean(d[:2]) = 1/3 - 0.
    selection = select([0, 0, 0, 0, 10])
    assert selection.position == 1
    assert selection.split_scores == {2: pytest.approx(1 / 3)}


def test_the_last_width_before_the_curve_starts_to_vary():
    # y = 0, 0, 0, 0, 1, 0, 1: d = 0, 0, 0, 1, 1, 1; k = 2: 3/5 - 0; k = 3: 3/4 - 0; k = 4: 3/3 - 1/4 = 3/4: a tie,
    # and the first one wins: k = 3, position 2.
    selection = select([5, 5, 5, 5, 7, 5, 7])
    assert selection.split_scores == pytest.approx({2: 0.6, 3: 0.75, 4: 0.75})
    assert selection.position == 2
    assert selection.differences.tolist() == [0, 0, 0, 1, 1, 1]


def test_normalisation_is_min_max():
    assert select([2, 4, 6, 8, 10]).normalised.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_ten_candidates_never_select_the_first_or_the_last_three():
    caps = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1]
    assert [caps[position] for position in selectable_positions(10)] == [256, 128, 64, 32, 16, 8]


@given(curves)
def test_selected_position_is_selectable(curve):
    assert select(curve).position in selectable_positions(len(curve))


@given(curves, st.floats(0.1, 100), st.floats(-100, 100))
def test_scores_do_not_depend_on_scale_and_offset(curve, scale, offset):
    moved = select(np.asarray(curve) * scale + offset)
    assert moved.split_scores == pytest.approx(select(curve).split_scores, abs=1e-6)


@pytest.mark.parametrize(
    ("curve", "complaint"),
    [
        ([1, 2, 3, 4], "4 candidate widths and the rule needs 5"),
        ([3, 3, 3, 3, 3], "flat"),
        ([1, 2, np.nan, 4, 5], "not finite"),
        ([1, 2, np.inf, 4, 5], "not finite"),
    ],
)
def test_unusable_curves_explain_themselves(curve, complaint):
    with pytest.raises(DataProblem, match=complaint):
        select(curve)


def test_wins_count_each_seed_on_its_own():
    late = [0, 0, 0, 0, 0, 0, 1]  # d[5] = 1: k = 4 has mean(d[3:]) = 1/3, the largest.
    early = [0, 0, 1, 0, 1, 0, 1]  # d = 0, 1, 1, ...: k = 2 scores 1 - 1/2, k = 3 scores 1 - 2/3.
    assert wins(np.array([late, early, late])) == {1: 1, 3: 2}


def test_a_seed_that_not_every_width_was_scored_with_wins_nothing_but_counts_in_resamplings():
    late = np.array([0, 0, 0, 0, 0, 0, 1.0])
    wide = [*late[:6], np.nan]
    assert wins(np.array([late, wide])) == {3: 1}
    # The first two widths have one seed, the others three; resamplings with the large value vary early.
    curves = np.array([late, late, late])
    curves[1:, :2] = np.nan
    curves[1, 2] = 50.0
    shares = resampled_shares(curves)
    assert sum(shares.values()) == pytest.approx(1)
    assert len(shares) > 1
    assert numbers_of_seeds(curves).tolist() == [1, 1, 3, 3, 3, 3, 3]


def test_resampling_identical_seeds_never_disagrees():
    assert resampled_shares(np.array([[0, 0, 0, 0, 0, 0, 1.0]] * 4)) == {3: 1.0}


def test_resampled_shares_sum_to_one_and_are_reproducible():
    noisy = np.random.default_rng(0).random((6, 9))
    assert sum(resampled_shares(noisy).values()) == pytest.approx(1)
    assert resampled_shares(noisy, seed=3) == resampled_shares(noisy, seed=3)


def test_noise_that_grows_towards_narrow_widths_favours_the_narrowest_selectable_one():
    growing = noise_shares(np.array([0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2]))
    assert sum(growing.values()) == pytest.approx(1)
    assert max(growing, key=lambda position: growing[position]) == selectable_positions(9)[-1]
    assert growing[selectable_positions(9)[-1]] > 0.5


def test_noise_that_is_equal_at_both_ends_favours_neither():
    # Reversing such a curve gives an equally likely one, and its first and last splits change places.
    equal = noise_shares(np.full(9, 0.2))
    assert equal[1] == pytest.approx(equal[5], abs=0.1)


def test_log_spread_of_two_seeds_is_the_half_log_ratio_times_root_two():
    # Values 1 and e^2: logs 0 and 2, standard deviation with n - 1 is sqrt(2).
    assert log_spread(np.array([[1.0, 1.0], [1.0, np.exp(2)]])).tolist() == pytest.approx([0, np.sqrt(2)])


def test_log_spread_needs_positive_scores():
    with pytest.raises(DataProblem, match="positive"):
        log_spread(np.array([[1.0, -1.0], [1.0, 2.0]]))


FEATURES = [[min(cap, base) for base in (32, 64, 128, 256)] for cap in (256, 128, 64, 32, 16, 8, 4, 2, 1)]
RECIPROCAL = np.array([np.mean(1 / np.array(stages)) for stages in FEATURES])


def simulated_curves(seeds, *, a=0.01, b=1.5):
    """Log-normal scores whose variance follows the law that the rule assumes."""
    sigma = np.sqrt(a + b * RECIPROCAL)
    return np.exp(np.random.default_rng(1).normal(0, sigma, (seeds, len(sigma)))) * 1000


def test_fit_finds_the_law_it_assumes():
    sigma = np.sqrt(0.01 + 1.0 * RECIPROCAL)
    assert fitted_spread(sigma, FEATURES, seeds=10) == pytest.approx(sigma, rel=1e-3)
    assert fitted_spread(sigma, FEATURES, seeds=np.arange(2, 2 + len(FEATURES))) == pytest.approx(sigma, rel=1e-3)


def test_spread_rule_selects_the_narrowest_stable_width():
    # sigma^2 = 0.01 + 1.5/cap for caps below 32; (ln 2 / 1.96)^2 = 0.125: cap 8 has 0.20, cap 16 has 0.10.
    assert pytest.approx(0.125, abs=1e-3) == MAX_SPREAD**2
    assert select_by_spread(simulated_curves(2000), FEATURES) == 4  # cap 16


def test_spread_rule_agrees_with_itself_from_few_seeds():
    chosen = [select_by_spread(simulated_curves(200)[10 * i : 10 * i + 10], FEATURES) for i in range(20)]
    assert set(chosen) <= {3, 4, 5}
    assert chosen.count(4) >= 14


def test_spread_rule_needs_five_seeds():
    with pytest.raises(UsageError, match="at least 5 seeds"):
        select_by_spread(simulated_curves(4), FEATURES)


def test_spread_rule_says_so_when_even_the_base_is_unstable():
    with pytest.raises(DataProblem, match="keep the base"):
        select_by_spread(simulated_curves(50, a=4.0), FEATURES)


COSTS = [{"parameters": 1000.0, "macs": 10.0}, {"parameters": 100.0, "macs": 5.0}, {"parameters": 10.0, "macs": 1.0}]


def test_an_affordable_selection_stays():
    assert within_budget(1, COSTS, {"parameters": 100}) == 1
    assert within_budget(0, COSTS, {}) == 0


def test_too_large_a_selection_gives_the_widest_that_is_affordable():
    assert within_budget(0, COSTS, {"parameters": 500}) == 1
    assert within_budget(0, COSTS, {"parameters": 500, "macs": 2}) == 2


def test_nothing_affordable_names_the_smallest_cost():
    with pytest.raises(BudgetProblem, match="parameters <= 5; the narrowest has parameters 10"):
        within_budget(1, COSTS, {"parameters": 5})
