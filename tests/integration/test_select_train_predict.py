"""The user's way: select a width, train it and predict with it by stock nnU-Net, nothing of ours in between."""

import json
import shutil

import numpy as np
import pytest
from commands import LOADING, ONE_PROCESS, program, run
from skimage import io

pytestmark = pytest.mark.integration


def test_a_selected_width_trains_and_predicts_without_us(workspace, tmp_path):
    train = program(tmp_path, "nnunetv2.run.run_training:run_training_entry", without_us=True, iterations=120)
    predict = program(tmp_path, "nnunetv2.inference.predict_from_raw_data:predict_entry_point", without_us=True)
    select = ("nnunet_nas", "select_tiny", "-rule", "paper", "-d", "998", "-n", "2", "-device", "cpu", "--json")
    selection = json.loads(run(workspace, *select)[0])
    selected = selection["selected"]["configuration"]
    assert selection["next_commands"][0] == f"nnUNetv2_train 998 {selected} 0"

    run(workspace, train, "998", selected, "0", "-tr", "nnUNetTrainer_1epoch", "-device", "cpu", extra=LOADING)
    model = workspace / "nnUNet_results/Dataset998_Phantom" / f"nnUNetTrainer_1epoch__nnUNetPlans__{selected}"
    assert (model / "fold_0/validation/summary.json").exists()

    images, output = workspace / "nnUNet_raw/Dataset998_Phantom/imagesTs", workspace / "predictions"
    options = ("-d", "998", "-c", selected, "-f", "0", "-tr", "nnUNetTrainer_1epoch", "-device", "cpu")
    run(workspace, predict, "-i", images, "-o", output, *options, *ONE_PROCESS)
    for image in images.iterdir():
        prediction = io.imread(output / image.name.replace("_0000", ""))
        assert prediction.shape == io.imread(image).shape
        # 120 iterations are enough to find the organ somewhere: an untrained network's output is rejected here.
        assert 0 < np.mean(prediction > 0) < 0.9

    checkpoint = model / "fold_0/checkpoint_final.pth"
    info = json.loads(run(workspace, "nnunet_nas", "info", "-d", "998", "-c", selected, "--json")[0])
    counted = info["configurations"][0]["checkpoint_mib"]
    # The rest of the file is names, plans and the log: about a quarter of a MiB whatever the network.
    assert counted < checkpoint.stat().st_size / 2**20 < counted + 0.5


def test_planning_again_keeps_our_configurations_and_a_changed_base_is_noticed(workspace):
    select = ("nnunet_nas", "select_tiny", "-rule", "paper", "-d", "998", "-n", "2", "-device", "cpu")
    plans_file = workspace / "nnUNet_preprocessed/Dataset998_Phantom/nnUNetPlans.json"
    run(workspace, *select)
    before = json.loads(plans_file.read_text())
    run(workspace, "nnUNetv2_plan_experiment", "-d", "998")
    assert json.loads(plans_file.read_text())["configurations"] == before["configurations"]
    assert "stale" not in run(workspace, "nnunet_nas", "ls", "-d", "998")[0]

    changed = json.loads(plans_file.read_text())
    changed["configurations"]["2d"]["patch_size"] = [32, 32]
    plans_file.write_text(json.dumps(changed, indent=4))
    assert "stale" in run(workspace, "nnunet_nas", "ls", "-d", "998")[0]
    _, errors = run(workspace, *select, code=4)
    assert "--overwrite" in errors
    assert json.loads(plans_file.read_text()) == changed
    run(workspace, *select, "--overwrite")
    assert "stale" not in run(workspace, "nnunet_nas", "ls", "-d", "998")[0]


def test_residual_encoder_presets_and_a_separate_plans_file(workspace):
    run(workspace, "nnUNetv2_plan_experiment", "-d", "998", "-pl", "nnUNetPlannerResEncM")
    folder = workspace / "nnUNet_preprocessed/Dataset998_Phantom"
    original = (folder / "nnUNetResEncUNetMPlans.json").read_bytes()
    preset = ("-p", "nnUNetResEncUNetMPlans", "-o", "TinyPlans")
    select = ("nnunet_nas", "select_tiny", "-rule", "paper", "-d", "998", "-n", "2", "-device", "cpu", "--json")
    selection = json.loads(run(workspace, *select, *preset)[0])
    assert (folder / "nnUNetResEncUNetMPlans.json").read_bytes() == original
    plans = json.loads((folder / "TinyPlans.json").read_text())
    assert plans["plans_name"] == "TinyPlans"
    selected = selection["selected"]["configuration"]
    assert plans["configurations"][selected]["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    assert selection["next_commands"][0] == f"nnUNetv2_train 998 {selected} 0 -p TinyPlans"


def test_raw_data_are_not_needed(workspace):
    shutil.rmtree(workspace / "nnUNet_raw")
    run(workspace, "nnunet_nas", "select_tiny", "-rule", "paper", "-d", "998", "-n", "2", "-device", "cpu", "--dry_run")
