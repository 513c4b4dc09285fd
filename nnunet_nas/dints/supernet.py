"""The relaxed network of DiNTS: every edge with every operation, weighted (paper, section 3.3, Eq. 1).

A node is sum_e m_e sum_n softmax(alpha)_en O_n(edge), with m the closed form of the patterns' weights. Two forms:

- `exact`: every operation is computed. The activation of a node is shared by all its edges, and m and alpha are folded
  into the affine part of each normalisation, so that no operation's output is kept for the backward pass.
- `fast`, which changes the relaxation (our choice): the kernels of an edge's operations are normalised and mixed into
  one, one convolution and one normalisation are computed, and on edges that go up they come before the upsampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv3d, instance_norm, pad

from nnunet_nas.blocks import Blocks
from nnunet_nas.commands import set_search
from nnunet_nas.dints.network import ChainDecoder, LayeredEncoder, MultiResolutionNet, edge_key
from nnunet_nas.dints.operations import (
    OPERATIONS,
    SKIP,
    Convolutions,
    Level,
    Resample,
    Stem,
    Step,
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
_INSTANCE_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


def weighted_norm(norm: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """weight * norm(x); instance norms keep no product.

    Args:
        norm: a normalisation.
        x: (b, c, *spatial).
        weight: scalar, float32 or float64.
    """
    if isinstance(norm, _INSTANCE_NORMS) and norm.affine and not norm.track_running_stats:
        return instance_norm(x, weight=norm.weight * weight, bias=norm.bias * weight, eps=norm.eps)
    return norm(x) * weight


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

    def forward(self, x: Tensor, activated: Tensor, weights: Tensor) -> Tensor:
        """The edge's part of its destination.

        Args:
            x: source node, (b, c, *spatial).
            activated: the same after the activation.
            weights: m times softmax(alpha), (operations,), in the order of `OPERATIONS`, float32 or float64.

        Returns:
            (b, c, *spatial) of the destination, in the precision of the weights.
        """
        if self.resample is not None:
            x = self.resample.norm(self.resample.conv(activated))
        mixes = self.fast and x[0, 0].numel() > _VOXELS_PER_CHANNEL * x.shape[1]
        if self.goes_up and not mixes:
            x = self.resample.upsample(x)
        if self.resample is not None:
            activated = self.activation(x)
        own = weights[self.columns]
        total = _at_least_single(x) * weights[0]
        if mixes:
            total = total + self._mixed(activated, own)
            return self.resample.upsample(total) if self.goes_up else total
        for operation, weight in zip(self.operations.values(), own.unbind(), strict=True):
            total = total + _at_least_single(weighted_norm(operation.norm, operation.convs(activated), weight))
        return total

    def single(self, x: Tensor, activated: Tensor, operation: str) -> Tensor:
        """One operation alone, as `network.Edge` computes it; arguments as of `forward`."""
        if self.resample is not None:
            x = self.resample(activated)
        if operation == SKIP:
            return x
        output: Tensor = self.operations[operation](activated if self.resample is None else self.activation(x))
        return output

    def _mixed(self, activated: Tensor, weights: Tensor) -> Tensor:
        """One convolution with the mixture of all kernels, one normalisation with the mixture of all affine parts."""
        parts = list(self.operations.values())
        kernels = [composed_kernel(part.convs, steps) for part, steps in zip(parts, self.steps.values(), strict=True)]
        reach = [max(kernel.shape[axis] for kernel in kernels) for axis in range(2, kernels[0].dim())]
        mixture = torch.stack([_unit(_centred(kernel, reach)) for kernel in kernels])
        # Where m or the skip has left nothing for them, the clamp keeps 0 / 0 out.
        shares = weights / weights.sum().clamp(min=1e-30)
        kernel = torch.einsum("n,n...->...", shares, mixture).to(activated.dtype)
        scale = sum(weight * part.norm.weight for weight, part in zip(weights.unbind(), parts, strict=True))
        shift = sum(weight * part.norm.bias for weight, part in zip(weights.unbind(), parts, strict=True))
        convolve = conv3d if kernel.dim() == 5 else conv2d
        output = convolve(activated, kernel, padding=[size // 2 for size in reach])
        return _at_least_single(instance_norm(output, weight=scale, bias=shift, eps=parts[0].norm.eps))


def composed_kernel(convs: Any, steps: Sequence[Step]) -> Tensor:
    """The single kernel that convolutions in sequence amount to, away from the border; dilation is written out.

    Args:
        convs: convolutions without anything between them; their biases do not matter before a normalisation.
        steps: their kernels and dilations.

    Returns:
        (outputs, inputs, *kernel).
    """
    kernel = _dilated(convs[0].weight, steps[0][1])
    for conv, (_, dilation) in zip(convs[1:], steps[1:], strict=True):
        following = _dilated(conv.weight, dilation)
        # The two span different axes, so every pair of taps meets at one place of its own.
        axes = kernel.dim() - 2
        first = kernel.reshape(*kernel.shape[:2], *[n for size in kernel.shape[2:] for n in (size, 1)])
        second = following.reshape(*following.shape[:2], *[n for size in following.shape[2:] for n in (1, size)])
        product = torch.einsum("mi...,om...->oi...", first, second)
        sizes = [a + b - 1 for a, b in zip(kernel.shape[2:], following.shape[2:], strict=True)]
        kernel = product.reshape(product.shape[0], product.shape[1], *sizes[:axes])
    return kernel


def _dilated(kernel: Tensor, dilation: int) -> Tensor:
    if dilation == 1:
        return kernel
    wide = kernel.new_zeros(*kernel.shape[:2], *(dilation * (size - 1) + 1 for size in kernel.shape[2:]))
    taps = (slice(None), slice(None), *[slice(None, None, dilation)] * (kernel.dim() - 2))
    wide[taps] = kernel
    return wide


def _centred(kernel: Tensor, reach: Sequence[int]) -> Tensor:
    """Zeros around a kernel up to the size `reach`."""
    margins = [(wide - size) // 2 for wide, size in zip(reach, kernel.shape[2:], strict=True)]
    return pad(kernel, [margin for each in reversed(margins) for margin in (each, each)])


def _unit(kernel: Tensor) -> Tensor:
    """Every output channel scaled to unit norm: as its normalisation would, for white inputs."""
    norm = kernel.flatten(1).norm(dim=1).clamp(min=1e-8)
    return kernel / norm.view(-1, *(1,) * (kernel.dim() - 1))


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
        shape = (len(layers), *operations.shape)
        self.alpha = nn.Parameter(torch.zeros(shape))
        self.edge_logits = nn.Parameter(torch.zeros(shape[:2]))

    def operation_logits(self) -> Tensor:
        """alpha, with what does not exist out of reach, (layers, E, N), double precision where there is one."""
        exists: Any = self.exists
        return _precise(self.alpha).masked_fill(~exists, _ABSENT)

    def mixing_weights(self) -> Tensor:
        """m times softmax(alpha), (layers, E, N), in the parameters' own precision."""
        weights = marginals(_precise(self.edge_logits)).unsqueeze(-1) * torch.softmax(self.operation_logits(), -1)
        return weights.to(self.alpha.dtype)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """Nodes of the last layer by level, (b, c, *spatial), of images (b, c, *spatial)."""
        if self.topology is not None:
            return self._of(self.topology, image)
        weights = self.mixing_weights()
        nodes = {int(level): stem(image) for level, stem in self.stems.items()}
        for number, (pairs, layer) in enumerate(zip(self.pairs, self.layers, strict=True)):
            activated = {level: self.activation(node) for level, node in nodes.items()}
            following: dict[int, Tensor] = {}
            for index, ((source, destination), edge) in enumerate(zip(pairs, layer.values(), strict=True)):
                output = edge(nodes[source], activated[source], weights[number, index])
                following[destination] = following[destination] + output if destination in following else output
            nodes = following
        return nodes

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


def _at_least_single(x: Tensor) -> Tensor:
    """Half types as float32: sums over edges and operations, and their gradients, need it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


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
        """Everything else."""
        own = {id(parameter) for parameter in self.architecture_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

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
        final_conv=settings.final_conv,
    )
