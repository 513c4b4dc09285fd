"""Many processes that add to one plans file at once: nothing that was added may be lost, and the file stays shared.

One trial: eight processes each add four configurations, by `nnunet_nas set_search` or as a search does, while one reads
the file all the time. Two of them are killed at random instants. Where this process may become other users (root), they
are two who share nothing but a group, each with an umask that gives the group nothing, in a folder as administrators
share them (group and setgid bit). Compared: all that was reported as added is there, the file was whole whenever it was
read, mode and group are as before, nothing is left over.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from campaign import Campaign, command, last_line
from processes import Program

_SETTINGS = [
    *(("iac", key) for key in ("num_epochs", "warmup_epochs", "seed", "num_iterations_per_epoch")),
    *(("dints", key) for key in ("num_epochs", "seed", "num_iterations_per_epoch", "num_val_iterations_per_epoch")),
]
_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "2d_bs4")
_PROCESSES, _ADDITIONS, _KILLED = len(_SETTINGS), len(_CONFIGURATIONS), 2
_USERS, _GROUP, _ROOT = (61001, 61002), 61000, 0
_SHARED_FOLDER, _SHARED_FILE = 0o2775, 0o664


def writers(campaign: Campaign, seed: int) -> None:
    """One trial."""
    rng, users = random.Random(seed), hasattr(os, "geteuid") and os.geteuid() == _ROOT
    dataset, told = campaign.root / "nnUNet_preprocessed" / "Dataset011_Fake", campaign.root / "told"
    path = _new(dataset)
    # What is imported for it, before others try who may not read our files.
    _set(0, 0)
    _derive(path, 0, 0)
    _new(dataset)
    shutil.rmtree(told, ignore_errors=True)
    told.mkdir()
    told.chmod(0o777)
    if users:
        _share(campaign.root, dataset, path)
    before = path.stat()
    stop = campaign.root / "stop"
    stop.unlink(missing_ok=True)
    reader = Program(partial(_read_until, path, stop), campaign.root / "reader")
    programs = []
    for number in range(_PROCESSES):
        user = _USERS[number % 2] if users else None
        add = partial(_add, path, told / str(number), number, user, rng.random() < 0.5)
        programs.append(Program(add, told / f"log{number}"))
    for number in rng.sample(range(_PROCESSES), _KILLED):
        programs[number].kill_after(rng.uniform(0, 0.3))
    for number, program in enumerate(programs):
        if program.wait() not in (0, -signal.SIGKILL):
            campaign.fail(seed, f"process {number}: {last_line(program.said)}")
    stop.touch()
    if reader.wait():
        campaign.fail(seed, f"the file was not whole: {last_line(reader.said)}")
    _compare(campaign, seed, path, before, told)


def _new(dataset: Path) -> Path:
    """The plans of a data set without images."""
    from fake_dataset import default_plans

    shutil.rmtree(dataset, ignore_errors=True)
    dataset.mkdir()
    (dataset / "dataset.json").write_text('{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "bright": 1}}')
    path = dataset / "nnUNetPlans.json"
    path.write_text(json.dumps(default_plans(), indent=4))
    return path


def _share(root: Path, dataset: Path, path: Path) -> None:
    for folder in (root, root / "nnUNet_preprocessed"):
        folder.chmod(0o755)
    for shared, mode in ((dataset, _SHARED_FOLDER), (path, _SHARED_FILE), (dataset / "dataset.json", _SHARED_FILE)):
        os.chown(shared, _USERS[0], _GROUP)
        shared.chmod(mode)


def _become(user: int) -> None:
    os.setgroups([_GROUP])
    os.setresgid(user, user, user)  # a primary group of their own: the common one comes by the folder alone
    os.setresuid(user, user, user)
    os.umask(0o022)


def _add(path: Path, told: Path, number: int, user: int | None, by_command: bool) -> None:
    """Adds, and notes each addition once it was reported as done."""
    if user is not None:
        _become(user)
    for addition in range(_ADDITIONS):
        done = _set(number, addition) if by_command else _derive(path, number, addition)
        with told.open("a") as file:
            file.write(json.dumps(done) + "\n")


def _set(number: int, addition: int) -> list[Any]:
    """A setting of its own for each."""
    method, key = _SETTINGS[number]
    configuration, value = _CONFIGURATIONS[addition], 100 + 10 * number + addition
    code, said = command("set_search", "-d", "11", "-c", configuration, "-m", method, f"{key}={value}")
    if code:
        raise SystemExit(said)
    return [configuration, method, key, value]


def _derive(path: Path, number: int, addition: int) -> list[Any]:
    """A configuration, added as a search adds its result."""
    from nnunet_nas.plans import DerivedConfiguration, Plans, Provenance

    plans, name = Plans.read(path), f"2d_{number}_{addition}"
    record = Provenance("encoder", plans.digest("2d"), {})
    plans.add([DerivedConfiguration(name, "2d", plans.resolve("2d")["architecture"], record)])
    return [name]


def is_there(plans: Any, done: list[Any]) -> bool:
    """Whether plans hold a configuration, or a setting of one."""
    if len(done) == 1:
        return done[0] in plans.configurations
    configuration, method, key, value = done
    return bool(plans.resolve(configuration).get("nas_settings", {}).get(method, {}).get(key) == value)


def _read_until(path: Path, stop: Path) -> None:
    while not stop.exists():
        json.loads(path.read_text())
        time.sleep(0.001)


def _compare(campaign: Campaign, seed: int, path: Path, before: os.stat_result, told: Path) -> None:
    from nnunet_nas.plans import Plans

    plans, after = Plans.read(path), path.stat()
    for note in told.glob("[0-9]*"):
        for line in note.read_text().splitlines():
            campaign.tried += 1
            if not is_there(plans, json.loads(line)):
                campaign.fail(seed, f"{line} was reported as added and is not there")
    if (stat.S_IMODE(before.st_mode), before.st_gid) != (stat.S_IMODE(after.st_mode), after.st_gid):
        campaign.fail(seed, f"mode and group became {after.st_mode:o} and {after.st_gid}")
    if list(path.parent.glob(".*.tmp")) and not _removed_by_the_next(path):
        campaign.fail(seed, "what a killed writer left is not removed by the next one")


def _removed_by_the_next(path: Path) -> bool:
    code, _ = command("set_search", "-d", "11", "-c", "2d", "-m", "iac", "num_epochs=7")
    return code == 0 and not list(path.parent.glob(".*.tmp"))


KINDS: dict[str, Callable[[Campaign, int], None]] = {"writers": writers}
