"""The discrete cell in a skip connection: IAC-LTH, sections 3.1 and 3.4.

Two inputs pass a 1x1 convolution and norm to the cell's width; four computed nodes sum two operations each; their
concatenation passes a 1x1 convolution to the skip's channels. No ReLU in front of the projections, because the
upsampled tensor is signed (our choice). `Cell.plain` is the definition; what GPUs compute is in `joined`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_nas.iac.genotype import INPUT_NODES, NODES, Genotype
from nnunet_nas.iac.joined import groups_of, joined
from nnunet_nas.iac.operations import build_operation
from nnunet_nas.precision import waits_for_calls

COMPUTED_NODES = NODES - INPUT_NODES
_LEAST_MIXED = 4
_INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


def cell_width(skip_channels: int, *, minimum: int, divisor: int, multiple: int) -> int:
    """Channels inside a cell: max(minimum, C / divisor), rounded up to a multiple (of K).

    With divisor 4 the concatenated nodes have about as many channels as the skip, as in DARTS (our choice).
    """
    wanted = max(minimum, -(-skip_channels // divisor))
    return -(-wanted // multiple) * multiple


def mixed_share(width: int, wanted: int) -> int:
    """The K by which a cell's channels are divided in the search: at most the wanted one, and four channels are mixed.

    Of a single channel the norm leaves no more than the sign of a pointwise weight: nothing there could learn (our
    choice).
    """
    fitting = (k for k in range(wanted, 1, -1) if width % k == 0 and width // k >= _LEAST_MIXED)
    return next(fitting, 1)


class Cell(nn.Module):
    """A discrete cell that replaces a skip tensor, or is added to it."""

    project_skip: Any
    project_up: Any
    operations: Any
    output: Any

    def __init__(
        self,
        genotype: Genotype,
        *,
        skip_channels: int,
        width: int,
        conv_op: type[nn.Module],
        norm: type[nn.Module],
        norm_kwargs: dict[str, Any],
        level_kernel: Sequence[int],
        residual: bool = False,
    ) -> None:
        """Builds the cell.

        Args:
            genotype: which operations on which edges.
            skip_channels: C, of the skip, of the upsampled tensor and of the output.
            width: c, of every node.
            conv_op: `torch.nn.Conv2d` or `Conv3d`.
            norm: norm class of projections and operations.
            norm_kwargs: its arguments.
            level_kernel: the U-Net's kernel at this level, per axis.
            residual: the skip is added to the output, whose convolution starts at zero (our addition): the network
                starts exactly where its backbone ended.
        """
        super().__init__()
        self.genotype, self.residual = genotype, residual
        self.groups = groups_of(genotype)
        affine = norm_kwargs.get("affine", False) and not norm_kwargs.get("track_running_stats", False)
        self.joins = issubclass(norm, _INSTANCE_NORMS) and affine
        self.width, self.skip_channels = width, skip_channels
        self.project_skip = nn.Sequential(conv_op(skip_channels, width, 1, bias=False), norm(width, **norm_kwargs))
        self.project_up = nn.Sequential(conv_op(skip_channels, width, 1, bias=False), norm(width, **norm_kwargs))
        self.operations = nn.ModuleList(
            build_operation(
                edge.operation, width, conv_op=conv_op, norm=norm, norm_kwargs=norm_kwargs, level_kernel=level_kernel
            )
            for edge in genotype.edges
        )
        self.output = conv_op(COMPUTED_NODES * width, skip_channels, 1, bias=True)
        if residual:
            self.zero_output()

    def forward(self, skip: Tensor, up: Tensor) -> Tensor:
        """What the decoder reads in place of the skip.

        Args:
            skip: features of the encoder, (b, C, *spatial).
            up: upsampled features of the decoder, (b, C, *spatial).

        Returns:
            (b, C, *spatial).
        """
        if self.joins and waits_for_calls(skip.device):
            return joined(self, skip, up)
        return self.plain(skip, up)

    def plain(self, skip: Tensor, up: Tensor) -> Tensor:
        """`forward`, one operation after the other."""
        nodes = [self.project_skip(skip), self.project_up(up)]
        operations = iter(self.operations)
        for node in range(INPUT_NODES, NODES):
            first, second = self.genotype.inputs_of(node)
            nodes.append(next(operations)(nodes[first.source]) + next(operations)(nodes[second.source]))
        output: Tensor = self.output(torch.cat(nodes[INPUT_NODES:], 1))
        return output + skip if self.residual else output

    def zero_output(self) -> None:
        """Sets the output convolution to zero."""
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
