"""Searches and trainings that are killed at any instant must end as those that nobody disturbed.

One trial: `nnUNetv2_train` is started, killed one to six times and called again with `--c` until it is done. It is
killed at a random instant, or right before one of its changes on the disk (a file is opened for writing, renamed,
removed, its mode is set), each equally likely: so between the temporary file and its name, before the first
checkpoint, and while the result goes into the plans. Compared is everything that is left but times: the plans, the
history, what was found, every number of the last checkpoint, and that no file is left over.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from campaign import Campaign, last_line
from processes import Program, train, warm_up, watch_changes

_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_MOST_KILLS = 6
# What differs between two runs of the same: when, how long, where.
_OF_THE_RUN = {"seconds", "epoch_start_timestamps", "epoch_end_timestamps", "created", "init_args"}
_NOT_COMPARED = ("debug.json", "training_log", ".png", ".lock")
_CELLS = {"warmup_epochs": 1, "trial_iterations": 1, "trial_batches": 2}
_LENGTH = {"num_epochs": 4, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
_DINTS = {"num_layers": 2, "features": 4, "search_features": 2, "architecture_lr": 0.2}
_EVIDENCE = {
    **{"selection": "evidence", "samples": 5, "scoring_batches": 2, "finalists": 3, "race_iterations": 2},
    **{"weights_on": "samples", "sigma": 0.5},
}
_STUDENT = "2d_narrow"


@dataclass(frozen=True)
class Job:
    """What is killed.

    Attributes:
        trainer: class name.
        configuration: that it is called on.
        method: whose settings make it short.
        settings: those.
        after: another job that must be done before.
    """

    trainer: str
    configuration: str
    method: str
    settings: dict[str, Any]
    after: str | None = None

    def words(self, *more: str) -> tuple[str, ...]:
        """Arguments of `nnUNetv2_train`."""
        return ("11", self.configuration, "0", "-tr", self.trainer, *more)

    def folder(self, root: Path) -> Path:
        """Its results."""
        from fake_dataset import DATASET

        model = f"{self.trainer}__nnUNetPlans__{self.configuration}"
        return root / "nnUNet_results" / DATASET / model / "fold_0"


JOBS = {
    "iac": Job("nnUNetTrainerIACSearch", "2d", "iac", {**_LENGTH, **_CELLS}),
    "iac_lth": Job(
        "nnUNetTrainerIACLTHSearch", "2d", "iac_lth", {**_LENGTH, **_CELLS, "stability": "paper", "tau0": 0.01}
    ),
    "dints": Job("nnUNetTrainerDiNTSSearch", "2d", "dints", {**_LENGTH, **_DINTS}),
    "dints_evidence": Job("nnUNetTrainerDiNTSSearch", "2d", "dints", {**_LENGTH, **_DINTS, **_EVIDENCE}),
    "retrofit": Job("nnUNetTrainerIACRetrofit", "2d_iaclth", "iac_retrofit", _LENGTH, after="iac_lth"),
    "schedule": Job("nnUNetTrainerScheduled", "2d", "schedule", {**_LENGTH, "initial_checkpoint": "BACKBONE"}),
    "distill": Job("nnUNetTrainerDistill", _STUDENT, "distill", _LENGTH),
}


@dataclass(frozen=True)
class Whole:
    """A job that nobody disturbed.

    Attributes:
        start: folder of nnU-Net's folders before.
        outcome: what it left, see `outcome`.
        changes: on the disk.
        seconds: that it took.
    """

    start: Path
    outcome: dict[str, Any]
    changes: int
    seconds: float


def killed(campaign: Campaign, seed: int, name: str) -> None:
    """One trial of a job."""
    warm_up()
    whole = undisturbed(campaign.root, name)
    rng, job, root = random.Random(f"{name} {seed}"), JOBS[name], campaign.root / "trial"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole.start, root, symlinks=True)
    fates, goes_on = [], ()
    for _ in range(rng.randint(1, _MOST_KILLS)):
        instant = rng.uniform(0, whole.seconds) if rng.random() < 0.5 else None
        # Fewer are left of those that come later; the first kill hits always.
        change = None if instant is not None else rng.randint(1, max(1, whole.changes // (len(fates) + 1)))
        fates.append(f"after {instant:.2f} s" if instant is not None else f"before change {change}")
        program = start(root, job, goes_on, change, campaign.root / "log")
        code = program.wait() if instant is None else program.kill_after(instant)
        campaign.tried += code == -signal.SIGKILL
        if code not in (0, -signal.SIGKILL):
            campaign.fail(seed, f"{name}, killed {', '.join(fates[:-1])}: {last_line(program.said)}")
        require_whole(campaign, seed, root)
        goes_on = ("--c",)
    for _ in range(rng.choice((1, 1, 1, 2))):  # what is done stays as it is
        program = start(root, job, goes_on, None, campaign.root / "log")
        if program.wait() or "Traceback" in program.said:
            campaign.fail(seed, f"{name}, killed {', '.join(fates)}: does not go on: {last_line(program.said)}")
            return
    for difference in differences(whole.outcome, outcome(root, job)):
        campaign.fail(seed, f"{name}, killed {', '.join(fates)}: {difference}")


def require_whole(campaign: Campaign, seed: int, root: Path) -> None:
    """Fails where the plans are no JSON."""
    try:
        _plans(root)
    except ValueError as error:
        campaign.fail(seed, f"the plans are broken: {error}")


def _plans(root: Path) -> Any:
    return json.loads((root / "nnUNet_preprocessed" / "Dataset011_Fake" / "nnUNetPlans.json").read_text())


def start(root: Path, job: Job, more: tuple[str, ...], change: int | None, log: Path) -> Program:
    """Starts a job, which is killed right before a change on the disk, or not."""

    def run() -> None:
        use(root)
        watch_changes(root, change, partial(os.kill, os.getpid(), signal.SIGKILL))
        train(*job.words(*more))

    return Program(run, log)


def undisturbed(root: Path, name: str) -> Whole:
    """The undisturbed run of a job, once for all trials."""
    folder, job = root / name, JOBS[name]
    start, done, counted = folder / "start", folder / "done", folder / "counted.json"
    if not counted.exists():
        if job.after:
            undisturbed(root, job.after)
        _finish(Program(partial(_prepare, start, job, root / job.after / "done" if job.after else None), root / "log"))
        shutil.copytree(start, done, symlinks=True)

        def run() -> None:
            use(done)
            began, changes = time.monotonic(), watch_changes(done)
            train(*job.words())
            counted.write_text(json.dumps([changes(), time.monotonic() - began]))

        _finish(Program(run, root / "log"))
    changes, seconds = json.loads(counted.read_text())
    return Whole(start, outcome(done, job), changes, seconds)


def _finish(program: Program) -> None:
    if program.wait():
        raise RuntimeError(program.said)


def use(root: Path) -> None:
    for name in _FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(root / name)


def _prepare(root: Path, job: Job, before: Path | None) -> None:
    """Data, a backbone and short settings; or what another job has left."""
    from cell_searches import make_backbone
    from fake_dataset import DATASET, write_dataset
    from searches import read_plans, set_settings

    dataset = root / "nnUNet_preprocessed" / DATASET
    if before is not None:
        shutil.copytree(before, root)
        use(root)
    else:
        use(root)
        write_dataset(dataset)
    backbone = make_backbone(dataset)
    content = read_plans(dataset)
    if job.configuration == _STUDENT:
        architecture = json.loads(json.dumps(content["configurations"]["2d"]["architecture"]))
        architecture["arch_kwargs"]["features_per_stage"] = [8, 8, 8]
        content["configurations"][_STUDENT] = {"inherits_from": "2d", "architecture": architecture}
        (dataset / "nnUNetPlans.json").write_text(json.dumps(content, indent=4))
    settings = {key: str(backbone) if value == "BACKBONE" else value for key, value in job.settings.items()}
    set_settings(dataset, job.configuration, job.method, **settings)


def outcome(root: Path, job: Job) -> dict[str, Any]:
    """What a job has left, without what belongs to the run: files by name, numbers by place."""
    import torch

    folder = job.folder(root)
    found: dict[str, Any] = {"files": sorted(path.name for path in folder.iterdir() if _is_compared(path))}
    found["plans"] = _plans(root)["configurations"]
    found["leftovers"] = sorted(path.name for path in root.rglob("*.tmp"))
    for path in folder.iterdir():
        if path.name.endswith(".json") and _is_compared(path):
            found[path.name] = json.loads(path.read_text())
        elif path.name.endswith(".npz"):
            found[path.name] = dict(np.load(path))
        elif path.name.endswith(".pth"):
            found[path.name] = torch.load(path, map_location="cpu", weights_only=False)
    return found


def _is_compared(path: Path) -> bool:
    return not any(part in path.name for part in _NOT_COMPARED)


def differences(wanted: Any, found: Any, place: str = "") -> Iterator[str]:
    """Places at which two outcomes differ, the first of each file."""
    if place == "":
        for name in {**wanted, **found}:
            yield from list(differences(wanted.get(name), found.get(name), name))[:1]
    elif isinstance(wanted, dict) and isinstance(found, dict):
        for key in {**wanted, **found}:
            if key not in _OF_THE_RUN:
                yield from differences(wanted.get(key), found.get(key), f"{place}/{key}")
    elif isinstance(wanted, str) and isinstance(found, str) and wanted.startswith("{"):
        yield from differences(json.loads(wanted), json.loads(found), place)
    elif isinstance(wanted, list | tuple) and isinstance(found, list | tuple) and len(wanted) == len(found):
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from differences(one, other, f"{place}/{number}")
    elif not _same(wanted, found):
        yield f"{place} is {str(found)[:60]}, not {str(wanted)[:60]}"


def _same(wanted: Any, found: Any) -> bool:
    if hasattr(wanted, "shape") != hasattr(found, "shape") or isinstance(wanted, str | None):
        return bool(wanted == found)
    one, other = np.asarray(wanted), np.asarray(found)
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f"))


KINDS: dict[str, Callable[[Campaign, int], None]] = {f"kills-{name}": partial(killed, name=name) for name in JOBS}
