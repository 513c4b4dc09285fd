"""How stable the selected width is over random seeds, and what decides it.

Scores a configuration with many seeds (cached beside the plans, so that a second call is instant; no configuration is
added) and prints:

- which width each seed alone would select, and how often the mean curve's choice survives a bootstrap over seeds;
- the standard deviation over seeds of log S at each width, observed and fitted, and what the spread rule selects;
- where the variance of log S comes from: seed, image, or their interaction;
- which widths the paper's rule selects on curves without any signal: a constant mean plus the observed spread.

    nnUNet_preprocessed=... python examples/benchmarks/xtiny_stability.py -d 107 -c 2d -n 8 -seeds 16
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
import torch

from nnunet_nas.cli.common import format_table, quiet_output
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.xtiny.job import TinyJob
from nnunet_nas.xtiny.request import TinySettings
from nnunet_nas.xtiny.selection import (
    fitted_spread,
    log_spread,
    noise_shares,
    resampled_shares,
    select,
    select_by_spread,
    wins,
)


def main() -> None:
    """Parses the call, scores and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="preprocessed data set: number or name")
    parser.add_argument("-c", default="2d", help="configuration (default: %(default)s)")
    images = parser.add_mutually_exclusive_group()
    images.add_argument("-n", type=int, default=8, help="images (default: %(default)s)")
    images.add_argument("-cases", nargs="+", default=(), help="exactly these training cases")
    parser.add_argument("-seeds", type=int, default=10, help="how many seeds: 369, 0, 1, ... (default: %(default)s)")
    parser.add_argument("-device", default="cpu", help="default: %(default)s")
    args = parser.parse_args()
    settings = TinySettings(
        configuration=args.c,
        images=args.n,
        cases=tuple(args.cases),
        seeds=(369, *range(args.seeds - 1)),
    )
    with quiet_output():
        job = TinyJob(find_preprocessed_dataset(args.d), settings, torch.device(args.device))
        with job.alone():
            values = image_values(job)
    print(f"{job.dataset.name} {args.c}: {values.shape[2]} images, {values.shape[0]} seeds")
    report(
        values, [candidate.cap for candidate in job.candidates], [candidate.features for candidate in job.candidates]
    )


def image_values(job: TinyJob) -> np.ndarray:
    """Sensitivity of every image, (seeds, candidates, images)."""
    scorer = job.scorer
    scorer.curves(job.candidates, job.settings.seeds)
    return np.array(
        [
            [list(scorer.store.known(seed, candidate.cap).values()) for candidate in job.candidates]
            for seed in job.settings.seeds
        ]
    )


def report(values: np.ndarray, caps: list[int], features: list[list[int]]) -> None:
    """Prints the study of one data set."""
    curves = values.mean(axis=2)
    mean = select(curves.mean(axis=0)).position
    shares = resampled_shares(curves)
    print(f"each seed alone selects: {named(wins(curves), caps)}")
    print(f"the mean curve selects {caps[mean]}, in {shares[mean]:.0%} of resamplings: {named(shares, caps, '{:.0%}')}")
    observed = log_spread(curves)
    fitted = fitted_spread(observed, features, len(curves))
    by_seed, by_image, together = variance_shares(np.log(values))
    rows = [
        [str(cap), f"{o:.2f}", f"{f:.2f}", f"x{np.exp(1.96 * f):.1f}", f"{s:.0%}", f"{i:.0%}", f"{t:.0%}"]
        for cap, o, f, s, i, t in zip(caps, observed, fitted, by_seed, by_image, together, strict=True)
    ]
    print(format_table(["cap", "sd of log S", "fitted", "95 % within", "by seed", "by image", "by both"], rows))
    chosen = select_by_spread(curves, features)
    resampled = named(spread_rule_shares(curves, features), caps, "{:.0%}")
    print(f"the spread rule selects {caps[chosen]}; resampled: {resampled}")
    print(f"without any signal the paper's rule selects: {named(noise_shares(fitted), caps, '{:.0%}')}\n")


def variance_shares(logarithms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of the variance of log S at each width that seed, image and their interaction explain (two-way layout)."""
    grand = logarithms.mean(axis=(0, 2), keepdims=True)
    seed = logarithms.mean(axis=2, keepdims=True) - grand
    image = logarithms.mean(axis=0, keepdims=True) - grand
    both = logarithms - grand - seed - image
    total = (logarithms - grand).var(axis=(0, 2))
    return seed.var(axis=(0, 2)) / total, image.var(axis=(0, 2)) / total, both.var(axis=(0, 2)) / total


def spread_rule_shares(curves: np.ndarray, features: list[list[int]], resamples: int = 200) -> dict[int, float]:
    """Bootstrap over seeds of the spread rule."""
    rng = np.random.default_rng(0)
    chosen = Counter(
        select_by_spread(curves[rng.integers(len(curves), size=len(curves))], features) for _ in range(resamples)
    )
    return {position: count / resamples for position, count in sorted(chosen.items())}


def named(counts: dict[int, float], caps: list[int], form: str = "{}") -> str:
    """Counts by cap."""
    return ", ".join(f"{caps[position]}: {form.format(count)}" for position, count in counts.items())


if __name__ == "__main__":
    main()
