"""Adds to a data set's plans what a search found on another one: a topology, a genotype or a width.

Kernels, strides and channels are the target's; what cannot fit is refused with the reason. Nothing is trained.

examples:
  nnunet_nas transfer -d 7 -c 3d_fullres -from 4:3d_fullres_dints
  nnunet_nas transfer -d 7 -c 2d -from Dataset004_Hippocampus:2d_iaclth -from_plans nnUNetPlans
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
from nnunet_nas.commands import DEFAULT_PLANS
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.errors import UsageError
from nnunet_nas.methods import result_trainer
from nnunet_nas.plans import Plans

SUMMARY = "use what a search found on another data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="the target's configuration to derive from")
    parser.add_argument(
        "-from", required=True, dest="source", metavar="DATASET:CONFIGURATION", help="where it was found"
    )
    parser.add_argument(
        "-from_plans", default=DEFAULT_PLANS, metavar="PLANS", help="plans identifier there (default: %(default)s)"
    )
    add_plans_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the added configuration as JSON")


def run(args: argparse.Namespace) -> int:
    """Refits, adds, and prints the next commands."""
    dataset, colon, name = args.source.rpartition(":")
    if not colon or not dataset or not name:
        raise UsageError(f"-from {args.source}: write DATASET:CONFIGURATION, for example 4:3d_fullres_dints")
    source = Plans.of(find_preprocessed_dataset(dataset), args.from_plans)
    plans = Plans.of(find_preprocessed_dataset(args.d), args.p)
    with quiet_output():
        from nnunet_nas.transfer import found_configuration, transfer

        derived, notes = transfer(found_configuration(source, name), plans, args.c)
    where = add_to_plans(args, plans, derived)
    tell_what_is_next(plans.number, derived.name, where, notes, result_trainer(derived.provenance.method))
    return 0
