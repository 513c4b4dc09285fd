"""Draws a synthetic 2-D data set into nnUNet_raw, to try everything out without any data.

Body, organ, vessel and lesions with the noise, bias field and contrast variation of magnetic resonance images. The
data set says of itself that it is synthetic; scores on it say nothing about patients.

Example:
  nnunet_nas phantom -d 999
"""

from __future__ import annotations

import argparse
import json
import sys

from nnunet_nas.environment import folder_from_environment
from nnunet_nas.errors import UsageError

SUMMARY = "draw a synthetic data set to try things out"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `phantom`."""
    parser.add_argument("-d", required=True, metavar="NUMBER", help="number of the new data set, 1 to 999")
    parser.add_argument("-n", type=int, default=24, metavar="N", help="training cases (default: %(default)s)")
    parser.add_argument("-n_test", type=int, default=8, metavar="N", help="unseen cases (default: %(default)s)")
    parser.add_argument(
        "-size", type=int, default=128, metavar="PIXELS", help="height and width of the images (default: %(default)s)"
    )
    parser.add_argument("-seed", type=int, default=0, help="other seeds draw other images (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Runs `phantom`."""
    if not args.d.isdecimal():
        raise UsageError(f"-d {args.d} is not a number: the name follows from it, as in Dataset999_Phantom")
    raw = folder_from_environment("nnUNet_raw")
    from nnunet_nas.phantom import LABELS, write_dataset

    if sys.stderr.isatty():
        print(f"drawing {args.n + args.n_test} cases ...", file=sys.stderr)
    folder = write_dataset(
        raw,
        number=int(args.d),
        num_train=args.n,
        num_test=args.n_test,
        shape=(args.size, args.size),
        seed=args.seed,
    )
    following = f"nnUNetv2_plan_and_preprocess -d {int(args.d)} -c 2d"
    if args.json:
        report = {
            "dataset": folder.name,
            "folder": str(folder),
            "synthetic": True,
            "labels": LABELS,
            "training_cases": args.n,
            "test_cases": args.n_test,
            "size": args.size,
            "seed": args.seed,
            "next": following,
        }
        print(json.dumps(report, indent=4))
    else:
        print(f"{folder}: {args.n} training and {args.n_test} unseen cases, all synthetic")
        print(f"next: {following}")
    return 0
