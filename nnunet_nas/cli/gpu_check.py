"""Checks on a phantom that this package computes on this machine what it should, in about ten minutes on a GPU.

Each line is a check with the outcome that passes it: every network on the CPU and on the device, half precision, norms
for several GPUs, scores, the compiler, steps of every trainer with their memory, a search that is killed and resumed.
On a machine without a card what needs one is skipped by name. Exit code 1 if a check fails.

examples:
  nnunet_nas gpu_check -device cuda
  nnunet_nas gpu_check -device cpu --quick -only networks steps --json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from nnunet_nas.errors import UsageError, printable

if TYPE_CHECKING:
    from nnunet_nas.gpu_check.outcome import Outcome

SUMMARY = "check on a phantom that a GPU computes what the CPU does"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `gpu_check`."""
    parser.add_argument(
        "-device", choices=("cuda", "cpu", "mps"), default="cuda", help="what to check (default: %(default)s)"
    )
    parser.add_argument("-only", nargs="+", metavar="NAME", default=[], help="some groups of checks")
    parser.add_argument("--quick", action="store_true", help="one network of each kind, in 2-D")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Runs `gpu_check`."""
    from nnunet_nas.cli.common import select_device
    from nnunet_nas.gpu_check import checks

    unknown = [name for name in args.only if name not in checks.NAMES]
    if unknown:
        raise UsageError(f"-only {unknown[0]} is unknown: use {', '.join(checks.NAMES)}")
    device = select_device(args.device)
    outcomes = checks.run(device, args.only, quick=args.quick, tell=_tell if not args.json else lambda outcome: None)
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    if args.json:
        content = {"device": _described(device), "outcomes": [asdict(outcome) for outcome in outcomes]}
        print(json.dumps(content, indent=4))
    else:
        skipped = sum(outcome.status == "skipped" for outcome in outcomes)
        print(f"{_described(device)}: {len(outcomes)} checks, {failed} failed, {skipped} skipped")
        print("next: nnunet_nas doctor" if failed else "next: nnunet_nas ls", file=sys.stderr)
    return int(failed > 0)


def _tell(outcome: Outcome) -> None:
    line = f"{outcome.status:8}{outcome.name}: {outcome.found} (expected: {outcome.expected})"
    print(printable(line), flush=True)


def _described(device: object) -> str:
    import torch

    name = f", {torch.cuda.get_device_name()}" if str(device).startswith("cuda") else ""
    return f"{device}{name}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads"
