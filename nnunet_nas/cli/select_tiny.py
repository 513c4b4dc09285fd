"""Find the smallest channel width that still works (XTinyU-Net).

Compares ever narrower versions of a configuration, selects one, and adds the candidates to the plans as configurations
that nnUNetv2_train takes like any other. By default it trains them for a while (a race, ours); `-rule paper` scores
them on a few images without training and without labels, as the paper does: that costs seconds, and was no better than
a constant wherever it was compared with trained widths. Writes scores.csv, selection.json and a picture beside the
plans. An interrupted run goes on where it was; a finished one answers at once.

examples:
  nnunet_nas select_tiny -d 4 -c 2d
  nnunet_nas select_tiny -d 4 -margin 0.02 -horizon 250000 -race_budget 5000
  nnunet_nas select_tiny -d 4 -rule paper -c 3d_fullres -n 16 -seed 0 1 2
  nnunet_nas select_tiny -d 4 -rule spread -seed 0 1 2 3 4 5 6 7 8 9 --dry_run
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_nas.cli.common import add_dataset_arguments, format_table, quiet_output, select_device
from nnunet_nas.commands import train_and_predict
from nnunet_nas.environment import dataset_number, find_preprocessed_dataset
from nnunet_nas.xtiny.request import DEFAULT_SEED, RACE, TinySettings, finished_report, results_folder

if TYPE_CHECKING:
    from nnunet_nas.xtiny.job import TinyJob
    from nnunet_nas.xtiny.report import Report

SUMMARY = "find the smallest channel width that still works (XTinyU-Net)"
# Named here too, because importing the modules that define them would import torch.
METRICS = ("jacobian", "naswot", "swap", "az_nas", "synflow")
RULES = ("paper", "spread", "race")
_KEPT = "scores so far are kept, the same command goes on from there"
_BUDGETS = {"max_params": "parameters", "max_macs": "macs", "max_memory_mib": "inference_mib"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", default="2d", metavar="CONFIGURATION", help="base configuration (default: %(default)s)")
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "-n",
        type=_number_of_images,
        metavar="N|all",
        help="images to score (default: 2, which say what more do, under as many seeds as each width is worth; for "
        "other metrics than jacobian up to 64). The paper's way is -n 64",
    )
    images.add_argument("-cases", nargs="+", default=(), metavar="CASE", help="score exactly these training cases")
    parser.add_argument(
        "-seed",
        nargs="+",
        type=_seed,
        default=[],
        metavar="SEED",
        help=f"of weights, for all widths (default: {DEFAULT_SEED}, and more for each width where -n is not given)",
    )
    parser.add_argument(
        "-image_seed", type=_seed, default=DEFAULT_SEED, metavar="SEED", help="draws the images (default: %(default)s)"
    )
    parser.add_argument("-metric", choices=METRICS, default="jacobian", help="score at initialisation (%(default)s)")
    parser.add_argument(
        "-rule",
        choices=RULES,
        default=RACE,
        help="paper: where the mean curve starts to vary; spread (5 seeds or more): the narrowest width whose score "
        "does not hinge on the random weights; race: the narrowest width that, trained with labels for a while, no "
        "wider one will beat by more than the margin (default: %(default)s)",
    )
    parser.add_argument(
        "-margin", type=_margin, default=0.01, help="race: Dice that may be lost (default: %(default)s)"
    )
    parser.add_argument(
        "-horizon", type=_positive, default=250_000, metavar="N", help="race: iterations you will train (%(default)s)"
    )
    parser.add_argument(
        "-race_budget",
        type=_positive,
        default=5000,
        metavar="N",
        help="race: base iterations that it costs (%(default)s)",
    )
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: %(default)s")
    parser.add_argument(
        "-batch_size",
        type=_positive,
        metavar="B",
        help="images scored at once (default: by memory), or patches per iteration of a race (default: as planned)",
    )
    parser.add_argument("-max_params", "--max_params", type=_positive, metavar="N", help="budget: parameters")
    parser.add_argument("-max_macs", "--max_macs", type=_positive, metavar="N", help="budget: MACs of one patch")
    parser.add_argument(
        "-max_memory_mib", "--max_memory_mib", type=_positive, metavar="MIB", help="budget: activations in inference"
    )
    parser.add_argument("-o", metavar="PLANS", help="write a separate plans file of this identifier")
    parser.add_argument("--json", action="store_true", help="print the content of selection.json")
    parser.add_argument("--dry_run", action="store_true", help="score and select, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace configurations of the same names")


def run(args: argparse.Namespace) -> int:
    """Scores, selects, writes, prints; what was all done before is only printed."""
    started = time.perf_counter()
    dataset = find_preprocessed_dataset(args.d)
    settings = _settings(args)
    finished = finished_report(dataset, settings, args.device)
    report, added, earlier = _select(dataset, settings, args.device) if finished is None else (finished, [], None)
    selected = report["selected"]["configuration"]
    commands = train_and_predict(dataset_number(dataset.name), selected, plans=args.o or args.p)
    if args.json:
        print(json.dumps({**report, "written": added, "next_commands": commands}, indent=4))
        return 0
    _print_report(report, seconds=time.perf_counter() - started)
    if args.dry_run:
        print("\nNothing was written (dry run). Without --dry_run, the next commands would be:")
    else:
        if earlier is not None:
            print(f"An earlier run was another one, its reports are kept: {earlier}")
        print(f"{_written_sentence(added)} Details: {results_folder(dataset, settings)}\n\nNext:")
    print("\n".join(f"  {command}" for command in commands))
    return 0


def _select(dataset: Path, settings: TinySettings, device: str) -> tuple[dict[str, Any], list[str], Path | None]:
    """The content of selection.json, the configurations that were added, where an earlier run's reports are now."""
    with quiet_output():
        from nnunet_nas.xtiny.width_job import Written

        if settings.rule == RACE:
            return _race(dataset, settings, device)
        from nnunet_nas.xtiny.job import TinyJob

        job = TinyJob(dataset, settings, select_device(device))
        with job.alone():
            report = _score(job)
            written = Written([], None) if settings.dry_run else job.write(report)
    return report.to_json(), written.configurations, written.earlier


def _race(dataset: Path, settings: TinySettings, device: str) -> tuple[dict[str, Any], list[str], Path | None]:
    from nnunet_nas.xtiny.race_job import RaceJob

    job = RaceJob(dataset, settings, select_device(device))
    print(job.announcement(), file=sys.stderr)
    with job.alone(), _progress_bar(settings.race_budget, unit="base iteration") as progress:
        try:
            report = job.run(progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_KEPT) from None
        written = job.write(report)
    return report.to_json(), written.configurations, written.earlier


def _settings(args: argparse.Namespace) -> TinySettings:
    return TinySettings(
        configuration=args.c,
        plans=args.p,
        images=args.n,
        cases=tuple(args.cases),
        seeds=tuple(args.seed),
        image_seed=args.image_seed,
        metric=args.metric,
        rule=args.rule,
        budgets={cost: getattr(args, option) for option, cost in _BUDGETS.items() if getattr(args, option)},
        batch_size=args.batch_size,
        output=args.o,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        margin=args.margin,
        horizon=args.horizon,
        race_budget=args.race_budget,
    )


def _score(job: TinyJob) -> Report:
    with _progress_bar(job.steps()) as progress:
        try:
            return job.run(progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was kept (dry run)" if job.settings.dry_run else _KEPT) from None


@contextlib.contextmanager
def _progress_bar(total: int, unit: str = "score") -> Iterator[Callable[[float], object]]:
    """A bar over (candidate, image) with the time left, on standard error and on a terminal only."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, file=sys.stderr, disable=not sys.stderr.isatty(), leave=False) as bar:
        yield bar.update


def _print_report(report: dict[str, Any], *, seconds: float) -> None:
    """The content of selection.json as a table and sentences."""
    inputs, selected = report["inputs"], report["selected"]["configuration"]
    race = report["rule"] == RACE
    name = {"jacobian": "sensitivity", "dice": "Dice"}.get(inputs["metric"], inputs["metric"])
    header = ["configuration", "cap", "parameters", "MACs", "memory MiB", name]
    header += ["iterations" if race else "difference", ""]
    if race:
        last = [f"{candidate['iterations']:,}" for candidate in report["candidates"]]
    else:
        last = ["", *(f"{value:.3f}" for value in report["paper_rule"]["differences"])]
    rows = [
        [
            candidate["configuration"],
            str(candidate["cap"]),
            f"{candidate['parameters']:,}",
            f"{candidate['macs'] / 1e9:.3f} G",
            f"{candidate['inference_mib']:.1f}",
            "" if candidate["score"] is None else f"{candidate['score']:.5g}",
            column,
            "<- selected" if candidate["configuration"] == selected else "",
        ]
        for candidate, column in zip(report["candidates"], last, strict=True)
    ]
    print(format_table(header, rows))
    print()
    for line in (*report["notes"], *report["stability"]):
        print(line)
    print(f"{len(inputs['cases'])} images, {_number_of_seeds(report)} seed(s), {seconds:.1f} s.")


def _number_of_seeds(report: dict[str, Any]) -> str:
    """Of all widths, or from the fewest to the most of one."""
    if common := report["inputs"]["seeds"]:
        return str(len(common))
    numbers = [len(candidate["score_by_seed"]) for candidate in report["candidates"]]
    return f"{min(numbers)} to {max(numbers)}"


def _written_sentence(written: Sequence[str]) -> str:
    return f"Added {', '.join(written)} to the plans." if written else "The plans had these configurations already."


def _number_of_images(text: str) -> int | str:
    return "all" if text == "all" else _positive(text)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return value


def _margin(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a difference of Dice: between 0 and 1")
    return value


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a seed: a whole number from 0 to {2**32 - 1}")
    return value
