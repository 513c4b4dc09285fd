"""What a search records, epoch by epoch, in one compressed file; each method says in a schema what that is.

A schema is a dataclass whose fields are `column`s: arrays that `append` lengthens by one epoch. Position t of every
array is epoch t, counted from 0 as nnU-Net does. Layout and file are our own choice.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnunet_nas.errors import DataProblem, EnvironmentProblem
from nnunet_nas.files import replace_file

# In the results folder of a search.
HISTORY = "search_history.npz"
# What NumPy and zipfile raise for a file that was cut, damaged or is something else altogether.
_BROKEN = (
    OSError, ValueError, OverflowError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, BadZipFile,
    zlib.error,
)  # fmt: skip
_AGAIN = "restore a copy of it, or run the search again"
Kind = TypeVar("Kind", bound="History")


def column(*shape: int | str, dtype: type = np.float64) -> Any:
    """A field of a schema.

    Args:
        shape: of what one epoch adds; a name stands for a size that is the same in all epochs and columns.
        dtype: of the array.
    """
    empty = (0, *(size if isinstance(size, int) else 0 for size in shape))
    return field(default_factory=lambda: np.zeros(empty, dtype), metadata={"shape": shape, "dtype": np.dtype(dtype)})


@dataclass(eq=False)
class History:
    """The finished epochs of a search, t of them.

    Attributes:
        train_loss: mean over the epoch, NaN if there is none, (t,).
        val_loss: likewise.
        dice: mean pseudo Dice over foreground classes, NaN if there is none, (t,).
        seconds: the epoch took, (t,).

    Raises:
        DataProblem: shapes or types of another layout, or values that contradict each other.
    """

    # Counts changes of what stands in the file; a reader refuses what it does not know instead of guessing.
    layout: ClassVar[int] = 1

    train_loss: NDArray[np.float64] = column()
    val_loss: NDArray[np.float64] = column()
    dice: NDArray[np.float64] = column()
    seconds: NDArray[np.float64] = column()

    def __post_init__(self) -> None:
        sizes: dict[int | str, int] = {}
        for item in fields(self):
            array, shape, dtype = getattr(self, item.name), item.metadata["shape"], item.metadata["dtype"]
            sizes = {**dict(zip(shape, array.shape[1:], strict=False)), **sizes}
            wanted = (len(self), *(sizes[size] if isinstance(size, str) and size in sizes else size for size in shape))
            if array.shape != wanted or array.dtype != dtype:
                raise DataProblem(
                    f"search history: {item.name} must be {dtype} {wanted}, found {array.dtype} {array.shape}"
                )
        self.check()

    def check(self) -> None:
        """Raises DataProblem for values that contradict each other; a schema may add its own."""

    def __len__(self) -> int:
        """Finished epochs."""
        return self.seconds.size

    def append(self, **epoch: ArrayLike) -> None:
        """Adds one finished epoch; the arguments are the attributes without their first axis.

        Raises:
            DataProblem: one is missing, unknown, of another shape or contradicts another; nothing was added.
        """
        _require_columns(type(self), epoch)
        types = {item.name: item.metadata["dtype"] for item in fields(self)}
        added = type(self)(**{name: np.array(epoch[name], dtype)[np.newaxis] for name, dtype in types.items()})
        if not len(self):
            vars(self).update(added.arrays())
            return
        for name, array in self.arrays().items():
            found = getattr(added, name).shape[1:]
            if found != array.shape[1:]:
                raise DataProblem(f"search history: {name} of one epoch must be {array.shape[1:]}, found {found}")
        longer = {name: np.concatenate([array, getattr(added, name)]) for name, array in self.arrays().items()}
        vars(self).update(longer)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The attributes by name, not copied; what `from_arrays` reads, for a checkpoint."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def from_arrays(cls: type[Kind], arrays: Mapping[str, NDArray[Any]]) -> Kind:
        """The history whose `arrays` these are.

        Raises:
            DataProblem: names, shapes or types of another layout, or values that contradict each other.
        """
        _require_columns(cls, arrays)
        return cls(**arrays) if any(array.size for array in arrays.values()) else cls()

    def save(self, path: Path) -> None:
        """Writes the file so that a reader sees either the old one or the new one.

        Raises:
            EnvironmentProblem: no permission or no space.
        """
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, layout=np.int64(self.layout), **self.arrays())
        replace_file(path, content.getvalue())

    @classmethod
    def load(cls: type[Kind], path: Path) -> Kind:
        """Reads what `save` wrote.

        Raises:
            DataProblem: missing, broken, of another method, or of a layout that this version does not know.
            EnvironmentProblem: not readable.
        """
        return load_history(path, [cls])


def _require_columns(schema: type[History], given: Iterable[str]) -> None:
    known = [item.name for item in fields(schema)]
    wrong = set(known) ^ set(given)
    if wrong:
        raise DataProblem(
            f"search history: missing or unknown: {', '.join(sorted(wrong))}; it must hold {', '.join(known)}"
        )


def load_history(path: Path, schemas: Sequence[type[Kind]]) -> Kind:
    """Reads a file of one of several methods; its arrays tell which.

    Args:
        path: of the file.
        schemas: of the methods.

    Raises:
        DataProblem: missing, broken, of none of these methods, or of a layout that this version does not know.
        EnvironmentProblem: not readable.
    """
    layout, arrays = _read(path)
    known = sorted({schema.layout for schema in schemas})
    if layout not in known:
        raise DataProblem(f"{path} has layout {layout}, this version reads {known[-1]}: use the version that wrote it")
    for schema in schemas:
        if schema.layout == layout and {item.name for item in fields(schema)} == set(arrays):
            try:
                return schema.from_arrays(arrays)
            except DataProblem as error:
                raise DataProblem(f"{path}: {error}: {_AGAIN}") from error
    raise DataProblem(f"{path} is not the history of a search (it holds {', '.join(sorted(arrays))}): {_AGAIN}")


def _read(path: Path) -> tuple[int, dict[str, NDArray[Any]]]:
    """Layout and arrays of a file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataProblem(
            f"{path} does not exist: give the fold_X folder of a search that has finished an epoch, or start one"
        ) from error
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {path} ({error.strerror}): make it readable for you") from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
        return int(arrays.pop("layout")), arrays
    except _BROKEN as error:
        raise DataProblem(f"{path} is not the history of a search ({type(error).__name__}): {_AGAIN}") from error
