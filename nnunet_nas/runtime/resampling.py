"""Resampling as nnU-Net's `resample_data_or_seg_to_shape` does it, with SciPy alone.

`scipy.ndimage.zoom(grid_mode=True, mode="nearest")` with clipping to the input's range is what skimage's `resize` does
for nnU-Net. Where spacing is anisotropic, slices are resized one by one and the coarse axis is interpolated on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_nas.runtime.recipe import Resampling

# Largest spacing over smallest from which nnU-Net treats an image as anisotropic.
_ANISOTROPIC = 3.0


def new_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Voxels per axis after resampling from one spacing (mm) to another."""
    return tuple(round(old / new * size) for old, new, size in zip(spacing, target, shape, strict=True))


def separate_axis(how: Resampling, spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """The coarse axis that is resampled on its own, or None.

    Args:
        how: settings of the plans.
        spacing: mm per voxel before, per axis.
        target: mm per voxel after, per axis.
    """
    if how.separate_z is False:
        return None
    coarse: Sequence[float] | None = spacing if how.separate_z else None
    for candidate in (spacing, target):
        if coarse is None and max(candidate) / min(candidate) > _ANISOTROPIC:
            coarse = candidate
    if coarse is None:
        return None
    axes = [axis for axis, step in enumerate(coarse) if step == max(coarse)]
    return axes[0] if len(axes) == 1 else None


def resize(image: NDArray[np.float64], shape: Sequence[int], order: int) -> NDArray[np.float64]:
    """An array resampled by splines, edges repeated, clipped to its range."""
    if tuple(shape) == image.shape:
        return image
    factors = [1 / (old / new) for old, new in zip(image.shape, shape, strict=True)]
    resized = ndimage.zoom(image, factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(resized, image.min(), image.max(), out=resized)


def resample(
    image: NDArray[np.floating], shape: Sequence[int], order: int, order_z: int, axis: int | None
) -> NDArray[np.float64]:
    """One channel on another grid.

    Args:
        image: (z, y, x).
        shape: voxels wanted per axis.
        order: of the spline.
        order_z: of the spline along `axis`.
        axis: resampled on its own; None for none.
    """
    source = image.astype(np.float64)
    if axis is None:
        return resize(source, shape, order)
    within = [size for index, size in enumerate(shape) if index != axis]
    slices = np.stack([resize(part, within, order) for part in np.moveaxis(source, axis, 0)], axis)
    return along_axis(slices, shape[axis], order_z, axis)


def along_axis(image: NDArray[np.float64], length: int, order: int, axis: int) -> NDArray[np.float64]:
    """An array interpolated along one axis to another number of voxels."""
    old = image.shape[axis]
    if old == length:
        return image
    coordinates = old / length * (np.arange(length) + 0.5) - 0.5
    if order == 0:
        nearest = ndimage.map_coordinates(np.arange(old, dtype=np.float64), [coordinates], order=0, mode="nearest")
        return np.take(image, nearest.astype(np.intp), axis)
    grid = np.meshgrid(
        *(coordinates if index == axis else np.arange(size) for index, size in enumerate(image.shape)), indexing="ij"
    )
    interpolated: NDArray[np.float64] = ndimage.map_coordinates(image, grid, order=order, mode="nearest")
    return interpolated
