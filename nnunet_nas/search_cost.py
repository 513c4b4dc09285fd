"""What a search, or a training of ours, costs at most: known before it starts.

A cost is made of phases: iterations that are alike, and the multiply-accumulates (MACs) of one of them, forward and
backward pass over a whole batch. Both are counted, from the settings and on networks without weights; nothing is
measured. Each method counts its own phases (`cost` in the table of methods). They are compared with plain training of
the same configuration. Norms, sums and many small convolutions take longer than their MACs say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_nas.architecture import NetworkSpec
from nnunet_nas.errors import DataProblem
from nnunet_nas.methods import METHODS, RETROFIT, part, settings_class, with_cost
from nnunet_nas.plans import Plans
from nnunet_nas.settings import read_settings
from nnunet_nas.training_cost import plain_step, share_of_default_training


@dataclass(frozen=True)
class Phase:
    """Iterations that cost the same.

    Attributes:
        iterations: how many, at most.
        macs: multiply-accumulates of one.
    """

    iterations: int
    macs: float


@dataclass(frozen=True)
class SearchCost:
    """What a search or a training costs at most.

    Attributes:
        method: a name of `METHODS`.
        phases: in their order.
        plain_macs: multiply-accumulates of one iteration of plain training of the same configuration.
    """

    method: str
    phases: Sequence[Phase]
    plain_macs: float

    @property
    def iterations(self) -> int:
        """Of all phases."""
        return sum(phase.iterations for phase in self.phases)

    @property
    def macs(self) -> float:
        """Multiply-accumulates of all phases."""
        return sum(phase.iterations * phase.macs for phase in self.phases)

    @property
    def plain_iterations(self) -> float:
        """Iterations of plain training that cost as much."""
        return self.macs / self.plain_macs

    @property
    def default_trainings(self) -> float:
        """The same in default trainings of nnU-Net."""
        return share_of_default_training(self.iterations, self.plain_iterations / self.iterations)

    def words(self, length: str) -> str:
        """For a log, with its length in words."""
        each = self.plain_iterations / self.iterations
        return f"{self.default_trainings:.3f} at most ({length}, each {each:.2f} of a plain one)"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "method": self.method,
            "iterations": self.iterations,
            "macs": self.macs,
            "plain_iterations": self.plain_iterations,
            "default_trainings": self.default_trainings,
        }


def cost_in_plans(method: str, plans: Plans, name: str, spec: NetworkSpec, settings: Any) -> SearchCost:
    """What a method costs on a configuration of plans, which may name a network beside its own.

    Args:
        method: one of those with a `cost`.
        plans: that the configuration stands in.
        name: of the configuration.
        spec: its network.
        settings: of the method.

    Raises:
        DataProblem: as `search_cost`, or the network beside it cannot be found.
    """
    beside = METHODS[method].beside
    return search_cost(method, spec, settings, beside=None if beside is None else part(beside)(plans, name, settings))


def search_cost(method: str, spec: NetworkSpec, settings: Any, *, beside: NetworkSpec | None = None) -> SearchCost:
    """What a method costs on a configuration.

    Args:
        method: one of those with a `cost`.
        spec: what its trainer is given: the network that is searched on, or trained.
        settings: of the method.
        beside: another network that it runs, as a distillation its teacher.

    Raises:
        DataProblem: a method that counts no cost, or a network that it cannot work on.
    """
    if METHODS[method].cost is None:
        raise DataProblem(f"{method} has no cost to predict; of these there is one: {', '.join(with_cost())}")
    others = [] if beside is None else [beside]
    phases = part(METHODS[method].cost)(spec, settings, *others)
    return SearchCost(method, phases, spec.batch_size * plain_step(spec))


def retrofit_cost(method: str, spec: NetworkSpec, settings: Any, configuration: dict[str, Any]) -> SearchCost | None:
    """What the retrofit of a search's answer costs, whatever that will be; None where a search has none.

    Args:
        method: one of those with a `cost`.
        spec: the network that is searched on.
        settings: of the method.
        configuration: that is searched on, resolved, with the retrofit's settings.

    Raises:
        DataProblem: those cannot be read, or the network has no skips.
    """
    if METHODS[method].retrofit_cost is None:
        return None
    training: Any = read_settings(settings_class(RETROFIT), configuration)
    phases = part(METHODS[method].retrofit_cost)(spec, settings, training)
    return SearchCost(RETROFIT, phases, spec.batch_size * plain_step(spec))


def plain_phases(spec: NetworkSpec, settings: Any) -> list[Phase]:
    """Training of a configuration as nnU-Net trains it, for as long as the settings say."""
    return [Phase(settings.num_epochs * settings.num_iterations_per_epoch, spec.batch_size * plain_step(spec))]
