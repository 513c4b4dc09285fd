"""What it saves to give each width the seeds and images that its variance is worth, beside one seed and all images.

    nnUNet_preprocessed=... python examples/benchmarks/xtiny_allocation.py -d 101 -c 2d -n 64

A pilot of a few seeds and images estimates the parts of the variance of log S at each width and times them; its own
cost is printed, too. Then both ways are carried out and timed in turns: today's, 64 images under one seed for every
width, and the allocation that reaches the same mean variance. Other seeds repeat both ways, to see whether the variance
is what was foretold. Nothing is stored.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from nnunet_nas.architecture import build_network
from nnunet_nas.cli.common import format_table, quiet_output
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.xtiny.allocation import Components, allocate
from nnunet_nas.xtiny.job import TinyJob
from nnunet_nas.xtiny.request import TinySettings
from nnunet_nas.xtiny.scoring import Candidate
from nnunet_nas.xtiny.sensitivity import default_batch_size, prepare, score_images


class Timed:
    """Scores widths and remembers the CPU seconds."""

    def __init__(self, job: TinyJob) -> None:
        self._job = job

    def score(self, candidate: Candidate, seed: int, cases: list[str]) -> tuple[list[float], float, float]:
        """Log S of each case, seconds for the network, seconds for the images."""
        started = time.process_time()
        network = prepare(build_network(candidate.spec, seed=seed), torch.device("cpu"))
        built = time.process_time()
        size = default_batch_size(candidate.features[0], int(np.prod(candidate.spec.patch_size)), torch.device("cpu"))
        found: dict[str, float] = {}
        for values in score_images(
            network, self._job.source.batch, cases, device=torch.device("cpu"), batch_size=size, side_by_side=False
        ):
            found |= values
        done = time.process_time()
        return [float(np.log(found[case])) for case in cases], built - started, done - built


def curve(timed: Timed, job: TinyJob, seeds: np.ndarray, images: np.ndarray, start: int) -> tuple[np.ndarray, float]:
    """Mean log S of each width, fresh images for every seed, and the CPU seconds."""
    rng, cases = np.random.default_rng(start), job.source.cases
    means, seconds = [], 0.0
    for position, candidate in enumerate(job.candidates):
        values = []
        for number in range(seeds[position]):
            drawn = [cases[index] for index in rng.choice(len(cases), images[position], replace=False)]
            logarithms, built, scored = timed.score(candidate, start + number, drawn)
            values.append(np.mean(logarithms))
            seconds += built + scored
        means.append(np.mean(values))
    return np.array(means), seconds


def pilot(timed: Timed, job: TinyJob, seeds: int, images: int) -> tuple[Components, float]:
    """The parts of the variance, and the CPU seconds that they took."""
    cases = job.source.cases[:images]
    scored = [[timed.score(candidate, 9000 + seed, cases) for candidate in job.candidates] for seed in range(seeds)]
    logarithms = np.array([[values for values, _, _ in row] for row in scored])
    network, image = (np.median([[cell[index] for cell in row] for row in scored], axis=0) for index in (1, 2))
    total = sum(cell[1] + cell[2] for row in scored for cell in row)
    return Components.of_pilot(logarithms, network, image / images), total


def main() -> None:
    """Parses the call, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="preprocessed data set: number or name")
    parser.add_argument("-c", default="2d", help="configuration (default: %(default)s)")
    parser.add_argument("-n", type=int, default=64, help="images of today's way (default: %(default)s)")
    parser.add_argument("-pilot", type=int, nargs=2, default=(6, 4), metavar=("SEEDS", "IMAGES"), help="default: 6 4")
    parser.add_argument("-repeats", type=int, default=6, help="of both ways, with other seeds (default: %(default)s)")
    args = parser.parse_args()
    settings = TinySettings(configuration=args.c, images=args.n, dry_run=True)
    with quiet_output():
        job = TinyJob(find_preprocessed_dataset(args.d), settings, torch.device("cpu"))
        job.source.batch(job.source.cases)
    timed, widths = Timed(job), len(job.candidates)
    timed.score(job.candidates[-1], 0, job.source.cases[:2])  # what is cold is not timed
    known, spent = pilot(timed, job, *args.pilot)
    today = np.ones(widths, dtype=int), np.full(widths, args.n)
    target = float(known.variance(*today).mean())
    ours = allocate(known, target, most_images=args.n)
    rows = [
        [str(candidate.cap), f"{between:.3f}", f"{within:.3f}", str(seeds), str(images)]
        for candidate, between, within, seeds, images in zip(
            job.candidates, known.between, known.within, *ours, strict=True
        )
    ]
    print(format_table(["cap", "between seeds", "within", "seeds", "images"], rows))
    results: dict[str, list[tuple[np.ndarray, float]]] = {"today": [], "allocated": []}
    for repeat in range(args.repeats):
        for name, numbers in (("today", today), ("allocated", ours)):
            results[name].append(curve(timed, job, *numbers, start=1000 * repeat))
    print(f"pilot: {spent:.1f} CPU s; mean variance of log S foretold for both: {target:.3f}")
    for name, found in results.items():
        variance = np.array([means for means, _ in found]).var(axis=0, ddof=1).mean()
        seconds = np.median([seconds for _, seconds in found])
        print(f"{name}: {seconds:.2f} CPU s, mean variance over {args.repeats} repetitions {variance:.3f}")


if __name__ == "__main__":
    main()
