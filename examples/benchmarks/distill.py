"""Whether a narrow network learns more from a trained wide one than from the labels alone.

    export nnUNet_preprocessed=...   # planned and preprocessed; nothing is written there but nnU-Net's own splits
    python examples/benchmarks/distill.py -d 107 101 -widths 4 8 16 -seeds 0 1 2 -o FOLDER

For each data set the base is trained once, as nnU-Net trains it, and teaches on the fold that it was trained on. For
each width and seed three trainings follow, which begin with the same weights and see the same patches:

- plain: labels alone, by the same trainer with a weight of 0;
- distill: labels and teacher, as many iterations;
- further: labels alone, as many iterations as the distillation's CPU time would have paid for.

Each is judged by nnU-Net's own validation on the fold's cases, which neither teacher nor student has seen. In
FOLDER/runs.csv stands a row per training; what is there is not done again, a training that was cut off is repeated. In
the end a table: mean foreground Dice, and the paired differences over the seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import sys
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_nas.cli.common import format_table
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.xtiny.widths import candidate_name, capped_features

ARMS = ("plain", "distill", "further")
COLUMNS = (
    *("dataset", "configuration", "width", "seed", "arm", "iterations", "batch", "patch", "temperature", "weight"),
    *("teacher_iterations", "dice", "teacher_dice", "cpu_seconds", "seconds"),
)
KEY = COLUMNS[: COLUMNS.index("dice")]
EPOCHS = 10


@dataclass(frozen=True)
class Length:
    """How long a training is, in iterations, and how many of them are an epoch of nnU-Net's."""

    iterations: int

    @property
    def per_epoch(self) -> int:
        """At least one."""
        return max(1, self.iterations // EPOCHS)

    @property
    def epochs(self) -> int:
        """As many as come nearest."""
        return max(1, round(self.iterations / self.per_epoch))


@dataclass(frozen=True)
class Course:
    """One data set and configuration, cut to the benchmark's size.

    Attributes:
        plans: content; the base's batch and patch are those of the benchmark.
        dataset_json: content.
        configuration: of the base.
    """

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str

    @staticmethod
    def load(dataset: str, configuration: str, *, batch: int | None, patch: int | None) -> Course:
        """Reads plans and description."""
        folder = find_preprocessed_dataset(dataset)
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        entry = plans["configurations"][configuration]
        entry["batch_size"] = batch or entry["batch_size"]
        entry["patch_size"] = [min(size, patch or size) for size in entry["patch_size"]]
        return Course(plans, json.loads((folder / "dataset.json").read_text()), configuration)

    @property
    def sizes(self) -> dict[str, Any]:
        """Batch and patch, as they stand in a row."""
        entry = self.plans["configurations"][self.configuration]
        return {"batch": entry["batch_size"], "patch": "x".join(map(str, entry["patch_size"]))}

    def with_student(self, width: int) -> tuple[dict[str, Any], str]:
        """Plans with a narrow configuration, and its name."""
        plans, name = deepcopy(self.plans), candidate_name(self.configuration, width)
        architecture = deepcopy(plans["configurations"][self.configuration]["architecture"])
        features = architecture["arch_kwargs"]["features_per_stage"]
        architecture["arch_kwargs"]["features_per_stage"] = capped_features(features, width)
        plans["configurations"][name] = {"inherits_from": self.configuration, "architecture": architecture}
        return plans, name

    def train_teacher(self, run: str, length: Length, device: str) -> tuple[Path, dict[str, float]]:
        """nnU-Net's own training of the base; its checkpoint and what it reached. One that is finished is taken."""
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        from nnunet_nas.randomness import seed_everything

        seed_everything(0)
        trainer = self._made(nnUNetTrainer, self.plans, self.configuration, run, device)
        trainer.num_epochs, trainer.num_iterations_per_epoch = length.epochs, length.per_epoch
        trainer.num_val_iterations_per_epoch = 1
        path = Path(trainer.output_folder) / "checkpoint_final.pth"
        if not (path.parent / "validation" / "summary.json").exists():
            _train(trainer)
        return path, {"dice": _dice(path.parent)}

    def train_student(self, run: str, width: int, settings: dict[str, Any], device: str) -> dict[str, float]:
        """One training of a narrow network; Dice, CPU seconds and seconds."""
        from nnunet_nas.distill.trainer import nnUNetTrainerDistill

        plans, name = self.with_student(width)
        plans["configurations"][name]["nas_settings"] = {"distill": settings}
        return _train(self._made(nnUNetTrainerDistill, plans, name, run, device))

    def _made(self, cls: type[Any], plans: dict[str, Any], name: str, run: str, device: str) -> Any:
        """A trainer as `nnUNetv2_train` makes it; the plans' name keeps the results of each run apart."""
        import torch

        content = {**deepcopy(plans), "plans_name": run, "continue_training": False}
        return cls(content, name, 0, self.dataset_json, torch.device(device))


def _train(trainer: Any) -> dict[str, float]:
    started, cpu = time.time(), time.process_time()
    trainer.run_training()
    spent = {"cpu_seconds": round(time.process_time() - cpu, 1), "seconds": round(time.time() - started, 1)}
    trainer.perform_actual_validation()
    return {"dice": _dice(Path(trainer.output_folder)), **spent}


def _dice(fold: Path) -> float:
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    return round(float(summary["foreground_mean"]["Dice"]), 5)


class Rows:
    """The table on the disk: one line per training, appended when it is through."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if all(row.get(name) for name in COLUMNS)]

    def find(self, key: dict[str, Any]) -> dict[str, str] | None:
        """The row of a training that was done."""
        wanted = {name: str(value) for name, value in key.items()}
        return next((row for row in self.rows if all(row[name] == wanted[name] for name in wanted)), None)

    def add(self, row: dict[str, Any]) -> dict[str, str]:
        """Writes it, on the disk before it returns."""
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())
        self.rows.append({name: str(row[name]) for name in COLUMNS})
        return self.rows[-1]


def run_dataset(args: argparse.Namespace, dataset: str, rows: Rows) -> None:
    """The teacher, then all trainings of one data set."""
    course = Course.load(dataset, args.c, batch=args.batch, patch=args.patch)
    sizes = "_".join(str(value) for value in course.sizes.values())
    teacher, taught = course.train_teacher(
        f"teacher_{args.teacher_iterations}_{sizes}", Length(args.teacher_iterations), args.device
    )
    fixed = {"dataset": course.plans["dataset_name"], "configuration": args.c, **course.sizes}
    fixed |= {"teacher_iterations": args.teacher_iterations, "temperature": args.temperature}
    for width in args.widths:
        for seed in args.seeds:
            done: dict[str, dict[str, str]] = {}
            for arm in ARMS:
                length, weight = Length(args.iterations), args.weight if arm == "distill" else 0.0
                if arm == "further":
                    ratio = float(done["distill"]["cpu_seconds"]) / float(done["plain"]["cpu_seconds"])
                    length = Length(round(args.iterations * max(1.0, ratio)))
                run = {"width": width, "seed": seed, "arm": arm, "weight": weight}
                key = {**fixed, **run, "iterations": args.iterations}
                found = rows.find(key)
                if found is None:
                    settings = {
                        "num_epochs": length.epochs,
                        "num_iterations_per_epoch": length.per_epoch,
                        "num_val_iterations_per_epoch": 1,
                        "seed": seed,
                        "weight": weight,
                        "temperature": args.temperature,
                        "teacher_checkpoint": str(teacher),
                    }
                    name = f"{arm}_{args.iterations}_{seed}_{args.temperature:g}_{weight:g}_{sizes}"
                    measured = course.train_student(name, width, settings, args.device)
                    found = rows.add({**key, "teacher_dice": taught["dice"], **measured})
                done[arm] = found


def report(rows: list[dict[str, str]]) -> str:
    """Means over the seeds, and the differences of distillation from both controls with their standard error."""
    table = []
    for group in sorted({tuple(row[name] for name in ("dataset", "width", "iterations")) for row in rows}):
        dataset, width, iterations = group
        dice = {
            arm: {
                row["seed"]: float(row["dice"])
                for row in rows
                if (row["dataset"], row["width"], row["iterations"], row["arm"]) == (*group, arm)
            }
            for arm in ARMS
        }
        seeds = sorted(set.intersection(*(set(values) for values in dice.values())))
        if not seeds:
            continue
        means = [f"{np.mean([dice[arm][seed] for seed in seeds]):.4f}" for arm in ARMS]
        differences = [
            _with_error([dice["distill"][seed] - dice[arm][seed] for seed in seeds]) for arm in ("plain", "further")
        ]
        table.append([dataset, width, iterations, str(len(seeds)), *means, *differences])
    header = ["data set", "width", "iterations", "seeds", *ARMS, "distill - plain", "distill - further"]
    return format_table(header, table)


def _with_error(values: list[float]) -> str:
    mean = f"{np.mean(values):+.4f}"
    return mean if len(values) < 2 else f"{mean} +- {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


def main() -> None:
    """Parses the call, trains what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", nargs="+", required=True, help="preprocessed data sets: number or name")
    parser.add_argument("-c", default="2d", help="configuration (default: %(default)s)")
    parser.add_argument("-widths", nargs="+", type=int, default=[4, 8, 16], help="default: %(default)s")
    parser.add_argument("-seeds", nargs="+", type=int, default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("-iterations", type=int, default=2500, help="of each student (default: %(default)s)")
    parser.add_argument("-teacher_iterations", type=int, default=2500, help="of the base (default: %(default)s)")
    parser.add_argument("-temperature", type=float, default=2.0, help="default: %(default)s")
    parser.add_argument("-weight", type=float, default=1.0, help="of the teacher (default: %(default)s)")
    parser.add_argument("-batch", type=int, help="patches per iteration (default: as planned)")
    parser.add_argument("-patch", type=int, help="largest edge of a patch (default: as planned)")
    parser.add_argument("-device", default="cpu", help="default: %(default)s")
    parser.add_argument("-o", type=Path, required=True, help="folder of the table and of all trainings")
    args = parser.parse_args()
    args.o.mkdir(parents=True, exist_ok=True)
    results = args.o.resolve() / "results"
    results.mkdir(exist_ok=True)
    # nnU-Net reads these when it is imported; workers of its own would make runs differ.
    os.environ["nnUNet_results"] = str(results)
    os.environ["nnUNet_n_proc_DA"] = "0"
    os.environ.setdefault("nnUNet_raw", str(results))
    rows = Rows(args.o / "runs.csv")
    with contextlib.redirect_stdout(sys.stderr):
        for dataset in args.d:
            run_dataset(args, dataset, rows)
    print(report(rows.rows))


if __name__ == "__main__":
    main()
