"""Small files that say what was done, and what failed; written whole or not at all."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from nnunet_nas.files import replace_file


def write(path: str | Path, content: dict[str, Any]) -> None:
    """Writes a record."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace_file(Path(path), json.dumps(content, indent=4).encode())


def read(path: str | Path) -> dict[str, Any] | None:
    """A record; None if it is not there."""
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text())
    except FileNotFoundError:
        return None
    return found


def begin(path: str | Path) -> None:
    """Says that a step has begun; what an earlier attempt said of its failure is gone."""
    _failure(path).unlink(missing_ok=True)
    write(_start(path), {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "host": socket.gethostname(), "pid": os.getpid()})


def finish(path: str | Path, content: dict[str, Any]) -> None:
    """Writes the record of a finished step."""
    write(path, content)
    _start(path).unlink(missing_ok=True)


def fail(path: str | Path, message: str) -> None:
    """Says that a step failed, and why, in one line."""
    write(_failure(path), {"message": message})
    _start(path).unlink(missing_ok=True)


def state(path: str | Path) -> str:
    """`done`, `failed: WHY`, `interrupted` or `not begun`."""
    if Path(path).exists():
        return "done"
    failed, started = read(_failure(path)), read(_start(path))
    if failed is not None:
        return f"failed: {failed['message']}"
    if started is not None:
        return f"interrupted, or running since {started['since']} on {started['host']}"
    return "not begun"


def _failure(path: str | Path) -> Path:
    return Path(path).with_suffix(".failed")


def _start(path: str | Path) -> Path:
    return Path(path).with_suffix(".begun")
