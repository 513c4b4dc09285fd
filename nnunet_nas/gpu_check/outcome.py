"""One line of the report, and checks that cannot fall ill themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Outcome:
    """What was looked at, what should have been seen, and what was.

    Attributes:
        name: of the check.
        status: `skipped` where this machine has not what it needs.
        expected: the outcome that passes.
        found: what was seen.
    """

    name: str
    status: Literal["ok", "failed", "skipped"]
    expected: str
    found: str


Outcomes = Iterator[Outcome]


def judged(name: str, expected: str, found: str, *, passed: bool) -> Outcome:
    """Passed or failed."""
    return Outcome(name, "ok" if passed else "failed", expected, found)


def guarded(name: str, check: Callable[[], Outcomes]) -> Outcomes:
    """The outcomes of a check; whatever it raises is one, too."""
    try:
        yield from check()
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        yield Outcome(name, "failed", "no error", f"{type(error).__name__}: {text}")


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / |ours|, Euclidean norms, on the CPU in double precision."""
    one, other = ours.detach().cpu().double(), theirs.detach().cpu().double()
    return float((one - other).norm() / one.norm().clamp(min=1e-30))
