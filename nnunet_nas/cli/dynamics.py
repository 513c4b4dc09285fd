"""Shows how a search arrived at its result, from the history that it records; also while it is still running.

Cells (IAC, IAC-LTH): similarity of epochs, and when each final operation and edge came first; of several searches, for
instance of several seeds, the averages, and what their cells have in common. Topologies (DiNTS): discretisation gap,
feasibility, entropies, memory, and when each edge settled. Epochs count from 0.

examples:
  nnunet_nas dynamics $nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerIACLTHSearch__nnUNetPlans__2d/fold_0
  nnunet_nas dynamics -d 4 -c 2d -m iac_lth -o pictures
  nnunet_nas dynamics -d 4 -c 3d_fullres -m dints --json
  nnunet_nas dynamics seed_*/fold_0 -o pictures
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nnunet_nas.cli.common import format_table
from nnunet_nas.commands import DEFAULT_PLANS
from nnunet_nas.environment import find_preprocessed_dataset, folder_from_environment
from nnunet_nas.errors import UsageError
from nnunet_nas.files import require_writable
from nnunet_nas.methods import METHODS, Dynamics, part, searches

SUMMARY = "how a search arrived at its result"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    known = searches()
    parser.add_argument(
        "folder", nargs="*", type=Path, metavar="FOLDER", help="fold_X of a search's results; several are averaged"
    )
    parser.add_argument("-d", metavar="DATASET", help="instead of FOLDER: data set, number or name")
    parser.add_argument("-c", metavar="CONFIGURATION", help="configuration that was searched on")
    parser.add_argument("-m", choices=known, metavar="METHOD", help=f"one of {', '.join(known)}")
    parser.add_argument("-f", default="0", metavar="FOLD", help="fold (default: %(default)s)")
    parser.add_argument("-p", default=DEFAULT_PLANS, metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="draw dynamics.png there")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Reads the history, prints, and draws if asked to."""
    paths = _history_paths(args)
    if args.o is not None:
        require_writable(args.o)
    shown = _dynamics(paths)
    if args.json:
        print(json.dumps(shown.content, indent=4))
    else:
        print(*filter(None, [shown.headline]), format_table(shown.header, shown.rows, left=shown.words), sep="\n")
    if args.o is not None:
        title = paths[0].parent.parent.name if len(paths) == 1 else f"{len(paths)} searches"
        shown.draw(args.o / "dynamics.png", title)
        print(args.o / "dynamics.png", file=sys.stderr)
    return 0


def _history_paths(args: argparse.Namespace) -> list[Path]:
    # NumPy is imported late, as everything that is slow.
    from nnunet_nas.histories import HISTORY

    if args.folder:
        return [folder / HISTORY if folder.is_dir() else folder for folder in args.folder]
    if None in (args.d, args.c, args.m):
        raise UsageError("give the folder of a search, or -d, -c and -m")
    results = folder_from_environment("nnUNet_results") / find_preprocessed_dataset(args.d).name
    return [results / f"{METHODS[args.m].trainer_name}__{args.p}__{args.c}" / f"fold_{args.f}" / HISTORY]


def _dynamics(paths: list[Path]) -> Dynamics:
    """By the method whose histories they are."""
    from nnunet_nas.histories import load_history

    methods = {part(METHODS[name].history): METHODS[name] for name in searches()}
    histories = [load_history(path, list(methods)) for path in paths]
    method = methods[type(histories[0])]
    if len(histories) == 1:
        shown: Dynamics = part(method.dynamics)(histories[0])
        return shown
    if method.averaged is None or len({type(history) for history in histories}) > 1:
        raise UsageError("several searches can be averaged if all are for cells: give one folder, or those of cells")
    together: Dynamics = part(method.averaged)(histories, [_name(path) for path in paths])
    return together


def _name(path: Path) -> str:
    """TRAINER__PLANS__CONFIGURATION/fold_X, or what there is of it."""
    return "/".join(path.parent.parts[-2:])
