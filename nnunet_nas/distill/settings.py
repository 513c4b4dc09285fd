"""Settings of the distillation; all are our choice, the lengths and the rate are nnU-Net's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnunet_nas.settings import setting


@dataclass(frozen=True)
class DistillSettings:
    """`nas_settings.distill`: what teaches, and how much it counts."""

    method: ClassVar[str] = "distill"

    temperature: float = setting(2.0, "our choice", "divides the logits of teacher and student", minimum=1e-3)
    weight: float = setting(
        1.0, "our choice", "of the teacher beside nnU-Net's loss; 0 trains without a teacher, as a control", minimum=0
    )
    teacher_configuration: str | None = setting(
        None, "our choice", "what the teacher was trained for; none: what this configuration inherits from"
    )
    teacher_trainer: str | None = setting(
        None, "our choice", "class name of its trainer; none: nnU-Net's own, or else the only one that is there"
    )
    teacher_checkpoint: str = setting(
        "checkpoint_final.pth", "our choice", "its checkpoint: a file name in its fold's folder, or a path"
    )
    teacher_folds: tuple[str, ...] | None = setting(
        None, "our choice", "folds whose logits are averaged; none: this training's own, which saw the same cases"
    )
    num_epochs: int = setting(1000, "our choice", "epochs (nnU-Net's)", minimum=1)
    num_iterations_per_epoch: int = setting(250, "our choice", "training iterations per epoch (nnU-Net's)", minimum=1)
    num_val_iterations_per_epoch: int = setting(
        50, "our choice", "validation iterations per epoch (nnU-Net's)", minimum=1
    )
    initial_lr: float = setting(0.01, "our choice", "initial learning rate (nnU-Net's)", minimum=0)
    augmentation: bool = setting(True, "our choice", "nnU-Net's augmentation")
    seed: int = setting(0, "our choice", "random seed of initial weights and patches", minimum=0)
