"""Scores on disk: a second run is instant and an interrupted one goes on.

One JSON Lines file per key. The key is everything that a score depends on besides seed and width: base configuration,
data, cases, metric, versions, device. Lines are appended and flushed as scores are known; a line that a kill cut short,
or that holds anything else than scores, is ignored and its scores are computed again. Each line says how long its
values took, so that a selection that was interrupted costs what it took in all its attempts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from nnunet_nas.errors import EnvironmentProblem


class ScoreStore:
    """Values by (seed, cap, item); an item is a case, or a part of a proxy that has no value per case."""

    def __init__(self, path: Path, key: dict[str, Any], *, read_only: bool = False) -> None:
        """Opens the scores of one key.

        Args:
            path: folder of the stores.
            key: what the scores depend on, plain JSON; it is written into the file's first line.
            read_only: known scores are used and nothing is written.
        """
        canonical = json.dumps(key, sort_keys=True)
        self.path = path / f"scores_{hashlib.sha256(canonical.encode()).hexdigest()[:16]}.jsonl"
        self._key = key
        self._read_only = read_only
        self._values: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
        self._seconds: dict[tuple[int, int], float] = defaultdict(float)
        self._ends_cleanly = True
        if self.path.exists():
            self._load()

    def known(self, seed: int, cap: int) -> dict[str, float]:
        """Values known so far of one candidate under one seed."""
        return dict(self._values[seed, cap])

    def seconds(self, seed: int, cap: int) -> float:
        """What these values took to compute, whenever that was; 0 for lines of versions that did not say so."""
        return self._seconds[seed, cap]

    def add(self, seed: int, cap: int, values: dict[str, float], seconds: float) -> None:
        """Remembers values, on the disk before it returns.

        Args:
            seed: of the weights.
            cap: of the candidate.
            values: by item.
            seconds: that they took.

        Raises:
            EnvironmentProblem: they cannot be written; what was written before stays valid.
        """
        self._values[seed, cap].update(values)
        self._seconds[seed, cap] += seconds
        if self._read_only:
            return
        try:
            self._append({"seed": seed, "cap": cap, "values": values, "seconds": seconds})
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot write {self.path} ({error.strerror}): scores so far are kept, make room and run again"
            ) from error

    def _append(self, record: dict[str, Any]) -> None:
        new = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            if new:
                file.write(json.dumps({"key": self._key}) + "\n")
            elif not self._ends_cleanly:
                file.write("\n")
            self._ends_cleanly = False
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._ends_cleanly = True

    def _load(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise EnvironmentProblem(f"cannot read {self.path} ({error.strerror}): make it readable for you") from error
        self._ends_cleanly = text.endswith("\n")
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
                record = json.loads(line)
                seed, cap = record["seed"], record["cap"]
                if type(seed) is int and type(cap) is int:
                    self._values[seed, cap].update(_scores(record["values"]))
                    self._seconds[seed, cap] += _scores(record).get("seconds", 0.0)


def _scores(values: dict[str, Any]) -> dict[str, float]:
    """What can have been written: numbers, also those of a network without a finite score; a bool is none."""
    return {item: value for item, value in values.items() if type(value) in (int, float)}
