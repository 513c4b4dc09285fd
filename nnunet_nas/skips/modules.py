"""Modules for skip connections that the papers on IAC compare with, and a plain convolution, for 2-D and 3-D.

Each takes the encoder's features of its level and the decoder's upsampled ones, both (b, C, *spatial), and gives what
the decoder reads in place of the former. Channels, norms and activations are the backbone's (our choice, so that a
frozen backbone's decoder can read them).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, avg_pool3d, interpolate

from nnunet_nas.blocks import Blocks

_MODES = {2: "bilinear", 3: "trilinear"}


class ResidualConvolution(nn.Module):
    """x + conv(x), from zero weights: the plainest thing to put there, which every other has to beat (our choice)."""

    def __init__(self, blocks: Blocks, channels: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.convolution = blocks.conv(channels, channels, kernel)
        self.zero_output()

    def forward(self, x: Tensor, up: Tensor, nodes: list[list[Tensor]]) -> Tensor:
        """x: (b, C, *spatial); the others are not used."""
        del up, nodes
        convolved: Tensor = self.convolution(x)
        return x + convolved

    def zero_output(self) -> None:
        """The network starts as the one without it."""
        for parameter in self.convolution.parameters():
            nn.init.zeros_(parameter)


class AttentionGate(nn.Module):
    """Additive attention: the skip times sigmoid(psi(act(W_x x + W_g g))) (Oktay et al., Attention U-Net, 2018)."""

    def __init__(self, blocks: Blocks, channels: int) -> None:
        super().__init__()
        inner, point = max(1, channels // 2), (1,) * blocks.dimensions
        self.skip = nn.Sequential(blocks.conv(channels, inner, point), blocks.norm(inner))
        self.gate = nn.Sequential(blocks.conv(channels, inner, point), blocks.norm(inner))
        self.activation = blocks.activation(shared=True)
        self.psi = blocks.conv_op(inner, 1, 1, bias=True)

    def forward(self, x: Tensor, up: Tensor, nodes: list[list[Tensor]]) -> Tensor:
        """x, up: (b, C, *spatial); nodes is not used."""
        del nodes
        return x * torch.sigmoid(self.psi(self.activation(self.skip(x) + self.gate(up))))


class ResidualAttention(nn.Module):
    """(1 + M(x)) T(x): residual trunk T, soft mask M (Wang et al., Residual Attention Network, 2017, Eq. 3).

    The mask sees a neighbourhood twice as wide: it is computed at half the resolution and brought back.
    """

    def __init__(self, blocks: Blocks, channels: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.pool = tuple(2 if size > 1 else 1 for size in kernel)
        self.trunk = nn.Sequential(
            blocks.conv(channels, channels, kernel),
            blocks.norm(channels),
            blocks.activation(shared=False),
            blocks.conv(channels, channels, kernel),
            blocks.norm(channels),
        )
        self.activation = blocks.activation(shared=True)
        self.mask = nn.Sequential(
            blocks.conv(channels, channels, kernel), blocks.norm(channels), blocks.activation(shared=False)
        )
        self.gate = blocks.conv_op(channels, channels, 1, bias=True)

    def forward(self, x: Tensor, up: Tensor, nodes: list[list[Tensor]]) -> Tensor:
        """x: (b, C, *spatial); the others are not used."""
        del up, nodes
        trunk = self.activation(x + self.trunk(x))
        pool = tuple(min(step, size) for step, size in zip(self.pool, x.shape[2:], strict=True))
        coarse = (avg_pool3d if len(pool) == 3 else avg_pool2d)(x, pool)
        mask = interpolate(self.mask(coarse), size=x.shape[2:], mode=_MODES[len(pool)], align_corners=False)
        return (1 + torch.sigmoid(self.gate(mask))) * trunk


class NestedSkip(nn.Module):
    """Dense nodes between encoder and decoder (Zhou et al., UNet++, 2018), projected to the skip's channels.

    X^j = H([X^0, ..., X^(j-1), up(node j-1 of the next coarser level)]), with X^0 the encoder's features.
    """

    def __init__(self, blocks: Blocks, channels: int, below: int, count: int, kernel: Sequence[int]) -> None:
        """`below`: channels of the next coarser level; `count`: nodes there, 0 at the coarsest skip."""
        super().__init__()
        point = (1,) * blocks.dimensions
        self.mode = _MODES[blocks.dimensions]
        self.reduce = nn.ModuleList(blocks.conv(below, channels, point) for _ in range(count))
        self.nodes = nn.ModuleList(
            nn.Sequential(
                blocks.conv((position + 2) * channels, channels, kernel),
                blocks.norm(channels),
                blocks.activation(shared=False),
            )
            for position in range(count)
        )
        self.project = blocks.conv((count + 1) * channels, channels, point)

    def forward(self, x: Tensor, up: Tensor, nodes: list[list[Tensor]]) -> Tensor:
        """x: (b, C, *spatial); nodes: of the coarser levels so far, to which this level's are appended."""
        del up
        own = [x]
        for reduce, node, coarse in zip(self.reduce, self.nodes, nodes[-1] if nodes else [], strict=True):
            wide = interpolate(reduce(coarse), size=x.shape[2:], mode=self.mode, align_corners=False)
            own.append(node(torch.cat((*own, wide), 1)))
        nodes.append(own)
        projected: Tensor = self.project(torch.cat(own, 1))
        return projected
