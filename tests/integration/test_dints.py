"""From a search of the topology to a prediction, with nnU-Net's own commands; kills on the way."""

import json
import shutil

import pytest
from commands import LOADING, ONE_PROCESS, PLANS, assert_kills_leave_no_trace, configurations, program, run

from nnunet_nas.dints.history import TopologyHistory
from nnunet_nas.dints.topology import Topology

pytestmark = pytest.mark.integration
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
    printed, _ = run(work, *SEARCH, extra=trainers)
    assert "next: nnUNetv2_train 998 2d_dints 0\n" in printed.replace(" \n", "\n")
    topology = json.loads((work / FOLDER / "topology.json").read_text())
    assert configurations(work)["2d_dints"]["architecture"]["arch_kwargs"]["topology"] == topology
    assert len(Topology.from_json(topology).layers) == 3

    # From here on nnU-Net alone, without the variable.
    model = ("-c", "2d_dints", "-tr", "nnUNetTrainer_1epoch")
    train = program(tmp_path, "nnunetv2.run.run_training:run_training_entry", iterations=20)
    run(work, train, "998", "2d_dints", "0", *model[2:], "-device", "cpu", extra=LOADING)
    run(work, "nnUNetv2_export_model_to_zip", "-d", "998", "-o", tmp_path / "model.zip", *model, "-f", "0")

    shutil.rmtree(work / "nnUNet_results")
    shutil.rmtree(work / "nnUNet_preprocessed")
    run(work, "nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip")
    images = work / "nnUNet_raw/Dataset998_Phantom/imagesTs"
    options = ("-i", images, "-o", tmp_path / "out", "-d", "998", *model, "-f", "0", "-device", "cpu")
    run(work, "nnUNetv2_predict", *options, "--disable_tta", *ONE_PROCESS)
    assert len(list((tmp_path / "out").glob("*.png"))) == len(list(images.iterdir())) == 2


def test_killed_at_random_instants_it_ends_as_if_nothing_had_happened(work, trainers):
    # The kills fall into the first 11 of 21 parts of seven epochs, when only weights learn, and into the rest.
    ours, theirs = assert_kills_leave_no_trace(
        work, FOLDER, SEARCH, "2d_dints", history=TopologyHistory, extra=trainers, seed=20260804
    )
    assert any(value.any() for key, value in theirs["network"].items() if key.endswith("edge_logits"))
    assert ours["network"].keys() == theirs["network"].keys()
    for key, value in theirs["network"].items():
        assert value.equal(ours["network"][key]), key
