"""What a DiNTS search records, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.histories import History, column


@dataclass(eq=False)
class TopologyHistory(History):
    """The finished epochs of a search.

    Attributes:
        edge_logits: x after the epoch, (t, layers, E).
        operations: softmax(alpha) after the epoch, (t, layers, E, N).
        selected: 1 for edges of the topology that the search would deliver after the epoch: the most probable feasible
            one, or within a hard budget the most probable one at the price that meets it, (t, layers, E).
        warmup: 1 where only network weights were trained, (t,).
        gap: G, edges in which the most probable patterns and the selected ones differ, (t,).
        log_feasible: log P(feasible), nats, (t,).
        nll: of the selected topology, nats, (t,).
        pattern_entropy: of the connection patterns, nats per layer, (t,).
        operation_entropy: nats per edge, (t,).
        expected_mib: expected training memory, MiB, (t,).
        selected_mib: the same of the selected topology, (t,).
        budget_mib: what it is held against, (t,).
    """

    edge_logits: NDArray[np.float64] = column("layers", "E")
    operations: NDArray[np.float64] = column("layers", "E", "N")
    selected: NDArray[np.float64] = column("layers", "E")
    warmup: NDArray[np.float64] = column()
    gap: NDArray[np.float64] = column()
    log_feasible: NDArray[np.float64] = column()
    nll: NDArray[np.float64] = column()
    pattern_entropy: NDArray[np.float64] = column()
    operation_entropy: NDArray[np.float64] = column()
    expected_mib: NDArray[np.float64] = column()
    selected_mib: NDArray[np.float64] = column()
    budget_mib: NDArray[np.float64] = column()

    @property
    def levels(self) -> int:
        """D, from E = 3D - 2."""
        return (self.edge_logits.shape[2] + 2) // 3
