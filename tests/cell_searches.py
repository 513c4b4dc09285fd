"""Searches for cells in this process, with backbones that nnU-Net initialised and never trained."""

import shutil
from pathlib import Path

import pytest
import torch
from searches import leave_out_pictures, make_trainer, set_settings

SHORT = {
    "num_epochs": 4,
    "warmup_epochs": 1,
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
    "trial_iterations": 1,
    "trial_batches": 2,
    "stability": "paper",
    "tau0": 0.01,
}
PICTURES = ("nnunet_nas.iac.trainers", "draw_progress", "draw_cell")
FOLDERS = ("nnUNet_preprocessed", "nnUNet_results")


def make_backbone(dataset, configuration="2d", fold=0, *, plans="nnUNetPlans", trainer=None, seed=1):
    """The checkpoint of a backbone with random weights."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.manual_seed(seed)
    made = make_trainer(trainer or nnUNetTrainer, dataset, configuration, fold, plans=plans)
    made.initialize()
    made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    for key in ("train_losses", "val_losses", "mean_fg_dice"):
        made.logger.log(key, 0.5, 0)
    path = Path(made.output_folder) / "checkpoint_final.pth"
    made.save_checkpoint(str(path))
    shutil.copy(dataset / f"{plans}.json", path.parents[1] / "plans.json")
    return path


def prepare(dataset):
    """A backbone for `2d`, and settings for searches of seconds."""
    set_settings(dataset, "2d", "iac_lth", **SHORT)
    set_settings(
        dataset, "2d", "iac", **{key: value for key, value in SHORT.items() if key not in ("tau0", "stability")}
    )
    retrofit = {"num_epochs": 2, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    set_settings(dataset, "2d", "iac_retrofit", **retrofit)
    make_backbone(dataset)


@pytest.fixture
def no_pictures(monkeypatch):
    leave_out_pictures(monkeypatch, *PICTURES)


@pytest.fixture
def searchable(dataset, monkeypatch):
    """The fake data set, prepared, and single-threaded loading."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    prepare(dataset)
    return dataset


@pytest.fixture(scope="session")
def finished_search(fake_preprocessed, tmp_path_factory):
    """Folders with a finished IAC-LTH search, for the tests of what comes after one."""
    from nnunet_nas.iac.trainers import nnUNetTrainerIACLTHSearch

    root = tmp_path_factory.mktemp("finished_search")
    dataset = root / FOLDERS[0] / fake_preprocessed.name
    shutil.copytree(fake_preprocessed, dataset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "0")
        for name in FOLDERS:
            patch.setenv(name, str(root / name))
        leave_out_pictures(patch, *PICTURES)
        prepare(dataset)
        make_trainer(nnUNetTrainerIACLTHSearch, dataset).run_training()
    return root


@pytest.fixture
def searched(nnunet_folders, finished_search, monkeypatch):
    """A copy of the data set with the finished search, elsewhere than it was made."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    shutil.copytree(finished_search, nnunet_folders, dirs_exist_ok=True)
    return next((nnunet_folders / FOLDERS[0]).iterdir())


def search_folder(dataset, trainer="nnUNetTrainerIACLTHSearch"):
    """The results folder of the finished search."""
    return dataset.parents[1] / FOLDERS[1] / dataset.name / f"{trainer}__nnUNetPlans__2d" / "fold_0"
