"""The candidate operations as modules of the discrete cell: ReLU, convolution, norm, all with stride 1.

Paper: IAC-LTH, section 3.2, lists them; their inside follows PC-DARTS and DARTS. A separable convolution is applied
twice, a dilated one once with dilation 2. Along axes in which the U-Net's own kernel at that level is 1 (anisotropic
3-D plans) every kernel is 1 (our choice).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_nas.errors import DataProblem

_NORMS: dict[str, dict[int, type[nn.Module]]] = {
    "instance": {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
    "batch": {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
}


@dataclass(frozen=True)
class ConvolutionShape:
    """The convolutions of an operation.

    Attributes:
        size: kernel size k.
        dilation: 1 or 2.
        repeats: how often the layers `LAYERS` are applied.
    """

    size: int
    dilation: int
    repeats: int

    def kernel(self, level_kernel: Sequence[int]) -> tuple[int, ...]:
        """Kernel size per axis, 1 where the level's own kernel is 1."""
        return tuple(1 if length == 1 else self.size for length in level_kernel)

    def padding(self, level_kernel: Sequence[int]) -> tuple[int, ...]:
        """Zeros per side and axis that keep the spatial shape."""
        return tuple(self.dilation * (length // 2) for length in self.kernel(level_kernel))


CONVOLUTIONS = {
    "sep_conv_3": ConvolutionShape(size=3, dilation=1, repeats=2),
    "sep_conv_5": ConvolutionShape(size=5, dilation=1, repeats=2),
    "dil_conv_3": ConvolutionShape(size=3, dilation=2, repeats=1),
    "dil_conv_5": ConvolutionShape(size=5, dilation=2, repeats=1),
}

# What one application is made of, in this order. Checkpoints know the layers by their numbers, so it is for good.
LAYERS = ("relu", "depthwise", "pointwise", "norm")


def convolution_weights(name: str) -> list[tuple[str, int, str]]:
    """Weights of an operation's convolutions, none for pools and identity.

    Returns:
        kind (`depthwise` or `pointwise`), number of the application, and key in the state of `build_operation`.
    """
    repeats = CONVOLUTIONS[name].repeats if name in CONVOLUTIONS else 0
    return [
        (kind, repeat, f"{len(LAYERS) * repeat + LAYERS.index(kind)}.weight")
        for repeat in range(repeats)
        for kind in ("depthwise", "pointwise")
    ]


def norm_kind(name: str, norm_op: type[nn.Module] | None) -> str:
    """`instance` or `batch`: what the setting `norm` means for a backbone.

    Args:
        name: `backbone`, `instance` or `batch`.
        norm_op: the backbone's norm class; none at all counts as instance norm.

    Raises:
        DataProblem: unknown name, or a backbone's norm that is neither.
    """
    if name in _NORMS:
        return name
    if name != "backbone":
        raise DataProblem(f"norm={name}: choose one of backbone, {', '.join(_NORMS)}")
    if norm_op is None:
        return "instance"
    for kind, classes in _NORMS.items():
        if issubclass(norm_op, tuple(classes.values())):
            return kind
    raise DataProblem(f"the backbone's {norm_op.__name__} cannot be used in cells: set norm=instance or norm=batch")


def norm_class(kind: str, dimensions: int) -> type[nn.Module]:
    """torch's class of a kind of norm in 2-D or 3-D."""
    return _NORMS[kind][dimensions]


class Pool(nn.Module):
    """Max or average pooling over 3 neighbours per axis with stride 1; padding never counts."""

    def __init__(self, kind: str, level_kernel: Sequence[int]) -> None:
        """`kind` is `max` or `avg`; axes with a level kernel of 1 are not pooled over."""
        super().__init__()
        self.kind = kind
        self.size = tuple(1 if length == 1 else 3 for length in level_kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, *spatial) to the same shape."""
        return pool(x, self.kind, self.size)


def pool(x: Tensor, kind: str, size: Sequence[int]) -> Tensor:
    """Stride-1 pooling that keeps the spatial shape and does not count padding."""
    padding = [length // 2 for length in size]
    if kind == "max":
        return (F.max_pool2d if len(size) == 2 else F.max_pool3d)(x, list(size), 1, padding)
    average = F.avg_pool2d if len(size) == 2 else F.avg_pool3d
    return average(x, list(size), 1, padding, count_include_pad=False)


def build_operation(
    name: str,
    channels: int,
    *,
    conv_op: type[nn.Module],
    norm: type[nn.Module],
    norm_kwargs: dict[str, Any],
    level_kernel: Sequence[int],
) -> nn.Module:
    """An operation of the discrete cell, (b, channels, *spatial) to the same shape.

    Args:
        name: one of `genotype.OPERATIONS`.
        channels: of input and output.
        conv_op: `torch.nn.Conv2d` or `Conv3d`.
        norm: class of the norm that follows each convolution; pools and identity have none.
        norm_kwargs: its arguments.
        level_kernel: the U-Net's kernel at this level, per axis.
    """
    if name == "identity":
        return nn.Identity()
    if name in ("max_pool_3", "avg_pool_3"):
        return Pool(name[:3], level_kernel)
    shape = CONVOLUTIONS[name]
    kernel, padding = shape.kernel(level_kernel), shape.padding(level_kernel)
    layers: list[nn.Module] = []
    for _ in range(shape.repeats):
        made = {
            "relu": nn.ReLU(),  # not in place: other edges read the same node
            "depthwise": conv_op(channels, channels, kernel, 1, padding, shape.dilation, channels, bias=False),
            "pointwise": conv_op(channels, channels, 1, bias=False),
            "norm": norm(channels, **norm_kwargs),
        }
        layers += [made[layer] for layer in LAYERS]
    return nn.Sequential(*layers)
