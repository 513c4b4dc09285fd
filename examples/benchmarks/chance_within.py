"""What searches within nnU-Net's own memory find, beside random topologies of that budget and nnU-Net's own network.

    python examples/benchmarks/chance_within.py -trainings trainings.csv -searches searches.csv -d 107 -iterations 2400

Takes the tables of chance.py. Searches from one start of alpha may find the same topology, which `chance.py compare`
counts as often as it was found: here it counts once, as the mean of its trainings. `matched` are random topologies of
the edges, skips and memory of what was found, `within` those that need no more memory than nnU-Net's own network. The
intervals hold 95 % of resamplings of topologies; what all share of one training of nnU-Net's own is not in them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from chance import RESAMPLES, WITHIN, rows_of, unmatched_difference

from nnunet_nas.cli.common import format_table

Trainings = dict[str, dict[str, float]]
OWN = "nnU-Net"


def trainings_of(rows: list[dict[str, str]], arm: str) -> Trainings:
    """Dice of an arm's trainings, by network and seed."""
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["arm"] == arm:
            found[row["network"]][row["seed"]] = float(row["dice"])
    return dict(found)


def less(trainings: Trainings, controls: Trainings) -> dict[str, float]:
    """Each network less its control, mean over the seeds of training that both have, by network."""
    found = {}
    for network, own in trainings.items():
        paired = [own[seed] - controls[network][seed] for seed in own if seed in controls.get(network, {})]
        if paired:
            found[network] = float(np.mean(paired))
    return found


def once(values: dict[str, float], topologies: dict[str, str]) -> list[float]:
    """A value for each topology, mean over the searches that found it; networks of no search stand for themselves."""
    grouped = defaultdict(list)
    for network, value in values.items():
        grouped[topologies.get(network, network)].append(value)
    return [float(np.mean(group)) for group in grouped.values()]


def with_interval(values: Iterable[float]) -> str:
    """Mean and 95 % of its resamplings; nothing of nothing."""
    values = np.array(list(values))
    if not values.size:
        return ""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{values.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def means_once(trainings: Trainings, topologies: dict[str, str]) -> list[float]:
    """Dice of each topology."""
    return once({network: float(np.mean(list(own.values()))) for network, own in trainings.items()}, topologies)


def line(rows: list[dict[str, str]], arm: str, topologies: dict[str, str], compared_with: str | None) -> list[str]:
    """Of the table: an arm, what it is worth, and beside what."""
    own = trainings_of(rows, arm)
    dice, beside = means_once(own, topologies), trainings_of(rows, OWN)
    matched = {name.partition(".")[0]: seeds for name, seeds in trainings_of(rows, f"random as {arm}").items()}
    reference = [] if compared_with is None else means_once(trainings_of(rows, compared_with), {})
    return [
        arm,
        str(len(own)),
        str(len(dice)),
        f"{np.mean(dice):.4f}",
        f"{np.std(dice, ddof=1):.4f}" if len(dice) > 1 else "",
        unmatched_difference(dice, reference) if reference else "",
        with_interval(once(less(own, matched), topologies)),
        with_interval(once(less(own, dict.fromkeys(own, beside["0"])), topologies)) if arm != OWN and beside else "",
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-trainings", type=Path, required=True, help="table of chance.py train")
    parser.add_argument("-searches", type=Path, required=True, help="table of chance.py search")
    parser.add_argument("-d", dest="dataset", required=True)
    parser.add_argument("-iterations", required=True)
    parser.add_argument("-arms", nargs="+", default=["evidence_own", "uniform_own"])
    args = parser.parse_args()
    rows = [
        row for row in rows_of(args.trainings) if (row["dataset"], row["iterations"]) == (args.dataset, args.iterations)
    ]
    found = {
        arm: {row["seed"]: row["topology"] for row in rows_of(args.searches) if _is(row, args.dataset, arm)}
        for arm in args.arms
    }
    table = [line(rows, OWN, {}, None)]
    table += [line(rows, arm, topologies, WITHIN) for arm, topologies in found.items()]
    table += [line(rows, WITHIN, {}, None), line(rows, f"random as {args.arms[0]}", {}, None)]
    names = ["arm", "networks", "topologies", "Dice", "sd", "less random within", "less random matched"]
    print(format_table([*names, "less nnU-Net's own"], table))
    dice = {arm: means_once(trainings_of(rows, arm), topologies) for arm, topologies in found.items()}
    dice |= {name: means_once(trainings_of(rows, name), {}) for name in (WITHIN, f"random as {args.arms[0]}")}
    for first, second in ((args.arms[-1], args.arms[0]), (WITHIN, f"random as {args.arms[0]}")):
        print(f"{first} less {second}: {unmatched_difference(dice[first], dice[second])}")


def _is(row: dict[str, str], dataset: str, arm: str) -> bool:
    return (row["dataset"], row["arm"]) == (dataset, arm)


if __name__ == "__main__":
    main()
