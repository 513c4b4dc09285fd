"""`nnunet_nas COMMAND ...`: parses the call, hands it to the command's module and turns errors into exit codes.

Exit codes: 0 done, 1 unexpected, 2 usage, 3 environment, 4 data set, plans or checkpoint not found or unfit,
5 nothing satisfies the budget, 130 interrupted. Command modules import torch and nnU-Net inside `run` only.
"""

from __future__ import annotations

import argparse
import importlib
import os
import select
import sys
import traceback
from collections.abc import Sequence

from nnunet_nas import __version__
from nnunet_nas.cli.completion import CompletedParser
from nnunet_nas.errors import NasError, printable

COMMANDS = (
    "select_tiny",
    "prove_tiny",
    "set_search",
    "transfer",
    "add_skip",
    "add_encoder",
    "add_width",
    "add_random",
    "import_dints",
    "compare",
    "export",
    "dynamics",
    "draw",
    "info",
    "ls",
    "doctor",
    "gpu_check",
    "ext_path",
    "phantom",
    "completion",
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = CompletedParser(
        prog="nnunet_nas",
        description="Finds the network shape that fits a data set and hands it to nnU-Net as a plans configuration.",
        epilog="nnunet_nas COMMAND --help shows a command's options and examples.",
    )
    parser.add_argument("--version", action="version", version=f"nnunet_nas {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"nnunet_nas.cli.{name}")
        command = subparsers.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--verbose", action="store_true", help="show the traceback of an error")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        try:
            return _run(arguments)
        finally:
            # Inside the try, because a reader that went away is noticed only here when the output was short.
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output went away (`nnunet_nas ls | head`): no error of ours, and nothing left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: Sequence[str] | None) -> int:
    args = build_parser().parse_args(arguments)
    try:
        return int(args.run(args) or 0)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{': ' + str(interrupt) if str(interrupt) else ''}", file=sys.stderr)
        return 130
    except NasError as error:
        if args.verbose:
            traceback.print_exc()
        print(f"nnunet_nas {args.command}: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_went_away():
            raise
        if args.verbose:
            traceback.print_exc()
        hint = "" if args.verbose else " (--verbose shows where)"
        message = printable(" ".join(str(error).split()))
        print(f"nnunet_nas {args.command}: unexpected {type(error).__name__}: {message}{hint}", file=sys.stderr)
        return 1


def _reader_went_away() -> bool:
    """Whether standard output is the pipe that broke; a worker process that died breaks a pipe, too."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
