"""How many seeds and images each width should be scored with, by the variance that is left and what it costs.

The draw of the weights explains most of the variance of log S at narrow widths and little at wide ones, which cost
most. With fresh images for every seed, the mean of s seeds with n images each has the variance (between + within / n) /
s, and costs s * (network + n * image) seconds. That is two-stage sampling in strata (Cochran, Sampling Techniques,
1977): the best n does not depend on s, and the best s is in proportion to the root of variance over cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Components:
    """What a pilot knows of each width, each (widths,).

    Attributes:
        between: variance of log S over seeds, of what all images share.
        within: variance over images under one seed.
        network: seconds to build and move one network.
        image: seconds to score one image.
    """

    between: np.ndarray
    within: np.ndarray
    network: np.ndarray
    image: np.ndarray

    @staticmethod
    def of_pilot(logarithms: np.ndarray, network: np.ndarray, image: np.ndarray) -> Components:
        """By analysis of variance.

        Args:
            logarithms: log S, (seeds, widths, images), two seeds and two images or more.
            network: seconds, (widths,).
            image: likewise.
        """
        images = logarithms.shape[2]
        within = logarithms.var(axis=2, ddof=1).mean(axis=0)
        between = logarithms.mean(axis=2).var(axis=0, ddof=1) - within / images
        return Components(np.maximum(between, 0), within, network, image)

    def variance(self, seeds: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Of the mean log S of each width, (widths,)."""
        return np.asarray((self.between + self.within / images) / seeds)

    def seconds(self, seeds: np.ndarray, images: np.ndarray) -> float:
        """Of all widths together."""
        return float(np.sum(seeds * (self.network + images * self.image)))


def allocate(components: Components, variance: float, *, most_images: int) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest numbers of seeds and images for a mean variance over the widths.

    Args:
        components: of the widths.
        variance: of the mean log S, averaged over the widths, that is to be reached.
        most_images: that there are.

    Returns:
        seeds and images of each width, whole numbers, (widths,) each; rounded up, so that the variance is reached.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.sqrt(components.within / components.between * components.network / components.image)
    images = np.clip(np.ceil(np.nan_to_num(best, nan=1.0, posinf=most_images)), 1, most_images)
    each = components.between + components.within / images
    cost = components.network + images * components.image
    scale = np.sum(np.sqrt(each * cost)) / (variance * len(each))
    seeds = np.maximum(np.ceil(np.sqrt(each / cost) * scale), 1)
    return seeds.astype(int), images.astype(int)
