"""How many draws of the weights each width should be scored with, by the variance that is left and what it costs.

A curve of sensitivities varies by the draw of the weights: with variance a + b * mean_i(1 / features_i) of log S, as
gradients of rectifier networks do at initialisation (see `selection.fitted_spread`). An image makes the sensitivities
of all widths larger or smaller alike, which no rule looks at; what is its own at one draw is a share of the draw's
variance. So a few images, the same for all widths, say what 64 say; what precision is left to gain is in the narrow
widths, which vary most and cost least. The law's numbers are our choice, after measurements (examples/xtiny.md). They
need no pilot, and a scoring that was interrupted goes on with the same numbers.

The mean over s draws and n images has the variance (between + interaction / n) / s and costs s * (network + n * image):
sampling in strata (Cochran, Sampling Techniques, 1977), where the best s is in proportion to the root of variance over
cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_nas.complexity import Complexity

# The variance of log S over draws at infinite width, what it gains by narrowness, and the share of it that one image at
# one draw has beside it.
_OFFSET, _SLOPE, _SHARE = 0.02, 1.2, 0.2
# What building a network, each of its weights, scoring an image and each MiB of its activations cost, in MACs of a CPU.
_NETWORK, _WEIGHT, _IMAGE, _MIB = 2.5e8, 400, 3e7, 8e7


@dataclass(frozen=True)
class Components:
    """Variance and cost of each width, each (widths,).

    Attributes:
        between: variance of log S over draws of the weights, of what all images share.
        interaction: further variance of one image under one draw.
        network: cost of building and moving one network, in any unit.
        image: cost of scoring one image, in the same.
    """

    between: np.ndarray
    interaction: np.ndarray
    network: np.ndarray
    image: np.ndarray

    @staticmethod
    def of_law(features: Sequence[Sequence[int]], complexity: Sequence[Complexity]) -> Components:
        """By what is known before anything is scored.

        Args:
            features: channels per stage of each width.
            complexity: of each width.
        """
        reciprocal = np.array([np.mean(1 / np.asarray(stages, dtype=float)) for stages in features])
        between = _OFFSET + _SLOPE * reciprocal
        network = np.array([_NETWORK + _WEIGHT * cost.parameters for cost in complexity])
        image = np.array([_IMAGE + cost.macs + _MIB * cost.inference_mib for cost in complexity])
        return Components(between, _SHARE * between, network, image)

    def variance(self, seeds: np.ndarray | float, images: int) -> np.ndarray:
        """Of the mean log S of each width, (widths,)."""
        return np.asarray((self.between + self.interaction / images) / seeds)

    def cost(self, seeds: np.ndarray | float, images: int) -> float:
        """Of all widths together."""
        return float(np.sum(seeds * (self.network + images * self.image)))


def allocate(components: Components, variance: float, *, images: int, least: int = 1) -> np.ndarray:
    """The cheapest numbers of draws for a mean variance over the widths.

    Args:
        components: of the widths.
        variance: of the mean log S, averaged over the widths, that is to be reached.
        images: under each draw, of every width.
        least: number of draws of every width.

    Returns:
        whole numbers, (widths,); rounded up, so that the variance is reached.
    """
    each = components.variance(1, images)
    cost = components.network + images * components.image
    free = np.ones(len(each), dtype=bool)
    seeds = np.full(len(each), float(least))
    while free.any():
        left = variance * len(each) - np.sum(each[~free] / least)
        seeds[free] = np.sqrt(each / cost)[free] * np.sum(np.sqrt(each * cost)[free]) / left
        below = free & (seeds < least)
        if not below.any():
            break
        seeds[below] = least
        free &= ~below
    return np.ceil(seeds * (1 - 1e-9)).astype(int)
