"""What it saves to draw each width as often as it varies, on few images, beside one draw of all and 64 images.

    nnUNet_preprocessed=... python examples/benchmarks/xtiny_allocation.py -d 101 -c 2d -repeats 20

Both ways of `select_tiny -rule paper`, `-n 64 -seed S` and what it does without `-n` and `-seed`, are carried out in
turns, each time with other seeds and images loaded anew. Printed: CPU seconds; for each width the number of draws, the
standard deviation of its log S over the repetitions, and of the same less the mean over the widths, which is all that a
rule sees; how often each width was picked. Then what the law foretells beside what the repetitions showed: variance
over draws, and the share of it that one image adds. Nothing is stored.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nnunet_nas.cli.common import format_table, quiet_output
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.xtiny.allocation import Components
from nnunet_nas.xtiny.job import TinyJob
from nnunet_nas.xtiny.proxies import PROXIES
from nnunet_nas.xtiny.request import TinySettings
from nnunet_nas.xtiny.scoring import Scorer
from nnunet_nas.xtiny.selection import select
from nnunet_nas.xtiny.store import ScoreStore


class Way:
    """One way of scoring, repeated.

    Attributes:
        name: of the way.
        job: which images and how many draws.
        curves: mean curve of each repetition.
        seconds: of CPU time, likewise.
        logarithms: log S of each repetition's first seed, (repetitions, widths, images).
    """

    def __init__(self, name: str, dataset: Path, settings: TinySettings) -> None:
        self.name = name
        self._dataset, self._settings = dataset, settings
        with quiet_output():
            self.job = TinyJob(dataset, settings, torch.device("cpu"))
        self.curves: list[np.ndarray] = []
        self.seconds: list[float] = []
        self.logarithms: list[list[list[float]]] = []

    def repeat(self, first_seed: int) -> None:
        """Once more, with seeds from `first_seed` on; images are read again."""
        with quiet_output(), tempfile.TemporaryDirectory() as folder:
            source = TinyJob(self._dataset, self._settings, torch.device("cpu")).source
            store = ScoreStore(Path(folder), {}, read_only=True)
            scorer = Scorer(PROXIES["jacobian"], source, store, torch.device("cpu"))
            seeds = range(first_seed, first_seed + max(self.job.draws))
            started = time.process_time()
            curves = scorer.curves(self.job.candidates, seeds, draws=self.job.draws)
            self.seconds.append(time.process_time() - started)
        self.curves.append(np.nanmean(curves, axis=0))
        known = [store.known(first_seed, candidate.cap) for candidate in self.job.candidates]
        self.logarithms.append([[float(np.log(values[case])) for case in source.cases] for values in known])

    def deviations(self) -> tuple[np.ndarray, np.ndarray]:
        """Of log S over the repetitions, and of log S less its mean over the widths."""
        logarithms = np.log(self.curves)
        shape = logarithms - logarithms.mean(axis=1, keepdims=True)
        return logarithms.std(axis=0, ddof=1), shape.std(axis=0, ddof=1)

    def summary(self) -> str:
        """Seconds, mean variance, picks."""
        whole, shape = ((deviation**2).mean() for deviation in self.deviations())
        caps = [candidate.cap for candidate in self.job.candidates]
        picks = Counter(caps[select(curve).position] for curve in self.curves)
        picked = ", ".join(f"{cap}: {count}" for cap, count in sorted(picks.items(), reverse=True))
        return (
            f"{self.name}: {len(self.job.cases)} images, median {np.median(self.seconds):.2f} CPU s; "
            f"mean variance of log S {whole:.3f}, of its shape {shape:.3f}; picks {picked}"
        )


def components(logarithms: np.ndarray) -> Components:
    """By an analysis of variance in two ways; what an image does to all draws alike is left out, costs are not known.

    Args:
        logarithms: log S, (seeds, widths, images), two seeds and two images or more.
    """
    seeds, widths, images = logarithms.shape
    draws = logarithms.mean(axis=2, keepdims=True)
    rest = logarithms - draws - logarithms.mean(axis=0) + draws.mean(axis=0)
    interaction = (rest**2).sum(axis=(0, 2)) / ((seeds - 1) * (images - 1))
    between = draws[..., 0].var(axis=0, ddof=1) - interaction / images
    return Components(np.maximum(between, 0), interaction, np.full(widths, np.nan), np.full(widths, np.nan))


def main() -> None:
    """Parses the call, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="preprocessed data set: number or name")
    parser.add_argument("-p", default="nnUNetPlans", help="plans (default: %(default)s)")
    parser.add_argument("-c", default="2d", help="configuration (default: %(default)s)")
    parser.add_argument("-n", type=int, default=64, help="images of the paper's way (default: %(default)s)")
    parser.add_argument("-repeats", type=int, default=10, help="of both ways, with other seeds (default: %(default)s)")
    args = parser.parse_args()
    dataset = find_preprocessed_dataset(args.d)
    few = TinySettings(configuration=args.c, plans=args.p, dry_run=True)
    ways = [Way("paper's", dataset, replace(few, images=args.n)), Way("few images", dataset, few)]
    for way in ways:
        way.job.scorer.curves(way.job.candidates[-1:], [0])  # what is cold is not timed
    for repeat in range(args.repeats):
        for way in ways:
            way.repeat(1000 * (repeat + 1))
            print(f"{way.name}: {way.seconds[-1]:.2f} CPU s", file=sys.stderr, flush=True)
    report(ways)


def report(ways: list[Way]) -> None:
    """Prints the tables."""
    paper, few = ways
    candidates = few.job.candidates
    columns = [column for way in ways for column in (np.array(way.job.draws), *way.deviations())]
    rows = [
        [str(candidate.cap), *(f"{value:.3f}" if value.dtype.kind == "f" else str(value) for value in values)]
        for candidate, *values in zip(candidates, *columns, strict=True)
    ]
    names = [f"{what}, {way.name}" for way in ways for what in ("draws", "sd", "sd of shape")]
    print(format_table(["cap", *names], rows))
    law = Components.of_law([candidate.features for candidate in candidates], few.job.complexity)
    shown = components(np.array(paper.logarithms))
    parts = (law.between, shown.between, law.interaction / law.between, shown.interaction / shown.between)
    lines = [
        [str(candidate.cap), *(f"{value:.3f}" for value in values)]
        for candidate, *values in zip(candidates, *parts, strict=True)
    ]
    print(format_table(["cap", "variance: law", "shown", "share of an image: law", "shown"], lines))
    for way in ways:
        print(way.summary())
    print(f"ratio of CPU seconds: {np.median(paper.seconds) / np.median(few.seconds):.1f}")


if __name__ == "__main__":
    main()
