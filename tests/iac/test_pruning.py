"""The stability test and the pruning rule, worked out by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr

from nnunet_nas.iac.genotype import edges_into
from nnunet_nas.iac.pruning import StabilityPruning, distributions, jensen_shannon, operations_to_prune

ALL = np.ones((14, 7), bool)
POSITIVE = arrays(np.float64, 7, elements=st.floats(1e-3, 1))


def uniform(active=ALL):
    return active / active.sum(axis=1, keepdims=True)


def start(**changes):
    return StabilityPruning.start(**{"tau0": 1e-10, "gamma": 1.5, "k": 1.0, **changes})


@settings(deadline=None)
@given(POSITIVE, POSITIVE)
def test_divergence_is_symmetric_bounded_and_zero_for_equals(first, second):
    first, second = first / first.sum(), second / second.sum()
    forward = jensen_shannon(first, second)
    assert forward == jensen_shannon(second, first)
    assert 0 <= forward <= math.log(2)
    assert jensen_shannon(first, first) == 0
    middle = (first + second) / 2
    assert forward == pytest.approx((rel_entr(first, middle) + rel_entr(second, middle)).sum() / 2, abs=1e-9)


def test_divergence_by_hand():
    # Disjoint: ln 2. (1, 0) and (1/2, 1/2): m = (3/4, 1/4).
    assert jensen_shannon(np.array([1.0, 0]), np.array([0, 1.0])) == pytest.approx(math.log(2))
    expected = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2
    assert jensen_shannon(np.array([1.0, 0]), np.array([0.5, 0.5])) == pytest.approx(expected)


def test_float64_resolves_what_the_first_thresholds_ask_for():
    first = np.full(7, 1 / 7)
    second = first + np.array([1, -1, 0, 0, 0, 0, 0]) * 1e-6
    # To second order JS = sum d^2 / (8 p) = 2e-12 * 7 / 8
    assert jensen_shannon(first, second) == pytest.approx(1.75e-12, rel=1e-3)


@settings(deadline=None)
@given(arrays(np.float64, 14, elements=st.floats(0.01, 1)), arrays(np.float64, (14, 7), elements=st.floats(0.01, 1)))
def test_edge_weights_cancel_in_the_distribution(weights, probabilities):
    with_weights = distributions(probabilities * weights[:, None], ALL)
    np.testing.assert_allclose(with_weights, distributions(probabilities, ALL), rtol=1e-12)


def test_an_importance_of_zero_is_uniform_over_what_is_active():
    active = ALL.copy()
    active[0, :3] = False
    assert distributions(np.zeros((14, 7)), active)[0].tolist() == [0, 0, 0, 0.25, 0.25, 0.25, 0.25]


def test_outliers_are_dropped_by_hand():
    # Mean 4, population std 2: below 2 are the first two.
    values = np.array([1.0, 1.5, 4.5, 5, 5, 5.5, 5.5])
    assert values.mean() - values.std() > 1.5
    assert operations_to_prune(values, np.ones(7, bool), 1.0).tolist() == [True, True] + [False] * 5


def test_without_outliers_the_smallest_is_dropped():
    values = np.array([0.3, 0.2, 0.1, 0.4, 0.5, 0.6, 0.7])
    assert operations_to_prune(values, np.ones(7, bool), 3.0).tolist() == [False, False, True] + [False] * 4


@settings(deadline=None)
@given(st.floats(1e-6, 1), st.integers(2, 7))
def test_rounding_of_the_mean_makes_no_outliers(value, count):
    active = np.arange(7) < count
    assert operations_to_prune(np.full(7, value), active, 1.0).sum() == 1


def test_a_mean_that_is_rounded_up_makes_no_outliers_below_it():
    values, active = np.full(7, 0.003), np.arange(7) < 3
    # The sum is rounded: mean and spread are one step of a double too large, and a quarter of it is not enough.
    assert values[:3].mean() - 0.25 * values[:3].std() > 0.003
    assert operations_to_prune(values, active, 0.25).sum() == 1


@pytest.mark.parametrize("count", range(2, 8))
def test_of_equal_ones_the_last_falls(count):
    assert np.flatnonzero(operations_to_prune(np.full(7, 0.25), np.arange(7) < count, 1.0)).tolist() == [count - 1]


def test_pruned_operations_do_not_count():
    active = np.array([True, False, True, False, False, False, False])
    values = np.array([0.6, 0, 0.4, 0, 0, 0, 0])
    assert operations_to_prune(values, active, 1.0).tolist() == [False, False, True] + [False] * 4


def test_the_last_one_stays():
    only = np.eye(7, dtype=bool)[4]
    assert not operations_to_prune(np.zeros(7), only, 1.0).any()


@settings(deadline=None)
@given(arrays(np.float64, 7, elements=st.floats(0, 1)), arrays(np.bool_, 7), st.floats(0, 3))
def test_something_active_is_dropped_and_the_largest_stays(values, active, k):
    dropped = operations_to_prune(values, active, k)
    assert not (dropped & ~active).any()
    if active.sum() > 1:
        assert dropped.any()
        assert (active & ~dropped).any()
        assert values[active & ~dropped].max() == values[active].max()


@settings(deadline=None)
@given(
    arrays(np.float64, 7, elements=st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)), st.floats(1.6, 4)
)
def test_from_k_1_6_on_one_of_seven_at_most_is_dropped(values, k):
    # Two values at z <= -k weigh on the mean: for two of seven the least possible z is -sqrt(5 / 2) = -1.58.
    assert operations_to_prune(values, np.ones(7, bool), k).sum() == 1


def test_two_of_seven_are_dropped_just_below_that():
    values = np.array([0.0, 0, 1, 1, 1, 1, 1])
    assert operations_to_prune(values, np.ones(7, bool), 1.58).sum() == 2


def test_constant_alpha_lose_one_operation_per_epoch_and_settle_after_six_tests():
    state, tests = start(), 0
    while not state.settled:
        divergence = state.update(uniform(state.active), np.full(14, 0.5))
        tests += 1
        assert divergence.tolist() == [0] * 14
        assert (state.active.sum(axis=1) == 7 - tests).all()
    assert tests == 6
    assert state.tau.tolist() == [1e-10] * 14


def test_a_failed_test_relaxes_the_threshold_of_its_edge_only():
    state = start(tau0=1e-3)
    moved = uniform()
    moved[4] = [0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    divergence = state.update(moved, np.full(14, 0.5))
    assert divergence[4] > 1e-3
    assert state.tau[4] == 1.5e-3
    assert state.active[4].all()
    assert (np.delete(state.active.sum(axis=1), 4) == 6).all()
    assert (np.delete(state.tau, 4) == 1e-3).all()


def test_edges_compare_what_is_active_now():
    # After pruning, both epochs are renormalised on what is left: equal ratios are no change.
    state = start(tau0=1e-6)
    state.active[0, 6] = False
    state.previous[0] = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4]
    assert state.update(uniform(state.active), np.full(14, 0.5))[0] == pytest.approx(0, abs=1e-15)


def test_settled_edges_are_not_tested():
    state = start()
    state.active[edges_into(2)] = np.eye(7, dtype=bool)[0]
    divergence = state.update(uniform(state.active), np.full(14, 0.5))
    assert np.isnan(divergence[:2]).all()
    assert np.isfinite(divergence[2:]).all()


def test_a_settled_edge_keeps_its_threshold():
    state = start(tau0=1e-3)
    state.active[edges_into(2)] = np.eye(7, dtype=bool)[0]
    moved = uniform(state.active)
    moved[2:] = [0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    state.update(moved, np.full(14, 0.5))
    assert state.tau.tolist() == [1e-3] * 2 + [1.5e-3] * 12


def test_the_gradual_rule_spreads_pruning_evenly_and_ends_in_time():
    # tau0 = 0: no test ever succeeds. 12 tests: one operation less every second one, the smallest first.
    state, importance = start(tau0=0, gradual_epochs=12), np.tile(np.arange(1.0, 8), (14, 1))
    left = []
    while not state.settled:
        state.update(distributions(importance, state.active), np.full(14, 0.5))
        left.append(int(state.active[0].sum()))
    assert left == [7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1]
    assert state.active[:, 6].all()


@settings(deadline=None)
@given(arrays(np.float64, (14, 7), elements=st.floats(0.01, 1)))
def test_a_restart_is_exact(values):
    state = start(tau0=1e-2, gradual_epochs=9)
    state.update(distributions(values, ALL), np.full(14, 0.3))
    again = StabilityPruning.from_json(json.loads(json.dumps(state.to_json())))
    following = distributions(values**2, state.active)
    np.testing.assert_array_equal(state.update(following, np.full(14, 0.3)), again.update(following, np.full(14, 0.3)))
    assert state.to_json() == again.to_json()
