"""Shows how a search arrived at its result, from the history that it records; also while it is still running.

Cells (IAC, IAC-LTH): similarity of epochs, and when each final operation and edge came first. Topologies (DiNTS):
discretisation gap, feasibility, entropies, memory, and when each edge settled. Epochs count from 0.

examples:
  nnunet_nas dynamics $nnUNet_results/Dataset004_Hippocampus/nnUNetTrainerIACLTHSearch__nnUNetPlans__2d/fold_0
  nnunet_nas dynamics -d 4 -c 2d -m iac_lth -o pictures
  nnunet_nas dynamics -d 4 -c 3d_fullres -m dints --json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_nas.cli.common import format_table
from nnunet_nas.environment import find_preprocessed_dataset, folder_from_environment
from nnunet_nas.errors import DataProblem, UsageError

if TYPE_CHECKING:
    from nnunet_nas.dints.history import TopologyHistory
    from nnunet_nas.iac.history import SearchHistory

SUMMARY = "how a search arrived at its result"
_TRAINERS = {
    "iac": "nnUNetTrainerIACSearch",
    "iac_lth": "nnUNetTrainerIACLTHSearch",
    "dints": "nnUNetTrainerDiNTSSearch",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="fold_X of a search's results")
    parser.add_argument("-d", metavar="DATASET", help="instead of FOLDER: data set, number or name")
    parser.add_argument("-c", metavar="CONFIGURATION", help="configuration that was searched on")
    parser.add_argument("-m", choices=_TRAINERS, metavar="METHOD", help=f"one of {', '.join(_TRAINERS)}")
    parser.add_argument("-f", default="0", metavar="FOLD", help="fold (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="draw dynamics.png there")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Reads the history, prints, and draws if asked to."""
    path = _history_path(args)
    # NumPy is imported late, as everything that is slow.
    import numpy as np

    from nnunet_nas.histories import BROKEN

    if not path.is_file():
        raise DataProblem(f"{path} does not exist: give the fold_X folder of a search that has finished an epoch")
    try:
        with np.load(path, allow_pickle=False) as content:
            is_topology = "edge_logits" in content.files
    except BROKEN as error:
        raise DataProblem(f"{path} is not the history of a search ({type(error).__name__}): give another") from error
    if args.o is not None:
        args.o.mkdir(parents=True, exist_ok=True)
    return _topology(args, path) if is_topology else _cells(args, path)


def _history_path(args: argparse.Namespace) -> Path:
    from nnunet_nas.histories import HISTORY

    if args.folder is not None:
        return Path(args.folder) / HISTORY if args.folder.is_dir() else Path(args.folder)
    if None in (args.d, args.c, args.m):
        raise UsageError("give the folder of a search, or -d, -c and -m")
    results = folder_from_environment("nnUNet_results") / find_preprocessed_dataset(args.d).name
    return results / f"{_TRAINERS[args.m]}__{args.p}__{args.c}" / f"fold_{args.f}" / HISTORY


def _cells(args: argparse.Namespace, path: Path) -> int:
    from nnunet_nas.iac.drawing import draw_dynamics
    from nnunet_nas.iac.dynamics import CRITERIA, analyse
    from nnunet_nas.iac.history import SearchHistory

    history: SearchHistory = SearchHistory.load(path)
    analysis = analyse(history)
    if args.json:
        print(json.dumps(analysis.to_json(), indent=4))
    else:
        rows = [
            [
                f"{edge.source}->{edge.target}",
                edge.operation,
                "kept" if edge.kept else "",
                *(_epoch(edge.enters[name]) for name in CRITERIA),
                _epoch(edge.difficulty),
            ]
            for edge in analysis.edges
        ]
        print(f"{len(analysis)} epochs, {analysis.warmup_epochs} of them warm-up; first epoch in:")
        print(format_table(["edge", "operation", "", *CRITERIA, "stays top_1"], rows, left=3))
    if args.o is not None:
        draw_dynamics(analysis, args.o / "dynamics.png", path.parent.parent.name)
        print(args.o / "dynamics.png", file=sys.stderr)
    return 0


def _topology(args: argparse.Namespace, path: Path) -> int:
    from nnunet_nas.dints.drawing import draw_progress
    from nnunet_nas.dints.dynamics import analyse_topology, levels_of
    from nnunet_nas.dints.history import TopologyHistory

    history: TopologyHistory = TopologyHistory.load(path)
    analysis = analyse_topology(history)
    if args.json:
        print(json.dumps(analysis, indent=4))
    else:
        print(_topology_table(analysis))
    if args.o is not None:
        title = path.parent.parent.name
        draw_progress(history, args.o / "dynamics.png", levels=levels_of(history), title=title)
        print(args.o / "dynamics.png", file=sys.stderr)
    return 0


def _topology_table(analysis: dict[str, Any]) -> str:
    header = ("epoch", "G", "log P(feasible)", "patterns, nats", "operations, nats", "expected MiB", "edges settled")
    settled = [row["settled"] for row in analysis["edges"]]
    rows = [
        [
            str(epoch),
            f"{analysis['gap'][epoch]:.0f}",
            f"{analysis['log_feasible'][epoch]:.3f}",
            f"{analysis['pattern_entropy'][epoch]:.3f}",
            f"{analysis['operation_entropy'][epoch]:.3f}",
            f"{analysis['expected_mib'][epoch]:.1f}",
            f"{sum(first <= epoch for first in settled)}/{len(settled)}",
        ]
        for epoch in range(analysis["epochs"])
    ]
    return format_table(header, rows, left=0)


def _epoch(value: int | None) -> str:
    return "-" if value is None else str(value)
