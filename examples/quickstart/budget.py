"""Divides the quickstart's time: what is left of it, less what must follow, as this machine measures it now.

Nothing is guessed from one timing of an iteration: the trainings end at a deadline by themselves (see the trainer), and
what follows them is counted in starts of nnU-Net, whose duration was measured, and in cases to predict, one of which
each training has predicted with the clock running.
"""

import argparse
import json
from pathlib import Path

# Less shows nothing; more is not needed to show how the commands work together.
MIN_TRAINING, MAX_TRAINING = 30, 150
# What comes after this point starts nnU-Net: two trainings, two predictions, two evaluations, the count of parameters;
# an export takes as long as three starts.
STARTS_WITH_TRAININGS, STARTS_AFTER_TRAININGS = 10, 8
# A machine may become busier than it was when something was measured.
RESERVE = 1.25
# Seconds kept for predicting before anything is known of it.
FOR_PREDICTION = 40


def training_seconds(*, left: float, start: float) -> int:
    """Seconds for each of the two trainings.

    Args:
        left: seconds to the end of the quickstart's time.
        start: seconds that a start of nnU-Net takes.
    """
    fitting = (left - RESERVE * STARTS_WITH_TRAININGS * start - FOR_PREDICTION) / 2
    return int(max(MIN_TRAINING, min(MAX_TRAINING, fitting)))


def cases_to_predict(*, left: float, start: float, per_case: float, limit: int) -> int:
    """Unseen cases that both models can predict in time, at least one.

    Args:
        left: as above.
        start: as above.
        per_case: seconds that one case takes with both models.
        limit: no more than these; 0 for no limit.
    """
    fitting = (left - RESERVE * STARTS_AFTER_TRAININGS * start) / (RESERVE * per_case)
    return int(max(1, min(limit or fitting, fitting)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("training", "cases"))
    parser.add_argument("-left", required=True, type=float, help="seconds to the end")
    parser.add_argument("-start", required=True, type=float, help="seconds that a start of nnU-Net takes")
    parser.add_argument("-limit", type=int, default=20, help="cases: no more than these; 0: no limit")
    parser.add_argument("-reports", type=Path, nargs="*", default=[], help="cases: what the trainings left")
    args = parser.parse_args()
    if args.what == "training":
        print(training_seconds(left=args.left, start=args.start))
    else:
        per_case = sum(json.loads(report.read_text())["seconds_per_case"] for report in args.reports)
        print(cases_to_predict(left=args.left, start=args.start, per_case=per_case, limit=args.limit))


if __name__ == "__main__":
    main()
