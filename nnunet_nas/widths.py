"""nnU-Net's own network made wider or narrower: all stages in proportion, as wide as a limit allows.

What a search for a topology within a limit has to beat. The proportions are the plan's, nnU-Net's own limit of channels
at deep stages included: at one and a half times the width it is one and a half times as high. A width is named by the
channels of the finest stage. What a network costs grows with each of its stages, which is why halving finds the widest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from nnunet_nas.errors import BudgetProblem

if TYPE_CHECKING:
    from nnunet_nas.architecture import NetworkSpec

# Channels of the finest stage; nnU-Net plans 32.
WIDEST = 2**13


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


def with_width(spec: NetworkSpec, width: int) -> NetworkSpec:
    """A network with `width` channels at the finest stage and the others in proportion."""
    return spec.with_features(proportional_features(spec.architecture["arch_kwargs"]["features_per_stage"], width))


def widest_within(spec: NetworkSpec, limit: float, cost: Callable[[NetworkSpec], float]) -> NetworkSpec:
    """The widest network in proportion whose cost is within a limit.

    Args:
        spec: of the base.
        limit: in the unit of `cost`.
        cost: of a network, which grows with its channels.

    Raises:
        BudgetProblem: one channel at the finest stage costs more.
    """

    @cache
    def fits(width: int) -> bool:
        return cost(with_width(spec, width)) <= limit

    most = 1
    while most < WIDEST and fits(most):
        most *= 2
    widest = largest(most, fits)
    if not fits(widest):
        raise BudgetProblem(f"the narrowest network costs {cost(with_width(spec, 1)):.6g}, more than {limit:.6g}")
    return with_width(spec, widest)
