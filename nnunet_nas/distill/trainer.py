"""Trains a configuration on the labels and on a trained network's logits; the result is an ordinary model.

The checkpoints name nnU-Net's own trainer: only training differs here. So `nnUNetv2_predict`, ensembling and export
need no environment variable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nnunet_nas.distill.loss import DistillationLoss
from nnunet_nas.distill.settings import DistillSettings
from nnunet_nas.distill.teacher import Teacher, TeacherAddress, find_teacher
from nnunet_nas.errors import exit_with_one_line
from nnunet_nas.plans import Plans
from nnunet_nas.randomness import seed_everything
from nnunet_nas.settings import read_settings
from nnunet_nas.trainer import ModelTrainer


class nnUNetTrainerDistill(ModelTrainer):
    """nnU-Net's training with a teacher; validation loss and pseudo Dice are nnU-Net's, without it."""

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
            self.settings = read_settings(DistillSettings, Plans(plans).resolve(configuration))
            Plans(plans).require_fresh(configuration)
            super().__init__(plans, configuration, fold, dataset_json, device)
        self.follow_settings()
        self.initial_lr = self.settings.initial_lr
        self.teacher: Teacher | None = None

    def initialize(self) -> None:
        """nnU-Net's initialisation with weights by the seed of the settings."""
        seed_everything(self.settings.seed)
        with exit_with_one_line():
            super().initialize()

    def _build_loss(self) -> nn.Module:
        return DistillationLoss(
            super()._build_loss(),
            temperature=self.settings.temperature,
            weight=self.settings.weight,
            ignore_label=self.label_manager.ignore_label,
            regions=self.label_manager.has_regions,
        )

    def on_train_start(self) -> None:
        """Finds the teacher before nnU-Net's preparations."""
        with exit_with_one_line():
            if not self.was_initialized:
                self.initialize()
            if self.settings.weight > 0:
                self.find_teacher()
            # The same patches with a teacher and without; others in every process, and when a training goes on.
            seed_everything(self.settings.seed + 1000 * self.current_epoch + self.local_rank)
            super().on_train_start()

    def find_teacher(self) -> None:
        """Takes the teacher of the settings, and mirrors images as those that it learnt from were.

        Raises:
            DataProblem: it is not trained yet, or does not fit.
        """
        folds = self.settings.teacher_folds or (str(self.fold),)
        address = TeacherAddress(
            self.plans,
            self.configuration_name,
            self.settings.teacher_configuration,
            folds,
            self.settings.teacher_trainer,
            self.settings.teacher_checkpoint,
        )
        found = find_teacher(address, self.dataset_json, deep_supervision=self.enable_deep_supervision)
        self.teacher = found.teacher.to(self.device)
        self.inherit_mirroring(found.mirroring)
        self.print_to_log_file("Teacher:", *found.paths)
        others = [fold for fold in folds if fold != str(self.fold)]
        if others:
            self.print_to_log_file(
                f"The teachers of folds {', '.join(others)} have seen validation cases of fold {self.fold}: what is "
                f"validated there was learnt with knowledge of them. Judge on other cases."
            )

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's, after the teacher has seen the same images."""
        if self.teacher is not None:
            batch = {**batch, "data": batch["data"].to(self.device, non_blocking=True)}
            self.loss.teacher = self.teacher(batch["data"])
        step: dict[str, Any] = super().train_step(batch)
        return step
