"""The runtime's steps beside nnU-Net's own, on random images: equal to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from runtime import models

from nnunet_nas.errors import DataProblem
from nnunet_nas.runtime import segmentation
from nnunet_nas.runtime.preprocessing import SCHEMES, Geometry, normalise, preprocess
from nnunet_nas.runtime.recipe import Component, Normalisation, Resampling
from nnunet_nas.runtime.resampling import new_shape, resample, separate_axis
from nnunet_nas.runtime.segmentation import classify, keep_components, segment
from nnunet_nas.runtime.sliding_window import gaussian_weights, pad, patch_starts, predict_logits

_SHAPES = st.tuples(*[st.integers(3, 12)] * 3)
_SPACINGS = st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 3.5])] * 3)
_SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(
    old=_SHAPES,
    new=_SHAPES,
    spacing=_SPACINGS,
    target=_SPACINGS,
    order=st.sampled_from([0, 1, 3]),
    order_z=st.sampled_from([0, 1]),
    separate=st.sampled_from([None, True, False]),
    seed=_SEEDS,
)
def test_resampling_is_nnunets(*, old, new, spacing, target, order, order_z, separate, seed):
    image = np.random.default_rng(seed).normal(size=(1, *old)).astype(np.float32)
    expected = resample_data_or_seg_to_shape(
        image, new, spacing, target, order=order, order_z=order_z, force_separate_z=separate
    )
    axis = separate_axis(Resampling(order, order_z, separate), spacing, target)
    found = resample(image[0], new, order, order_z, axis).astype(np.float32)
    np.testing.assert_array_equal(found, expected[0])


@settings(max_examples=40, deadline=None)
@given(
    shape=_SHAPES,
    spacing=_SPACINGS,
    target=_SPACINGS,
    transpose=st.permutations([0, 1, 2]),
    scheme=st.sampled_from(SCHEMES),
    masked=st.booleans(),
    two_dimensional=st.booleans(),
    seed=_SEEDS,
)
def test_preprocessing_is_nnunets(*, shape, spacing, target, transpose, scheme, masked, two_dimensional, seed):
    ordered = [spacing[axis] for axis in transpose]
    assume(0 not in new_shape([shape[axis] // 2 for axis in transpose], ordered, target))
    random = np.random.default_rng(seed)
    image = random.uniform(0, 255, (2, *shape)).astype(np.float32)
    image[:, random.random(shape) < 0.3] = 0
    image[:, : shape[0] // 3] = 0
    manager = models.plans(
        target[1:] if two_dimensional else target,
        transpose=transpose,
        schemes=(scheme, "CTNormalization"),
        masked=(masked, False),
    )
    properties = {"spacing": list(spacing)}
    expected, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        image, None, properties, manager, manager.get_configuration("net"), {}
    )
    found, geometry = preprocess(image, spacing, models.recipe(manager))
    np.testing.assert_array_equal(found, expected)
    assert geometry.shape == tuple(properties["shape_before_cropping"])
    assert [[part.start, part.stop] for part in geometry.box] == properties["bbox_used_for_cropping"]


@settings(max_examples=40, deadline=None)
@given(
    shape=_SHAPES,
    spacing=_SPACINGS,
    target=_SPACINGS,
    transpose=st.permutations([0, 1, 2]),
    regions=st.booleans(),
    separate=st.sampled_from([None, False]),
    order_z=st.sampled_from([0, 1]),
    slab_mib=st.sampled_from([0.0001, 16]),
    seed=_SEEDS,
)
def test_label_maps_are_nnunets_also_slab_by_slab(
    *, shape, spacing, target, transpose, regions, separate, order_z, slab_mib, seed
):
    random = np.random.default_rng(seed)
    manager = models.plans(target, transpose=transpose, separate_z=separate, order_z=order_z)
    labels, order = (models.REGIONS, (1, 2)) if regions else (models.LABELS, None)
    ordered = tuple(spacing[axis] for axis in transpose)
    whole = tuple(shape[axis] for axis in transpose)
    box = tuple(slice(int(random.integers(0, 2)), size - int(random.integers(0, 2))) for size in whole)
    geometry = Geometry(whole, box, ordered, target)
    logits = random.normal(size=(2 if regions else 3, *new_shape(geometry.cropped_shape, ordered, target))).astype(
        np.float16
    )
    assume(0 not in logits.shape)
    properties = {
        "spacing": list(spacing),
        "shape_before_cropping": whole,
        "shape_after_cropping_and_before_resampling": geometry.cropped_shape,
        "bbox_used_for_cropping": [[part.start, part.stop] for part in box],
    }
    label_manager = manager.get_label_manager({"labels": labels, "regions_class_order": order})
    expected = convert_predicted_logits_to_segmentation_with_correct_shape(
        torch.from_numpy(logits),
        manager,
        manager.get_configuration("net"),
        label_manager,
        properties,
        num_threads_torch=1,
    )
    recipe = models.recipe(manager, labels=labels, regions_class_order=order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "_SLAB_MIB", slab_mib)
        found = segment(logits, geometry, recipe)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


def test_a_region_begins_where_nnunets_sigmoid_passes_one_half():
    every_half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every_half = every_half[np.isfinite(every_half)].reshape(1, 1, -1)
    expected = (torch.sigmoid(torch.from_numpy(every_half.astype(np.float32))) > 0.5).numpy()
    np.testing.assert_array_equal(classify([every_half], (1,)) == 1, expected)


def test_of_equal_logits_the_first_class_wins_as_in_argmax():
    equal = np.zeros((3, 1, 1, 2), np.float16)
    equal[2, ..., 1] = 1
    np.testing.assert_array_equal(classify(equal, None), [[[0, 2]]])


@pytest.mark.parametrize("patch", [(8, 8, 8), (40, 56, 40), (256, 192)])
def test_weights_are_nnunets(patch):
    expected = compute_gaussian(patch, value_scaling_factor=10, device=torch.device("cpu")).numpy()
    np.testing.assert_array_equal(gaussian_weights(patch), expected)


@given(st.integers(1, 300), st.integers(1, 64), st.floats(0.1, 1))
def test_patches_start_where_nnunets_do(size, patch, step):
    size = max(size, patch)
    assert patch_starts(size, patch, step) == compute_steps_for_sliding_window((size,), (patch,), step)[0]


class _Network(torch.nn.Module):
    """Not symmetric, so that mirroring matters."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = (torch.nn.Conv2d if dimensions == 2 else torch.nn.Conv3d)(2, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@pytest.mark.parametrize(
    ("shape", "patch", "axes"),
    [((5, 13, 6), (8, 8), (0, 1)), ((11, 9, 20), (8, 8, 8), (0, 2)), ((3, 3, 3), (4, 5, 8), ())],
)
def test_a_sliding_window_sums_as_nnunets(shape, patch, axes):
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    network, manager = _Network(len(patch)), models.plans((1,) * len(patch), patch_size=patch)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    dataset = {"labels": models.LABELS}
    predictor.manual_initialization(
        network,
        manager,
        manager.get_configuration("net"),
        [network.state_dict()],
        dataset,
        "nnUNetTrainer",
        axes or None,
    )
    expected = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image)).numpy()

    @torch.inference_mode()
    def ours(patches):
        return network(torch.from_numpy(patches)).numpy()

    found = predict_logits(ours, image, heads=3, patch_size=patch, mirror_axes=axes, step=0.5)
    np.testing.assert_array_equal(found, expected)


def test_padding_is_central_and_its_surplus_lies_behind():
    padded, inner = pad(np.ones((1, 2, 3), np.float32)[None][0][None], (2, 6))
    assert padded.shape == (1, 1, 2, 6)
    assert inner[-1] == slice(1, 4)


@settings(max_examples=30, deadline=None)
@given(_SEEDS, st.sampled_from([1, (1, 2), [1, 2], [(1, 2), 2]]))
def test_postprocessing_is_nnunets(seed, chosen):
    labels = (np.random.default_rng(seed).random((5, 6, 7)) * 4).astype(np.uint8) % 3
    expected = remove_all_but_largest_component_from_segmentation(labels, chosen)
    entries = chosen if isinstance(chosen, list) else [chosen]
    values = {value for entry in entries for value in (entry if isinstance(entry, tuple) else (entry,))}
    found = keep_components(labels, [Component(tuple(values), 0)])
    np.testing.assert_array_equal(found, expected)


def test_rgb_refuses_what_is_not_8_bit():
    with pytest.raises(DataProblem, match="8-bit RGB"):
        normalise(
            np.full((1, 2, 2), 300, np.float32),
            np.ones((1, 2, 2), bool),
            Normalisation("RGBTo01Normalization", False, {}),
        )


def test_an_unknown_scheme_is_named():
    with pytest.raises(DataProblem, match="normalisation Own is unknown"):
        normalise(np.zeros((1, 2, 2), np.float32), np.ones((1, 2, 2), bool), Normalisation("Own", False, {}))


def test_an_image_that_is_thinner_than_a_voxel_is_refused():
    recipe = models.recipe(models.plans((3.5, 1, 1)))
    with pytest.raises(DataProblem, match=r"1 x 8 x 8 mm, less than one voxel of the model's 3\.5 x 1 x 1 mm"):
        preprocess(np.ones((1, 1, 8, 8), np.float32), (1, 1, 1), recipe)
