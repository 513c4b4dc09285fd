"""What training a network as nnU-Net trains it holds in memory, and what steps cost beside a default training.

Memory (our accounting, in float32): what autograd keeps of a forward pass with deep supervision at the planned patch
and batch, the weights, their gradients, and SGD's momentum. nnU-Net's mixed precision on GPUs keeps about half of the
first; weights, gradients and momentum stay float32, half copies of the weights come to them (half of their size), and
the gradient scaler is two numbers. Not counted: maps alive for a moment only, a library's workspaces, the process
itself.

Steps are compared by their multiply-accumulates, backward pass included, which are counted and not measured. Norms,
sums and many small convolutions take longer than their multiply-accumulates say.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from nnunet_nas.architecture import NETWORK_ERRORS, NetworkSpec, build_without_weights, one_line
from nnunet_nas.complexity import MIB, kept_mib, step_macs, training_shape
from nnunet_nas.errors import DataProblem

# Of nnU-Net's own trainer: 1000 epochs of 250 iterations.
DEFAULT_STEPS = 1000 * 250


@dataclass(frozen=True)
class TrainingMemory:
    """Parts of what a training step holds, MiB.

    Attributes:
        activations: kept from the forward to the backward pass, the images included.
        weights: of the network.
        gradients: of the weights that are trained.
        momentum: SGD's, likewise.
    """

    activations: float
    weights: float
    gradients: float
    momentum: float

    @property
    def total(self) -> float:
        """MiB."""
        return self.activations + self.weights + self.gradients + self.momentum

    def to_json(self) -> dict[str, float]:
        """As plain JSON, with the total."""
        return {f"{name}_mib": value for name, value in {**asdict(self), "total": self.total}.items()}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:.0f}" for name, value in asdict(self).items())
        return f"{self.total:.0f} MiB ({parts})"


def state_mib(module: nn.Module) -> float:
    """MiB of a trained module's weights, gradients and momentum."""
    return 3 * sum(parameter.numel() * parameter.element_size() for parameter in module.parameters()) / MIB


def training_memory(spec: NetworkSpec, *, frozen: bool = False) -> TrainingMemory:
    """Counts a network as planned, without arithmetic.

    Args:
        spec: of the network, with its patch and batch.
        frozen: the modules in its skips alone are trained, as by the retrofit.

    Raises:
        DataProblem: nnU-Net cannot build it, or it cannot process such batches.
    """
    network: Any = build_without_weights(spec, deep_supervision=True)
    if frozen:
        network.freeze_backbone()
    try:
        images = torch.empty(spec.batch_size, spec.input_channels, *spec.patch_size, device="meta")
        activations = kept_mib(lambda: network(images), list(network.parameters()))
    except NETWORK_ERRORS as error:
        raise DataProblem(
            f"{spec.architecture['network_class_name']} cannot process {spec.batch_size} patches of "
            f"{'x'.join(map(str, spec.patch_size))} ({one_line(error)}): correct the configuration or plan again"
        ) from error
    sizes = [(p.numel() * p.element_size() / MIB, p.requires_grad) for p in network.parameters()]
    trained = sum(size for size, is_trained in sizes if is_trained)
    return TrainingMemory(
        activations=activations,
        weights=sum(size for size, _ in sizes),
        gradients=trained,
        momentum=trained,
    )


def memory_beside(spec: NetworkSpec, base: str, base_spec: NetworkSpec) -> str:
    """What training a network needs, in words, beside nnU-Net's own network of the configuration `base`."""
    needed, own = training_memory(spec), training_memory(base_spec)
    patch = "x".join(map(str, spec.patch_size))
    return (
        f"training needs {needed} at batch {spec.batch_size} of {patch} in float32, {needed.total / own.total:.2f} "
        f"times what {base} does, {own}"
    )


def plain_step(spec: NetworkSpec) -> int:
    """Multiply-accumulates of a training step of a network as nnU-Net trains it, for one patch."""
    return step_macs(build_without_weights(spec, deep_supervision=True), training_shape(spec))


def share_of_default_training(steps: int, relative_cost: float) -> float:
    """What steps cost as a share of one default nnU-Net training of the network that `relative_cost` compares with."""
    return steps * relative_cost / DEFAULT_STEPS
