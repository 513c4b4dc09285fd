"""Adds to a data set's plans what a search found on another one: a topology, a genotype or a width.

Kernels, strides and channels are the target's; what cannot fit is refused with the reason. Nothing is trained.

examples:
  nnunet_nas transfer -d 7 -c 3d_fullres -from 4:3d_fullres_dints
  nnunet_nas transfer -d 7 -c 2d -from Dataset004_Hippocampus:2d_iaclth -from_plans nnUNetPlans
"""

from __future__ import annotations

import argparse
import json
import sys

from nnunet_nas.cli.common import add_dataset_arguments, add_plans_arguments, quiet_output
from nnunet_nas.commands import DEFAULT_PLANS, train_and_predict
from nnunet_nas.environment import dataset_number, find_preprocessed_dataset
from nnunet_nas.errors import UsageError
from nnunet_nas.files import read_json
from nnunet_nas.methods import result_trainer
from nnunet_nas.plans import add_configurations, plans_path, read_plans

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
    source, target = find_preprocessed_dataset(dataset), find_preprocessed_dataset(args.d)
    path = plans_path(target, args.p)
    source_plans, plans = read_plans(plans_path(source, args.from_plans)), read_plans(path)
    dataset_json = read_json(target / "dataset.json", "run nnUNetv2_plan_and_preprocess for this data set again")
    with quiet_output():
        from nnunet_nas.transfer import found_configuration, transfer

        derived, notes = transfer(found_configuration(source_plans, name), plans, args.c, dataset_json)
    added = add_configurations(
        path,
        [derived],
        base_digests={args.c: derived.provenance["base_digest"]},
        output=args.o,
        overwrite=args.overwrite,
    )
    where = args.o or args.p
    if args.json:
        print(json.dumps({"configuration": derived.name, "plans": where, **derived.entry()}, indent=4))
    else:
        print(f"{derived.name}: {'added to' if added else 'already in'} plans {where} of {target.name}")
    for note in notes:
        print(note, file=sys.stderr)
    number, trainer = dataset_number(target.name), result_trainer(derived.provenance["method"])
    for command in train_and_predict(number, derived.name, plans=where, trainer=trainer):
        print(f"next: {command}", file=sys.stderr)
    return 0
