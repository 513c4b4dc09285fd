"""Settings of the retrofit; the paper's values are the defaults, where `source` says so.

Paper: IAC-LTH. `source` says where a default comes from: "paper", or "our choice" where it is silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nnunet_nas.settings import setting

# A residual network starts at its backbone's accuracy, which nnU-Net's rate costs it at once (measured, our choice).
RATE, RESIDUAL_RATE = 0.01, 0.002


@dataclass(frozen=True)
class IACRetrofitSettings:
    """`nas_settings.iac_retrofit`: training of the discrete cells in the frozen backbone (stage III, section 6.3)."""

    method: ClassVar[str] = "iac_retrofit"

    num_epochs: int = setting(100, "our choice", "epochs; the paper: 200", minimum=1)
    num_iterations_per_epoch: int = setting(250, "our choice", "training iterations per epoch (nnU-Net's)", minimum=1)
    num_val_iterations_per_epoch: int = setting(
        50, "our choice", "validation iterations per epoch (nnU-Net's)", minimum=1
    )
    batch_size: int | None = setting(None, "our choice", "samples per step; none: the plan's", minimum=1)
    recompute: Literal["auto", "always", "never"] = setting(
        "auto",
        "our choice",
        "cells are computed again in the backward pass instead of kept, which changes no number: less memory, more "
        "time; auto: where the GPU is too small otherwise; never with batch norms",
    )
    backbone_checkpoint: str | None = setting(
        None,
        "our choice",
        "checkpoint of the backbone: a file name in its fold's folder, or a path; none: as the search had it",
    )
    augmentation: bool = setting(True, "paper", "nnU-Net's augmentation; false is the paper's no-augmentation regime")
    seed: int = setting(0, "our choice", "random seed of fresh cell weights", minimum=0)
    initial_lr: float | None = setting(
        None,
        "our choice",
        "initial learning rate of nnU-Net's SGD and schedule; none: 0.002 for residual cells, else 0.01. The paper "
        "(6.3): Adam, 0.001",
        minimum=0,
    )
    init: Literal["auto", "theta_0", "random"] = setting(
        "auto", "paper", "auto: theta_0 after IAC-LTH, fresh random weights after IAC"
    )
