"""Settings of the distillation, beside those of every plain training; all are our choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nnunet_nas.schedule.settings import ScheduleSettings
from nnunet_nas.settings import setting


@dataclass(frozen=True, kw_only=True)
class DistillSettings(ScheduleSettings):
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
