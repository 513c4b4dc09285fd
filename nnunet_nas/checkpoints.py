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
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_nas.errors import DataProblem, EnvironmentProblem
from nnunet_nas.trust import VARIABLE, trusted_by_user

# What torch raises for files that are cut, empty or something else altogether.
_BROKEN = (EOFError, LookupError, RuntimeError, TypeError, ValueError, AttributeError, OSError, pickle.UnpicklingError)
# How torch names what it refuses to import.
_REFUSED = re.compile(r"GLOBAL ([\w.]+) (?:was not an allowed global|whose module)")
_NUMBERS = ["?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "e", "f", "d"]


def read_checkpoint(path: Path, mend: str, keys: Collection[str] = ()) -> dict[str, Any]:
    """The dictionary that torch has written into a file, on the CPU.

    Args:
        path: the file.
        mend: what the user can do if it is missing or unfit, ends the message.
        keys: that it must have.

    Raises:
        DataProblem: missing, broken, of another kind, or with objects of classes that are not trusted.
        EnvironmentProblem: not readable.
    """
    content = _load(path, mend)
    if not isinstance(content, dict):
        raise DataProblem(f"{path} holds a {type(content).__name__} and no dictionary: {mend}")
    missing = [key for key in keys if key not in content]
    if missing:
        raise DataProblem(f"{path} has no {', '.join(missing)}: {mend}")
    return content


def _load(path: Path, mend: str) -> Any:
    trusted: list[Any] = []
    while True:
        try:
            with path.open("rb") as file, _allowing([*_scalars(), *trusted]):
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
    # NumPy 1 and 2 keep this function in different places, and checkpoints travel between them.
    renamed = [(make, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    names_can_be_given = hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")
    return [np.dtype, *(type(np.dtype(code)) for code in _NUMBERS), *(renamed if names_can_be_given else [make])]
