"""The analysis of section 4, with numbers that can be checked with a pencil."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_nas.errors import DataProblem
from nnunet_nas.iac.dynamics import (
    analyse,
    average_of,
    cell_masks,
    cosine_similarity,
    first_epoch,
    hamming_similarity,
    importances,
    ranks,
    settled_epoch,
    top_masks,
    unpruned,
)
from nnunet_nas.iac.genotype import EDGES, NODES, OPERATIONS, discretise
from nnunet_nas.iac.history import CellHistory

UNIFORM = np.concatenate([np.full(node, 1 / node) for node in range(2, NODES)])
# Sixteenths, exact in binary: the order of the operations is their listing, dil_conv_5 the last.
FALLING = np.array([6, 4, 2, 1, 1, 1, 1]) / 16


def record(probabilities, weights=None, active=None, warmup=0):
    """A history from probabilities (t, 14, 7); `warmup` epochs at its start."""
    probabilities = np.asarray(probabilities, float)
    history = CellHistory()
    for epoch, values in enumerate(probabilities):
        history.append(
            probabilities=values,
            weights=UNIFORM if weights is None else weights[epoch],
            active=np.ones((14, 7), bool) if active is None else active[epoch],
            js=np.full(14, np.nan),
            tau=np.full(14, np.nan),
            warmup=epoch < warmup,
            train_loss=0.0,
            val_loss=0.0,
            dice=0.0,
            seconds=1.0,
        )
    return history


def with_leader(operation):
    """FALLING for every edge, with the given operation first."""
    values = FALLING.copy()
    values[[0, operation]] = values[[operation, 0]]
    return np.tile(values, (14, 1))


def test_importance_is_the_product_edge_by_edge():
    probabilities = np.zeros((1, 14, 7))
    probabilities[0, :, 1] = 1
    probabilities[0, 13] = FALLING
    vector = importances(probabilities, UNIFORM[np.newaxis])[0]
    assert vector.shape == (98,)
    assert vector[1] == 1 / 2  # edge 0 -> 2 has half of node 2
    assert vector[13 * 7 : 13 * 7 + 3] == pytest.approx([6 / 80, 4 / 80, 2 / 80])  # edge 4 -> 5 has a fifth of node 5
    assert vector.sum() == pytest.approx(4)  # one per computed node


def test_cosine_similarity_of_known_angles():
    similarity = cosine_similarity(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
    assert similarity == pytest.approx(np.array([[1, 0.5**0.5, 0], [0.5**0.5, 1, 0.5**0.5], [0, 0.5**0.5, 1]]))


def test_hamming_similarity_counts_agreeing_entries():
    masks = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1]], bool)
    assert hamming_similarity(masks).tolist() == [[1, 0.75, 0], [0.75, 1, 0.25], [0, 0.25, 1]]


def test_top_masks_take_the_largest_and_break_ties_by_the_listing():
    history = record([with_leader(6), np.full((14, 7), 1 / 7)])
    # FALLING with dil_conv_5 first: 1, 4, 2, 1, 1, 1, 6.
    assert np.flatnonzero(top_masks(history.probabilities, history.active, 1)[0, 5]).tolist() == [6]
    assert np.flatnonzero(top_masks(history.probabilities, history.active, 3)[0, 5]).tolist() == [1, 2, 6]
    assert np.flatnonzero(top_masks(history.probabilities, history.active, 4)[0, 5]).tolist() == [0, 1, 2, 6]
    assert np.flatnonzero(top_masks(history.probabilities, history.active, 3)[1, 5]).tolist() == [0, 1, 2]


def test_pruned_operations_are_in_no_mask():
    active = np.zeros((1, 14, 7), bool)
    active[..., 4] = True
    active[0, 0, 6] = True
    probabilities = active / active.sum(axis=-1, keepdims=True)
    masks = top_masks(probabilities, active, 3)
    assert masks.sum(axis=-1)[0].tolist() == [2] + [1] * 13
    assert not masks[~active].any()


def test_a_cell_mask_has_the_eight_entries_of_the_discrete_cell():
    probabilities = with_leader(3)[np.newaxis]
    weights = UNIFORM[np.newaxis].copy()
    weights[0, 9:] = [0.1, 0.2, 0.1, 0.25, 0.35]  # into node 5: the edges from 3 and 4 win
    masks = cell_masks(probabilities, weights)
    assert masks.sum() == 8
    # Ties of the other nodes go to the lower sources: 0 and 1. sep_conv_3 leads everywhere.
    expected = [(0, 2), (1, 2), (0, 3), (1, 3), (0, 4), (1, 4), (3, 5), (4, 5)]
    assert [EDGES[row] for row in np.flatnonzero(masks[0, :, 3])] == expected


def test_ranks_count_ties_against_everyone():
    assert ranks(np.array([[0.5, 0.2, 0.3], [1.0, 1.0, 0.0], [2.0, 2.0, 2.0]])).tolist() == [
        [0, 2, 1],
        [1, 1, 2],
        [2, 2, 2],
    ]


def test_first_and_settled_epochs():
    holds = np.array([False, True, False, False, True, True])
    assert (first_epoch(holds), settled_epoch(holds)) == (1, 4)
    assert (first_epoch(~holds), settled_epoch(~holds)) == (0, None)
    assert (first_epoch(holds[:1]), settled_epoch(holds[:1])) == (None, None)
    assert (first_epoch(holds[4:]), settled_epoch(holds[4:])) == (0, 0)


def test_entries_of_the_final_operation():
    # dil_conv_5 (6) is tied, last, third, first, second, first: it is in the top-3 from epoch 2, in the top-2 and
    # top-1 from epoch 3, and stays the first from epoch 5.
    shares = [
        np.full(7, 1 / 7),
        np.array([3, 3, 3, 2, 2, 2, 1]) / 16,
        np.array([5, 4, 1, 1, 1, 1, 3]) / 16,
        np.array([4, 3, 1, 1, 1, 1, 5]) / 16,
        np.array([5, 3, 1, 1, 1, 1, 4]) / 16,
        np.array([4, 3, 1, 1, 1, 1, 5]) / 16,
    ]
    analysis = analyse(record([np.tile(values, (14, 1)) for values in shares], warmup=1))
    assert analysis.warmup_epochs == 1
    for edge in analysis.edges:
        assert edge.operation == "dil_conv_5"
        assert {name: edge.enters[name] for name in ("top_3", "top_2", "top_1")} == {
            "top_3": 2,
            "top_2": 3,
            "top_1": 3,
        }
        assert {name: edge.stays[name] for name in ("top_3", "top_2", "top_1")} == {"top_3": 2, "top_2": 3, "top_1": 5}
        assert edge.difficulty == 5
    assert analysis.medians() == {"top_3": 2, "top_2": 3, "top_1": 3, "inputs": None}


def test_edges_among_the_two_inputs_of_their_node():
    # Into node 3 (rows 2, 3, 4), epoch by epoch: all equal; 1 and 2 lead; 0 and 2; 1 and 2 again.
    weights = np.tile(UNIFORM, (4, 1))
    weights[:, 2:5] = [[1 / 3, 1 / 3, 1 / 3], [0.2, 0.3, 0.5], [0.4, 0.1, 0.5], [0.2, 0.4, 0.4]]
    edges = {(edge.source, edge.target): edge for edge in analyse(record([with_leader(3)] * 4, weights=weights)).edges}
    assert [edges[source, 3].kept for source in range(3)] == [False, True, True]
    assert [edges[source, 3].enters["inputs"] for source in range(3)] == [None, 1, 1]
    assert [edges[source, 3].stays["inputs"] for source in range(3)] == [None, 3, 1]
    # Node 2 has no other inputs than its two, so that they are its inputs from the first epoch on.
    assert [edges[source, 2].enters["inputs"] for source in range(2)] == [0, 0]
    # Node 4 ends in a tie of four: the cell keeps two of them, but none was ever stronger than the others.
    assert [edges[source, 4].kept for source in range(4)] == [True, True, False, False]
    assert [edges[source, 4].enters["inputs"] for source in range(4)] == [None] * 4


def test_medians_are_taken_over_the_kept_edges():
    # sep_conv_3 leads every edge from epoch 1 on, but the last edge, which takes over at epoch 2. All weights differ.
    weights = np.concatenate([np.arange(1, node + 1) / (node * (node + 1) / 2) for node in range(2, NODES)])
    late = with_leader(3)
    late[13] = with_leader(0)[13]
    analysis = analyse(record([with_leader(0), late, with_leader(3)], weights=[weights] * 3))
    assert [edge.difficulty for edge in analysis.edges] == [1] * 13 + [2]
    # The eight kept edges, 4 -> 5 among them: 1 seven times and 2 once. Their operation was tied for the fourth place.
    assert analysis.medians() == {"top_3": 1, "top_2": 1, "top_1": 1, "inputs": 0}


def test_similarities_of_a_change_of_leader():
    # Between the two epochs identity and max_pool_3 change places on every edge.
    analysis = analyse(record([with_leader(0), with_leader(1)]))
    # 6*4 + 4*6 + 4 + 4*1 = 56 over 36 + 16 + 4 + 4 = 60; the weights are the same.
    assert analysis.cosine[0, 1] == pytest.approx(56 / 60)
    # top-1: 2 of 7 entries differ on each edge; top-2 and top-3 are the same sets; 8 of 14 edges are in the cell.
    assert analysis.hamming["top_1"][0, 1] == pytest.approx(5 / 7)
    assert analysis.hamming["top_2"][0, 1] == analysis.hamming["top_3"][0, 1] == 1
    assert analysis.hamming["cell"][0, 1] == pytest.approx(1 - 16 / 98)
    assert analysis.to_final()["top_1"].tolist() == pytest.approx([5 / 7, 1])


def test_an_empty_search_cannot_be_analysed():
    with pytest.raises(DataProblem, match="has not finished an epoch"):
        analyse(CellHistory())


def test_one_epoch_is_enough():
    analysis = analyse(record([np.full((14, 7), 1 / 7)], warmup=1))
    assert analysis.cosine.tolist() == [[1.0]]
    assert analysis.edges[0].enters == {"top_3": None, "top_2": None, "top_1": None, "inputs": 0}
    assert json.loads(json.dumps(analysis.to_json()))["epochs"] == 1


def test_json_compares_the_epochs_of_the_paper_and_the_last():
    random = np.random.default_rng(0)
    content = json.loads(json.dumps(analyse(record(random.dirichlet(np.ones(7), (50, 14)), warmup=15)).to_json()))
    # After 15, 16, 20 and 40 epochs, and the last.
    assert content["between"]["epochs"] == [14, 15, 19, 39, 49]
    assert set(content["between"]) == {"epochs", "cosine", "top_1", "top_2", "top_3", "cell"}
    assert np.shape(content["between"]["top_2"]) == (5, 5)
    assert content["between"]["cosine"][-1][0] == content["to_final"]["cosine"][14]
    assert len(content["edges"]) == 14
    assert sum(edge["kept"] for edge in content["edges"]) == 8
    assert {len(values) for values in content["to_final"].values()} == {50}


@st.composite
def searches(draw):
    epochs, largest = draw(st.integers(1, 5)), draw(st.integers(1, 9))  # 1 and 2: ties nearly everywhere
    # From one number: hypothesis would take a second to draw hundreds of them one by one.
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numbers = random.integers(1, largest, (epochs, 14, 7), endpoint=True).astype(float)
    active = np.logical_and.accumulate(numbers > 1, axis=0)
    active[~active.any(axis=-1)] = True
    active = np.ones_like(active) if draw(st.booleans()) else active
    shares = np.where(active, numbers, 0)
    strength = random.integers(1, largest, (epochs, 14), endpoint=True).astype(float)
    return record(shares / shares.sum(axis=-1, keepdims=True), weights=strength / 45, active=active)


@given(searches())
@settings(max_examples=40)
def test_properties_of_every_analysis(history):
    analysis = analyse(history)
    assert analysis.genotype == discretise(history.probabilities[-1], history.weights[-1])
    for matrix in (analysis.cosine, *analysis.hamming.values()):
        assert matrix.shape == (len(history), len(history))
        assert (np.diagonal(matrix) == 1).all()
        assert (matrix >= 0).all()
        assert (matrix <= 1).all()
        assert (matrix == matrix.T).all()
    for edge in analysis.edges:
        for table in (edge.enters, edge.stays):
            known = [table[name] for name in ("top_1", "top_2", "top_3") if table[name] is not None]
            assert known == sorted(known, reverse=True)  # who is first is also among the first three
            assert table["inputs"] is None or edge.kept
        for name, stays in edge.stays.items():
            assert stays is None or edge.enters[name] <= stays
    kept = {(edge.source, edge.target, edge.operation) for edge in analysis.edges if edge.kept}
    assert kept == {(edge.source, edge.target, edge.operation) for edge in analysis.genotype.edges}
    assert all(edge.operation in OPERATIONS for edge in analysis.edges)
    json.dumps(analysis.to_json(), allow_nan=False)


@given(searches(), st.integers(1, 3))
@settings(max_examples=40)
def test_masks_hold_k_operations_or_all_that_are_left(history, k):
    masks = top_masks(history.probabilities, history.active, k)
    assert (masks.sum(axis=-1) == np.minimum(k, history.active.sum(axis=-1))).all()
    assert (masks <= top_masks(history.probabilities, history.active, k + 1)).all()


def test_pruning_alone_is_no_change_of_importance():
    # Uniform importances, of which one more operation is dropped per epoch until one is left.
    active = np.stack([np.tile(np.arange(7) < 7 - epoch, (14, 1)) for epoch in range(7)])
    shares = active / active.sum(axis=-1, keepdims=True)
    analysis = analyse(record(shares, active=active))
    np.testing.assert_allclose(unpruned(shares, active), 1 / 7)
    np.testing.assert_allclose(analysis.cosine, 1)
    # As recorded, the first and the last epoch are as far apart as a uniform share and a single one.
    mirrored = cosine_similarity(importances(shares, np.tile(UNIFORM, (7, 1))))
    assert mirrored[0, -1] == pytest.approx(7**-0.5)


def test_a_pruned_operation_keeps_its_share():
    active = np.ones((2, 14, 7), bool)
    active[1, :, 3:] = False
    shares = np.stack([np.tile(FALLING, (14, 1)), np.tile([0.5, 0.25, 0.25, 0, 0, 0, 0], (14, 1))])
    # Four sixteenths are dropped, twelve are left to divide.
    assert unpruned(shares, active)[1, 0] == pytest.approx([6 / 16, 3 / 16, 3 / 16, 1 / 16, 1 / 16, 1 / 16, 1 / 16])


def test_averages_of_several_searches_by_hand():
    first = analyse(record([with_leader(0), with_leader(0)]))
    second = analyse(record([with_leader(1), with_leader(0), with_leader(1)]))
    average = average_of([first, second])
    assert average.epochs == [2, 3]
    # Top-1 to the last epoch: 1, 1 and 1, 5/7, (1).
    mean, spread = average.to_final["top_1"]
    assert mean.tolist() == pytest.approx([1, 6 / 7])
    assert spread.tolist() == pytest.approx([0, (2 / 7) / 2**0.5])
    # The same edges by the same weights, identity in one and max_pool_3 in the other.
    assert (average.jaccard, average.same_operation) == (1, 0)
    json.dumps(average.to_json(), allow_nan=False)
