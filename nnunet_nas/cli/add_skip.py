"""Adds a configuration with a published module in every skip connection, to compare searched cells with.

It is trained from scratch by nnU-Net's own trainer, or on the frozen backbone by the retrofit trainer.

examples:
  nnunet_nas add_skip -d 4 -c 2d -m attention
  nnunet_nas add_skip -d 4 -c 3d_fullres -m nested
"""

from __future__ import annotations

import argparse
import copy
import sys

from nnunet_nas.cli.common import add_dataset_arguments, add_plans_arguments, quiet_output
from nnunet_nas.commands import train, train_and_predict
from nnunet_nas.environment import dataset_number, find_preprocessed_dataset
from nnunet_nas.errors import DataProblem
from nnunet_nas.files import read_json
from nnunet_nas.methods import retrofit_trainer
from nnunet_nas.plans import (
    DerivedConfiguration,
    add_configurations,
    configuration_digest,
    plans_path,
    provenance,
    read_plans,
    resolve_configuration,
)

SUMMARY = "add attention, residual attention or nested skips"
_MODULES = ("attention", "residual_attention", "nested")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="configuration whose skips are replaced")
    parser.add_argument("-m", required=True, choices=_MODULES, metavar="MODULE", help=f"one of {', '.join(_MODULES)}")
    add_plans_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Builds the network once, adds the configuration, and prints the next commands."""
    dataset = find_preprocessed_dataset(args.d)
    path = plans_path(dataset, args.p)
    plans = read_plans(path)
    architecture = copy.deepcopy(resolve_configuration(plans, args.c).get("architecture"))
    if architecture is None:
        raise DataProblem(f"configuration {args.c} has no architecture: plan the data set again")
    kwargs, name = architecture["arch_kwargs"], architecture["network_class_name"]
    if "backbone" in kwargs:
        raise DataProblem(f"configuration {args.c} has modules in its skips already: choose the one below it")
    kwargs |= {"backbone": name, "skip_module": args.m}
    architecture["network_class_name"] = "nnunet_nas.skips.network.SkipModuleUNet"
    digest = configuration_digest(plans, args.c)
    record = provenance(method="skip", base_digest=digest, settings={"skip_module": args.m}, seeds=[])
    record["backbone_trainer"] = None
    derived = DerivedConfiguration(f"{args.c}_{args.m}", args.c, {"architecture": architecture}, record)
    with quiet_output():
        from nnunet_nas.architecture import NetworkSpec, build_without_weights, network_spec

        dataset_json = read_json(dataset / "dataset.json", "run nnUNetv2_plan_and_preprocess for this data set again")
        base = network_spec(plans, args.c, dataset_json)
        build_without_weights(
            NetworkSpec(architecture, base.input_channels, base.output_channels, base.patch_size, base.batch_size)
        )
    added = add_configurations(path, [derived], base_digests={args.c: digest}, output=args.o, overwrite=args.overwrite)
    where = args.o or args.p
    print(f"{derived.name}: {'added to' if added else 'already in'} plans {where} of {dataset.name}")
    number = dataset_number(dataset.name)
    scratch, predict = train_and_predict(number, derived.name, plans=where)
    retrofit = train(number, derived.name, plans=where, trainer=retrofit_trainer())
    print(f"next: {scratch}", file=sys.stderr)
    print(f"or, on the frozen backbone: {retrofit}", file=sys.stderr)
    print(f"then: {predict}", file=sys.stderr)
    return 0
