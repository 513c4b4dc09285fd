"""What a search for cells records, epoch by epoch, and when it will probably end.

Everything that the paper analyses afterwards (IAC-LTH, section 4) and that a person wants to see meanwhile can be drawn
from these few arrays: 200 epochs take about 300 kB as one compressed file. Layout and file are our own choice.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnunet_nas.errors import DataProblem, EnvironmentProblem
from nnunet_nas.histories import BROKEN, save_arrays
from nnunet_nas.iac.genotype import EDGES, OPERATIONS

_LAYOUT = 1
_RECENT = 5
_PER_OPERATION = (len(EDGES), len(OPERATIONS))
_PER_EDGE = (len(EDGES),)
# Shape and type of what one epoch adds to every array.
_ARRAYS: dict[str, tuple[tuple[int, ...], type]] = {
    "probabilities": (_PER_OPERATION, np.float64),
    "weights": (_PER_EDGE, np.float64),
    "active": (_PER_OPERATION, np.bool_),
    "js": (_PER_EDGE, np.float64),
    "tau": (_PER_EDGE, np.float64),
    "warmup": ((), np.bool_),
    "train_loss": ((), np.float64),
    "val_loss": ((), np.float64),
    "dice": ((), np.float64),
    "seconds": ((), np.float64),
}


class SearchHistory:
    """The finished epochs of a search, as arrays that `append` lengthens by one.

    Position t of every array is epoch t, counted from 0 as nnU-Net does. Edges and operations are ordered as `EDGES`
    and `OPERATIONS` of the genotype.

    Attributes:
        probabilities: of the operations on every edge after the epoch, 0 where pruned, (t, 14, 7).
        weights: of the edges into their target node after the epoch, (t, 14).
        active: operations that are left after the epoch's pruning, (t, 14, 7).
        js: Jensen-Shannon divergence of the epoch's stability test in nats, NaN where no test was made, (t, 14).
        tau: threshold of the next test in nats, NaN for a search without tests, (t, 14).
        warmup: epochs that trained cell weights only, (t,).
        train_loss: mean over the epoch, NaN if there is none, (t,).
        val_loss: likewise.
        dice: mean pseudo Dice over foreground classes, NaN if there is none, (t,).
        seconds: the epoch took, (t,).
    """

    probabilities: NDArray[np.float64]
    weights: NDArray[np.float64]
    active: NDArray[np.bool_]
    js: NDArray[np.float64]
    tau: NDArray[np.float64]
    warmup: NDArray[np.bool_]
    train_loss: NDArray[np.float64]
    val_loss: NDArray[np.float64]
    dice: NDArray[np.float64]
    seconds: NDArray[np.float64]

    def __init__(self) -> None:
        """No epoch yet."""
        self._set({name: np.zeros((0, *shape), dtype) for name, (shape, dtype) in _ARRAYS.items()})

    def __len__(self) -> int:
        """Finished epochs."""
        return len(self.warmup)

    @property
    def operations_left(self) -> NDArray[np.int64]:
        """Active operations after each epoch, of 98, (t,)."""
        return self.active.sum(axis=(1, 2), dtype=np.int64)

    @property
    def edges_settled(self) -> NDArray[np.int64]:
        """Edges with one active operation after each epoch, of 14, (t,)."""
        return (self.active.sum(axis=2) == 1).sum(axis=1, dtype=np.int64)

    def append(
        self,
        *,
        probabilities: ArrayLike,
        weights: ArrayLike,
        active: ArrayLike,
        js: ArrayLike,
        tau: ArrayLike,
        warmup: bool,
        train_loss: float,
        val_loss: float,
        dice: float,
        seconds: float,
    ) -> None:
        """Adds one finished epoch; the arguments are the attributes without their first axis.

        Raises:
            DataProblem: an argument of another shape, or probabilities that contradict `active`; nothing was added.
        """
        epoch: dict[str, ArrayLike] = {
            "probabilities": probabilities,
            "weights": weights,
            "active": active,
            "js": js,
            "tau": tau,
            "warmup": warmup,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "dice": dice,
            "seconds": seconds,
        }
        longer = {}
        for name, value in epoch.items():
            shape, dtype = _ARRAYS[name]
            array: NDArray[Any] = np.asarray(value, dtype)
            if array.shape != shape:
                raise DataProblem(f"search history: {name} of one epoch must be {shape}, found {array.shape}")
            longer[name] = np.concatenate([getattr(self, name), array[np.newaxis]])
        _check(longer)
        self._set(longer)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The attributes by name, not copied; what `from_arrays` reads, for a checkpoint."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> SearchHistory:
        """The history whose `arrays` these are.

        Raises:
            DataProblem: names, shapes or types of another layout; probabilities that contradict `active`.
        """
        if set(arrays) != set(_ARRAYS):
            wrong = ", ".join(sorted(set(_ARRAYS) ^ set(arrays)))
            raise DataProblem(f"search history: missing or unknown: {wrong}; it must hold {', '.join(_ARRAYS)}")
        _check(arrays)
        history = cls()
        history._set(arrays)
        return history

    def save(self, path: Path) -> None:
        """Writes the file so that a reader sees either the old one or the new one.

        Raises:
            EnvironmentProblem: no permission or no space.
        """
        save_arrays(path, _LAYOUT, self.arrays())

    @classmethod
    def load(cls, path: Path) -> SearchHistory:
        """Reads what `save` wrote.

        Raises:
            DataProblem: missing, broken, or of a layout that this version does not know.
            EnvironmentProblem: not readable.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise DataProblem(
                f"{path} does not exist: give the folder of a search that has finished an epoch, or start one"
            ) from error
        except OSError as error:
            raise EnvironmentProblem(f"cannot read {path} ({error.strerror}): make it readable for you") from error
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = dict(archive)
            layout = int(arrays.pop("layout"))
        except BROKEN as error:
            raise DataProblem(
                f"{path} is not a search history ({error}): restore a copy of it, or run the search again"
            ) from error
        if layout != _LAYOUT:
            raise DataProblem(
                f"{path} has layout {layout}, this version reads {_LAYOUT}: use the version that wrote it"
            )
        try:
            return cls.from_arrays(arrays)
        except DataProblem as error:
            raise DataProblem(f"{path}: {error}: restore a copy of it, or run the search again") from error

    def _set(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name in _ARRAYS:
            setattr(self, name, arrays[name])


def _check(arrays: Mapping[str, NDArray[Any]]) -> None:
    epochs = arrays["warmup"].size
    for name, (shape, dtype) in _ARRAYS.items():
        array = arrays[name]
        if array.shape != (epochs, *shape) or array.dtype != dtype:
            wanted = f"{np.dtype(dtype)} {(epochs, *shape)}"
            raise DataProblem(f"search history: {name} must be {wanted}, found {array.dtype} {array.shape}")
    if not np.isfinite(arrays["probabilities"]).all() or not np.isfinite(arrays["weights"]).all():
        raise DataProblem("search history: probabilities and weights must be finite: the search has diverged")
    if not arrays["active"].any(axis=2).all():
        raise DataProblem("search history: an edge without any active operation; one always stays")
    if arrays["probabilities"][~arrays["active"]].any():
        raise DataProblem("search history: the probability of a pruned operation must be 0")


def expected_end(history: SearchHistory, *, num_epochs: int, gamma: float) -> int:
    """Epochs that a search with stability tests (section 5) will have run when it stops: our estimate, for the log.

    An edge waits until its threshold has grown past its divergence (median of its last five tests), and from then on it
    loses one operation per epoch, the slowest pace of the pruning rule while the tests succeed. The edge that takes
    longest decides. On simulated searches of about 50 epochs this was right within five epochs from the first test
    on; the plain rate (operations to go over operations pruned per epoch) starts far too late and was dropped.

    Args:
        history: so far.
        num_epochs: epochs at most.
        gamma: factor on the threshold after each failed test.

    Returns:
        the number of epochs: `len(history)` if every edge is settled, `num_epochs` while no edge was tested yet or when
        the estimate is beyond it.
    """
    epochs = len(history)
    if epochs == 0:
        return num_epochs
    surplus = history.active[-1].sum(axis=1) - 1
    if not surplus.any():
        return epochs
    rest = max(_epochs_to_go(history, edge, gamma) for edge in np.flatnonzero(surplus).tolist())
    return int(min(epochs + rest, num_epochs))


def _epochs_to_go(history: SearchHistory, edge: int, gamma: float) -> float:
    """Epochs until one edge is settled, by its thresholds."""
    tests = history.js[:, edge]
    tests = tests[np.isfinite(tests)][-_RECENT:]
    tau = float(history.tau[-1, edge])
    surplus = int(history.active[-1, edge].sum()) - 1
    if not len(tests) or not tau > 0:
        return math.inf
    divergence = float(np.median(tests))
    if divergence < tau:
        return surplus
    if gamma <= 1:
        return math.inf
    # The next test uses tau as it stands; the smallest n with tau * gamma^n above the divergence.
    failing = math.floor(math.log(divergence / tau) / math.log(gamma)) + 1
    return failing + surplus
