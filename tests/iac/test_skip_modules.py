"""Published skip modules on a frozen backbone, by the retrofit trainer."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import make_backbone
from searches import make_trainer, set_settings

from nnunet_nas.cli.main import main
from nnunet_nas.iac.network import SKIP_PREFIX, backbone_weights
from nnunet_nas.iac.retrofit import nnUNetTrainerIACRetrofit


def test_they_train_and_the_backbone_stays(dataset, monkeypatch):
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
