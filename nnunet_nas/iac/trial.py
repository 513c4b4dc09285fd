"""Whether the found cell does more than the plain skip, the identity, would (our addition).

The residual cell starts exactly at its backbone. It is trained for a short while, as the retrofit would, and the losses
before and after are compared on the same batches of cases that its weights were not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.nn.utils import clip_grad_norm_

from nnunet_nas.errors import DataProblem
from nnunet_nas.skips.settings import RESIDUAL_RATE

# nnU-Net's training, of which the trial is a short one.
_MOMENTUM, _WEIGHT_DECAY, _POWER, _MAXIMUM_NORM = 0.99, 3e-5, 0.9, 12.0
Loss = Callable[[Any, nn.Module], torch.Tensor]


@dataclass(frozen=True)
class Gain:
    """By how much the loss has fallen.

    Attributes:
        mean: over the batches; positive where the cell is better.
        half_width: of its 95 % interval (Student's t, paired by batch).
        batches: that were compared.
    """

    mean: float
    half_width: float
    batches: int

    @property
    def beats_the_identity(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.mean > self.half_width


def gain_of(before: Sequence[float], after: Sequence[float]) -> Gain:
    """The paired gain; `before` and `after` are losses of the same batches, two at least."""
    difference = np.array(before) - np.array(after)
    count = len(difference)
    error = difference.std(ddof=1) / count**0.5
    return Gain(float(difference.mean()), float(stats.t.ppf(0.975, count - 1) * error), count)


def train_briefly(
    network: nn.Module, batches: Iterator[Any], steps: int, *, loss_of: Loss, scaler: torch.amp.GradScaler
) -> None:
    """Some steps with nnU-Net's optimiser and schedule, at the retrofit's rate for residual cells."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, RESIDUAL_RATE, _MOMENTUM, weight_decay=_WEIGHT_DECAY, nesterov=True)
    network.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RESIDUAL_RATE * (1 - step / steps) ** _POWER
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss_of(next(batches), network)).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(trained, _MAXIMUM_NORM)
        scaler.step(optimizer)
        scaler.update()


@torch.no_grad()
def losses(network: nn.Module, batches: Iterable[Any], loss_of: Loss) -> list[float]:
    """Of every batch.

    Raises:
        DataProblem: one is not finite.
    """
    network.eval()
    found = [float(loss_of(batch, network)) for batch in batches]
    if not np.isfinite(found).all():
        raise DataProblem(f"the loss became {next(loss for loss in found if not np.isfinite(loss))}")
    return found
