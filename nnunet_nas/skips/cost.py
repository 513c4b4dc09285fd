"""What modules in a frozen backbone's skips cost beside what they compete with: further training of the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nnunet_nas.architecture import NetworkSpec, build_without_weights
from nnunet_nas.complexity import Complexity, step_macs, training_shape
from nnunet_nas.errors import DataProblem
from nnunet_nas.search_cost import Phase
from nnunet_nas.skips.settings import IACRetrofitSettings
from nnunet_nas.skips.unet import SkipUNet
from nnunet_nas.training_cost import plain_step


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


def retrofit_phases(spec: NetworkSpec, settings: IACRetrofitSettings) -> list[Phase]:
    """Training of the modules in a network's skips, for as long as the settings say.

    Raises:
        DataProblem: it has none.
    """
    batch = settings.batch_size or spec.batch_size
    return [Phase(settings.num_epochs * settings.num_iterations_per_epoch, batch * frozen_step(spec))]


def frozen_step(spec: NetworkSpec) -> int:
    """Multiply-accumulates of a training step of the modules in a network's skips alone, for one patch.

    Raises:
        DataProblem: it has none.
    """
    network = build_without_weights(spec, deep_supervision=True)
    if not isinstance(network, SkipUNet):
        raise DataProblem(f"{type(network).__name__} has no modules in its skips that could be trained alone")
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
