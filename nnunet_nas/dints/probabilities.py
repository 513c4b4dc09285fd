"""Closed forms for the connection patterns of a relaxed topology: no pattern is ever enumerated.

p_e = sigmoid(x_e) per edge; patterns are non-empty sets of edges with product probabilities, renormalised (paper,
Eq. 2). Every edge has one source and one destination, so what the paper sums over 2^E - 1 patterns factorises over
nodes. All is in log space and free of differences of nearly equal numbers, so that saturated logits keep finite values
and gradients. `layers` is L, `edges` E = 3D - 2, node sets are numbered by sum of 2^level.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad, softplus

from nnunet_nas.dints.topology import edges

# Stands for the logarithm of zero where infinity would make gradients undefined.
_IMPOSSIBLE = -1e30
# Below this logit softplus(x) / sigmoid(x) is 1 to double precision.
_TINY = -35.0


def _log_none_before(logits: Tensor) -> Tensor:
    """Log probability that none of the edges before each one is there."""
    return pad(torch.cumsum(logsigmoid(-logits[..., :-1]), -1), (1, 0))


def log_any(logits: Tensor) -> Tensor:
    """log(1 - prod(1 - p)) over the last dimension: at least one of the edges is there.

    The first edge that is there is summed over; all terms are positive, so that nothing cancels.
    """
    return torch.logsumexp(logsigmoid(logits) + _log_none_before(logits), -1)


def log_none(logits: Tensor) -> Tensor:
    """log prod(1 - p) over the last dimension: none of the edges is there."""
    return logsigmoid(-logits).sum(-1)


def marginals(logits: Tensor) -> Tensor:
    """m_e = p_e / (1 - prod(1 - p)): the weight of every edge in Eq. 1, (layers, edges)."""
    return torch.exp(logsigmoid(logits) - log_any(logits).unsqueeze(-1))


def pattern_entropy(logits: Tensor) -> Tensor:
    """Entropy of the connection patterns of every layer, (layers,), nats.

    log Z + (sum_e h(p_e) + q log q) / Z, rearranged so that Z divides nothing that vanishes with it, and that log Z,
    large where all edges are improbable, is multiplied by 1 - sum_e m_e, which is then small, without a difference.
    """
    log_z = log_any(logits).unsqueeze(-1)
    log_weight = logsigmoid(logits) - log_z
    # -log(1 - p) / p: goes to 1 for p -> 0.
    ratio = softplus(logits.clamp(min=_TINY)) / torch.sigmoid(logits.clamp(min=_TINY))
    kept = torch.sigmoid(-logits) - torch.exp(log_none(logits)).unsqueeze(-1)
    others = log_z * torch.expm1(_log_none_before(logits))
    return (log_weight.exp() * (others - log_weight + ratio * kept)).sum(-1)


def operation_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax over the last dimension, nats."""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def log_activation(logits: Tensor, levels: int, *, end: str) -> Tensor:
    """Log probability of every set of active nodes of a layer (paper, Eq. 6).

    Args:
        logits: (layers, edges).
        levels: D.
        end: "destination" for the nodes that a layer's patterns write to (p_in), "source" for those that they read
            from (p_out).

    Returns:
        (layers, 2^D - 1), for the sets 1, 2, ...
    """
    return _log_sets(logits, levels)[{"source": 0, "destination": 1}[end]]


@cache
def _edges_of_nodes(levels: int) -> list[list[list[int]]]:
    """Numbers of the edges from and to every node, (2, D, 3); one past the last edge where there are fewer."""
    found = [
        [[index for index, pair in enumerate(edges(levels)) if pair[end] == level] for level in range(levels)]
        for end in range(2)
    ]
    return [[own + [len(edges(levels))] * (3 - len(own)) for own in nodes] for nodes in found]


def _log_sets(logits: Tensor, levels: int) -> Tensor:
    """Log probability of every set of nodes that layers read from and write to, (2, layers, 2^D - 1)."""
    # With one edge that is never there.
    own = pad(logits, (0, 1), value=_IMPOSSIBLE)[:, torch.tensor(_edges_of_nodes(levels), device=logits.device)]
    active, idle = log_any(own), log_none(own)
    numbers = torch.arange(1, 2**levels, device=logits.device)
    members = (numbers[:, None] >> torch.arange(levels, device=logits.device) & 1).bool()
    sets = torch.where(members, active.unsqueeze(2), idle.unsqueeze(2)).sum(-1)
    return (sets - torch.logsumexp(sets, -1, keepdim=True)).transpose(0, 1)


def _log_others(log_p: Tensor) -> Tensor:
    """log(1 - p) of every entry of a distribution (..., n): of the largest as the sum of all other entries."""
    largest = log_p.argmax(-1, keepdim=True)
    others = log_p.scatter(-1, largest, _IMPOSSIBLE)
    # No other entry is above a half, where 1 - p loses nothing.
    return torch.log1p(-others.exp()).scatter(-1, largest, torch.logsumexp(others, -1, keepdim=True))


def topology_loss(logits: Tensor, levels: int) -> Tensor:
    """L_tp of Eq. 7 (no epsilon): cross-entropy between what layers activate and what the next layers read, nats."""
    reads, writes = _log_sets(logits, levels)
    inputs, outputs = writes[:-1], reads[1:]
    return -(inputs.exp() * outputs + _log_others(inputs).exp() * _log_others(outputs)).sum()


@cache
def _transitions() -> list[list[list[int]]]:
    """Of the level-by-level recursion: which sets of edges lead from flags before to flags final and after.

    A level's two flags say whether its source and its destination have an edge so far. Three edges come with the next
    level: (bit 0) from it to this one, (1) from this one to it, (2) from it to itself.

    Returns:
        (4, 16, n) sets of edges, 8 for none: [flags before, 4 * flags final + flags after].
    """
    found: list[list[list[int]]] = [[[] for _ in range(16)] for _ in range(4)]
    for before in range(4):
        for chosen in range(8):
            up, down, same = chosen & 1, chosen >> 1 & 1, chosen >> 2 & 1
            final = before | down | up << 1
            after = (up | same) | (down | same) << 1
            found[before][4 * final + after].append(chosen)
    longest = max(len(sets) for row in found for sets in row)
    return [[sets + [8] * (longest - len(sets)) for sets in row] for row in found]


def _log_steps(present: Tensor, absent: Tensor, levels: int) -> Tensor:
    """Log probability of every transition of the recursion.

    Args:
        present: log p, (layers, edges).
        absent: log (1 - p), (layers, edges).
        levels: D.

    Returns:
        (levels - 1, 4, 16, layers, 1, 1): [level - 1, flags before, 4 * flags final + flags after].
    """
    number = {pair: index for index, pair in enumerate(edges(levels))}
    own = [[number[level, level - 1], number[level - 1, level], number[level, level]] for level in range(1, levels)]
    device = present.device
    included = torch.tensor([[chosen >> bit & 1 for bit in range(3)] for chosen in range(8)], device=device).bool()
    # (layers, levels - 1, 8), and one impossible set for padding.
    sets = torch.where(included, present[:, own].unsqueeze(2), absent[:, own].unsqueeze(2)).sum(-1)
    sets = pad(sets, (0, 1), value=_IMPOSSIBLE)
    steps = torch.logsumexp(sets[..., torch.tensor(_transitions(), device=device)], -1)
    return steps.permute(1, 2, 3, 0)[..., None, None]


def log_pair_weights(logits: Tensor, levels: int) -> Tensor:
    """Log of the summed product probability of all patterns with given sources and destinations, not normalised.

    Args:
        logits: (layers, edges).
        levels: D.

    Returns:
        (layers, 2^D - 1, 2^D - 1): [layer, sources - 1, destinations - 1].
    """
    present, absent = logsigmoid(logits), logsigmoid(-logits)
    # Flags of the last level so far, layers, sets of sources and of destinations among the levels before it. Level 0
    # has its own edge or none: source and destination, or neither.
    impossible = torch.full_like(absent[:, 0], _IMPOSSIBLE)
    table = torch.stack((absent[:, 0], impossible, impossible, present[:, 0])).unflatten(1, (-1, 1, 1))
    for step in _log_steps(present, absent, levels) if levels > 1 else ():
        finals = []
        for final in range(4):
            # Edges are only ever added.
            before = [flags for flags in range(4) if flags | final == final]
            finals.append(torch.logsumexp(table[before, None] + step[before, 4 * final : 4 * final + 4], 0))
        table = _by_sets(finals)
    return _by_sets(list(table))[:, 1:, 1:]


def _by_sets(by_flags: list[Tensor]) -> Tensor:
    """(..., sources, destinations) of each value of a level's flags to sets that include this level."""
    none, source, destination, both = by_flags
    return torch.cat((torch.cat((none, destination), -1), torch.cat((source, both), -1)), -2)


def log_feasible(logits: Tensor, levels: int) -> Tensor:
    """log P(feasible): the probability that independently drawn patterns of all layers fit together, nats.

    Its gradient with respect to a layer's logits is the difference between the edges' probabilities given
    feasibility and their marginals m.

    Args:
        logits: (layers, edges).
        levels: D.
    """
    weights = log_pair_weights(logits, levels)
    active = torch.logsumexp(weights[0], 0)
    for layer in weights[1:]:
        active = torch.logsumexp(active.unsqueeze(1) + layer, 0)
    return torch.logsumexp(active, 0) - log_any(logits).sum()
