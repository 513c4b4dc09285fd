"""nnU-Net plans again, in place and without a lock, while we add: what is lost must be said.

One trial: nnU-Net's own `nnUNetv2_plan_experiment` runs in one process. It plans ten times instead of once, at random
instants and with another batch size each time, as somebody would who tries budgets of memory. Now and then it stops
between reading the old plans and writing, for up to two seconds, as on a machine with too much to do. Meanwhile three
processes add configurations and settings. An addition that is refused in one line was said to be lost. Whatever was
reported as done must be there in the end, and so must be the last batch size that nnU-Net reported.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from campaign import Campaign, last_line
from processes import Program, warm_up
from writers import is_there

from nnunet_nas.errors import NasError

_WRITES, _ADDERS = 10, 3
_PAUSE_SECONDS, _ANEW_SECONDS = 0.2, 0.001
# How often nnU-Net's planning stops between reading and writing, and for how long at most.
_LATE, _LATE_SECONDS = 0.2, 2.0
_SHAPE = (10, 36, 36)


def replans(campaign: Campaign, seed: int) -> None:
    """One trial."""
    warm_up()
    path, told = _start(campaign.root), campaign.root / "told"
    shutil.rmtree(told, ignore_errors=True)
    told.mkdir()
    planning = Program(partial(_plan, told / "planned", seed), campaign.root / "log")
    adding = [
        Program(partial(_add, path, told / str(number), number), told / f"log{number}") for number in range(_ADDERS)
    ]
    if planning.wait():
        campaign.fail(seed, f"nnU-Net's planning: {last_line(planning.said)}")
    (told / "stop").touch()
    for program in adding:
        if program.wait():
            campaign.fail(seed, f"an addition: {last_line(program.said)}")
    _compare(campaign, seed, path, told)


def _start(root: Path) -> Path:
    """A data set of which nnU-Net knows all that planning asks for."""
    from fake_dataset import CASES, DATASET, write_dataset

    raw, dataset = root / "nnUNet_raw" / DATASET, root / "nnUNet_preprocessed" / DATASET
    if not raw.exists():
        _run(lambda: write_dataset(dataset), root / "log")
        _run(lambda: _write_images(raw, CASES), root / "log")
        shutil.copy(dataset / "dataset.json", raw / "dataset.json")
        _run(lambda: _plan(root / "planned", 0, writes=1), root / "log")
        content = json.loads((dataset / "nnUNetPlans.json").read_text())
        content["configurations"] |= {f"mine_{number}": {"inherits_from": "3d_fullres"} for number in range(_ADDERS)}
        (root / "start.json").write_text(json.dumps(content, indent=4))
    shutil.copy(root / "start.json", dataset / "nnUNetPlans.json")
    return dataset / "nnUNetPlans.json"


def _run(function: Callable[[], Any], log: Path) -> None:
    program = Program(function, log)
    if program.wait():
        raise RuntimeError(program.said)


def _write_images(raw: Path, cases: tuple[str, ...]) -> None:
    import SimpleITK as sitk

    for folder, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
        (raw / folder).mkdir(parents=True)
        for case in cases:
            sitk.WriteImage(sitk.GetImageFromArray(np.zeros(_SHAPE, np.uint8)), raw / folder / f"{case}{ending}.nii.gz")


def _plan(told: Path, seed: int, writes: int = _WRITES) -> None:
    """`nnUNetv2_plan_experiment`, which plans several times."""
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_experiment_entry

    plan, save, rng = ExperimentPlanner.plan_experiment, ExperimentPlanner.save_plans, random.Random(seed)
    write, number = default_experiment_planner.save_json, 100

    def plan_often(self: Any) -> None:
        nonlocal number
        for number in range(100, 100 + writes):
            plan(self)
            told.write_text(str(number))
            time.sleep(rng.uniform(0, _PAUSE_SECONDS))

    def save_numbered(self: Any, plans: dict[str, Any]) -> None:
        plans["configurations"]["2d"]["batch_size"] = number
        save(self, plans)

    def write_late(*arguments: Any, **options: Any) -> None:
        if rng.random() < _LATE:
            time.sleep(rng.uniform(0, _LATE_SECONDS))
        write(*arguments, **options)

    ExperimentPlanner.plan_experiment, ExperimentPlanner.save_plans = plan_often, save_numbered
    default_experiment_planner.save_json = write_late
    os.environ["nnUNet_n_proc_DA"] = "1"  # so many threads it asks torch for, and refuses none
    sys.argv = ["nnUNetv2_plan_experiment", "-d", "11"]
    plan_experiment_entry()


def _add(path: Path, told: Path, number: int) -> None:
    """Adds until nnU-Net has planned; notes what was done and what was refused."""
    while not (told.with_name("planned")).exists():
        time.sleep(_ANEW_SECONDS)
    addition = 0
    while not told.with_name("stop").exists():
        try:
            note: Any = _set(path, number, addition) if addition % 2 else _derive(path, number, addition)
        except NasError as error:
            note = str(error)
        with told.open("a") as file:
            file.write(json.dumps(note) + "\n")
        addition += 1


def _derive(path: Path, number: int, addition: int) -> list[Any]:
    from nnunet_nas.plans import DerivedConfiguration, Plans, Provenance

    plans, name = Plans.read(path), f"3d_{number}_{addition}"
    record = Provenance("encoder", plans.digest("3d_fullres"), {})
    plans.add([DerivedConfiguration(name, "3d_fullres", plans.resolve("3d_fullres")["architecture"], record)])
    return [name]


def _set(path: Path, number: int, addition: int) -> list[Any]:
    """In a configuration of this process, because planning takes away what stands in nnU-Net's own."""
    from nnunet_nas.plans import Plans

    with Plans.edited(path) as plans:
        plans.set(f"mine_{number}", "dints", {"seed": addition})
    return [f"mine_{number}", "dints", "seed", addition]


def _compare(campaign: Campaign, seed: int, path: Path, told: Path) -> None:
    from nnunet_nas.plans import Plans

    plans = Plans.read(path)
    for number in range(_ADDERS):
        lines = (told / str(number)).read_text().splitlines() if (told / str(number)).exists() else []
        notes = [json.loads(line) for line in lines]
        done = [note for note in notes if not isinstance(note, str)]
        campaign.tried += len(notes)
        campaign.refused += len(notes) - len(done)
        # Of the settings, which all have the same place, the last counts.
        last = {tuple(note[:3]): note for note in done}
        for note in last.values():
            if not is_there(plans, note):
                campaign.fail(seed, f"{note} was reported as added and is not there")
    planned = int((told / "planned").read_text())
    if plans.configurations["2d"]["batch_size"] != planned:
        campaign.fail(seed, f"what nnU-Net planned last ({planned}) was replaced by what stood there before")


KINDS: dict[str, Callable[[Campaign, int], None]] = {"replans": replans}
