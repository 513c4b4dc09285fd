"""Cases in nnU-Net's preprocessed folders, listed and drawn without nnU-Net, whose import takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunet_nas.errors import DataProblem

# Images as nnU-Net's preprocessing writes them; what it unpacks beside them later is no other data.
_IMAGES = (".b2nd", ".npz")
_LABELS = "_seg.b2nd"


def image_files(folder: Path) -> dict[str, Path]:
    """The file of each preprocessed image, by case, sorted; empty if there is no such folder."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.stem: path for path in files if path.suffix in _IMAGES and not path.name.endswith(_LABELS)}


def files_digest(paths: Iterable[Path]) -> str:
    """A digest of names, sizes and times of change: a replaced file shows without reading any."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def draw_cases(cases: Sequence[str], number: int | None, seed: int) -> list[str]:
    """Draws cases without replacement.

    Args:
        cases: all identifiers, sorted.
        number: how many to draw; None takes all.
        seed: of the draw.

    Returns:
        identifiers, sorted.

    Raises:
        DataProblem: fewer cases than asked for.
    """
    if number is None or number == len(cases):
        return list(cases)
    if number > len(cases):
        raise DataProblem(
            f"{number} cases were asked for and only {len(cases)} are preprocessed: use -n {len(cases)} or -n all"
        )
    import numpy as np  # here: the command line's start has no time for it

    chosen = np.random.default_rng(seed).choice(len(cases), size=number, replace=False)
    return [cases[index] for index in sorted(chosen)]
