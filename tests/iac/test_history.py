"""What a search for cells records, and the estimate of its end; the file is tested in `test_histories`."""

import numpy as np
import pytest

from nnunet_nas.errors import DataProblem
from nnunet_nas.iac.genotype import NODES
from nnunet_nas.iac.history import CellHistory, expected_end
from nnunet_nas.iac.pruning import StabilityPruning

UNIFORM = np.concatenate([np.full(node, 1 / node) for node in range(2, NODES)])
NO_TEST = np.full(14, np.nan)


def epoch(*, active=None, **changes):
    """One epoch with equal probabilities of what is active."""
    active = np.ones((14, 7), bool) if active is None else active
    values = {
        "probabilities": active / active.sum(axis=1, keepdims=True),
        "weights": UNIFORM,
        "active": active,
        "js": NO_TEST,
        "tau": np.full(14, 1e-10),
        "warmup": False,
        "train_loss": -0.5,
        "val_loss": np.nan,
        "dice": 0.75,
        "seconds": 12.5,
    }
    return {**values, **changes}


def first_left(counts):
    """The first `counts[e]` operations of edge e are active."""
    return np.arange(7) < np.asarray(counts)[:, None]


def history_of(*epochs):
    history = CellHistory()
    for values in epochs:
        history.append(**values)
    return history


def test_operations_left_and_edges_settled():
    # All 98; then three edges with 1, 1 and 2 operations: 11 * 7 + 4 = 81; then one each: 14.
    counts = ([7] * 14, [1, 1, 2] + [7] * 11, [1] * 14)
    history = history_of(*(epoch(active=first_left(count)) for count in counts))
    assert history.operations_left.tolist() == [98, 81, 14]
    assert history.edges_settled.tolist() == [0, 2, 14]
    assert CellHistory().operations_left.shape == CellHistory().edges_settled.shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.full(14, np.nan)}, "diverged"),
        ({"probabilities": np.full((14, 7), np.inf)}, "diverged"),
        ({"active": np.zeros((14, 7), bool), "probabilities": np.zeros((14, 7))}, "without any active operation"),
        ({"active": first_left([6] * 14), "probabilities": np.full((14, 7), 1 / 7)}, "pruned operation must be 0"),
    ],
)
def test_an_epoch_that_contradicts_itself_is_refused_and_not_added(changes, message):
    history = history_of(epoch())
    with pytest.raises(DataProblem, match=message):
        history.append(**{**epoch(), **changes})
    assert {len(array) for array in history.arrays().values()} == {1}


def test_a_long_search_stays_small(tmp_path):
    # 200 epochs of random numbers, which do not compress: 200 * (98 + 14 + 14 + 14) * 8 bytes = 224 kB and a little.
    random = np.random.default_rng(0)
    values = [epoch(probabilities=random.random((14, 7)), js=random.random(14)) for _ in range(200)]
    history_of(*values).save(tmp_path / "search_history.npz")
    assert (tmp_path / "search_history.npz").stat().st_size < 300_000


def after_a_test(js, tau, counts):
    """One epoch of warm-up and one with a test."""
    values = epoch(active=first_left(counts), js=np.broadcast_to(js, 14), tau=np.broadcast_to(tau, 14))
    return history_of(epoch(warmup=True), values)


def test_the_end_is_unknown_before_the_first_test():
    assert expected_end(CellHistory(), num_epochs=200, gamma=1.5) == 200
    assert expected_end(history_of(epoch(warmup=True)), num_epochs=200, gamma=1.5) == 200


def test_before_anything_is_pruned_the_threshold_has_to_pass_the_divergence():
    # tau = 1, 2, 4, 8, 16: at 10 the next tests with 1, 2, 4 and 8 fail, the one with 16 passes and prunes. Four failed
    # and six pruning epochs after the two that are over: 12.
    assert expected_end(after_a_test(10.0, 1.0, [7] * 14), num_epochs=200, gamma=2.0) == 12
    # JS < tau must hold strictly: with 8 the test against 8 fails too.
    assert expected_end(after_a_test(8.0, 1.0, [7] * 14), num_epochs=200, gamma=2.0) == 12
    assert expected_end(after_a_test(7.9, 1.0, [7] * 14), num_epochs=200, gamma=2.0) == 11


def test_stable_edges_lose_one_operation_per_epoch():
    assert expected_end(after_a_test(0.0, 1.0, [7] * 14), num_epochs=200, gamma=1.5) == 2 + 6
    assert expected_end(after_a_test(0.0, 1.0, [1] * 13 + [3]), num_epochs=200, gamma=1.5) == 2 + 2


def test_the_slowest_edge_decides():
    # Edge 0 would need one more epoch; edge 13 fails against 1, passes against 2 and prunes once: two.
    js = [0.0] * 13 + [1.5]
    assert expected_end(after_a_test(js, 1.0, [2] + [1] * 12 + [2]), num_epochs=200, gamma=2.0) == 2 + 2


def test_a_single_outlier_among_five_tests_does_not_move_the_estimate():
    values = [epoch(js=np.full(14, js), tau=np.ones(14)) for js in (0.5, 0.5, 1e6, 0.5, 0.5)]
    assert expected_end(history_of(*values), num_epochs=200, gamma=2.0) == 5 + 6


def test_a_settled_search_has_ended():
    assert expected_end(after_a_test(np.nan, 1.0, [1] * 14), num_epochs=200, gamma=1.5) == 2
    history = after_a_test(0.0, 1.0, [2] * 14)
    history.append(**epoch(active=first_left([1] * 14), js=np.zeros(14)))
    assert expected_end(history, num_epochs=200, gamma=1.5) == 3


@pytest.mark.parametrize(("tau", "gamma"), [(1.0, 1.0), (0.0, 1.5), (1e-300, 1.0001)])
def test_thresholds_that_never_pass_end_with_the_last_epoch(tau, gamma):
    assert expected_end(after_a_test(2.0, tau, [7] * 14), num_epochs=200, gamma=gamma) == 200


@pytest.mark.parametrize("seed", range(3))
def test_the_estimate_is_close_from_the_first_test_of_a_simulated_search(seed):
    # alpha drifts to random targets and wobbles, as Adam lets it; the rule is the one of the search.
    random = np.random.default_rng(seed)
    target = random.normal(0, 0.8, (14, 7))
    alpha = np.zeros((14, 7))
    pruning = StabilityPruning.start(tau0=1e-10, gamma=1.5, k=1.0)
    history = history_of(*[epoch(warmup=True)] * 15)
    estimates = []
    while not pruning.settled:
        alpha += 0.03 * (target - 0.2 * alpha) + random.normal(0, 0.004, (14, 7))
        js = pruning.update(probabilities_of(alpha, pruning.active), UNIFORM)
        left = probabilities_of(alpha, pruning.active)
        history.append(**epoch(probabilities=left, active=pruning.active, js=js, tau=pruning.tau))
        estimates.append(expected_end(history, num_epochs=200, gamma=1.5))
    assert estimates[-1] == len(history)
    assert max(abs(estimate - len(history)) for estimate in estimates) <= 5


def probabilities_of(alpha, active):
    exponentials = np.where(active, np.exp(alpha), 0)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_a_frozen_search_ends_after_21_epochs():
    # alpha never moves: JS is 0, every edge loses one operation per epoch after the 15 of warm-up.
    pruning = StabilityPruning.start(tau0=1e-10, gamma=1.5, k=1.0)
    history = history_of(*[epoch(warmup=True)] * 15)
    for _ in range(6):
        js = pruning.update(pruning.active / pruning.active.sum(axis=1, keepdims=True), UNIFORM)
        history.append(**epoch(active=pruning.active, js=js, tau=pruning.tau))
        assert expected_end(history, num_epochs=200, gamma=1.5) == 21
    assert len(history) == 21
    assert history.operations_left[-6:].tolist() == [84, 70, 56, 42, 28, 14]
