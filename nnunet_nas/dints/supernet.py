"""The relaxed network of DiNTS: every edge with every operation, weighted (paper, section 3.3, Eq. 1).

A node is sum_e m_e sum_n softmax(alpha)_en O_n(edge), with m the closed form of the patterns' weights. Two forms:

- `exact`: every operation is computed. The activation of a node is shared by all its edges, and m and alpha are folded
  into the affine part of each normalisation, so that no operation's output is kept for the backward pass.
- `fast`, which changes the relaxation (our choice): the kernels of an edge's operations are normalised and mixed into
  one, one convolution and one normalisation are computed, and on edges that go up they come before the upsampling.

All that a node sums at its own resolution is normalised together; what depends on parameters alone is in `mixing`.
Nodes are sums in single precision; under autocast the edges that leave one share a copy in half precision.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv3d, instance_norm

from nnunet_nas.blocks import Blocks
from nnunet_nas.commands import set_search
from nnunet_nas.dints.mixing import Affine, Converted, mixed_kernels, weighted_affine
from nnunet_nas.dints.network import ChainDecoder, LayeredEncoder, MultiResolutionNet, edge_key
from nnunet_nas.dints.operations import (
    OPERATIONS,
    SKIP,
    Convolutions,
    Level,
    Resample,
    Stem,
    halved,
    operation_steps,
)
from nnunet_nas.dints.probabilities import marginals
from nnunet_nas.dints.topology import Topology, edges
from nnunet_nas.errors import DataProblem
from nnunet_nas.precision import has_double

if TYPE_CHECKING:
    from nnunet_nas.dints.settings import DiNTSSettings
    from nnunet_nas.dints.space import Space

# Stands for minus infinity among operations that a level does not have.
_ABSENT = -1e9
# Mixing kernels costs C^2 whatever the image: it pays where a map has more voxels than this per channel.
_VOXELS_PER_CHANNEL = 8
_HALF = (torch.float16, torch.bfloat16)
_INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


class MixedEdge(nn.Module):
    """All operations of one edge."""

    resample: Any
    operations: Any
    activation: Any

    def __init__(self, blocks: Blocks, levels: Sequence[Level], pair: tuple[int, int], *, fast: bool) -> None:
        super().__init__()
        source, destination = pair
        end = levels[destination]
        self.fast = fast
        self.goes_up = destination < source
        self.resample = Resample(blocks, levels, source, destination) if source != destination else None
        self.activation = blocks.activation(shared=True)
        self.steps = {name: steps for name, steps in operation_steps(end.kernel).items() if name != SKIP}
        self.columns = [OPERATIONS[blocks.dimensions].index(name) for name in self.steps]
        self.operations = nn.ModuleDict(
            {name: Convolutions(blocks, end.features, steps) for name, steps in self.steps.items()}
        )

    @property
    def convolutions(self) -> list[Any]:
        """All of them."""
        resampling = [] if self.resample is None else [self.resample.conv]
        return [*resampling, *(conv for operation in self.operations.values() for conv in operation.convs)]

    def mixes(self, source: Tensor, destination: Tensor) -> bool:
        """Whether kernels are mixed instead of outputs, between nodes of these shapes."""
        voxels = (source if self.goes_up else destination)[0, 0].numel()
        return self.fast and voxels > _VOXELS_PER_CHANNEL * destination.shape[1]

    def read(self, x: Tensor, activated: Tensor, converted: Converted, *, upsample: bool) -> tuple[Tensor, Tensor]:
        """What the operations read: the source with the destination's channels, and its activation.

        Args:
            x: source node, (b, c, *spatial).
            activated: the same after the activation.
            converted: parameters of convolutions.
            upsample: whether an edge that goes up does so here.
        """
        if self.resample is None:
            return x, activated
        x = self.resample.norm(converted.convolve(self.resample.conv, activated))
        if self.goes_up and upsample:
            x = self.resample.upsample(x)
        return x, self.activation(x)

    def outputs(self, activated: Tensor, converted: Converted) -> list[Tensor]:
        """Of every operation before its normalisation, (b, c, *spatial) each."""
        found = []
        for operation in self.operations.values():
            x = activated
            for conv in operation.convs:
                x = converted.convolve(conv, x)
            found.append(x)
        return found

    def single(self, x: Tensor, activated: Tensor, operation: str) -> Tensor:
        """One operation alone, as `network.Edge` computes it; arguments as of `read`."""
        if self.resample is not None:
            x = self.resample(activated)
        if operation == SKIP:
            return x
        output: Tensor = self.operations[operation](activated if self.resample is None else self.activation(x))
        return output


@dataclass(frozen=True)
class Shared:
    """What a step computes of the parameters, for all layers.

    Attributes:
        converted: parameters of convolutions.
        weights: m times softmax(alpha), one number per layer, edge and operation.
        affine: by destination, layer and edge into it; empty where normalisations are no affine instance norms.
        summed: the same, summed over operations, for destinations of edges that mix.
        kernels: mixed ones, by pair and layer; of edges that mix.
    """

    converted: Converted
    weights: list[list[Sequence[Tensor]]]
    affine: dict[int, list[list[Affine]]]
    summed: dict[int, list[list[Affine]]]
    kernels: dict[tuple[int, int], Sequence[Tensor]]


class _Joined:
    """Maps that are normalised together and then summed."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.affine: list[Affine] = []

    def add(self, outputs: list[Tensor], affine: Affine) -> None:
        """Maps (b, c, *spatial) each, and their scales and shifts, (maps, c)."""
        self.outputs += outputs
        self.affine.append(affine)

    def total(self, epsilon: float) -> Tensor:
        """Sum of the normalised maps, (b, c, *spatial), in single precision at least."""
        scale, shift = (
            torch.cat(parts).flatten() if len(parts) > 1 else parts[0].flatten()
            for parts in ([own.scale for own in self.affine], [own.shift for own in self.affine])
        )
        joined = torch.cat(self.outputs, 1) if len(self.outputs) > 1 else self.outputs[0]
        normalised = instance_norm(joined, weight=scale, bias=shift, eps=epsilon)
        if len(self.outputs) == 1:
            return at_least_single(normalised)
        dtype = torch.float32 if normalised.dtype in _HALF else normalised.dtype
        return normalised.unflatten(1, (len(self.outputs), -1)).sum(1, dtype=dtype)


def _mixed(edges_of_layers: Sequence[MixedEdge], weights: Tensor, converted: Converted) -> Tensor:
    """Mixed kernels of one edge of all layers, (layers, outputs, inputs, *kernel); weights (layers, operations)."""
    first = edges_of_layers[0]
    kernels = [
        [
            torch.stack([converted.weight(edge.operations[name].convs[step]) for edge in edges_of_layers])
            for step in range(len(steps))
        ]
        for name, steps in first.steps.items()
    ]
    return mixed_kernels(kernels, list(first.steps.values()), weights)


def _convolved(x: Tensor, kernel: Tensor) -> Tensor:
    convolve = conv3d if kernel.dim() == 5 else conv2d
    return convolve(x, kernel.to(x.dtype), padding=[size // 2 for size in kernel.shape[2:]])


def _is_affine_instance(norm: nn.Module) -> bool:
    return isinstance(norm, _INSTANCE_NORMS) and norm.affine and not norm.track_running_stats


class SuperEncoder(LayeredEncoder):
    """Stems at every level and all edges of all layers.

    Attributes:
        topology: where it is not None, this one alone is computed, with weight 1 and the shared weights.
    """

    topology: Topology | None = None

    def __init__(
        self,
        stems: dict[int, Stem],
        layers: Sequence[dict[tuple[int, int], MixedEdge]],
        activation: nn.Module,
        operations: Tensor,
    ) -> None:
        """`operations`: which operations exist, (E, N) bool."""
        super().__init__(stems, layers, activation)
        self.register_buffer("exists", operations, persistent=False)
        # Stays on the CPU.
        self._absent = ~operations
        norms = [norm for norm in self.layers.modules() if _is_affine_instance(norm)]
        self.epsilon = float(norms[0].eps) if norms else 0.0  # all norms are made from the same arguments
        shape = (len(layers), *operations.shape)
        self.alpha = nn.Parameter(torch.zeros(shape))
        self.edge_logits = nn.Parameter(torch.zeros(shape[:2]))

    def operation_logits(self, alpha: Tensor | None = None) -> Tensor:
        """alpha, with what does not exist out of reach, (layers, E, N), double precision where there is one.

        Args:
            alpha: a copy on the CPU; None: the parameter.
        """
        exists: Any = self.exists
        if alpha is None:
            return _precise(self.alpha).masked_fill(~exists, _ABSENT)
        return alpha.double().masked_fill(self._absent, _ABSENT)

    def mixing_weights(self) -> Tensor:
        """m times softmax(alpha), (layers, E, N), in the parameters' own precision."""
        weights = marginals(_precise(self.edge_logits)).unsqueeze(-1) * torch.softmax(self.operation_logits(), -1)
        return weights.to(self.alpha.dtype)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """Nodes of the last layer by level, (b, c, *spatial), of images (b, c, *spatial)."""
        if self.topology is not None:
            return self._of(self.topology, image)
        nodes = {int(level): stem(image) for level, stem in self.stems.items()}
        shared = self._shared(nodes)
        for number in range(len(self.layers)):
            activated = {level: self.activation(halved(node)) for level, node in nodes.items()}
            nodes = {level: self._node(number, level, nodes, activated, shared) for level in nodes}
        return nodes

    def _incoming(self, end: int) -> list[int]:
        """Numbers of the edges into a level, which follow each other."""
        return [index for index, (_, destination) in enumerate(self.pairs[0]) if destination == end]

    def _shared(self, nodes: dict[int, Tensor]) -> Shared:
        """What depends on parameters, and on the shapes of nodes, alone."""
        weights = self.mixing_weights()
        layers: list[list[MixedEdge]] = [list(layer.values()) for layer in self.layers]
        converted = Converted([conv for layer in layers for edge in layer for conv in edge.convolutions])
        columns = weights.unbind(-1)
        affine: dict[int, list[list[Affine]]] = {}
        summed: dict[int, list[list[Affine]]] = {}
        kernels: dict[tuple[int, int], Sequence[Tensor]] = {}
        for end in nodes:
            incoming = self._incoming(end)
            edges_in = [[layer[index] for index in incoming] for layer in layers]
            first = edges_in[0][0]
            own = torch.stack([columns[column] for column in first.columns], -1)[:, incoming[0] : incoming[-1] + 1]
            norms = [part.norm for layer in edges_in for edge in layer for part in edge.operations.values()]
            if not _is_affine_instance(norms[0]):
                continue
            whole = weighted_affine(norms, own)
            affine[end] = [layer.parts() for layer in whole.parts()]
            for position, index in enumerate(incoming):
                pair = self.pairs[0][index]
                if layers[0][index].mixes(nodes[pair[0]], nodes[pair[1]]):
                    kernels[pair] = _mixed([layer[index] for layer in layers], own[:, position], converted).unbind()
            if any(end == destination for _, destination in kernels):
                summed[end] = [layer.parts() for layer in whole.summed().parts()]
        scalars: list[list[Sequence[Tensor]]] = [[row.unbind() for row in layer.unbind()] for layer in weights.unbind()]
        return Shared(converted, scalars, affine, summed, kernels)

    def _node(
        self, number: int, end: int, nodes: dict[int, Tensor], activated: dict[int, Tensor], shared: Shared
    ) -> Tensor:
        """Sum over all edges into a level, (b, c, *spatial), in single precision at least."""
        terms, joined = [], _Joined()
        for position, index in enumerate(self._incoming(end)):
            pair = self.pairs[number][index]
            edge, weights, kernels = self.layers[number][edge_key(*pair)], shared.weights[number][index], shared.kernels
            x, read = edge.read(nodes[pair[0]], activated[pair[0]], shared.converted, upsample=pair not in kernels)
            skipped = at_least_single(x) * weights[0]
            if end not in shared.affine:
                outputs = zip(edge.operations.values(), edge.outputs(read, shared.converted), edge.columns, strict=True)
                terms += [at_least_single(part.norm(output)) * weights[column] for part, output, column in outputs]
            elif pair not in kernels:
                joined.add(edge.outputs(read, shared.converted), shared.affine[end][number][position])
            else:
                output = _convolved(read, kernels[pair][number])
                if edge.goes_up:
                    low = _Joined()
                    low.add([output], shared.summed[end][number][position])
                    skipped = edge.resample.upsample(skipped + low.total(self.epsilon))
                else:
                    joined.add([output], shared.summed[end][number][position])
            terms.append(skipped)
        if joined.outputs:
            terms.append(joined.total(self.epsilon))
        return functools.reduce(torch.add, terms)

    def _of(self, topology: Topology, image: Tensor) -> dict[int, Tensor]:
        """Nodes of the last layer that a topology writes; its level 0 is the finest stage that has cells."""
        finest = min(int(stage) for stage in self.stems)
        nodes = {level + finest: self.stems[str(level + finest)](image) for level in topology.inputs()}
        for chosen, layer in zip(topology.layers, self.layers, strict=True):
            activated = {level: self.activation(node) for level, node in nodes.items()}
            following: dict[int, Tensor] = {}
            for (source, destination), operation in sorted(chosen.items(), key=lambda item: item[0][::-1]):
                start, end = source + finest, destination + finest
                output = layer[edge_key(start, end)].single(nodes[start], activated[start], operation)
                following[end] = following[end] + output if end in following else output
            nodes = following
        return nodes


def _precise(parameter: Tensor) -> Tensor:
    return parameter.double() if has_double(parameter.device) else parameter


def at_least_single(x: Tensor) -> Tensor:
    """Half types as float32: sums over edges and operations, and their gradients, need it."""
    return x.float() if x.dtype in _HALF else x


class DiNTSSupernet(MultiResolutionNet):
    """The relaxed network of a configuration."""

    encoder: SuperEncoder
    decoder: ChainDecoder

    def __init__(
        self,
        *,
        input_channels: int,
        num_classes: int,
        blocks: Blocks,
        levels: Sequence[Level],
        first_level: int,
        num_layers: int,
        deep_supervision: bool = False,
        fast: bool = False,
        final_conv: bool = False,
    ) -> None:
        """Builds all edges with all operations.

        Args:
            input_channels: of the images.
            num_classes: segmentation heads.
            blocks: layers as the plans say.
            levels: all stages, from the image's resolution down.
            first_level: stages finer than this have no cells.
            num_layers: L.
            deep_supervision: whether `forward` returns a list of logits.
            fast: mixes kernels instead of outputs, see the module.
            final_conv: see `network.ChainDecoder`.

        Raises:
            DataProblem: `fast` without instance normalisation.
        """
        super().__init__()
        # Alpha, by which it is seen that parameters were replaced, and all parameters but the architecture's.
        self._collected: tuple[nn.Parameter, list[nn.Parameter]] | None = None
        instance = isinstance(blocks.norm(1), _INSTANCE_NORMS) and (blocks.norm_op_kwargs or {}).get("affine", False)
        if fast and not instance:
            raise DataProblem(
                "the fast supernet mixes kernels before an affine instance normalisation, which this configuration "
                f"does not have: run {set_search('dints', 'supernet=exact')}"
            )
        self.dimensions, self.input_channels = blocks.dimensions, input_channels
        self.keys_to_in_proj: tuple[str, ...] = ()
        self.levels, self.first_level = len(levels) - first_level, first_level
        stages = range(first_level, len(levels))
        pairs = [(source + first_level, destination + first_level) for source, destination in edges(self.levels)]
        names = OPERATIONS[blocks.dimensions]
        exists = [[name in operation_steps(levels[end].kernel) for name in names] for _, end in pairs]
        self.encoder = SuperEncoder(
            {stage: Stem(blocks, levels, stage, input_channels) for stage in stages},
            [{pair: MixedEdge(blocks, levels, pair, fast=fast) for pair in pairs} for _ in range(num_layers)],
            blocks.activation(shared=True),
            torch.tensor(exists),
        )
        self.decoder = ChainDecoder(
            blocks, levels, len(levels) - 1, num_classes, deep_supervision=deep_supervision, final_conv=final_conv
        )

    @contextmanager
    def computing(self, topology: Topology | None) -> Iterator[None]:
        """Inside, a topology alone is computed; with None the mixture."""
        self.encoder.topology = topology
        try:
            yield
        finally:
            self.encoder.topology = None

    def architecture_parameters(self) -> list[nn.Parameter]:
        """alpha and the edges' logits."""
        return [self.encoder.alpha, self.encoder.edge_logits]

    def network_parameters(self) -> list[nn.Parameter]:
        """Everything else; collected once, for a search asks at every step."""
        architecture = self.architecture_parameters()
        if self._collected is None or self._collected[0] is not architecture[0]:
            own = {id(parameter) for parameter in architecture}
            others = [parameter for parameter in self.parameters() if id(parameter) not in own]
            self._collected = (architecture[0], others)
        return self._collected[1]

    def train_only(self, *, weights: bool) -> None:
        """Says whether weights or alpha and the edges' logits get gradients; the rest costs none."""
        for parameter in self.network_parameters():
            parameter.requires_grad_(weights)
        for parameter in self.architecture_parameters():
            parameter.requires_grad_(not weights)

    def draw_architecture(self, generator: torch.Generator) -> None:
        """alpha ~ N(1, 0.01) and x ~ N(0, 0.01) (paper, section 4.1; 0.01 is taken for the standard deviation)."""
        with torch.no_grad():
            for parameter, mean in ((self.encoder.alpha, 1.0), (self.encoder.edge_logits, 0.0)):
                noise = torch.randn(parameter.shape, generator=generator, device=generator.device)
                parameter.copy_(mean + 0.01 * noise)

    def level_topologies(self) -> None:
        """Makes topologies with their operations about equally probable instead of edges, for samples of them.

        x grows by the log of the number of the edge's operations: an edge is there in as many ways. With x at 0 samples
        have few edges, which learn fast and end lower (our choice, by measurements: `examples/chance.md`).
        """
        exists: Any = self.encoder.exists
        with torch.no_grad():
            self.encoder.edge_logits.add_(exists.sum(-1).log())


def build_supernet(space: Space, settings: DiNTSSettings, input_channels: int, num_classes: int) -> DiNTSSupernet:
    """The relaxed network of a search space, as it is trained."""
    return DiNTSSupernet(
        input_channels=input_channels,
        num_classes=num_classes,
        blocks=space.blocks,
        levels=space.search_levels,
        first_level=space.first_level,
        num_layers=settings.num_layers,
        deep_supervision=True,
        fast=settings.supernet == "fast",
        final_conv=space.final_conv,
    )
