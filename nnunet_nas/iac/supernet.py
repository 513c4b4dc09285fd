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
  more arithmetic, runs several times faster and saves no activation in between. Kernels of the same size are composed
  together, once per level, for all edges and operations.
- All edges that leave a node share its ReLU, and each operation of theirs is one convolution (grouped where inputs
  differ). Pooling and identity are computed once per node. What is normalised at the same time is normalised together.
- The coefficient p w of a convolution is the scale of its last norm: no product to compute, none to save. All
  coefficients are gathered once per step.
- Pruned operations are absent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from nnunet_nas.precision import autocast_dtype
from nnunet_nas.skips.unet import SKIP_PREFIX, SkipUNet

_EPSILON = 1e-5
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_POOLS = ("max_pool_3", "avg_pool_3")
_LEAVING = tuple(tuple(row for row, (source, _) in enumerate(EDGES) if source == node) for node in range(NODES))
_HE_GAIN = (2 / (1 + 1e-2**2)) ** 0.5
Rows = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Which edges a set of active operations leaves, and the order in which coefficients and kernels are gathered.

    Attributes:
        identity: per node the edges that leave it and still have the identity.
        pools: likewise a pooling.
        pool_kinds: per node the poolings that are left.
        convolutions: per node the operations that are left, with their edges.
        order: entries of the flattened (14, 7) coefficients, one past their end for those that were pruned: identities
            of all nodes, then poolings (two for each edge), then convolutions.
    """

    identity: tuple[Rows, ...]
    pools: tuple[Rows, ...]
    pool_kinds: tuple[tuple[str, ...], ...]
    convolutions: tuple[tuple[tuple[str, Rows], ...], ...]
    order: Rows

    @property
    def counts(self) -> tuple[list[int], list[int], list[int]]:
        """Gathered coefficients per node: of identities, of poolings, of convolutions."""
        convolutions = [sum(len(rows) for _, rows in node) for node in self.convolutions]
        return [len(rows) for rows in self.identity], [2 * len(rows) for rows in self.pools], convolutions


@functools.lru_cache(maxsize=256)
def layout_of(active: bytes) -> Layout:
    """The layout of active operations, `active.tobytes()` of (14, 7) bool."""
    left = np.frombuffer(active, bool).reshape(len(EDGES), len(OPERATIONS))
    columns = {name: column for column, name in enumerate(OPERATIONS)}

    def rows(node: int, *names: str) -> Rows:
        return tuple(row for row in _LEAVING[node] if any(left[row, columns[name]] for name in names))

    def entry(row: int, name: str) -> int:
        return row * len(OPERATIONS) + columns[name] if left[row, columns[name]] else left.size

    senders = range(NODES - 1)
    identity = tuple(rows(node, "identity") for node in senders)
    pools = tuple(rows(node, *_POOLS) for node in senders)
    convolutions = tuple(
        tuple((name, rows(node, name)) for name in CONVOLUTIONS if rows(node, name)) for node in senders
    )
    order = [entry(row, "identity") for node in identity for row in node]
    order += [entry(row, name) for node in pools for row in node for name in _POOLS]
    order += [entry(row, name) for node in convolutions for name, those in node for row in those]
    kinds = tuple(tuple(name for name in _POOLS if rows(node, name)) for node in senders)
    return Layout(identity, pools, kinds, convolutions, tuple(order))


class Mixture:
    """The relaxed cell of one step, computed once and read by every level.

    Attributes:
        layout: of the operations that are left.
        identity: coefficients p w of identities, node after node.
        pools: of poolings, (edges, 2).
        convolutions: of convolutions; all as `layout` orders them.
        weights: w per edge, 14 scalars.
    """

    def __init__(self, coefficients: Tensor, weights: Tensor, active: NDArray[np.bool_]) -> None:
        """`coefficients` (14, 7), `weights` (14,), `active` (14, 7)."""
        self.layout = layout_of(active.tobytes())
        # What was pruned reads the zero behind the last coefficient, and so has no gradient.
        flat = F.pad(coefficients.flatten(), (0, 1))
        gathered = flat.index_select(0, _index(self.layout.order, flat.device))
        self.identity, pools, self.convolutions = gathered.split([sum(counts) for counts in self.layout.counts])
        self.pools = pools.view(-1, len(_POOLS))
        self.weights = weights


class SuperCell(nn.Module):
    """The relaxed cell of one level."""

    eye: Tensor

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
        self.channels = width // partial
        self.register_buffer("eye", torch.eye(self.channels), persistent=False)
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
        step, weights = self._step(mixture), mixture.weights.unbind()
        for node in range(NODES - 1):
            if node >= INPUT_NODES:
                nodes.append(self._node(node, nodes, mixed[node], weights))
            self._send(node, nodes[node][:, : self.channels], mixed, step)
        nodes.append(self._node(NODES - 1, nodes, mixed[NODES - 1], weights))
        return self.output(torch.cat(nodes[INPUT_NODES:], 1)).contiguous()

    def _input(self, projection: nn.Module, x: Tensor) -> Tensor:
        """Node 0 or 1. On the CPU channels come last in memory: gradients of the kernels are several times faster."""
        projected: Tensor = projection(x)
        if x.device.type == "cpu":
            projected = projected.contiguous(memory_format=_CHANNELS_LAST[x.ndim])
        return self._normalise(projected)

    def _step(self, mixture: Mixture) -> _Step:
        """Everything that is computed of the weights, for all nodes at once."""
        layout, ones = mixture.layout, (1,) * len(self.level_kernel)
        eye = self.eye
        identities, pools, convolutions = layout.counts
        identity = (mixture.identity[:, None, None] * eye).flatten(0, 1)
        pooled = (mixture.pools[:, None, :, None] * eye[:, None]).flatten(2).flatten(0, 1)
        return _Step(
            layout=layout,
            identity=_as_autocast(identity.view(*identity.shape, *ones)).split([n * self.channels for n in identities]),
            pools=_as_autocast(pooled.view(*pooled.shape, *ones)).split([n // 2 * self.channels for n in pools]),
            scales=mixture.convolutions.repeat_interleave(self.channels).split(
                [n * self.channels for n in convolutions]
            ),
            kernels=self._kernels(layout),
        )

    def _kernels(self, layout: Layout) -> dict[tuple[int, str], Tensor]:
        """Depthwise times pointwise of all edges, by node and convolution: (edges * c/K, c/K, *kernel)."""
        wanted: dict[tuple[int, ...], dict[str, list[tuple[int, Rows]]]] = {}
        for node, operations in enumerate(layout.convolutions):
            for name, rows in operations:
                shape = CONVOLUTIONS[name]
                for repeat in range(shape.repeats):
                    same_size = wanted.setdefault(shape.kernel(self.level_kernel), {})
                    same_size.setdefault(f"{name}_{repeat}", []).append((node, rows))
        kernels: dict[tuple[int, str], Tensor] = {}
        for users in wanted.values():
            depthwise, pointwise = (
                torch.stack([weights[name] for name in users])[:, :, : self.channels]
                for weights in (self.depthwise, self.pointwise)
            )
            composed = pointwise[:, :, :, : self.channels] * depthwise.transpose(2, 3)
            chosen = [
                (node, name, [number * len(EDGES) + row for row in rows])
                for number, (name, nodes) in enumerate(users.items())
                for node, rows in nodes
            ]
            index = _index(tuple(row for _, _, rows in chosen for row in rows), composed.device)
            gathered = _as_autocast(composed.flatten(0, 1)).index_select(0, index).flatten(0, 1)
            parts = gathered.split([len(rows) * self.channels for _, _, rows in chosen])
            kernels |= {(node, name): part for (node, name, _), part in zip(chosen, parts, strict=True)}
        return kernels

    def _send(self, node: int, x: Tensor, mixed: dict[int, list[Tensor]], step: _Step) -> None:
        """Adds what a node contributes to every later one; `x` is its first c/K channels."""
        # Operations with the same edges left are summed before they are divided among the targets.
        sums: dict[Rows, Tensor] = {}
        for rows, outputs in self._outputs(node, x, step):
            sums[rows] = sums[rows] + outputs if rows in sums else outputs
        for rows, outputs in sums.items():
            for row, output in zip(rows, outputs.chunk(len(rows), 1), strict=True):
                mixed[EDGES[row][1]].append(output)

    def _outputs(self, node: int, x: Tensor, step: _Step) -> Iterator[tuple[Rows, Tensor]]:
        """Weighted outputs of the operations with the edges that have them, (b, edges * c/K, *spatial)."""
        layout = step.layout
        if layout.identity[node]:
            yield layout.identity[node], self.convolve(x, step.identity[node])
        if layout.pools[node]:
            yield layout.pools[node], self._pooled(x, layout.pool_kinds[node], step.pools[node])
        if layout.convolutions[node]:
            yield from self._convolutions(node, F.relu(x), step)

    def _pooled(self, x: Tensor, kinds: Sequence[str], kernel: Tensor) -> Tensor:
        """Poolings, normalised together and weighted per edge by a 1x1 convolution with `kernel`."""
        size = tuple(1 if length == 1 else 3 for length in self.level_kernel)
        pooled = self._normalise(_joined([pool(x, name[:3], size) for name in kinds]))
        if len(kinds) < len(_POOLS):
            start = _POOLS.index(kinds[0]) * self.channels
            kernel = kernel[:, start : start + self.channels]
        return self.convolve(pooled, kernel)

    def _convolutions(self, node: int, x: Tensor, step: _Step) -> Iterator[tuple[Rows, Tensor]]:
        """The convolutions of all edges that leave a node; `x` is the ReLU of its first c/K channels."""
        operations = step.layout.convolutions[node]
        once = {name: self._convolved(name, x, step.kernels[node, f"{name}_0"], 1) for name, _ in operations}
        twice = [(name, rows) for name, rows in operations if CONVOLUTIONS[name].repeats > 1]
        if twice:
            # The norms write new tensors, which nothing else reads.
            between = F.relu_(self._normalise(_joined([once[name] for name, _ in twice])))
            parts = between.split([len(rows) * self.channels for _, rows in twice], 1)
            for (name, rows), part in zip(twice, parts, strict=True):
                once[name] = self._convolved(name, part, step.kernels[node, f"{name}_1"], len(rows))
        outputs = self._normalise(_joined([once[name] for name, _ in operations]), step.scales[node])
        if len({rows for _, rows in operations}) == 1:
            yield operations[0][1], _summed(outputs, len(operations))
            return
        sizes = [len(rows) * self.channels for _, rows in operations]
        yield from zip((rows for _, rows in operations), outputs.split(sizes, 1), strict=True)

    def _convolved(self, name: str, x: Tensor, kernel: Tensor, groups: int) -> Tensor:
        """One application of an operation to all its edges, (b, edges * c/K, *spatial)."""
        shape = CONVOLUTIONS[name]
        return self.convolve(x, kernel, None, 1, shape.padding(self.level_kernel), shape.dilation, groups)

    def _normalise(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Norm over the present batch; `scale` per channel takes the place of the affine weight."""
        if self.norm == "batch":
            return F.batch_norm(x, None, None, scale, None, True, 0.0, _EPSILON)
        if x.device.type == "cpu":
            normalised: Tensor = _InstanceNorm.apply(x, scale)
            return normalised
        return F.instance_norm(x, weight=scale, eps=_EPSILON)

    def _node(self, node: int, nodes: list[Tensor], mixed: list[Tensor], weights: Sequence[Tensor]) -> Tensor:
        """Sum over the incoming edges, passed channels included, shuffled in K groups."""
        total = mixed[0]
        for term in mixed[1:]:
            total = total + term
        if self.partial == 1:
            return total
        passed: Tensor | None = None
        for row, (source, target) in enumerate(EDGES):
            if target == node:
                term = nodes[source][:, self.channels :] * weights[row]
                passed = term if passed is None else passed + term
        assert passed is not None
        return _shuffled(total, passed, self.partial, last=total.device.type == "cpu")


@dataclass(frozen=True)
class _Step:
    """What one level computes of its weights and of the coefficients, per node.

    Attributes:
        layout: of the operations that are left.
        identity: kernels of 1x1 convolutions, (edges * c/K, c/K, 1...).
        pools: likewise of both poolings, (edges * c/K, 2 * c/K, 1...).
        scales: of the last norms of all convolutions, per channel.
        kernels: by node and convolution.
    """

    layout: Layout
    identity: Sequence[Tensor]
    pools: Sequence[Tensor]
    scales: Sequence[Tensor]
    kernels: dict[tuple[int, str], Tensor]


def _as_autocast(x: Tensor) -> Tensor:
    """In the precision in which autocast convolves: converted once, where each convolution would do it for its part."""
    dtype = autocast_dtype(x.device) if x.dtype == torch.float32 else None
    return x if dtype is None else x.to(dtype)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _summed(x: Tensor, count: int) -> Tensor:
    """Sum of `count` groups of channels, in their own precision, which autocast would raise."""
    return x if count == 1 else x.unflatten(1, (count, -1)).sum(1, dtype=x.dtype)


@functools.lru_cache(maxsize=1024)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Rows as an index on a device, made once: a copy from the host would stop a GPU at every use."""
    return torch.tensor(rows, device=device)


@functools.lru_cache(maxsize=16)
def _mask(active: bytes, device: torch.device) -> Tensor:
    """Active operations on a device, (14, 7) bool; copied there once after every pruning, not at every step."""
    return torch.tensor(np.frombuffer(active, bool), device=device).view(len(EDGES), len(OPERATIONS))


def _shuffled(mixed: Tensor, passed: Tensor, groups: int, *, last: bool) -> Tensor:
    """Channel shuffle of (mixed, passed): channel q * K + k is channel q of group k, and group 0 is the mixed part.

    With `last` written so that tensors whose channels come last in memory stay so.
    """
    if not last:
        others = passed.unflatten(1, (groups - 1, mixed.shape[1])).transpose(1, 2)
        return torch.cat((mixed.unsqueeze(2), others), 2).flatten(1, 2)
    first, others = mixed.movedim(1, -1).unsqueeze(-1), passed.movedim(1, -1)
    others = others.unflatten(-1, (groups - 1, mixed.shape[1])).transpose(-1, -2)
    return torch.cat((first, others), -1).flatten(-2).movedim(-1, 1)


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
        # Alpha, by which it is seen that parameters were replaced, and the weights of the cells.
        self._collected: tuple[nn.Parameter, list[nn.Parameter]] | None = None
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
        return operation_probabilities(self.alpha, _mask(self.active.tobytes(), self.alpha.device))

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Alpha and beta."""
        return [self.alpha, self.beta]

    def cell_parameters(self) -> list[nn.Parameter]:
        """Weights of the cells; collected once, for a search asks at every step."""
        if self._collected is None or self._collected[0] is not self.alpha:
            cells = [parameter for name, parameter in self.named_parameters() if name.startswith(SKIP_PREFIX)]
            self._collected = (self.alpha, cells)
        return self._collected[1]

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
