"""Closed forms for the connection patterns of a relaxed topology: no pattern is ever enumerated.

p_e = sigmoid(x_e) per edge; patterns are non-empty sets of edges with product probabilities, renormalised (paper, Eq. 2).
Every edge has one source and one destination, so what the paper sums over 2^E - 1 patterns factorises over nodes. All
is in log space and free of differences of nearly equal numbers, so that saturated logits keep finite values and
gradients. `layers` is L, `edges` E = 3D - 2, node sets are numbered by sum of 2^level.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from nnunet_nas.dints.topology import edges

# Stands for the logarithm of zero where infinity would make gradients undefined.
_IMPOSSIBLE = -1e30
# Below this logit softplus(x) / sigmoid(x) is 1 to double precision.
_TINY = -35.0


def log_any(logits: Tensor) -> Tensor:
    """log(1 - prod(1 - p)) over the last dimension: at least one of the edges is there.

    The first edge that is there is summed over; all terms are positive, so that nothing cancels.
    """
    absent = logsigmoid(-logits)
    before = torch.cumsum(absent, -1) - absent
    return torch.logsumexp(logsigmoid(logits) + before, -1)


def log_none(logits: Tensor) -> Tensor:
    """log prod(1 - p) over the last dimension: none of the edges is there."""
    return logsigmoid(-logits).sum(-1)


def marginals(logits: Tensor) -> Tensor:
    """m_e = p_e / (1 - prod(1 - p)): the weight of every edge in Eq. 1, (layers, edges)."""
    return torch.exp(logsigmoid(logits) - log_any(logits).unsqueeze(-1))


def pattern_entropy(logits: Tensor) -> Tensor:
    """Entropy of the connection patterns of every layer, (layers,), nats.

    log Z + (sum_e h(p_e) + q log q) / Z, rearranged so that Z divides nothing that vanishes with it.
    """
    weight = marginals(logits)
    # -log(1 - p) / p: goes to 1 for p -> 0.
    ratio = softplus(logits.clamp(min=_TINY)) / torch.sigmoid(logits.clamp(min=_TINY))
    kept = torch.sigmoid(-logits) - torch.exp(log_none(logits)).unsqueeze(-1)
    return log_any(logits) - (weight * logsigmoid(logits)).sum(-1) + (weight * ratio * kept).sum(-1)


def operation_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax over the last dimension, nats."""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def log_activation(logits: Tensor, levels: int, *, end: str) -> Tensor:
    """Log probability of every set of active nodes of a layer. (Paper, Eq. 6.)

    Args:
        logits: (layers, edges).
        levels: D.
        end: "destination" for the nodes that a layer's patterns write to (p_in), "source" for those that they read
            from (p_out).

    Returns:
        (layers, 2^D - 1), for the sets 1, 2, ...
    """
    position = {"source": 0, "destination": 1}[end]
    sets = torch.zeros(len(logits), 1, dtype=logits.dtype, device=logits.device)
    for level in range(levels):
        own = logits[:, [index for index, pair in enumerate(edges(levels)) if pair[position] == level]]
        absent, present = log_none(own).unsqueeze(-1), log_any(own).unsqueeze(-1)
        sets = torch.cat((sets + absent, sets + present), -1)
    return sets[:, 1:] - log_any(logits).unsqueeze(-1)


def _log_others(log_p: Tensor) -> Tensor:
    """log(1 - p) of every entry of a distribution (..., n), as the sum of all other entries."""
    edge = torch.full_like(log_p[..., :1], _IMPOSSIBLE)
    before = torch.cat((edge, torch.logcumsumexp(log_p, -1)[..., :-1]), -1)
    after = torch.cat((torch.logcumsumexp(log_p.flip(-1), -1).flip(-1)[..., 1:], edge), -1)
    return torch.logaddexp(before, after)


def topology_loss(logits: Tensor, levels: int) -> Tensor:
    """L_tp of Eq. 7 (no epsilon): cross-entropy between what layers activate and what the next layers read, nats."""
    inputs = log_activation(logits, levels, end="destination")[:-1]
    outputs = log_activation(logits, levels, end="source")[1:]
    return -(inputs.exp() * outputs + _log_others(inputs).exp() * _log_others(outputs)).sum()


@cache
def _transitions() -> Tensor:
    """Of the level-by-level recursion: for every (flags before, flags final, flags after), which of 32 terms lead there.

    A level's two flags say whether its source and its destination have an edge so far. Three edges come with the next
    level: (0) from it to this one, (1) from this one to it, (2) from it to itself. Term = 8 * flags before + edges.

    Returns:
        (16, n) indices of terms, 32 for none; row = 4 * flags final + flags after.
    """
    rows: list[list[int]] = [[] for _ in range(16)]
    for before in range(4):
        for chosen in range(8):
            up, down, same = chosen & 1, chosen >> 1 & 1, chosen >> 2 & 1
            final = before | down | up << 1
            after = (up | same) | (down | same) << 1
            rows[4 * final + after].append(8 * before + chosen)
    longest = max(map(len, rows))
    return torch.tensor([row + [32] * (longest - len(row)) for row in rows])


def log_pair_weights(logits: Tensor, levels: int) -> Tensor:
    """Log of the summed product probability of all patterns with given sources and destinations, not normalised.

    Args:
        logits: (layers, edges).
        levels: D.

    Returns:
        (layers, 2^D - 1, 2^D - 1): [layer, sources - 1, destinations - 1].
    """
    number = {pair: index for index, pair in enumerate(edges(levels))}
    present, absent = logsigmoid(logits), logsigmoid(-logits)
    impossible = torch.full_like(absent[:, :1], _IMPOSSIBLE)
    # Flags of level 0 by its own edge: none, or source and destination.
    own = number[0, 0]
    table = torch.stack((absent[:, own], impossible[:, 0], impossible[:, 0], present[:, own]), -1).unsqueeze(1)
    terms = _transitions().to(logits.device)
    for level in range(1, levels):
        three = [number[level, level - 1], number[level - 1, level], number[level, level]]
        choice = torch.zeros_like(impossible)
        for edge in three:
            choice = torch.cat((choice + absent[:, edge, None], choice + present[:, edge, None]), -1)
        # (layers, prefixes, 32) and one impossible term for padding.
        all_terms = (table.unsqueeze(-1) + choice[:, None, None, :]).flatten(2)
        padded = torch.cat((all_terms, torch.full_like(all_terms[..., :1], _IMPOSSIBLE)), -1)
        table = torch.logsumexp(padded[..., terms], -1).unflatten(-1, (4, 4)).flatten(1, 2)
    return _by_node_sets(table.flatten(1), levels)


def _by_node_sets(table: Tensor, levels: int) -> Tensor:
    """Reorders (layers, 4^D), digits of level 0 first, each (destination flag, source flag), to node sets."""
    split = table.unflatten(-1, (2, 2) * levels)
    destinations = [1 + 2 * level for level in reversed(range(levels))]
    sources = [2 + 2 * level for level in reversed(range(levels))]
    sets = split.permute(0, *sources, *destinations).reshape(len(table), 2**levels, 2**levels)
    return sets[:, 1:, 1:]


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
