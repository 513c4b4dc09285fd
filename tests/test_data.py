"""Patches: cropping, padding, drawing of cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_nas.cases import draw_cases
from nnunet_nas.data import PatchSource, centre_patch, list_cases
from nnunet_nas.errors import DataProblem


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)


def test_an_odd_surplus_is_cut_at_the_end():
    # 5 -> 2 voxels: one cut in front (5 - 2) // 2, two behind.
    assert centre_patch(ramp(5), (2,)).tolist() == [[1, 2]]


def test_an_odd_lack_is_padded_at_the_end():
    # 2 -> 5 voxels: (5 - 2) // 2 = 1 zero in front, two behind.
    assert centre_patch(ramp(2) + 7, (5,)).tolist() == [[0, 7, 8, 0, 0]]


def test_axes_are_cut_and_padded_independently():
    assert centre_patch(ramp(3, 2), (1, 4)).tolist() == [[[0, 2, 3, 0]]]


@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_a_patch_has_the_asked_shape_and_invents_nothing(shape, patch):
    image = ramp(*shape) + 1
    result = centre_patch(image, tuple(patch))
    assert result.shape == (1, *patch)
    assert result.dtype == np.float32
    assert set(result.ravel()) <= {0.0, *image.ravel()}
    assert np.count_nonzero(result) == np.prod(np.minimum(shape, patch))


CASES = [f"case_{index:02}" for index in range(20)]


def test_drawing_is_reproducible_sorted_and_without_replacement():
    drawn = draw_cases(CASES, 7, seed=369)
    assert drawn == draw_cases(CASES, 7, seed=369)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 7
    assert drawn != draw_cases(CASES, 7, seed=1)


def test_all_cases_are_not_drawn():
    assert draw_cases(CASES, None, seed=1) == draw_cases(CASES, 20, seed=2) == CASES


def test_too_many_cases_are_refused_with_the_number_there_is():
    with pytest.raises(DataProblem, match="only 20 are preprocessed: use -n 20"):
        draw_cases(CASES, 21, seed=0)


def test_missing_folder_says_what_to_run(tmp_path):
    with pytest.raises(DataProblem, match="nnUNetv2_preprocess"):
        list_cases(tmp_path / "nnUNetPlans_2d")


@pytest.fixture
def numpy_cases(tmp_path):
    """Two volumes in nnU-Net's older compressed NumPy format."""
    for index in range(2):
        volume = np.full((1, 3, 4, 4), index, dtype=np.float32)
        volume[:, 1] += 10
        np.savez(tmp_path / f"case_{index}.npz", data=volume, seg=np.zeros((1, 3, 4, 4), dtype=np.int8))
        (tmp_path / f"case_{index}.pkl").write_bytes(b"\x80\x03}q\x00.")
    return tmp_path


def test_a_2d_patch_is_the_middle_slice(numpy_cases):
    source = PatchSource(numpy_cases, ["case_0", "case_1"], (2, 2))
    assert source.batch(["case_0", "case_1"]).tolist() == [[[[10, 10], [10, 10]]], [[[11, 11], [11, 11]]]]


def test_a_3d_patch_is_the_centre(numpy_cases):
    assert PatchSource(numpy_cases, ["case_1"], (1, 4, 4)).patch("case_1").unique().tolist() == [11]


def test_patches_beyond_the_cache_are_read_again(numpy_cases):
    kept = PatchSource(numpy_cases, ["case_0"], (2, 2))
    assert kept.patch("case_0") is kept.patch("case_0")
    read_again = PatchSource(numpy_cases, ["case_0"], (2, 2), cache_mib=0)
    assert read_again.patch("case_0") is not read_again.patch("case_0")
    assert read_again.patch("case_0").equal(kept.patch("case_0"))


def test_an_unknown_case_is_named(numpy_cases):
    with pytest.raises(DataProblem, match="case_9"):
        PatchSource(numpy_cases, ["case_0", "case_9"], (2, 2))


def test_a_truncated_case_is_named(numpy_cases):
    path = numpy_cases / "case_1.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataProblem, match=r"case case_1 .* cannot be read"):
        PatchSource(numpy_cases, ["case_1"], (2, 2)).patch("case_1")
