"""Files of torch, read without running what is in them.

A checkpoint is a pickle, and a pickle can call any function. torch's `weights_only` reads tensors, numbers, text, lists
and dictionaries, and refuses the rest; nnU-Net's checkpoints also hold NumPy's scalars, which are allowed here. Classes
of packages that the user trusts are allowed as in plans; see `trust`.
"""

from __future__ import annotations

import contextlib
import pickle
import pydoc
import re
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_nas.errors import DataProblem, EnvironmentProblem
from nnunet_nas.trust import VARIABLE, trusted_by_user

# What torch and its unpickler raise for files that are cut, damaged, empty or something else altogether.
_BROKEN = (
    EOFError, LookupError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError, OverflowError, OSError,
    pickle.UnpicklingError, struct.error,
)  # fmt: skip
# How torch names what it refuses to import.
_REFUSED = re.compile(r"GLOBAL ([\w.]+) (?:was not an allowed global|whose module)")
_NUMBERS = ["?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "e", "f", "d"]


def read_checkpoint(path: Path, mend: str, keys: Collection[str] = (), *, arrays: bool = False) -> dict[str, Any]:
    """The dictionary that torch has written into a file, on the CPU.

    Args:
        path: the file.
        mend: what the user can do if it is missing or unfit, ends the message.
        keys: that it must have.
        arrays: whether NumPy's arrays of numbers are allowed, too.

    Raises:
        DataProblem: missing, broken, of another kind, or with objects of classes that are not trusted.
        EnvironmentProblem: not readable.
    """
    content = _load(path, mend, _arrays() if arrays else [])
    if not isinstance(content, dict):
        raise DataProblem(f"{path} holds a {type(content).__name__} and no dictionary: {mend}")
    missing = [key for key in keys if key not in content]
    if missing:
        raise DataProblem(f"{path} has no {', '.join(missing)}: {mend}")
    return content


def _load(path: Path, mend: str, allowed: list[Any]) -> Any:
    trusted: list[Any] = []
    while True:
        try:
            with path.open("rb") as file, _allowing([*_scalars(), *allowed, *trusted]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise DataProblem(f"{path} does not exist: {mend}") from error
        except (PermissionError, IsADirectoryError) as error:
            raise EnvironmentProblem(f"cannot read {path} ({error.strerror}): make it readable for you") from error
        except _BROKEN as error:
            refused = _REFUSED.search(str(error))
            if refused is None:
                kind = type(error).__name__
                raise DataProblem(f"{path} is damaged or no file of torch ({kind}): {mend}") from error
            name = refused.group(1)
            found = pydoc.locate(name) if trusted_by_user(name) else None
            if found is None or found in trusted:
                package = name.partition(".")[0]
                trust = f"if you trust who wrote the file, export {VARIABLE}={package}; otherwise "
                raise DataProblem(
                    f"{path} was not opened, because that would run code of {name}: "
                    f"{trust if package != name else ''}{mend}"
                ) from error
            trusted.append(found)


@contextlib.contextmanager
def _allowing(objects: list[Any]) -> Iterator[None]:
    """Lets torch import these while the block reads; before torch 2.5, from then on."""
    if hasattr(torch.serialization, "safe_globals"):
        with torch.serialization.safe_globals(objects):
            yield
    else:
        torch.serialization.add_safe_globals(objects)
        yield


def _scalars() -> list[Any]:
    """What NumPy's scalars are made of in a pickle: they hold nothing but a number."""
    make: Any = np.float64(0).__reduce__()[0]
    return [np.dtype, *(type(np.dtype(code)) for code in _NUMBERS), *_by_all_names(make, "scalar")]


def _arrays() -> list[Any]:
    """What NumPy's arrays are made of beside that; of objects they are refused, whose type is not among the numbers."""
    return [np.ndarray, *_by_all_names(np.zeros(1).__reduce__()[0], "_reconstruct")]


def _by_all_names(function: Any, name: str) -> list[Any]:
    """NumPy 1 and 2 keep their functions in different places, and checkpoints travel between them."""
    renamed = [(function, f"{module}.multiarray.{name}") for module in ("numpy.core", "numpy._core")]
    return renamed if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint") else [function]
