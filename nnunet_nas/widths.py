"""nnU-Net's own network made wider or narrower: all stages in proportion, as wide as a limit allows.

What a search for a topology within a limit has to beat. The proportions are the plan's, nnU-Net's own limit of channels
at deep stages included: at one and a half times the width it is one and a half times as high. A width is named by the
channels of the finest stage. What a network costs grows with each of its stages, which is why halving finds the widest.
Tensor cores work on multiples of 8 channels in half precision and pad what is none (NVIDIA's guide to mixed precision):
a width that was found is rounded down to one where that is asked for. nnU-Net's planner has multiples of 32.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

from nnunet_nas.architecture import NetworkSpec, build_without_weights
from nnunet_nas.complexity import macs_of
from nnunet_nas.errors import BudgetProblem, DataProblem, UsageError
from nnunet_nas.training_cost import training_memory

# Channels of the finest stage; nnU-Net plans 32.
WIDEST = 2**13
# Channels of which tensor cores want multiples, and from how many on rounding costs less than half of a width.
ALIGNED, _FEWEST_ALIGNED = 8, 16
_OWN = (PlainConvUNet, ResidualEncoderUNet)


@dataclass(frozen=True)
class Measure:
    """What a limit is of.

    Attributes:
        unit: in words.
        of: counts a network; grows with its channels.
    """

    unit: str
    of: Callable[[NetworkSpec], float]


MEMORY = Measure("MiB of training memory", lambda spec: training_memory(spec).total)
MACS = Measure("multiply-accumulates", macs_of)


def proportional_features(features_per_stage: Sequence[int], width: int) -> list[int]:
    """Channels per stage with `width` at the finest, rounded down: (32, 64, 320, 320), 48 -> 48, 96, 480, 480."""
    return [max(1, width * features // features_per_stage[0]) for features in features_per_stage]


def largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, where all below one that fits do; 1 if none does."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def planned_features(spec: NetworkSpec) -> list[int]:
    """Channels per stage of one of nnU-Net's own networks, the finest first.

    Raises:
        DataProblem: another network, whose channels are not its stages' alone.
    """
    kind, features = type(build_without_weights(spec)), spec.architecture["arch_kwargs"].get("features_per_stage")
    if kind not in _OWN:
        names = " or ".join(known.__name__ for known in _OWN)
        raise DataProblem(f"its network is {kind.__name__}, not nnU-Net's {names}: choose a configuration with one")
    if not isinstance(features, list) or not all(isinstance(size, int) and size > 0 for size in features):
        raise DataProblem(
            f"features_per_stage must be a list of channels, not {reprlib.repr(features)}: plan the data set again "
            f"with nnUNetv2_plan_experiment"
        )
    return features


def with_width(spec: NetworkSpec, width: int) -> NetworkSpec:
    """A network with `width` channels at the finest stage and the others in proportion."""
    features: Any = spec.architecture["arch_kwargs"]["features_per_stage"]
    return spec.with_features(proportional_features(features, width))


def width_of(spec: NetworkSpec) -> int:
    """Channels of the finest stage."""
    return int(spec.architecture["arch_kwargs"]["features_per_stage"][0])


def step_between(spec: NetworkSpec) -> int:
    """The smallest width of which nnU-Net can build all multiples: 1, or more where norms work on groups of channels.

    Raises:
        DataProblem: nnU-Net cannot build the network as it is planned.
    """
    planned = width_of(spec)
    for step in (divisor for divisor in range(1, planned) if planned % divisor == 0):
        try:
            build_without_weights(with_width(spec, step))
        except DataProblem:
            continue
        return step
    build_without_weights(spec)
    return planned


def aligned(width: int, step: int = 1) -> int:
    """The nearest multiple of 8 (and of a step) below or at a width from 16 channels on: 43 -> 40, 15 -> 15."""
    if width < _FEWEST_ALIGNED:
        return width
    multiple = math.lcm(ALIGNED, step)
    return width // multiple * multiple or width


def widest_within(
    spec: NetworkSpec, limit: float, measure: Measure, *, step: int = 1, align: bool = False
) -> NetworkSpec:
    """The widest network in proportion that is within a limit.

    Args:
        spec: of the base.
        limit: in the unit of the measure.
        measure: of what the limit is.
        step: widths are multiples of it.
        align: rounds the width down, see `aligned`; else it is the widest of all.

    Raises:
        BudgetProblem: the narrowest is not.
        UsageError: a limit that allows more than any machine has.
    """

    @cache
    def cost(steps: int) -> float:
        return measure.of(with_width(spec, steps * step))

    if cost(1) > limit:
        raise BudgetProblem(
            f"the narrowest network, {step} at the finest stage, needs {math.ceil(cost(1))} {measure.unit}: "
            f"a limit of {limit:.10g} must be raised to that"
        )
    most = 1
    while cost(most) <= limit:
        most *= 2
        if most * step > WIDEST:
            raise UsageError(
                f"{WIDEST} channels at the finest stage need less than {limit:.10g} {measure.unit}: give a lower limit"
            )
    width = step * largest(most, lambda steps: cost(steps) <= limit)
    return with_width(spec, aligned(width, step) if align else width)
