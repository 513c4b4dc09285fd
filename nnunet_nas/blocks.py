"""What our networks share: layers as the plans say, in nnU-Net's vocabulary, and nnU-Net's count of feature maps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import nn


@dataclass(frozen=True)
class Blocks:
    """Makes layers as the plans say; nnU-Net's vocabulary.

    Attributes:
        conv_op: `nn.Conv2d` or `nn.Conv3d`.
        conv_bias: whether convolutions have a bias.
        norm_op: normalisation class, or None.
        norm_op_kwargs: its arguments.
        nonlin: activation class, or None.
        nonlin_kwargs: its arguments.
    """

    conv_op: type[nn.Module]
    conv_bias: bool
    norm_op: type[nn.Module] | None
    norm_op_kwargs: dict[str, Any] | None
    nonlin: type[nn.Module] | None
    nonlin_kwargs: dict[str, Any] | None

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return int(convert_conv_op_to_dim(self.conv_op))

    def conv(
        self, inputs: int, outputs: int, kernel: Sequence[int], stride: int | Sequence[int] = 1, dilation: int = 1
    ) -> nn.Module:
        """A convolution that keeps the size, or divides it by the stride."""
        padding = [dilation * (k // 2) for k in kernel]
        arguments: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "bias": self.conv_bias}
        return self.conv_op(inputs, outputs, tuple(kernel), **arguments)

    def norm(self, channels: int) -> nn.Module:
        """A normalisation."""
        return nn.Identity() if self.norm_op is None else self.norm_op(channels, **(self.norm_op_kwargs or {}))

    def activation(self, *, shared: bool) -> nn.Module:
        """An activation; never in place where something else reads its input, whatever the plans say."""
        if self.nonlin is None:
            return nn.Identity()
        kwargs = dict(self.nonlin_kwargs or {})
        if shared and "inplace" in kwargs:
            kwargs["inplace"] = False
        return self.nonlin(**kwargs)


def conv_feature_map_size(
    network: nn.Module, input_channels: int, input_size: Sequence[int], dimensions: int
) -> np.int64:
    """Elements of all convolutions' outputs, as nnU-Net counts them, for one patch.

    Args:
        network: on any device; it is copied to the `meta` device.
        input_channels: of the images.
        input_size: spatial shape of a patch.
        dimensions: 2 or 3.

    Raises:
        ValueError: `input_size` is not one number per axis.
    """
    if len(input_size) != dimensions:
        raise ValueError(f"input_size is the spatial shape of a patch, {dimensions} numbers, not {list(input_size)}")
    twin = copy.deepcopy(network).to("meta")
    sizes: list[int] = []
    for module in twin.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            module.register_forward_hook(lambda _module, _inputs, output: sizes.append(output[0].numel()))
    with torch.no_grad():
        twin(torch.empty(1, input_channels, *input_size, device="meta"))
    return np.int64(sum(sizes))
