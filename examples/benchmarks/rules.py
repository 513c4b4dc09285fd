"""Which rule picks the right width: every way of choosing, against widths that were trained (widths.py).

    cd examples/evidence/widths
    python ../../benchmarks/rules.py score -d 107 -patch 128 -batch 4 -iterations 1000 -o FOLDER -csv picks.csv
    python ../../benchmarks/rules.py report -truth 101_2d.csv 107_2d.csv -picks picks.csv

`score` runs the project's own selections on a base of 64 channels, of the patch and batch that the widths were trained
with, and writes a line per rule and seed: the paper's rule on every proxy with one seed of the weights at a time, the
spread rule on all seeds, the race. What is there is not done again.

`report` compares. The truth of a data set is the narrowest width whose mean hold-out Dice over cases and training seeds
is at most `-margin` below the widest one's; its interval is that of a bootstrap over cases and seeds. Beside the picks
of `score` it judges constants, the paper's rule on the number of parameters, and rules on learning curves
(curve_rules.py), whose tolerances are the best on the other data sets. For each: |log2(chosen / true)|, Dice lost on
the hold-out beside the widest, and the cost of choosing, in trainings of the widest network (counted in MACs).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from curve_rules import NARROWEST, Trained
from curve_rules import picks as picks_by_curves
from trainings import Problem, Rows, prepare_environment

from nnunet_nas.cli.common import format_table

WIDEST = 64
PICK_COLUMNS = ("dataset", "rule", "seed", "width", "cost", "cpu_seconds")
PICK_KEY = PICK_COLUMNS[:3]
METRICS = ("jacobian", "naswot", "swap", "az_nas", "synflow")
PLANS, CONFIGURATION = "nnUNetPlansRules", "2d_rules"
CONSTANTS = (4, 8, 16, 32)


@dataclass(frozen=True)
class Truth:
    """What trainings came to.

    Attributes:
        dataset: name.
        widths: widest first.
        dice: (widths, seeds, cases) on the hold-out; NaN where a seed was not trained.
        losses: (widths, seeds, epochs), of the training.
        validation: (widths, seeds), Dice on the fold's validation cases.
        parameters: of each width.
        macs: of each width.
        iterations: of each training.
    """

    dataset: str
    widths: tuple[int, ...]
    dice: np.ndarray
    losses: np.ndarray
    validation: np.ndarray
    parameters: tuple[float, ...]
    macs: tuple[float, ...]
    iterations: int

    @staticmethod
    def load(path: Path) -> Truth:
        """From the plain trainings of a table of widths.py."""
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["arm"] == "plain"]
        found = {(int(row["width"]), int(row["seed"])): row for row in rows}
        widths = tuple(sorted({width for width, _ in found}, reverse=True))
        seeds = sorted({seed for _, seed in found})
        one = [next(found[width, seed] for seed in seeds if (width, seed) in found) for width in widths]

        def table(column: str) -> np.ndarray:
            length = len(one[0][column].split())
            empty = " ".join(["nan"] * length)
            cells = [[found.get((width, seed), {}).get(column, empty).split() for seed in seeds] for width in widths]
            return np.array(cells, dtype=float)

        return Truth(
            dataset=one[0]["dataset"],
            widths=widths,
            dice=table("hold_out_cases"),
            losses=table("losses"),
            validation=table("validation")[..., 0],
            parameters=tuple(float(row["parameters"]) for row in one),
            macs=tuple(float(row["macs"]) for row in one),
            iterations=int(one[0]["iterations"]),
        )

    @property
    def means(self) -> np.ndarray:
        """Mean hold-out Dice of each width."""
        return np.array([np.nanmean(dice) for dice in self.dice])

    def smallest(self, margin: float, means: np.ndarray | None = None) -> int:
        """The narrowest width that is at most the margin below the widest."""
        values = self.means if means is None else means
        return self.widths[max(np.flatnonzero(values >= values[0] - margin))]

    def interval(self, margin: float, resamples: int = 2000) -> tuple[int, int]:
        """What 95 % of resamplings of cases, and of seeds within each width, call the smallest."""
        rng = np.random.default_rng(0)
        trained = [dice[~np.isnan(dice).all(axis=1)] for dice in self.dice]
        found = []
        for _ in range(resamples):
            cases = rng.integers(self.dice.shape[2], size=self.dice.shape[2])
            means = [np.nanmean(dice[rng.integers(len(dice), size=len(dice))][:, cases]) for dice in trained]
            found.append(self.smallest(margin, np.array(means)))
        low, high = np.quantile(np.log2(found), (0.025, 0.975))
        return round(2**low), round(2**high)

    def lost(self, width: int) -> float:
        """Dice lost beside the widest."""
        return float(self.means[0] - self.means[self.widths.index(width)])

    def trained(self, margin: float) -> list[Trained]:
        """One seed after the other, where all widths that rules on learning curves look at were trained."""
        places = [place for place, width in enumerate(self.widths) if width >= NARROWEST]
        return [
            Trained(
                dataset=self.dataset,
                losses={self.widths[place]: self.losses[place, seed] for place in places},
                validation={self.widths[place]: float(self.validation[place, seed]) for place in places},
                cost={self.widths[place]: self.macs[place] / self.macs[0] for place in places},
                true=self.smallest(margin),
            )
            for seed in range(self.losses.shape[1])
            if not np.isnan(self.validation[places, seed]).any()
        ]


def prepare_plans(dataset: str, patch: int | None, batch: int | None) -> Path:
    """Plans of their own with a base of 64 channels; the preprocessed data are the data set's."""
    from nnunet_nas.environment import find_preprocessed_dataset
    from nnunet_nas.xtiny.widths import capped_features

    problem = Problem.load(dataset, "2d", batch=batch, patch=patch)
    folder, plans = find_preprocessed_dataset(dataset), problem.plans
    entry = json.loads(json.dumps(plans["configurations"]["2d"]))
    kwargs = entry["architecture"]["arch_kwargs"]
    kwargs["features_per_stage"] = capped_features(kwargs["features_per_stage"], WIDEST)
    plans["configurations"] = {CONFIGURATION: entry}
    plans["plans_name"] = PLANS
    (folder / f"{PLANS}.json").write_text(json.dumps(plans, indent=4))
    return folder


def score(args: argparse.Namespace) -> None:
    """Every selection of the project on one data set."""
    folder = prepare_plans(args.d, args.patch, args.batch)
    picks = Rows(args.csv, PICK_COLUMNS, PICK_KEY)

    def missing(rule: str, seed: int) -> bool:
        return picks.find({"dataset": folder.name, "rule": rule, "seed": seed}) is None

    for metric in METRICS:
        if missing(f"paper, {metric}", args.seeds[-1]):
            _score_metric(folder, metric, args, picks)
    for seed in args.race_seeds:
        if missing(f"race {args.race_share:g}", seed):
            _score_race(folder, seed, args, picks)


def _score_metric(folder: Path, metric: str, args: argparse.Namespace, picks: Rows) -> None:
    import torch

    from nnunet_nas.errors import DataProblem
    from nnunet_nas.xtiny import selection
    from nnunet_nas.xtiny.job import TinyJob
    from nnunet_nas.xtiny.request import TinySettings

    settings = TinySettings(
        CONFIGURATION, PLANS, images=args.images, seeds=tuple(args.seeds), metric=metric, dry_run=True
    )
    started = time.process_time()
    report = TinyJob(folder, settings, torch.device("cpu")).run()
    spent = time.process_time() - started
    # Forward and backward passes of all widths, as a training iteration of the widest has them for its batch.
    macs = sum(cost.macs for cost in report.complexity) / report.complexity[0].macs
    batch = json.loads((folder / f"{PLANS}.json").read_text())["configurations"][CONFIGURATION]["batch_size"]
    cost, caps = macs * args.images / batch, report.caps
    for seed, curve in zip(args.seeds, report.curves, strict=True):
        try:
            width = str(caps[selection.select(curve).position])
        except DataProblem:
            width = ""  # a curve that is flat or not finite
        row = {"dataset": folder.name, "rule": f"paper, {metric}", "seed": seed, "width": width, "cost": round(cost, 1)}
        picks.add({**row, "cpu_seconds": round(spent / len(args.seeds), 1)})
    if metric == "jacobian":
        features = [candidate.features for candidate in report.candidates]
        width = caps[selection.select_by_spread(report.curves, features)]
        row = {"dataset": folder.name, "rule": "spread", "seed": "all", "width": width}
        picks.add({**row, "cost": round(cost * len(args.seeds), 1), "cpu_seconds": round(spent, 1)})


def _score_race(folder: Path, seed: int, args: argparse.Namespace, picks: Rows) -> None:
    import torch

    from nnunet_nas.xtiny.race_job import RaceJob
    from nnunet_nas.xtiny.request import RACE, TinySettings

    budget = round(args.race_share * args.iterations)
    settings = TinySettings(
        CONFIGURATION, PLANS, seeds=(seed,), rule=RACE, margin=args.margin, horizon=args.iterations, race_budget=budget
    )
    started = time.process_time()
    job = RaceJob(folder, settings, torch.device("cpu"))
    with job.alone():
        report = job.run()
    spent = time.process_time() - started
    cost = sum(job.relative_costs[position] * curve.length for position, curve in report.curves.items())
    row = {"dataset": folder.name, "rule": f"race {args.race_share:g}", "seed": seed, "cost": round(cost, 1)}
    picks.add({**row, "width": report.candidates[report.position].cap, "cpu_seconds": round(spent, 1)})


@dataclass(frozen=True)
class Pick:
    """What a rule chose on one data set with one seed, and what choosing cost in iterations of the widest."""

    rule: str
    dataset: str
    width: int
    cost: float


def all_picks(truths: Sequence[Truth], rows: Sequence[dict[str, str]], margin: float) -> list[Pick]:
    """Of every rule."""
    from nnunet_nas.xtiny.selection import select

    picks = []
    for truth in truths:
        picks += [Pick(f"constant {width}", truth.dataset, width, 0) for width in CONSTANTS]
        by_parameters = truth.widths[select(np.array(truth.parameters)).position]
        picks.append(Pick("paper, parameters", truth.dataset, by_parameters, 0))
        others = [trained for other in truths if other is not truth for trained in other.trained(margin)]
        for trained in truth.trained(margin):
            picks += [
                Pick(rule, truth.dataset, width, cost * truth.iterations)
                for rule, width, cost in picks_by_curves(trained, others, margin)
            ]
        known = {truth.dataset: truth}
        picks += [
            Pick(row["rule"], row["dataset"], int(row["width"] or truth.widths[0]), float(row["cost"]))
            for row in rows
            if row["dataset"] in known
        ]
    return picks


def report(args: argparse.Namespace) -> None:
    """The truth and the rules, each in a table."""
    truths = [Truth.load(path) for path in args.truth]
    for truth in truths:
        low, high = truth.interval(args.margin)
        print(f"{truth.dataset}, {truth.iterations} iterations, hold-out Dice by width:")
        trained = (~np.isnan(truth.dice).all(axis=2)).sum(axis=1)
        rows = [
            [str(width), str(count), f"{parameters:,.0f}", f"{mean:.4f}", f"{mean - truth.means[0]:+.4f}"]
            for width, count, parameters, mean in zip(truth.widths, trained, truth.parameters, truth.means, strict=True)
        ]
        print(format_table(["width", "seeds", "parameters", "Dice", "difference"], rows))
        print(f"smallest within {args.margin:g}: {truth.smallest(args.margin)} (95 %: {low} to {high})\n")
    scored = Rows(args.picks, PICK_COLUMNS, PICK_KEY).rows if args.picks else []
    picks = all_picks(truths, scored, args.margin)
    table = []
    known = {truth.dataset: truth for truth in truths}
    for rule in dict.fromkeys(pick.rule for pick in picks):
        own = [pick for pick in picks if pick.rule == rule]

        # Each data set counts alike, however many seeds a rule had there.
        def mean(values: dict[str, list[float]]) -> float:
            return float(np.mean([np.mean(part) for part in values.values()]))

        errors: dict[str, list[float]] = {}
        losts: dict[str, list[float]] = {}
        costs: dict[str, list[float]] = {}
        for pick in own:
            truth = known[pick.dataset]
            errors.setdefault(pick.dataset, []).append(abs(np.log2(pick.width / truth.smallest(args.margin))))
            losts.setdefault(pick.dataset, []).append(truth.lost(pick.width))
            costs.setdefault(pick.dataset, []).append(pick.cost / truth.iterations)
        widths = "; ".join(
            f"{dataset[7:10]}: {' '.join(str(pick.width) for pick in own if pick.dataset == dataset)}"
            for dataset in known
        )
        table.append(
            (
                mean(errors),
                mean(losts),
                [rule, f"{mean(errors):.2f}", f"{mean(losts):+.4f}", f"{mean(costs):.3f}", widths],
            )
        )
    table.sort(key=lambda row: row[:2])
    print(format_table(["rule", "|log2|", "Dice lost", "cost", "chosen"], [row[2] for row in table]))


def main() -> None:
    """Parses the call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("score", "report"))
    parser.add_argument("-d", help="score: preprocessed data set, number or name")
    parser.add_argument("-batch", type=int, help="score: patches per iteration (default: as planned)")
    parser.add_argument("-patch", type=int, help="score: largest edge of a patch (default: as planned)")
    parser.add_argument("-iterations", type=int, default=1000, help="score: of the trainings (default: %(default)s)")
    parser.add_argument("-images", type=int, default=16, help="score: for proxies (default: %(default)s)")
    parser.add_argument("-seeds", nargs="+", type=int, default=list(range(10)), help="score: of the weights")
    parser.add_argument("-race_seeds", nargs="+", type=int, default=[0, 1, 2], help="score: default %(default)s")
    parser.add_argument("-race_share", type=float, default=0.25, help="score: of the base's training (%(default)s)")
    parser.add_argument("-o", type=Path, help="score: folder of the races' trainings")
    parser.add_argument("-csv", type=Path, help="score: table of the picks")
    parser.add_argument("-truth", nargs="+", type=Path, help="report: tables of widths.py")
    parser.add_argument("-picks", type=Path, help="report: table of the picks")
    parser.add_argument("-margin", type=float, default=0.01, help="Dice (default: %(default)s)")
    args = parser.parse_args()
    if args.what == "report":
        report(args)
        return
    prepare_environment(args.o)
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr):
        score(args)


if __name__ == "__main__":
    main()
