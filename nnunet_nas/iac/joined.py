"""The discrete cell in few calls, for devices that wait for calls more than for arithmetic: `Cell.plain`'s numbers.

- Edges with the same convolution whose sources are known at the same time are computed as one: grouped convolutions and
  a common instance norm over the edges' channels side by side.
- Weights of all convolutions of a cell are converted for autocast together, and so are affine parts of its norms
  repeated over the batch, as an instance norm reads them.

Weights stay where checkpoints have them, in the modules of every edge. (Our choice throughout.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv3d, relu

from nnunet_nas.iac.genotype import INPUT_NODES, NODES, Genotype
from nnunet_nas.iac.operations import CONVOLUTIONS, LAYERS
from nnunet_nas.precision import autocast_dtype

if TYPE_CHECKING:
    from nnunet_nas.iac.cell import Cell

Affine = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Group:
    """Edges that are computed together.

    Attributes:
        operation: of all of them.
        edges: their positions in the genotype.
    """

    operation: str
    edges: tuple[int, ...]

    @property
    def repeats(self) -> int:
        """How often its layers are applied; 0 for an operation without weights."""
        return CONVOLUTIONS[self.operation].repeats if self.operation in CONVOLUTIONS else 0


def groups_of(genotype: Genotype) -> tuple[Group, ...]:
    """All edges in groups, in the order in which they can be computed.

    A convolution is computed when its target asks for it, together with the same convolution on every other edge whose
    source is known by then; what has no weights is computed alone.
    """
    groups: list[Group] = []
    left = dict(enumerate(genotype.edges))
    for node in range(INPUT_NODES, NODES):
        for number, edge in list(left.items()):
            if number not in left or edge.target != node:
                continue
            together = [number]
            if edge.operation in CONVOLUTIONS:
                together = [n for n, other in left.items() if other.operation == edge.operation and other.source < node]
            groups.append(Group(edge.operation, tuple(together)))
            for done in together:
                del left[done]
    return tuple(groups)


def joined(cell: Cell, skip: Tensor, up: Tensor) -> Tensor:
    """What `cell.plain` computes; arguments and result likewise."""
    step = _Step(cell, skip, up)
    for group in cell.groups:
        step.compute(group)
    return step.output(skip)


class _Step:
    """One pass through a cell, in the order of its groups."""

    def __init__(self, cell: Cell, skip: Tensor, up: Tensor) -> None:
        self._cell, self._edges = cell, cell.genotype.edges
        self._convolve = conv2d if skip.dim() == 4 else conv3d
        self._kernels, self._norms = _kernels(cell), _norms(cell, len(skip))
        self._outputs: dict[int, Tensor] = {}
        self._activated: dict[int, Tensor] = {}
        self._nodes = {number: self._normalised(self._convolved(x)) for number, x in enumerate((skip, up))}

    def compute(self, group: Group) -> None:
        """The outputs of a group's edges."""
        sources = [self._edges[number].source for number in group.edges]
        if not group.repeats:
            self._outputs[group.edges[0]] = self._cell.operations[group.edges[0]](self._node(sources[0]))
            return
        x = self._read(sources)
        for repeat in range(group.repeats):
            layer: Any = self._cell.operations[group.edges[0]][len(LAYERS) * repeat + LAYERS.index("depthwise")]
            x = relu(x) if repeat else x
            x = self._convolved(x, layer.padding, layer.dilation, groups=x.shape[1])
            x = self._normalised(self._convolved(x, groups=len(sources)))
        parts = x.unflatten(1, (len(sources), -1)).unbind(1) if len(sources) > 1 else [x]
        self._outputs.update(zip(group.edges, parts, strict=True))

    def output(self, skip: Tensor) -> Tensor:
        """What the decoder reads, when all groups are computed."""
        nodes = torch.cat([self._node(number) for number in range(INPUT_NODES, NODES)], 1)
        output = self._convolve(nodes, next(self._kernels), next(self._kernels))
        return output + skip if self._cell.residual else output

    def _node(self, number: int) -> Tensor:
        if number not in self._nodes:
            first, second = (at for at, edge in enumerate(self._edges) if edge.target == number)
            self._nodes[number] = self._outputs[first] + self._outputs[second]
        return self._nodes[number]

    def _read(self, sources: Sequence[int]) -> Tensor:
        """Activations of nodes side by side, of which autograd keeps one copy."""
        if len(sources) > 1:
            return relu(torch.cat([self._node(source) for source in sources], 1))
        (source,) = sources
        if source not in self._activated:
            self._activated[source] = relu(self._node(source))
        return self._activated[source]

    def _convolved(self, x: Tensor, padding: Any = 0, dilation: Any = 1, *, groups: int = 1) -> Tensor:
        return self._convolve(x, next(self._kernels), None, 1, padding, dilation, groups)

    def _normalised(self, x: Tensor) -> Tensor:
        """Instance norm, whose affine part is there for every sample and channel."""
        scale, shift = next(self._norms)
        flat = x.reshape(1, -1, *x.shape[2:])
        epsilon, cudnn = self._cell.project_skip[1].eps, torch.backends.cudnn.enabled
        return torch.batch_norm(flat, scale, shift, None, None, True, 0.0, epsilon, cudnn).view(x.shape)


def _layers(cell: Cell, layer: str) -> list[list[Any]]:
    """Modules of one kind of layer that are computed together, in the order in which they are."""
    return [
        [cell.operations[number][len(LAYERS) * repeat + LAYERS.index(layer)] for number in group.edges]
        for group in cell.groups
        for repeat in range(group.repeats)
    ]


def _kernels(cell: Cell) -> Iterator[Tensor]:
    """Weights of all convolutions, and the last one's bias, as they are asked for: (edges * outputs, inputs, *kernel).

    They are in the precision in which autocast convolves.
    """
    together: list[list[Tensor]] = [[cell.project_skip[0].weight], [cell.project_up[0].weight]]
    for depthwise, pointwise in zip(_layers(cell, "depthwise"), _layers(cell, "pointwise"), strict=True):
        together += [[conv.weight for conv in depthwise], [conv.weight for conv in pointwise]]
    together += [[cell.output.weight], [cell.output.bias]]
    flat = torch.cat([weight.flatten() for own in together for weight in own])
    dtype = autocast_dtype(flat.device) if flat.dtype == torch.float32 else None
    parts = (flat if dtype is None else flat.to(dtype)).split([sum(w.numel() for w in own) for own in together])
    return iter([part.view(-1, *own[0].shape[1:]) for part, own in zip(parts, together, strict=True)])


def _norms(cell: Cell, batch: int) -> Iterator[Affine]:
    """Scales and shifts of all norms as they are asked for, (b * edges * c,) each."""
    together = [[cell.project_skip[1]], [cell.project_up[1]], *_layers(cell, "norm")]
    sizes = sorted({len(norms) for norms in together})
    # As many edges have as many numbers: those are repeated at once.
    alike = [[norms for norms in together if len(norms) == size] for size in sizes]
    rows = [[[n.weight for n in norms] + [n.bias for n in norms] for norms in own] for own in alike]
    flat = torch.cat([parameter for own in rows for row in own for parameter in row])
    parts = flat.split([sum(parameter.numel() for row in own for parameter in row) for own in rows])
    found = []
    for part, own in zip(parts, alike, strict=True):
        repeated = part.view(2 * len(own), 1, -1).expand(-1, batch, -1).reshape(2 * len(own), -1).unbind()
        found.append(iter(zip(repeated[::2], repeated[1::2], strict=True)))
    return iter([next(found[sizes.index(len(norms))]) for norms in together])
