"""What each arm of widths.py and cells.py is worth beside its control: paired differences of the hold-out Dice.

    python examples/benchmarks/against.py examples/evidence/widths/107_2d.csv examples/evidence/cells/107_2d.csv

Each training is compared with those of the control that have the same data set, width and seed, case by case; `random`
is the mean of all random cells, case by case. The interval holds 95 % of resamplings of the seeds and of the cases;
with one seed it is that of the cases alone, and what another training would give is not in it.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_nas.cli.common import format_table

# Each arm's controls: what costs as much or is the same without it.
CONTROLS = {
    "distill": ("plain",),
    "further": ("plain",),
    "doubled": ("plain",),
    "searched": ("plain", "random", "conv", "attention", "warm", "warm_slow", "wider"),
    "replaced": ("plain", "searched", "warm"),
    "random": ("plain", "warm"),
    "conv": ("plain", "warm"),
    "attention": ("plain",),
    "warm": ("plain",),
    "warm_slow": ("plain",),
    "warm_all": ("plain",),
}


def interval(differences: np.ndarray, resamples: int = 5000) -> tuple[float, float]:
    """95 % of the means.

    Args:
        differences: (seeds, cases).
        resamples: of both.
    """
    rng = np.random.default_rng(0)
    seeds, cases = differences.shape
    means = [
        np.nanmean(differences[rng.integers(seeds, size=seeds)][:, rng.integers(cases, size=cases)])
        for _ in range(resamples)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def rows_of(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Of all tables."""
    found = []
    for path in paths:
        with path.open(newline="") as file:
            found += list(csv.DictReader(file))
    return found


def arm_of(row: dict[str, str]) -> str:
    """Name of an arm; what another teacher taught is another one."""
    return f"{row['arm']} {row['detail']}" if row["arm"] == "distill" else row["arm"]


def width_of(row: dict[str, str]) -> int:
    """Of the backbone that a training belongs to, whatever its own is."""
    return int(row["detail"].removeprefix("on ") if row["detail"].startswith("on ") else row["width"])


def cases_of(rows: Sequence[dict[str, str]]) -> dict[tuple[str, int, str, int], np.ndarray]:
    """Dice of the hold-out's cases by data set, width, arm and seed; that of `random` is the mean of its cells."""
    found, random = {}, defaultdict(list)
    for row in rows:
        dataset, width, arm, seed = row["dataset"], width_of(row), arm_of(row), int(row["seed"])
        found[dataset, width, arm, seed] = np.array(row["hold_out_cases"].split(), float)
        if arm.removeprefix("random").isdigit():
            random[dataset, width, "random", seed].append(found[dataset, width, arm, seed])
    return found | {key: np.mean(cells, 0) for key, cells in random.items()}


def table(rows: Sequence[dict[str, str]]) -> list[list[str]]:
    """A line per data set, width, arm and control."""
    cases = cases_of(rows)
    lines = []
    for dataset, width, arm in dict.fromkeys(key[:3] for key in cases):
        for control in CONTROLS.get(arm.partition(" ")[0], ()):
            seeds = [
                key[3]
                for key in cases
                if key[:3] == (dataset, width, arm) and (dataset, width, control, key[3]) in cases
            ]
            if not seeds:
                continue
            both = [np.stack([cases[dataset, width, name, seed] for seed in sorted(seeds)]) for name in (arm, control)]
            low, high = interval(both[0] - both[1])
            means = [f"{np.nanmean(part):.4f}" for part in both]
            effect = f"{np.nanmean(both[0] - both[1]):+.4f} [{low:+.4f}, {high:+.4f}]"
            lines.append([dataset[7:10], str(width), arm, control, str(len(seeds)), *means, effect])
    return lines


def main() -> None:
    """Parses the call and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path, help="of widths.py and cells.py")
    header = ["data", "width", "arm", "control", "seeds", "Dice", "control's", "difference"]
    print(format_table(header, table(rows_of(parser.parse_args().tables))))


if __name__ == "__main__":
    main()
