"""Adds what chance gives in place of what a search found: the control that says what the search itself is worth.

For a topology, one of all feasible ones with as many edges and skips and, within a tenth, the same training memory; for
a cell, one of all cells, with the widths and the start of the one that was found. It is trained as that is. Nothing is
searched.

examples:
  nnunet_nas add_random -d 4 -c 3d_fullres_dints
  nnunet_nas add_random -d 4 -c 2d_iaclth_residual -seed 1
"""

from __future__ import annotations

import argparse

from nnunet_nas.cli.common import (
    add_dataset_arguments,
    add_plans_arguments,
    add_to_plans,
    quiet_output,
    tell_what_is_next,
)
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.methods import result_trainer
from nnunet_nas.plans import Plans

SUMMARY = "add a random topology or cell beside a searched one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="what a search found")
    parser.add_argument("-seed", type=_seed, default=0, metavar="SEED", help="of the draw (default: %(default)s)")
    add_plans_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the added configuration as JSON")


def run(args: argparse.Namespace) -> int:
    """Draws, adds, and prints the next commands."""
    plans = Plans.of(find_preprocessed_dataset(args.d), args.p)
    with quiet_output():
        from nnunet_nas.chance import random_like
        from nnunet_nas.transfer import found_configuration

        derived, notes = random_like(found_configuration(plans, args.c), args.seed)
    where = add_to_plans(args, plans, derived)
    tell_what_is_next(plans.number, derived.name, where, notes, result_trainer(derived.provenance.method))
    return 0


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a seed: a whole number from 0 on")
    return int(text)
