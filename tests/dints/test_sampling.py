"""Draws of topologies against all feasible ones where they can be listed, and against exact marginals elsewhere."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from topologies import NAMES, all_topologies, random_model, relaxed

from nnunet_nas.dints.probabilities import log_feasible, marginals
from nnunet_nas.dints.sampling import (
    RelaxedTopology,
    Size,
    edge_jaccard,
    same_operation,
    sample_like,
    sample_selected,
    sample_topologies,
    sample_within_budget,
    size_of,
)
from nnunet_nas.dints.selection import select_topology, smallest_network
from nnunet_nas.dints.topology import Topology, activated, edges, infeasible_node
from nnunet_nas.errors import BudgetProblem

TWO = NAMES[:2]
# Of a test that is right: the seeds are fixed, so that it passes always or never.
SIGNIFICANT = 1e-3


def feasible(levels, layers, outputs=None):
    """All feasible selections of edges, (n, layers, E)."""
    rows = [row for row in itertools.product((False, True), repeat=3 * levels - 2) if any(row)]
    chosen = np.array(list(itertools.product(rows, repeat=layers)))
    kept = [selected for selected in chosen if infeasible_node(selected, levels) is None]
    written = [activated(selected, levels)[1][-1] for selected in kept]
    bits = 2 ** np.arange(levels)
    return np.array([s for s, w in zip(kept, written, strict=True) if outputs is None or int(w @ bits) & outputs])


def frequencies(drawn, every):
    """How often each of `every` was drawn; none other may be."""
    number = {selected.tobytes(): index for index, selected in enumerate(every)}
    return np.bincount([number[selected.tobytes()] for selected in drawn], minlength=len(every))


def expected(logits, every, count):
    weight = np.where(every, logits, 0.0).sum((1, 2))
    share = np.exp(weight - weight.max())
    return count * share / share.sum()


@pytest.mark.parametrize(("levels", "layers", "outputs"), [(2, 3, None), (2, 2, 0b01), (3, 1, 0b110), (3, 2, 0b110)])
@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_every_feasible_topology_is_drawn_as_often_as_it_is_probable(levels, layers, outputs, spread):
    rng = np.random.default_rng(levels + 10 * layers)
    logits = rng.normal(0, spread, (layers, 3 * levels - 2))
    every = feasible(levels, layers, outputs)
    count = 60000
    drawn = sample_selected(logits, levels, count, rng, outputs=outputs)
    wanted, found = expected(logits, every, count), frequencies(drawn, every)
    if spread == 0:
        np.testing.assert_allclose(wanted, count / len(every))
    # Chi-square needs some draws in every cell: the rare ones share one.
    rare = wanted < 5
    cells = [np.append(values[~rare], values[rare].sum()) for values in (found, wanted)]
    assert chisquare(*(values[cells[1] > 0] for values in cells)).pvalue > SIGNIFICANT


@pytest.mark.parametrize(("levels", "layers", "spread"), [(4, 6, 1.0), (5, 3, 3.0)])
def test_the_share_of_every_edge_is_its_probability_given_feasibility(levels, layers, spread):
    """By another way: the gradient of log P(feasible) is that probability less the marginal."""
    rng = np.random.default_rng(levels)
    logits = torch.tensor(rng.normal(0, spread, (layers, 3 * levels - 2)), requires_grad=True)
    (gradient,) = torch.autograd.grad(log_feasible(logits, levels), logits)
    share = (marginals(logits) + gradient).detach().numpy()
    count = 20000
    drawn = sample_selected(logits.detach().numpy(), levels, count, rng)
    assert all(infeasible_node(selected, levels) is None for selected in drawn[:200])
    sigma = np.sqrt(share * (1 - share) / count)
    assert (np.abs(drawn.mean(0) - share) < 4.5 * sigma + 1e-9).all()


def test_certain_edges_are_always_drawn():
    wanted = feasible(3, 2)[1234]
    drawn = sample_selected(np.where(wanted, 1e6, -1e6), 3, 50, np.random.default_rng(0))
    assert (drawn == wanted).all()


def test_the_same_seed_draws_the_same():
    model = random_model(0, 3)
    logits, operations = relaxed(1, model, 4)
    space = RelaxedTopology(logits, operations, NAMES, model)
    first, second, other = (sample_topologies(space, 5, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert first == second != other


def test_operations_are_drawn_from_their_own_distribution():
    model = random_model(0, 2)
    logits, operations = relaxed(3, model, 2, spread=1.0)
    drawn = sample_topologies(RelaxedTopology(logits, operations, NAMES, model), 8000, np.random.default_rng(0))
    for number, (index, pair) in itertools.product(range(2), enumerate(edges(2))):
        names = [topology.layers[number][pair] for topology in drawn if pair in topology.layers[number]]
        found = np.array([names.count(name) for name in NAMES])
        wanted = len(names) * operations[number, index]
        assert (found[wanted == 0] == 0).all()
        assert chisquare(found[wanted > 0], wanted[wanted > 0]).pvalue > SIGNIFICANT


def test_tilting_multiplies_the_odds_of_every_edge_with_its_operation():
    model = random_model(0, 2)
    logits, operations = relaxed(3, model, 2)
    factors = np.random.default_rng(0).normal(size=operations.shape)
    found = RelaxedTopology(logits, operations, NAMES, model).tilted(factors)
    np.testing.assert_allclose(found.operations.sum(-1), 1)
    np.testing.assert_allclose(
        np.exp(found.edge_logits)[..., None] * found.operations,
        np.exp(logits)[..., None] * operations * np.exp(factors),
        rtol=1e-12,
    )


def counts_of(drawn, every):
    number = {str(topology.to_json()): index for index, topology in enumerate(every)}
    return np.bincount([number[str(topology.to_json())] for topology in drawn], minlength=len(every))


@pytest.fixture(scope="module")
def every_topology():
    """Two levels, two layers, two operations: 4224 of them."""
    return list(all_topologies(2, 2, TWO))


def test_within_the_budget_draws_follow_the_distribution(every_topology):
    model = random_model(1, 2, TWO)
    logits, operations = relaxed(2, model, 2, spread=1.0)
    mib = np.array([model.of(topology, TWO) for topology in every_topology])
    budget = float(np.quantile(mib, 0.3))
    log_weight = [
        sum(
            logits[number, edges(2).index(pair)] + np.log(operations[number, edges(2).index(pair), TWO.index(name)])
            for number, layer in enumerate(topology.layers)
            for pair, name in layer.items()
        )
        for topology in every_topology
    ]
    share = np.where(mib <= budget, np.exp(log_weight), 0)
    count = 10000
    drawn = sample_within_budget(
        RelaxedTopology(logits, operations, TWO, model), count, np.random.default_rng(0), budget_mib=budget
    )
    assert len(drawn) == count
    found, wanted = counts_of(drawn, every_topology), count * share / share.sum()
    rare = wanted < 5
    cells = [np.append(values[~rare], values[rare].sum()) for values in (found, wanted)]
    assert chisquare(*cells).pvalue > SIGNIFICANT


def test_a_budget_that_hardly_a_draw_meets_is_met_at_a_price():
    model = random_model(1, 3)
    logits, operations = relaxed(2, model, 4, spread=0.1)
    space, rng = RelaxedTopology(logits + 3, operations, NAMES, model), np.random.default_rng(0)
    budget = 0.25 * model.full(4)
    assert min(model.of(topology, NAMES) for topology in sample_topologies(space, 500, rng)) > budget
    drawn = sample_within_budget(space, 20, rng, budget_mib=budget)
    assert len(drawn) == 20
    assert max(model.of(topology, NAMES) for topology in drawn) <= budget
    assert len({str(topology.to_json()) for topology in drawn}) > 10
    less = 0.9 * smallest_network(4, NAMES, model).mib
    with pytest.raises(BudgetProblem, match="raise memory_limit_mib"):
        sample_within_budget(space, 20, rng, budget_mib=less)


@pytest.mark.parametrize("window", [Size(8, 0, 0), Size(15, 1, 1)])
def test_random_topologies_of_a_size_are_uniform(every_topology, window):
    model = random_model(1, 2, TWO)
    space = RelaxedTopology.uniform(2, TWO, model)
    size = size_of(every_topology[3001], space)
    sizes = [size_of(topology, space) for topology in every_topology]
    fits = np.array(
        [
            abs(own.mib - size.mib) <= window.mib
            and abs(own.edges - size.edges) <= window.edges
            and abs(own.skips - size.skips) <= window.skips
            for own in sizes
        ]
    )
    assert 20 < fits.sum() < len(fits) / 2
    drawn = sample_like(size, space, 6000, np.random.default_rng(0), window=window)
    found = counts_of(drawn, every_topology)
    assert found[~fits].sum() == 0
    assert chisquare(found[fits]).pvalue > SIGNIFICANT


def test_a_found_network_has_random_ones_of_its_size_in_a_space_of_many():
    model = random_model(1, 4)
    found, space = (
        select_topology(*relaxed(5, model, 8), NAMES, model).topology,
        RelaxedTopology.uniform(8, NAMES, model),
    )
    size = size_of(found, space)
    window = Size(0.1 * size.mib, 0, 0)
    drawn = sample_like(size, space, 10, np.random.default_rng(0), window=window)
    for topology in drawn:
        own = size_of(topology, space)
        assert (own.edges, own.skips) == (size.edges, size.skips)
        assert own.mib == pytest.approx(size.mib, rel=0.1)
    assert all(edge_jaccard(found, topology) < 0.9 for topology in drawn)
    with pytest.raises(BudgetProblem, match="allow wider limits"):
        sample_like(replace(size, mib=10 * size.mib), space, 1, np.random.default_rng(0), window=window)


def test_agreement_by_hand():
    first = Topology(2, ({(0, 0): "conv", (1, 1): "skip"}, {(0, 0): "conv", (1, 1): "conv"}))
    second = Topology(2, ({(0, 0): "skip", (0, 1): "skip"}, {(0, 0): "conv", (1, 1): "conv"}))
    assert edge_jaccard(first, second) == 3 / 5
    assert same_operation(first, second) == 2 / 3
    apart = Topology(2, ({(0, 1): "conv"}, {(1, 1): "conv"})), Topology(2, ({(1, 0): "conv"}, {(0, 0): "conv"}))
    assert edge_jaccard(*apart) == 0
    assert np.isnan(same_operation(*apart))
