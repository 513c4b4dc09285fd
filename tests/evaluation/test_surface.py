"""HD95 and NSD: boxes by hand with anisotropic voxels, brute force over all pairs, and MONAI as another witness."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.distance import cdist

from nnunet_nas.errors import DataProblem
from nnunet_nas.evaluation.surface import SurfaceTask, measure, surface_distances, surface_metrics


def box(shape, *ranges):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(start, stop) for start, stop in ranges)] = True
    return mask


def blobs(seed, shape):
    """Two random masks that overlap in part."""
    random = np.random.default_rng(seed)
    return random.random(shape) > 0.6, random.random(shape) > 0.7


def brute_force_surface(mask):
    """Centres of the voxels with a face neighbour outside of the mask, one by one."""
    found = []
    for index in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                neighbour = index.copy()
                neighbour[axis] += step
                inside = 0 <= neighbour[axis] < mask.shape[axis]
                if not inside or not mask[tuple(neighbour)]:
                    found.append(tuple(index))
    return np.array(sorted(set(found)), dtype=float)


def test_two_boxes_by_hand():
    # Planes of 3 x 3 voxels, two slices of 3 mm apart: every distance is 6 mm.
    one = box((6, 5, 5), (1, 2), (1, 4), (1, 4))
    other = box((6, 5, 5), (3, 4), (1, 4), (1, 4))
    for tolerance, share in ((5.9, 0.0), (6.0, 1.0)):
        found = surface_metrics(one, other, (3.0, 1.0, 1.0), tolerance=tolerance)
        assert found == {"HD95": 6.0, "NSD": share}


def test_an_extension_along_each_axis_costs_its_own_spacing():
    one = box((10, 10, 10), (2, 5), (2, 5), (2, 5))
    spacing = (5.0, 2.0, 0.5)
    for axis, step in enumerate(spacing):
        ranges = [(2, 5)] * 3
        ranges[axis] = (2, 6)
        longer = box((10, 10, 10), *ranges)
        one_to_other, other_to_one = surface_distances(one, longer, spacing)
        # The new face is a voxel further out; everything on the old surface but the covered face is on the new one.
        assert other_to_one.max() == step
        assert np.count_nonzero(other_to_one) == 9
        # Of the covered face only the middle is no longer surface, and its nearest surface may be in any direction.
        assert np.count_nonzero(one_to_other) == 1


def test_the_95th_percentile_of_a_line_by_hand():
    # 20 voxels in a row against the same row and a voxel 9 further on: 20 distances of 0 and one of 9 pixels.
    row = box((1, 40), (0, 1), (0, 20))
    longer = row | box((1, 40), (0, 1), (28, 29))
    # A slice of a single line has only one axis, of which the ends are surface.
    one, other = surface_distances(row, longer, (1.0, 1.0))
    assert sorted(one) == [0.0, 0.0]
    assert sorted(other) == [0.0, 0.0, 9.0]
    # Linear between the order statistics: 0.95 x 2 = 1.9, so 0.9 of the way from 0 to 9.
    assert surface_metrics(row, longer, (1.0, 1.0), tolerance=1.0) == {"HD95": pytest.approx(8.1), "NSD": 4 / 5}


def test_equal_masks():
    mask, _ = blobs(0, (6, 7, 8))
    assert surface_metrics(mask, mask, (1.0, 1.0, 1.0), tolerance=0.1) == {"HD95": 0.0, "NSD": 1.0}


def test_empty_masks():
    empty, mask = np.zeros((3, 4), dtype=bool), box((3, 4), (0, 1), (0, 1))
    assert all(math.isnan(value) for value in surface_metrics(empty, empty, (2.0, 1.0), tolerance=1).values())
    # The image is 3 x 2 mm by 4 x 1 mm.
    worst = {"HD95": math.hypot(6, 4), "NSD": 0.0}
    assert surface_metrics(empty, mask, (2.0, 1.0), tolerance=1) == worst
    assert surface_metrics(mask, empty, (2.0, 1.0), tolerance=1) == worst


def test_a_slice_is_measured_in_its_plane():
    one, other = blobs(1, (12, 15))
    flat = surface_metrics(one, other, (0.7, 1.3), tolerance=1)
    assert surface_metrics(one[None], other[None], (999.0, 0.7, 1.3), tolerance=1) == flat
    # In 3-D every voxel of a slice would be surface.
    assert len(surface_distances(box((1, 9, 9), (0, 1), (0, 9), (0, 9)), one[None, :9, :9], (1, 1, 1))[0]) == 32


@pytest.mark.parametrize(("seed", "shape"), [(0, (9, 11)), (1, (5, 6, 7))])
def test_distances_are_those_of_brute_force(seed, shape):
    spacing = np.array([3.0, 1.2, 0.8][-len(shape) :])
    masks = blobs(seed, shape)
    one, other = (brute_force_surface(mask) * spacing for mask in masks)
    expected = cdist(one, other)
    to_other, to_one = surface_distances(*masks, spacing)
    assert to_other == pytest.approx(expected.min(axis=1))
    assert to_one == pytest.approx(expected.min(axis=0))


# compute_hausdorff_distance(percentile=95) and compute_surface_dice(class_thresholds=[1.0]) of MONAI 1.6.1, single
# precision, include_background=True, spacing=[2.5, 1.0, 0.7], of the masks below.
MONAI = [
    (3.3301401138305664, 0.18796992301940918),
    (3.440930128097534, 0.1953125),
    (3.5946478843688965, 0.2419354766607),
]


def test_both_metrics_are_monais():
    for seed, expected in enumerate(MONAI):
        random = np.random.default_rng(seed)
        reference, prediction = (random.random((8, 14, 15)) > threshold for threshold in (0.97, 0.95))
        found = surface_metrics(reference, prediction, (2.5, 1.0, 0.7), tolerance=1.0)
        assert (found["HD95"], found["NSD"]) == pytest.approx(expected, rel=1e-5)


def task(folder, reference, prediction, labels, classes, *, tolerances=None):
    """A case of two volumes, (z, y, x), as files with slices of 4 mm."""
    files = []
    for name, volume in (("reference", reference), ("prediction", prediction)):
        image = sitk.GetImageFromArray(volume.astype(np.uint8))
        image.SetSpacing((1.0, 1.0, 4.0))  # x, y, z
        files.append(folder / f"{name}.nii.gz")
        sitk.WriteImage(image, str(files[-1]))
    tolerances = dict(zip(classes, tolerances or (1.0,) * len(classes), strict=True))
    return SurfaceTask(*files, tolerances, {"labels": labels, "file_ending": ".nii.gz"})


def test_files_are_measured_with_their_spacing_by_class_and_region(tmp_path):
    reference, prediction = np.zeros((2, 6, 8, 8))
    reference[1, 2:6, 2:6], prediction[2, 2:6, 2:6] = 1, 1
    reference[1, 3, 3] = prediction[2, 3, 3] = 2
    labels = {"background": 0, "whole": [1, 2], "core": 2, "other": 3}
    found = measure(task(tmp_path, reference, prediction, labels, ("(1, 2)", "2", "3")))
    assert found["(1, 2)"] == {"HD95": 4.0, "NSD": 0.0}
    assert found["2"] == {"HD95": 4.0, "NSD": 0.0}
    assert math.isnan(found["3"]["HD95"])
    # All surfaces are 4 mm apart: within the tolerance of the whole, beyond that of the core.
    found = measure(task(tmp_path, reference, prediction, labels, ("(1, 2)", "2"), tolerances=(4.0, 3.9)))
    assert (found["(1, 2)"]["NSD"], found["2"]["NSD"]) == (1.0, 0.0)


def test_ignored_voxels_are_background_of_both(tmp_path):
    reference, prediction = np.zeros((2, 3, 8, 8))
    reference[1, 2:4, 2:4] = prediction[1, 2:4, 2:4] = 1
    reference[1, 6:] = 2
    prediction[1, 6:, :2] = 1
    labels = {"background": 0, "bright": 1, "ignore": 2}
    assert measure(task(tmp_path, reference, prediction, labels, ("1",)))["1"] == {"HD95": 0.0, "NSD": 1.0}
    # The same voxels count where nothing is ignored.
    labels = {"background": 0, "bright": 1, "unsure": 2}
    assert measure(task(tmp_path, reference, prediction, labels, ("1",)))["1"]["HD95"] > 0


def test_files_that_cannot_be_measured_are_named(tmp_path):
    labels = {"background": 0, "bright": 1}
    mismatched = task(tmp_path, np.zeros((2, 4, 4)), np.zeros((2, 4, 5)), labels, ("1",))
    with pytest.raises(DataProblem, match=r"prediction.nii.gz has \(2, 4, 5\) voxels, its label \(2, 4, 4\)"):
        measure(mismatched)
    mismatched.prediction.write_bytes(b"no image")
    with pytest.raises(DataProblem, match="cannot read"):
        measure(mismatched)
    mismatched.prediction.unlink()
    with pytest.raises(DataProblem, match="does not exist, surface metrics need it"):
        measure(mismatched)
