"""From a relaxed topology to a discrete one: exact decoding, within a memory budget where one is given.

The budget (our choice): the most probable feasible topology at a price per MiB, at the lowest price that meets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_nas.commands import set_search
from nnunet_nas.dints.decoding import Decoded, decode, negative_log_likelihood
from nnunet_nas.dints.memory import MemoryModel
from nnunet_nas.dints.operations import SKIP
from nnunet_nas.dints.topology import Topology, edges
from nnunet_nas.errors import BudgetProblem

_BISECTIONS = 20
# Of the limit, by what the prediction lacks.
_CORRECTIONS = 5
# Nats per MiB, as powers of ten around one nat for the whole network.
_PRICES = (-4.0, 6.0)


@dataclass(frozen=True)
class Selection:
    """A discrete topology.

    Attributes:
        topology: edges and operations.
        decoded: its edges, and their negative log-likelihood.
        mib: predicted training memory.
        price: nats per MiB that it took to meet the budget; 0 where the most probable topology meets it.
    """

    topology: Topology
    decoded: Decoded
    mib: float
    price: float


def select_topology(
    edge_logits: np.ndarray,
    operations: np.ndarray,
    names: Sequence[str],
    model: MemoryModel,
    *,
    budget_mib: float | None = None,
) -> Selection:
    """The most probable feasible topology, within the budget.

    Args:
        edge_logits: x, (layers, E).
        operations: softmax(alpha), (layers, E, N).
        names: of the operations.
        model: memory of the parts.
        budget_mib: MiB; None for no limit.

    Raises:
        BudgetProblem: below the smallest feasible network.
    """
    free = _at_price(edge_logits, operations, names, model, 0.0)
    if budget_mib is None or free.mib <= budget_mib:
        return free
    require_budget(len(edge_logits), names, model, budget_mib)
    low, high = _PRICES
    best: Selection | None = None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = _at_price(edge_logits, operations, names, model, 10**middle / free.mib)
        if found.mib <= budget_mib:
            best, high = found, middle
        else:
            low = middle
    return smallest_network(len(edge_logits), names, model) if best is None else best


def within_counted(
    select: Callable[[float], Selection], count: Callable[[Topology], float], budget_mib: float
) -> Selection:
    """A selection that meets a budget when it is built, where the prediction may be a few percent too low.

    Args:
        select: the selection whose predicted memory meets a limit in MiB.
        count: MiB that a topology keeps when it is built.
        budget_mib: MiB.

    Returns:
        that of the budget, or of the highest limit found at which the counted memory meets it; where none does, that
        of the lowest limit tried.
    """
    limit, found = budget_mib, select(budget_mib)
    for _ in range(_CORRECTIONS):
        excess = count(found.topology) - budget_mib
        if excess <= 0:
            break
        limit = min(limit, found.mib) - excess
        try:
            found = select(limit)
        except BudgetProblem:
            break
    return found


def require_budget(layers: int, names: Sequence[str], model: MemoryModel, budget_mib: float | None) -> float:
    """MiB of the smallest feasible network.

    Raises:
        BudgetProblem: the budget is below it.
    """
    smallest = smallest_network(layers, names, model).mib
    if budget_mib is not None and smallest > budget_mib:
        raise BudgetProblem(
            f"the smallest feasible network needs {smallest:.0f} MiB, the budget is {budget_mib:.0f} MiB: raise "
            f"memory_limit_mib or sigma, or lower features or num_layers, with {set_search('dints')}"
        )
    return smallest


def smallest_network(layers: int, names: Sequence[str], model: MemoryModel) -> Selection:
    """The feasible topology that needs least memory: a single path, since every other one contains a path."""
    shape = model.edges.shape
    even = np.where(np.isfinite(model.edges), 1.0, 0.0)
    operations = np.broadcast_to(even / even.sum(1, keepdims=True), (layers, *shape))
    dear = 10 ** _PRICES[1] / model.full(layers)
    return _at_price(np.zeros((layers, shape[0])), operations, names, model, dear)


def _at_price(
    edge_logits: np.ndarray, operations: np.ndarray, names: Sequence[str], model: MemoryModel, price: float
) -> Selection:
    with np.errstate(divide="ignore"):
        scores = np.log(operations)
    cost = path_cost(len(edge_logits), names, model)
    priced = np.where(np.isfinite(model.edges), scores - price * cost, -np.inf)
    chosen = priced.argmax(-1)
    memory = np.take_along_axis(cost, chosen[..., None], -1)[..., 0]
    lost = scores.max(-1) - np.take_along_axis(scores, chosen[..., None], -1)[..., 0]
    logits = edge_logits - price * memory - lost
    # Only ranks matter far from zero, and decoding knows logits up to 1000.
    span = max(float(np.abs(logits).max()), 1.0)
    logits = logits * min(1.0, 500 / span)
    found = decode(logits, model.levels, memory=memory * 2**20, outputs=output_levels(model.levels))
    topology = Topology.from_arrays(found.selected, [[names[n] for n in row] for row in chosen], model.levels)
    decoded = Decoded(found.selected, negative_log_likelihood(edge_logits, found.selected))
    return Selection(topology, decoded, model.of(topology, list(names)), price)


def output_levels(levels: int) -> int:
    """Levels of which the last layer must write one, as the sum of 2^level.

    nnU-Net's deepest supervised output is at the coarsest level but one.
    """
    return 1 << (levels - 1) | 1 << (levels - 2)


def path_cost(layers: int, names: Sequence[str], model: MemoryModel) -> np.ndarray:
    """MiB of every edge with every operation, the node and the stem that it reads included, (layers, E, N).

    Exact for a single path; where several edges read the same node, each pays for it.
    """
    pairs = edges(model.levels)
    sources = [source for source, _ in pairs]
    reads = np.array([[source != end or name != SKIP for name in names] for source, end in pairs])
    edge = np.where(np.isfinite(model.edges), model.edges, 0) + reads * model.nodes[sources][:, None]
    cost = np.repeat(edge[None], layers, 0)
    cost[0] += model.stems[sources][:, None]
    return cost
