"""A comparison from start to end: find the models, measure what was asked for, compare, write, and say what is next."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nnunet_nas import commands
from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.evaluation import report, summaries
from nnunet_nas.evaluation.costs import Cost, cost_of, precision_on, seconds_per_patch
from nnunet_nas.evaluation.notes import notes_on, settings_json
from nnunet_nas.evaluation.plots import draw_differences
from nnunet_nas.evaluation.report import PairTable, Report
from nnunet_nas.evaluation.rows import Group, Metric
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
        models: two or more, the reference first: names in a data set's results, or paths; several of them, separated
            by commas, are runs of one model, trained with other seeds.
        datasets: numbers or names; none if the models are paths.
        folds: `0` to `4` or `all`; none for all that were validated.
        labels: folder of labels, to evaluate predictions or if they moved.
        common: compare the cases that all models have; otherwise others are an error.
        per_fold: compare each fold of its own.
        searched: runs of one model may have different networks, as a search finds them; costs are those of the first.
        metrics: beside Dice: `hd95`, `nsd`.
        tolerance: of NSD, mm; for all classes, or by name or key of a class, those not named under an empty name.
        patients: file that says whose case each one is (see `read_patients`); None if each case counts for itself.
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
    searched: bool = False
    metrics: Sequence[str] = ()
    tolerance: float | Mapping[str, float] = 1.0
    patients: Path | None = None
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
        names = [name for model in self.models for name in _run_names(model)]
        twice = next((name for name in names if names.count(name) > 1), None)
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
    costs = [_costs(group, settings) for group in groups]
    parts = [part for group in groups for part in (report.split_by_fold(group) if settings.per_fold else [group])]
    tables = [
        table
        for part in parts
        for metric in settings.measured
        for table in report.compare_group(part, metric, seed=settings.seed)
    ]
    first = groups[0].models[0]
    described = settings_json(
        seed=settings.seed,
        tolerance=_stated(_tolerances(first, settings.tolerance)) if "nsd" in settings.metrics else None,
        patients=settings.patients is not None,
        runs=any(model.others for model in groups[0].models),
    )
    timed = (
        settings.time_on and f"forward pass of one patch, {precision_on(settings.time_on)}, {settings.time_on}, median"
    )
    return Report(
        groups=groups,
        costs=costs,
        tables=tables,
        combined=report.combine(tables),
        notes=[
            *notes,
            *notes_on(tables),
            *(_other_networks(groups[0], costs[0]) if settings.searched else []),
            *(cost.problem for found in costs for cost in found if cost.problem),
        ],
        settings=described | ({"seconds_per_patch": timed} if timed else {}),
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
    patients = {} if settings.patients is None else summaries.read_patients(settings.patients)
    found: list[Path | None] = [summaries.find_results(dataset) for dataset in settings.datasets]
    for results in found or [None]:
        models = _models(settings, results)
        cases, others = summaries.common_cases(models, allow_others=settings.common)
        if settings.metrics:
            models = [_with_surfaces(model, cases, settings, progress) for model in models]
        unknown = [case for case in cases if case not in patients]
        if settings.patients is not None and unknown:
            raise DataProblem(
                f"{settings.patients} names no patient for {len(unknown)} case(s): add {summaries.listed(unknown)}"
            )
        groups.append(Group("" if results is None else results.name, "", models, cases, patients))
        notes += others
    return groups, [*_what_counts(settings, groups[0]), *notes]


def _what_counts(settings: CompareSettings, group: Group) -> list[str]:
    """What one unit of the tests is, where it is not a case of one training."""
    notes = []
    if settings.patients is not None:
        notes.append("each patient counts once, with the mean over its cases: intervals resample patients")
    runs = {report.letter(at): len(model.runs) for at, model in enumerate(group.models)}
    if max(runs.values()) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in runs.items())
        single = ", ".join(name for name, count in runs.items() if count == 1)
        notes.append(
            f"values are means over the runs of a model ({counts}); intervals resample runs as well as cases, "
            f"p is that of a t-test with the error of both"
            + (f"; how runs of {single} would differ is not known from one" if single else "")
        )
    return notes


def _models(settings: CompareSettings, results: Path | None) -> list[Model]:
    names = [_run_names(model) for model in settings.models]
    paths = {name: summaries.find_model(name, results) for model in names for name in model}
    trained = [path for path in paths.values() if summaries.is_trained_model(path)]
    if len(settings.datasets) > 1 and len(trained) < len(paths):
        raise UsageError("several data sets with -d take models by name, which each of them has: drop the paths")
    if (settings.folds or settings.per_fold) and len(trained) < len(paths):
        raise UsageError(
            "-f and --per_fold are for trained models (TRAINER__PLANS__CONFIGURATION), not for predictions"
        )
    # Whatever any of them has: a fold that another one lacks is then an error, not a smaller comparison.
    folds = settings.folds or sorted({fold for path in trained for fold in summaries.evaluated_folds(path)}) or ["0"]

    def load(name: str) -> Model:
        path = paths[name]
        return summaries.load_model(path, name, folds=folds, labels=settings.labels, processes=settings.workers)

    models = [[load(name) for name in model] for model in names]
    return [
        replace(runs[0], name=name, others=runs[1:]) if len(runs) > 1 else runs[0]
        for name, runs in zip(settings.models, models, strict=True)
    ]


def _run_names(model: str) -> list[str]:
    """The runs that a model of `-m` stands for; a path may have commas itself."""
    return [model] if Path(model).exists() else model.split(",")


def _tolerances(model: Model, tolerance: float | Mapping[str, float]) -> dict[str, float]:
    """Tolerance by key of the class.

    Raises:
        UsageError: a class that the data set does not have, or one that is left without a tolerance.
    """
    given = {"": tolerance} if isinstance(tolerance, int | float) else tolerance
    names = summaries.class_names(model)
    unknown = [name for name in given if name and name not in names and name not in names.values()]
    left = [name for key, name in names.items() if not {key, name, ""} & given.keys()]
    if unknown or left:
        what = f"names {unknown[0]}, which is no class" if unknown else f"says nothing of {left[0]}"
        raise UsageError(f"-tolerance {what}: give MM for all, or CLASS=MM of {', '.join(names.values())}")
    return {key: given.get(key, given.get(name, given.get("", 0.0))) for key, name in names.items()}


def _stated(tolerances: Mapping[str, float]) -> float | Mapping[str, float]:
    """One number if it is one."""
    return next(iter(tolerances.values())) if len(set(tolerances.values())) == 1 else tolerances


def _with_surfaces(model: Model, cases: Sequence[str], settings: CompareSettings, progress: Progress) -> Model:
    others = [_with_surfaces(run, cases, settings, progress) for run in model.others]
    tolerances = _tolerances(model, settings.tolerance)
    tasks = surface_tasks(model, cases, labels=settings.labels, tolerances=tolerances)
    found = measure_all(tasks, processes=settings.workers)
    measured = progress(found, len(tasks), f"surfaces of {model.name}")
    return replace(model.with_metrics(dict(zip(cases, measured, strict=True))), others=others)


def _costs(group: Group, settings: CompareSettings) -> list[Cost]:
    costs = [cost_of(model) for model in group.models]
    for model, cost in zip(group.models, costs, strict=True):
        other = None if settings.searched else _of_another_network(model, cost)
        if other is not None:
            raise UsageError(
                f"-m {model.name}: {other.name} has another network than the first run, so they are no runs of one "
                f"model: separate different models by spaces, or say --searched if a search found each"
            )
    if settings.time_on is None:
        return costs
    seconds = iter(seconds_per_patch([cost.spec for cost in costs if cost.spec is not None], settings.time_on))
    return [cost if cost.spec is None else replace(cost, seconds_per_patch=next(seconds)) for cost in costs]


def _of_another_network(model: Model, cost: Cost) -> Model | None:
    """The first further run of a model whose network is not that of its first run, whose cost is given."""
    return next((run for run in model.others if cost_of(run).complexity not in (None, cost.complexity)), None)


def _other_networks(group: Group, costs: Sequence[Cost]) -> list[str]:
    pairs = zip(group.models, costs, strict=True)
    names = [model.name for model, cost in pairs if _of_another_network(model, cost) is not None]
    return [f"the runs of {name} have different networks: its costs are those of the first" for name in names]


def _verdicts(found: Report) -> dict[int, str]:
    """What was found of the Dice of each model but the first, on the first data set or fold."""
    verdicts: dict[int, str] = {}
    for table in found.tables:
        comparison = table.overall.comparison
        if table.metric.name == "Dice" and comparison and comparison.equivalence:
            verdicts.setdefault(table.position, comparison.equivalence.verdict)
    return verdicts
