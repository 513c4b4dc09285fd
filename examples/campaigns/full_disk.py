"""Full disks: a refusal in one line, no file changed, nothing left over, and a search that goes on once there is room.

One trial: a small disk of its own (tmpfs, which only root may mount) holds a data set and is filled until a random
number of bytes is left, from none to more than is needed. Then a command adds to the plans. Elsewhere, and as well, the
system's limit on the size of a file is set to a random number of bytes. Refused or done: the plans are as before, or as
they would be on an empty disk. `disk-search` fills the disk under a search for cells before a random change on it,
makes room, and compares what `--c` ends in with an undisturbed search.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import kills
from campaign import Campaign, command, last_line
from processes import Program, train, warm_up, watch_changes

_ROOT_USER = 0
_DISK_MIB, _SEARCH_DISK_MIB = 1, 64
_COMMANDS = (
    ("set_search", "-d", "11", "-c", "2d", "-m", "iac", "num_epochs=5"),
    ("set_search", "-d", "11", "-c", "3d_fullres", "-m", "dints", "seed=5"),
    ("add_skip", "-d", "11", "-c", "2d", "-m", "attention"),
    ("add_skip", "-d", "11", "-c", "3d_fullres", "-m", "se", "-o", "separate"),
    ("transfer", "-d", "11", "-c", "3d_fullres", "-from", "11:2d_given"),
)


def disk(campaign: Campaign, seed: int) -> None:
    """One trial of commands."""
    warm_up()
    rng = random.Random(seed)
    words = rng.choice(_COMMANDS)
    if hasattr(os, "geteuid") and os.geteuid() == _ROOT_USER:
        with mounted(campaign.root / "disk", _DISK_MIB) as root:
            path = _dataset(root)
            fill(root, rng.choice((0, rng.randrange(20_000), rng.randrange(80_000))))
            _try(campaign, seed, path, words, None)
    path = _dataset(campaign.root)
    _try(campaign, seed, path, words, rng.randrange(1, 2 * path.stat().st_size))


def _dataset(root: Path) -> Path:
    """Plans and description of a data set without images."""
    from fake_dataset import default_plans

    dataset = root / "nnUNet_preprocessed" / "Dataset011_Fake"
    shutil.rmtree(root / "nnUNet_preprocessed", ignore_errors=True)
    dataset.mkdir(parents=True)
    for name in ("nnUNet_raw", "nnUNet_results"):
        (root / name).mkdir(exist_ok=True)
    (dataset / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "MRI"}, "labels": {"background": 0, "bright": 1}, "file_ending": ".nii.gz"})
    )
    path = dataset / "nnUNetPlans.json"
    path.write_text(json.dumps(default_plans(), indent=4))
    return path


def _try(campaign: Campaign, seed: int, path: Path, words: tuple[str, ...], limit: int | None) -> None:
    root = path.parents[2]
    before = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}

    def run() -> int:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = str(root / name)
        if limit is not None:
            import resource  # which not every system has

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code, said = command(*words)
        os.write(2, said.encode()[-1000:])  # not more than the limit
        return code

    program = Program(run, campaign.root / "log")
    code, what = program.wait(), f"{' '.join(words)}, limit {limit}"
    campaign.tried += 1
    campaign.refused += code not in (0, 1)
    after = {entry.name: entry.read_bytes() for entry in path.parent.iterdir() if not entry.name.endswith(".lock")}
    if code == 1 or "Traceback" in program.said:
        campaign.fail(seed, f"{what}: {last_line(program.said)}")
    if code and after != before:
        changed = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
        campaign.fail(seed, f"{what} was refused and changed {', '.join(changed)}")
    if any(name.endswith(".tmp") for name in after):
        campaign.fail(seed, f"{what} left a temporary file")
    if not code and after == before:
        campaign.fail(seed, f"{what} was done, it says, and changed nothing")


@contextlib.contextmanager
def mounted(folder: Path, mib: int) -> Iterator[Path]:
    """A disk of a few MiB."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "campaign", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> None:
    """Writes until so many bytes are left."""
    with (folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    size = (folder / "ballast").stat().st_size
    os.truncate(folder / "ballast", max(0, size - left))


def disk_search(campaign: Campaign, seed: int) -> None:
    """One trial of a search."""
    if not hasattr(os, "geteuid") or os.geteuid() != _ROOT_USER:
        return
    warm_up()
    name, rng = "iac_lth", random.Random(seed)
    whole, job = kills.undisturbed(campaign.root, name), kills.JOBS[name]
    with mounted(campaign.root / "disk", _SEARCH_DISK_MIB) as disk_folder:
        root = disk_folder / "work"
        shutil.copytree(whole.start, root)
        change, left = rng.randint(1, whole.changes), rng.choice((0, rng.randrange(100_000)))

        def run() -> None:
            kills.use(root)
            watch_changes(root, change, partial(fill, disk_folder, left))
            train(*job.words())

        program = Program(run, campaign.root / "log")
        code = program.wait()
        campaign.tried += 1
        campaign.refused += code not in (0, 1)
        if code == 1 or "Traceback" in program.said:
            campaign.fail(seed, f"full before change {change}, {left} bytes left: {last_line(program.said)}")
        kills.require_whole(campaign, seed, root)
        (disk_folder / "ballast").unlink(missing_ok=True)
        if kills.start(root, job, ("--c",), None, campaign.root / "log").wait():
            campaign.fail(seed, f"full before change {change}: does not go on once there is room")
            return
        for difference in kills.differences(whole.outcome, kills.outcome(root, job)):
            campaign.fail(seed, f"full before change {change}, {left} bytes left: {difference}")


KINDS: dict[str, Callable[[Campaign, int], None]] = {"disk": disk, "disk-search": disk_search}
