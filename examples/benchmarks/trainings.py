"""Trainings by nnU-Net's commands' own classes, at a size for a CPU, and what they are worth on cases never seen.

Shared by the benchmarks that train: a data set with a smaller patch and batch (plans are changed in memory only), one
training from start to end, which goes on where it was cut off, its Dice on the fold's validation cases and on the
hold-out (`imagesTs`, `labelsTs`), and the table of all trainings, a line each, on the disk as soon as one is through.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_nas.environment import find_preprocessed_dataset

# nnU-Net changes the learning rate once in an epoch, and the losses of the table are means over one.
PER_EPOCH = 50
COLUMNS = (
    *("dataset", "configuration", "patch", "batch", "arm", "detail", "width", "seed", "iterations"),
    *("parameters", "macs", "validation", "hold_out", "cpu_seconds", "losses", "validation_cases", "hold_out_cases"),
)
KEY = COLUMNS[: COLUMNS.index("parameters")]


@dataclass(frozen=True)
class Problem:
    """One data set and configuration, cut to the benchmark's size.

    Attributes:
        plans: content; patch and batch of the configuration are those of the benchmark.
        dataset_json: content.
        configuration: its name.
    """

    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    configuration: str

    @staticmethod
    def load(
        dataset: str, configuration: str, *, batch: int | None, patch: int | None, stages: int | None = None
    ) -> Problem:
        """Reads plans and description; no edge of the patch is longer than `patch`, the finest stages stay."""
        folder = find_preprocessed_dataset(dataset)
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        entry = plans["configurations"][configuration]
        entry["batch_size"] = batch or entry["batch_size"]
        entry["patch_size"] = [min(size, patch or size) for size in entry["patch_size"]]
        if stages is not None:
            keep_stages(entry["architecture"]["arch_kwargs"], stages)
        return Problem(plans, json.loads((folder / "dataset.json").read_text()), configuration)

    @property
    def fixed(self) -> dict[str, Any]:
        """What all rows of the table share."""
        entry = self.plans["configurations"][self.configuration]
        return {
            "dataset": self.plans["dataset_name"],
            "configuration": self.configuration,
            "patch": "x".join(map(str, entry["patch_size"])),
            "batch": entry["batch_size"],
        }

    def with_entry(self, name: str, entry: dict[str, Any]) -> dict[str, Any]:
        """Plans with a further configuration, which inherits from the benchmark's."""
        plans = deepcopy(self.plans)
        plans["configurations"][name] = {"inherits_from": self.configuration, **entry}
        return plans

    @cached_property
    def judges(self) -> dict[str, Judge]:
        """The fold's validation cases and the hold-out, by the names of their columns."""
        splits = find_preprocessed_dataset(self.plans["dataset_name"]) / "splits_final.json"
        validation = json.loads(splits.read_text())[0]["val"]
        return {
            "validation": Judge(self, "Tr", validation),
            "hold_out": Judge(self, "Ts", None),
        }


def keep_stages(kwargs: dict[str, Any], stages: int) -> None:
    """Leaves a U-Net its finest stages, in place."""
    for key, value in kwargs.items():
        if isinstance(value, list) and len(value) == kwargs["n_stages"]:
            kwargs[key] = value[:stages]
    kwargs["n_conv_per_stage_decoder"] = kwargs["n_conv_per_stage_decoder"][: stages - 1]
    kwargs["n_stages"] = stages


class Judge:
    """Images with their labels, kept in memory."""

    def __init__(self, problem: Problem, part: str, cases: Sequence[str] | None) -> None:
        """Reads them; all cases of the part if None are named."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        raw = Path(os.environ["nnUNet_raw"]) / problem.plans["dataset_name"]
        ending = problem.dataset_json["file_ending"]
        labels = raw / f"labels{part}"
        self.names = sorted(cases or (path.name.removesuffix(ending) for path in labels.glob(f"*{ending}")))
        self._classes = [int(value) for value in problem.dataset_json["labels"].values() if int(value) > 0]
        reader = PlansManager(problem.plans).image_reader_writer_class()
        self._cases = []
        for name in self.names:
            pattern = f"{name}_[0-9][0-9][0-9][0-9]{ending}"
            files = sorted(str(path) for path in (raw / f"images{part}").glob(pattern))
            self._cases.append((*reader.read_images(files), reader.read_seg(str(labels / f"{name}{ending}"))[0]))

    def dice(self, trainer: Any) -> list[float]:
        """Mean foreground Dice of each case, by nnU-Net's own prediction without mirroring."""
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(use_mirroring=False, device=trainer.device, verbose_preprocessing=False)
        predictor.allow_tqdm = False
        network = trainer.unwrapped()
        trainer.set_deep_supervision_enabled(False)
        weights = network.state_dict()
        predictor.manual_initialization(
            network, trainer.plans_manager, trainer.configuration_manager, [weights], trainer.dataset_json,
            type(trainer).__name__, None,
        )  # fmt: skip
        scores = []
        for image, properties, label in self._cases:
            predicted = predictor.predict_single_npy_array(image, properties)
            scores.append(_dice(predicted, label[0] if predicted.ndim < label.ndim else label, self._classes))
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        return scores


def _dice(predicted: np.ndarray, label: np.ndarray, classes: Iterable[int]) -> float:
    pairs = [(predicted == number, label == number) for number in classes]
    scores = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs if a.any() or b.any()]
    return float(np.mean(scores)) if scores else float("nan")


def train(problem: Problem, cls: type[Any], name: str, plans: dict[str, Any], run: str) -> tuple[Any, float]:
    """One training on fold 0, as `nnUNetv2_train` makes it; the trainer and its CPU seconds.

    The plans' name keeps the results of each run apart. A training that is through is loaded, one that was cut off
    goes on; its CPU seconds are added up in a file beside its checkpoint.
    """
    import torch

    def made(goes_on: bool) -> Any:
        content = {**deepcopy(plans), "plans_name": run, "continue_training": goes_on}
        return cls(content, name, 0, problem.dataset_json, torch.device("cpu"))

    folder = Path(made(False).output_folder)
    spent = folder / "cpu_seconds"
    final, latest = folder / "checkpoint_final.pth", folder / "checkpoint_latest.pth"
    trainer = made(final.exists() or latest.exists())
    if final.exists():
        trainer.load_checkpoint(str(final))
        return trainer, float(spent.read_text())
    if latest.exists():
        trainer.load_checkpoint(str(latest))
    before, started = float(spent.read_text()) if spent.exists() else 0.0, time.process_time()
    original = trainer.on_epoch_end

    def counted() -> None:
        original()
        spent.write_text(str(round(before + time.process_time() - started, 1)))

    trainer.on_epoch_end = counted
    trainer.run_training()
    return trainer, float(spent.read_text())


def length(iterations: int) -> dict[str, int]:
    """Settings of a training's length."""
    return {
        "num_epochs": max(1, round(iterations / PER_EPOCH)),
        "num_iterations_per_epoch": min(PER_EPOCH, iterations),
        "num_val_iterations_per_epoch": 1,
    }


def row_of(problem: Problem, name: str, trained: tuple[Any, float]) -> dict[str, Any]:
    """What a training came to, with its cost."""
    from nnunet_nas.architecture import network_spec
    from nnunet_nas.complexity import complexity_of

    trainer, cpu_seconds = trained
    cost = complexity_of(network_spec(trainer.plans, name))
    scores = {column: judge.dice(trainer) for column, judge in problem.judges.items()}
    losses = trainer.logger.get_checkpoint()["train_losses"]
    return {
        "parameters": cost.parameters,
        "macs": cost.macs,
        **{column: round(float(np.nanmean(dice)), 5) for column, dice in scores.items()},
        "cpu_seconds": cpu_seconds,
        "losses": " ".join(f"{loss:.4f}" for loss in losses),
        **{f"{column}_cases": " ".join(f"{score:.4f}" for score in dice) for column, dice in scores.items()},
    }


class Rows:
    """The table on the disk: one line per training, or whatever is done once, appended when it is through."""

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS, key: Sequence[str] = KEY) -> None:
        """Reads what is there; a line that was cut off is none.

        Args:
            path: of the table.
            columns: names.
            key: the columns that tell what a line is of.
        """
        self._path, self._columns, self._key = path, tuple(columns), tuple(key)
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if all(row.get(name) for name in self._key)]

    def find(self, key: dict[str, Any]) -> dict[str, str] | None:
        """The row of what was done."""
        wanted = {name: str(key[name]) for name in self._key}
        return next((row for row in self.rows if all(row[name] == wanted[name] for name in self._key)), None)

    def add(self, row: dict[str, Any]) -> dict[str, str]:
        """Writes it, on the disk before it returns."""
        new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())
        self.rows.append({name: str(row[name]) for name in self._columns})
        return self.rows[-1]


def add_arguments(parser: argparse.ArgumentParser, folder: str = "folder of all trainings") -> None:
    """Options of a study: the problem, and where trainings and table are."""
    parser.add_argument("-d", required=True, help="preprocessed data set: number or name")
    parser.add_argument("-c", default="2d", help="configuration (default: %(default)s)")
    parser.add_argument("-batch", type=int, help="patches per iteration (default: as planned)")
    parser.add_argument("-patch", type=int, help="largest edge of a patch (default: as planned)")
    parser.add_argument("-stages", type=int, help="the finest of the network that are kept (default: all)")
    parser.add_argument("-o", type=Path, required=True, help=folder)
    parser.add_argument("-csv", type=Path, required=True, help="the table")


def open_study(args: argparse.Namespace) -> tuple[Problem, Rows]:
    """The problem and the table that a call is about."""
    prepare_environment(args.o)
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    problem = Problem.load(args.d, args.c, batch=args.batch, patch=args.patch, stages=args.stages)
    return problem, Rows(args.csv)


def prepare_environment(folder: Path) -> None:
    """Results below a folder; nnU-Net reads the variables when it is imported, and workers would make runs differ."""
    results = folder.resolve() / "results"
    results.mkdir(parents=True, exist_ok=True)
    os.environ["nnUNet_results"] = str(results)
    os.environ["nnUNet_n_proc_DA"] = "0"
