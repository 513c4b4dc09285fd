"""Runs nnU-Net's and our commands as a user does: in a subprocess, from the environment that the tests run in."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAMS = Path(sys.executable).parent
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
