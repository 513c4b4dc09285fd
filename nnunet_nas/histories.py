"""What the histories of all searches share: the name of their file, how it is written and how it can be broken."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.files import replace_file

# In the results folder of a search.
HISTORY = "search_history.npz"
# What NumPy and zipfile raise for a file that was cut, damaged or is something else altogether.
BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, BadZipFile, zlib.error)


def save_arrays(path: Path, layout: int, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes one compressed file so that a reader sees either the old one or the new one.

    Args:
        path: of the file.
        layout: counts changes of what stands in it; a reader refuses what it does not know instead of guessing.
        arrays: of numbers, by name.

    Raises:
        EnvironmentProblem: no permission or no space.
    """
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, layout=np.int64(layout), **arrays)
    replace_file(path, content.getvalue())
