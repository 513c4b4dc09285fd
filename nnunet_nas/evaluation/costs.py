"""What compared models cost: counted from the plans beside them, and measured if asked for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnunet_nas.architecture import NetworkSpec, build_network, network_spec
from nnunet_nas.complexity import Complexity, complexity_of
from nnunet_nas.errors import DataProblem
from nnunet_nas.evaluation.summaries import Model
from nnunet_nas.plans import Plans
from nnunet_nas.precision import half_precision

REPEATS = 7
_WARM_UP = 2


@dataclass(frozen=True)
class Cost:
    """Costs of one model, or why they are unknown.

    Attributes:
        spec: the network; None if unknown.
        complexity: at the patch size, for a batch of one; None if unknown.
        problem: why it is unknown; None if it is known.
        seconds_per_patch: median of the measured forward passes; None if not measured.
    """

    spec: NetworkSpec | None
    complexity: Complexity | None
    problem: str | None = None
    seconds_per_patch: float | None = None

    def to_json(self) -> dict[str, Any] | None:
        """As plain JSON; None if unknown."""
        if self.spec is None or self.complexity is None:
            return None
        content = {"patch_size": list(self.spec.patch_size), **self.complexity.to_json()}
        return content | ({} if self.seconds_per_patch is None else {"seconds_per_patch": self.seconds_per_patch})


def cost_of(model: Model) -> Cost:
    """Counts the network that nnU-Net would build from the plans beside the model."""
    if model.home is None or model.configuration is None:
        missing = "no plans.json" if model.home is None else "no folder named after a configuration"
        return Cost(None, None, f"the costs of {model.name} are unknown: {missing} beside its results")
    try:
        spec = network_spec(Plans.read(model.home / "plans.json"), model.configuration, model.dataset_json)
        return Cost(spec, complexity_of(spec))
    except DataProblem as error:
        return Cost(None, None, f"the costs of {model.name} are unknown: {error}")


def seconds_per_patch(
    specs: Sequence[NetworkSpec],
    device: torch.device,
    *,
    repeats: int = REPEATS,
    clock: Callable[[], float] | None = None,
) -> list[float]:
    """Median wall-clock seconds of a forward pass of one patch, random weights, without deep supervision.

    In the precision in which nnU-Net predicts; see `precision_on`.

    The networks take turns, so that other work on the machine disturbs all of them alike. What a case takes is this
    times its patches (and nnU-Net's mirrored copies), plus reading, resampling and writing, which do not depend on the
    network.

    Args:
        specs: the networks.
        device: to measure on.
        repeats: measured passes of each network, after two that are not.
        clock: seconds; for tests.
    """
    now = clock or time.perf_counter
    networks = [build_network(spec, seed=0).to(device).eval() for spec in specs]
    patches = [torch.randn(1, spec.input_channels, *spec.patch_size, device=device) for spec in specs]
    times: list[list[float]] = [[] for _ in specs]
    with torch.inference_mode(), half_precision(device):
        for _ in range(_WARM_UP + repeats):
            for network, patch, seconds in zip(networks, patches, times, strict=True):
                started = now()
                network(patch)
                _wait_for(device)
                seconds.append(now() - started)
    return [statistics.median(seconds[_WARM_UP:]) for seconds in times]


def precision_on(device: torch.device) -> str:
    """In which nnU-Net predicts there, in words."""
    return "float16 under autocast" if device.type == "cuda" else "float32"


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
