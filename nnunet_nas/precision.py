"""Half precision as nnU-Net trains: autocast on CUDA alone, and losses that overflow now and then. Double precision.

nnU-Net's gradient scaler skips a step whose gradients are not finite and halves the scale, so a loss that overflows
once in half precision is no reason to stop. One that stays so is; at full precision, where nothing is skipped, the
first one is: it has spoilt the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable

import torch
from torch import distributed as dist

from nnunet_nas.distributed import is_distributed

# Binades of half precision, subnormal numbers included: after as many halvings the scale is not to blame.
_HALVINGS = 40


_WITHOUT_DOUBLE = ("mps",)


def has_double(device: torch.device) -> bool:
    """Whether a device computes in double precision; Apple's GPUs do not."""
    return device.type not in _WITHOUT_DOUBLE


def as_double(tensor: torch.Tensor) -> torch.Tensor:
    """In double precision: on its device, or on the CPU where the device has none."""
    return tensor.double() if has_double(tensor.device) else tensor.cpu().double()


def half_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast where nnU-Net has it; elsewhere nothing, because MPS of older torch refuses even a disabled one."""
    return torch.autocast("cuda") if device.type == "cuda" else contextlib.nullcontext()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The half precision that autocast has on a device at present; None where it is off."""
    kind = device.type
    active = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if active else None


def waits_for_calls(device: torch.device) -> bool:
    """Whether many small operations cost a device more than a few large ones: any but the CPU, where all are counted.

    Tensors of `meta` are counted for multiply-accumulates and memory, by the modules that plans name.
    """
    return device.type not in ("cpu", "meta")


class LossWatch:
    """Counts how often in a row a loss was not finite, without a wait for the GPU until it is asked.

    Attributes:
        patience: losses in a row that are too many.
    """

    def __init__(self, scaler: torch.amp.GradScaler | None) -> None:
        """`scaler`: skips the steps of such losses, if there is one and it is enabled."""
        self.patience = _HALVINGS if scaler is not None and scaler.is_enabled() else 1
        self._in_a_row: dict[Hashable, torch.Tensor] = {}
        self._worst: torch.Tensor | None = None
        self._last: torch.Tensor | None = None

    def add(self, loss: torch.Tensor, of: Hashable = None) -> None:
        """One loss, scalar; losses of different kinds are counted each on its own."""
        loss = loss.detach().float()
        zero = torch.zeros_like(loss)
        finite = torch.isfinite(loss)
        in_a_row = torch.where(finite, zero, self._in_a_row.get(of, zero) + 1)
        self._in_a_row[of] = in_a_row
        self._worst = in_a_row if self._worst is None else torch.maximum(self._worst, in_a_row)
        self._last = loss if self._last is None else torch.where(finite, self._last, loss)

    def fault(self) -> str | None:
        """What a loss has become in this process or another one, or None; all processes ask together and agree."""
        if self._worst is None or self._last is None:
            return None
        worst = self._worst
        if is_distributed():
            worst = worst.clone()
            dist.all_reduce(worst, dist.ReduceOp.MAX)
        if worst < self.patience:
            return None
        last = self._last.item()
        return "nan or infinite in another process" if self._worst < self.patience else str(last)
