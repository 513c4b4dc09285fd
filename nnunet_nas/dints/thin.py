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


def lost_shares(label: np.ndarray, block: Sequence[int], classes: Sequence[int]) -> dict[int, tuple[int, float]]:
    """Voxels of each class, and how many of them are lost.

    Args:
        label: (*spatial), whole numbers; axes before those of the block are slices of their own.
        block: voxels per axis that become one.
        classes: values of interest.

    Returns:
        by class that is there: voxels in whole blocks, and lost ones of them.
    """
    axes = label.ndim - len(block)
    kept = tuple(slice(0, size - size % step) for size, step in zip(label.shape, (*[1] * axes, *block), strict=True))
    whole = label[kept]
    split = [part for size, step in zip(whole.shape[axes:], block, strict=True) for part in (size // step, step)]
    blocks = whole.reshape(*whole.shape[:axes], *split)
    within = tuple(axes + 2 * number + 1 for number in range(len(block)))
    found = {}
    for value in classes:
        counts = (blocks == value).sum(within, dtype=np.int64)
        voxels = int(counts.sum())
        if voxels:
            found[int(value)] = (voxels, voxels - float((counts * counts).sum()) / math.prod(block))
    return found
