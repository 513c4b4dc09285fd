"""Programs in forks of this process, which has imported the large libraries once, and ways to kill them.

A fork must find one thread here: nothing in this process computes, reads data or draws. What does, does it in a fork.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

# Calls that change something on the disk, as Python's audit hooks name them.
_CHANGES = ("open", "os.rename", "os.remove", "os.chmod", "os.mkdir", "os.rmdir", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR


@cache
def warm_up() -> None:
    """Imports what nnU-Net's training imports, so that a fork need not; once is enough."""
    os.environ.update(OMP_NUM_THREADS="1", nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1", MPLBACKEND="Agg")
    import torch

    import nnunet_nas.ext_trainers
    from nnunet_nas.complexity import step_macs

    torch.set_num_threads(1)
    os.environ["nnUNet_extTrainer"] = next(iter(nnunet_nas.ext_trainers.__path__))
    import nnunetv2.run.run_training  # noqa: F401 (imported for the forks)
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 (no path)
        before, sys.stdout = sys.stdout, nowhere
        try:
            recursive_find_trainer_class_by_name("nnUNetTrainerIACSearch")
        finally:
            sys.stdout = before
    # What torch imports at the first count of operations; on the device without numbers nothing is computed.
    step_macs(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3), torch.nn.InstanceNorm2d(1)).to("meta"), (1, 1, 8, 8))


class Program:
    """A function in a fork of this process.

    Attributes:
        pid: of the fork.
        log: file of what it prints.
        code: its exit code, negative for a signal, once somebody waited for its end.
    """

    code: int | None = None

    def __init__(self, function: Callable[[], Any], log: Path) -> None:
        self.log = log
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be(function, log)

    def wait(self) -> int:
        """Until it ends; returns the exit code."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code

    def kill_after(self, seconds: float) -> int:
        """Kills it if it still runs by then; returns the exit code."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                return self.code
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    @property
    def said(self) -> str:
        """Everything that it printed so far."""
        return self.log.read_text(errors="replace")


def _be(function: Callable[[], Any], log: Path) -> None:
    """Becomes the program; never returns."""
    code = 1
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        random.seed()
        code = int(function() or 0)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code)
    except BaseException:  # noqa: BLE001 (as the interpreter would end)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch_changes(folder: Path, count: int | None = None, then: Callable[[], Any] = int) -> Callable[[], int]:
    """Counts what this process changes on the disk below a folder, and does something right before one of them.

    Args:
        folder: that is watched.
        count: of the change; the first is 1.
        then: what is done.

    Returns:
        a function that says how many there were.
    """
    seen = 0
    below = str(folder)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _CHANGES or not str(arguments[0]).startswith(below):
            return
        if event == "open" and not arguments[2] & _WRITING:
            return
        seen += 1
        if seen == count:
            then()

    sys.addaudithook(watch)
    return lambda: seen


def train(*words: str) -> None:
    """`nnUNetv2_train` in this process.

    Left out is what only costs time here: figures, which are blank, and nnU-Net's validation after a training, in
    processes of its own that import everything anew.
    """
    import multiprocessing

    from nnunetv2.run.run_training import run_training_entry
    from nnunetv2.training.logging.nnunet_logger import LocalLogger
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    import nnunet_nas.dints.trainers
    import nnunet_nas.iac.trainers

    for module in (nnunet_nas.iac.trainers, nnunet_nas.dints.trainers):
        for name in ("draw_progress", "draw_cell", "draw_topology"):
            if hasattr(module, name):
                setattr(module, name, _blank)
    LocalLogger.plot_progress_png = lambda _, folder: Path(folder, "progress.png").write_bytes(b"blank")
    multiprocessing.cpu_count = lambda: 1  # nnU-Net takes all threads of the machine
    nnUNetTrainer.perform_actual_validation = lambda *_: None
    sys.argv = ["nnUNetv2_train", *words, "-device", "cpu"]
    run_training_entry()


def _blank(_: Any, path: Path, **_style: Any) -> None:
    from nnunet_nas.files import replace_file

    replace_file(path, b"blank")
