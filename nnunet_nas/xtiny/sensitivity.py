"""Jacobian sensitivity of a network at initialisation, one value per unlabelled image.

score(x) = || d(sum of all logits) / d x ||_2 over the whole input of that image. Source: XTinyU-Net, sensitivity
metric. nnU-Net normalises per instance, so the samples of a batch do not see each other and one backward pass gives
every sample its own gradient; a network with batch statistics is scored one image at a time.

Our choices, for speed: weights take no gradients (only the input does, a third of the arithmetic), and on a CPU several
batches run side by side, one thread each. The order of additions then differs from one image at a time, and LeakyReLU's
kink turns a rounding into another sign now and then: single images differ by up to 2e-3, means by up to 5e-4, which is
as far as single precision is from double (measured).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from nnunet_nas.precision import as_double

# The largest activation of a batch stays below this on a CPU. Above it glibc takes every tensor from the system and
# gives it back at once; the page faults then cost more than a larger batch saves (measured: half of the time).
_CPU_ACTIVATION_BYTES = 32 * 2**20
_CUDA_ACTIVATION_BYTES = 2**30
# Each worker holds one batch's activations (a 512 x 512 patch of nnU-Net's widest: about 1 GiB), hence few of them.
_CPU_WORKERS = 4

Batches = Callable[[Sequence[str]], torch.Tensor]


def uses_batch_statistics(network: nn.Module) -> bool:
    """Whether samples of a batch influence each other through batch normalisation."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def input_gradient_norms(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The sensitivity of each image.

    Args:
        network: returns logits, (b, classes, *spatial); see `prepare`.
        images: (b, c, *spatial), on the network's device.

    Returns:
        (b,), float64: norms over c and space, accumulated in double precision.
    """
    images = images.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(images).sum(), images)
    return as_double(torch.linalg.vector_norm(gradient.flatten(1), dim=1))


def prepare(network: nn.Module, device: torch.device) -> nn.Module:
    """Moves a fresh network to the device and makes scoring deterministic and cheap.

    Normalisation stays in training mode, as at the first training step; dropout is off, because a random mask is no
    property of the network (our choice); weights take no gradients.
    """
    network = network.to(device).train().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.eval()
    return network


def default_batch_size(widest_features: int, patch_voxels: int, device: torch.device) -> int:
    """How many patches to score at once before memory, not arithmetic, is the bound.

    Args:
        widest_features: channels at full resolution; the decoder concatenates twice as many.
        patch_voxels: voxels of a patch.
        device: where the network is.
    """
    budget = _CUDA_ACTIVATION_BYTES if device.type == "cuda" else _CPU_ACTIVATION_BYTES
    return max(1, budget // (2 * widest_features * patch_voxels * 4))


def score_images(
    network: nn.Module,
    load: Batches,
    cases: Sequence[str],
    *,
    device: torch.device,
    batch_size: int,
    side_by_side: bool = True,
    known: Collection[str] = (),
) -> Iterator[dict[str, float]]:
    """Scores images in batches and yields each batch's values as soon as they are known.

    Args:
        network: prepared by `prepare`.
        load: gives the patches of some cases, (b, c, *spatial), on the CPU.
        cases: identifiers.
        device: where the network is.
        batch_size: patches at once; forced to 1 for networks with batch statistics, halved when a GPU runs out of
            memory.
        side_by_side: several batches at a time on a CPU, one thread each; otherwise one after the other with all
            threads.
        known: cases that have a score. A batch of known cases only is skipped; the others stay as they were grouped,
            so that an interrupted scoring ends with the same numbers as one in a single go.

    Yields:
        sensitivity by case.
    """
    size = 1 if uses_batch_statistics(network) else batch_size
    if device.type != "cpu":
        yield from _score_on_gpu(network, load, cases, device=device, batch_size=size, known=known)
    else:
        workers = min(torch.get_num_threads(), _CPU_WORKERS, len(cases)) if side_by_side else 1
        yield from _score_on_cpu(network, load, cases, workers=max(1, workers), batch_size=size, known=known)


def _score_on_gpu(
    network: nn.Module,
    load: Batches,
    cases: Sequence[str],
    *,
    device: torch.device,
    batch_size: int,
    known: Collection[str],
) -> Iterator[dict[str, float]]:
    start = 0
    while start < len(cases):
        some = cases[start : start + batch_size]
        if all(case in known for case in some):
            start += len(some)
            continue
        try:
            norms = input_gradient_norms(network, load(some).to(device, non_blocking=True)).tolist()
        except torch.cuda.OutOfMemoryError:
            if batch_size == 1:
                raise
            torch.cuda.empty_cache()
            batch_size //= 2
            continue
        yield dict(zip(some, norms, strict=True))
        start += len(some)


def _score_on_cpu(
    network: nn.Module, load: Batches, cases: Sequence[str], *, workers: int, batch_size: int, known: Collection[str]
) -> Iterator[dict[str, float]]:
    size = max(1, min(batch_size, -(-len(cases) // workers)))
    grouped = (cases[start : start + size] for start in range(0, len(cases), size))
    batches = [some for some in grouped if any(case not in known for case in some)]

    def score(some: Sequence[str]) -> dict[str, float]:
        return dict(zip(some, input_gradient_norms(network, load(some)).tolist(), strict=True))

    if workers == 1 or len(batches) == 1:
        yield from map(score, batches)
        return
    with _threads(workers) as pool:
        yield from pool.map(score, batches)


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Workers that use one thread each inside torch; torch's own number of threads is as before afterwards."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(max(1, before // workers)))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(before)
