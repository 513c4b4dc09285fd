"""nnU-Net's description of a data set, `dataset.json`: what of it is used, checked before nnU-Net trips over it."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_nas.errors import DataProblem
from nnunet_nas.files import read_json

PLAN_AGAIN = "run nnUNetv2_plan_and_preprocess for this data set again"
_KINDS: dict[str, tuple[type, str]] = {
    "channel_names": (dict, "an object"),
    "modality": (dict, "an object"),
    "labels": (dict, "an object"),
    "file_ending": (str, "text"),
    "regions_class_order": (list, "a list"),
}


def read_description(path: Path, mend: str, *, required: Sequence[str] = (), patience: float = 0) -> dict[str, Any]:
    """Reads a `dataset.json`.

    Args:
        path: the file.
        mend: what the user can do about a broken one, ends the error message.
        required: keys that must be there.
        patience: as of `read_json`.

    Raises:
        DataProblem: missing, not JSON, or not what nnU-Net describes data sets with.
        EnvironmentProblem: not readable.
    """
    content = read_json(path, mend, patience=patience)
    require_description(content, str(path), mend, required=required)
    found: dict[str, Any] = content
    return found


def require_description(content: Any, name: str, mend: str, *, required: Sequence[str] = ()) -> None:
    """Refuses what is no description of a data set; see `read_description`, `name` is that of the file."""
    if not isinstance(content, dict):
        raise DataProblem(f"{name} is no description of a data set, it is no JSON object: {mend}")
    missing = [key for key in required if key not in content]
    if missing:
        raise DataProblem(f"{name} has no {', '.join(missing)}: {mend}")
    for key, (kind, called) in _KINDS.items():
        if key in content and not isinstance(content[key], kind):
            raise DataProblem(f"{key} in {name} must be {called}, not {reprlib.repr(content[key])}: {mend}")
