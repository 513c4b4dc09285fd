"""How long a search takes: from iterations that were timed, in words for its log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from nnunet_nas.search_cost import Phase

# Iterations that are timed, after one that waits for the loaders' first batch and for what a device prepares.
_TIMED = 10


class Pace:
    """Seconds per iteration, from the first few of an epoch.

    Attributes:
        timed: how many iterations count; none where an epoch has one only.
    """

    def __init__(self, iterations_per_epoch: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.timed = min(_TIMED, iterations_per_epoch - 1)
        self._clock = clock
        self._made = 0
        self._started = 0.0

    def iterated(self) -> float | None:
        """Is called after each iteration; seconds per iteration after the last one that counts, else None."""
        self._made += 1
        if self._made == 1:
            self._started = self._clock()
        if self.timed < 1 or self._made != 1 + self.timed:
            return None
        return (self._clock() - self._started) / self.timed


def seconds_to_go(seconds: float, phases: Sequence[Phase], done: int) -> float:
    """What is left, if each phase takes as much longer per iteration as its multiply-accumulates are more.

    Args:
        seconds: per iteration, at present.
        phases: of the whole search.
        done: iterations so far, of which the last one was timed.

    Returns:
        seconds.
    """
    ends = [sum(phase.iterations for phase in phases[: number + 1]) for number in range(len(phases))]
    present = next(phase for phase, end in zip(phases, ends, strict=True) if done <= end)
    left = sum(min(phase.iterations, max(0, end - done)) * phase.macs for phase, end in zip(phases, ends, strict=True))
    return seconds * left / present.macs


def in_words(seconds: float) -> str:
    """Days, hours or minutes, with two digits."""
    for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{_two_digits(seconds / size)} {name}"
    return f"{_two_digits(seconds)} seconds"


def _two_digits(value: float) -> str:
    digits = 0 if value <= 0 else max(0, 1 - math.floor(math.log10(value)))
    return f"{value:.{min(digits, 2)}f}"
