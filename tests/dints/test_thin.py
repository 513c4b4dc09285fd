"""What of a label is lost where one voxel stands for a block, worked out by hand."""

import numpy as np
import pytest

from nnunet_nas.dints.thin import lost_shares


def shares(label, block, classes=(1,)):
    return {value: lost / voxels for value, (voxels, lost) in lost_shares(label, block, classes).items()}


def test_a_line_loses_half_and_whole_blocks_nothing():
    label = np.zeros((8, 8), int)
    label[:, 2] = 1  # two of four voxels in every block that it crosses
    label[4:, 4:] = 2
    assert lost_shares(label, (2, 2), (1, 2, 3)) == {1: (8, 4.0), 2: (16, 0.0)}


def test_planes_lose_what_the_threshold_says():
    def plane(thickness, start):
        label = np.zeros((12, 8, 8), int)
        label[start : start + thickness] = 1
        return shares(label, (2, 2, 2))[1]

    assert plane(1, 4) == 0.5
    # In the blocks and between them: nothing or half, on average a quarter; of three always a sixth.
    assert (plane(2, 4), plane(2, 5)) == (0, 0.5)
    assert plane(3, 4) == pytest.approx(1 / 6)


def test_a_single_voxel_is_nearly_all_lost():
    label = np.zeros((4, 4, 4), int)
    label[1, 1, 1] = 1
    assert shares(label, (2, 2, 2)) == {1: 7 / 8}
    assert shares(label, (1, 2, 2)) == {1: 3 / 4}


def test_it_is_the_mean_over_all_nearest_voxels():
    # As nnU-Net keeps them: small numbers, and -1 where an image was cut away.
    label = np.random.default_rng(0).integers(-1, 3, (6, 8, 4)).astype(np.int8)
    kept = []
    for z, y, x in np.ndindex(2, 2, 2):
        back = label[z::2, y::2, x::2].repeat(2, 0).repeat(2, 1).repeat(2, 2)
        kept.append(((back == 1) & (label == 1)).sum())
    voxels, lost = lost_shares(label, (2, 2, 2), (1,))[1]
    assert voxels == (label == 1).sum()
    assert lost == pytest.approx(voxels - np.mean(kept))


def test_slices_of_a_volume_and_voxels_beyond_whole_blocks():
    label = np.zeros((3, 5, 4), int)
    label[1, :, 1] = 1
    assert lost_shares(label, (2, 2), (1,)) == {1: (4, 2.0)}
    alone = np.zeros((5, 5), int)
    alone[4, 4] = 1
    assert lost_shares(alone, (2, 2), (1,)) == {}
