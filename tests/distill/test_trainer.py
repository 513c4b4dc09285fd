"""Trainings with a teacher in this process, of seconds, on networks that nnU-Net initialised and never trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cell_searches import make_backbone
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from searches import make_trainer, read_plans, refused, set_settings, use_regions_and_an_ignore_label

from nnunet_nas.cli.main import main
from nnunet_nas.distill.teacher import Teacher
from nnunet_nas.distill.trainer import nnUNetTrainerDistill

# In nnU-Net's training loop: seconds each, so they run with the slow layer.
pytestmark = pytest.mark.integration

STUDENT = "2d_xtiny8"
SHORT = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png", lambda *args: None)


@pytest.fixture
def school(dataset):
    """A data set whose plans have a student of 8 channels, with settings for trainings of seconds."""
    content = read_plans(dataset)
    architecture = json.loads(json.dumps(content["configurations"]["2d"]["architecture"]))
    architecture["arch_kwargs"]["features_per_stage"] = [8, 8, 8]
    content["configurations"][STUDENT] = {"inherits_from": "2d", "architecture": architecture}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    set_settings(dataset, STUDENT, "distill", **SHORT)
    return dataset


def student(school, **options):
    return make_trainer(nnUNetTrainerDistill, school, STUDENT, **options)


def saved(trainer, name="checkpoint_final.pth"):
    return torch.load(Path(trainer.output_folder) / name, map_location="cpu", weights_only=False)


def test_what_a_teacher_taught_is_a_model_of_nnunets_own(school):
    path = make_backbone(school)
    before = path.read_bytes()
    trainer = student(school)
    trainer.run_training()
    checkpoint = saved(trainer)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    stock = make_trainer(nnUNetTrainer, school, STUDENT)
    stock.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    assert all(stock.network.state_dict()[key].equal(value) for key, value in checkpoint["network_weights"].items())
    assert path.read_bytes() == before
    assert f"Teacher: {path}" in next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()


def test_the_teacher_is_finished_with_learning_and_the_student_moves_towards_it(school):
    path = make_backbone(school)
    set_settings(school, STUDENT, "distill", weight=1000.0, temperature=1.0)
    trainer = student(school)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    weights = torch.load(path, weights_only=False)["network_weights"]
    (network,) = trainer.teacher.networks
    assert not network.training
    assert not any(parameter.requires_grad for parameter in trainer.teacher.parameters())
    batch = next(trainer.dataloader_train)
    losses = [float(trainer.train_step(dict(batch))["loss"]) for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(network.state_dict()[key].equal(value) for key, value in weights.items())


def test_the_loss_of_a_step_is_nnunets_and_the_distance(school):
    make_backbone(school)
    trainer = student(school)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    trainer.network.train()
    with torch.no_grad():
        plain = float(trainer.loss(trainer.network(batch["data"]), batch["target"]))
        trainer.loss.teacher = trainer.teacher(batch["data"])
        taught = float(trainer.loss(trainer.network(batch["data"]), batch["target"]))
    assert taught > plain
    assert float(trainer.train_step(dict(batch))["loss"]) == pytest.approx(taught, rel=1e-4)
    assert float(trainer.validation_step(dict(batch))["loss"]) != pytest.approx(taught, rel=1e-4)
    assert trainer.loss.teacher is None


def test_a_training_goes_on_where_it_was(school):
    make_backbone(school)
    trainer = student(school)
    trainer.num_epochs = 1
    trainer.run_training()
    folder = Path(trainer.output_folder)
    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_latest.pth")
    first = saved(trainer, "checkpoint_latest.pth")
    resumed = student(school, resume=True)
    resumed.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 1
    assert all(resumed.network.state_dict()[key].equal(value) for key, value in first["network_weights"].items())
    resumed.run_training()
    last = saved(resumed)
    assert last["current_epoch"] == 2
    assert last["logging"]["train_losses"][0] == first["logging"]["train_losses"][0]
    assert np.isfinite(last["logging"]["train_losses"]).all()


def test_a_weight_of_zero_needs_no_teacher_and_sees_the_same_images(school):
    set_settings(school, STUDENT, "distill", weight=0.0)
    control = student(school)
    control.on_train_start()
    assert control.teacher is None
    batch = next(control.dataloader_train)
    make_backbone(school)
    set_settings(school, STUDENT, "distill", weight=1.0)
    taught = student(school)
    taught.on_train_start()
    assert all(taught.network.state_dict()[key].equal(value) for key, value in control.network.state_dict().items())
    assert next(taught.dataloader_train)["data"].equal(batch["data"])


def test_the_logits_of_several_folds_are_averaged_and_what_they_saw_is_said(school):
    for fold in (0, 1):
        make_backbone(school, fold=fold, seed=fold + 1)
    set_settings(school, STUDENT, "distill", teacher_folds=["0", "1"])
    trainer = student(school)
    trainer.on_train_start()
    networks = list(trainer.teacher.networks)
    assert len(networks) == 2
    images = torch.randn(2, 1, 32, 32)
    singly = [Teacher([network])(images) for network in networks]
    for mean, first, second in zip(trainer.teacher(images), *singly, strict=True):
        assert torch.allclose(mean, (first + second) / 2)
    assert "The teachers of folds 1 have seen validation cases of fold 0" in next(
        Path(trainer.output_folder).glob("training_log*.txt")
    ).read_text().replace("\n", " ")


def test_regions_and_voxels_without_a_label_are_taught(school):
    use_regions_and_an_ignore_label(school)
    make_backbone(school)
    trainer = student(school)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    assert np.isfinite(trainer.train_step(batch)["loss"])
    batch["target"] = [torch.ones_like(part) for part in batch["target"]]  # all ignored: a teacher changes nothing
    trainer.network.train()
    with torch.no_grad():
        output = trainer.network(batch["data"])
        plain = float(trainer.loss(output, batch["target"]))
        trainer.loss.teacher = trainer.teacher(batch["data"])
        assert float(trainer.loss(output, batch["target"])) == pytest.approx(plain)


def test_images_are_mirrored_as_the_teachers_were(school):
    path = make_backbone(school)
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["inference_allowed_mirroring_axes"] = None
    torch.save(checkpoint, path)
    trainer = student(school)
    trainer.run_training()
    assert saved(trainer)["inference_allowed_mirroring_axes"] is None


class TestRefused:
    def test_a_teacher_that_is_not_trained(self, school, capsys):
        text = refused(4, student(school).run_training, capsys)
        assert text == (
            "nnunet_nas: no teacher: fold 0 of 2d has no checkpoint_final.pth; train it first: nnUNetv2_train 11 2d 0"
        )

    def test_a_configuration_without_a_base(self, school, capsys):
        set_settings(school, "2d", "distill", **SHORT)
        text = refused(4, make_trainer(nnUNetTrainerDistill, school, "2d").run_training, capsys)
        assert "nnunet_nas set_search -d 11 -c 2d -m distill teacher_configuration=NAME" in text

    def test_a_teacher_on_other_data(self, school, capsys):
        set_settings(school, STUDENT, "distill", teacher_configuration="3d_fullres")
        text = refused(4, student(school).run_training, capsys)
        assert "3d_fullres sees the data nnUNetPlans_3d_fullres and 2d_xtiny8 sees nnUNetPlans_2d" in text

    def test_several_trainers_to_choose_from(self, school, capsys):
        path = make_backbone(school)
        for name in ("nnUNetTrainer_5epochs", "nnUNetTrainer_10epochs"):
            other = path.parents[2] / f"{name}__nnUNetPlans__2d" / "fold_0" / path.name
            other.parent.mkdir(parents=True)
            other.write_bytes(path.read_bytes())
        path.unlink()
        text = refused(4, student(school).run_training, capsys)
        assert "teachers of several trainers: nnUNetTrainer_10epochs, nnUNetTrainer_5epochs" in text
        assert text.endswith("set_search -d 11 -c 2d_xtiny8 -m distill teacher_trainer=NAME")

    def test_one_file_for_several_folds(self, school, capsys):
        path = make_backbone(school)
        set_settings(school, STUDENT, "distill", teacher_folds=["0", "1"], teacher_checkpoint=str(path))
        assert "is one file and teacher_folds are 2" in refused(4, student(school).run_training, capsys)

    def test_a_file_that_is_not_there(self, school, capsys):
        set_settings(school, STUDENT, "distill", teacher_checkpoint="/nowhere/teacher.pth")
        text = refused(4, student(school).run_training, capsys)
        assert "teacher_checkpoint=/nowhere/teacher.pth is no file" in text
        assert "-m distill teacher_checkpoint=FILE" in text

    def test_a_teacher_of_an_older_plan(self, school, capsys):
        make_backbone(school)
        content = read_plans(school)
        content["configurations"]["2d"]["batch_size"] = 3
        (school / "nnUNetPlans.json").write_text(json.dumps(content))
        assert "was trained with another version of configuration 2d" in refused(
            4, student(school).run_training, capsys
        )


def test_set_search_lists_what_can_be_set(school, capsys):
    assert main(["set_search", "-d", "11", "-c", STUDENT, "-m", "distill", "temperature=4"]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1].split()[:3] == ["temperature", "4", "2"]
    assert output.err.splitlines()[-1] == f"next: nnUNetv2_train 11 {STUDENT} 0 -tr {nnUNetTrainerDistill.__name__}"
    assert main(["set_search", "-d", "11", "-c", STUDENT, "-m", "distill", "temperature=0"]) == 2
