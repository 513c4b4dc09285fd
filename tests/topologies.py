"""Spaces of topologies small enough to list, memory models and relaxed architectures drawn at random."""

import itertools

import numpy as np

from nnunet_nas.dints.memory import MemoryModel
from nnunet_nas.dints.topology import Topology, edges, infeasible_node

NAMES = ("skip", "conv", "dilated")


def random_model(seed, levels, names=NAMES):
    """Skips at the same level are free, the last operation is missing on the last edge."""
    rng = np.random.default_rng(seed)
    cost = np.sort(rng.uniform(1, 9, (3 * levels - 2, len(names))), 1)
    cost[[source == end for source, end in edges(levels)], 0] = 0
    if len(names) > 2:
        cost[-1, -1] = np.inf
    return MemoryModel(cost, rng.uniform(1, 9, levels), rng.uniform(1, 9, levels), 2.5)


def relaxed(seed, model, layers, spread=2.0):
    """x and softmax(alpha)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (layers, len(model.edges)))
    weights = np.where(np.isfinite(model.edges), np.exp(rng.normal(0, spread, (layers, *model.edges.shape))), 0)
    return logits, weights / weights.sum(-1, keepdims=True)


def all_topologies(levels, layers, names):
    pairs = edges(levels)
    rows = [row for row in itertools.product((None, *names), repeat=len(pairs)) if any(row)]
    for chosen in itertools.product(rows, repeat=layers):
        if infeasible_node(np.array([[name is not None for name in row] for row in chosen]), levels) is None:
            yield Topology(
                levels, tuple({pair: name for pair, name in zip(pairs, row, strict=True) if name} for row in chosen)
            )
