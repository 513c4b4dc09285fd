"""Checks that this machine is ready for nnU-Net and nnunet_nas, and says how to mend what is not.

It looks at nnU-Net's environment variables and folders, external trainers, versions, whether torch and torchvision
match, the device, torch.compile and the data loading workers. Exit code 3 if there is a problem; warnings do not fail.

examples:
  nnunet_nas doctor
  nnunet_nas doctor --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from nnunet_nas.errors import EnvironmentProblem

if TYPE_CHECKING:
    from nnunet_nas.diagnosis import Check

SUMMARY = "check the environment and say how to mend it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The option of `doctor`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    from nnunet_nas.diagnosis import diagnose

    if sys.stderr.isatty():
        print("importing torch and nnU-Net, a few seconds ...", file=sys.stderr)
    checks = diagnose()
    problems = sum(check.status == "problem" for check in checks)
    print(json.dumps({"checks": [asdict(check) for check in checks]}, indent=4) if args.json else _report(checks))
    if not args.json:
        step = "mend the problems, then nnunet_nas doctor" if problems else "nnunet_nas ls"
        print(f"next: {step}", file=sys.stderr)
    return EnvironmentProblem.exit_code if problems else 0


def _report(checks: Sequence[Check]) -> str:
    status_width = max(len(check.status) for check in checks)
    name_width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status.ljust(status_width)}  {check.name.ljust(name_width)}  {check.found}")
        if check.mend:
            lines.append(f"{' ' * status_width}  {' ' * name_width}  -> {check.mend}")
    counts = {status: sum(check.status == status for check in checks) for status in ("problem", "warning")}
    lines.append(", ".join(f"{count} {status}{'' if count == 1 else 's'}" for status, count in counts.items()))
    return "\n".join(lines)
