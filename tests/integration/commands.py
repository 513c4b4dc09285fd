"""Runs nnU-Net's and our commands as a user does: in a subprocess, from the environment that the tests run in."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
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
# A shell starts what it runs in the background with SIGINT ignored, and children inherit that: undone before the exec.
LISTEN_TO_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
)


def environment(root, extra=None):
    """nnU-Net's folders below `root`, no external trainers unless `extra` names them; one process where nnU-Net lets us
    choose, because each imports torch anew.
    """
    variables = {key: value for key, value in os.environ.items() if key != "nnUNet_extTrainer"}
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir(exist_ok=True)
        variables[name] = str(root / name)
    path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    return {**variables, "nnUNet_def_n_proc": "1", "PATH": path, **(extra or {})}


def run(root, *command, code=0, extra=None):
    """Runs a command to its end and returns what it printed.

    Args:
        root: folder of nnU-Net's three folders.
        command: program and arguments.
        code: the exit code that it must have.
        extra: further environment variables.
    """
    done = subprocess.run(
        [str(part) for part in command],
        env=environment(root, extra),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == code, (
        f"{command} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    )
    return done


def start(root, *command, extra=None):
    """Starts a command in a process group of its own, as from a terminal, and does not wait for it."""
    return subprocess.Popen(
        [sys.executable, "-c", LISTEN_TO_CTRL_C, *map(str, command)],
        env=environment(root, extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def without_us(entry_point):
    """A Python call of one of nnU-Net's entry points in which `nnunet_nas` cannot be imported."""
    module, function = entry_point.split(":")
    return (
        sys.executable,
        "-c",
        f"import sys; sys.modules['nnunet_nas'] = None\nif __name__ == '__main__':\n"
        f"    from {module} import {function}\n    {function}()",
    )


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
        killed = start(root, *search, *(("--c",) if epochs else ()), extra=extra)
        deadline = time.monotonic() + 300
        while finished_epochs(root / folder) < epochs or not (root / folder / begun).exists():
            assert killed.poll() is None, killed.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.random() * 0.5)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        assert (root / PLANS).read_bytes() == plans or result in configurations(root)
    run(root, *search, "--c", extra=extra)
    run(untouched, *search, extra=extra)

    assert configurations(root)[result]["architecture"] == configurations(untouched)[result]["architecture"]
    ours, theirs = (history.load(each / folder / "search_history.npz").arrays() for each in (root, untouched))
    for name, value in theirs.items():
        if name != "seconds":
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
    return tuple(torch.load(each / folder / "checkpoint_final.pth")["search"] for each in (root, untouched))
