"""What an edge computes: which operations exist at a kernel, and that resampling sees every voxel."""

import pytest
import torch
from torch import nn

from nnunet_nas.blocks import Blocks
from nnunet_nas.dints.operations import (
    OPERATIONS,
    SKIP,
    Convolutions,
    Level,
    Resample,
    Stem,
    Upsample,
    make_levels,
    operation_steps,
)
from nnunet_nas.errors import DataProblem

WHOLE_3D = {
    "skip": (),
    "conv": (((3, 3, 3), 1),),
    "yx_z": (((1, 3, 3), 1), ((3, 1, 1), 1)),
    "zx_y": (((3, 1, 3), 1), ((1, 3, 1), 1)),
    "zy_x": (((3, 3, 1), 1), ((1, 1, 3), 1)),
}
# Kernels of the plans, in the order z y x.
STEPS = {
    (3, 3, 3): WHOLE_3D,
    # yx_z would be 1x3x3 and then 1x1x1.
    (1, 3, 3): {
        "skip": (),
        "conv": (((1, 3, 3), 1),),
        "zx_y": (((1, 1, 3), 1), ((1, 3, 1), 1)),
        "zy_x": (((1, 3, 1), 1), ((1, 1, 3), 1)),
    },
    (1, 1, 3): {"skip": (), "conv": (((1, 1, 3), 1),)},
    (1, 1, 1): {"skip": (), "conv": (((1, 1, 1), 1),)},
    (3, 3): {"skip": (), "conv": (((3, 3), 1),), "y_x": (((3, 1), 1), ((1, 3), 1)), "dilated": (((3, 3), 2),)},
    (1, 3): {"skip": (), "conv": (((1, 3), 1),), "dilated": (((1, 3), 2),)},
    (1, 1): {"skip": (), "conv": (((1, 1), 1),)},
}
# Patch and strides of successive levels, from the image down.
GEOMETRY = {
    "halves": ((16, 16), [(1, 1), (2, 2), (2, 2)]),
    "anisotropic": ((6, 16, 16), [(1, 1, 1), (1, 2, 2), (2, 2, 2)]),
    "quarters": ((32, 16), [(1, 1), (4, 2), (4, 2)]),
    "thirds": ((9, 6, 6), [(1, 1, 1), (3, 1, 2), (1, 3, 3)]),
}
GEOMETRIES = pytest.mark.parametrize("name", GEOMETRY)
KERNELS = pytest.mark.parametrize("kernel", [1, 3, 5])


def blocks(dimensions, **changes):
    """Without activation and normalisation, whose gradients would hide or spread what a voxel does."""
    kinds = {
        "conv_op": {2: nn.Conv2d, 3: nn.Conv3d}[dimensions], "conv_bias": True, "norm_op": None, "norm_op_kwargs": None,
        "nonlin": None, "nonlin_kwargs": None,
    }  # fmt: skip
    return Blocks(**{**kinds, **changes})


def geometry(name, kernel):
    patch, strides = GEOMETRY[name]
    return patch, make_levels([2, 3, 4], [kernel] * 3, strides, len(patch))


def with_ones(module):
    """Positive weights, so that nothing cancels."""
    for parameter in module.parameters():
        nn.init.ones_(parameter)
    return module


def sees_every_voxel(module, shape):
    x = torch.ones(shape, requires_grad=True)
    module(x).sum().backward()
    return bool((x.grad > 0).all())


def size_at(patch, levels, level):
    for step in levels[: level + 1]:
        patch = [length // stride for length, stride in zip(patch, step.stride, strict=True)]
    return list(patch)


@pytest.mark.parametrize("kernel", STEPS, ids=str)
def test_operations_of_a_kernel(kernel):
    found = operation_steps(kernel)
    assert found == STEPS[kernel]
    assert list(found) == [name for name in OPERATIONS[len(kernel)] if name in found]


@pytest.mark.parametrize("kernel", STEPS, ids=str)
def test_operations_keep_the_size_and_differ_in_their_weights(kernel):
    x = torch.randn(1, 2, *[5] * len(kernel))
    shapes = set()
    for name, steps in operation_steps(kernel).items():
        if name == SKIP:
            continue
        module = Convolutions(blocks(len(kernel)), 2, steps)
        assert module(x).shape == x.shape
        shapes.add((name == "dilated", tuple(conv.weight.shape for conv in module.convs)))
    assert len(shapes) == len(operation_steps(kernel)) - 1


def test_dilation_doubles_the_reach():
    x = torch.zeros(1, 1, 9, 9, requires_grad=True)
    with_ones(Convolutions(blocks(2), 1, operation_steps((3, 3))["dilated"]))(x)[0, 0, 4, 4].backward()
    assert x.grad[0, 0].nonzero().tolist() == [[y, x] for y in (2, 4, 6) for x in (2, 4, 6)]


@KERNELS
@GEOMETRIES
def test_stems_see_every_voxel(name, kernel):
    patch, levels = geometry(name, kernel)
    for level in range(len(levels)):
        stem = with_ones(Stem(blocks(len(patch)), levels, level, 1))
        assert sees_every_voxel(stem, (1, 1, *patch)), level
        output = stem(torch.zeros(1, 1, *patch))
        assert list(output.shape) == [1, levels[level].features, *size_at(patch, levels, level)]


@KERNELS
@GEOMETRIES
def test_resampling_sees_every_voxel_in_both_directions(name, kernel):
    patch, levels = geometry(name, kernel)
    for source, end in ((0, 1), (1, 2), (1, 0), (2, 1)):
        module = with_ones(Resample(blocks(len(patch)), levels, source, end))
        shape = (1, levels[source].features, *size_at(patch, levels, source))
        assert sees_every_voxel(module, shape), (source, end)
        assert list(module(torch.zeros(shape)).shape) == [1, levels[end].features, *size_at(patch, levels, end)]


def test_a_kernel_is_widened_only_where_the_stride_needs_it():
    assert Level(8, (3, 3, 3), (1, 2, 2)).down_kernel == (3, 3, 3)
    assert Level(8, (1, 1, 1), (1, 2, 2)).down_kernel == (1, 3, 3)
    # The last of 4 n voxels is 3 away from the last centre, 4 (n - 1).
    assert Level(8, (3, 5, 3), (4, 3, 1)).down_kernel == (7, 5, 3)


def test_upsampling_is_linear_by_whole_factors_with_corners_not_aligned():
    # Centres of the new pixels lie at 0.25 and 0.75 between the old ones.
    x = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]]])
    assert Upsample((1, 2))(x).tolist() == [[[[0, 1, 3, 4], [8, 9, 11, 12]]]]
    assert Upsample((2, 4, 1))(torch.randn(2, 3, 4, 5, 6)).shape == (2, 3, 8, 20, 6)


def test_an_activation_in_place_stays_so_only_where_nobody_else_reads():
    plan = blocks(2, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True, "negative_slope": 0.2})
    assert not plan.activation(shared=True).inplace
    assert plan.activation(shared=True).negative_slope == 0.2
    assert plan.activation(shared=False).inplace
    assert plan.nonlin_kwargs["inplace"]
    smooth = blocks(2, nonlin=nn.GELU, nonlin_kwargs=None)
    assert isinstance(smooth.activation(shared=True), nn.GELU)
    assert isinstance(blocks(2).activation(shared=True), nn.Identity)


def test_a_single_number_stands_for_all_axes():
    assert make_levels([4], [3], [2], 3) == [Level(4, (3, 3, 3), (2, 2, 2))]


@pytest.mark.parametrize(
    ("features", "kernels", "message"),
    [
        ([4, 8], [[3, 3]] * 3, "one entry per stage, not 2, 3 and 3"),
        ([4, 8, 8], [[3, 3], [3, 3], [2, 3]], r"kernel \[2, 3\] has an even size"),
    ],
)
def test_plans_that_make_no_levels_are_refused(features, kernels, message):
    with pytest.raises(DataProblem, match=message):
        make_levels(features, kernels, [[1, 1], [2, 2], [2, 2]], 2)
