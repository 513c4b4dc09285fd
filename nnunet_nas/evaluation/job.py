"""A comparison from start to end: find the models, measure what was asked for, compare, write, and say what is next."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nnunet_nas import commands
from nnunet_nas.errors import UsageError
from nnunet_nas.evaluation import report, summaries
from nnunet_nas.evaluation.costs import Cost, cost_of, seconds_per_patch
from nnunet_nas.evaluation.plots import draw_differences
from nnunet_nas.evaluation.report import Group, Metric, PairTable, Report
from nnunet_nas.evaluation.summaries import Model
from nnunet_nas.evaluation.surface import HD95, NSD, measure_all, surface_tasks
from nnunet_nas.evaluation.tables import cases_csv
from nnunet_nas.files import replace_file

# Takes items, their number and a title, and gives the items while it shows how far they are.
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass(frozen=True)
class CompareSettings:
    """What is to be compared, and how.

    Attributes:
        models: two or more, the reference first: names in a data set's results, or paths.
        datasets: numbers or names; none if the models are paths.
        folds: `0` to `4` or `all`; none for all that were validated.
        labels: folder of labels, to evaluate predictions or if they moved.
        common: compare the cases that all models have; otherwise others are an error.
        per_fold: compare each fold of its own.
        metrics: beside Dice: `hd95`, `nsd`.
        tolerance: of NSD, mm.
        margin: of equivalence, for Dice and NSD.
        margin_mm: of equivalence, for HD95.
        seed: of the bootstrap.
        time_on: device to measure a forward pass on; None does not measure.
        processes: that evaluate and measure; None for nnU-Net's default.
    """

    models: Sequence[str]
    datasets: Sequence[str] = ()
    folds: Sequence[str] = ()
    labels: Path | None = None
    common: bool = False
    per_fold: bool = False
    metrics: Sequence[str] = ()
    tolerance: float = 1.0
    margin: float = 0.01
    margin_mm: float = 1.0
    seed: int = 0
    time_on: torch.device | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        """Refuses what does not make a comparison.

        Raises:
            UsageError: one model, a model twice, or labels that are no folder.
        """
        if len(self.models) < 2:
            raise UsageError(f"-m {self.models[0]} is one model: name two or more, the reference first")
        twice = next((name for name in self.models if self.models.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"-m names {twice} twice: a model does not differ from itself")
        if self.labels is not None and not self.labels.is_dir():
            raise UsageError(f"-ref {self.labels} is no folder: name the one that holds the labels")

    @property
    def measured(self) -> list[Metric]:
        """What is compared, in the order of the tables."""
        found = [Metric("Dice", "", higher_is_better=True, margin=self.margin, digits=4)]
        if "hd95" in self.metrics:
            found.append(Metric(HD95, "mm", higher_is_better=False, margin=self.margin_mm, digits=2))
        if "nsd" in self.metrics:
            found.append(Metric(NSD, "", higher_is_better=True, margin=self.margin, digits=4))
        return found

    @property
    def workers(self) -> int:
        """Processes that evaluate and measure."""
        if self.processes is not None:
            return self.processes
        from nnunetv2.configuration import default_num_processes

        return min(default_num_processes, os.cpu_count() or 1)


def run(settings: CompareSettings, progress: Progress = lambda items, total, title: items) -> Report:
    """Reads and compares; writes nothing.

    Args:
        settings: what to do.
        progress: shows how far the measuring of surfaces is.

    Raises:
        NasError: models, cases or labels that cannot be compared.
    """
    groups, notes = _groups(settings, progress)
    costs = [_costs(group, settings.time_on) for group in groups]
    parts = [part for group in groups for part in (report.split_by_fold(group) if settings.per_fold else [group])]
    tables = [
        table
        for part in parts
        for metric in settings.measured
        for table in report.compare_group(part, metric, seed=settings.seed)
    ]
    tolerance = settings.tolerance if "nsd" in settings.metrics else None
    timed = settings.time_on and f"forward pass of one patch, float32, {settings.time_on}, median"
    return Report(
        groups=groups,
        costs=costs,
        tables=tables,
        combined=report.combine(tables),
        notes=[
            *notes,
            *report.notes_on(tables),
            *(cost.problem for found in costs for cost in found if cost.problem),
        ],
        settings=report.settings_json(seed=settings.seed, tolerance=tolerance)
        | ({"seconds_per_patch": timed} if timed else {}),
    )


def write(found: Report, folder: Path) -> int:
    """Writes pictures, one per metric and group of cases, comparison.json, and the values of the cases.

    Returns:
        the number of pictures.

    Raises:
        EnvironmentProblem: no permission or no space.
    """
    replace_file(folder / "comparison.json", json.dumps(found.to_json(), indent=4).encode())
    replace_file(folder / "cases.csv", cases_csv(found.tables).encode())
    pictures: dict[tuple[str, str, str], list[PairTable]] = {}
    for table in found.tables:
        pictures.setdefault((table.group.dataset, table.group.fold, table.metric.name), []).append(table)
    several = len({(dataset, fold) for dataset, fold, _ in pictures}) > 1
    for (dataset, fold, metric), tables in pictures.items():
        words = [*([dataset, fold] if several else []), "" if metric == "Dice" else metric.lower()]
        draw_differences(tables, folder / f"{'_'.join(['paired_differences', *filter(None, words)])}.png")
    return len(pictures)


def next_command(found: Report, settings: CompareSettings) -> str:
    """Predict with the cheapest model that is not known to be worse, or validate what could settle the question."""
    group, costs = found.groups[0], found.costs[0]
    if not group.dataset or any(not model.folds for model in group.models):
        return commands.compare(settings.models, labels=settings.labels)
    verdicts, first = _verdicts(found), group.models[0].home
    if list(verdicts.values()) == ["unclear"] and first is not None:
        missing = [fold for fold in "01234" if fold not in summaries.evaluated_folds(first)]
        if missing:
            return summaries.validation_command(first, missing[0])
    good = [0, *(at for at, verdict in verdicts.items() if verdict in ("equivalent", "better", "not worse"))]

    def parameters(position: int) -> float:
        complexity = costs[position].complexity
        return complexity.parameters if complexity else math.inf

    return summaries.prediction_command(group.models[min(good, key=parameters)], group.dataset)


def _groups(settings: CompareSettings, progress: Progress) -> tuple[list[Group], list[str]]:
    """The models of each data set with all metrics that were asked for, and what is to be said about them."""
    groups, notes = [], []
    found: list[Path | None] = [summaries.find_results(dataset) for dataset in settings.datasets]
    for results in found or [None]:
        models = _models(settings, results)
        cases, others = summaries.common_cases(models, allow_others=settings.common)
        if settings.metrics:
            models = [_with_surfaces(model, cases, settings, progress) for model in models]
        groups.append(Group("" if results is None else results.name, "", models, cases))
        notes += others
    return groups, notes


def _models(settings: CompareSettings, results: Path | None) -> list[Model]:
    paths = [summaries.find_model(name, results) for name in settings.models]
    trained = [path for path in paths if summaries.is_trained_model(path)]
    if len(settings.datasets) > 1 and len(trained) < len(paths):
        raise UsageError("several data sets with -d take models by name, which each of them has: drop the paths")
    if (settings.folds or settings.per_fold) and len(trained) < len(paths):
        raise UsageError(
            "-f and --per_fold are for trained models (TRAINER__PLANS__CONFIGURATION), not for predictions"
        )
    # Whatever any of them has: a fold that another one lacks is then an error, not a smaller comparison.
    folds = settings.folds or sorted({fold for path in trained for fold in summaries.evaluated_folds(path)}) or ["0"]
    return [
        summaries.load_model(path, name, folds=folds, labels=settings.labels, processes=settings.workers)
        for path, name in zip(paths, settings.models, strict=True)
    ]


def _with_surfaces(model: Model, cases: Sequence[str], settings: CompareSettings, progress: Progress) -> Model:
    tasks = surface_tasks(model, cases, labels=settings.labels, tolerance=settings.tolerance)
    found = measure_all([task for _, task in tasks], processes=settings.workers)
    measured = progress(found, len(tasks), f"surfaces of {model.name}")
    return model.with_metrics(dict(zip([name for name, _ in tasks], measured, strict=True)))


def _costs(group: Group, time_on: torch.device | None) -> list[Cost]:
    costs = [cost_of(model) for model in group.models]
    if time_on is None:
        return costs
    seconds = iter(seconds_per_patch([cost.spec for cost in costs if cost.spec is not None], time_on))
    return [cost if cost.spec is None else replace(cost, seconds_per_patch=next(seconds)) for cost in costs]


def _verdicts(found: Report) -> dict[int, str]:
    """What was found of the Dice of each model but the first, on the first data set or fold."""
    verdicts: dict[int, str] = {}
    for table in found.tables:
        comparison = table.overall.comparison
        if table.metric.name == "Dice" and comparison and comparison.equivalence:
            verdicts.setdefault(table.position, comparison.equivalence.verdict)
    return verdicts
