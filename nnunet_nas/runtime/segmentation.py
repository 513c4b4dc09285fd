"""From logits on the network's grid to a label map on the image's: resampling, labels or regions, uncropping.

Logits at the image's resolution are never held for all classes at once: the map is made slab by slab along the first
axis, or plane by plane of it. Values are rounded to half precision as nnU-Net's are, so that ties fall alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from nnunet_nas.runtime.preprocessing import Geometry
from nnunet_nas.runtime.recipe import Component, Recipe
from nnunet_nas.runtime.resampling import resample, separate_axis

# MiB of resampled logits, in double precision, of one class at a time.
_SLAB_MIB = 16

Slab = Callable[[NDArray[np.float16], slice], NDArray[np.float16]]


def segment(logits: NDArray[np.float16], geometry: Geometry, recipe: Recipe) -> NDArray[np.unsignedinteger]:
    """Labels of an image, (z, y, x) as it was read.

    Args:
        logits: (heads, z, y, x) on the network's grid.
        geometry: of the image.
        recipe: of the model.
    """
    shape = geometry.cropped_shape
    slabs, length = _slabs(logits, shape, geometry, recipe)
    labels = np.zeros(geometry.shape, recipe.label_type)
    inside = labels[geometry.box]
    for start in range(0, shape[0], length):
        part = slice(start, min(start + length, shape[0]))
        inside[part] = classify((slabs(channel, part) for channel in logits), recipe.region_values)
    backward = np.argsort(recipe.transpose)
    return keep_components(labels.transpose(backward), recipe.postprocessing)


def _slabs(logits: NDArray[np.float16], shape: tuple[int, ...], geometry: Geometry, recipe: Recipe) -> tuple[Slab, int]:
    """What resamples one class for a slab of the first axis, and how thick a slab is."""
    how = recipe.resampling_logits
    axis = separate_axis(how, geometry.target_spacing, geometry.spacing)
    if logits.shape[1:] == shape:
        return (lambda channel, part: channel[part]), _thickness(shape)
    if axis is None and how.order <= 1:
        return (lambda channel, part: linear_slab(channel, shape, part, how.order)), _thickness(shape)
    if axis == 0 and how.order_z == 0:
        nearest = _nearest(logits.shape[1], shape[0])

        def planes(channel: NDArray[np.float16], part: slice) -> NDArray[np.float16]:
            wanted, position = np.unique(nearest[part], return_inverse=True)
            whole = (len(wanted), *shape[1:])
            return resample(channel[wanted], whole, how.order, 0, 0).astype(np.float16)[position]

        return planes, _thickness(shape)
    # Splines of higher orders look at the whole class.
    return (lambda channel, part: resample(channel, shape, how.order, how.order_z, axis).astype(np.float16)), shape[0]


def _thickness(shape: Sequence[int]) -> int:
    plane = int(np.prod(shape[1:])) * 8
    return max(1, min(shape[0], int(_SLAB_MIB * 2**20) // max(plane, 1)))


def _nearest(old: int, new: int) -> NDArray[np.intp]:
    coordinates = old / new * (np.arange(new) + 0.5) - 0.5
    index = ndimage.map_coordinates(np.arange(old, dtype=np.float64), [coordinates], order=0, mode="nearest")
    return index.astype(np.intp)


def linear_slab(channel: NDArray[np.float16], shape: Sequence[int], part: slice, order: int) -> NDArray[np.float16]:
    """Planes `part` of a channel, (z, y, x), resized to `shape` by splines of order 0 or 1."""
    scale = np.array([old / new for old, new in zip(channel.shape, shape, strict=True)])
    offset = scale / 2 - 0.5
    offset[0] += scale[0] * part.start
    resized = ndimage.affine_transform(
        channel.astype(np.float64),
        scale,
        offset,
        (part.stop - part.start, *shape[1:]),
        order=order,
        mode="nearest",
    )
    return resized.astype(np.float16)


def classify(
    channels: Iterable[NDArray[np.float16]], region_values: Sequence[int] | None
) -> NDArray[np.unsignedinteger]:
    """Labels from logits, one class after the other.

    Args:
        channels: logits per head, each (z, y, x).
        region_values: for regions: what each head writes where its probability is above one half; None: the label is
            the head with the highest logit, the first of equal ones.
    """
    heads = iter(channels)
    first = next(heads)
    labels = np.zeros(first.shape, np.uint16)
    if region_values is not None:
        for value, logits in zip(region_values, itertools.chain([first], heads), strict=True):
            labels[special.expit(logits.astype(np.float32)) > np.float32(0.5)] = value
        return labels
    best = first
    for index, logits in enumerate(heads, start=1):
        labels[logits > best] = index
        best = np.maximum(best, logits)
    return labels


def keep_components(labels: NDArray[np.unsignedinteger], steps: Sequence[Component]) -> NDArray[np.unsignedinteger]:
    """nnU-Net's postprocessing: of some labels together, only the largest connected component stays (all if equal)."""
    for step in steps:
        mask = np.isin(labels, step.labels)
        components, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
        sizes = np.bincount(components.ravel())[1:]
        if len(sizes):
            kept = np.isin(components, np.flatnonzero(sizes == sizes.max()) + 1)
            labels = np.where(mask & ~kept, np.asarray(step.background, labels.dtype), labels)
    return labels
