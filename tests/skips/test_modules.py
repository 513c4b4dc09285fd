"""The published modules against their formulas, written out with torch's functions on the modules' own weights."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, instance_norm, interpolate, leaky_relu

from nnunet_nas.blocks import Blocks
from nnunet_nas.skips.modules import AttentionGate, NestedSkip, ResidualAttention, ResidualConvolution
from nnunet_nas.skips.network import SkipModuleUNet
from nnunet_nas.skips.unet import load_backbone

BLOCKS = Blocks(
    conv_op=nn.Conv2d,
    conv_bias=True,
    norm_op=nn.InstanceNorm2d,
    norm_op_kwargs={"eps": 1e-5, "affine": True},
    nonlin=nn.LeakyReLU,
    nonlin_kwargs={"inplace": True},
)


def features(channels=4, size=(8, 6), seed=0):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed))


def of(layer, x):
    """A convolution or a norm, by torch's function."""
    if isinstance(layer, nn.Conv2d):
        return conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)
    return instance_norm(x, weight=layer.weight, bias=layer.bias)


def drawn(module):
    """Every weight from a normal distribution: norms that start at one and zero would hide what they do."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def test_attention_scales_the_skip_by_what_both_say():
    gate, x, up = drawn(AttentionGate(BLOCKS, 4)), features(), features(seed=2)
    both = of(gate.skip[1], of(gate.skip[0], x)) + of(gate.gate[1], of(gate.gate[0], up))
    share = torch.sigmoid(of(gate.psi, leaky_relu(both)))
    assert share.shape == (2, 1, 8, 6)
    assert share.max() > 3 * share.min() > 0
    torch.testing.assert_close(gate(x, up, []), x * share)


def test_a_convolution_is_added_to_the_skip_and_starts_as_nothing():
    module, x = ResidualConvolution(BLOCKS, 4, (3, 3)), features()
    assert module(x, features(seed=2), []).equal(x)
    torch.testing.assert_close(drawn(module)(x, features(seed=2), []), x + of(module.convolution, x))


def test_a_network_with_convolutions_starts_as_its_backbone():
    kwargs = {
        **{"n_stages": 3, "features_per_stage": [4, 4, 4], "conv_op": nn.Conv2d, "kernel_sizes": [3, 3, 3]},
        **{"strides": [1, 2, 2], "n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1, "conv_bias": True},
        **{"norm_op": nn.InstanceNorm2d, "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU},
    }
    backbone = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    network = SkipModuleUNet(1, 2, backbone=backbone, skip_module="conv", **kwargs)
    network.apply(network.initialize)
    plain = PlainConvUNet(1, num_classes=2, **kwargs)
    load_backbone(network, plain.state_dict())
    image = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(network.eval()(image), plain.eval()(image))


def test_residual_attention_is_one_plus_a_mask_times_the_trunk():
    module, x = drawn(ResidualAttention(BLOCKS, 4, (3, 3))), features()
    convolved, norm, _, again, last = module.trunk
    trunk = leaky_relu(x + of(last, of(again, leaky_relu(of(norm, of(convolved, x))))))
    coarse = leaky_relu(of(module.mask[1], of(module.mask[0], avg_pool2d(x, 2))))
    mask = torch.sigmoid(of(module.gate, interpolate(coarse, size=(8, 6), mode="bilinear", align_corners=False)))
    torch.testing.assert_close(module(x, features(seed=2), []), (1 + mask) * trunk)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_nested_nodes_read_all_before_them_and_the_coarser_ones(count):
    module, x = drawn(NestedSkip(BLOCKS, 4, 6, count, (3, 3))), features()
    coarser = [features(6, (4, 3), seed) for seed in range(3, 3 + count)]
    own = [x]
    for reduce, (convolution, norm, _), coarse in zip(module.reduce, module.nodes, coarser, strict=True):
        wide = interpolate(of(reduce, coarse), size=(8, 6), mode="bilinear", align_corners=False)
        own.append(leaky_relu(of(norm, of(convolution, torch.cat((*own, wide), 1)))))
    nodes = [coarser] if count else []
    torch.testing.assert_close(module(x, features(seed=2), nodes), of(module.project, torch.cat(own, 1)))
    # What the next finer level reads.
    assert len(nodes[-1]) == count + 1
    assert nodes[-1][0] is x
