"""Prints the folder that nnU-Net's variable nnUNet_extTrainer must name to find the trainers of nnunet_nas.

Nothing else is printed, so that the call can stand in an assignment. The folder holds one module that re-exports the
trainers; naming the package itself, or site-packages, would break pickling or import everything in there.

example:
  export nnUNet_extTrainer=$(nnunet_nas ext_path)
"""

from __future__ import annotations

import argparse

from nnunet_nas.environment import external_trainers_folder
from nnunet_nas.errors import EnvironmentProblem

SUMMARY = "print the folder for nnUNet_extTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`ext_path` has no options of its own."""


def run(args: argparse.Namespace) -> int:
    """Prints the folder."""
    folder = external_trainers_folder()
    if not folder.is_dir():
        raise EnvironmentProblem(f"{folder} is missing, the installation is incomplete: install nnunet-nas again")
    print(folder)
    return 0
