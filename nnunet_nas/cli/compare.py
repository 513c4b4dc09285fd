"""Compare trained models case by case: is there a difference, and is it small enough not to matter?

The first model is the reference A; each other one is compared with it on the same cases, per class and for the
foreground mean (per case, over the classes that both models have a value for). A model is TRAINER__PLANS__CONFIGURATION
of data set -d (the validation cases of its folds), or the path of such a folder, of a folder with a summary.json, or,
with -ref, of a folder of predictions.

  95 % interval  of the mean difference: BCa bootstrap over cases; * marks percentile where BCa is degenerate
  effect         matched-pairs rank-biserial correlation, 1 if the other model is better in every case
  p              Wilcoxon signed-rank, two-sided; zero differences ranked, then left out (Pratt); exact up to 50 cases
  p Holm         corrected over the classes; for the foreground mean over the models compared with the first
  p equiv.       two one-sided paired t-tests of the mean difference against the margin (-margin, -margin_mm); not
                 corrected: all classes are equivalent only if each of them is
  within         equivalent, better or worse (by more than the margin), not worse, not better, unclear: what these tests
                 show at 5 %, if the 90 % bootstrap interval says so, too (a few failed cases make t too sure)
  p Fisher       several comparisons combined, whatever their direction (shown beside it); + marks comparisons that
                 share their cases, for which it is too small

A class that is neither in a label nor predicted has no value (NaN): such cases are counted and named, not used.
Surface metrics: HD95 is the larger one of the two directed 95th percentiles, NSD the share of both surfaces within
-tolerance. Both masks empty: no value. One of them empty: NSD 0, HD95 the diagonal of the image. Formats without
spacing (PNG) have pixels for mm.

examples:
  nnunet_nas compare -d 4 -m nnUNetTrainer__nnUNetPlans__2d nnUNetTrainer__nnUNetPlans__2d_xtiny8
  nnunet_nas compare -d 4 -m nnUNetTrainer__nnUNetPlans__2d nnUNetTrainer__nnUNetPlans__2d_xtiny8 -f 0 -o comparison
  nnunet_nas compare -m predictions_a predictions_b -ref labelsTs -metrics hd95 nsd --latex
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_nas.cli.common import format_table, quiet_output, select_device
from nnunet_nas.environment import dataset_number
from nnunet_nas.errors import UsageError
from nnunet_nas.files import replace_file, require_writable

if TYPE_CHECKING:
    from nnunet_nas.evaluation.costs import Cost
    from nnunet_nas.evaluation.report import Group, Metric, PairTable, Report
    from nnunet_nas.evaluation.summaries import Model

SUMMARY = "compare trained models case by case: difference, equivalence, costs"
METRICS = ("hd95", "nsd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    parser.add_argument("-d", nargs="+", default=[], metavar="DATASET", help="data sets: numbers or names")
    parser.add_argument("-m", nargs="+", required=True, metavar="MODEL", help="two models or more, the reference first")
    parser.add_argument("-f", nargs="+", type=_fold, metavar="FOLD", help="folds (default: all that were validated)")
    parser.add_argument("-ref", type=Path, metavar="FOLDER", help="labels: to evaluate predictions, or if they moved")
    parser.add_argument("--common", action="store_true", help="compare the cases that all models have, name the others")
    parser.add_argument("--per_fold", action="store_true", help="compare each fold, and combine them (Fisher)")
    parser.add_argument("-metrics", nargs="+", choices=METRICS, default=[], help="beside Dice: surface metrics")
    parser.add_argument("-tolerance", type=_positive, default=1.0, metavar="MM", help="of NSD (default: %(default)s)")
    parser.add_argument(
        "-margin", type=_positive, default=0.01, metavar="DICE", help="of Dice and NSD (default: %(default)s)"
    )
    parser.add_argument("-margin_mm", type=_positive, default=1.0, metavar="MM", help="of HD95 (default: %(default)s)")
    parser.add_argument("-seed", type=_whole, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("--time", action="store_true", help="measure a forward pass of a patch (median)")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cpu", help="of --time (%(default)s)")
    parser.add_argument(
        "-np", type=_processes, metavar="N", help="processes (default: nnUNet_def_n_proc, or the cores)"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--csv", action="store_true", help="print CSV")
    output.add_argument("--latex", action="store_true", help="print LaTeX tables (booktabs)")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="write pictures, comparison.json and cases.csv there")


def run(args: argparse.Namespace) -> int:
    """Reads, compares, prints."""
    _require_sensible(args)
    with quiet_output():
        report = _report(args)
    _print(report, args)
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    if args.o is not None:
        _write(report, args.o)
    if not (args.json or args.csv or args.latex):
        print(f"next: {_next_command(report, args)}", file=sys.stderr)
    return 0


def _report(args: argparse.Namespace) -> Report:
    from nnunet_nas.evaluation import report

    groups, notes = _groups(args)
    costs = [_costs(group, args) for group in groups]
    parts = [part for group in groups for part in (report.split_by_fold(group) if args.per_fold else [group])]
    tables = [
        table
        for part in parts
        for metric in _metrics(args)
        for table in report.compare_group(part, metric, seed=args.seed)
    ]
    unknown = [cost.problem for found in costs for cost in found if cost.problem]
    settings = report.settings_json(seed=args.seed, tolerance=args.tolerance if "nsd" in args.metrics else None)
    if args.time:
        settings["seconds_per_patch"] = f"forward pass of one patch, float32, {args.device}, median"
    return report.Report(
        groups=groups,
        costs=costs,
        tables=tables,
        combined=report.combine(tables),
        notes=[*notes, *report.notes_on(tables), *unknown],
        settings=settings,
    )


def _require_sensible(args: argparse.Namespace) -> None:
    if len(args.m) < 2:
        raise UsageError(f"-m {args.m[0]} is one model: name two or more, the reference first")
    twice = next((name for name in args.m if args.m.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"-m names {twice} twice: a model does not differ from itself")
    if args.ref is not None and not args.ref.is_dir():
        raise UsageError(f"-ref {args.ref} is no folder: name the one that holds the labels")
    if args.o is not None:
        require_writable(args.o)


def _groups(args: argparse.Namespace) -> tuple[list[Group], list[str]]:
    """The models of each data set with all metrics that were asked for, and what is to be said about them."""
    from nnunet_nas.evaluation.report import Group
    from nnunet_nas.evaluation.summaries import common_cases, find_results

    groups, notes = [], []
    for dataset in args.d or [None]:
        results = None if dataset is None else find_results(dataset)
        models = _models(args, results)
        cases, others = common_cases(models, allow_others=args.common)
        if args.metrics:
            models = [_with_surfaces(model, cases, args) for model in models]
        groups.append(Group("" if results is None else results.name, "", models, cases))
        notes += others
    return groups, notes


def _models(args: argparse.Namespace, results: Path | None) -> list[Model]:
    from nnunet_nas.evaluation import summaries

    paths = [summaries.find_model(name, results) for name in args.m]
    trained = [path for path in paths if summaries.is_trained_model(path)]
    if len(args.d) > 1 and len(trained) < len(paths):
        raise UsageError("several data sets with -d take models by name, which each of them has: drop the paths")
    if (args.f or args.per_fold) and len(trained) < len(paths):
        raise UsageError(
            "-f and --per_fold are for trained models (TRAINER__PLANS__CONFIGURATION), not for predictions"
        )
    # Whatever any of them has: a fold that another one lacks is then an error, not a smaller comparison.
    folds = args.f or sorted({fold for path in trained for fold in summaries.evaluated_folds(path)}) or ["0"]
    return [
        summaries.load_model(path, name, folds=folds, labels=args.ref, processes=_number_of_processes(args))
        for path, name in zip(paths, args.m, strict=True)
    ]


def _with_surfaces(model: Model, cases: Sequence[str], args: argparse.Namespace) -> Model:
    from nnunet_nas.evaluation.surface import measure_all, surface_tasks

    tasks = surface_tasks(model, cases, labels=args.ref, tolerance=args.tolerance)
    found = measure_all([task for _, task in tasks], processes=_number_of_processes(args))
    measured = _progress(found, len(tasks), f"surfaces of {model.name}")
    return model.with_metrics(dict(zip([name for name, _ in tasks], measured, strict=True)))


def _progress(items: Iterable[Any], total: int, title: str) -> Iterator[Any]:
    """The items, with a bar on standard error and on a terminal only."""
    from tqdm import tqdm

    yield from tqdm(items, title, total, file=sys.stderr, disable=not sys.stderr.isatty(), leave=False)


def _metrics(args: argparse.Namespace) -> list[Metric]:
    from nnunet_nas.evaluation.report import Metric
    from nnunet_nas.evaluation.surface import HD95, NSD

    found = [Metric("Dice", "", higher_is_better=True, margin=args.margin, digits=4)]
    if "hd95" in args.metrics:
        found.append(Metric(HD95, "mm", higher_is_better=False, margin=args.margin_mm, digits=2))
    if "nsd" in args.metrics:
        found.append(Metric(NSD, "", higher_is_better=True, margin=args.margin, digits=4))
    return found


def _costs(group: Group, args: argparse.Namespace) -> list[Cost]:
    from nnunet_nas.evaluation.costs import cost_of, seconds_per_patch

    costs = [cost_of(model) for model in group.models]
    if not args.time:
        return costs
    specs = [cost.spec for cost in costs if cost.spec is not None]
    seconds = iter(seconds_per_patch(specs, select_device(args.device)))
    return [cost if cost.spec is None else replace(cost, seconds_per_patch=next(seconds)) for cost in costs]


def _print(report: Report, args: argparse.Namespace) -> None:
    from nnunet_nas.evaluation import tables
    from nnunet_nas.evaluation.report import letter

    if args.json:
        print(json.dumps(report.to_json(), indent=4))
    elif args.csv:
        print(tables.comparison_csv(report.tables), end="")
    elif args.latex:
        print("\n\n".join(tables.comparison_latex(table) for table in report.tables))
    else:
        for position, name in enumerate(args.m):
            print(f"{letter(position)}  {name}")
        for table in report.tables:
            print(f"\n{table.group.title}: {len(table.group.cases)} cases")
            cells = [tables.comparison_cells(row, table.metric) for row in table.rows]
            print(format_table(tables.comparison_header(table), cells))
        if report.combined:
            cells = [tables.combined_cells(combined) for combined in report.combined]
            print(f"\n{format_table(tables.COMBINED_HEADER, cells)}")
        for group, costs in zip(report.groups, report.costs, strict=True):
            if any(cost.spec is not None for cost in costs):
                title = f"\n{group.dataset}" if len(report.groups) > 1 else ""
                print(f"{title}\n{format_table(*tables.cost_table(group, costs), left=2)}")


def _write(report: Report, folder: Path) -> None:
    """The pictures, one per metric and group of cases, the numbers, and the values of the cases."""
    from nnunet_nas.evaluation.plots import draw_differences
    from nnunet_nas.evaluation.tables import cases_csv

    replace_file(folder / "comparison.json", json.dumps(report.to_json(), indent=4).encode())
    replace_file(folder / "cases.csv", cases_csv(report.tables).encode())
    pictures: dict[tuple[str, str, str], list[PairTable]] = {}
    for table in report.tables:
        pictures.setdefault((table.group.dataset, table.group.fold, table.metric.name), []).append(table)
    several = len({(dataset, fold) for dataset, fold, _ in pictures}) > 1
    for (dataset, fold, metric), tables in pictures.items():
        words = [*([dataset, fold] if several else []), "" if metric == "Dice" else metric.lower()]
        draw_differences(tables, folder / f"{'_'.join(['paired_differences', *filter(None, words)])}.png")
    print(f"written: {len(pictures)} picture(s), comparison.json and cases.csv in {folder}", file=sys.stderr)


def _next_command(report: Report, args: argparse.Namespace) -> str:
    """Predict with the cheapest model that is not known to be worse, or validate what could settle the question."""
    from nnunet_nas.evaluation.summaries import evaluated_folds, validation_command

    group, costs = report.groups[0], report.costs[0]
    if not group.dataset or any(not model.folds for model in group.models):
        reference = [] if args.ref is None else ["-ref", str(args.ref)]
        return shlex.join(
            ["nnunet_nas", "compare", "-m", *args.m, *reference, "-metrics", *METRICS, "-o", "comparison"]
        )
    verdicts, first = _verdicts(report), group.models[0].home
    if list(verdicts.values()) == ["unclear"] and first is not None:
        missing = [fold for fold in "01234" if fold not in evaluated_folds(first)]
        if missing:
            return validation_command(first, missing[0])
    good = [
        0,
        *(position for position, verdict in verdicts.items() if verdict in ("equivalent", "better", "not worse")),
    ]

    def parameters(position: int) -> float:
        complexity = costs[position].complexity
        return complexity.parameters if complexity else math.inf

    return _predict_command(group, group.models[min(good, key=parameters)])


def _verdicts(report: Report) -> dict[int, str]:
    """What was found of the Dice of each model but the first, on the first data set or fold."""
    verdicts: dict[int, str] = {}
    for table in report.tables:
        found = table.overall.comparison
        if table.metric.name == "Dice" and found and found.equivalence:
            verdicts.setdefault(table.position, found.equivalence.verdict)
    return verdicts


def _predict_command(group: Group, model: Model) -> str:
    if model.home is None or len(words := model.home.name.split("__")) != 3:
        return "nnUNetv2_predict -h"
    trainer, plans, configuration = words
    folds = " ".join(fold.removeprefix("fold_") for fold in model.folds)
    options = ("" if plans == "nnUNetPlans" else f" -p {plans}") + (
        "" if trainer == "nnUNetTrainer" else f" -tr {trainer}"
    )
    number = dataset_number(group.dataset)
    return f"nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d {number} -c {configuration} -f {folds}{options}"


def _number_of_processes(args: argparse.Namespace) -> int:
    if args.np is not None:
        return int(args.np)
    from nnunetv2.configuration import default_num_processes

    return min(default_num_processes, os.cpu_count() or 1)


def _fold(text: str) -> str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no fold: a number or all")
    return text


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


def _processes(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number of processes: 1 or more")
    return int(text)
