"""Random cells, and what two cells have in common: what a search for cells has to beat (our addition)."""

from __future__ import annotations

import math

import numpy as np

from nnunet_nas.iac.genotype import INPUT_NODES, INPUTS_PER_NODE, NODES, OPERATIONS, Edge, Genotype


def random_genotype(rng: np.random.Generator) -> Genotype:
    """One of the 1 * 3 * 6 * 10 * 7^8 cells, all equally probable."""
    kept = []
    for node in range(INPUT_NODES, NODES):
        sources = sorted(int(source) for source in rng.choice(node, INPUTS_PER_NODE, replace=False))
        kept += [Edge(source, node, OPERATIONS[rng.integers(len(OPERATIONS))]) for source in sources]
    return Genotype(tuple(kept))


def edge_jaccard(first: Genotype, second: Genotype) -> float:
    """Edges in both over edges in either; the two edges into node 2 are in every cell."""
    rows = {edge.row for edge in first.edges}, {edge.row for edge in second.edges}
    return len(rows[0] & rows[1]) / len(rows[0] | rows[1])


def random_jaccard() -> float:
    """What `edge_jaccard` of two random cells is on average, exactly.

    Into a node with n sources two random pairs have 0, 1 or 2 edges in common with hypergeometric probabilities.
    """
    common = np.ones(1)
    for sources in range(INPUT_NODES, NODES):
        ways = [
            math.comb(INPUTS_PER_NODE, shared) * math.comb(sources - INPUTS_PER_NODE, INPUTS_PER_NODE - shared)
            for shared in range(INPUTS_PER_NODE + 1)
        ]
        common = np.convolve(common, np.array(ways) / math.comb(sources, INPUTS_PER_NODE))
    edges = INPUTS_PER_NODE * (NODES - INPUT_NODES)
    shared = np.arange(edges + 1)
    return float((common * shared / (2 * edges - shared)).sum())


def same_operation(first: Genotype, second: Genotype) -> float:
    """Share of the edges in both that have the same operation in both."""
    operations = {edge.row: edge.operation for edge in first.edges}
    same = [operations[edge.row] == edge.operation for edge in second.edges if edge.row in operations]
    return float(np.mean(same))
