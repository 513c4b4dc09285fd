"""nnU-Net's own training with length, rate, seed and initial weights from the plans: the control of every search.

What a search found is worth what it has ahead of a plain network that was trained equally long, or of its own backbone
that was trained on for as long; both are trained here, so that nothing else differs. The checkpoints name nnU-Net's own
trainer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from nnunet_nas.checkpoints import read_checkpoint
from nnunet_nas.description import PLAN_AGAIN, require_description
from nnunet_nas.errors import DataProblem, exit_with_one_line
from nnunet_nas.plans import Plans
from nnunet_nas.randomness import seed_everything
from nnunet_nas.schedule import dints
from nnunet_nas.schedule.settings import ScheduleSettings
from nnunet_nas.settings import read_settings
from nnunet_nas.trainer import ModelTrainer


class nnUNetTrainerScheduled(ModelTrainer):
    """nnU-Net's training; two with the same seed begin with the same weights and see the same patches.

    Attributes:
        settings_class: of the method.
    """

    settings_class: ClassVar[type[ScheduleSettings]] = ScheduleSettings
    settings: Any
    _rate: dints.EpochRate | None = None
    _step = 0

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        self.goes_on = bool(plans.get("continue_training"))
        with exit_with_one_line():
            self.settings = read_settings(self.settings_class, Plans(plans).resolve(configuration))
            Plans(plans).require_fresh(configuration)
            require_description(dataset_json, "dataset.json", PLAN_AGAIN, required=["labels"])
            super().__init__(plans, configuration, fold, dataset_json, device)
        self.follow_settings()
        self.initial_lr = self.settings.initial_lr

    def initialize(self) -> None:
        """nnU-Net's initialisation with weights by the seed of the settings, or those of a checkpoint."""
        seed_everything(self.settings.seed)
        with exit_with_one_line():
            super().initialize()
            if self.settings.initial_checkpoint and not self.resumed:
                self._take_over(Path(self.settings.initial_checkpoint.replace("{fold}", str(self.fold))))

    def on_train_start(self) -> None:
        """Seeds the patches before nnU-Net's preparations."""
        with exit_with_one_line():
            if not self.was_initialized:
                self.initialize()
            self.prepare()
            # The same patches for all of a seed; others in every process, and when a training goes on.
            seed_everything(self.settings.seed + 1000 * self.current_epoch + self.local_rank)
            super().on_train_start()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's, or those of the schedule in the settings."""
        if self.settings.schedule == "poly":
            found: tuple[torch.optim.Optimizer, Any] = super().configure_optimizers()
            return found
        each = self.num_iterations_per_epoch
        optimizer = dints.optimizer_of(self.network.parameters(), self.initial_lr)
        self._rate = dints.EpochRate(optimizer, self.num_epochs * each, each, self.initial_lr)
        return optimizer, self._rate

    def on_train_epoch_start(self) -> None:
        """nnU-Net's; counts the epoch's steps."""
        super().on_train_epoch_start()
        self._step = self.current_epoch * self.num_iterations_per_epoch

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's, at the rate of the step where the schedule has one."""
        if self._rate is not None:
            self._rate.at(self._step)
        self._step += 1
        found: dict[str, Any] = super().train_step(batch)
        return found

    def prepare(self) -> None:
        """What a method does between initialisation and training; nothing here."""

    def _take_over(self, path: Path) -> None:
        """All weights of a checkpoint; nnU-Net's `-pretrained_weights` leaves the segmentation layers random."""
        content = read_checkpoint(path, "correct initial_checkpoint in the plans", ["network_weights"])
        weights = {key.removeprefix("module."): value for key, value in content["network_weights"].items()}
        own = self.unwrapped().state_dict()
        misfit = [key for key in {**own, **weights} if _shape(own.get(key)) != _shape(weights.get(key))]
        if misfit:
            raise DataProblem(
                f"{path} holds another network than {self.configuration_name} ({len(misfit)} tensors differ, first "
                f"{misfit[0]}): correct initial_checkpoint in the plans"
            )
        self.unwrapped().load_state_dict(weights)
        self.print_to_log_file("Weights taken over from", str(path))


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)
