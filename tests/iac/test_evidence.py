"""Noise settles nothing, a preference of the data does: searches simulated with Adam on drawn gradients."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, ttest_rel

from nnunet_nas.iac.evidence import PAIRS, Slopes, epochs_needed, level
from nnunet_nas.iac.pruning import StabilityPruning
from nnunet_nas.iac.relaxation import cosine_power

EPOCHS, WARMUP, STEPS = 200, 15, 25
BEST = 2


def shares(alpha, active):
    exponentials = np.where(active, np.exp(alpha - alpha.max(axis=1, keepdims=True)), 0)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def simulated(preference, *, seed, threshold):
    """A search whose loss falls by `preference` (14, 7) along each operation's coefficient, in units of its noise.

    Returns:
        the pruning when the search ends, and the number of epochs until then.
    """
    rng = np.random.default_rng(seed)
    state = StabilityPruning.start(tau0=1e-10, gamma=1.5, k=1.0, threshold=threshold)
    alpha, first, second, step = np.zeros((14, 7)), 0.0, 0.0, 0
    for epoch in range(WARMUP, EPOCHS):
        rate, total = 1e-3 * cosine_power(epoch, EPOCHS, start=1.0), np.zeros((14, 7))
        for _ in range(STEPS):
            step += 1
            share = shares(alpha, state.active)
            slopes = rng.normal(size=(14, 7)) - preference
            gradient = share * (slopes - (share * slopes).sum(axis=1, keepdims=True))
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            alpha -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            total += np.divide(gradient, share, out=np.zeros((14, 7)), where=share > 0)
        state.update(shares(alpha, state.active), np.full(14, 0.5), total / STEPS)
        gave_up = threshold is not None and state.epochs_to_go(EPOCHS - WARMUP) == 0
        if state.settled or gave_up:
            break
    return state, epoch + 1


def preferring(amount, edges=range(14)):
    preference = np.zeros((14, 7))
    preference[list(edges), BEST] = amount
    return preference


EVIDENCE = level(0.05, EPOCHS - WARMUP)


@pytest.mark.parametrize("amount", [0.0, 0.3])
def test_the_papers_test_ends_at_the_same_time_with_and_without_a_signal(amount):
    state, epochs = simulated(preferring(amount), seed=0, threshold=None)
    assert state.settled
    assert 27 <= epochs <= 62


@pytest.mark.parametrize("seed", range(5))
def test_noise_settles_nothing_and_the_search_gives_up(seed):
    state, epochs = simulated(preferring(0.0), seed=seed, threshold=EVIDENCE)
    assert state.active.all()
    assert 30 < epochs < EPOCHS


@pytest.mark.parametrize("seed", range(2))
def test_a_preference_settles_every_edge_on_what_is_preferred(seed):
    state, epochs = simulated(preferring(0.3), seed=seed, threshold=EVIDENCE)
    assert state.settled
    assert state.active[:, BEST].all()
    assert epochs < 120


def test_the_stronger_the_preference_the_sooner():
    assert simulated(preferring(1.0), seed=0, threshold=EVIDENCE)[1] < 40


def test_only_the_edges_with_a_preference_settle():
    state, epochs = simulated(preferring(1.0, edges=(0, 5)), seed=0, threshold=EVIDENCE)
    assert epochs < EPOCHS
    assert (state.active.sum(axis=1) == 1).tolist() == [row in (0, 5) for row in range(14)]
    assert state.active[[0, 5], BEST].all()
    assert np.delete(state.active, [0, 5], axis=0).all()


def test_chance_is_that_of_a_paired_t_test():
    observed = np.random.default_rng(0).normal(size=(9, 14, 7))
    slopes = Slopes.none()
    for epoch in observed:
        slopes.add(epoch)
    chance = slopes.chance(np.full(14, 3))
    for row, column in ((0, 0), (5, 6), (13, 2)):
        expected = ttest_rel(observed[:, row, column], observed[:, row, 3], alternative="greater").pvalue
        assert chance[row, column] == pytest.approx(expected)
    assert (chance[:, 3] == 0.5).all()  # an operation is not worse than itself


def test_nothing_is_known_after_one_epoch_or_without_any_noise():
    slopes = Slopes.none()
    slopes.add(np.tile(np.arange(7.0), (14, 1)))
    assert (slopes.chance(np.zeros(14, int)) == 0.5).all()
    slopes.add(np.tile(np.arange(7.0), (14, 1)))
    assert (slopes.chance(np.zeros(14, int)) == 0.5).all()


def test_the_error_rate_is_shared_by_all_comparisons():
    assert PAIRS == 14 * 42
    assert level(0.05, 185) == pytest.approx(0.05 / (588 * 185))


def test_half_the_distance_needs_four_times_the_epochs():
    # At a threshold of z = 4, a difference that is at z = 2 after 10 epochs will be there after 40.
    chance = np.array([norm.sf(2.0), norm.sf(4.0), 0.5, 0.7])
    assert epochs_needed(chance, norm.sf(4.0), 10) == pytest.approx([40, 10, np.inf, np.inf])


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_a_restart_is_exact(seed):
    rng = np.random.default_rng(seed)
    state = StabilityPruning.start(tau0=1e-10, gamma=1.5, k=1.0, threshold=0.1)
    for _ in range(3):
        state.update(shares(rng.normal(size=(14, 7)), state.active), np.full(14, 0.5), rng.normal(size=(14, 7)))
    again = StabilityPruning.from_json(json.loads(json.dumps(state.to_json())))
    following = shares(rng.normal(size=(14, 7)), state.active), np.full(14, 0.5), rng.normal(size=(14, 7))
    np.testing.assert_array_equal(state.update(*following), again.update(*following))
    assert state.to_json() == again.to_json()
