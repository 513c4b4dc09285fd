"""What our networks share: layers as the plans say, in nnU-Net's vocabulary, and nnU-Net's count of feature maps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD
from torch import nn
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (torch.conv2d, torch.conv3d, torch.conv_transpose2d, torch.conv_transpose3d)


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

    Counted are the convolutions that run, so that deep supervision adds its heads. The shortcut of a residual block
    counts even where it only pools: nnU-Net's own numbers, which its planner's limits are made of, have it so.

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
    outputs = _ConvolutionOutputs()
    for block in twin.modules():
        residual = isinstance(block, (BasicBlockD, BottleneckD))
        if residual and block.input_channels == block.output_channels and isinstance(block.skip, nn.Module):
            block.skip.register_forward_hook(lambda _module, _inputs, output: outputs.add(output))
    with torch.no_grad(), outputs:
        twin(torch.empty(1, input_channels, *input_size, device="meta"))
    return np.int64(outputs.elements)


class _ConvolutionOutputs(TorchFunctionMode):
    """Sums what convolutions give, of modules and of functions, in `elements`."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _CONVOLUTIONS:
            self.add(result)
        return result

    def add(self, output: torch.Tensor) -> None:
        """Counts an output."""
        self.elements += output.numel()
