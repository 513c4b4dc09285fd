"""From a trained backbone to a prediction with searched cells, with nnU-Net's own commands; kills on the way."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ONE_PROCESS, run, start

from nnunet_nas.iac.history import SearchHistory

pytestmark = pytest.mark.integration
PLANS = "nnUNet_preprocessed/Dataset998_Phantom/nnUNetPlans.json"
RESULTS = "nnUNet_results/Dataset998_Phantom"
FOLDER = f"{RESULTS}/nnUNetTrainerIACLTHSearch__nnUNetPlans__2d/fold_0"
SEARCH = ("nnUNetv2_train", "998", "2d", "0", "-tr", "nnUNetTrainerIACLTHSearch", "-device", "cpu")
SHORT = ("num_epochs=30", "warmup_epochs=2", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=0", "gamma=8")
RETROFIT = ("num_epochs=1", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1")
# Loading in the same process, so that runs can be compared.
LOADING = {"nnUNet_n_proc_DA": "0"}


def configurations(root):
    return json.loads((root / PLANS).read_text())["configurations"]


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """The variable that a user exports once, and the short trainer of these tests beside it."""
    folder = run(tmp_path_factory.mktemp("ext_path"), "nnunet_nas", "ext_path").stdout.strip()
    return {**LOADING, "nnUNet_extTrainer": f"{folder}{os.pathsep}{Path(__file__).parent / 'trainers'}"}


@pytest.fixture(scope="module")
def backbones(phantom, trainers, tmp_path_factory):
    """The phantom with trained backbones for folds 0 and 1 and settings for searches of seconds."""
    root = tmp_path_factory.mktemp("backbones") / "work"
    shutil.copytree(phantom, root)
    for fold in "01":
        run(root, "nnUNetv2_train", "998", "2d", fold, "-tr", "nnUNetTrainerShort", "-device", "cpu", extra=trainers)
    run(root, "nnunet_nas", "set_search", "-d", "998", "-c", "2d", "-m", "iac_lth", *SHORT)
    run(root, "nnunet_nas", "set_search", "-d", "998", "-c", "2d", "-m", "iac_retrofit", *RETROFIT)
    return root


@pytest.fixture
def work(backbones, tmp_path):
    shutil.copytree(backbones, tmp_path / "work")
    return tmp_path / "work"


def test_from_the_backbone_to_a_prediction_on_another_machine(work, trainers, tmp_path):
    searched = run(work, *SEARCH, extra=trainers)
    assert "next: nnUNetv2_train 998 2d_iaclth 0 -tr nnUNetTrainerIACRetrofit" in searched.stdout
    assert {"2d_iaclth", "2d_iaclth_residual"} < set(configurations(work))
    info = json.loads(run(work, "nnunet_nas", "info", "-d", "998", "--json").stdout)
    assert "2d_iaclth" in json.dumps(info)

    model = ("-c", "2d_iaclth", "-tr", "nnUNetTrainerIACRetrofit")
    for fold in "01":
        run(work, "nnUNetv2_train", "998", "2d_iaclth", fold, *model[2:], "-device", "cpu", "--npz", extra=trainers)
    run(
        work, "nnUNetv2_find_best_configuration", "998", *model, "-f", "0", "1", "--disable_ensembling", extra=LOADING
    )  # fmt: skip
    run(work, "nnUNetv2_export_model_to_zip", "-d", "998", "-o", tmp_path / "model.zip", *model, "-f", "0", "1")

    # Another machine: an empty results folder, the package installed, no environment variable for trainers.
    shutil.rmtree(work / "nnUNet_results")
    (work / "nnUNet_results").mkdir()
    run(work, "nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip")
    images = work / "nnUNet_raw/Dataset998_Phantom/imagesTs"
    predict = ("nnUNetv2_predict", "-i", images, "-o", tmp_path / "out", "-d", "998", *model, "-f", "0", "1")
    run(work, *predict, "-device", "cpu", "--disable_tta", *ONE_PROCESS)
    assert len(list((tmp_path / "out").glob("*.png"))) == len(list(images.iterdir())) == 2


def test_killed_at_random_instants_it_ends_as_if_nothing_had_happened(work, trainers, tmp_path):
    untouched = tmp_path / "untouched"
    shutil.copytree(work, untouched)
    plans = (work / PLANS).read_bytes()
    moments = random.Random(20260721)
    for epochs in (0, 2, 5):
        killed = start(work, *SEARCH, *(("--c",) if epochs else ()), extra=trainers)
        deadline = time.monotonic() + 300
        while finished_epochs(work) < epochs or not (work / FOLDER / "theta_0.pth").exists():
            assert killed.poll() is None, killed.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.random() * 0.5)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        assert (work / PLANS).read_bytes() == plans or "2d_iaclth" in configurations(work)
    run(work, *SEARCH, "--c", extra=trainers)
    run(untouched, *SEARCH, extra=trainers)

    assert configurations(work)["2d_iaclth"]["architecture"] == configurations(untouched)["2d_iaclth"]["architecture"]
    ours, theirs = (SearchHistory.load(root / FOLDER / "search_history.npz").arrays() for root in (work, untouched))
    for name, value in theirs.items():
        if name != "seconds":
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
    ours, theirs = (torch.load(root / FOLDER / "checkpoint_final.pth")["search"] for root in (work, untouched))
    assert ours["alpha"].any()
    assert ours["alpha"].equal(theirs["alpha"])
    assert ours["beta"].equal(theirs["beta"])


def finished_epochs(root):
    path = root / FOLDER / "checkpoint_latest.pth"
    return torch.load(path)["current_epoch"] if path.exists() else 0


def test_a_missing_backbone_is_one_line(workspace, trainers):
    failed = run(workspace, *SEARCH, code=4, extra=trainers)
    assert "Traceback" not in failed.stderr
    assert "train it first: nnUNetv2_train 998 2d 0" in failed.stderr.strip().splitlines()[-1]
