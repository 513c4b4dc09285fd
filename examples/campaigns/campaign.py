"""What every campaign counts, and the commands that it runs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_nas.errors import NasError


class Campaign:
    """What was tried and what failed, of one kind.

    Attributes:
        root: folder of nnU-Net's three folders and of whatever else the kind needs.
        tried: calls, kills, additions.
        refused: of them, in one line.
        failed: one line each, with the seed that repeats it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tried = self.refused = 0
        self.failed: list[str] = []

    def fail(self, seed: int, what: str) -> None:
        """Notes a failure, in one line."""
        self.failed.append(" ".join(f"-seed {seed}: {what}".split()))

    def command(self, *words: str, unchanged: Path | None = None, seed: int) -> int:
        """Runs a command in this process; fails if it ends with 1, or if a refusal changed a file."""
        before = unchanged.read_bytes() if unchanged else b""
        code, said = command(*words)
        self.tried += 1
        self.refused += code not in (0, 1)
        if code == 1 or "Traceback" in said:
            self.fail(seed, f"{' '.join(words)}: {last_line(said)}")
        if code and unchanged and unchanged.read_bytes() != before:
            self.fail(seed, f"{' '.join(words)} was refused and changed {unchanged.name}")
        return code

    def call(self, function: Callable[[], Any], seed: int) -> None:
        """Runs a function; fails if it raises anything but an error that is meant for the user."""
        self.tried += 1
        try:
            function()
        except NasError as error:
            self.refused += 1
            if "\n" in str(error):
                self.fail(seed, f"a message of several lines: {error}")
        except Exception as error:  # noqa: BLE001 (whatever comes through is a failure)
            self.fail(seed, f"{type(error).__name__}: {str(error)[:160]}")


def command(*words: str) -> tuple[int, str]:
    """Runs one of our commands in this process; its exit code and what it said."""
    from nnunet_nas.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception as error:  # noqa: BLE001 (likewise)
            code = 1
            print(f"{type(error).__name__} came through: {error}")
    return code, said.getvalue()


def last_line(said: str) -> str:
    """Of what a program said, short enough for a table."""
    lines = said.strip().splitlines()
    return lines[-1][:160] if lines else "nothing was said"
