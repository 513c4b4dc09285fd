"""Errors that a user can mend: each carries the exit code of the command line and a one-line message.

The message names the thing, the value, what is allowed and the next step. Everything else that is raised is a bug and
ends with exit code 1.
"""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator

# What the system says of a full disk, and of one that is full for this user.
FULL = (errno.ENOSPC, errno.EDQUOT)


class NasError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 1


class UsageError(NasError):
    """The call itself is wrong: an unknown option value, options that exclude each other."""

    exit_code = 2


class EnvironmentProblem(NasError):
    """The machine is not ready: environment variables, permissions, disk space, devices, locks held by others."""

    exit_code = 3


class DataProblem(NasError):
    """A data set, plans file, configuration or checkpoint is missing or unfit."""

    exit_code = 4


class BudgetProblem(NasError):
    """No candidate satisfies the budget that was asked for."""

    exit_code = 5


def printable(text: str) -> str:
    """Text from files without what a terminal would take for a command."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def exit_with_one_line() -> Iterator[None]:
    """Ends the program with the message of a `NasError` and its exit code, for code that nnU-Net's commands call.

    nnU-Net's command line shows a traceback for whatever is raised; SystemExit ends it quietly. The traceback is
    shown when NNUNET_NAS_VERBOSE is set. A full disk ends it likewise, whoever was writing.
    """
    try:
        yield
    except NasError as error:
        _exit(error, str(error), error.exit_code)
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = f" to write {error.filename}" if error.filename else ""
        _exit(error, f"no space left{where}: free some space, then go on with --c", EnvironmentProblem.exit_code)


def _exit(error: Exception, message: str, code: int) -> None:
    if os.environ.get("NNUNET_NAS_VERBOSE"):
        traceback.print_exc()
    print(f"nnunet_nas: {printable(message)}", file=sys.stderr)
    raise SystemExit(code) from error
