"""Trains a configuration on the labels and on a trained network's logits; the result is an ordinary model.

The checkpoints name nnU-Net's own trainer: only training differs here. So `nnUNetv2_predict`, ensembling and export
need no environment variable.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from nnunet_nas.distill.loss import DistillationLoss
from nnunet_nas.distill.settings import DistillSettings
from nnunet_nas.distill.teacher import Teacher, TeacherAddress, find_teacher
from nnunet_nas.schedule.trainer import nnUNetTrainerScheduled


class nnUNetTrainerDistill(nnUNetTrainerScheduled):
    """nnU-Net's training with a teacher; validation loss and pseudo Dice are nnU-Net's, without it."""

    settings_class = DistillSettings
    settings: DistillSettings
    teacher: Teacher | None = None

    def _build_loss(self) -> nn.Module:
        return DistillationLoss(
            super()._build_loss(),
            temperature=self.settings.temperature,
            weight=self.settings.weight,
            ignore_label=self.label_manager.ignore_label,
            regions=self.label_manager.has_regions,
        )

    def prepare(self) -> None:
        """Finds the teacher."""
        if self.settings.weight > 0:
            self.find_teacher()

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
