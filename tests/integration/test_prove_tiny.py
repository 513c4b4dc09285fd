"""A width proven with nnU-Net's own commands, killed in the middle of a training."""

import json
import os
import signal
import time

import pytest
from commands import LOADING, Command, finished_epochs, run

pytestmark = pytest.mark.integration
# Predictions without processes of their own, each of which imports torch anew.
EXTRA = {**LOADING, "nnUNet_npp": "0", "nnUNet_nps": "0"}
PROVE = ("nnunet_nas", "prove_tiny", "-d", "998", "-f", "0", "-widths", "4", "-tr", "nnUNetTrainerScheduled")
PROVE = (*PROVE, "-margin", "0.9", "-device", "cpu")
EPOCHS = 6


def test_killed_while_it_trains_it_goes_on_to_a_verdict(workspace, trainers):
    lengths = (f"num_epochs={EPOCHS}", "num_iterations_per_epoch=10", "num_val_iterations_per_epoch=1")
    run(workspace, "nnunet_nas", "set_search", "-d", "998", "-c", "2d", "-m", "schedule", *lengths)
    _, errors = run(workspace, *PROVE, code=4)
    command = "nnUNetv2_train 998 2d 0 -tr nnUNetTrainerScheduled"
    assert errors.strip().endswith(f"run {command}")
    run(workspace, *command.split(), "-device", "cpu", extra=trainers)

    results = workspace / "nnUNet_results/Dataset998_Phantom"
    candidate = results / "nnUNetTrainerScheduled__nnUNetPlans__2d_xtiny4/fold_0"
    killed = Command(workspace, *PROVE, extra=EXTRA)
    deadline = time.monotonic() + 900
    while not (candidate / "checkpoint_latest.pth").exists():
        assert killed.code is None, killed.stderr.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # The command alone: the training that it has started goes on, and the next one waits for it.
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (candidate / "checkpoint_final.pth").exists()
    printed, errors = run(workspace, *PROVE, extra=EXTRA)

    assert "waits for a command of nnU-Net's that an earlier run has started" in errors
    assert len(list(candidate.glob("training_log_*"))) == 1, "trained twice"
    assert finished_epochs(candidate) == 0
    assert "is equivalent to 2d within 0.9 Dice" in printed
    folder = workspace / "nnUNet_preprocessed/Dataset998_Phantom/nas_xtiny/nnUNetPlans__2d__proof"
    proof = json.loads((folder / "proof.json").read_text())
    assert proof["selected"]["configuration"] == "2d_xtiny4"
    assert proof["schedule"]["num_epochs"] == EPOCHS
    assert proof["tested"][0]["cases"] == 2
    assert proof["independent_cases"] is True


def test_killed_with_its_training_it_goes_on_from_the_checkpoint(workspace, trainers):
    lengths = (f"num_epochs={EPOCHS}", "num_iterations_per_epoch=10", "num_val_iterations_per_epoch=1")
    run(workspace, "nnunet_nas", "set_search", "-d", "998", "-c", "2d", "-m", "schedule", *lengths)
    run(
        workspace, "nnUNetv2_train", "998", "2d", "0", "-tr", "nnUNetTrainerScheduled", "-device", "cpu", extra=trainers
    )
    results = workspace / "nnUNet_results/Dataset998_Phantom"
    candidate = results / "nnUNetTrainerDistill__nnUNetPlans__2d_xtiny4/fold_0"
    distill = (*PROVE, "--distill", "-judge", "validation")
    killed = Command(workspace, *distill, extra=EXTRA)
    deadline = time.monotonic() + 900
    while not (candidate / "checkpoint_latest.pth").exists():
        assert killed.code is None, killed.stderr.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (candidate / "checkpoint_final.pth").exists()
    printed, errors = run(workspace, *distill, extra=EXTRA)
    assert "goes on with 2d_xtiny4, fold 0" in errors
    logs = sorted(candidate.glob("training_log_*"))
    assert len(logs) == 2
    assert "Epoch 0" not in logs[1].read_text()
    assert "Teacher:" in logs[1].read_text()
    assert "by distillation from the base" in printed
