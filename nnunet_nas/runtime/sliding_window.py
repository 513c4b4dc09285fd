"""nnU-Net's sliding window: overlapping patches, Gaussian weights, mirroring; sums in half precision as there."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Of the Gaussian, in patch sizes, and of its highest weight: large enough for half precision, small enough to sum.
_SIGMA = 1 / 8
_PEAK = 10

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@functools.lru_cache(maxsize=2)
def gaussian_weights(patch_size: tuple[int, ...]) -> NDArray[np.float16]:
    """Weight of each voxel of a patch, highest in the middle, nowhere zero."""
    peak = np.zeros(patch_size)
    peak[tuple(size // 2 for size in patch_size)] = 1
    weights = ndimage.gaussian_filter(peak, [size * _SIGMA for size in patch_size], 0, mode="constant", cval=0)
    weights /= weights.max() / _PEAK
    # Through single precision, as torch converts: rounding twice is not rounding once.
    half = weights.astype(np.float32).astype(np.float16)
    half[half == 0] = half[half > 0].min()
    half.setflags(write=False)
    return half


def patch_starts(size: int, patch: int, step: float) -> list[int]:
    """First voxels of the patches along one axis.

    Args:
        size: voxels of the image, at least `patch`.
        patch: voxels of the patch.
        step: largest distance between patches, in patch sizes.
    """
    count = int(np.ceil((size - patch) / (patch * step))) + 1
    return [int(np.round((size - patch) / max(count - 1, 1) * index)) for index in range(count)]


def windows(shape: Sequence[int], patch_size: Sequence[int], step: float) -> Iterator[tuple[int | slice, ...]]:
    """All patches of an image, (z, y, x); 2-D patches slice by slice."""
    planes = shape[: len(shape) - len(patch_size)]
    starts = [patch_starts(size, patch, step) for size, patch in zip(shape[len(planes) :], patch_size, strict=True)]
    for plane in itertools.product(*map(range, planes)):
        for first in itertools.product(*starts):
            yield (*plane, *(slice(start, start + patch) for start, patch in zip(first, patch_size, strict=True)))


def mirrored(network: Network, patch: NDArray[np.float32], axes: Sequence[int]) -> NDArray[np.float32]:
    """Mean logits over all combinations of mirrored axes; `patch` is (1, c, *spatial)."""
    logits = network(patch)
    if not axes:
        return logits
    flips = [c for count in range(1, len(axes) + 1) for c in itertools.combinations([axis + 2 for axis in axes], count)]
    for flip in flips:
        logits = logits + np.flip(network(np.ascontiguousarray(np.flip(patch, flip))), flip)
    return logits / np.float32(len(flips) + 1)


def predict_logits(
    network: Network,
    image: NDArray[np.float32],
    *,
    heads: int,
    patch_size: Sequence[int],
    mirror_axes: Sequence[int],
    step: float,
) -> NDArray[np.float16]:
    """Logits of a whole image, (heads, z, y, x).

    Args:
        network: patches (1, c, *patch_size) to logits.
        image: preprocessed, (c, z, y, x).
        heads: channels of the logits.
        patch_size: voxels.
        mirror_axes: spatial axes of the patch to mirror.
        step: in patch sizes, above 0 and at most 1.
    """
    padded, inner = pad(image, patch_size)
    weights = gaussian_weights(tuple(patch_size))
    total = np.zeros((heads, *padded.shape[1:]), np.float16)
    weight = np.zeros(padded.shape[1:], np.float16)
    for window in windows(padded.shape[1:], patch_size, step):
        channels = (slice(None), *window)
        logits = mirrored(network, np.ascontiguousarray(padded[channels][None]), mirror_axes)[0]
        total[channels] += logits * weights
        weight[window] += weights
    total /= weight
    channels = (slice(None), *inner)
    return total[channels]


def pad(image: NDArray[np.float32], patch_size: Sequence[int]) -> tuple[NDArray[np.float32], tuple[slice, ...]]:
    """Zeros around an image, (c, z, y, x), that is smaller than a patch, and where it lies in the result."""
    shape = image.shape[1:]
    wanted = (*shape[: len(shape) - len(patch_size)], *patch_size)
    around = [
        (max(want - size, 0) // 2, max(want - size, 0) - max(want - size, 0) // 2)
        for want, size in zip(wanted, shape, strict=True)
    ]
    inner = tuple(slice(before, before + size) for (before, _), size in zip(around, shape, strict=True))
    return np.pad(image, [(0, 0), *around]), inner
