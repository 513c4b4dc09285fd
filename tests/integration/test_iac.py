"""From a trained backbone to a prediction with searched cells, with nnU-Net's own commands; kills on the way."""

import json
import shutil

import pytest
from commands import LOADING, ONE_PROCESS, PLANS, assert_kills_leave_no_trace, configurations, run

from nnunet_nas.iac.history import CellHistory

pytestmark = pytest.mark.integration
FOLDER = "nnUNet_results/Dataset998_Phantom/nnUNetTrainerIACLTHSearch__nnUNetPlans__2d/fold_0"
SEARCH = ("nnUNetv2_train", "998", "2d", "0", "-tr", "nnUNetTrainerIACLTHSearch", "-device", "cpu")
SHORT = (
    *("num_epochs=30", "warmup_epochs=2", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=0"),
    *("stability=paper", "gamma=8", "trial_iterations=2", "trial_batches=2"),
)
RETROFIT = ("num_epochs=1", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1")


@pytest.fixture(scope="session")
def backbone(phantom, trainers, made_once):
    """The phantom with small patches, a trained backbone of fold 0 and settings for searches of seconds."""

    def fill(root):
        shutil.copytree(phantom, root, dirs_exist_ok=True)
        content = json.loads((root / PLANS).read_text())
        content["configurations"]["2d"]["patch_size"] = [32, 32]
        (root / PLANS).write_text(json.dumps(content))
        run(root, "nnUNetv2_train", "998", "2d", "0", "-tr", "nnUNetTrainerShort", "-device", "cpu", extra=trainers)
        run(root, "nnunet_nas", "set_search", "-d", "998", "-c", "2d", "-m", "iac_lth", *SHORT)
        run(root, "nnunet_nas", "set_search", "-d", "998", "-c", "2d", "-m", "iac_retrofit", *RETROFIT)

    return made_once("backbone", fill)


@pytest.fixture
def work(backbone, tmp_path):
    shutil.copytree(backbone, tmp_path / "work")
    return tmp_path / "work"


def test_from_the_backbone_to_a_prediction_on_another_machine(work, trainers, tmp_path):
    printed, _ = run(work, *SEARCH, extra=trainers)
    assert "next: nnUNetv2_train 998 2d_iaclth 0 -tr nnUNetTrainerIACRetrofit" in printed
    assert {"2d_iaclth", "2d_iaclth_residual"} < set(configurations(work))
    info = json.loads(run(work, "nnunet_nas", "info", "-d", "998", "--json")[0])
    assert "2d_iaclth" in json.dumps(info)

    model = ("-c", "2d_iaclth", "-tr", "nnUNetTrainerIACRetrofit")
    run(work, "nnUNetv2_train", "998", "2d_iaclth", "0", *model[2:], "-device", "cpu", "--npz", extra=trainers)
    best = ("nnUNetv2_find_best_configuration", "998", *model, "-f", "0", "--disable_ensembling")
    run(work, *best, extra=LOADING)
    run(work, "nnUNetv2_export_model_to_zip", "-d", "998", "-o", tmp_path / "model.zip", *model, "-f", "0")

    # Another machine: an empty results folder, the package installed, no environment variable for trainers.
    shutil.rmtree(work / "nnUNet_results")
    (work / "nnUNet_results").mkdir()
    run(work, "nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip")
    images = work / "nnUNet_raw/Dataset998_Phantom/imagesTs"
    predict = ("nnUNetv2_predict", "-i", images, "-o", tmp_path / "out", "-d", "998", *model, "-f", "0")
    run(work, *predict, "-device", "cpu", "--disable_tta", *ONE_PROCESS)
    assert len(list((tmp_path / "out").glob("*.png"))) == len(list(images.iterdir())) == 2


def test_killed_at_random_instants_it_ends_as_if_nothing_had_happened(work, trainers):
    ours, theirs = assert_kills_leave_no_trace(
        work, FOLDER, SEARCH, "2d_iaclth", history=CellHistory, extra=trainers, seed=20260721, begun="theta_0.pth"
    )
    assert ours["alpha"].any()
    assert ours["alpha"].equal(theirs["alpha"])
    assert ours["beta"].equal(theirs["beta"])


def test_a_missing_backbone_is_one_line(workspace, trainers):
    _, errors = run(workspace, *SEARCH, code=4, extra=trainers)
    assert "Traceback" not in errors
    assert "train it first: nnUNetv2_train 998 2d 0" in errors.strip().splitlines()[-1]
