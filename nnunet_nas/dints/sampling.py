"""Topologies drawn exactly from P(topology | feasible), and what two of them have in common.

The recursion that gives P(feasible) (`probabilities`) also samples: sets of active nodes backwards through the layers,
then the edges of each layer given both of its sets, level by level. No draw is rejected for being infeasible. With all
logits zero every feasible topology is as probable as any other: what a search has to beat. (Our addition; section
3.3.3 of the paper speaks of sampling from p(I) and then takes its maximum.)

Random topologies of a given size are drawn from a distribution that is tilted towards that size and then thinned by
the inverse of the tilt, so that within the window they are uniform whatever the tilt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from nnunet_nas.dints.memory import MemoryModel
from nnunet_nas.dints.operations import SKIP
from nnunet_nas.dints.probabilities import log_pair_weights
from nnunet_nas.dints.selection import output_levels, path_cost
from nnunet_nas.dints.topology import Topology, edges
from nnunet_nas.errors import BudgetProblem

_BATCH = 256
_LARGEST = 1000.0
# Rejection gives up after this many draws per wanted topology.
_DRAWS_PER_TOPOLOGY = 2000
# The price, nats for the memory of the full network, rises until this share of the draws meets the budget.
_LEAST_ACCEPTED = 0.02
_PRICES = (0.0, *(10 ** (power / 8) for power in range(-16, 41)))
_STEPS_OF_TILT = 40


def sample_selected(
    edge_logits: np.ndarray, levels: int, count: int, rng: np.random.Generator, *, outputs: int | None = None
) -> np.ndarray:
    """Edges of feasible topologies, drawn independently from the product distribution given feasibility.

    Args:
        edge_logits: x of p = sigmoid(x), (layers, E).
        levels: D.
        count: how many to draw.
        rng: source of randomness.
        outputs: set of levels (sum of 2^level) of which the last layer must write at least one; None for any.

    Returns:
        (count, layers, E) bool.
    """
    logits = np.clip(np.asarray(edge_logits, np.float64), -_LARGEST, _LARGEST)
    pairs = log_pair_weights(torch.from_numpy(logits), levels).numpy()
    ends = np.arange(1, 2**levels)
    allowed = np.zeros(len(ends)) if outputs is None else np.where(ends & outputs, 0.0, -np.inf)
    to_go = [allowed]
    for layer in reversed(pairs[1:]):
        to_go.insert(0, np.logaddexp.reduce(layer + to_go[0], axis=1))
    selected = np.empty((count, *logits.shape), bool)
    # The first layer may read any set of levels: all stems are there.
    first = (pairs[0] + to_go[0]).ravel()
    drawn = _categorical(np.broadcast_to(first, (count, first.size)), rng)
    sources, destinations = drawn // len(ends), drawn % len(ends)
    for layer, row in enumerate(logits):
        if layer:
            sources = destinations
            destinations = _categorical(pairs[layer][sources] + to_go[layer], rng)
        selected[:, layer] = _sample_layer(row, sources + 1, destinations + 1, levels, rng)
    return selected


def _categorical(log_weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index per row of (count, n) log weights, which need not be normalised."""
    return np.asarray((log_weights + rng.gumbel(size=log_weights.shape)).argmax(1))


@cache
def _choices(level: int, levels: int) -> tuple[tuple[int, ...], np.ndarray, np.ndarray, np.ndarray]:
    """The eight sets of edges that come with a level.

    Returns:
        numbers of its three edges (to the finer level, from it, to itself), which of them a set includes (8, 3), and
        the flags (1 for a source, 2 for a destination) that a set gives the finer level and this one, (8,) each.
    """
    number = {pair: index for index, pair in enumerate(edges(levels))}
    own = tuple(number[pair] for pair in ((level, level - 1), (level - 1, level), (level, level)))
    included = (np.arange(8)[:, None] >> np.arange(3) & 1).astype(bool)
    up, down, same = included.T
    return own, included, down | up << 1, (up | same) | (down | same) << 1


def _sample_layer(
    logits: np.ndarray, sources: np.ndarray, destinations: np.ndarray, levels: int, rng: np.random.Generator
) -> np.ndarray:
    """Edges of one layer given the sets of nodes that they read from and write to.

    Args:
        logits: (E,).
        sources: set of every draw, (count,).
        destinations: likewise.
        levels: D.
        rng: source of randomness.

    Returns:
        (count, E) bool.
    """
    count, flags = len(sources), np.arange(4)
    wanted = [(sources >> level & 1) | (destinations >> level & 1) << 1 for level in range(levels)]
    # Log weight of all ways to go on after a level, by its flags so far.
    to_go = np.where(flags == wanted[-1][:, None], 0.0, -np.inf)
    steps = []
    for level in range(levels - 1, 0, -1):
        own, included, gives_finer, gives_own = _choices(level, levels)
        weight = np.where(included, logits[list(own)], 0.0).sum(1)
        completes = (flags[:, None] | gives_finer) == wanted[level - 1][:, None, None]
        ways = np.where(completes, weight + to_go[:, gives_own][:, None], -np.inf)
        steps.append((own, included, gives_own, ways))
        to_go = np.logaddexp.reduce(ways, axis=2)
    rows, selected = np.arange(count), np.zeros((count, len(logits)), bool)
    # Level 0 has its own edge or none: source and destination, or neither.
    there = _categorical(np.stack((to_go[:, 0], logits[0] + to_go[:, 3]), 1), rng)
    selected[:, 0], state = there == 1, 3 * there
    for own, included, gives_own, ways in reversed(steps):
        chosen = _categorical(ways[rows, state], rng)
        selected[:, list(own)] = included[chosen]
        state = gives_own[chosen]
    return selected


@dataclass(frozen=True)
class RelaxedTopology:
    """A distribution of topologies, and what they cost.

    Attributes:
        edge_logits: x, (layers, E).
        operations: softmax(alpha), (layers, E, N), 0 where an operation does not exist.
        names: of the operations.
        model: memory of the parts.
    """

    edge_logits: np.ndarray
    operations: np.ndarray
    names: Sequence[str]
    model: MemoryModel

    @staticmethod
    def uniform(layers: int, names: Sequence[str], model: MemoryModel) -> RelaxedTopology:
        """Every feasible topology is as probable as any other."""
        exists = np.isfinite(model.edges).astype(float)
        number = exists.sum(1)
        operations = np.broadcast_to(exists / number[:, None], (layers, *exists.shape))
        # An edge is there in as many ways as it has operations.
        return RelaxedTopology(np.broadcast_to(np.log(number), operations.shape[:2]), operations, names, model)

    def tilted(self, log_factors: np.ndarray) -> RelaxedTopology:
        """Every edge with its operation is `exp(log_factors)` times as likely as before.

        Args:
            log_factors: (layers, E, N), or what broadcasts to it. Tilted products of edges are products of edges.
        """
        with np.errstate(divide="ignore"):
            scores = np.log(self.operations) + log_factors
        total = np.logaddexp.reduce(scores, axis=-1)
        return replace(self, edge_logits=self.edge_logits + total, operations=np.exp(scores - total[..., None]))


def sample_topologies(relaxed: RelaxedTopology, count: int, rng: np.random.Generator) -> list[Topology]:
    """Feasible topologies that a network can be built from, each edge with an operation of its own distribution."""
    levels = relaxed.model.levels
    selected = sample_selected(relaxed.edge_logits, levels, count, rng, outputs=output_levels(levels))
    shape = relaxed.operations.shape
    with np.errstate(divide="ignore"):
        scores = np.log(relaxed.operations).reshape(-1, shape[-1])
    chosen = [_categorical(scores, rng).reshape(shape[:-1]) for _ in range(count)]
    return [
        Topology.from_arrays(rows, [[relaxed.names[n] for n in row] for row in columns], levels)
        for rows, columns in zip(selected, chosen, strict=True)
    ]


def sample_within_budget(
    relaxed: RelaxedTopology, count: int, rng: np.random.Generator, *, budget_mib: float | None
) -> list[Topology]:
    """Topologies from P(topology | feasible, within the budget).

    Exact where at least a fiftieth of the draws meets the budget. Where fewer do, from the distribution at the lowest
    price per MiB (that of `selection`, in steps) at which a fiftieth does.

    Args:
        relaxed: the distribution.
        count: how many to draw.
        rng: source of randomness.
        budget_mib: MiB; None for no limit.

    Raises:
        BudgetProblem: no price meets it.
    """
    model, names, layers = relaxed.model, relaxed.names, len(relaxed.edge_logits)
    cost = path_cost(layers, names, model) / model.full(layers)
    limit = np.inf if budget_mib is None else budget_mib
    for price in _PRICES:
        at_price = relaxed.tilted(-price * cost)
        found: list[Topology] = []
        for drawn in range(1, _DRAWS_PER_TOPOLOGY * count):
            batch = sample_topologies(at_price, _BATCH, rng)
            found += [topology for topology in batch if model.of(topology, names) <= limit]
            if len(found) >= count:
                return found[:count]
            if len(found) < _LEAST_ACCEPTED * _BATCH * drawn:
                break
    raise BudgetProblem(f"no topology of {limit:.0f} MiB was drawn: raise memory_limit_mib or sigma")


@dataclass(frozen=True)
class Size:
    """What random topologies are matched in.

    Attributes:
        mib: training memory.
        edges: number.
        skips: number of edges whose operation is the skip.
    """

    mib: float
    edges: int
    skips: int


def size_of(topology: Topology, relaxed: RelaxedTopology) -> Size:
    """Of a topology, by the memory model of its space."""
    operations = [name for layer in topology.layers for name in layer.values()]
    return Size(relaxed.model.of(topology, relaxed.names), len(operations), operations.count(SKIP))


def sample_like(
    size: Size,
    relaxed: RelaxedTopology,
    count: int,
    rng: np.random.Generator,
    *,
    window: Size,
    draws: int = _DRAWS_PER_TOPOLOGY,
) -> list[Topology]:
    """Topologies from P(topology | feasible, of about a size).

    Args:
        size: to be matched.
        relaxed: the distribution; `RelaxedTopology.uniform` for chance.
        count: how many to draw.
        rng: source of randomness.
        window: by how much memory, edges and skips may differ.
        draws: at most, for each topology.

    Raises:
        BudgetProblem: there are hardly any.
    """
    is_skip = np.array([name == SKIP for name in relaxed.names], float)
    tilts = _tilts(size, relaxed, is_skip, rng)
    at_size = relaxed.tilted(tilts[0] + tilts[1] * is_skip)
    # Every draw is thinned by the inverse of its tilt, relative to the largest in the window.
    slack = window.edges * abs(tilts[0]) + window.skips * abs(tilts[1])
    found: list[Topology] = []
    for _ in range(-(-draws * count // _BATCH)):
        for topology in sample_topologies(at_size, _BATCH, rng):
            own = size_of(topology, relaxed)
            edges_more, skips_more = own.edges - size.edges, own.skips - size.skips
            outside = abs(edges_more) > window.edges or abs(skips_more) > window.skips
            if outside or abs(own.mib - size.mib) > window.mib:
                continue
            if np.log(rng.random()) <= -tilts[0] * edges_more - tilts[1] * skips_more - slack:
                found.append(topology)
        if len(found) >= count:
            return found[:count]
    raise BudgetProblem(
        f"only {len(found)} random topologies of about {size.mib:.0f} MiB with {size.edges} edges, {size.skips} of "
        f"them skips, were found: allow wider limits"
    )


def _tilts(size: Size, relaxed: RelaxedTopology, is_skip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of edges and of skips, such that draws have about as many as wanted; by stochastic approximation, (2,)."""
    tilts, levels = np.zeros(2), relaxed.model.levels
    wanted = np.array([size.edges - size.skips, size.skips]) + 0.5
    for step in range(_STEPS_OF_TILT):
        at_size = relaxed.tilted(tilts[0] + tilts[1] * is_skip)
        selected = sample_selected(at_size.edge_logits, levels, _BATCH, rng, outputs=output_levels(levels))
        number = selected.sum((1, 2)).mean()
        skips = (selected * (at_size.operations * is_skip).sum(-1)).sum((1, 2)).mean()
        lacking = np.log(wanted) - np.log(np.array([number - skips, skips]) + 0.5)
        tilts += np.array([lacking[0], lacking[1] - lacking[0]]) / (1 + step / 10)
    return tilts


def edge_jaccard(first: Topology, second: Topology) -> float:
    """Edges in both over edges in either."""
    both, either = first.selected() & second.selected(), first.selected() | second.selected()
    return float(both.sum() / either.sum())


def same_operation(first: Topology, second: Topology) -> float:
    """Share of the edges in both that have the same operation in both; NaN where they share none."""
    pairs = zip(first.layers, second.layers, strict=True)
    same = [a[pair] == b[pair] for a, b in pairs for pair in a if pair in b]
    return float(np.mean(same)) if same else float("nan")
