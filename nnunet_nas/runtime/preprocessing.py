"""nnU-Net's preprocessing of one case: transpose, crop to the nonzero region, normalise, resample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_nas.errors import DataProblem
from nnunet_nas.runtime.recipe import Normalisation, Recipe
from nnunet_nas.runtime.resampling import new_shape, resample, separate_axis

_EPSILON = 1e-8
_LARGEST_RGB = 255


@dataclass(frozen=True)
class Geometry:
    """How to come back from the network's grid to the image's.

    Attributes:
        shape: of the transposed image, (z, y, x).
        box: the region that was kept, a slice per axis.
        spacing: mm per voxel of the transposed image.
        target_spacing: mm per voxel of the network's grid.
    """

    shape: tuple[int, ...]
    box: tuple[slice, ...]
    spacing: tuple[float, ...]
    target_spacing: tuple[float, ...]

    @property
    def cropped_shape(self) -> tuple[int, ...]:
        """Voxels of the region that was kept."""
        return tuple(part.stop - part.start for part in self.box)


def preprocess(
    image: NDArray[np.float32], spacing: Sequence[float], recipe: Recipe
) -> tuple[NDArray[np.float32], Geometry]:
    """The network's input.

    Args:
        image: as read, (c, z, y, x).
        spacing: mm per voxel as read, (z, y, x).
        recipe: of the model.

    Raises:
        DataProblem: intensities that the normalisation does not allow, or an image smaller than a voxel.
    """
    image = image.transpose(0, *(axis + 1 for axis in recipe.transpose))
    ordered = tuple(float(spacing[axis]) for axis in recipe.transpose)
    inside = nonzero_region(image)
    box = bounding_box(inside)
    missing = len(ordered) - len(recipe.spacing)
    target = (*ordered[:missing], *recipe.spacing)
    geometry = Geometry(image.shape[1:], box, ordered, target)
    channels = (slice(None), *box)
    image, inside = image[channels], inside[box]
    shape = new_shape(image.shape[1:], ordered, target)
    if 0 in shape:
        sizes = [size * step for size, step in zip(image.shape[1:], ordered, strict=True)]
        raise DataProblem(f"the image covers {_extent(sizes)}, less than one voxel of the model's {_extent(target)}")
    how, axis = recipe.resampling_data, separate_axis(recipe.resampling_data, ordered, target)
    result = np.empty((len(image), *shape), np.float32)
    for channel, rule in enumerate(recipe.normalisation):
        normalised = normalise(image[channel].astype(np.float32), inside, rule)
        same = normalised.shape == shape
        result[channel] = normalised if same else resample(normalised, shape, how.order, how.order_z, axis)
    return result, geometry


def _extent(lengths: Sequence[float]) -> str:
    return " x ".join(f"{length:g}" for length in lengths) + " mm"


def nonzero_region(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where any channel is not zero, holes filled; (c, z, y, x) -> (z, y, x)."""
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes((image != 0).any(0))
    return filled


def bounding_box(inside: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around what is inside; all of it where nothing is."""
    box = []
    for axis in range(inside.ndim):
        hit = np.flatnonzero(inside.any(tuple(other for other in range(inside.ndim) if other != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, inside.shape[axis]))
    return tuple(box)


def normalise(channel: NDArray[np.float32], inside: NDArray[np.bool_], rule: Normalisation) -> NDArray[np.float32]:
    """One channel by one of nnU-Net's schemes.

    Args:
        channel: (z, y, x); changed in place.
        inside: the nonzero region.
        rule: the scheme.

    Raises:
        DataProblem: an unknown scheme, or intensities beyond 0 to 255 for RGB.
    """
    if rule.scheme not in _SCHEMES:
        raise DataProblem(f"normalisation {rule.scheme} is unknown to this runtime, which knows {', '.join(_SCHEMES)}")
    return _SCHEMES[rule.scheme](channel, inside, rule)


def _z_score(channel: NDArray[np.float32], inside: NDArray[np.bool_], rule: Normalisation) -> NDArray[np.float32]:
    if not rule.use_mask:
        mean, deviation = channel.mean(), channel.std()
        channel -= mean
        channel /= max(deviation, _EPSILON)
        return channel
    values = channel[inside]
    channel[inside] = (values - values.mean()) / max(values.std(), _EPSILON)
    return channel


def _ct(channel: NDArray[np.float32], inside: NDArray[np.bool_], rule: Normalisation) -> NDArray[np.float32]:
    del inside
    known = rule.intensities
    np.clip(channel, known["percentile_00_5"], known["percentile_99_5"], out=channel)
    channel -= known["mean"]
    channel /= max(known["std"], _EPSILON)
    return channel


def _none(channel: NDArray[np.float32], inside: NDArray[np.bool_], rule: Normalisation) -> NDArray[np.float32]:
    del inside, rule
    return channel


def _rescale(channel: NDArray[np.float32], inside: NDArray[np.bool_], rule: Normalisation) -> NDArray[np.float32]:
    del inside, rule
    channel -= channel.min()
    channel /= max(channel.max(), _EPSILON)
    return channel


def _rgb(channel: NDArray[np.float32], inside: NDArray[np.bool_], rule: Normalisation) -> NDArray[np.float32]:
    del inside, rule
    if channel.min() < 0 or channel.max() > _LARGEST_RGB:
        raise DataProblem(
            f"intensities from {channel.min():g} to {channel.max():g}: the model was trained on 8-bit RGB, 0 to 255"
        )
    channel /= np.float32(_LARGEST_RGB)
    return channel


_SCHEMES = {
    "ZScoreNormalization": _z_score,
    "CTNormalization": _ct,
    "NoNormalization": _none,
    "RescaleTo01Normalization": _rescale,
    "RGBTo01Normalization": _rgb,
}
SCHEMES = tuple(_SCHEMES)
