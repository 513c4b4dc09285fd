"""The schedule by which the DiNTS paper retrains what it found (section 4.1), for any length.

SGD with momentum 0.9 and weight decay 4e-5; 1k iterations of warm-up from 0.025 to 0.2, then 40k, halved at 8k, 16k,
24k and 32k of them: here as shares of the training's steps. The paper's 41k are 164 epochs of 250. Its losses and
augmentation are C2FNAS's, which are not taken over; nnU-Net's stay.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from nnunet_nas.rates import warmed_and_halved

_WARMUP = 1 / 41
_HALVED_AT = (8 / 40, 16 / 40, 24 / 40, 32 / 40)
_MOMENTUM, _WEIGHT_DECAY = 0.9, 4e-5
# Of `initial_lr`, whose default is nnU-Net's 0.01.
_START, _PEAK = 2.5, 20.0


def rate(step: int, steps: int, initial_lr: float) -> float:
    """Learning rate of a step: from 2.5 to 20 times `initial_lr`, the paper's 0.025 and 0.2 at 0.01."""
    return warmed_and_halved(
        step, steps, start=_START * initial_lr, peak=_PEAK * initial_lr, warmup=_WARMUP, halved_at=_HALVED_AT
    )


def optimizer_of(parameters: Iterable[nn.Parameter], initial_lr: float) -> torch.optim.SGD:
    """The paper's, at the rate of the first step."""
    return torch.optim.SGD(
        parameters, _START * initial_lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY, nesterov=False
    )


class EpochRate:
    """What nnU-Net asks for a rate once per epoch, before it logs it."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, each: int, initial_lr: float) -> None:
        """`steps` of the training, of which an epoch has `each`."""
        self.optimizer, self.steps, self.each, self.initial_lr = optimizer, steps, each, initial_lr

    def step(self, epoch: int) -> None:
        """Sets the rate of an epoch's first step."""
        self.at(epoch * self.each)

    def at(self, step: int) -> None:
        """Sets the rate of a step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate(step, self.steps, self.initial_lr)
