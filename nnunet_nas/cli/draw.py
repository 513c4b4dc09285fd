"""Draws what a search found, from the plans: the cell as a graph, or the topology as a grid of stages and layers.

examples:
  nnunet_nas draw -d 4 -c 2d_iaclth
  nnunet_nas draw -d 4 -c 3d_fullres_dints -o topology.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_nas.cli.common import add_dataset_arguments
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.errors import DataProblem
from nnunet_nas.methods import METHODS, part
from nnunet_nas.plans import Plans

SUMMARY = "draw a searched cell or topology"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="a searched configuration")
    parser.add_argument("-o", type=Path, metavar="FILE", help="PNG file (default: CONFIGURATION.png here)")


def run(args: argparse.Namespace) -> int:
    """Draws and prints the file's name."""
    plans = Plans.of(find_preprocessed_dataset(args.d), args.p)
    kwargs = plans.resolve(args.c).get("architecture", {}).get("arch_kwargs", {})
    path = Path(f"{args.c}.png") if args.o is None else args.o
    for method in METHODS.values():
        if method.draw and method.answer in kwargs:
            part(method.draw)(kwargs, path, args.c)
            print(path)
            return 0
    raise DataProblem(
        f"configuration {args.c} has neither searched cells nor a topology: nothing to draw; nnunet_nas ls shows which "
        f"have"
    )
