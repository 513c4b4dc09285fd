"""What our trainers have in common: plans say how long they train, and their checkpoints are written whole."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from torch._dynamo import OptimizedModule

from nnunet_nas.commands import STOCK_TRAINER
from nnunet_nas.files import replace_file
from nnunet_nas.plans import Plans


def to_bytes(state: dict[str, Any]) -> bytes:
    """What torch would write into a file."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


class ConfiguredTrainer(nnUNetTrainer, ABC):
    """Trains as long as settings in the plans say, and augments as the backbone's training did, or not at all.

    A backbone that never saw mirrored images (`nnUNetTrainer_..._NoMirroring`) must not be mirrored now: left and right
    may differ. A setting switches augmentation off the way nnU-Net's own `nnUNetTrainerNoDA` does.

    Attributes:
        settings: of the method.
        plans: that it was started with.
    """

    settings: Any
    plans: Plans
    _inherits_mirroring = False

    def follow_settings(self) -> None:
        """Once nnU-Net's own constructor is through."""
        path = Path(self.preprocessed_dataset_folder_base) / f"{self.plans_manager.plans_name}.json"
        self.plans = Plans(self.plans_manager.plans, path)
        self.num_epochs = self.settings.num_epochs
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.settings.num_val_iterations_per_epoch
        # With two stages nnU-Net's weights of the deep supervision levels are 0/0.
        self.enable_deep_supervision = self.configuration_manager.network_arch_init_kwargs.get("n_stages", 3) > 2
        if not self.settings.augmentation:
            self.get_training_transforms = nnUNetTrainerNoDA.get_training_transforms

    def inherit_mirroring(self, axes: tuple[int, ...] | None) -> None:
        """Mirrors along the spatial axes that the backbone's training mirrored, and none beside them."""
        self._inherits_mirroring, self._inherited_axes = True, axes

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """nnU-Net's choice with the backbone's mirroring; without augmentation no mirroring and no margin."""
        rotation, dummy_2d, patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self._inherits_mirroring:
            mirror_axes = self._inherited_axes
        if not self.settings.augmentation:
            mirror_axes, patch_size = None, self.configuration_manager.patch_size
        self.inference_allowed_mirroring_axes = mirror_axes
        return rotation, dummy_2d, patch_size, mirror_axes

    @abstractmethod
    def checkpoint(self) -> dict[str, Any]:
        """What is kept."""

    def save_checkpoint(self, filename: str) -> None:
        """Writes atomically: a kill leaves the old file or the new one."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        replace_file(Path(filename), to_bytes(self.checkpoint()))


class ModelTrainer(ConfiguredTrainer):
    """Leaves ordinary models: the checkpoints name nnU-Net's own trainer, which predicts with what the plans name."""

    def unwrapped(self) -> Any:
        """The network without the wrappers of compilation and of several GPUs."""
        network: Any = self.network
        if isinstance(network, torch.nn.parallel.DistributedDataParallel):
            network = network.module
        if isinstance(network, OptimizedModule):
            network = network._orig_mod
        return network

    def checkpoint(self) -> dict[str, Any]:
        """nnU-Net's, under the name of nnU-Net's trainer."""
        return {
            "network_weights": self.unwrapped().state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": STOCK_TRAINER,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
        }
