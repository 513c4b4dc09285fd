"""What coarser cells cannot see of a label: how much of each structure is lost in a block of voxels (our choice).

A label that is brought to half resolution by its nearest voxel and back keeps, of every block, the one voxel that
stood for it. Averaged over which one that is, a class with n of a block's N voxels keeps n * n / N of them there: a
solid organ loses its rim, a shell of one voxel about half. Networks are no nearest neighbours, and features at half
resolution may well say where within a block a border runs; it is a hint, and no bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def lost_shares(label: np.ndarray, block: Sequence[int], classes: Sequence[int]) -> dict[int, tuple[int, float]]:
    """Voxels of each class, and how many of them are lost.

    Args:
        label: (*spatial), whole numbers; axes before those of the block are slices of their own.
        block: voxels per axis that become one.
        classes: values of interest, from 1 on.

    Returns:
        by class that is there: voxels in whole blocks, and lost ones of them.
    """
    steps = (*[1] * (label.ndim - len(block)), *block)
    # A class is looked at where it is: a hundred small ones would take minutes otherwise.
    places = ndimage.find_objects(label, max_label=max(classes, default=0))
    found = {}
    for value in classes:
        if (place := places[value - 1]) is None:
            continue
        counts = _per_block(label, value, place, steps)
        if voxels := int(counts.sum()):
            found[int(value)] = (voxels, voxels - float((counts * counts).sum()) / math.prod(block))
    return found


def _per_block(label: np.ndarray, value: int, place: Sequence[slice], steps: Sequence[int]) -> np.ndarray:
    """Voxels of a class in every whole block that `place` touches."""
    around = []
    for part, size, step in zip(place, label.shape, steps, strict=True):
        end = min(-(-part.stop // step) * step, size - size % step)
        around.append(slice(min(part.start // step * step, end), end))
    own = label[tuple(around)] == value
    split = [number for size, step in zip(own.shape, steps, strict=True) for number in (size // step, step)]
    counts: np.ndarray = own.reshape(split).sum(tuple(range(1, 2 * own.ndim, 2)), dtype=np.int64)
    return counts
