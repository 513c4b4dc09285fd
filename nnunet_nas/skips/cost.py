"""What modules in a frozen backbone's skips cost beside what they compete with: further training of the backbone.

Steps are compared by their multiply-accumulates, backward pass included, which are counted and not measured. Norms,
sums and many small convolutions take longer than their multiply-accumulates say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nnunet_nas.architecture import NetworkSpec, build_without_weights
from nnunet_nas.complexity import Complexity, step_macs

# Of nnU-Net's own trainer: 1000 epochs of 250 iterations.
DEFAULT_STEPS = 1000 * 250


@dataclass(frozen=True)
class BesideBackbone:
    """Costs as multiples of the backbone's.

    Attributes:
        configuration: of the backbone.
        parameters: all of them, the frozen ones included.
        macs: multiply-accumulates of one forward pass.
        step_macs: of one training step, in which the backbone is frozen, and the plain backbone's is not.
    """

    configuration: str
    parameters: float
    macs: float
    step_macs: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def training_shape(spec: NetworkSpec) -> tuple[int, ...]:
    """A batch of one patch."""
    return (1, spec.input_channels, *spec.patch_size)


def plain_step(spec: NetworkSpec) -> int:
    """Multiply-accumulates of a training step of a network as nnU-Net trains it, for one patch."""
    return step_macs(build_without_weights(spec, deep_supervision=True), training_shape(spec))


def frozen_step(spec: NetworkSpec) -> int:
    """Multiply-accumulates of a training step of the modules in a network's skips alone, for one patch."""
    network: Any = build_without_weights(spec, deep_supervision=True)
    network.freeze_backbone()
    return step_macs(network, training_shape(spec))


def beside_backbone(name: str, specs: Sequence[NetworkSpec], costs: Sequence[Complexity]) -> BesideBackbone:
    """A network with modules in its skips, beside its backbone.

    Args:
        name: of the backbone's configuration.
        specs: of the network and of its backbone.
        costs: likewise.
    """
    own, backbone = costs
    return BesideBackbone(
        name,
        own.parameters / backbone.parameters,
        own.macs / backbone.macs,
        frozen_step(specs[0]) / plain_step(specs[1]),
    )


def share_of_default_training(steps: int, relative_cost: float) -> float:
    """What steps cost as a share of one default nnU-Net training of the network that `relative_cost` compares with."""
    return steps * relative_cost / DEFAULT_STEPS
