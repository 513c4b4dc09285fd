"""Topologies between layers of feature maps at several resolutions, without a network.

Level 0 is the finest. Between adjacent layers every node has edges from the same, the next finer and the next coarser
level: E = 3D - 2 edges for D levels, ordered by destination, then source. (Paper, section 3.1.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from nnunet_nas.errors import DataProblem

# An image would be halved as often.
_MOST_LEVELS = 32


@cache
def edges(levels: int) -> tuple[tuple[int, int], ...]:
    """All (source, destination) pairs of levels between two layers, in the order of every array here."""
    return tuple(
        (source, destination)
        for destination in range(levels)
        for source in range(max(destination - 1, 0), min(destination + 2, levels))
    )


def activated(selected: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Which nodes the selected edges of layers read from and write to.

    Args:
        selected: (layers, E), bool.
        levels: D.

    Returns:
        sources and destinations, (layers, D) bool each.
    """
    sources = np.zeros((len(selected), levels), bool)
    destinations = np.zeros((len(selected), levels), bool)
    for index, (source, destination) in enumerate(edges(levels)):
        sources[:, source] |= selected[:, index]
        destinations[:, destination] |= selected[:, index]
    return sources, destinations


def infeasible_node(selected: np.ndarray, levels: int) -> str | None:
    """What makes a topology infeasible, in words; None if nothing does (paper, section 3.3.3).

    A node between two layers must have both an input and an output, or neither; every layer has an edge.

    Args:
        selected: (layers, E), bool.
        levels: D.
    """
    sources, destinations = activated(selected, levels)
    for layer, row in enumerate(selected):
        if not row.any():
            return f"layer {layer} has no edge"
    for layer in range(len(selected) - 1):
        for level in range(levels):
            if destinations[layer, level] and not sources[layer + 1, level]:
                return f"the node at level {level} after layer {layer} has an input and no output"
            if sources[layer + 1, level] and not destinations[layer, level]:
                return f"the node at level {level} after layer {layer} has an output and no input"
    return None


@dataclass(frozen=True)
class Topology:
    """A discrete network: the selected edges of every layer, each with its operation.

    Attributes:
        levels: D, resolutions that cells work at.
        layers: per layer a dictionary from (source, destination) to the name of the operation.
    """

    levels: int
    layers: tuple[dict[tuple[int, int], str], ...]

    def __post_init__(self) -> None:
        selected = self.selected()
        problem = infeasible_node(selected, self.levels) if len(selected) else "it has no layers"
        if problem is not None:
            raise DataProblem(f"the topology is infeasible: {problem}; search again, or mend its JSON in the plans")

    @staticmethod
    def from_arrays(selected: np.ndarray, operations: Sequence[Sequence[str]], levels: int) -> Topology:
        """From selected edges (layers, E) and an operation's name per layer and edge."""
        pairs = edges(levels)
        return Topology(
            levels,
            tuple(
                {pair: name for pair, name, chosen in zip(pairs, names, row, strict=True) if chosen}
                for row, names in zip(selected, operations, strict=True)
            ),
        )

    def selected(self) -> np.ndarray:
        """Selected edges, (layers, E) bool."""
        pairs = edges(self.levels)
        return np.array([[pair in layer for pair in pairs] for layer in self.layers], bool).reshape(-1, len(pairs))

    def inputs(self) -> list[int]:
        """Levels of the stems that the first layer reads."""
        return sorted({source for source, _ in self.layers[0]})

    def outputs(self) -> list[int]:
        """Levels that the last layer writes."""
        return sorted({destination for _, destination in self.layers[-1]})

    def to_json(self) -> dict[str, Any]:
        """`{"levels": D, "layers": [{"source->destination": operation, ...}, ...]}`, edges in order."""
        return {
            "levels": self.levels,
            "layers": [
                {f"{pair[0]}->{pair[1]}": layer[pair] for pair in edges(self.levels) if pair in layer}
                for layer in self.layers
            ],
        }

    @staticmethod
    def from_json(content: Any) -> Topology:
        """The inverse of `to_json`.

        Raises:
            DataProblem: not of this form, an edge that does not exist, or an infeasible topology.
        """
        if not isinstance(content, dict) or set(content) != {"levels", "layers"}:
            raise DataProblem('a topology is {"levels": D, "layers": [{"0->1": "conv", ...}, ...]}: mend the plans')
        levels, layers = content["levels"], content["layers"]
        if type(levels) is int and levels > _MOST_LEVELS:
            raise DataProblem(f"topology: {_MOST_LEVELS} levels at most: mend the plans")
        if type(levels) is not int or levels < 1 or not isinstance(layers, list):
            raise DataProblem(
                f"topology: levels must be a positive integer and layers a list of dictionaries, "
                f"not {levels!r} and {layers!r}: mend the plans"
            )
        return Topology(levels, tuple(_layer(number, layer, levels) for number, layer in enumerate(layers)))


def check_answer(arguments: dict[str, Any]) -> None:
    """Raises DataProblem for a topology in a network's `arch_kwargs` that cannot be; builds nothing."""
    found = Topology.from_json(arguments.get("topology"))
    stages, first = int(arguments["n_stages"]), int(arguments.get("first_level", 0))
    if first + found.levels != stages:
        raise DataProblem(f"the topology has {found.levels} levels from stage {first} on, of {stages} stages")


def _layer(number: int, content: Any, levels: int) -> dict[tuple[int, int], str]:
    names = {f"{source}->{destination}": (source, destination) for source, destination in edges(levels)}
    if not isinstance(content, dict):
        raise DataProblem(f"topology: layer {number} must be a dictionary of edges, not {content!r}")
    for key, value in content.items():
        if key not in names:
            raise DataProblem(
                f"topology: layer {number} has no edge {key!r}; edges join neighbouring levels 0 to {levels - 1}, "
                f'for example "0->1"'
            )
        if not isinstance(value, str):
            raise DataProblem(f"topology: the operation of edge {key} in layer {number} must be a name, not {value!r}")
    return {names[key]: value for key, value in content.items()}
