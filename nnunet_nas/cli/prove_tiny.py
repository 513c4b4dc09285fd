"""Prove that a narrow network does what its base does, so that the result can stand in a paper.

Takes the trained base, trains candidate widths as it was trained (nnUNetv2_train; --distill: by our trainer), evaluates
all of them as nnU-Net does, on hold-out cases (imagesTs and labelsTs of nnUNet_raw) or on the validation cases of the
folds, and ends with the smallest width that is equivalent to the base within -margin: two one-sided tests, per case or,
with -patients, per patient. Writes proof.txt, proof.json, proof.csv, cases.csv and proof.png beside the plans.
Interrupted or killed, it goes on where it was.

The probability of any false claim is at most 5 %, in both orders:
  -order narrow  from the narrowest width on, each at 5 % over the number of planned widths, up to the first that
                 passes: wider ones are not trained
  -order wide    from the widest width on, each at 5 %, up to the first that fails: more power for a single width, but
                 all wider ones must pass as well, and the costly ones are trained first
Name the widths before you look at any of their results.

examples:
  nnunet_nas prove_tiny -d 4 -c 2d -f 0
  nnunet_nas prove_tiny -d 4 -c 2d -f 0 1 2 3 4 -widths 8 16 32 -order wide -patients patients.csv
  nnunet_nas prove_tiny -d 4 -c 2d -f 0 -widths 8 16 --distill
  nnunet_nas prove_tiny -d 4 -c 2d -f 0 --dry_run
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_nas.cli.common import add_dataset_arguments, format_table, quiet_output, select_device
from nnunet_nas.commands import train_and_predict
from nnunet_nas.environment import find_preprocessed_dataset

if TYPE_CHECKING:
    from nnunet_nas.xtiny.proof_job import ProofJob
    from nnunet_nas.xtiny.proof_report import ProofReport
    from nnunet_nas.xtiny.proof_request import ProofSettings

SUMMARY = "prove that a narrow network does what its base does"
# Named here too, because importing the modules that define them would import torch.
ORDERS, CLAIMS, JUDGES = ("narrow", "wide"), ("equivalent", "not_worse"), ("auto", "test", "validation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", default="2d", metavar="CONFIGURATION", help="base configuration (default: %(default)s)")
    parser.add_argument(
        "-f", nargs="+", type=_fold, required=True, metavar="FOLD", help="folds to train, or all (judged on hold-out)"
    )
    parser.add_argument("-tr", metavar="TRAINER", help="trainer of base and candidates (default: that of the base)")
    parser.add_argument(
        "-widths",
        nargs="+",
        type=_whole,
        default=[],
        metavar="CAP",
        help="candidates (default: the selected width and the two next wider ones)",
    )
    parser.add_argument("-margin", type=_margin, default=0.01, help="Dice that does not matter (default: %(default)s)")
    parser.add_argument("-order", choices=ORDERS, default="narrow", help="of testing (default: %(default)s)")
    parser.add_argument(
        "-claim",
        choices=CLAIMS,
        default="equivalent",
        help="not_worse: content with the lower side of the margin (default: %(default)s)",
    )
    parser.add_argument(
        "-distill", "--distill", action="store_true", help="candidates learn from the base (nnUNetTrainerDistill)"
    )
    parser.add_argument(
        "-judge", choices=JUDGES, default="auto", help="cases: hold-out (test) or validation (default: hold-out if any)"
    )
    parser.add_argument(
        "-patients", type=Path, metavar="FILE", help="whose case each one is: CSV or JSON, case,patient"
    )
    parser.add_argument("-seed", type=_whole, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: %(default)s")
    parser.add_argument("-np", type=_positive, metavar="N", help="processes that predict and evaluate (nnU-Net's)")
    parser.add_argument("--json", action="store_true", help="print the content of proof.json")
    parser.add_argument("--dry_run", action="store_true", help="say what it will cost and train nothing")


def run(args: argparse.Namespace) -> int:
    """Checks, says what it costs, trains, evaluates, decides, prints."""
    dataset = find_preprocessed_dataset(args.d)
    with quiet_output():
        from nnunet_nas.xtiny.proof_job import ProofJob

        job = ProofJob(dataset, _settings(args))
        select_device(args.device)
    for line in job.announcement():
        print(line, file=sys.stderr)
    if args.dry_run:
        print("Nothing was trained (dry run).", file=sys.stderr)
        return 0
    with quiet_output():
        report, earlier = _prove(job)
    if earlier is not None:
        print(f"An earlier proof was another one, its reports are kept: {earlier}", file=sys.stderr)
    _print(report, job, args)
    return 0


def _prove(job: ProofJob) -> tuple[ProofReport, Path | None]:
    with job.alone(_say) as bench:
        try:
            report = job.run(bench)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("trainings so far are kept, the same command goes on from there") from None
        return report, job.write(report, _text(report))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(report: ProofReport, job: ProofJob, args: argparse.Namespace) -> None:
    chosen = job.base.configuration if report.chosen is None else report.chosen.configuration
    model = job.base if report.chosen is None else job.candidate(report.chosen.cap)
    folds = " ".join(args.f)
    next_command = train_and_predict(job.plans.number, chosen, folds, plans=args.p, trainer=model.trainer)[1]
    if args.json:
        print(json.dumps({**report.to_json(), "next_commands": [next_command]}, indent=4))
        return
    print(_text(report))
    print(f"Details: {job.output_folder}\n\nNext:\n  {next_command}")


def _text(report: ProofReport) -> str:
    from nnunet_nas.xtiny.proof_report import table

    return "\n".join([format_table(*table(report)), "", *report.sentences()])


def _settings(args: argparse.Namespace) -> ProofSettings:
    from nnunet_nas.xtiny.proof_request import ProofSettings

    return ProofSettings(
        configuration=args.c,
        plans=args.p,
        folds=tuple(args.f),
        trainer=args.tr,
        widths=tuple(args.widths),
        margin=args.margin,
        order=args.order,
        claim=args.claim,
        distill=args.distill,
        judge=args.judge,
        patients=args.patients,
        seed=args.seed,
        device=args.device,
        processes=args.np,
    )


def _fold(text: str) -> str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no fold: a number or all")
    return text


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number of processes: 1 or more")
    return int(text)


def _margin(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a difference of Dice: between 0 and 1")
    return value
