"""Searches in this process, on the fake data set, with a backbone that nnU-Net initialised and never trained."""

import json
import shutil
from pathlib import Path

import pytest
import torch

SHORT = {
    "num_epochs": 6,
    "warmup_epochs": 1,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "tau0": 0.01,
}


def read_plans(dataset, name="nnUNetPlans"):
    return json.loads((dataset / f"{name}.json").read_text())


def set_settings(dataset, configuration, method, plans="nnUNetPlans", **values):
    """Writes `nas_settings` as `set_search` does."""
    content = read_plans(dataset, plans)
    entry = content["configurations"][configuration].setdefault("nas_settings", {}).setdefault(method, {})
    entry.update(values)
    (dataset / f"{plans}.json").write_text(json.dumps(content, indent=4))


def make_trainer(cls, dataset, configuration="2d", fold=0, *, resume=False, plans="nnUNetPlans", device="cpu"):
    """A trainer as `nnUNetv2_train` constructs it."""
    content = read_plans(dataset, plans)
    content["continue_training"] = resume
    dataset_json = json.loads((dataset / "dataset.json").read_text())
    return cls(content, configuration, fold, dataset_json, torch.device(device))


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


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take longer than these searches; the test that looks at the records draws them."""
    monkeypatch.setattr("nnunet_nas.iac.trainers.draw_progress", lambda *args, **kwargs: None)
    monkeypatch.setattr("nnunet_nas.iac.trainers.draw_cell", lambda *args, **kwargs: None)
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png", lambda *args: None)


@pytest.fixture
def searchable(dataset, monkeypatch):
    """The fake data set with a backbone for `2d`, settings for searches of seconds, and single-threaded loading."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    set_settings(dataset, "2d", "iac_lth", **SHORT)
    set_settings(dataset, "2d", "iac", **{key: value for key, value in SHORT.items() if key != "tau0"})
    retrofit = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
    set_settings(dataset, "2d", "iac_retrofit", **retrofit)
    make_backbone(dataset)
    return dataset
