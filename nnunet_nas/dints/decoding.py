"""The most probable feasible topology, exactly: Viterbi over sets of active nodes (paper, section 3.3.3, Eq. 4).

States are the 2^D - 1 sets of active nodes of a layer. The cheapest pattern with exactly these sources and
destinations follows from a dynamic programme over levels in O(4^D), no pattern is enumerated. Ties: fewer edges, then
less memory, then the lexicographically smallest selection: layer by layer, edges in their order, absent before present.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from nnunet_nas.dints.topology import edges

# Logits are compared in steps of 2^-30 nats, as integers: ties are then exact whatever the order of summation. Beyond
# +-1000 an edge is as certain as a double can say.
_STEP = 2.0**30
_LARGEST = 1000.0
_IMPOSSIBLE = np.int64(2**62)


@dataclass(frozen=True)
class Cost:
    """What is minimised, in this order; arrays of equal shape, int64.

    Attributes:
        likelihood: negative log-likelihood in steps, times a factor above any number of edges, plus the edges.
        memory: bytes.
    """

    likelihood: np.ndarray
    memory: np.ndarray

    def at(self, *index: Any) -> Cost:
        """Both parts at an index, which works as that of an array."""
        return Cost(self.likelihood[index], self.memory[index])

    def put(self, index: tuple[Any, ...], value: Cost) -> None:
        """Sets both parts at an index."""
        self.likelihood[index], self.memory[index] = value.likelihood, value.memory

    def summed(self, axis: int) -> Cost:
        """Both parts summed over an axis."""
        return Cost(self.likelihood.sum(axis), self.memory.sum(axis))


@dataclass(frozen=True)
class Decoded:
    """A feasible topology.

    Attributes:
        selected: (layers, E), bool.
        nll: negative log-likelihood of its patterns, summed over layers, nats.
    """

    selected: np.ndarray
    nll: float


def decode(logits: np.ndarray, levels: int, *, memory: np.ndarray | None = None, outputs: int | None = None) -> Decoded:
    """The most probable feasible topology.

    Args:
        logits: x of p = sigmoid(x), (layers, E).
        levels: D.
        memory: bytes per layer and edge, (layers, E), for ties; None where it does not matter.
        outputs: set of levels (sum of 2^level) of which the last layer must write at least one; None for any.
    """
    ends = np.arange(1, 2**levels)
    allowed = np.ones(len(ends), bool) if outputs is None else (ends & outputs) != 0
    if not allowed.any():
        raise ValueError(f"outputs is {outputs}, which names none of the {levels} levels: the sum of 2^level, or None")
    costs = _edge_costs(logits, memory)
    pairs = _pair_costs(costs, levels)
    return _reconstruct(costs, pairs, allowed, levels, logits)


def negative_log_likelihood(logits: np.ndarray, selected: np.ndarray) -> float:
    """Sum over layers of -log eta of the selected patterns, nats."""
    logits = np.clip(np.asarray(logits, np.float64), -_LARGEST, _LARGEST)
    absent = -np.logaddexp(0, logits)
    before = np.pad(np.cumsum(absent[:, :-1], 1), ((0, 0), (1, 0)))
    normaliser = np.logaddexp.reduce(-np.logaddexp(0, -logits) + before, axis=1)
    chosen = np.where(selected, -np.logaddexp(0, -logits), absent)
    return float(np.sum(normaliser) - np.sum(chosen))


def most_probable(logits: np.ndarray) -> np.ndarray:
    """C_max: the most probable pattern of every layer by itself, feasible or not, (layers, E) bool.

    Ties as in `decode`, without memory.
    """
    steps = _steps(logits)
    selected = steps < 0
    # Where no edge is likely, the likeliest; the last of equal ones is the lexicographically smallest.
    last = steps.shape[1] - 1 - np.argmin(steps[:, ::-1], 1)
    empty = ~selected.any(1)
    selected[empty, last[empty]] = True
    return selected


def discretisation_gap(logits: np.ndarray, decoded: Decoded) -> int:
    """G = sum |C_max - C_top| (section 4.4.2): edges in which most probable and decoded patterns differ."""
    return int(np.sum(most_probable(logits) != decoded.selected))


def _steps(logits: np.ndarray) -> np.ndarray:
    """Of including an edge rather than leaving it out: -x, since log p - log(1 - p) = x; in steps."""
    return np.round(-np.clip(np.asarray(logits, np.float64), -_LARGEST, _LARGEST) * _STEP).astype(np.int64)


def _edge_costs(logits: np.ndarray, memory: np.ndarray | None) -> Cost:
    """Of including an edge rather than leaving it out."""
    steps = _steps(logits)
    factor = 1 << int(steps.size).bit_length()
    if _LARGEST * _STEP * steps.size * factor >= float(_IMPOSSIBLE):
        # Only beyond several thousand edges; coarser steps keep the integers in range.
        shift = int(np.ceil(np.log2(_LARGEST * _STEP * steps.size * factor / float(_IMPOSSIBLE)))) + 1
        steps >>= shift
    size = np.zeros(steps.shape, np.int64) if memory is None else np.asarray(np.round(memory), np.int64)
    return Cost(steps * factor + 1, size)


def _lower(first: Cost, second: Cost) -> Cost:
    """Elementwise minimum."""
    take = (second.likelihood < first.likelihood) | (
        (second.likelihood == first.likelihood) & (second.memory < first.memory)
    )
    return Cost(np.where(take, second.likelihood, first.likelihood), np.where(take, second.memory, first.memory))


def _plus(first: Cost, second: Cost) -> Cost:
    """Sum; impossible stays impossible."""
    total = first.likelihood + second.likelihood
    impossible = (first.likelihood == _IMPOSSIBLE) | (second.likelihood == _IMPOSSIBLE)
    return Cost(np.where(impossible, _IMPOSSIBLE, total), np.where(impossible, 0, first.memory + second.memory))


def _lowest(cost: Cost, axis: int) -> Cost:
    """Minimum along an axis."""
    likelihood = cost.likelihood.min(axis)
    tied = cost.likelihood == np.expand_dims(likelihood, axis)
    return Cost(likelihood, np.where(tied, cost.memory, np.iinfo(np.int64).max).min(axis))


def _impossible(shape: tuple[int, ...]) -> Cost:
    return Cost(np.full(shape, _IMPOSSIBLE), np.zeros(shape, np.int64))


@cache
def _choices(level: int, levels: int) -> tuple[tuple[int, int, list[int]], ...]:
    """The eight sets of edges that come with a level: bits (to the finer, from the finer, to itself), flags, edges."""
    number = {pair: index for index, pair in enumerate(edges(levels))}
    pairs = [(level, level - 1), (level - 1, level), (level, level)]
    return tuple(
        (chosen, _flags(chosen), [number[pair] for bit, pair in enumerate(pairs) if chosen >> bit & 1])
        for chosen in range(8)
    )


def _flags(chosen: int) -> int:
    """What a set of edges does: bits (finer has output, finer has input, this has output, this has input)."""
    up, down, same = chosen & 1, chosen >> 1 & 1, chosen >> 2 & 1
    return down | up << 1 | (up | same) << 2 | (down | same) << 3


def _pair_costs(costs: Cost, levels: int) -> Cost:
    """The cheapest pattern of every layer with exactly given sources and destinations: (layers, 2^D, 2^D)."""
    layers = len(costs.likelihood)
    table = _impossible((layers, 1, 4))
    # Level 0 has its own edge or none: input and output, or neither.
    for flags, own in ((0, []), (3, [0])):
        table.put((slice(None), 0, flags), costs.at(slice(None), own).summed(1))
    for level in range(1, levels):
        prefixes = table.likelihood.shape[1]
        following = _impossible((layers, prefixes, 16))
        for _, flags, own in _choices(level, levels):
            cost = costs.at(slice(None), own).summed(1).at(slice(None), None)
            for before in range(4):
                target = (slice(None), slice(None), 4 * (before | flags & 3) + (flags >> 2))
                following.put(target, _lower(following.at(*target), _plus(table.at(..., before), cost)))
        table = Cost(*(part.reshape(layers, prefixes * 4, 4) for part in (following.likelihood, following.memory)))
    return Cost(_by_node_sets(table.likelihood, levels), _by_node_sets(table.memory, levels))


def _by_node_sets(table: np.ndarray, levels: int) -> np.ndarray:
    """Reorders digits (destination flag, source flag) of level 0 first to sets of sources and of destinations."""
    split = table.reshape(len(table), *(2, 2) * levels)
    destinations = [1 + 2 * level for level in reversed(range(levels))]
    sources = [2 + 2 * level for level in reversed(range(levels))]
    return split.transpose(0, *sources, *destinations).reshape(len(table), 2**levels, 2**levels)


def _reconstruct(costs: Cost, pairs: Cost, allowed: np.ndarray, levels: int, logits: np.ndarray) -> Decoded:
    """From cheapest ways to go, computed from the last layer back, the lexicographically first optimal selection."""
    layers = len(costs.likelihood)
    end = Cost(np.where(allowed, 0, _IMPOSSIBLE), np.zeros(len(allowed), np.int64))
    to_go = [end]
    for layer in reversed(range(1, layers)):
        following = _plus(pairs.at(layer, slice(1, None), slice(1, None)), to_go[0].at(None))
        to_go.insert(0, _lowest(following, 1))
    # Every stem is there: the first layer may read any set of levels.
    selected, sources = [], None
    for layer in range(layers):
        of_layer = pairs.at(layer, slice(1, None), slice(1, None))
        within = _lowest(of_layer, 0) if sources is None else of_layer.at(sources - 1)
        total = _plus(within, to_go[layer])
        best = _lowest(total, 0)
        tied = np.flatnonzero((total.likelihood == best.likelihood) & (total.memory == best.memory)) + 1
        row = min(_first_pattern(costs.at(layer), sources, int(target), levels) for target in tied)
        selected.append(row)
        sources = sum({1 << edges(levels)[edge][1] for edge, chosen in enumerate(row) if chosen})
    chosen = np.array(selected, bool)
    return Decoded(chosen, negative_log_likelihood(logits, chosen))


def _first_pattern(costs: Cost, sources: int | None, destinations: int, levels: int) -> tuple[bool, ...]:
    """The cheapest pattern of one layer with given ends, lexicographically first; sources None: any non-empty set."""

    def fits(level: int, flags: int) -> bool:
        source_fits = sources is None or (flags & 1) == (sources >> level & 1)
        return source_fits and (flags >> 1 & 1) == (destinations >> level & 1)

    Key = tuple[int, int, tuple[bool, ...]]
    likelihoods, memories = costs.likelihood.tolist(), costs.memory.tolist()
    table: dict[int, Key] = {0: (0, 0, (False,)), 3: (likelihoods[0], memories[0], (True,))}
    for level in range(1, levels):
        following: dict[int, Key] = {}
        for before, (likelihood, memory, row) in table.items():
            for chosen, flags, own in _choices(level, levels):
                if not fits(level - 1, before | flags & 3):
                    continue
                # In the order of edges: to the finer level, from it, to itself.
                bits = tuple(bool(chosen >> bit & 1) for bit in range(3))
                total = likelihood + sum(likelihoods[edge] for edge in own)
                key = (total, memory + sum(memories[edge] for edge in own), row + bits)
                after = flags >> 2
                if after not in following or key < following[after]:
                    following[after] = key
        table = following
    return min(key for flags, key in table.items() if fits(levels - 1, flags))[2]
