"""Adds a configuration with a published module or a convolution in every skip connection, to compare cells with.

It is trained from scratch by nnU-Net's own trainer, or on the frozen backbone by the retrofit trainer.

examples:
  nnunet_nas add_skip -d 4 -c 2d -m attention
  nnunet_nas add_skip -d 4 -c 3d_fullres -m nested
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from nnunet_nas import commands
from nnunet_nas.cli.common import add_dataset_arguments, add_plans_arguments, add_to_plans, quiet_output
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.methods import retrofit_trainer
from nnunet_nas.plans import Plans, Provenance, wrapped

SUMMARY = "add attention, residual attention, nested skips or a convolution"
_MODULES = ("attention", "residual_attention", "nested", "conv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="configuration whose skips are replaced")
    parser.add_argument("-m", required=True, choices=_MODULES, metavar="MODULE", help=f"one of {', '.join(_MODULES)}")
    add_plans_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Builds the network once, adds the configuration, and prints the next commands."""
    plans = Plans.of(find_preprocessed_dataset(args.d), args.p)
    with quiet_output():
        from nnunet_nas.architecture import derive, network_spec

        base = network_spec(plans, args.c)
        network = "nnunet_nas.skips.network.SkipModuleUNet"
        spec = replace(base, architecture=wrapped(base.architecture, network, skip_module=args.m))
        provenance = Provenance("skip", plans.digest(args.c), {"skip_module": args.m})
        derived = derive(f"{args.c}_{args.m}", args.c, spec, provenance)
    where = add_to_plans(args, plans, derived)
    scratch, predict = commands.train_and_predict(plans.number, derived.name, plans=where)
    retrofit = commands.train(plans.number, derived.name, plans=where, trainer=retrofit_trainer())
    print(f"next: {scratch}", file=sys.stderr)
    print(f"or, on the frozen backbone: {retrofit}", file=sys.stderr)
    print(f"then: {predict}", file=sys.stderr)
    return 0
