"""The relaxed cell written the plain way: one module per edge and operation, nothing shared, everything computed.

What `nnunet_nas.iac.supernet.SuperCell` is checked against, and measured against in `examples/benchmarks/iac.py`: the
same function of the same weights, written from the description of the method (IAC-LTH, sections 3.1 and 3.2) edge by
edge. Whoever wants to understand the relaxed cell reads this file first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_nas.iac.genotype import EDGES, NODES, OPERATIONS
from nnunet_nas.iac.supernet import SuperCell

_REPEATS = {"sep_conv_3": 2, "sep_conv_5": 2, "dil_conv_3": 1, "dil_conv_5": 1}


class Convolution(nn.Module):
    """(ReLU, depthwise, pointwise, norm), once or twice."""

    def __init__(self, cell: SuperCell, name: str, edge: int, channels: int) -> None:
        super().__init__()
        self.norm, self.dilation = cell.norm, 2 if name.startswith("dil") else 1
        self.depthwise, self.pointwise = nn.ParameterList(), nn.ParameterList()
        for repeat in range(_REPEATS[name]):
            depthwise = cell.depthwise[f"{name}_{repeat}"][edge, :channels]
            pointwise = cell.pointwise[f"{name}_{repeat}"][edge, :channels, :channels]
            self.depthwise.append(nn.Parameter(depthwise.detach().clone()))
            self.pointwise.append(nn.Parameter(pointwise.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c/K, *spatial) to the same shape."""
        convolve = F.conv2d if x.ndim == 4 else F.conv3d
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            padding = [self.dilation * (length // 2) for length in depthwise.shape[2:]]
            x = convolve(F.relu(x), depthwise, None, 1, padding, self.dilation, x.shape[1])
            x = normalise(convolve(x, pointwise), self.norm)
        return x


class Pooling(nn.Module):
    """Max or average over three neighbours, then norm."""

    def __init__(self, cell: SuperCell, name: str) -> None:
        super().__init__()
        self.norm, self.name = cell.norm, name
        self.size = [1 if length == 1 else 3 for length in cell.level_kernel]

    def forward(self, x: Tensor) -> Tensor:
        """(b, c/K, *spatial) to the same shape."""
        padding = [length // 2 for length in self.size]
        if self.name == "max_pool_3":
            pooled = (F.max_pool2d if x.ndim == 4 else F.max_pool3d)(x, self.size, 1, padding)
        else:
            average = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
            pooled = average(x, self.size, 1, padding, count_include_pad=False)
        return normalise(pooled, self.norm)


class MixedOperation(nn.Module):
    """All operations of one edge on the first c/K channels; the others pass; concatenation and channel shuffle."""

    def __init__(self, cell: SuperCell, edge: int) -> None:
        super().__init__()
        self.groups, self.channels = cell.partial, cell.width // cell.partial
        self.operations = nn.ModuleList()
        for name in OPERATIONS:
            if name == "identity":
                self.operations.append(nn.Identity())
            elif name in _REPEATS:
                self.operations.append(Convolution(cell, name, edge, self.channels))
            else:
                self.operations.append(Pooling(cell, name))

    def forward(self, x: Tensor, probabilities: Tensor, active: Sequence[bool]) -> Tensor:
        """(b, c, *spatial) to the same shape; `probabilities` and `active` are the edge's, (7,)."""
        part = x[:, : self.channels]
        mixed = sum(
            p * operation(part)
            for p, operation, left in zip(probabilities, self.operations, active, strict=True)
            if left
        )
        return shuffle(torch.cat((mixed, x[:, self.channels :]), 1), self.groups)


class PlainCell(nn.Module):
    """The relaxed cell with the weights of a `SuperCell`."""

    def __init__(self, cell: SuperCell) -> None:
        super().__init__()
        self.norm = cell.norm
        self.weights = nn.ParameterDict(
            {
                "skip": cell.project_skip.weight.detach().clone(),
                "up": cell.project_up.weight.detach().clone(),
                "output": cell.output.weight.detach().clone(),
                "bias": cell.output.bias.detach().clone(),
            }
        )
        self.edges = nn.ModuleList(MixedOperation(cell, edge) for edge in range(len(EDGES)))

    def forward(self, skip: Tensor, up: Tensor, probabilities: Tensor, weights: Tensor, active: object) -> Tensor:
        """Output of the cell; `probabilities` (14, 7), edge `weights` (14,), `active` (14, 7)."""
        convolve = F.conv2d if skip.ndim == 4 else F.conv3d
        nodes = [normalise(convolve(x, self.weights[name]), self.norm) for x, name in ((skip, "skip"), (up, "up"))]
        for node in range(2, NODES):
            incoming = [row for row, (_, target) in enumerate(EDGES) if target == node]
            nodes.append(
                sum(
                    weights[row] * self.edges[row](nodes[EDGES[row][0]], probabilities[row], active[row])
                    for row in incoming
                )
            )
        return convolve(torch.cat(nodes[2:], 1), self.weights["output"], self.weights["bias"])


def normalise(x: Tensor, kind: str) -> Tensor:
    """Norm over the batch in hand, without affine parameters."""
    return F.instance_norm(x) if kind == "instance" else F.batch_norm(x, None, None, training=True)


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel shuffle: groups x (c / groups) transposed."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
