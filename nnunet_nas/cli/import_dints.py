"""Adds a topology from an architecture code as MONAI publishes it, in the plan's geometry and channels.

FILE holds arch_code_a (edges) and arch_code_c (operations), of torch, as MONAI's searches and bundles write it, or
JSON. It is read without running code that may be in it. Nothing is trained: weights of MONAI's networks do not fit.

examples:
  nnunet_nas import_dints -d 4 -c 3d_fullres -code arch_code.pth
  nnunet_nas import_dints -d 4 -c 3d_fullres -code search_code.pth -name _pancreas -first_level 0
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from nnunet_nas.cli.common import (
    add_dataset_arguments,
    add_plans_arguments,
    add_to_plans,
    quiet_output,
    tell_what_is_next,
)
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.plans import Plans
from nnunet_nas.settings import is_part_of_name

SUMMARY = "add a topology of MONAI's DiNTS by its architecture code"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="configuration to derive from")
    parser.add_argument("-code", required=True, type=Path, metavar="FILE", help="architecture code, .json or of torch")
    parser.add_argument(
        "-name",
        default="_dints_import",
        metavar="SUFFIX",
        help="what its name adds to the base's (default: %(default)s)",
    )
    parser.add_argument(
        "-first_level",
        type=int,
        choices=(0, 1),
        help="stage of the plan that is the code's finest level (default: 1, MONAI's use_downsample, or 0 in 2-D)",
    )
    add_plans_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the added configuration as JSON")


def run(args: argparse.Namespace) -> int:
    """Reads the code, fits it to the plans, adds it, and prints the next commands."""
    if not is_part_of_name(args.name):
        raise UsageError(f"-name {args.name}: letters and digits, joined by single '_', '-' or '.', as in _monai")
    plans = Plans.of(find_preprocessed_dataset(args.d), args.p)
    plans.require_fresh(args.c)
    with quiet_output():
        from nnunet_nas.architecture import NETWORK_ERRORS, derive, network_spec, one_line
        from nnunet_nas.dints.published import import_topology, read_code
        from nnunet_nas.plans import Provenance
        from nnunet_nas.training_cost import memory_beside

        base = network_spec(plans, args.c)
        content = read_code(args.code)
        try:
            spec, notes = import_topology(content, base, first_level=args.first_level)
        except NETWORK_ERRORS as error:
            raise DataProblem(
                f"configuration {args.c} is not as nnU-Net writes it ({one_line(error)}): plan the data set again with "
                f"nnUNetv2_plan_experiment"
            ) from error
        digest = hashlib.sha256(args.code.read_bytes()).hexdigest()
        settings = {"code": args.code.name, "sha256": digest, "first_level": args.first_level}
        provenance = Provenance("dints", plans.digest(args.c), settings)
        derived = derive(f"{args.c}{args.name}", args.c, spec, provenance)
        notes.append(memory_beside(spec, args.c, base))
    where = add_to_plans(args, plans, derived)
    tell_what_is_next(plans.number, derived.name, where, notes)
    return 0
