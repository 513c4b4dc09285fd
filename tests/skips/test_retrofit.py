"""The retrofit: cells and published skip modules in a frozen backbone. Networks are tiny and untrained."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cell_searches import make_backbone, search_folder
from searches import make_trainer, read_plans, refused, search, set_settings

from nnunet_nas.cli.main import main
from nnunet_nas.iac.genotype import Genotype
from nnunet_nas.iac.network import discrete_state
from nnunet_nas.iac.sampling import random_genotype
from nnunet_nas.iac.trainers import nnUNetTrainerIACSearch
from nnunet_nas.skips.retrofit import nnUNetTrainerIACRetrofit
from nnunet_nas.skips.unet import SKIP_PREFIX, backbone_weights

# In nnU-Net's training loop: seconds each, so they run with the slow layer.
pytestmark = pytest.mark.integration

SLOW = pytest.mark.integration
NO_PICTURES = pytest.mark.usefixtures("no_pictures")


def starts_of(dataset, genotype):
    """theta_0 of a cell, and the weights of the backbone that was searched on."""
    theta_0 = torch.load(search_folder(dataset) / "theta_0.pth", weights_only=True)
    backbone = torch.load(
        search_folder(dataset, "nnUNetTrainer") / "checkpoint_final.pth", map_location="cpu", weights_only=False
    )
    return discrete_state(theta_0, genotype), backbone["network_weights"]


@NO_PICTURES
def test_the_retrofit_starts_at_theta_0_and_leaves_the_backbone_alone(searched):
    found = Genotype.from_json(json.loads((search_folder(searched) / "genotype.json").read_text()))
    expected, backbone = starts_of(searched, found)
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    trainer.initialize()
    trainer.start_from_backbone()
    state = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    assert all(state[key].equal(value) for key, value in expected.items())
    trainer.run_training()
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    for key, value in checkpoint["network_weights"].items():
        if not key.startswith(SKIP_PREFIX):
            assert value.equal(backbone[key]), key
    assert not checkpoint["network_weights"][f"{SKIP_PREFIX}0.output.weight"].equal(
        state[f"{SKIP_PREFIX}0.output.weight"]
    )


@SLOW
@NO_PICTURES
def test_a_random_cell_starts_at_theta_0_and_in_the_backbone_of_the_search_too(searched):
    assert main(["add_random", "-d", "11", "-c", "2d_iaclth", "-seed", "1"]) == 0
    expected, backbone = starts_of(searched, random_genotype(np.random.default_rng(1)))
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth_random1")
    trainer.initialize()
    trainer.start_from_backbone()
    state = trainer.network.state_dict()
    assert all(state[key].equal(value) for key, value in expected.items())
    others = {key: value for key, value in state.items() if not key.startswith(SKIP_PREFIX)}
    assert all(value.equal(backbone[key]) for key, value in others.items())


@NO_PICTURES
def test_the_retrofit_of_iac_starts_fresh(searchable):
    found = search(nnUNetTrainerIACSearch, searchable)
    theta_0 = torch.load(Path(found.output_folder) / "theta_0.pth", weights_only=True)
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searchable, configuration="2d_iac")
    trainer.initialize()
    trainer.start_from_backbone()
    key = f"{SKIP_PREFIX}0.output.weight"
    assert not trainer.network.state_dict()[key].equal(theta_0[key])


@NO_PICTURES
def test_theta_0_that_is_lost_or_of_other_cells_is_refused(searched, capsys):
    path = search_folder(searched) / "theta_0.pth"
    torch.save({f"{SKIP_PREFIX}0.psi.weight": torch.zeros(1)}, path)
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    assert f"{path}: these weights do not fit" in refused(4, trainer.on_train_start, capsys)
    path.unlink()
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    text = refused(4, trainer.on_train_start, capsys)
    assert f"{path} is missing" in text
    assert "init=random" in text


@NO_PICTURES
def test_residual_cells_start_exactly_at_the_backbone(searched):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth_residual")
    trainer.initialize()
    trainer.start_from_backbone()
    backbone = make_trainer(nnUNetTrainer, searched)
    backbone.load_checkpoint(str(Path(backbone.output_folder) / "checkpoint_final.pth"))
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(trainer.network.eval()(images), backbone.network.eval()(images), strict=True):
            assert ours.equal(theirs)


@NO_PICTURES
def test_cells_can_be_put_into_another_folds_backbone(searched, capsys):
    text = refused(
        4, make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth", fold=3).run_training, capsys
    )
    assert "nnUNetv2_train 11 2d 3" in text
    make_backbone(searched, fold=3, seed=5)
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth", fold=3)
    trainer.on_train_start()
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])


@NO_PICTURES
def test_a_configuration_without_cells_cannot_be_retrofitted(searchable, capsys):
    text = refused(4, lambda: make_trainer(nnUNetTrainerIACRetrofit, searchable), capsys)
    assert "2d has no searched cells" in text


@NO_PICTURES
def test_cells_of_a_base_that_has_changed_are_not_trained(searched, capsys):
    content = read_plans(searched)
    content["configurations"]["2d"]["batch_size"] = 3
    (searched / "nnUNetPlans.json").write_text(json.dumps(content))
    text = refused(4, lambda: make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth"), capsys)
    assert "2d_iaclth is stale, its base 2d has changed" in text


def test_published_modules_train_and_the_backbone_stays(dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png", lambda *args: None)
    checkpoint = make_backbone(dataset)
    assert main(["add_skip", "-d", "11", "-c", "2d", "-m", "attention"]) == 0
    set_settings(
        dataset, "2d_attention", "iac_retrofit",
        num_epochs=1, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1,
    )  # fmt: skip
    trainer = make_trainer(nnUNetTrainerIACRetrofit, dataset, configuration="2d_attention")
    trainer.run_training()
    before = backbone_weights(torch.load(checkpoint, weights_only=False)["network_weights"])
    after = trainer.unwrapped().state_dict()
    assert all(after[key].equal(value) for key, value in before.items())
    fresh = make_trainer(nnUNetTrainerIACRetrofit, dataset, configuration="2d_attention")
    fresh.initialize()
    start = fresh.unwrapped().state_dict()
    moved = [key for key in after if key.startswith(SKIP_PREFIX) and not after[key].equal(start[key])]
    assert moved


@NO_PICTURES
def test_a_backbone_that_was_replaced_since_the_search_is_refused(searched, capsys):
    make_backbone(searched, seed=9)
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    text = refused(4, trainer.run_training, capsys)
    assert "is not the backbone that the cells of 2d_iaclth were searched in" in text
    wanted = "nnunet_nas set_search -d 11 -c 2d_iaclth -m iac_retrofit backbone_checkpoint=checkpoint_final.pth"
    assert wanted in text
    assert main(wanted.split()[1:]) == 0
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    trainer.on_train_start()
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))
    assert "WARNING: the cells of 2d_iaclth were searched in another backbone" in log


@NO_PICTURES
def test_the_retrofit_takes_the_checkpoint_that_the_search_used(searched):
    path = search_folder(searched, "nnUNetTrainer") / "checkpoint_final.pth"
    path.rename(path.with_name("checkpoint_best.pth"))
    make_backbone(searched, seed=9)  # a final checkpoint that nobody searched on
    content = read_plans(searched)
    record = content["configurations"]["2d_iaclth"]["nas"]
    record["checkpoint"] = record["checkpoint"].replace("_final", "_best")
    (searched / "nnUNetPlans.json").write_text(json.dumps(content))
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    trainer.initialize()
    trainer.start_from_backbone()
    expected = backbone_weights(
        torch.load(path.with_name("checkpoint_best.pth"), weights_only=False)["network_weights"]
    )
    own = trainer.unwrapped().state_dict()
    assert all(own[key].equal(value) for key, value in expected.items())


@NO_PICTURES
def test_a_backbone_given_by_path_serves_the_fold_that_was_searched_on(searched, tmp_path):
    path = search_folder(searched, "nnUNetTrainer") / "checkpoint_final.pth"
    elsewhere = tmp_path / "elsewhere.pth"
    path.rename(elsewhere)
    make_backbone(searched, fold=3, seed=5)
    content = read_plans(searched)
    content["configurations"]["2d_iaclth"]["nas"].update(checkpoint=str(elsewhere), backbone_trainer=None)
    (searched / "nnUNetPlans.json").write_text(json.dumps(content))
    for fold in (0, 3):
        trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth", fold=fold)
        trainer.initialize()
        trainer.start_from_backbone()
        log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))
        assert f"Backbone: {elsewhere}" in log if fold == 0 else "fold_3/checkpoint_final.pth" in log
        assert ("were searched in the backbone of fold 0" in log) == (fold == 3)


@NO_PICTURES
def test_widths_that_were_edited_meanwhile_are_one_line(searched, capsys):
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    trainer.run_training()
    content = read_plans(searched)
    cells = content["configurations"]["2d_iaclth"]["architecture"]["arch_kwargs"]["cells"]
    cells["widths"] = [width + 4 for width in cells["widths"]]
    (searched / "nnUNetPlans.json").write_text(json.dumps(content))
    again = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    checkpoint = str(Path(trainer.output_folder) / "checkpoint_final.pth")
    text = refused(4, lambda: again.load_checkpoint(checkpoint), capsys)
    assert "belongs to other modules than 2d_iaclth has now" in text


@NO_PICTURES
def test_the_rate_is_lower_where_training_starts_at_the_backbone(searched):
    rates = [
        make_trainer(nnUNetTrainerIACRetrofit, searched, configuration=name).initial_lr
        for name in ("2d_iaclth", "2d_iaclth_residual")
    ]
    assert rates == [0.01, 0.002]
    set_settings(searched, "2d", "iac_retrofit", initial_lr=0.005)
    assert make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth_residual").initial_lr == 0.005


@NO_PICTURES
@pytest.mark.parametrize("epoch", [1, 3])
def test_killed_and_continued_it_ends_bit_for_bit_as_without(searched, epoch, tmp_path):
    set_settings(searched, "2d", "iac_retrofit", num_epochs=4, num_iterations_per_epoch=2)
    other = tmp_path / "untouched"
    shutil.copytree(tmp_path / "nnUNet_results", other)
    search(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth", stop_before=epoch)
    again = search(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth", resume=True)
    checkpoints = ("checkpoint_final.pth", "checkpoint_best.pth")
    ours = [torch.load(Path(again.output_folder) / name, weights_only=False) for name in checkpoints]
    shutil.rmtree(tmp_path / "nnUNet_results")
    shutil.copytree(other, tmp_path / "nnUNet_results")
    straight = search(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    for name, ended in zip(checkpoints, ours, strict=True):
        theirs = torch.load(Path(straight.output_folder) / name, weights_only=False)
        assert ended["current_epoch"] == theirs["current_epoch"]
        assert ended["_best_ema"] == theirs["_best_ema"]
        for key, value in theirs["network_weights"].items():
            assert value.equal(ended["network_weights"][key]), (name, key)
    assert not (Path(straight.output_folder) / "checkpoint_latest.pth").exists()


@NO_PICTURES
@pytest.mark.parametrize("recorded", [True, False])
def test_a_retrofit_goes_on_with_the_epochs_that_it_began_with(searched, recorded):
    """What the plans do not set stays as it was when the training began, whatever the default is by now."""
    content = read_plans(searched)
    settings = content["configurations"]["2d"]["nas_settings"]["iac_retrofit"]
    began_with = settings.pop("num_epochs")
    (searched / "nnUNetPlans.json").write_text(json.dumps(content))
    trainer = search(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth", stop_before=1)
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    state = torch.load(path, weights_only=False)
    assert (trainer.num_epochs, state["nnunet_nas_num_epochs"]) == (100, 100)
    state["nnunet_nas_num_epochs"] = 150
    if not recorded:
        del state["nnunet_nas_num_epochs"]
    torch.save(state, path)
    again = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth", resume=True)
    again.load_checkpoint(str(path))
    expected = 150 if recorded else 200
    assert (again.num_epochs, again.lr_scheduler.max_steps) == (expected, expected)
    log = "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))
    assert f"This training began with {expected} epochs and goes on so" in log
    again._release_folder()
    set_settings(searched, "2d", "iac_retrofit", num_epochs=began_with)
    set_by_hand = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    set_by_hand.load_checkpoint(str(path))
    assert (set_by_hand.num_epochs, set_by_hand.lr_scheduler.max_steps) == (began_with, began_with)


@NO_PICTURES
def test_two_retrofits_at_once_do_not_mix(searched, capsys):
    first, seen = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth"), []

    def start_another(start=first.on_train_start):
        start()
        second = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
        seen.append(refused(3, second.run_training, capsys))

    first.on_train_start = start_another
    first.run_training()
    assert "another process trains in" in seen[0]


@NO_PICTURES
@pytest.mark.parametrize("content", [b"", b"foreign"])
def test_initial_weights_that_are_damaged_are_one_line(searched, content, capsys):
    path = search_folder(searched) / "theta_0.pth"
    path.write_bytes(content)
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    text = refused(4, trainer.on_train_start, capsys)
    assert f"{path} is damaged or no file of torch" in text
    assert "init=random" in text


class Program:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@NO_PICTURES
def test_a_backbone_from_a_stranger_runs_no_code(searched, tmp_path, capsys):
    proof, path = tmp_path / "ran", tmp_path / "stranger.pth"
    torch.save({"network_weights": {}, "init_args": Program(proof)}, path)
    set_settings(searched, "2d", "iac_retrofit", backbone_checkpoint=str(path))
    trainer = make_trainer(nnUNetTrainerIACRetrofit, searched, configuration="2d_iaclth")
    text = refused(4, trainer.on_train_start, capsys)
    assert f"{path} was not opened, because that would run code of" in text
    assert not proof.exists()
