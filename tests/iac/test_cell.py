"""The discrete cell and its operations."""

import pytest
import torch
from torch import nn

from nnunet_nas.errors import DataProblem
from nnunet_nas.iac.cell import Cell, cell_width, mixed_share
from nnunet_nas.iac.genotype import OPERATIONS, Genotype
from nnunet_nas.iac.network import IACUNet
from nnunet_nas.iac.operations import CONVOLUTIONS, build_operation, convolution_weights, norm_kind, pool
from nnunet_nas.iac.settings import CellSettings
from nnunet_nas.skips.unet import SKIP_PREFIX

GENOTYPE = Genotype.from_json(
    {
        "2": {"0": "sep_conv_3", "1": "identity"},
        "3": {"0": "max_pool_3", "2": "sep_conv_5"},
        "4": {"1": "dil_conv_3", "3": "avg_pool_3"},
        "5": {"3": "dil_conv_5", "4": "sep_conv_3"},
    }
)


def operation(name, kernel, channels=4):
    dimensions = len(kernel)
    return build_operation(
        name,
        channels,
        conv_op=nn.Conv2d if dimensions == 2 else nn.Conv3d,
        norm=nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d,
        norm_kwargs={"affine": True},
        level_kernel=kernel,
    )


def cell(residual=False, skip_channels=12, width=8):
    return Cell(
        GENOTYPE,
        skip_channels=skip_channels,
        width=width,
        conv_op=nn.Conv2d,
        norm=nn.InstanceNorm2d,
        norm_kwargs={"affine": True},
        level_kernel=(3, 3),
        residual=residual,
    )


@pytest.mark.parametrize("kernel", [(3, 3), (3, 3, 3), (1, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_keep_the_shape_and_their_input(name, kernel):
    x = torch.randn(2, 4, *(7, 6, 5)[: len(kernel)])
    before = x.clone()
    assert operation(name, kernel)(x).shape == x.shape
    assert x.equal(before)


@pytest.mark.parametrize(
    ("name", "reach"), [("sep_conv_3", 2), ("sep_conv_5", 4), ("dil_conv_3", 2), ("dil_conv_5", 4)]
)
def test_receptive_fields(name, reach):
    # A separable k is applied twice: 2 (k // 2) pixels to each side; a dilated one once: 2 (k // 2) as well.
    without_norms = nn.Sequential(
        *(layer for layer in operation(name, (3, 3)) if not isinstance(layer, nn.InstanceNorm2d))
    )
    for parameter in without_norms.parameters():
        nn.init.ones_(parameter)
    x = torch.zeros(1, 4, 15, 15)
    x[:, :, 7, 7] = 1
    rows = without_norms(x).abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    assert (rows[0], rows[-1]) == (7 - reach, 7 + reach)


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "max_pool_3", "avg_pool_3"])
def test_nothing_is_mixed_along_an_axis_with_kernel_1(name):
    torch.manual_seed(0)
    module = operation(name, (1, 3, 3)).eval()
    for layer in module.modules():
        if isinstance(layer, nn.InstanceNorm3d):
            layer.forward = lambda x: x
    x = torch.randn(1, 4, 3, 8, 8)
    changed = x.clone()
    changed[:, :, 2] += 1
    assert module(x)[:, :, :2].equal(module(changed)[:, :, :2])


def test_average_pooling_does_not_count_padding():
    ones = torch.ones(1, 1, 4, 4)
    assert pool(ones, "avg", (3, 3)).equal(ones)
    assert pool(-ones, "max", (3, 3)).equal(-ones)


def test_checkpoints_know_the_layers_by_their_numbers():
    # Fixed for good: weights of trained cells stand in checkpoints under these names.
    shapes = {key: tuple(value.shape) for key, value in operation("sep_conv_5", (1, 3, 3)).state_dict().items()}
    depthwise, pointwise, norm = (4, 1, 1, 5, 5), (4, 4, 1, 1, 1), (4,)
    assert shapes == {
        "1.weight": depthwise, "2.weight": pointwise, "3.weight": norm, "3.bias": norm,
        "5.weight": depthwise, "6.weight": pointwise, "7.weight": norm, "7.bias": norm,
    }  # fmt: skip


def test_an_operation_says_where_its_convolutions_are():
    once = [("depthwise", 0, "1.weight"), ("pointwise", 0, "2.weight")]
    twice = [*once, ("depthwise", 1, "5.weight"), ("pointwise", 1, "6.weight")]
    expected = {"sep_conv_3": twice, "sep_conv_5": twice, "dil_conv_3": once, "dil_conv_5": once}
    for name in OPERATIONS:
        assert convolution_weights(name) == expected.get(name, [])


def test_weights_of_a_separable_convolution_by_hand():
    # Twice (3 * 3 depthwise + 4 pointwise) per channel, and norms of 4 + 4.
    assert sum(p.numel() for p in operation("sep_conv_3", (3, 3)).parameters()) == 2 * (4 * 9 + 4 * 4 + 8)
    assert sum(p.numel() for p in operation("dil_conv_5", (3, 3)).parameters()) == 4 * 25 + 4 * 4 + 8


@pytest.mark.parametrize(
    ("channels", "width"), [(8, 16), (32, 16), (64, 16), (68, 20), (128, 32), (130, 36), (320, 80), (512, 128)]
)
def test_widths(channels, width):
    assert cell_width(channels, minimum=16, divisor=4, multiple=4) == width


@pytest.mark.parametrize(
    ("width", "wanted", "share"),
    [(4, 4, 1), (8, 4, 2), (12, 4, 3), (16, 4, 4), (80, 4, 4), (16, 1, 1), (14, 7, 2), (2, 2, 1)],
)
def test_at_least_four_channels_are_mixed(width, wanted, share):
    assert mixed_share(width, wanted) == share


@pytest.mark.parametrize("stages", range(2, 8))
def test_cells_on_eight_channels_are_no_larger_than_their_backbone(stages):
    settings = CellSettings()
    width = cell_width(
        8, minimum=settings.minimum_width, divisor=settings.width_divisor, multiple=settings.partial_channels
    )
    assert width == 4
    inputs = {str(node): {"0": "sep_conv_5", "1": "sep_conv_5"} for node in range(2, 6)}  # the most expensive one
    network = IACUNet(
        1,
        2,
        backbone="dynamic_network_architectures.architectures.unet.PlainConvUNet",
        cells={"genotype": inputs, "widths": [width] * (stages - 1)},
        n_stages=stages,
        features_per_stage=[8] * stages,
        conv_op=nn.Conv2d,
        kernel_sizes=[3] * stages,
        strides=[1] + [2] * (stages - 1),
        n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1),
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
    )
    cells = sum(p.numel() for name, p in network.named_parameters() if name.startswith(SKIP_PREFIX))
    assert cells <= sum(p.numel() for p in network.parameters()) - cells


def test_a_cell_replaces_the_skip():
    skip, up = torch.randn(2, 12, 9, 7), torch.randn(2, 12, 9, 7)
    before = skip.clone(), up.clone()
    assert cell()(skip, up).shape == skip.shape
    assert skip.equal(before[0])
    assert up.equal(before[1])


def test_a_residual_cell_starts_as_the_plain_skip_and_learns():
    skip, up = torch.randn(2, 12, 9, 7), torch.randn(2, 12, 9, 7)
    module = cell(residual=True)
    assert module(skip, up).equal(skip)
    module(skip, up).square().sum().backward()
    assert module.output.weight.grad.any()


def test_a_node_is_the_sum_of_its_two_operations():
    module = cell()
    seen = {}
    for index, layer in enumerate(module.operations):
        layer.register_forward_hook(lambda _, given, result, index=index: seen.update({index: (given[0], result)}))
    module(torch.randn(2, 12, 9, 7), torch.randn(2, 12, 9, 7))
    # Edges in order: 0>2, 1>2, 0>3, 2>3, 1>4, 3>4, 3>5, 4>5
    assert seen[3][0].equal(seen[0][1] + seen[1][1])
    assert seen[5][0].equal(seen[2][1] + seen[3][1])
    assert seen[7][0].equal(seen[4][1] + seen[5][1])


def test_the_norm_is_the_backbones_unless_set():
    assert norm_kind("backbone", nn.InstanceNorm3d) == "instance"
    assert norm_kind("backbone", nn.BatchNorm2d) == "batch"
    assert norm_kind("backbone", None) == "instance"
    assert norm_kind("batch", nn.InstanceNorm3d) == "batch"
    with pytest.raises(DataProblem, match="LayerNorm cannot be used in cells"):
        norm_kind("backbone", nn.LayerNorm)
