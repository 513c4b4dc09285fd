"""From a search of the topology to a prediction, with nnU-Net's own commands; kills on the way."""

import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from commands import ONE_PROCESS, run, start

from nnunet_nas.dints.history import TopologyHistory
from nnunet_nas.dints.topology import Topology

pytestmark = pytest.mark.integration
PLANS = "nnUNet_preprocessed/Dataset998_Phantom/nnUNetPlans.json"
FOLDER = "nnUNet_results/Dataset998_Phantom/nnUNetTrainerDiNTSSearch__nnUNetPlans__2d/fold_0"
SEARCH = ("nnUNetv2_train", "998", "2d", "0", "-tr", "nnUNetTrainerDiNTSSearch", "-device", "cpu")
SETTINGS = {
    "num_epochs": 7,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "num_layers": 3,
    "num_levels": 3,
    "features": 4,
    # Large, so that seven epochs decide something.
    "architecture_lr": 0.2,
}
# Loading in the same process, so that runs can be compared.
LOADING = {"nnUNet_n_proc_DA": "0"}


def configurations(root):
    return json.loads((root / PLANS).read_text())["configurations"]


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """The variable that a user exports once, for the search only."""
    return {
        **LOADING,
        "nnUNet_extTrainer": run(tmp_path_factory.mktemp("ext_path"), "nnunet_nas", "ext_path").stdout.strip(),
    }


@pytest.fixture
def work(workspace):
    """The phantom with a plan of small patches and batches and settings for a search of seconds."""
    content = json.loads((workspace / PLANS).read_text())
    content["configurations"]["2d"].update(batch_size=2, patch_size=[32, 32])
    (workspace / PLANS).write_text(json.dumps(content))
    pairs = [f"{key}={value}" for key, value in SETTINGS.items()]
    run(workspace, "nnunet_nas", "set_search", "-d", "998", "-c", "2d", "-m", "dints", *pairs)
    return workspace


def test_from_the_search_to_a_prediction_on_another_machine(work, trainers, tmp_path):
    searched = run(work, *SEARCH, extra=trainers)
    assert "next: nnUNetv2_train 998 2d_dints 0\n" in searched.stdout.replace(" \n", "\n")
    topology = json.loads((work / FOLDER / "topology.json").read_text())
    assert configurations(work)["2d_dints"]["architecture"]["arch_kwargs"]["topology"] == topology
    assert len(Topology.from_json(topology).layers) == 3

    # From here on nnU-Net alone, without the variable.
    model = ("-c", "2d_dints", "-tr", "nnUNetTrainer_1epoch")
    run(work, "nnUNetv2_train", "998", "2d_dints", "0", *model[2:], "-device", "cpu", "--npz", extra=LOADING)
    best = ("nnUNetv2_find_best_configuration", "998", *model, "-f", "0", "--disable_ensembling")
    run(work, *best, extra=LOADING)
    run(work, "nnUNetv2_export_model_to_zip", "-d", "998", "-o", tmp_path / "model.zip", *model, "-f", "0")

    shutil.rmtree(work / "nnUNet_results")
    shutil.rmtree(work / "nnUNet_preprocessed")
    run(work, "nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip")
    images = work / "nnUNet_raw/Dataset998_Phantom/imagesTs"
    options = ("-i", images, "-o", tmp_path / "out", "-d", "998", *model, "-f", "0", "-device", "cpu")
    run(work, "nnUNetv2_predict", *options, "--disable_tta", *ONE_PROCESS)
    assert len(list((tmp_path / "out").glob("*.png"))) == len(list(images.iterdir())) == 2


def test_killed_at_random_instants_it_ends_as_if_nothing_had_happened(work, trainers, tmp_path):
    untouched = tmp_path / "untouched"
    shutil.copytree(work, untouched)
    plans = (work / PLANS).read_bytes()
    moments = random.Random(20260804)
    # While only weights learn (the first 11 of 21 parts of seven epochs), and while the topology does.
    for epochs in (0, 2, 5):
        killed = start(work, *SEARCH, *(("--c",) if epochs else ()), extra=trainers)
        deadline = time.monotonic() + 300
        while finished_epochs(work) < epochs or not (work / FOLDER).exists():
            assert killed.poll() is None, killed.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.random() * 0.5)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        assert (work / PLANS).read_bytes() == plans or "2d_dints" in configurations(work)
    run(work, *SEARCH, "--c", extra=trainers)
    run(untouched, *SEARCH, extra=trainers)

    assert configurations(work)["2d_dints"]["architecture"] == configurations(untouched)["2d_dints"]["architecture"]
    ours, theirs = (TopologyHistory.load(root / FOLDER / "search_history.npz").arrays() for root in (work, untouched))
    for name, value in theirs.items():
        if name != "seconds":
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
    ours, theirs = (
        torch.load(root / FOLDER / "checkpoint_final.pth")["search"]["network"] for root in (work, untouched)
    )
    assert any(value.any() for key, value in theirs.items() if key.endswith("edge_logits"))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert value.equal(ours[key]), key


def finished_epochs(root):
    path = root / FOLDER / "checkpoint_latest.pth"
    return torch.load(path)["current_epoch"] if path.exists() else 0
