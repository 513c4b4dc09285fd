"""The discrete topology within a memory budget, against all feasible topologies where they can be listed."""

import numpy as np
import pytest
from topologies import NAMES, all_topologies, random_model, relaxed

from nnunet_nas.dints.decoding import decode, negative_log_likelihood
from nnunet_nas.dints.memory import MemoryModel
from nnunet_nas.dints.selection import require_budget, select_topology, smallest_network, within_counted
from nnunet_nas.dints.topology import edges
from nnunet_nas.errors import BudgetProblem


@pytest.fixture(scope="module")
def every_topology():
    """Two levels, two layers, two operations: 4224 of them."""
    return list(all_topologies(2, 2, NAMES[:2]))


@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_network_is_the_smallest_of_all(every_topology, seed):
    model = random_model(seed, 2, NAMES[:2])
    least = min(model.of(topology, NAMES[:2]) for topology in every_topology)
    assert smallest_network(2, NAMES[:2], model).mib == pytest.approx(least)
    assert require_budget(2, NAMES[:2], model, None) == pytest.approx(least)
    assert require_budget(2, NAMES[:2], model, 1.001 * least) == pytest.approx(least)


@pytest.mark.parametrize("seed", range(4))
def test_without_a_tight_budget_it_is_the_most_probable_topology(seed):
    model = random_model(seed, 4)
    logits, operations = relaxed(seed, model, 6)
    free = select_topology(logits, operations, NAMES, model)
    ends = decode(logits, 4, outputs=0b1100)
    np.testing.assert_array_equal(free.decoded.selected, ends.selected)
    assert free.decoded.nll == pytest.approx(ends.nll)
    assert free.price == 0
    assert free.mib == model.of(free.topology, NAMES)
    for number, layer in enumerate(free.topology.layers):
        for pair, name in layer.items():
            assert operations[number, edges(4).index(pair)].argmax() == NAMES.index(name)
    for budget in (free.mib, 10 * free.mib):
        generous = select_topology(logits, operations, NAMES, model, budget_mib=budget)
        assert generous.topology == free.topology


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.7, 0.98])
def test_it_meets_every_budget_that_can_be_met(seed, share):
    model = random_model(seed, 4)
    logits, operations = relaxed(seed, model, 6)
    free = select_topology(logits, operations, NAMES, model)
    smallest = smallest_network(6, NAMES, model).mib
    budget = smallest + share * (free.mib - smallest)
    found = select_topology(logits, operations, NAMES, model, budget_mib=budget)
    assert found.mib == model.of(found.topology, NAMES) <= budget
    assert found.mib >= smallest - 1e-9
    assert found.price > 0 or found.topology == free.topology
    np.testing.assert_array_equal(found.decoded.selected, found.topology.selected())
    # Its likelihood is told by the search's own logits, not by the priced ones.
    assert found.decoded.nll == pytest.approx(negative_log_likelihood(logits, found.decoded.selected))
    assert found.decoded.nll >= free.decoded.nll


def test_the_price_falls_as_the_budget_grows():
    model = random_model(0, 3)
    logits, operations = relaxed(0, model, 4)
    free, smallest = select_topology(logits, operations, NAMES, model), smallest_network(4, NAMES, model)
    budgets = np.linspace(smallest.mib, free.mib, 6)
    prices = [select_topology(logits, operations, NAMES, model, budget_mib=budget).price for budget in budgets]
    assert prices == sorted(prices, reverse=True)
    assert prices[-1] == 0


def test_a_tight_budget_costs_an_operation_before_a_path():
    # One path of convolutions, far likelier than any other; skips at hand that are nearly as likely and free.
    model = MemoryModel(np.array([[0.0, 50.0]] * 7), np.ones(3), np.ones(3), 0.0)
    logits = np.full((3, 7), -9.0)
    path = [(1, 1), (1, 1), (1, 2)]
    for number, pair in enumerate(path):
        logits[number, edges(3).index(pair)] = 9
    operations = np.tile([0.49, 0.51], (3, 7, 1))
    operations[1] = [0.3, 0.7]
    assert select_topology(logits, operations, NAMES[:2], model).mib == 1 + 3 * 51
    found = select_topology(logits, operations, NAMES[:2], model, budget_mib=100)
    # A plain skip reads no activation; the edge that goes down reads its source's.
    assert found.topology.layers == ({(1, 1): "skip"}, {(1, 1): "conv"}, {(1, 2): "skip"})
    assert found.mib == 1 + 0 + 51 + 1


@pytest.mark.parametrize("seed", range(8))
def test_the_last_layer_reaches_the_deepest_supervised_output(seed):
    model = random_model(seed, 4)
    logits, operations = relaxed(seed, model, 3)
    logits[-1] -= 20
    logits[-1, :4] += 40  # everything that ends at levels 0 and 1 is wanted
    budget = 1.2 * smallest_network(3, NAMES, model).mib
    for found in (
        select_topology(logits, operations, NAMES, model),
        select_topology(logits, operations, NAMES, model, budget_mib=budget),
        smallest_network(3, NAMES, model),
    ):
        assert found.topology.outputs()[-1] >= 2


@pytest.mark.parametrize("size", [30.0, 1000.0, 1e5])
def test_saturated_logits_can_be_priced(size):
    model = random_model(3, 3)
    rng = np.random.default_rng(3)
    logits = size * rng.choice([-1.0, 1.0], (5, 7))
    operations = np.zeros((5, 7, 3))
    operations[..., 0] = 1
    smallest = smallest_network(5, NAMES, model).mib
    found = select_topology(logits, operations, NAMES, model, budget_mib=1.3 * smallest)
    assert smallest <= found.mib <= 1.3 * smallest


def test_a_budget_below_the_smallest_network_is_refused():
    # One stem and two plain skips, which read no activation.
    model = MemoryModel(np.full((4, 2), 100.0), np.ones(2), np.ones(2), 0.0)
    logits, operations = relaxed(0, model, 2)
    with pytest.raises(BudgetProblem, match="smallest feasible network needs 201 MiB, the budget is 200 MiB") as error:
        select_topology(logits, operations, NAMES[:2], model, budget_mib=200)
    assert error.value.exit_code == 5
    assert "memory_limit_mib" in str(error.value)
    with pytest.raises(BudgetProblem):
        require_budget(2, NAMES[:2], model, 200.9)
    assert require_budget(2, NAMES[:2], model, 201) == pytest.approx(201)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_budget_is_met_as_counted_where_the_prediction_is_too_low(share):
    model = random_model(3, 3)
    logits, operations = relaxed(4, model, 4)
    budget = (
        share * select_topology(logits, operations, NAMES, model).mib
        + (1 - share) * smallest_network(4, NAMES, model).mib
    )

    def select(limit):
        return select_topology(logits, operations, NAMES, model, budget_mib=limit)

    def count(topology):
        return 1.04 * model.of(topology, NAMES)

    # Too large by count, though not as predicted.
    tight = 1.01 * select(budget).mib
    assert select(tight).mib <= tight < count(select(tight).topology)
    found = within_counted(select, count, tight)
    assert count(found.topology) <= tight
    assert found.mib < select(tight).mib
    # What needs no correction gets none, and what cannot be met ends with the smallest that was found.
    right = within_counted(select, lambda topology: model.of(topology, NAMES), tight)
    assert right.topology == select(tight).topology
    assert within_counted(select, lambda topology: 10 * budget, budget).mib <= select(budget).mib
