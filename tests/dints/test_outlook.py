"""What a DiNTS search says before it starts."""

import re
from pathlib import Path

import pytest
import torch
from searches import make_trainer, set_settings

from nnunet_nas.dints import outlook
from nnunet_nas.dints.supernet import DiNTSSupernet
from nnunet_nas.dints.trainers import nnUNetTrainerDiNTSSearch
from nnunet_nas.training_cost import plain_step

SHORT = {"num_epochs": 4, "num_iterations_per_epoch": 3, "num_layers": 3, "features": 4, "search_features": 2}


@pytest.fixture
def made(dataset, monkeypatch):
    """A trainer that has been initialised, of settings."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def make(configuration="2d", **settings):
        set_settings(dataset, configuration, "dints", **{**SHORT, **settings})
        trainer = make_trainer(nnUNetTrainerDiNTSSearch, dataset, configuration)
        trainer.initialize()
        return trainer

    return make


def log_of(trainer):
    return "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log*.txt"))


def test_the_shortest_step_counts_and_the_first_does_not():
    times = iter([0, 9, 10, 13, 20, 22])
    assert outlook.seconds_per_step(lambda: None, torch.device("cpu"), lambda: next(times)) == 2
    times = iter([0, 25])
    assert outlook.seconds_per_step(lambda: None, torch.device("cpu"), lambda: next(times)) == 25


def test_the_cost_is_that_of_the_steps_as_a_share_of_a_default_training(made):
    trainer = made(search_batch_size=1)
    # 11/21 of four epochs are two; three iterations each; half the planned batch.
    assert outlook.steps(trainer) == (12, 6)
    weights, architecture = outlook._step_macs(trainer)
    whole = trainer.meta_supernet(trainer.settings)
    assert isinstance(whole, DiNTSSupernet)
    whole.train_only(weights=True)
    assert weights == outlook.step_macs(whole, (1, 1, 32, 32))
    # Gradients of a few hundred numbers need those of all maps, and none of the kernels.
    assert 0.5 * weights < architecture < weights
    plain = plain_step(trainer.base_spec())
    share = 0.5 * (12 * weights + 6 * architecture) / plain / 250_000
    assert f"this search {share:.3f} (12 steps of the weights" in outlook.cost(trainer)


def test_sampled_topologies_cost_what_they_do(made):
    mixture = outlook._step_macs(made())
    trainer = made(weights_on="samples", selection="evidence", race_iterations=7, finalists=3)
    assert outlook.steps(trainer) == (12, 0)
    sampled = outlook._step_macs(trainer)
    assert 0 < sampled[0] < mixture[0]
    assert sampled[1] == 0
    assert "; 3 trainings of 7 steps come on top" in outlook.cost(trainer)


@pytest.mark.parametrize("weights_on", ["mixture", "samples"])
def test_timing_leaves_the_search_as_it_was(made, weights_on, monkeypatch):
    more = {} if weights_on == "mixture" else {"selection": "evidence"}
    trainer = made(weights_on=weights_on, **more)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    random = torch.get_rng_state()
    monkeypatch.setattr(outlook, "seconds_per_step", lambda step, device: step() or 2.0)
    text = outlook.duration(trainer)
    total = 12 * 2 + (6 * 2 if weights_on == "mixture" else 0)
    assert f"this search takes {total} seconds at least" in text
    assert "on cpu" in text
    assert random.equal(torch.get_rng_state())
    for name, value in trainer.network.state_dict().items():
        assert value.equal(before[name])
    assert all(parameter.grad is None for parameter in trainer.network.parameters())


def test_a_new_search_says_it_and_one_that_goes_on_does_not(made):
    trainer = made()
    trainer.on_train_start()
    text = log_of(trainer)
    assert "Cost, as a share of one default nnU-Net training of 2d" in text
    assert re.search(r"Time: [\d.e-]+ s for a step of the weights and [\d.e-]+ s for one of the architecture", text)
    # Cells from the full resolution on miss nothing.
    assert "Cells begin" not in text
    again = made()
    again.resumed_from = {}
    again.on_train_start()
    assert log_of(again).count("Cost, as a share") == 1


def test_thin_structures_are_counted_and_named(made, monkeypatch):
    trainer = made("3d_fullres", first_level=1, num_levels=2)
    # Noise: nearly every voxel is a structure of its own, of which blocks of 1x2x2 lose most.
    text = outlook.thin_structures(trainer)
    lost = re.search(r"Cells begin at a resolution of 1x2x2 voxels: .* (\d+)% of label 1 is lost in 4 cases", text)
    assert 60 < int(lost.group(1)) < 70  # 3/4 of the voxels times the 84 % that are background
    assert "first_level=0" in text
    assert "final_conv" not in text  # it is there
    plain = made("3d_fullres", first_level=1, num_levels=2, final_conv=False)
    assert outlook.thin_structures(plain).endswith("or final_conv=true")
    monkeypatch.setattr(outlook, "THIN", 0.9)
    assert "first_level=0" not in outlook.thin_structures(trainer)
