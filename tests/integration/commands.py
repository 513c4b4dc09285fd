"""Runs nnU-Net's and our commands as a user does: each in a process of its own, with its own environment.

Their programs are run as they were installed. The processes are forks of one that has imported the large libraries, so
that a command does not spend four of its five seconds on that; what commands start by themselves starts from nothing.
"""

import contextlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

PROGRAMS = Path(sys.executable).parent
PLANS = "nnUNet_preprocessed/Dataset998_Phantom/nnUNetPlans.json"
# Loading in the same process, so that runs can be compared.
LOADING = {"nnUNet_n_proc_DA": "0"}
# Of nnUNetv2_predict, for which the variable below does not count.
ONE_PROCESS = ("-npp", "1", "-nps", "1")
# Nothing that reads nnU-Net's variables, and nothing that starts threads. Elsewhere forks of so much are not safe.
LIBRARIES = (
    "torch._dynamo torchvision timm scipy.stats sklearn.model_selection seaborn skimage.measure SimpleITK nibabel"
)
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(LIBRARIES.split() if sys.platform == "linux" else [])


def environment(root, extra=None):
    """nnU-Net's folders below `root`, no external trainers and no choice of workers unless `extra` makes it (planning
    does not take 0); one process where nnU-Net lets us choose, because each imports torch anew.
    """
    variables = {key: value for key, value in os.environ.items() if key not in ("nnUNet_extTrainer", *LOADING)}
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir(exist_ok=True)
        variables[name] = str(root / name)
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return {**variables, "nnUNet_def_n_proc": "1", "PATH": path, **(extra or {})}


class Command:
    """A command that was started, in a process group of its own, as from a terminal.

    Attributes:
        pid: of the process and its group.
        stdout: file that it prints to.
        stderr: file of its errors.
    """

    def __init__(self, root, *command, extra=None):
        self._folder = tempfile.TemporaryDirectory()
        self.stdout, self.stderr = (Path(self._folder.name) / name for name in ("stdout", "stderr"))
        variables = environment(root, extra)
        arguments = [str(part) for part in command]
        arguments[0] = shutil.which(arguments[0], path=variables["PATH"])
        self._process = _FORKS.Process(target=_become, args=(arguments, variables, str(self.stdout), str(self.stderr)))
        self._process.start()
        self.pid = self._process.pid

    @property
    def code(self):
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds=1200):
        """Until it ends; returns the exit code."""
        self._process.join(seconds)
        assert self.code is not None, f"still running after {seconds} s"
        return self.code


def _become(arguments, variables, output, errors):
    """Turns a fork into the command."""
    os.setsid()
    for descriptor, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(variables)
    # As a new interpreter has them. What runs in the background of a shell would not listen to SIGINT.
    multiprocessing.set_start_method(None, force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    np.random.seed()
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def run(root, *command, code=0, extra=None):
    """Runs a command to its end and returns what it printed and its errors.

    Args:
        root: folder of nnU-Net's three folders.
        command: program and arguments.
        code: the exit code that it must have.
        extra: further environment variables.
    """
    done = Command(root, *command, extra=extra)
    done.wait()
    printed, errors = done.stdout.read_text(), done.stderr.read_text()
    assert done.code == code, f"{command} ended with {done.code}\n{printed[-3000:]}\n{errors[-5000:]}"
    return printed, errors


def program(folder, entry_point, *, without_us=False, iterations=250):
    """A program that calls one of nnU-Net's entry points.

    Args:
        folder: to write it to.
        entry_point: `module:function`.
        without_us: `nnunet_nas` cannot be imported in it, nor in what it starts.
        iterations: of `nnUNetTrainer_1epoch`; validation takes a tenth.
    """
    module, function = entry_point.split(":")
    lines = ["import sys", "sys.modules['nnunet_nas'] = None"] if without_us else []
    lines += ["if __name__ == '__main__':", f"    from {module} import {function}"]
    # What a few iterations come to hangs on the weights that they begin with.
    lines += ["    import random, numpy, torch", "    random.seed(0), numpy.random.seed(0), torch.manual_seed(0)"]
    if iterations != 250:
        variants = "nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs"
        lines.append(f"    from {variants} import nnUNetTrainer_1epoch")
        # The constructor sets them, and nothing else can: no variable and no option.
        for name, value in (
            ("num_iterations_per_epoch", iterations),
            ("num_val_iterations_per_epoch", iterations // 10),
        ):
            lines.append(f"    nnUNetTrainer_1epoch.{name} = property(lambda self: {value}, lambda self, value: None)")
    path = folder / f"{function}.py"
    path.write_text("\n".join([*lines, f"    {function}()", ""]))
    path.chmod(0o755)
    return path


def configurations(root):
    """Of the phantom's plans."""
    return json.loads((root / PLANS).read_text())["configurations"]


def finished_epochs(folder):
    path = folder / "checkpoint_latest.pth"
    return torch.load(path)["current_epoch"] if path.exists() else 0


def assert_kills_leave_no_trace(root, folder, search, result, *, history, extra, seed, begun=""):
    """Kills a search three times at random instants, continues it, and compares with one that nobody disturbed.

    Args:
        root: folder of nnU-Net's three folders.
        folder: the results of the search below `root`.
        search: command.
        result: the configuration that it adds.
        history: class that reads what it records.
        extra: further environment variables.
        seed: of the instants.
        begun: what stands in `folder` once the first epoch has begun.

    Returns:
        the state of the search in both final checkpoints, the disturbed one first.
    """
    untouched = root.parent / "untouched"
    shutil.copytree(root, untouched)
    plans = (root / PLANS).read_bytes()
    moments = random.Random(seed)
    for epochs in (0, 2, 5):
        killed = Command(root, *search, *(("--c",) if epochs else ()), extra=extra)
        deadline = time.monotonic() + 300
        while finished_epochs(root / folder) < epochs or not (root / folder / begun).exists():
            assert killed.code is None, killed.stderr.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.random() * 0.5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        assert (root / PLANS).read_bytes() == plans or result in configurations(root)
    run(root, *search, "--c", extra=extra)
    run(untouched, *search, extra=extra)

    assert configurations(root)[result]["architecture"] == configurations(untouched)[result]["architecture"]
    ours, theirs = (history.load(each / folder / "search_history.npz").arrays() for each in (root, untouched))
    for name, value in theirs.items():
        if name != "seconds":
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
    return tuple(torch.load(each / folder / "checkpoint_final.pth")["search"] for each in (root, untouched))
