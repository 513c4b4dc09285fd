"""Settings of a plain training; the defaults are nnU-Net's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nnunet_nas.settings import setting


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """`nas_settings.schedule`: how long and from where a training goes."""

    method: ClassVar[str] = "schedule"

    num_epochs: int = setting(1000, "our choice", "epochs (nnU-Net's)", minimum=1)
    num_iterations_per_epoch: int = setting(250, "our choice", "training iterations per epoch (nnU-Net's)", minimum=1)
    num_val_iterations_per_epoch: int = setting(
        50, "our choice", "validation iterations per epoch (nnU-Net's)", minimum=1
    )
    initial_lr: float = setting(0.01, "our choice", "initial learning rate (nnU-Net's)", minimum=0)
    schedule: Literal["poly", "dints"] = setting(
        "poly",
        "our choice",
        "poly: nnU-Net's optimiser and decay; dints: those that the DiNTS paper retrains with: momentum 0.9, warm-up "
        "from 2.5 to 20 times initial_lr (its 0.025 and 0.2), halved four times; its 41,000 iterations are "
        "num_epochs=164",
    )
    augmentation: bool = setting(True, "our choice", "nnU-Net's augmentation")
    seed: int = setting(0, "our choice", "random seed of initial weights and patches", minimum=0)
    initial_checkpoint: str | None = setting(
        None,
        "our choice",
        "checkpoint of the same network, whose weights all are taken over, {fold} standing for the fold; none: random "
        "weights",
    )
