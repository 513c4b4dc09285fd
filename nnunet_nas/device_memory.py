"""Whether training steps fit a GPU, known before the first one.

Counted on fake tensors of device `cuda` under float16 autocast, as nnU-Net trains there: what autograd keeps from the
forward to the backward pass in the precision that it really has, weights, gradients and the optimiser's momentum.
Not counted: maps that are alive for a moment only, a library's workspaces, the process itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_nas.complexity import MIB, kept_bytes
from nnunet_nas.errors import EnvironmentProblem
from nnunet_nas.gpu_check.fake_cuda import DEVICE, fake_cuda


def needed_mib(build: Callable[[], nn.Module], shape: Sequence[int], *, momentum: bool = True) -> float:
    """MiB of a training step in nnU-Net's mixed precision.

    Args:
        build: makes the network, on torch's default device; parameters without gradient are not trained.
        shape: of the images, (b, c, *spatial).
        momentum: whether the optimiser keeps one number for every trained weight.
    """
    with torch.random.fork_rng(devices=[]), fake_cuda():
        with torch.device(DEVICE):
            network = build().train()
            images = torch.empty(tuple(shape))
        own = [*network.parameters(), *network.buffers(), images]
        recomputed: list[Tensor] = []
        for module in _recomputed(network):
            module.register_forward_pre_hook(lambda _module, given: recomputed.extend(_maps(given)))
        with torch.autocast("cuda", torch.float16):
            kept = kept_bytes(lambda: network(images), own)
        # Recomputed modules keep what they were given, where no hook of autograd sees it.
        kept += sum(x.untyped_storage().nbytes() for x in {x.untyped_storage()._cdata: x for x in recomputed}.values())
        trained = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
        stored = sum(x.untyped_storage().nbytes() for x in {x.untyped_storage()._cdata: x for x in own}.values())
    return (kept + stored + trained * (1 + momentum)) / MIB


def _recomputed(network: nn.Module) -> list[nn.Module]:
    decoder: Any = getattr(network, "decoder", None)
    return list(decoder.skip_modules) if getattr(decoder, "recompute", False) else []


def _maps(given: tuple[Any, ...]) -> list[Tensor]:
    return [x for x in given if isinstance(x, Tensor)]


def available_mib(device: torch.device) -> float | None:
    """MiB of a GPU; None of other devices, which are not limited in a way that could be asked for."""
    return torch.cuda.get_device_properties(device).total_memory / MIB if device.type == "cuda" else None


def require_fit(what: str, needed: float, available: float, advice: str) -> None:
    """Refuses what does not fit.

    Args:
        what: that needs the memory, for the message.
        needed: MiB.
        available: MiB.
        advice: how to make it smaller.

    Raises:
        EnvironmentProblem: more is needed than there is.
    """
    if needed > available:
        raise EnvironmentProblem(f"{what} needs {needed:.0f} MiB, the GPU has {available:.0f}: {advice}")
