"""Kills, Ctrl-C and a second process while a real `select_tiny` is scoring."""

import json
import os
import shutil
import signal
import time

import pytest
from commands import Command, run

pytestmark = pytest.mark.integration
# One image at a time: the order of arithmetic is then the same however often the run was interrupted.
SELECT = (
    "nnunet_nas",
    "select_tiny",
    "-rule",
    "paper",
    "-d",
    "998",
    "-n",
    "6",
    "-seed",
    "0",
    "1",
    "-batch_size",
    "1",
    "-device",
    "cpu",
)


def data_folder(root):
    return root / "nnUNet_preprocessed/Dataset998_Phantom"


def stored_lines(root):
    """Complete lines of the scores so far."""
    files = list(data_folder(root).glob("nas_xtiny/*/scores_*.jsonl"))
    return files[0].read_text().splitlines() if files else []


def start_and_wait_for_scores(root, count):
    process = Command(root, *SELECT)
    deadline = time.monotonic() + 300
    while len(stored_lines(root)) < count:
        assert process.code is None, process.stderr.read_text()
        assert time.monotonic() < deadline, "no scores within 5 minutes"
        time.sleep(0.01)
    return process


def scores(root):
    """The curve of every seed, from selection.json."""
    selection = json.loads((data_folder(root) / "nas_xtiny/nnUNetPlans__2d/selection.json").read_text())
    return [candidate["score_by_seed"] for candidate in selection["candidates"]]


def test_killed_and_interrupted_it_goes_on_to_the_same_result(phantom, workspace, tmp_path):
    plans = (data_folder(workspace) / "nnUNetPlans.json").read_bytes()

    killed = start_and_wait_for_scores(workspace, 10)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    kept = stored_lines(workspace)
    assert (data_folder(workspace) / "nnUNetPlans.json").read_bytes() == plans

    interrupted = start_and_wait_for_scores(workspace, len(kept) + 10)
    os.kill(interrupted.pid, signal.SIGINT)
    assert interrupted.wait() == 130
    errors = interrupted.stderr.read_text()
    assert errors.strip().splitlines()[-1].startswith("interrupted: scores so far are kept")
    assert "Traceback" not in errors
    assert stored_lines(workspace)[: len(kept)] == kept
    assert (data_folder(workspace) / "nnUNetPlans.json").read_bytes() == plans

    run(workspace, *SELECT)
    untouched = tmp_path / "untouched"
    shutil.copytree(phantom, untouched)
    run(untouched, *SELECT)
    assert scores(workspace) == scores(untouched)


def test_a_second_one_at_the_same_time_is_turned_away(workspace):
    first = start_and_wait_for_scores(workspace, 1)
    # Halted, so that it is still at it whenever the second one comes.
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        _, errors = run(workspace, *SELECT, code=3)
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    assert "another select_tiny is scoring 2d of Dataset998_Phantom" in errors
    assert first.wait() == 0, first.stderr.read_text()
