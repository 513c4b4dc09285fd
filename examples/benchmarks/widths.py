"""How narrow a network may be: widths trained from start to end, several seeds, judged on cases never seen.

    export nnUNet_raw=... nnUNet_preprocessed=...   # planned and preprocessed; of nnUNet_raw the hold-out is read
    python examples/benchmarks/widths.py -d 107 -patch 128 -batch 4 -o FOLDER -csv examples/evidence/widths/107_2d.csv

Arms (`-arms`), each for all widths and seeds:

- plain: nnU-Net's training by the labels;
- distill: labels and the logits of the widest network's plain training, as many iterations; it begins with the same
  weights as the plain training and sees the same patches;
- further: plain, as many iterations as the distillation's CPU time would have paid for;
- doubled: plain, twice as many iterations, of the widest network alone: what is gained says how far from converged.

A row per training, with its Dice on the fold's validation cases and on the hold-out, a score per case, and the training
loss of every 50 iterations. What is there is not done again; a training that was cut off goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainings import PER_EPOCH, Problem, Rows, add_arguments, length, open_study, row_of, train

from nnunet_nas.xtiny.widths import candidate_name, capped_features

ARMS = ("plain", "doubled", "distill", "further")


def student(problem: Problem, width: int, settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Plans with a narrow configuration, and its name."""
    architecture = deepcopy(problem.plans["configurations"][problem.configuration]["architecture"])
    features = architecture["arch_kwargs"]["features_per_stage"]
    architecture["arch_kwargs"]["features_per_stage"] = capped_features(features, width)
    name = candidate_name(problem.configuration, width)
    return problem.with_entry(name, {"architecture": architecture, "nas_settings": settings}), name


class Study:
    """All trainings of one data set."""

    def __init__(self, problem: Problem, rows: Rows, args: argparse.Namespace) -> None:
        self.problem, self.rows, self.args = problem, rows, args

    def run(self, arm: str, width: int, seed: int) -> dict[str, str] | None:
        """The row of one training, which is done if it is not there; None where the arm has none."""
        widest = width == max(self.args.widths)
        if widest != (arm == "doubled") and arm != "plain":
            return None
        iterations, detail = self.args.iterations, "-"
        if arm == "doubled":
            iterations *= 2
        if arm == "distill":
            teacher = f"{max(self.args.widths)}t{self._teacher_seed(seed)}"
            detail = f"T{self.args.temperature:g}w{self.args.weight:g}of{teacher}"
        if arm == "further":
            iterations, detail = self._paid_for(width, seed), f"of {self.args.iterations}"
        key = {"arm": arm, "detail": detail, "width": width, "seed": seed, "iterations": iterations}
        key = {**self.problem.fixed, **key}
        return self.rows.find(key) or self.rows.add({**key, **self._measured(arm, width, seed, iterations)})

    def _paid_for(self, width: int, seed: int) -> int:
        """Iterations of plain training for the CPU time of a distillation, in whole epochs."""
        spent = [float(self.run(arm, width, seed)["cpu_seconds"]) for arm in ("plain", "distill")]
        return round(self.args.iterations * max(1.0, spent[1] / spent[0]) / PER_EPOCH) * PER_EPOCH

    def _measured(self, arm: str, width: int, seed: int, iterations: int) -> dict[str, Any]:
        from nnunet_nas.distill.trainer import nnUNetTrainerDistill
        from nnunet_nas.schedule.trainer import nnUNetTrainerScheduled

        schedule = {**length(iterations), "seed": seed}
        print(f"{arm}: width {width}, seed {seed}, {iterations} iterations", flush=True)
        if arm == "distill":
            plans, teacher, trained = self._teacher(seed)
            address = {"teacher_configuration": teacher, "teacher_checkpoint": str(trained)}
            settings = {**schedule, **address, "weight": self.args.weight, "temperature": self.args.temperature}
            plans, name = student(replace(self.problem, plans=plans), width, {"distill": settings})
            cls: Any = nnUNetTrainerDistill
        else:
            plans, name = student(self.problem, width, {"schedule": schedule})
            cls = nnUNetTrainerScheduled
        return row_of(self.problem, name, train(self.problem, cls, name, plans, f"{arm}_{iterations}_{seed}"))

    def _teacher_seed(self, seed: int) -> int:
        return seed if self.args.teacher_seed is None else int(self.args.teacher_seed)

    def _teacher(self, seed: int) -> tuple[dict[str, Any], str, Path]:
        """Plans with the widest network, its name, and its checkpoint."""
        from nnunet_nas.schedule.trainer import nnUNetTrainerScheduled

        seed = self._teacher_seed(seed)
        schedule = {**length(self.args.iterations), "seed": seed}
        plans, name = student(self.problem, max(self.args.widths), {"schedule": schedule})
        run = f"plain_{self.args.iterations}_{seed}"
        trainer, _ = train(self.problem, nnUNetTrainerScheduled, name, plans, run)
        return plans, name, Path(trainer.output_folder) / "checkpoint_final.pth"


def main() -> None:
    """Parses the call, trains what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("-widths", nargs="+", type=int, default=[64, 32, 16, 8, 4, 2, 1], help="default: %(default)s")
    parser.add_argument("-seeds", nargs="+", type=int, default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("-arms", nargs="+", choices=ARMS, default=["plain"], help="default: %(default)s")
    parser.add_argument("-iterations", type=int, default=1000, help="of each training (default: %(default)s)")
    parser.add_argument("-temperature", type=float, default=2.0, help="default: %(default)s")
    parser.add_argument("-weight", type=float, default=1.0, help="of the teacher (default: %(default)s)")
    parser.add_argument("-teacher_seed", type=int, help="one teacher for all seeds (default: that of the same seed)")
    args = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        study = Study(*open_study(args), args)
        for arm in args.arms:
            for seed in args.seeds:
                for width in args.widths:
                    study.run(arm, width, seed)


if __name__ == "__main__":
    main()
