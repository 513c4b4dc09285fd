"""nnU-Net's count of feature maps, against nnU-Net's own of its own networks."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.residual import BottleneckD
from torch import nn

from nnunet_nas.blocks import conv_feature_map_size

GEOMETRY = {
    "2d": ((64, 48), [[3, 3]] * 4, [[1, 1], [2, 2], [2, 2], [2, 2]]),
    "3d": ((32, 16, 24), [[3, 3, 3]] * 4, [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]),
    "anisotropic": (
        (6, 32, 32),
        [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
        [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]],
    ),
}
NETWORKS = {
    "plain": (PlainConvUNet, {"n_conv_per_stage": [1, 2, 2, 3]}),
    "residual": (ResidualEncoderUNet, {"n_blocks_per_stage": [1, 3, 1, 2]}),
    "bottleneck": (
        ResidualEncoderUNet,
        {"n_blocks_per_stage": [1, 2, 1, 2], "block": BottleneckD, "bottleneck_channels": [4, 4, 8, 8]},
    ),
}


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_counts_as_nnunet_does(name, geometry, deep_supervision):
    patch, kernels, strides = GEOMETRY[geometry]
    network_class, depths = NETWORKS[name]
    with torch.device("meta"):
        # As in deep plans, the last stages are equally wide: their residual shortcuts only pool.
        network = network_class(
            3, n_stages=4, features_per_stage=[8, 16, 24, 24], num_classes=5, n_conv_per_stage_decoder=[2, 1, 1],
            conv_op=nn.Conv2d if len(patch) == 2 else nn.Conv3d, kernel_sizes=kernels, strides=strides,
            nonlin=nn.LeakyReLU, deep_supervision=deep_supervision, **depths,
        )  # fmt: skip
    expected = network.compute_conv_feature_map_size(patch)
    assert conv_feature_map_size(network, 3, patch, len(patch)) == expected


def test_convolutions_that_are_functions_count_and_the_network_stays_where_it_is():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.zeros(4, 1, 3, 3))

        def forward(self, x):
            return nn.functional.conv2d(x, self.kernel)

    network = Functional()
    assert conv_feature_map_size(network, 1, (10, 8), 2) == 4 * 8 * 6
    assert network.kernel.device.type == "cpu"


def test_a_shape_with_channels_is_refused():
    with pytest.raises(ValueError, match="2 numbers"):
        conv_feature_map_size(nn.Conv2d(1, 1, 1), 1, (1, 10, 8), 2)
