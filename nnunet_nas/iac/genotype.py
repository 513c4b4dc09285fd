"""The search space of the cell and its discrete result, the genotype.

Paper: IAC-LTH, sections 3.1 and 3.4. A cell is a directed acyclic graph of six nodes: node 0 is the encoder's skip,
node 1 the upsampled decoder tensor of the same level, nodes 2 to 5 are computed. Every earlier node is a candidate
input of a computed one (14 edges), every edge has seven candidate operations (98 entries), and the discrete cell keeps
two inputs per computed node, each with one operation (8 edges). No zero operation, no stride.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.errors import DataProblem
from nnunet_nas.plans import wrapped

INPUT_NODES = 2
NODES = 6
INPUTS_PER_NODE = 2
OPERATIONS = ("identity", "max_pool_3", "avg_pool_3", "sep_conv_3", "sep_conv_5", "dil_conv_3", "dil_conv_5")
NORMS = ("backbone", "instance", "batch")
PARAMETER_FREE = ("identity", "max_pool_3", "avg_pool_3")
# All candidate edges (source, target), ordered by target and then by source: rows of alpha and entries of beta.
EDGES = tuple((source, target) for target in range(INPUT_NODES, NODES) for source in range(target))


def edges_into(node: int) -> slice:
    """Rows of the candidate edges that end in a computed node."""
    rows = [row for row, (_, target) in enumerate(EDGES) if target == node]
    return slice(rows[0], rows[-1] + 1)


@dataclass(frozen=True)
class Edge:
    """One kept edge: `target` receives `operation` applied to `source`."""

    source: int
    target: int
    operation: str

    @property
    def row(self) -> int:
        """The row of this edge among the candidates."""
        return EDGES.index((self.source, self.target))


@dataclass(frozen=True)
class Genotype:
    """A discrete cell.

    Attributes:
        edges: the kept edges, ordered by target and then by source.
    """

    edges: tuple[Edge, ...]

    def inputs_of(self, node: int) -> tuple[Edge, ...]:
        """The edges that end in a computed node."""
        return tuple(edge for edge in self.edges if edge.target == node)

    def parameter_free_share(self) -> float:
        """Share of the edges that only copy or pool: 1.0 for a cell that collapsed and learns nothing inside."""
        return sum(edge.operation in PARAMETER_FREE for edge in self.edges) / len(self.edges)

    def to_json(self) -> dict[str, dict[str, str]]:
        """`{node: {source: operation}}`, keys as strings, as it stands in plans and in `genotype.json`."""
        return {
            str(node): {str(edge.source): edge.operation for edge in self.inputs_of(node)}
            for node in range(INPUT_NODES, NODES)
        }

    @classmethod
    def from_json(cls, content: Any) -> Genotype:
        """Reads what `to_json` writes.

        Raises:
            DataProblem: anything that is not a cell of this search space; the message says which part and what is
                allowed there.
        """
        return cls(tuple(_edges(content)))


# No cell has more weights or arithmetic.
MOST_EXPENSIVE = Genotype(
    tuple(Edge(source, node, "sep_conv_5") for node in range(INPUT_NODES, NODES) for source in range(INPUTS_PER_NODE))
)


def discretise(probabilities: NDArray[np.float64], weights: NDArray[np.float64]) -> Genotype:
    """The discrete cell of a continuous one (section 3.4, Eq. 12).

    Args:
        probabilities: of the operations on every candidate edge, (14, 7).
        weights: of the edges into their target node, (14,).

    Returns:
        per computed node the two edges of largest weight, each with its most probable operation. Ties go to the
        lower source and to the operation that is listed first (our choice; the paper is silent).
    """
    kept = []
    for node in range(INPUT_NODES, NODES):
        rows = edges_into(node)
        order = np.argsort(-weights[rows], kind="stable")[:INPUTS_PER_NODE]
        for source in sorted(int(index) for index in order):
            operation = OPERATIONS[int(np.argmax(probabilities[rows][source]))]
            kept.append(Edge(source, node, operation))
    return Genotype(tuple(kept))


def leads(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the most probable operation of every edge is ahead of the next: 0 for a tie, 1 where one is left, (14,).

    Args:
        probabilities: of the operations on every candidate edge, (14, 7).
    """
    ordered = np.sort(probabilities, axis=1)
    ahead: NDArray[np.float64] = ordered[:, -1] - ordered[:, -2]
    return ahead


def cells_architecture(
    backbone: dict[str, Any], genotype: Genotype, *, widths: list[int], norm: str, residual: bool
) -> dict[str, Any]:
    """The plans' `architecture` of cells in the skips of a backbone.

    Args:
        backbone: `architecture` of the configuration below.
        genotype: of all cells.
        widths: channels of the cells, per skip.
        norm: see `CellSettings`.
        residual: whether a cell is added to its skip.

    Raises:
        DataProblem: the backbone has something in its skips itself.
    """
    cells = {"genotype": genotype.to_json(), "widths": widths, "norm": norm, "residual": residual}
    return wrapped(backbone, "nnunet_nas.iac.network.IACUNet", cells=cells)


def checked_widths(cells: dict[str, Any], levels: int) -> list[int]:
    """The cells' channels per skip connection.

    Raises:
        DataProblem: not one positive integer for each of the levels.
    """
    widths = cells.get("widths")
    if not isinstance(widths, list) or len(widths) != levels or not all(type(w) is int and w > 0 for w in widths):
        raise DataProblem(f"cells.widths must be {levels} positive integers, one per skip connection, not {widths}")
    return widths


def is_residual(cells: dict[str, Any]) -> bool:
    """Whether the cells are added to their skips.

    Raises:
        DataProblem: neither true nor false.
    """
    residual = cells.get("residual", False)
    if not isinstance(residual, bool):
        raise DataProblem(f"cells.residual must be true or false, not {residual!r}")
    return residual


def check_answer(arguments: dict[str, Any]) -> None:
    """Raises DataProblem for cells in a network's `arch_kwargs` that cannot be; builds nothing."""
    cells = arguments.get("cells")
    if not isinstance(cells, dict):
        raise DataProblem("arch_kwargs has no cells: restore the plans")
    Genotype.from_json(cells.get("genotype"))
    checked_widths(cells, int(arguments["n_stages"]) - 1)
    is_residual(cells)
    if cells.get("norm", NORMS[0]) not in NORMS:
        raise DataProblem(f"cells.norm must be one of {', '.join(NORMS)}, not {cells['norm']!r}")


def _edges(content: Any) -> Iterator[Edge]:
    nodes = [str(node) for node in range(INPUT_NODES, NODES)]
    if not isinstance(content, dict) or sorted(content) != nodes:
        given = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise DataProblem(f"genotype: give the computed nodes {', '.join(nodes)}, found {given}: restore the plans")
    for node in range(INPUT_NODES, NODES):
        inputs = content[str(node)]
        if not isinstance(inputs, dict) or len(inputs) != INPUTS_PER_NODE:
            raise DataProblem(
                f"genotype: node {node} needs {INPUTS_PER_NODE} inputs {{source: operation}}, got {inputs}"
            )
        for source, operation in sorted(inputs.items(), key=lambda item: str(item[0])):
            yield _edge(str(source), node, operation)


def _edge(source: str, node: int, operation: Any) -> Edge:
    if source not in map(str, range(node)):
        raise DataProblem(
            f"genotype: node {node} cannot read node {source}: an input must be one of "
            f"{', '.join(map(str, range(node)))}, or the cell would have a cycle"
        )
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise DataProblem(
            f"genotype: unknown operation {operation!r} on edge {source} -> {node}; known: {', '.join(OPERATIONS)}"
        )
    return Edge(int(source), node, operation)
