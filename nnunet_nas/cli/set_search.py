"""Shows or changes the settings of a search, which stand in the plans file under nas_settings.

Without key=value all settings are shown: value, default, and where the default comes from (the paper, its predecessors,
or our choice). key=default takes a change back.

examples:
  nnunet_nas set_search -d 4 -c 2d -m iac_lth
  nnunet_nas set_search -d 4 -c 2d -m iac_lth num_iterations_per_epoch=50 augmentation=false
  nnunet_nas set_search -d 4 -c 2d_iaclth -m iac_retrofit num_epochs=default
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext

from nnunet_nas import commands
from nnunet_nas.cli.common import add_dataset_arguments, format_table
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.methods import METHODS, RESIDUAL, retrofit_trainer, retrofitted, settings_class, with_settings
from nnunet_nas.plans import Plans
from nnunet_nas.settings import as_text, checked_values, overrides, parse_assignments, settings_table

SUMMARY = "show or change the settings of a search"
_HEADER = ("setting", "value", "default", "default from", "set in", "meaning")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="configuration that is searched on")
    known = with_settings()
    parser.add_argument("-m", required=True, choices=known, metavar="METHOD", help=f"one of {', '.join(known)}")
    parser.add_argument("assignments", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Writes what was given, then shows all, or what was changed."""
    path, cls = find_preprocessed_dataset(args.d) / f"{args.p}.json", settings_class(args.m)
    with Plans.edited(path) if args.assignments else nullcontext(Plans.read(path)) as plans:
        standing = overrides(plans.resolve(args.c), args.m)
        values, removed = parse_assignments(cls, args.assignments, standing)
        # Before anything is set, so that a broken entry of an earlier hand is named and not mixed with a new one.
        checked_values(cls, {key: value for key, value in standing.items() if key not in {*values, *removed}})
        if args.assignments:
            plans.set(args.c, args.m, values, removed)
    owner = next((name for name in plans.ancestry(args.c) if "nas_settings" in plans.configurations[name]), args.c)
    rows = settings_table(cls, plans.resolve(args.c), owner)
    if args.json:
        print(json.dumps({"configuration": args.c, "method": args.m, "settings": rows}, indent=4))
        return 0
    shown = [row for row in rows if not args.assignments or row["key"] in {*values, *removed}]
    cells = [[*map(as_text, row.values())] for row in shown]
    if cells:
        print(format_table(_HEADER, cells, left=len(_HEADER)))
    for key in sorted(set(removed) - {row["key"] for row in rows}):
        print(f"{key} was no setting of {args.m} and is taken out", file=sys.stderr)
    print("next: export nnUNet_extTrainer=$(nnunet_nas ext_path)", file=sys.stderr)
    print(f"next: {_train_command(plans, args)}", file=sys.stderr)
    return 0


def _train_command(plans: Plans, args: argparse.Namespace) -> str:
    """The training that the settings are for; the retrofit trains a configuration that has modules, or will have."""
    configuration, trainer = args.c, METHODS[args.m].trainer_name
    if trainer == retrofit_trainer() and plans.method(args.c) not in retrofitted():
        configuration += METHODS["iac_lth"].suffix + RESIDUAL
    return commands.train(plans.number, configuration, plans=args.p, trainer=trainer)
