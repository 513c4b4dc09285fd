"""Adds nnU-Net's own network made wider or narrower, all stages in proportion: as wide as a limit allows.

What another shape of the same memory has to beat; nothing is searched or trained. Training memory is what a training
step holds in float32 at the planned patch and batch, with deep supervision, as nnunet_nas info shows it. The limit is a
number, or what another configuration needs; its name ends in the channels of the finest stage. From 16 channels on a
width found for a number is rounded down to a multiple of 8, which tensor cores need to be fast; --exact keeps it. As
the control of another configuration it is always exact: rounded, it would have less than what it is compared with.

examples:
  nnunet_nas add_width -d 4 -c 3d_fullres -memory_limit_mib 8000
  nnunet_nas add_width -d 4 -c 3d_fullres -as 3d_fullres_dints
  nnunet_nas add_width -d 4 -c 3d_fullres -as_macs 3d_fullres_dints
  nnunet_nas add_width -d 4 -c 3d_fullres -memory_limit_mib 8000 --exact
  nnunet_nas add_width -d 4 -c 2d -width 48
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from typing import TYPE_CHECKING, Any

from nnunet_nas.cli.common import add_dataset_arguments, add_plans_arguments, add_to_plans, quiet_output
from nnunet_nas.commands import train_and_predict
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.methods import result_trainer
from nnunet_nas.plans import Plans, Provenance

if TYPE_CHECKING:
    from nnunet_nas.architecture import NetworkSpec
    from nnunet_nas.widths import Measure

SUMMARY = "add nnU-Net's network as wide as a limit of memory or operations allows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="configuration to derive from")
    limits = parser.add_mutually_exclusive_group(required=True)
    limits.add_argument("-memory_limit_mib", type=_positive, metavar="MIB", help="widest within this training memory")
    limits.add_argument("-as", dest="memory_of", metavar="CONFIGURATION", help="widest within the memory of this one")
    limits.add_argument("-macs", type=_positive, metavar="N", help="widest within N multiply-accumulates for a patch")
    limits.add_argument("-as_macs", dest="macs_of", metavar="CONFIGURATION", help="widest within the MACs of this one")
    limits.add_argument("-width", type=int, metavar="CHANNELS", help="channels of the finest stage, never rounded")
    parser.add_argument(
        "-exact", "--exact", action="store_true", help="the widest within a number, be it no multiple of 8"
    )
    add_plans_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the added configuration as JSON")


def run(args: argparse.Namespace) -> int:
    """Finds the width, adds the configuration, and prints the next commands."""
    plans = Plans.of(find_preprocessed_dataset(args.d), args.p)
    plans.require_fresh(args.c)
    with quiet_output():
        from nnunet_nas.architecture import derive, network_spec
        from nnunet_nas.widths import width_of

        base = network_spec(plans, args.c)
        spec, settings = _chosen(args, plans, base)
        notes = _notes(args.c, base, spec, settings)
        name, where, width = args.c, args.p, width_of(spec)
        if spec != base:
            provenance = Provenance("width", plans.digest(args.c), {"width": width, **settings})
            derived = derive(f"{args.c}_w{width}", args.c, spec, provenance)
    if spec != base:
        name, where = derived.name, add_to_plans(args, plans, derived)
    elif args.json:
        print(json.dumps({"configuration": name, "plans": where, "architecture": base.architecture}, indent=4))
    else:
        print(f"{name} itself has {width} channels at the finest stage: nothing was added")
    for note in notes:
        print(note, file=sys.stderr)
    for command in train_and_predict(plans.number, name, plans=where):
        print(f"next: {command}", file=sys.stderr)
    return 0


def _chosen(args: argparse.Namespace, plans: Plans, base: NetworkSpec) -> tuple[NetworkSpec, dict[str, Any]]:
    """The network that is asked for, and what the plans record of the question."""
    from nnunet_nas.widths import (
        ALIGNED,
        MACS,
        MEMORY,
        WIDEST,
        planned_features,
        step_between,
        widest_within,
        with_width,
    )

    try:
        planned_features(base)
    except DataProblem as error:
        raise DataProblem(f"configuration {args.c}: {error}") from error
    if args.width is not None:
        if not 0 < args.width <= WIDEST:
            raise UsageError(f"-width {args.width}: give channels of the finest stage, 1 to {WIDEST}")
        return with_width(base, args.width), {}
    other, measure = args.memory_of or args.macs_of, MACS if args.macs or args.macs_of else MEMORY
    limit = args.memory_limit_mib or args.macs or _needed_by(plans, other, measure)
    settings = {"limit": limit, "unit": measure.unit, **({"as": other} if other else {})}
    align = not args.exact and other is None
    settings |= {"multiple_of": ALIGNED} if align else {}
    return widest_within(base, limit, measure, step=step_between(base), align=align), settings


def _needed_by(plans: Plans, name: str, measure: Measure) -> float:
    """What a configuration needs; one that is trained in a frozen backbone, of memory as it is trained there."""
    from nnunet_nas.architecture import network_spec
    from nnunet_nas.training_cost import training_memory
    from nnunet_nas.widths import MEMORY

    plans.require_fresh(name)
    spec = network_spec(plans, name)
    if measure is not MEMORY:
        return measure.of(spec)
    return training_memory(spec, frozen=result_trainer(plans.method(name)) is not None).total


def _notes(name: str, base: NetworkSpec, spec: NetworkSpec, settings: dict[str, Any]) -> list[str]:
    """What a user is told of the network beside the one that it was derived from."""
    from nnunet_nas.training_cost import memory_beside
    from nnunet_nas.widths import MACS

    features = " ".join(map(str, spec.architecture["arch_kwargs"]["features_per_stage"]))
    within = ""
    if settings:
        source = f" of {settings['as']}" if "as" in settings else ""
        rounded = f", in multiples of {settings['multiple_of']} from 16 on" if "multiple_of" in settings else ""
        within = f", the widest within the {settings['limit']:.10g} {settings['unit']}{source}{rounded}"
    macs = MACS.of(spec)
    return [
        f"channels of the stages {features}{within}",
        memory_beside(spec, name, base),
        f"a patch takes {macs:.4g} multiply-accumulates, {macs / MACS.of(base):.2f} times what {name} does",
    ]


def _positive(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
