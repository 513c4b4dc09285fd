"""What a DiNTS search records, epoch by epoch, in one compressed file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.errors import DataProblem
from nnunet_nas.histories import BROKEN, save_arrays

_LAYOUT = 1
_SCALARS = (
    "warmup",
    "gap",
    "log_feasible",
    "nll",
    "pattern_entropy",
    "operation_entropy",
    "expected_mib",
    "selected_mib",
    "budget_mib",
    "train_loss",
    "val_loss",
    "dice",
    "seconds",
)
_TABLES = ("edge_logits", "operations", "selected")


class TopologyHistory:
    """The finished epochs of a search; position t of every array is epoch t.

    Attributes:
        edge_logits: x after the epoch, (t, layers, E).
        operations: softmax(alpha) after the epoch, (t, layers, E, N).
        selected: edges of the topology that the search would deliver after the epoch: the most probable feasible one,
            or within a hard budget the most probable one at the price that meets it, (t, layers, E).
        warmup: 1 where only network weights were trained, (t,).
        gap: G, edges in which the most probable patterns and the selected ones differ, (t,).
        log_feasible: log P(feasible), nats, (t,).
        nll: of the selected topology, nats, (t,).
        pattern_entropy: of the connection patterns, nats per layer, (t,).
        operation_entropy: nats per edge, (t,).
        expected_mib: expected training memory, MiB, (t,).
        selected_mib: the same of the selected topology, (t,).
        budget_mib: what it is held against, (t,).
        train_loss: mean over the epoch, (t,).
        val_loss: likewise, NaN where there is none.
        dice: mean pseudo Dice, NaN where there is none, (t,).
        seconds: the epoch took, (t,).
    """

    def __init__(self) -> None:
        """No epoch yet."""
        self._epochs: dict[str, list[NDArray[Any]]] = {name: [] for name in (*_TABLES, *_SCALARS)}

    def __len__(self) -> int:
        """Finished epochs."""
        return len(self._epochs["gap"])

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name.startswith("_") or name not in self._epochs:
            raise AttributeError(name)
        return np.array(self._epochs[name])

    def append(self, **epoch: Any) -> None:
        """Adds one finished epoch; the arguments are the attributes without their first axis.

        Raises:
            DataProblem: one is missing or unknown.
        """
        if set(epoch) != set(self._epochs):
            raise DataProblem(f"topology history: expected {sorted(self._epochs)}, found {sorted(epoch)}")
        for name, value in epoch.items():
            self._epochs[name].append(np.array(value, np.float64))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The attributes by name."""
        return {name: np.array(values) for name, values in self._epochs.items()}

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> TopologyHistory:
        """The inverse of `arrays`.

        Raises:
            DataProblem: one is missing, or they differ in length.
        """
        history = TopologyHistory()
        missing = set(history._epochs) - set(arrays)
        if missing or len({len(arrays[name]) for name in history._epochs}) != 1:
            raise DataProblem(f"not the history of a DiNTS search (missing: {', '.join(sorted(missing)) or 'epochs'})")
        for name in history._epochs:
            history._epochs[name] = [np.asarray(value, np.float64) for value in arrays[name]]
        return history

    def save(self, path: Path) -> None:
        """Writes one compressed file, whole or not at all."""
        save_arrays(path, _LAYOUT, self.arrays())

    @staticmethod
    def load(path: Path) -> TopologyHistory:
        """Reads what `save` wrote.

        Raises:
            DataProblem: missing, damaged, or another layout.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        except BROKEN as error:
            raise DataProblem(
                f"{path} is not the history of a search ({type(error).__name__}): give another"
            ) from error
        if int(arrays.pop("layout", np.array(-1))) != _LAYOUT:
            raise DataProblem(f"{path} has a layout that this version does not know: use the version that wrote it")
        return TopologyHistory.from_arrays(arrays)
