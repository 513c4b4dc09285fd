"""Several processes that search together: gradients averaged and decisions shared by hand.

DistributedDataParallel needs every parameter in every step, and a search drops operations as it goes on. The parameters
of a search are few, so one flat sum per step does instead. Without a process group nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import distributed as dist


def is_distributed() -> bool:
    """Whether several processes take part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replaces each gradient by its mean over the processes; a parameter that had no part in the step has none.

    Every process must call it with the same parameters, of which the same ones have gradients.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients or not is_distributed():
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    # One call: a search has thousands of gradients.
    torch._foreach_copy_(gradients, [part.view_as(own) for part, own in zip(parts, gradients, strict=True)])


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Makes tensors equal to those of process 0, so that all take the same decisions."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, 0)
