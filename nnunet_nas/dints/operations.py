"""What an edge of DiNTS computes: resampling between two levels, then one operation of a cell.

Paper, sections 3.1 and 3.2: operations keep the resolution, have their activation before and their normalisation after
them, and nothing between the two convolutions of a P3D operation. Our choices: kernels are the plan's, 2-D has a
factorised and a dilated convolution, coarser levels are reached by convolutions that see every voxel, finer ones by a
1x1 convolution at the low resolution and linear upsampling without aligned corners.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from nnunet_nas.blocks import Blocks
from nnunet_nas.errors import DataProblem
from nnunet_nas.precision import autocast_dtype

# One convolution: kernel and dilation per axis (z y x, or y x).
Step = tuple[tuple[int, ...], int]
SKIP = "skip"
# Names say which axes the first and the second convolution span.
OPERATIONS: dict[int, tuple[str, ...]] = {
    2: (SKIP, "conv", "y_x", "dilated"),
    3: (SKIP, "conv", "yx_z", "zx_y", "zy_x"),
}


def operation_steps(kernel: Sequence[int]) -> dict[str, tuple[Step, ...]]:
    """The operations at a level and their convolutions; those that its kernel makes equal to another one are left out.

    Args:
        kernel: of the level in the plans, per axis.
    """
    axes = "zyx"[-len(kernel) :]
    full = tuple(kernel)
    found: dict[str, tuple[Step, ...]] = {}
    for name in OPERATIONS[len(kernel)]:
        if name == SKIP:
            found[name] = ()
        elif name == "conv":
            found[name] = ((full, 1),)
        elif name == "dilated":
            if max(full) > 1:
                found[name] = ((full, 2),)
        else:
            parts = [
                tuple(k if axis in part else 1 for axis, k in zip(axes, full, strict=True)) for part in name.split("_")
            ]
            # With a convolution of one voxel beside it, the other one is the plain convolution.
            if all(max(part) > 1 for part in parts):
                found[name] = tuple((part, 1) for part in parts)
    return found


@dataclass(frozen=True)
class Level:
    """One resolution.

    Attributes:
        features: channels.
        kernel: the plan's, per axis.
        stride: from the next finer level (or the image), per axis.
    """

    features: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def down_kernel(self) -> tuple[int, ...]:
        """The plan's kernel, widened where a strided convolution with it would miss voxels, the last ones included."""
        return tuple(max(k, 2 * s - 1) for k, s in zip(self.kernel, self.stride, strict=True))


def make_levels(
    features_per_stage: Sequence[int], kernel_sizes: Sequence[Any], strides: Sequence[Any], dimensions: int
) -> list[Level]:
    """Levels from the plans' lists; a single number stands for all axes.

    Raises:
        DataProblem: lists of different lengths, or an even kernel.
    """
    if not len(features_per_stage) == len(kernel_sizes) == len(strides):
        raise DataProblem(
            f"features_per_stage, kernel_sizes and strides must have one entry per stage, not "
            f"{len(features_per_stage)}, {len(kernel_sizes)} and {len(strides)}: correct the configuration"
        )
    levels = [
        Level(int(features), _per_axis(kernel, dimensions), _per_axis(stride, dimensions))
        for features, kernel, stride in zip(features_per_stage, kernel_sizes, strides, strict=True)
    ]
    even = [level.kernel for level in levels if any(size % 2 == 0 for size in level.kernel)]
    if even:
        raise DataProblem(f"kernel {list(even[0])} has an even size, which cannot keep the resolution: use odd ones")
    return levels


def _per_axis(value: Any, dimensions: int) -> tuple[int, ...]:
    return (value,) * dimensions if isinstance(value, int) else tuple(int(part) for part in value)


def halved(x: Tensor) -> Tensor:
    """A map in the precision in which autocast convolves: one copy that everything which reads it shares."""
    dtype = autocast_dtype(x.device) if x.dtype == torch.float32 else None
    return x if dtype is None else x.to(dtype)


class Upsample(nn.Module):
    """Linear upsampling by whole factors per axis, corners not aligned; in the precision of what it is given.

    Autocast would raise half precision to single, of which a sum of few neighbours has no need.
    """

    def __init__(self, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = tuple(float(factor) for factor in factors)
        self.mode = {2: "bilinear", 3: "trilinear"}[len(self.factors)]

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, c, *spatial)."""
        if autocast_dtype(x.device) is None:
            return self._interpolated(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._interpolated(x)

    def _interpolated(self, x: Tensor) -> Tensor:
        return interpolate(x, scale_factor=self.factors, mode=self.mode, align_corners=False)


class Resample(nn.Module):
    """From one level to a neighbouring one: convolution, normalisation, upsampling if it goes up.

    Its input is already activated, because all edges that leave a node share one activation.
    """

    def __init__(self, blocks: Blocks, levels: Sequence[Level], source: int, destination: int) -> None:
        super().__init__()
        start, end = levels[source], levels[destination]
        if destination > source:
            self.conv = blocks.conv(start.features, end.features, end.down_kernel, end.stride)
        else:
            self.conv = blocks.conv(start.features, end.features, (1,) * blocks.dimensions)
        self.norm = blocks.norm(end.features)
        self.upsample = Upsample(start.stride) if destination < source else nn.Identity()

    def forward(self, activated: Tensor) -> Tensor:
        """activated: (b, c, *spatial) of the source level."""
        return self.upsample(self.norm(self.conv(activated)))


class Convolutions(nn.Module):
    """An operation other than the skip connection, without its activation: convolutions, then a normalisation."""

    def __init__(self, blocks: Blocks, channels: int, steps: Sequence[Step]) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(blocks.conv(channels, channels, kernel, dilation=dilation) for kernel, dilation in steps)
        )
        self.norm = blocks.norm(channels)

    def forward(self, activated: Tensor) -> Tensor:
        """activated: (b, c, *spatial)."""
        return self.norm(self.convs(activated))


class Stem(nn.Module):
    """The image at one level: learned downsampling in the image's own channels, then features (our choice).

    Every voxel is seen: no convolution's kernel is too narrow for its stride.
    """

    def __init__(self, blocks: Blocks, levels: Sequence[Level], level: int, input_channels: int) -> None:
        super().__init__()
        self.shrink = nn.Sequential(
            *(
                blocks.conv(input_channels, input_channels, step.down_kernel, step.stride)
                for step in levels[:level]
                if max(step.stride) > 1
            )
        )
        own = levels[level]
        self.conv = blocks.conv(input_channels, own.features, own.down_kernel, own.stride)
        self.norm = blocks.norm(own.features)

    def forward(self, image: Tensor) -> Tensor:
        """image: (b, c, *spatial) of the patch."""
        return self.norm(self.conv(self.shrink(image)))
