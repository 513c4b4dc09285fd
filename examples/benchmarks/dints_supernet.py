"""A step of the DiNTS supernet, forward and backward, beside MONAI's, in one run.

The paper's space for both: 12 layers, 4 levels from half resolution, features doubling per level. Saved MiB are what
autograd keeps for the backward pass, each storage once, weights not counted; seconds and CPU seconds of all threads are
minima over alternating repetitions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from timing import alternate, gpu_peak_mib
from torch import Tensor, nn

from nnunet_nas.blocks import Blocks
from nnunet_nas.complexity import kept_mib
from nnunet_nas.dints.operations import make_levels
from nnunet_nas.dints.supernet import DiNTSSupernet

LAYERS, LEVELS = 12, 4


@dataclass
class Candidate:
    """A supernet with its two kinds of parameters."""

    network: nn.Module
    weights: list[nn.Parameter]
    architecture: list[nn.Parameter]


@dataclass
class Row:
    """One line of the table."""

    name: str
    step: str
    seconds: float
    cpu_seconds: float
    saved_mib: float
    peak_mib: float | None


def monai(features: int, device: torch.device) -> Candidate:
    """MONAI's search space at its own settings."""
    from monai.networks.nets.dints import DiNTS, TopologySearch

    space = TopologySearch(
        channel_mul=features / 32, num_blocks=LAYERS, num_depths=LEVELS, use_downsample=True, spatial_dims=3,
        device=str(device),
    )  # fmt: skip
    network = DiNTS(
        dints_space=space, in_channels=1, num_classes=2, act_name="RELU", norm_name=("INSTANCE", {"affine": True}),
        spatial_dims=3, use_downsample=True,
    ).to(device)  # fmt: skip
    return Candidate(network, list(network.weight_parameters()), [space.log_alpha_a, space.log_alpha_c])


def ours(features: int, device: torch.device, *, fast: bool) -> Candidate:
    """The same space here: stage 0 has no cells, as in MONAI."""
    blocks = Blocks(nn.Conv3d, False, nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, nn.ReLU, {})
    stages = LEVELS + 1
    strides = [[1] * 3, *[[2] * 3] * LEVELS]
    levels = make_levels([features * 2**stage for stage in range(stages)], [[3] * 3] * stages, strides, 3)
    network = DiNTSSupernet(
        input_channels=1, num_classes=2, blocks=blocks, levels=levels, first_level=1, num_layers=LAYERS, fast=fast
    ).to(device)
    return Candidate(network, network.network_parameters(), network.architecture_parameters())


def measure(size: int, features: int, repeats: int, device: torch.device) -> list[Row]:
    """Weight and architecture steps of MONAI's, the exact and the fast supernet on a cube of `size` voxels."""
    torch.manual_seed(0)
    image = torch.randn(1, 1, size, size, size, device=device)
    candidates = {
        "MONAI": monai(features, device),
        "exact": ours(features, device, fast=False),
        "fast": ours(features, device, fast=True),
    }
    rows = []
    for step in ("weights", "architecture"):
        steps = {name: _prepared(candidate, step, image) for name, candidate in candidates.items()}
        saved = {
            name: kept_mib(
                lambda name=name: candidates[name].network(image), list(candidates[name].network.parameters())
            )
            for name in candidates
        }
        times = alternate(steps, repeats, device)
        rows += [
            Row(name, step, min(times[name].wall), min(times[name].cpu), saved[name], gpu_peak_mib(steps[name], device))
            for name in candidates
        ]
    return rows


def _prepared(candidate: Candidate, step: str, image: Tensor) -> Callable[[], None]:
    trained = {id(p) for p in (candidate.weights if step == "weights" else candidate.architecture)}
    everything = [*candidate.weights, *candidate.architecture]

    def run() -> None:
        for parameter in everything:
            parameter.requires_grad_(id(parameter) in trained)
            parameter.grad = None
        output = candidate.network(image)
        (output[0] if isinstance(output, list) else output).square().mean().backward()

    for parameter in everything:
        parameter.requires_grad_(id(parameter) in trained)
    return run
