"""The supernet of the search: every candidate operation on every edge, relaxed and shared by all levels.

Paper: IAC-LTH, sections 3.2 and 3.3, after PC-DARTS. The idea, with one module per edge and operation:

    mixed = sum(p * operation(x[:, :c // K]) for p, operation in zip(probabilities[edge], operations[edge]))
    edge_output = shuffle(cat(mixed, x[:, c // K:]))
    node = sum(w * edge_output for w, edge_output in zip(weights, incoming_edges))

The first c/K channels of a node go through all operations, weighted by p (softmax of alpha); the others pass; a node is
the sum over its incoming edges, weighted by w (of beta). `tests/plain_pc_darts.py` writes this out, and is the measure
of what stands here: read it first.

Weights are stored at full width c and sliced to c/K in the search (our choice): they can be put back to their initial
values for the discrete cell. Only 1/K of a depthwise and 1/K^2 of a pointwise weight takes part in the search; in
narrow cells K is smaller, see `mixed_share`.

What makes a step cheap here, with the same result:
- A depthwise and the following pointwise convolution are linear: their product is one small dense kernel, which costs
  more arithmetic, runs several times faster and saves no activation in between.
- All edges that leave a node share its ReLU, and each operation of theirs is one convolution (grouped where inputs
  differ). Pooling and identity are computed once per node.
- The coefficient p w of a convolution is the scale of its last norm: no product to compute, none to save.
- Pruned operations are absent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from nnunet_nas.iac.cell import COMPUTED_NODES, cell_width, mixed_share
from nnunet_nas.iac.genotype import EDGES, INPUT_NODES, NODES, OPERATIONS
from nnunet_nas.iac.operations import CONVOLUTIONS, norm_kind, pool
from nnunet_nas.iac.relaxation import edge_weights, operation_probabilities
from nnunet_nas.iac.settings import CellSettings
from nnunet_nas.skips.unet import SKIP_PREFIX, SkipUNet

_EPSILON = 1e-5
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_SHARED = ("identity", "max_pool_3", "avg_pool_3")
_LEAVING = tuple(tuple(row for row, (source, _) in enumerate(EDGES) if source == node) for node in range(NODES))
_HE_GAIN = (2 / (1 + 1e-2**2)) ** 0.5


class Mixture:
    """The relaxed cell of one step, computed once and read by every level.

    Attributes:
        coefficients: p w, (14, 7).
        weights: w, (14,).
        active: operations that are left, per edge.
    """

    def __init__(self, coefficients: Tensor, weights: Tensor, active: NDArray[np.bool_]) -> None:
        self.coefficients, self.weights, self.active = coefficients, weights, active

    def rows(self, node: int, operation: str) -> tuple[int, ...]:
        """Edges that leave a node and still have an operation."""
        column = OPERATIONS.index(operation)
        return tuple(row for row in _LEAVING[node] if self.active[row, column])

    def of(self, rows: Sequence[int], operation: str) -> Tensor:
        """Coefficients of an operation on some edges, (len(rows),)."""
        column = self.coefficients[:, OPERATIONS.index(operation)]
        return column.index_select(0, _index(tuple(rows), column.device))


class SuperCell(nn.Module):
    """The relaxed cell of one level."""

    def __init__(
        self,
        *,
        skip_channels: int,
        width: int,
        partial: int,
        conv_op: type[nn.Module],
        norm: str,
        kernel: Sequence[int],
    ) -> None:
        """Builds the weights of all candidates.

        Args:
            skip_channels: C, channels of the skip and of the upsampled tensor.
            width: c, channels of a node, a multiple of K.
            partial: K.
            conv_op: `torch.nn.Conv2d` or `Conv3d`.
            norm: `instance` or `batch`; always from the present batch, without affine parameters.
            kernel: the U-Net's kernel at this level, per axis.
        """
        super().__init__()
        self.width, self.partial, self.norm, self.level_kernel = width, partial, norm, tuple(kernel)
        self.convolve = F.conv2d if len(self.level_kernel) == 2 else F.conv3d
        self.project_skip = conv_op(skip_channels, width, 1, bias=False)
        self.project_up = conv_op(skip_channels, width, 1, bias=False)
        self.depthwise, self.pointwise = nn.ParameterDict(), nn.ParameterDict()
        ones = (1,) * len(self.level_kernel)
        for name, shape in CONVOLUTIONS.items():
            for repeat in range(shape.repeats):
                kernel_size = shape.kernel(self.level_kernel)
                self.depthwise[f"{name}_{repeat}"] = nn.Parameter(torch.empty(len(EDGES), width, 1, *kernel_size))
                self.pointwise[f"{name}_{repeat}"] = nn.Parameter(torch.empty(len(EDGES), width, width, *ones))
        self.output = conv_op(COMPUTED_NODES * width, skip_channels, 1, bias=True)
        self.reset_candidates()

    def reset_candidates(self) -> None:
        """He initialisation of every edge's weights on its own, as in the discrete cell."""
        for weights in (*self.depthwise.values(), *self.pointwise.values()):
            nn.init.normal_(weights, std=_HE_GAIN / weights[0, 0].numel() ** 0.5)

    def forward(self, skip: Tensor, up: Tensor, mixture: Mixture) -> Tensor:
        """What the decoder reads in place of the skip, (b, C, *spatial); arguments as in `Cell.forward`."""
        nodes = [self._input(self.project_skip, skip), self._input(self.project_up, up)]
        mixed: dict[int, list[Tensor]] = {node: [] for node in range(INPUT_NODES, NODES)}
        for node in range(NODES - 1):
            if node >= INPUT_NODES:
                nodes.append(self._node(node, nodes, mixed[node], mixture))
            self._send(node, nodes[node][:, : self.width // self.partial], mixed, mixture)
        nodes.append(self._node(NODES - 1, nodes, mixed[NODES - 1], mixture))
        return self.output(torch.cat(nodes[INPUT_NODES:], 1)).contiguous()

    def _input(self, projection: nn.Module, x: Tensor) -> Tensor:
        """Node 0 or 1. On the CPU channels come last in memory: gradients of the kernels are several times faster."""
        projected: Tensor = projection(x)
        if x.device.type == "cpu":
            projected = projected.contiguous(memory_format=_CHANNELS_LAST[x.ndim])
        return self._normalise(projected)

    def _send(self, node: int, x: Tensor, mixed: dict[int, list[Tensor]], mixture: Mixture) -> None:
        """Adds what a node contributes to every later one; `x` is its first c/K channels."""
        # Operations with the same edges left are summed before they are divided among the targets.
        sums: dict[tuple[int, ...], Tensor] = {}
        for rows, outputs in self._outputs(node, x, mixture):
            sums[rows] = sums[rows] + outputs if rows in sums else outputs
        for rows, outputs in sums.items():
            for row, output in zip(rows, outputs.chunk(len(rows), 1), strict=True):
                mixed[EDGES[row][1]].append(output)

    def _outputs(self, node: int, x: Tensor, mixture: Mixture) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Per operation the edges that still have it and its weighted outputs, (b, edges * c/K, *spatial)."""
        for name in _SHARED:
            rows = mixture.rows(node, name)
            if rows:
                yield rows, self._shared(name, x, mixture.of(rows, name))
        rectified: Tensor | None = None
        for name in CONVOLUTIONS:
            rows = mixture.rows(node, name)
            if rows:
                rectified = F.relu(x) if rectified is None else rectified
                yield rows, self._convolution(name, rows, rectified, mixture.of(rows, name))

    def _shared(self, name: str, x: Tensor, scale: Tensor) -> Tensor:
        """Identity or pooling, computed once and weighted per edge by a 1x1 convolution."""
        if name != "identity":
            size = tuple(1 if length == 1 else 3 for length in self.level_kernel)
            x = self._normalise(pool(x, name[:3], size))
        kernel = (scale[:, None, None] * torch.eye(x.shape[1], device=x.device, dtype=x.dtype)).flatten(0, 1)
        return self.convolve(x, kernel.view(*kernel.shape, *(1,) * len(self.level_kernel)))

    def _convolution(self, name: str, rows: Sequence[int], x: Tensor, scale: Tensor) -> Tensor:
        """One operation of all edges that leave a node.

        Args:
            name: the operation.
            rows: the edges.
            x: ReLU of the node's first c/K channels, (b, c/K, *spatial).
            scale: coefficient per edge.

        Returns:
            the operation's outputs times their coefficients, (b, len(rows) * c/K, *spatial).
        """
        shape = CONVOLUTIONS[name]
        groups = 1
        for repeat in range(shape.repeats):
            kernel = self._kernel(f"{name}_{repeat}", rows)
            padding = shape.padding(self.level_kernel)
            y = self.convolve(x, kernel, None, 1, padding, shape.dilation, groups)
            last = repeat == shape.repeats - 1
            y = self._normalise(y, scale.repeat_interleave(y.shape[1] // len(rows)) if last else None)
            x, groups = y if last else F.relu_(y), len(rows)
        return x

    def _kernel(self, name: str, rows: Sequence[int]) -> Tensor:
        """Depthwise times pointwise, sliced to the channels that take part: (len(rows) * c/K, c/K, *kernel)."""
        channels = self.width // self.partial
        index = _index(tuple(rows), self.depthwise[name].device)
        depthwise = self.depthwise[name][:, :channels].index_select(0, index).transpose(1, 2)
        pointwise = self.pointwise[name][:, :channels, :channels].index_select(0, index)
        return (pointwise * depthwise).flatten(0, 1)

    def _normalise(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Norm over the present batch; `scale` per channel takes the place of the affine weight."""
        if self.norm == "batch":
            return F.batch_norm(x, None, None, scale, None, True, 0.0, _EPSILON)
        if x.device.type == "cpu":
            normalised: Tensor = _InstanceNorm.apply(x, scale)
            return normalised
        return F.instance_norm(x, weight=scale, eps=_EPSILON)

    def _node(self, node: int, nodes: list[Tensor], mixed: list[Tensor], mixture: Mixture) -> Tensor:
        """Sum over the incoming edges, passed channels included, shuffled in K groups."""
        total = mixed[0]
        for term in mixed[1:]:
            total = total + term
        if self.partial == 1:
            return total
        channels = self.width // self.partial
        passed: Tensor | None = None
        for row, (source, target) in enumerate(EDGES):
            if target == node:
                term = nodes[source][:, channels:] * mixture.weights[row]
                passed = term if passed is None else passed + term
        assert passed is not None
        return _shuffled(total, passed, self.partial)


@functools.lru_cache(maxsize=1024)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Rows as an index on a device, made once: a copy from the host would stop a GPU at every use."""
    return torch.tensor(rows, device=device)


def _shuffled(mixed: Tensor, passed: Tensor, groups: int) -> Tensor:
    """Channel shuffle of (mixed, passed): channel q * K + k is channel q of group k, and group 0 is the mixed part.

    Written with channels last, so that tensors which lie so in memory stay so.
    """
    first, others = mixed.movedim(1, -1).unsqueeze(-1), passed.movedim(1, -1)
    others = others.unflatten(-1, (groups - 1, mixed.shape[1])).transpose(-1, -2)
    shuffled = torch.cat((first, others), -1).flatten(-2).movedim(-1, 1)
    return shuffled if mixed.device.type == "cpu" else shuffled.contiguous()


class _InstanceNorm(torch.autograd.Function):
    """Instance norm that leaves channels last in memory, for the CPU.

    Forward is torch's group norm with one channel per group; its own backward takes three to four times as long as
    these sums where channels are last.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None) -> Tensor:
        """`x` (b, c, *spatial), `scale` (c,) or none."""
        batch, channels = x.shape[:2]
        voxels = x.shape[2:].numel()
        y, mean, rstd = torch.native_group_norm(x, scale, None, batch, channels, voxels, channels, _EPSILON)
        ctx.save_for_backward(x, scale, mean, rstd)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of y = s n(x), n(x) = (x - mean) rstd: s rstd (g - avg(g) - n(x) avg(g n(x))) and sum(g n(x))."""
        x, scale, mean, rstd = ctx.saved_tensors
        axes = tuple(range(2, x.ndim))
        mean, rstd = (statistic.view(*x.shape[:2], *(1,) * len(axes)) for statistic in (mean, rstd))
        total = gradient.sum(axes, keepdim=True)
        projected = ((gradient * x).sum(axes, keepdim=True) - mean * total) * rstd
        factor = rstd if scale is None else rstd * scale.view(-1, *(1,) * len(axes))
        slope = -factor * rstd * projected / x.shape[2:].numel()
        offset = -factor * total / x.shape[2:].numel() - slope * mean
        result = torch.addcmul(offset, x, slope).addcmul_(gradient, factor)
        return result, None if scale is None else projected.sum((0, *axes))


class IACSupernet(SkipUNet):
    """A frozen backbone with the relaxed cell in every skip connection.

    Attributes:
        alpha: architecture parameters of the operations, (14, 7).
        beta: architecture parameters of the edges, (14,).
        active: operations that were not pruned, (14, 7).
    """

    def __init__(self, backbone: Any, settings: CellSettings) -> None:
        encoder = backbone.encoder
        norm = norm_kind(settings.norm, encoder.norm_op)

        def cell(level: int, channels: int, kernel: Sequence[int]) -> SuperCell:
            width = cell_width(
                channels,
                minimum=settings.minimum_width,
                divisor=settings.width_divisor,
                multiple=settings.partial_channels,
            )
            return SuperCell(
                skip_channels=channels,
                width=width,
                partial=mixed_share(width, settings.partial_channels),
                conv_op=encoder.conv_op,
                norm=norm,
                kernel=kernel,
            )

        super().__init__(backbone, cell)
        self.nonlinearity = settings.edge_nonlinearity
        self.alpha = nn.Parameter(torch.zeros(len(EDGES), len(OPERATIONS)))
        self.beta = nn.Parameter(torch.zeros(len(EDGES)))
        self.active = np.ones((len(EDGES), len(OPERATIONS)), bool)
        self.freeze_backbone()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of images (b, c, *spatial); no gradient is kept for the encoder."""
        with torch.no_grad():
            skips = self.encoder(x)
        return self.decoder(skips, self.mixture())

    def mixture(self) -> Mixture:
        """Coefficients of the present alpha and beta."""
        weights = edge_weights(self.beta, self.nonlinearity)
        return Mixture(self.probabilities() * weights[:, None], weights, self.active)

    def probabilities(self) -> Tensor:
        """Of the operations, (14, 7)."""
        return operation_probabilities(self.alpha, torch.from_numpy(self.active).to(self.alpha.device))

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Alpha and beta."""
        return [self.alpha, self.beta]

    def cell_parameters(self) -> list[nn.Parameter]:
        """Weights of the cells."""
        return [parameter for name, parameter in self.named_parameters() if name.startswith(SKIP_PREFIX)]

    def cell_state(self) -> dict[str, Tensor]:
        """State of the cells, without backbone, alpha and beta."""
        return {key: value for key, value in self.state_dict().items() if key.startswith(SKIP_PREFIX)}

    @torch.no_grad()
    def continuous_cell(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Operation probabilities (14, 7) and edge weights (14,), computed in float64."""
        alpha, beta = self.alpha.detach().cpu().double(), self.beta.detach().cpu().double()
        probabilities = operation_probabilities(alpha, torch.from_numpy(self.active))
        return probabilities.numpy(), edge_weights(beta, self.nonlinearity).numpy()

    def widths(self) -> list[int]:
        """Cell widths per level, highest resolution first, as plans list them."""
        return [cell.width for cell in self.decoder.skip_modules][::-1]
