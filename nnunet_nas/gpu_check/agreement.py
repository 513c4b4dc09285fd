"""Whether devices, threads, several GPUs and the compiler compute the same networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._dynamo.utils import counters

from nnunet_nas.architecture import build_network
from nnunet_nas.gpu_check.fake_cuda import DEVICE, fake_cuda
from nnunet_nas.gpu_check.networks import Subject, subjects, unet
from nnunet_nas.gpu_check.outcome import Outcomes, judged, relative_error
from nnunet_nas.precision import half_precision
from nnunet_nas.xtiny.proxies import PROXIES, Scene
from nnunet_nas.xtiny.sensitivity import prepare

TOLERANCE = 1e-3
_SCORES = 2e-3
_GRAPHS = 4
_CPU = torch.device("cpu")
Run = tuple[torch.Tensor, torch.Tensor]


def check_networks(device: torch.device, *, quick: bool) -> Outcomes:
    """Outputs and gradients on the CPU and on the device; on the CPU those of one thread and of several."""
    what = "1 and several CPU threads" if device.type == "cpu" else f"cpu and {device.type}, float32"
    for subject in subjects(quick=quick):
        with _single_precision():
            errors = _differences(subject, device)
        found = f"outputs {errors[0]:.1e}, gradients {errors[1]:.1e}"
        yield judged(f"{subject.name}: {what}", f"alike within {TOLERANCE:g}", found, passed=max(errors) <= TOLERANCE)


def _differences(subject: Subject, device: torch.device) -> tuple[float, float]:
    with _threads(1 if device.type == "cpu" else torch.get_num_threads()):
        ours = _run(subject.build(), subject.images())
    with _threads(max(2, torch.get_num_threads()) if device.type == "cpu" else torch.get_num_threads()):
        theirs = _run(subject.build().to(device), subject.images().to(device))
    return relative_error(ours[0], theirs[0]), relative_error(ours[1], theirs[1])


def _run(network: nn.Module, images: torch.Tensor) -> Run:
    outputs = network(images)
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    gradients = [p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None]
    return torch.cat([output.detach().flatten().cpu() for output in outputs]), torch.cat(gradients)


@contextlib.contextmanager
def _single_precision() -> Iterator[None]:
    """Without TF32, whose 10 bits would hide everything else."""
    backends: tuple[Any, Any] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_half_precision_without_a_card(*, quick: bool) -> Outcomes:
    """A step of every network on fake tensors: devices, types, and no number that is read inside the passes."""
    for subject in subjects(quick=quick):
        network = subject.build()
        with fake_cuda():
            images = subject.images().to(DEVICE)
            with half_precision(DEVICE):
                loss = torch.stack([output.float().square().mean() for output in network.to(DEVICE)(images)]).sum()
            loss.backward()
        yield judged(f"{subject.name}: half precision on fake tensors", "no error, no wait", "so", passed=True)


def check_several_gpus_network(*, quick: bool) -> Outcomes:
    """What nnU-Net trains with -num_gpus, whose batch norms it exchanges, and what it predicts with."""
    for subject in subjects(quick=quick):
        if not subject.found:
            continue
        network = subject.build().eval()
        with torch.no_grad():
            alone = network(subject.images())[0]
            together = nn.SyncBatchNorm.convert_sync_batchnorm(network)(subject.images())[0]
        error = relative_error(alone, together)
        yield judged(f"{subject.name}: norms for several GPUs", "the same logits", f"{error:.1e}", passed=error == 0)


def check_compilation(device: torch.device, *, quick: bool) -> Outcomes:
    """torch.compile on found networks; on the CPU the graphs alone, which need no compiler of C++."""
    backend = "inductor" if device.type == "cuda" else "eager"
    for subject in subjects(quick=quick):
        if not subject.found:
            continue
        torch._dynamo.reset()
        counters.clear()
        with _single_precision():
            eager = _run(subject.build().to(device), subject.images().to(device))
            compiled: Any = torch.compile(subject.build().to(device), backend=backend)
            found = _run(compiled, subject.images().to(device))
        graphs = counters["stats"]["unique_graphs"]
        errors = [relative_error(one, other) for one, other in zip(eager, found, strict=True)]
        yield judged(
            f"{subject.name}: torch.compile ({backend})",
            f"alike within {TOLERANCE:g}, at most {_GRAPHS} graphs",
            f"outputs {errors[0]:.1e}, gradients {errors[1]:.1e}, {graphs} graph{'s' * (graphs != 1)}",
            passed=max(errors) <= TOLERANCE and 1 <= graphs <= _GRAPHS,
        )


def check_scores(device: torch.device) -> Outcomes:
    """What `select_tiny` scores widths by, on the CPU and on the device; on the CPU with one thread and several."""
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    def mean(features: list[int], where: torch.device, *, side_by_side: bool) -> float:
        spec = unet(2).with_features(features)
        network = prepare(build_network(spec, seed=0), where)
        scene = Scene(
            lambda some: torch.stack([images[int(case)] for case in some]), list("0123"), (32, 32), where, 2, 0,
            side_by_side=side_by_side,
        )  # fmt: skip
        values = [value for found in PROXIES["jacobian"].measure(network, scene) for value in found.values()]
        return float(np.mean(values))

    for features in ([16, 32, 64, 64], [4, 4, 4, 4]):
        ours, theirs = mean(features, _CPU, side_by_side=False), mean(features, device, side_by_side=True)
        error = abs(theirs / ours - 1)
        yield judged(
            f"select_tiny's score of width {features[0]}", f"that of the CPU within {_SCORES:g}",
            f"{ours:.4g} and {theirs:.4g} ({error:.1e})", passed=error <= _SCORES,
        )  # fmt: skip
