"""How a DiNTS search arrived at its topology: the recorded numbers, and when every final edge came to stay.

G, entropies and expected memory are the paper's (sections 3.4, 3.5 and 4.4.2); the epochs are our addition.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from nnunet_nas.dints.history import TopologyHistory
from nnunet_nas.dints.topology import edges
from nnunet_nas.errors import DataProblem
from nnunet_nas.methods import Dynamics

_HEADER = ("epoch", "G", "log P(feasible)", "patterns, nats", "operations, nats", "expected MiB", "edges settled")
_SERIES = (
    "gap",
    "log_feasible",
    "nll",
    "pattern_entropy",
    "operation_entropy",
    "expected_mib",
    "selected_mib",
    "budget_mib",
)


def settled_epochs(selected: np.ndarray) -> np.ndarray:
    """First epoch from which on an edge has been what it is at the end, (layers, E).

    Args:
        selected: (t, layers, E).
    """
    differs = selected.astype(bool) != selected[-1].astype(bool)
    last = differs.shape[0] - 1 - np.argmax(differs[::-1], axis=0)
    return np.where(differs.any(axis=0), last + 1, 0)


def dynamics(history: TopologyHistory) -> Dynamics:
    """The dynamics of a search, a row per epoch.

    Raises:
        DataProblem: no epoch has finished.
    """
    from nnunet_nas.dints.drawing import draw_progress

    analysis = analyse_topology(history)
    settled = np.array([row["settled"] for row in analysis["edges"]])
    rows = [
        [
            str(epoch),
            f"{history.gap[epoch]:.0f}",
            f"{history.log_feasible[epoch]:.3f}",
            f"{history.pattern_entropy[epoch]:.3f}",
            f"{history.operation_entropy[epoch]:.3f}",
            f"{history.expected_mib[epoch]:.1f}",
            f"{(settled <= epoch).sum()}/{len(settled)}",
        ]
        for epoch in range(len(history))
    ]
    return Dynamics(
        content=analysis,
        headline="",
        header=_HEADER,
        rows=rows,
        words=0,
        draw=partial(draw_progress, history),
    )


def _require_topologies(history: TopologyHistory) -> None:
    """Refuses arrays that were damaged, or of a search that diverged."""
    edges, operations = history.edge_logits, history.operations
    if not edges.shape[1] or not edges.shape[2] or (edges.shape[2] + 2) % 3 or not operations.shape[3]:
        raise DataProblem(f"the history's edges {edges.shape[1:]} are not layers of 3D - 2: run the search again")
    if not np.isfinite(edges).all() or not np.isfinite(operations).all():
        raise DataProblem("edges and operations of the history are not all finite: run the search again")
    if not all(np.isin(flags, (0, 1)).all() for flags in (history.selected, history.warmup)):
        raise DataProblem("selected edges and warm-up of the history are not 0 and 1: run the search again")


def analyse_topology(history: TopologyHistory) -> dict[str, Any]:
    """Plain JSON: every series over the epochs, and all edges with their probability over time.

    Raises:
        DataProblem: no epoch has finished.
    """
    if not len(history):
        raise DataProblem("the search has not finished an epoch: look again later")
    _require_topologies(history)
    probability = 1 / (1 + np.exp(-np.clip(history.edge_logits, -50, 50)))
    selected, settled = history.selected, settled_epochs(history.selected)
    arrays = history.arrays()
    rows = [
        {
            "layer": layer,
            "source": source,
            "destination": end,
            "selected": bool(selected[-1, layer, index]),
            "settled": int(settled[layer, index]),
            "probability": probability[:, layer, index].round(6).tolist(),
        }
        for layer in range(selected.shape[1])
        for index, (source, end) in enumerate(edges(history.levels))
    ]
    series = {name: arrays[name].tolist() for name in _SERIES}
    return {
        "epochs": len(history),
        "weights_only_epochs": int(history.warmup.sum()),
        **series,
        "edges": rows,
    }
