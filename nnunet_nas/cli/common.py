"""What several commands share: nnU-Net's usual options, tables, and keeping standard output for data."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nnunet_nas.commands import DEFAULT_PLANS, train_and_predict
from nnunet_nas.errors import EnvironmentProblem, printable

if TYPE_CHECKING:
    import torch

    from nnunet_nas.plans import DerivedConfiguration, Plans


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """`-d` and `-p`, spelt as nnU-Net spells them."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set: number or name")
    parser.add_argument("-p", default=DEFAULT_PLANS, metavar="PLANS", help="plans identifier (default: %(default)s)")


def add_plans_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a derived configuration goes: `-o` and `--overwrite`."""
    parser.add_argument("-o", metavar="NAME", help="write separate plans NAME, not into those of -p")
    parser.add_argument("--overwrite", action="store_true", help="replace a configuration of that name, if not trained")


def add_to_plans(args: argparse.Namespace, plans: Plans, derived: DerivedConfiguration) -> str:
    """Adds a configuration where `-p` and `-o` say, and prints so, or with `--json` what was added.

    Returns:
        the identifier of those plans.
    """
    added = plans.add([derived], output=args.o, overwrite=args.overwrite)
    where = str(args.o or args.p)
    if getattr(args, "json", False):
        print(json.dumps({"configuration": derived.name, "plans": where, **derived.entry()}, indent=4))
    else:
        verb = "added to" if added else "already in"
        print(printable(f"{derived.name}: {verb} plans {where} of {plans.path.parent.name}"))
    return where


def tell_what_is_next(number: int, name: str, where: str, notes: Sequence[str], trainer: str | None = None) -> None:
    """What is to be said of an added configuration, and the commands that train it and predict with it.

    Args:
        number: of the data set.
        name: of the configuration.
        where: identifier of the plans that it was added to.
        notes: in words, which may quote files of others.
        trainer: that its method trains with; None: nnU-Net's own.
    """
    for note in notes:
        print(printable(note), file=sys.stderr)
    for command in train_and_predict(number, name, plans=where, trainer=trainer):
        print(f"next: {command}", file=sys.stderr)


@contextlib.contextmanager
def quiet_output() -> Iterator[None]:
    """Sends what nnU-Net prints to standard error: standard output is for data only."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table with a header line; the first `left` columns are left-aligned (words), the others right (numbers)."""
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        words = [cell.ljust(width) for cell, width in zip(row[:left], widths[:left], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
        lines.append("  ".join([*words, *numbers]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def select_device(name: str) -> torch.device:
    """The torch device behind `-device`; which GPU is chosen by CUDA_VISIBLE_DEVICES, as in nnU-Net.

    Raises:
        EnvironmentProblem: this machine has no such device.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        raise EnvironmentProblem(
            f"-device {name}: torch {torch.__version__} sees no such device here; use -device cpu, or ask "
            f"nnunet_nas doctor why"
        )
    return torch.device(name)
