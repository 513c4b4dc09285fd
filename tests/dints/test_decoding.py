"""Exact decoding against brute force, against SciPy's shortest path, MONAI and independent values; ties; saturation."""

import contextlib
import io
import json
import math
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from nnunet_nas.dints.decoding import Decoded, decode, discretisation_gap, most_probable, negative_log_likelihood
from nnunet_nas.dints.topology import activated, edges, infeasible_node

REFERENCES = json.loads((Path(__file__).parent / "reference/dints_decode.json").read_text())
# Levels and layers that brute force can take: D = 2 up to 4 layers, D = 3 two.
SMALL = [(1, 3), (2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2)]
SATURATED = st.sampled_from([-math.inf, -2000.0, -1000.0, -1.0, 0.0, 1.0, 1000.0, 2000.0, math.inf])


@st.composite
def layers_of(draw, values, sizes=SMALL):
    """Values per layer and edge, and the number of levels."""
    levels, layers = draw(st.sampled_from(sizes))
    count = layers * (3 * levels - 2)
    return np.array(draw(st.lists(values, min_size=count, max_size=count))).reshape(layers, -1), levels


@cache
def patterns(levels):
    """All non-empty sets of edges, (M, E), in lexicographic order."""
    return np.array(list(product((False, True), repeat=3 * levels - 2))[1:])


@cache
def node_sets(levels):
    """Numbers of the sets of nodes that the patterns read from, and write to."""
    return tuple(active @ (1 << np.arange(levels)) for active in activated(patterns(levels), levels))


@cache
def feasible_sequences(levels, layers):
    """All feasible topologies: the number of every layer's pattern, (topologies, layers), in lexicographic order."""
    sources, destinations = node_sets(levels)
    fits = destinations[:, None] == sources[None]
    sequences = np.arange(len(sources))[:, None]
    for _ in range(layers - 1):
        rows, following = np.nonzero(fits[sequences[:, -1]])
        sequences = np.concatenate((sequences[rows], following[:, None]), 1)
    return sequences


def brute_force(logits, levels, memory=None, outputs=None):
    """The topology of the highest sum of selected logits; then fewest edges, least memory, lexicographically first."""
    sequences = feasible_sequences(levels, len(logits))
    if outputs is not None:
        sequences = sequences[node_sets(levels)[1][sequences[:, -1]] & outputs != 0]

    def summed(values):
        by_pattern = patterns(levels) @ values.T
        return sum(by_pattern[sequences[:, layer], layer] for layer in range(len(logits)))

    keys = (-summed(logits), summed(np.ones_like(logits)), summed(np.zeros_like(logits) if memory is None else memory))
    # lexsort is stable and its last key counts first.
    best = sequences[np.lexsort(keys[::-1])[0]]
    return patterns(levels)[best]


def log_eta(logits, levels):
    """Log probability of all patterns of every layer, (layers, M)."""
    chosen = np.where(patterns(levels), -np.logaddexp(0, -logits)[:, None], -np.logaddexp(0, logits)[:, None]).sum(-1)
    return chosen - np.logaddexp.reduce(chosen, 1)[:, None]


def shortest_path(logits, levels):
    """Costs and patterns of the shortest path through the explicit graph of patterns (section 3.3.3, figure 5)."""
    sources, destinations = node_sets(levels)
    costs, count = -log_eta(logits, levels), len(sources)
    heads, tails, lengths = [np.zeros(count, int)], [1 + np.arange(count)], [costs[0]]
    before, after = np.nonzero(destinations[:, None] == sources[None])
    for layer in range(1, len(logits)):
        heads.append(1 + (layer - 1) * count + before)
        tails.append(1 + layer * count + after)
        lengths.append(costs[layer, after])
    last = 1 + len(logits) * count
    heads.append(last - count + np.arange(count))
    tails.append(np.full(count, last))
    lengths.append(np.ones(count))
    graph = csr_array(
        (np.concatenate(lengths), (np.concatenate(heads), np.concatenate(tails))), shape=(last + 1, last + 1)
    )
    distances, predecessors = dijkstra(graph, indices=0, return_predecessors=True)
    chosen, node = [], predecessors[last]
    while node:
        chosen.insert(0, (node - 1) % count)
        node = predecessors[node]
    return distances[last] - 1, patterns(levels)[chosen]


def union_of_paths(rng, levels, layers, paths):
    """A feasible topology: every active node lies on a path from a stem to the last layer."""
    selected = np.zeros((layers, 3 * levels - 2), bool)
    for _ in range(paths):
        level = int(rng.integers(levels))
        for row in selected:
            source, level = level, int(np.clip(level + rng.integers(-1, 2), 0, levels - 1))
            row[edges(levels).index((source, level))] = True
    return selected


@settings(deadline=None, max_examples=40)
@given(layers_of(st.floats(-5, 5).map(lambda value: round(value, 6))))
def test_decoding_is_brute_force(drawn):
    logits, levels = drawn
    found, expected = decode(logits, levels), brute_force(logits, levels)
    # The sums of brute force are rounded: equal topologies, or equally likely ones.
    assert found.nll == pytest.approx(negative_log_likelihood(logits, expected), abs=1e-9)
    assert infeasible_node(found.selected, levels) is None


@settings(deadline=None, max_examples=40)
@given(layers_of(st.integers(-2, 2)), st.data())
def test_ties_go_to_fewer_edges_then_lower_memory_then_lexicographic(drawn, data):
    logits, levels = drawn
    kind = data.draw(st.sampled_from(["none", "even", "small", "any"]))
    bytes_of = {"even": st.just(7), "small": st.integers(0, 2), "any": st.integers(0, 2**40)}
    memory = None
    if kind != "none":
        drawn_bytes = data.draw(st.lists(bytes_of[kind], min_size=logits.size, max_size=logits.size))
        memory = np.array(drawn_bytes).reshape(logits.shape)
    found = decode(logits.astype(float), levels, memory=memory)
    assert found.selected.tolist() == brute_force(logits, levels, memory).tolist()


@pytest.mark.parametrize(("levels", "layers"), [(2, 4), (3, 2)])
def test_ties_of_every_kind(levels, layers):
    # So many that each rule decides at least once: fewer edges in 5 % of draws (two levels), memory within a layer in
    # 1 % (three).
    rng = np.random.default_rng(0)
    for _ in range(200):
        logits = rng.integers(-1, 2, (layers, 3 * levels - 2))
        memory = rng.integers(0, 2, logits.shape)
        found = decode(logits.astype(float), levels, memory=memory)
        assert found.selected.tolist() == brute_force(logits, levels, memory).tolist()


def test_ties_by_hand():
    # Edges (0, 0), (1, 0), (0, 1), (1, 1). Even odds: one edge is as likely as any set and fewest; the last one comes
    # first in lexicographic order; the first one where it needs less memory than the others.
    even = np.zeros((1, 4))
    assert decode(even, 2).selected.tolist() == [[False, False, False, True]]
    assert decode(even, 2, memory=np.array([[1, 2, 2, 2]])).selected.tolist() == [[True, False, False, False]]
    # An edge that is likelier by 2^-29 nats counts for more than any memory.
    likelier = np.array([[0, 2**-29, 0, 0]])
    assert decode(likelier, 2, memory=np.array([[0, 9, 0, 0]])).selected.tolist() == [[False, True, False, False]]


@settings(deadline=None, max_examples=40)
@given(layers_of(st.integers(-2, 2), [size for size in SMALL if size[0] > 1]), st.data())
def test_outputs_are_respected(drawn, data):
    logits, levels = drawn
    outputs = data.draw(st.integers(1, 2**levels - 1))
    found = decode(logits.astype(float), levels, outputs=outputs)
    assert any(outputs >> end & 1 for end in np.flatnonzero(activated(found.selected, levels)[1][-1]))
    assert found.selected.tolist() == brute_force(logits, levels, outputs=outputs).tolist()


@pytest.mark.parametrize("outputs", [0, 4, 8])
def test_outputs_must_name_a_level(outputs):
    with pytest.raises(ValueError, match=f"outputs is {outputs}, which names none of the 2 levels"):
        decode(np.zeros((2, 4)), 2, outputs=outputs)


@pytest.mark.parametrize("layers", [1, 3, 5])
@pytest.mark.parametrize("spread", [1, 6, 10])
@pytest.mark.parametrize("seed", [0, 1])
def test_decoding_is_the_shortest_path_through_all_patterns(layers, spread, seed):
    logits = spread * np.random.default_rng([layers, spread, seed]).normal(size=(layers, 7))
    length, selected = shortest_path(logits, 3)
    found = decode(logits, 3)
    assert found.selected.tolist() == selected.tolist()
    assert found.nll == pytest.approx(length, rel=1e-12, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(layers_of(SATURATED, [(levels, layers) for levels in range(1, 6) for layers in (1, 2, 4)]))
@example((np.full((3, 7), math.inf), 3))
@example((np.full((3, 7), -math.inf), 3))
@pytest.mark.filterwarnings("error")
def test_certain_edges_decode_to_something_feasible(drawn):
    logits, levels = drawn
    found = decode(logits, levels)
    assert infeasible_node(found.selected, levels) is None
    assert 0 <= found.nll < math.inf
    # Beyond +-1000 nothing changes.
    assert decode(np.clip(logits, -1000, 1000), levels).selected.tolist() == found.selected.tolist()
    assert discretisation_gap(logits, found) >= 0


@settings(deadline=None, max_examples=40)
@given(layers_of(SATURATED))
def test_certain_edges_are_brute_force(drawn):
    logits, levels = drawn
    expected = brute_force(np.clip(logits, -1000, 1000).astype(int), levels)
    assert decode(logits, levels).selected.tolist() == expected.tolist()


@pytest.mark.parametrize("levels", range(1, 9))
@pytest.mark.parametrize("certainty", [0.1, 40, math.inf])
def test_a_feasible_binary_architecture_decodes_to_itself(levels, certainty):
    rng = np.random.default_rng(levels)
    selected = union_of_paths(rng, levels, 4 if levels > 6 else 12, int(rng.integers(1, 4)))
    logits = np.where(selected, certainty, -certainty)
    found = decode(logits, levels)
    assert found.selected.tolist() == selected.tolist()
    assert discretisation_gap(logits, found) == 0
    if certainty >= 40:
        assert found.nll == pytest.approx(0, abs=1e-12)


def test_gap_counts_edges():
    # The likeliest patterns write level 1 and read both: to read only level 1 costs 8 nats, to write level 0 too 9.
    logits = np.array([[-9.0, -9, 5, -9], [8, 3, -9, -9]])
    assert most_probable(logits).tolist() == [[False, False, True, False], [True, True, False, False]]
    found = decode(logits, 2)
    assert found.selected.tolist() == [[False, False, True, False], [False, True, False, False]]
    assert discretisation_gap(logits, found) == 1
    assert discretisation_gap(logits, Decoded(~most_probable(logits), 0.0)) == 8


@settings(deadline=None)
@given(layers_of(st.integers(-2, 2) | SATURATED, [(1, 1), (2, 1), (3, 1), (4, 1)]))
def test_of_one_layer_every_pattern_is_feasible(drawn):
    logits, levels = drawn
    assert decode(logits, levels).selected.tolist() == most_probable(logits).tolist()


@settings(deadline=None, max_examples=30)
@given(layers_of(st.sampled_from([-800.0, -40.0, 40.0, 800.0]) | st.floats(-5, 5), [(2, 2), (3, 2)]))
def test_negative_log_likelihood_is_the_enumeration(drawn):
    logits, levels = drawn
    for number in (0, 1, len(patterns(levels)) // 2, -1):
        selected = patterns(levels)[[number] * len(logits)]
        expected = -log_eta(logits, levels)[:, number].sum()
        assert negative_log_likelihood(logits, selected) == pytest.approx(expected, rel=1e-12, abs=1e-11)


@pytest.mark.parametrize("entry", REFERENCES, ids=lambda entry: f"D{entry['D']}-L{entry['L']}")
def test_independent_values(entry):
    logits = np.array(entry["logits"])
    found = decode(logits, entry["D"])
    assert found.selected.astype(int).tolist() == entry["edges"]
    assert found.nll == pytest.approx(entry["nll"], rel=1e-12)


@pytest.mark.parametrize(("levels", "spread"), [(2, 0.5), (2, 6), (3, 1), (3, 6)])
def test_monai_decodes_no_better(levels, spread):
    dints = pytest.importorskip("monai.networks.nets.dints")
    with contextlib.redirect_stdout(io.StringIO()):
        search = dints.TopologySearch(channel_mul=1 / 32, num_blocks=3, num_depths=levels, spatial_dims=2).double()
    rng = np.random.default_rng(levels)
    for _ in range(9 if levels == 2 else 1):
        logits = spread * rng.normal(size=(3, 3 * levels - 2))
        search.log_alpha_a.data = torch.from_numpy(logits)
        _, theirs, _, their_most_probable = search.decode()
        found = decode(logits, levels)
        assert infeasible_node(theirs > 0, levels) is None
        assert most_probable(logits).tolist() == (their_most_probable > 0).tolist()
        assert found.nll <= negative_log_likelihood(logits, theirs > 0) + 1e-9
        # It adds 1e-5 to every probability: the same topology only where none of those that matter is so small.
        if spread <= 1:
            assert found.selected.tolist() == (theirs > 0).tolist()
