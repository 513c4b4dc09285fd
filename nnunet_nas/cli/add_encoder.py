"""Adds a configuration whose encoder is one of image classification, with nnU-Net's decoder; 2-D.

Everything else is the base's. It trains and predicts with stock nnU-Net; searches for cells and retrofits work on it.

examples:
  nnunet_nas add_encoder -d 4 -c 2d -m resnet50
  nnunet_nas add_encoder -d 4 -c 2d -m efficientnetv2_s -weights efficientnetv2_s.pth
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_nas.cli.common import add_dataset_arguments, add_plans_arguments, add_to_plans, quiet_output
from nnunet_nas.commands import train_and_predict
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.errors import DataProblem
from nnunet_nas.plans import Plans, Provenance

if TYPE_CHECKING:
    from nnunet_nas.architecture import NetworkSpec

SUMMARY = "add a configuration with an encoder of image classification"
_ENCODERS = ("vgg16", "resnet50", "mobilenetv3_large", "efficientnetv2_s", "efficientnetv2_m")
_FEWEST_STAGES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="2-D configuration to derive from")
    parser.add_argument(
        "-m", required=True, choices=_ENCODERS, metavar="ENCODER", help=f"one of {', '.join(_ENCODERS)}"
    )
    parser.add_argument(
        "-weights", type=Path, metavar="FILE", help="state dictionary of timm for the encoder (default: random)"
    )
    add_plans_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Builds the network once, adds the configuration, and prints the next commands."""
    plans = Plans.of(find_preprocessed_dataset(args.d), args.p)
    if args.weights is not None and not args.weights.is_file():
        raise DataProblem(f"-weights {args.weights} is not a file: give the encoder's state dictionary")
    with quiet_output():
        from nnunet_nas.architecture import derive, network_spec
        from nnunet_nas.encoders.network import halvings

        base = network_spec(plans, args.c)
        architecture = _architecture(base, args.m, args.weights, halvings(base.patch_size))
        spec = replace(base, architecture=architecture)
        settings = {"encoder": args.m, "weights": architecture["arch_kwargs"]["weights"]}
        provenance = Provenance("encoder", plans.digest(args.c), settings)
        derived = derive(f"{args.c}_{args.m}", args.c, spec, provenance, weights=True)
    where = add_to_plans(args, plans, derived)
    for command in train_and_predict(plans.number, derived.name, plans=where):
        print(f"next: {command}", file=sys.stderr)
    return 0


def _architecture(base: NetworkSpec, encoder: str, weights: Path | None, halved: int) -> dict[str, Any]:
    """The plans' `architecture`: as many stages as the patch can be halved for.

    Raises:
        DataProblem: 3-D, a patch of odd sizes, or no U-Net below.
    """
    patch = base.patch_size
    if len(patch) != 2:
        raise DataProblem("these encoders are 2-D: choose a 2-D configuration")
    stages = halved + 1
    if stages < _FEWEST_STAGES:
        raise DataProblem(
            f"patch size {'x'.join(map(str, patch))} can be halved {halved} times, the encoders need "
            f"{_FEWEST_STAGES - 1}: choose a configuration with another patch size"
        )
    planned = base.architecture["arch_kwargs"]
    kept = ("conv_bias", "norm_op", "norm_op_kwargs", "nonlin", "nonlin_kwargs")
    missing = [key for key in kept if key not in planned]
    if missing:
        raise DataProblem(
            f"the configuration's arch_kwargs have no {', '.join(missing)}: choose one of nnU-Net's U-Nets"
        )
    kwargs = {key: planned[key] for key in kept}
    kwargs |= {
        "encoder": encoder,
        "n_stages": stages,
        "strides": [[1, 1], *[[2, 2]] * halved],
        "n_conv_per_stage_decoder": [2] * halved,
        "weights": None if weights is None else str(weights.resolve()),
    }
    return {
        "network_class_name": "nnunet_nas.encoders.network.TimmUNet",
        "arch_kwargs": kwargs,
        "_kw_requires_import": ["norm_op", "nonlin"],
    }
