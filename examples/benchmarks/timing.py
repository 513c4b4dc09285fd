"""What the benchmarks share: clocks and the peak of GPU memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class Times:
    """Seconds of the repetitions of one version, on the wall and of all threads together."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, run: Callable[[], object], device: torch.device | None = None) -> None:
        """One more repetition; of what a GPU does, too."""
        synchronise(device)
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        synchronise(device)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def columns(self, name: str) -> dict[str, float]:
        """Least and median seconds, least CPU seconds."""
        return {
            f"{name}_seconds": min(self.wall),
            f"{name}_median_seconds": float(np.median(self.wall)),
            f"{name}_cpu_seconds": min(self.cpu),
        }


def alternate(
    runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device | None = None
) -> dict[str, Times]:
    """Times of several versions, in turn, so that what else the machine does falls on all of them."""
    times = {name: Times() for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].add(run, device)
    return times


def synchronise(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def gpu_peak_mib(run: Callable[[], object], device: torch.device) -> float | None:
    """MiB of GPU memory that `run` needs at most, above what is allocated before it; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
