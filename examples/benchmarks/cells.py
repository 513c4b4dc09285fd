"""Whether searched cells in the skips of a narrow, trained network are worth more than what costs as much.

    export nnUNet_raw=... nnUNet_preprocessed=...   # as for widths.py, whose trainings are the backbones
    python examples/benchmarks/cells.py -d 107 -patch 128 -batch 4 -width 8 -o FOLDER -csv TABLE

The backbone is the plain training of widths.py with the same seed, at the end of its schedule. Arms, for all seeds:

- plain: the backbone, which is the identity;
- doubled: its training, twice as long: what is gained says how far from converged it is;
- searched: an IAC-LTH search on the backbone, then its residual cells trained in the frozen backbone;
- replaced: the same cells in the skips' place, as in the paper, at nnU-Net's rate;
- random0, random1, random2: random cells, trained as the searched ones: what the search has to beat;
- conv, attention: a 3x3 convolution, an attention gate in the cells' place;
- warm, warm_slow: the backbone's own network trained on, at nnU-Net's rate or at that of residual cells, for as many
  CPU seconds as the searched cells took in training (`warm_all`: with their search);
- wider: a plain network of the cells' MACs, trained once for as many iterations as backbone and cells together.

Rows as of widths.py; iterations are those of the arm alone, of cells the number asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from trainings import PER_EPOCH, Problem, Rows, add_arguments, length, open_study, row_of, train
from widths import student

CELLS = ("searched", "replaced", "random0", "random1", "random2", "conv", "attention")
WARM = {"warm": ("searched", 0.01), "warm_slow": ("searched", 0.002), "warm_all": ("all", 0.01)}
PLAIN = {"plain": 1, "doubled": 2}
ARMS = (*PLAIN, *CELLS, *WARM, "wider")
# Every training of cells has a learning rate of its own: residual ones start at the backbone, the others do not.
_FRESH_RATE, _FRESH = 0.01, ("attention", "replaced")


class Study:
    """All trainings of one data set."""

    def __init__(self, problem: Problem, rows: Rows, args: argparse.Namespace) -> None:
        self.problem, self.rows, self.args = problem, rows, args

    def run(self, arm: str, seed: int) -> dict[str, str]:
        """The row of one training, which is done if it is not there."""
        key = {"arm": arm, "detail": "-" if arm in PLAIN else f"on {self.args.width}", "seed": str(seed)}
        known = [row for row in self.rows.rows if key.items() <= row.items()]
        if known:
            return known[0]
        print(f"{arm}: seed {seed}", flush=True)
        kinds = ((PLAIN, self._plain), (CELLS, self._cells), (WARM, self._warm), (("wider",), self._wider))
        do = next(do for arms, do in kinds if arm in arms)
        return self.rows.add({**self.problem.fixed, **key, **do(arm, seed)})

    def _plain(self, arm: str, seed: int) -> dict[str, Any]:
        iterations = PLAIN[arm] * self.args.backbone_iterations
        _, name, trained = self._trained(iterations, seed)
        return {"width": self.args.width, "iterations": iterations, **row_of(self.problem, name, trained)}

    def _trained(self, iterations: int, seed: int) -> tuple[dict[str, Any], str, tuple[Any, float]]:
        """A plain training of the backbone's network: plans, its name, the trainer with its CPU seconds."""
        from nnunet_nas.schedule.trainer import nnUNetTrainerScheduled

        plans, name = student(self.problem, self.args.width, {"schedule": {**length(iterations), "seed": seed}})
        return plans, name, train(self.problem, nnUNetTrainerScheduled, name, plans, f"plain_{iterations}_{seed}")

    def _backbone(self, seed: int) -> tuple[dict[str, Any], str, Path]:
        """Plans with the backbone, its name, and its checkpoint."""
        plans, name, (trainer, _) = self._trained(self.args.backbone_iterations, seed)
        return plans, name, Path(trainer.output_folder) / "checkpoint_final.pth"

    def _searched(self, seed: int) -> dict[str, Any]:
        """Genotype and CPU seconds of a search, which is done once."""
        path = self.args.o / f"genotype_{self.problem.fixed['dataset']}_{self.args.width}_{seed}.json"
        if not path.exists():
            path.write_text(json.dumps(self._search(seed)))
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _search(self, seed: int) -> dict[str, Any]:
        import torch
        from chance_runs import CellsProbe

        plans, name, checkpoint = self._backbone(seed)
        settings = {
            **length(self.args.search_iterations),
            **{"warmup_epochs": self.args.warmup_epochs, "num_val_iterations_per_epoch": 0, "trial_iterations": 0},
            **{"seed": seed, "backbone_checkpoint": str(checkpoint)},
        }
        plans["configurations"][name]["nas_settings"] = {"iac_lth": settings}
        content = {**plans, "continue_training": False}
        trainer = CellsProbe(content, name, 0, self.problem.dataset_json, torch.device("cpu"))
        import time

        started = time.process_time()
        trainer.run_training()
        return {
            "genotype": trainer.genotype().to_json(),
            "cpu_seconds": round(time.process_time() - started, 1),
            "epochs": len(trainer.history),
            "operations_left": int(trainer.history.operations_left[-1]),
        }

    def _cells(self, arm: str, seed: int) -> dict[str, Any]:
        from nnunet_nas.skips.retrofit import nnUNetTrainerIACRetrofit

        plans, base, checkpoint = self._backbone(seed)
        settings = {
            **length(self.args.iterations),
            "seed": seed,
            "backbone_checkpoint": str(checkpoint),
            "init": "random",
        }
        settings["initial_lr"] = _FRESH_RATE if arm in _FRESH else 0.002
        architecture = plans["configurations"][base]["architecture"]
        name = f"{base}_{arm}"
        entry = self._entry(plans, base, name, self._with_modules(architecture, arm, seed))
        plans["configurations"][name] = {**entry, "nas_settings": {"iac_retrofit": settings}}
        run = f"{arm}_{self.args.iterations}_{seed}"
        trained = train(self.problem, nnUNetTrainerIACRetrofit, name, plans, run)
        return {"width": self.args.width, "iterations": self.args.iterations, **row_of(self.problem, name, trained)}

    def _entry(self, plans: dict[str, Any], base: str, name: str, architecture: dict[str, Any]) -> dict[str, Any]:
        from nnunet_nas.plans import DerivedConfiguration, Plans, Provenance

        provenance = Provenance("skip", Plans(plans).digest(base), {})
        return DerivedConfiguration(name, base, architecture, provenance).entry()

    def _with_modules(self, architecture: dict[str, Any], arm: str, seed: int) -> dict[str, Any]:
        from nnunet_nas.iac.cell import cell_width
        from nnunet_nas.iac.genotype import Genotype, cells_architecture
        from nnunet_nas.iac.sampling import random_genotype
        from nnunet_nas.plans import wrapped

        if arm in ("conv", "attention"):
            return wrapped(architecture, "nnunet_nas.skips.network.SkipModuleUNet", skip_module=arm)
        if arm in ("searched", "replaced"):
            genotype = Genotype.from_json(self._searched(seed)["genotype"])
        else:
            genotype = random_genotype(np.random.default_rng([seed, int(arm[-1])]))
        skips = architecture["arch_kwargs"]["features_per_stage"][:-1]
        widths = [cell_width(channels, minimum=4, divisor=4, multiple=4) for channels in skips]
        return cells_architecture(architecture, genotype, widths=widths, norm="backbone", residual=arm != "replaced")

    def _warm(self, arm: str, seed: int) -> dict[str, Any]:
        from nnunet_nas.schedule.trainer import nnUNetTrainerScheduled

        plans, name, checkpoint = self._backbone(seed)
        paid, rate = WARM[arm]
        seconds = float(self.run("searched", seed)["cpu_seconds"])
        seconds += self._searched(seed)["cpu_seconds"] if paid == "all" else 0
        spent = float((checkpoint.parent / "cpu_seconds").read_text())
        iterations = max(1, round(seconds / spent * self.args.backbone_iterations / PER_EPOCH)) * PER_EPOCH
        settings = {
            **length(iterations),
            "seed": seed + 1000,
            "initial_lr": rate,
            "initial_checkpoint": str(checkpoint),
        }
        plans["configurations"][name]["nas_settings"] = {"schedule": settings}
        trained = train(self.problem, nnUNetTrainerScheduled, name, plans, f"{arm}_{self.args.iterations}_{seed}")
        return {"width": self.args.width, "iterations": iterations, **row_of(self.problem, name, trained)}

    def _wider(self, arm: str, seed: int) -> dict[str, Any]:
        from nnunet_nas.schedule.trainer import nnUNetTrainerScheduled

        wanted = float(self.run("searched", seed)["macs"])
        width = min(range(self.args.width, 3 * self.args.width), key=lambda w: abs(self._macs(w) - wanted))
        iterations = self.args.backbone_iterations + self.args.iterations
        plans, name = student(self.problem, width, {"schedule": {**length(iterations), "seed": seed}})
        trained = train(self.problem, nnUNetTrainerScheduled, name, plans, f"{arm}_{iterations}_{seed}")
        return {"width": width, "iterations": iterations, **row_of(self.problem, name, trained)}

    def _macs(self, width: int) -> float:
        from nnunet_nas.architecture import network_spec
        from nnunet_nas.complexity import complexity_of
        from nnunet_nas.environment import find_preprocessed_dataset
        from nnunet_nas.plans import Plans

        plans, name = student(self.problem, width, {})
        path = find_preprocessed_dataset(self.problem.plans["dataset_name"]) / "nnUNetPlans.json"
        return float(complexity_of(network_spec(Plans(plans, path), name)).macs)


def main() -> None:
    """Parses the call, trains what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "folder of all trainings, that of widths.py")
    parser.add_argument("-width", type=int, default=8, help="of the backbone (default: %(default)s)")
    parser.add_argument("-seeds", nargs="+", type=int, default=[0, 1, 2], help="default: %(default)s")
    parser.add_argument("-arms", nargs="+", choices=ARMS, default=ARMS, help="default: all")
    parser.add_argument("-iterations", type=int, default=500, help="of the cells (default: %(default)s)")
    parser.add_argument("-backbone_iterations", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("-search_iterations", type=int, default=600, help="at most (default: %(default)s)")
    parser.add_argument("-warmup_epochs", type=int, default=3, help=f"of {PER_EPOCH} iterations (default: %(default)s)")
    args = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        study = Study(*open_study(args), args)
        for seed in args.seeds:
            for arm in args.arms:
                study.run(arm, seed)


if __name__ == "__main__":
    main()
