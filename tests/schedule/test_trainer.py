"""Plain trainings of seconds in this process, by a schedule in the plans."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cell_searches import make_backbone
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from searches import make_trainer, refused, set_settings

from nnunet_nas.schedule.trainer import nnUNetTrainerScheduled

# In nnU-Net's training loop: seconds each, so they run with the slow layer.
pytestmark = pytest.mark.integration

SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}


@pytest.fixture
def planned(dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png", lambda *args: None)
    set_settings(dataset, "2d", "schedule", **SHORT)
    return dataset


def scheduled(planned, **options):
    return make_trainer(nnUNetTrainerScheduled, planned, **options)


def weights_of(trainer):
    return {key: value.clone() for key, value in trainer.network.state_dict().items()}


def test_it_trains_as_long_as_the_plans_say_and_leaves_a_model_of_nnunets_own(planned):
    set_settings(planned, "2d", "schedule", initial_lr=0.002)
    trainer = scheduled(planned)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert len(checkpoint["logging"]["train_losses"]) == 2
    assert checkpoint["logging"]["lrs"][0] == pytest.approx(0.002)
    make_trainer(nnUNetTrainer, planned).load_checkpoint(str(folder / "checkpoint_final.pth"))


def test_a_killed_training_ends_as_one_in_a_single_go(planned):
    whole = scheduled(planned)
    whole.run_training()
    expected = weights_of(whole)
    folder = Path(whole.output_folder)
    for path in folder.glob("*.pth"):
        path.unlink()
    cut = scheduled(planned)
    cut.num_epochs = 1
    cut.run_training()
    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_latest.pth")
    # The rate falls with the planned length; the first epoch's is the same whatever it is.
    resumed = scheduled(planned, resume=True)
    resumed.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    resumed.run_training()
    assert all(value.equal(expected[key]) for key, value in weights_of(resumed).items())


def test_the_seed_decides_weights_and_patches(planned):
    def start():
        trainer = scheduled(planned)
        trainer.on_train_start()
        return weights_of(trainer), next(trainer.dataloader_train)["data"]

    (weights, patches), (again, same) = start(), start()
    assert all(value.equal(again[key]) for key, value in weights.items())
    assert patches.equal(same)
    set_settings(planned, "2d", "schedule", seed=1)
    others, different = start()
    assert not all(value.equal(others[key]) for key, value in weights.items())
    assert not patches.equal(different)


def test_a_warm_start_takes_all_weights_and_only_once(planned):
    path = make_backbone(planned)
    set_settings(planned, "2d", "schedule", initial_checkpoint=str(path))
    trainer = scheduled(planned)
    trainer.initialize()
    given = torch.load(path, weights_only=False)["network_weights"]
    assert any("seg_layers" in key for key in given)
    assert all(value.equal(given[key]) for key, value in weights_of(trainer).items())
    trainer.run_training()
    path.unlink()
    resumed = scheduled(planned, resume=True)
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    assert all(value.equal(weights_of(trainer)[key]) for key, value in weights_of(resumed).items())


def test_a_warm_start_that_was_killed_before_its_first_checkpoint_starts_warm_again(planned):
    path = make_backbone(planned)
    set_settings(planned, "2d", "schedule", initial_checkpoint=str(path))
    # nnU-Net's --c trains anew, and loads nothing, where there is no checkpoint.
    trainer = scheduled(planned, resume=True)
    trainer.initialize()
    given = torch.load(path, weights_only=False)["network_weights"]
    assert all(value.equal(given[key]) for key, value in weights_of(trainer).items())


@pytest.mark.parametrize("kept", ["checkpoint_latest.pth", "checkpoint_final.pth"])
def test_a_training_that_was_killed_after_its_last_epoch_ends_with_the_same_random_numbers(planned, kept):
    trainer = scheduled(planned)
    trainer.run_training()
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    expected = torch.load(final, weights_only=False)["nnunet_nas_random"]["torch"]
    final.rename(final.with_name(kept))
    resumed = scheduled(planned, resume=True)
    resumed.load_checkpoint(str(final.with_name(kept)))
    resumed.run_training()
    assert torch.load(final, weights_only=False)["nnunet_nas_random"]["torch"].equal(expected)


def test_a_warm_start_of_each_fold_has_its_own_checkpoint(planned):
    first, second = (make_backbone(planned, fold=fold, seed=fold + 1) for fold in (0, 1))
    template = str(first.parents[1] / "fold_{fold}" / first.name)
    set_settings(planned, "2d", "schedule", initial_checkpoint=template)
    for fold, path in ((0, first), (1, second)):
        trainer = make_trainer(nnUNetTrainerScheduled, planned, fold=fold)
        trainer.initialize()
        given = torch.load(path, weights_only=False)["network_weights"]
        assert all(value.equal(given[key]) for key, value in weights_of(trainer).items())


def test_a_checkpoint_of_another_network_is_refused(planned, tmp_path, capsys):
    path = tmp_path / "other.pth"
    torch.save({"network_weights": {"a.weight": torch.from_numpy(np.zeros(3, dtype=np.float32))}}, path)
    set_settings(planned, "2d", "schedule", initial_checkpoint=str(path))
    text = refused(4, scheduled(planned).run_training, capsys)
    assert f"{path} holds another network than 2d" in text
    assert text.endswith("correct initial_checkpoint in the plans")


def test_the_papers_schedule_of_retraining(planned):
    """41 epochs stand for the paper's 41 thousand iterations: one of warm-up, then halved every eight."""
    set_settings(planned, "2d", "schedule", schedule="dints", num_epochs=41, num_iterations_per_epoch=2)
    trainer = scheduled(planned)
    trainer.initialize()
    (group,) = trainer.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 4e-5, False)
    assert group["lr"] == pytest.approx(0.025)
    trainer.on_train_start()
    expected = {
        0: [0.025, 0.1125],
        1: [0.2, 0.2],
        8: [0.2, 0.2],
        9: [0.1, 0.1],
        25: [0.025, 0.025],
        40: [0.0125, 0.0125],
    }
    for epoch, rates in expected.items():
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        assert group["lr"] == pytest.approx(rates[0])
        for rate in rates:
            trainer.train_step(next(trainer.dataloader_train))
            assert group["lr"] == pytest.approx(rate)


def test_a_full_disk_leaves_no_half_split_behind(planned, monkeypatch):
    splits = planned / "splits_final.json"
    splits.unlink(missing_ok=True)

    def full(content, path, *arguments):
        Path(path).write_text("[")
        raise OSError(28, "No space left on device")

    trainer = scheduled(planned)
    with monkeypatch.context() as disk:
        disk.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.save_json", full)
        with pytest.raises(OSError, match="No space left"):
            trainer.do_split()
    assert not splits.exists()
    assert all(trainer.do_split())


def test_a_split_that_another_training_is_writing_is_waited_for(planned, monkeypatch):
    splits = planned / "splits_final.json"
    trainer = scheduled(planned)
    expected, whole = trainer.do_split(), splits.read_text()
    splits.write_text(whole[:-5])
    monkeypatch.setattr("nnunet_nas.trainer.time.sleep", lambda seconds: splits.write_text(whole))
    assert trainer.do_split() == expected


def test_a_half_split_is_one_line(planned, capsys):
    (planned / "splits_final.json").write_text("[")
    text = refused(4, scheduled(planned).run_training, capsys)
    assert text.endswith(
        "splits_final.json is not valid JSON: remove it, so that nnU-Net makes its own again, or restore yours"
    )
