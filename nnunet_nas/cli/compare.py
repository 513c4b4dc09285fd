"""Compare trained models case by case: is there a difference, and is it small enough not to matter?

The first model is the reference A; each other one is compared with it on the same cases, per class and for the
foreground mean (per case, over the classes that both models have a value for). A model is TRAINER__PLANS__CONFIGURATION
of data set -d (the validation cases of its folds), or the path of such a folder, of a folder with a summary.json, or,
with -ref, of a folder of predictions. Several of them joined by commas are runs of one model, trained with other seeds.

  95 % interval  of the mean difference: BCa bootstrap over cases; * marks percentile where BCa is degenerate
  effect         matched-pairs rank-biserial correlation, 1 if the other model is better in every case
  p              Wilcoxon signed-rank, two-sided; zero differences ranked, then left out (Pratt); exact up to 50 cases
  p Holm         corrected over the classes; for the foreground mean over the models compared with the first
  p equiv.       two one-sided paired t-tests of the mean difference against the margin (-margin, -margin_mm), by Holm
                 over the models compared with the first; not corrected over classes: all are equivalent only if each is
  within         equivalent, better or worse (by more than the margin), not worse, not better, unclear: what these tests
                 show at 5 %, if the 90 % bootstrap interval says so, too (a few failed cases make t too sure); of
                 several models each side is tested at 5 % over their number; withheld where absent structures forbid it
  absent         cases whose label is without the structure, in how many of them the models predict it, and McNemar's
                 exact test of those in which only one does; a verdict is withheld if that test contradicts it, or if it
                 would change were dropped cases counted (only one model has a value there: to predict nothing is best)
  p Fisher       several comparisons combined, whatever their direction (shown beside it); + marks comparisons that
                 share their cases, for which it is too small

A class that is neither in a label nor predicted has no value (NaN): such cases are counted and named, not used. Where
there are too few cases, a note says how many show equivalence with 80 % power if the models do not differ.
With -patients each patient counts once, with the mean over its cases, in tests and in the bootstrap. With several runs
of a model values are means over its runs, the bootstrap draws runs as well as cases, and p is that of a t-test.
Surface metrics: HD95 is the larger one of the two directed 95th percentiles, NSD the share of both surfaces within
-tolerance. Both masks empty: no value. One of them empty: NSD 0, HD95 the diagonal of the image. Formats without
spacing (PNG) have pixels for mm.

examples:
  nnunet_nas compare -d 4 -m nnUNetTrainer__nnUNetPlans__2d nnUNetTrainer__nnUNetPlans__2d_xtiny8
  nnunet_nas compare -d 4 -m nnUNetTrainer__nnUNetPlans__2d nnUNetTrainer__nnUNetPlans__2d_xtiny8 -f 0 -o comparison
  nnunet_nas compare -m predictions_a predictions_b -ref labelsTs -metrics hd95 nsd --latex
  nnunet_nas compare -m base_seed0,base_seed1,base_seed2 tiny_seed0,tiny_seed1,tiny_seed2 -ref labelsTs
  nnunet_nas compare -m a b -ref labelsTs -patients patients.csv -metrics nsd -tolerance 1 tumour=2
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_nas.cli.common import format_table, quiet_output, select_device
from nnunet_nas.errors import printable
from nnunet_nas.files import require_writable

if TYPE_CHECKING:
    from nnunet_nas.evaluation.job import CompareSettings
    from nnunet_nas.evaluation.report import Report

SUMMARY = "compare trained models case by case: difference, equivalence, costs"
METRICS = ("hd95", "nsd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    parser.add_argument("-d", nargs="+", default=[], metavar="DATASET", help="data sets: numbers or names")
    parser.add_argument("-m", nargs="+", required=True, metavar="MODEL", help="two models or more, the reference first")
    parser.add_argument(
        "-f", nargs="+", type=_fold, default=[], metavar="FOLD", help="folds (default: all that were validated)"
    )
    parser.add_argument("-ref", type=Path, metavar="FOLDER", help="labels: to evaluate predictions, or if they moved")
    parser.add_argument("--common", action="store_true", help="compare the cases that all models have, name the others")
    parser.add_argument("--per_fold", action="store_true", help="compare each fold, and combine them (Fisher)")
    parser.add_argument("--searched", action="store_true", help="runs of a model may have different networks")
    parser.add_argument("-metrics", nargs="+", choices=METRICS, default=[], help="beside Dice: surface metrics")
    parser.add_argument(
        "-tolerance",
        nargs="+",
        type=_tolerance,
        default=[("", 1.0)],
        metavar="MM",
        help="of NSD: for all classes, or CLASS=MM for each (default: 1)",
    )
    parser.add_argument(
        "-patients", type=Path, metavar="FILE", help="whose case each one is: CSV or JSON, case,patient"
    )
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
    from nnunet_nas.evaluation import job

    settings = _settings(args)
    if args.o is not None:
        require_writable(args.o)
    with quiet_output():
        report = job.run(settings, _progress)
    _print(report, args)
    for note in report.notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    if args.o is not None:
        pictures = job.write(report, args.o)
        print(f"written: {pictures} picture(s), comparison.json and cases.csv in {args.o}", file=sys.stderr)
    if not (args.json or args.csv or args.latex):
        print(f"next: {job.next_command(report, settings)}", file=sys.stderr)
    return 0


def _settings(args: argparse.Namespace) -> CompareSettings:
    from nnunet_nas.evaluation.job import CompareSettings

    return CompareSettings(
        models=args.m,
        datasets=args.d,
        folds=args.f,
        labels=args.ref,
        common=args.common,
        per_fold=args.per_fold,
        searched=args.searched,
        metrics=args.metrics,
        tolerance=dict(args.tolerance),
        patients=args.patients,
        margin=args.margin,
        margin_mm=args.margin_mm,
        seed=args.seed,
        time_on=select_device(args.device) if args.time else None,
        processes=args.np,
    )


def _progress(items: Iterable[Any], total: int, title: str) -> Iterable[Any]:
    """The items, with a bar on standard error and on a terminal only."""
    from tqdm import tqdm

    return tqdm(items, title, total, file=sys.stderr, disable=not sys.stderr.isatty(), leave=False)


def _print(report: Report, args: argparse.Namespace) -> None:
    from nnunet_nas.evaluation import tables

    if args.json:
        print(json.dumps(report.to_json(), indent=4))
    elif args.csv:
        print(tables.comparison_csv(report.tables), end="")
    elif args.latex:
        print("\n\n".join(map(tables.comparison_latex, report.tables)))
    else:
        _print_text(report)


def _print_text(report: Report) -> None:
    from nnunet_nas.evaluation import tables
    from nnunet_nas.evaluation.report import letter

    for position, model in enumerate(report.groups[0].models):
        runs = f"  ({len(model.runs)} runs)" if model.others else ""
        print(printable(f"{letter(position)}  {model.name}{runs}"))
    for table in report.tables:
        print(f"\n{printable(table.group.title)}: {table.group.size}")
        print(format_table(*tables.comparison_text(table)))
    if report.combined:
        print(f"\n{format_table(*tables.combined_text(report.combined))}")
    for group, costs in zip(report.groups, report.costs, strict=True):
        if any(cost.spec is not None for cost in costs):
            title = f"\n{printable(group.dataset)}" if len(report.groups) > 1 else ""
            print(f"{title}\n{format_table(*tables.cost_text(group, costs), left=2)}")


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


def _tolerance(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    return name, _positive(value)


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


def _processes(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number of processes: 1 or more")
    return int(text)
