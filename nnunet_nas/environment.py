"""Where nnU-Net keeps things: its environment variables and data set names, read without importing nnU-Net.

nnU-Net's own look-up (`nnunetv2.utilities.dataset_name_id_conversion`) follows the same rules; it is not called here
because its errors span several lines and importing it costs most of the half second that `ls` is allowed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from nnunet_nas.errors import DataProblem, EnvironmentProblem, UsageError

_DATASET = re.compile(r"Dataset(\d{3,})_.+")
VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def folder_from_environment(variable: str) -> Path:
    """The folder that an nnU-Net environment variable names.

    Args:
        variable: `nnUNet_raw`, `nnUNet_preprocessed` or `nnUNet_results`.

    Raises:
        EnvironmentProblem: the variable is unset or names no folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise EnvironmentProblem(f"{variable} is not set: export {variable}=/path/to/your/{variable}")
    folder = Path(value)
    if not folder.is_dir():
        raise EnvironmentProblem(f"{variable}={value} is not a folder: create it or correct the variable")
    return folder


def dataset_names(folder: Path) -> list[str]:
    """Names of the data sets (`DatasetXXX_Name`) that have a folder below `folder`, sorted.

    Raises:
        EnvironmentProblem: the folder cannot be listed.
    """
    try:
        return sorted(entry.name for entry in folder.iterdir() if _DATASET.fullmatch(entry.name) and entry.is_dir())
    except OSError as error:
        raise EnvironmentProblem(f"cannot list {folder} ({error.strerror}): make it readable for you") from error


def find_preprocessed_dataset(name_or_number: str) -> Path:
    """The preprocessed folder of a data set given by number (`4`, `004`) or by name (`Dataset004_Hippocampus`).

    Raises:
        EnvironmentProblem: `nnUNet_preprocessed` is unset or no folder.
        UsageError: neither a number nor a name.
        DataProblem: unknown or ambiguous data set, or not preprocessed.
    """
    folder_from_environment("nnUNet_preprocessed")
    if not name_or_number.isdecimal() and not _DATASET.fullmatch(name_or_number):
        raise UsageError(f"-d {name_or_number} is neither a number nor a name such as Dataset004_Hippocampus")
    return find_dataset("nnUNet_preprocessed", name_or_number, "run nnUNetv2_plan_and_preprocess -d {} first")


def find_dataset(variable: str, name_or_number: str, mend: str) -> Path:
    """The folder of a data set, given by number or name, below the one that a variable names.

    Raises:
        EnvironmentProblem: the variable is unset or names no folder.
        UsageError: neither a number nor a name.
        DataProblem: unknown, which `mend` says how to mend with the number for its braces, or ambiguous.
    """
    root = folder_from_environment(variable)
    by_number = name_or_number.isdecimal()
    number = int(name_or_number) if by_number else dataset_number(name_or_number)
    known = dataset_names(root)
    matches = [name for name in known if name == name_or_number or (by_number and dataset_number(name) == number)]
    if len(matches) > 1:
        raise DataProblem(f"data set {name_or_number} is ambiguous: {', '.join(matches)}; give the full name")
    if not matches:
        raise DataProblem(
            f"data set {name_or_number} is not in {variable}={root} (there: {', '.join(known) or 'none'}); "
            f"{mend.format(number)}"
        )
    return root / matches[0]


def dataset_number(name: str) -> int:
    """The number in a data set's name: `Dataset004_Hippocampus` -> 4."""
    match = _DATASET.fullmatch(name)
    if match is None:
        raise UsageError(f"{name} is not a data set name such as Dataset004_Hippocampus")
    return int(match.group(1))


def external_trainers_folder() -> Path:
    """The folder with the one module in which nnU-Net is to discover our trainers."""
    return Path(__file__).resolve().parent / "ext_trainers"
