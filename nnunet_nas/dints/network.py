"""`DiNTSNet`: a searched multi-resolution topology as plans name it.

Plans give nnU-Net's own vocabulary (`features_per_stage`, `kernel_sizes`, `strides`, ...), and beside it `topology`
(see `Topology.to_json`) and `first_level`. The network imports nothing of the search: stock nnU-Net trains and predicts
with it wherever `nnunet_nas` is installed. Only what the topology reaches is built, and the graph is static.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dynamic_network_architectures.architectures.abstract_arch import AbstractDynamicNetworkArchitectures
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from nnunet_nas.blocks import Blocks, conv_feature_map_size
from nnunet_nas.dints.operations import (
    SKIP,
    Convolutions,
    Level,
    Resample,
    Stem,
    Upsample,
    halved,
    make_levels,
    operation_steps,
)
from nnunet_nas.dints.topology import Topology
from nnunet_nas.errors import DataProblem

# Fewer stages leave one output, for which nnU-Net's weights of deep supervision are 0/0.
FEWEST_STAGES = 3


def edge_key(source: int, destination: int) -> str:
    """Name of an edge in a state dictionary."""
    return f"{source}_to_{destination}"


class Edge(nn.Module):
    """Resampling if the levels differ, then one operation (paper, Fig. 2)."""

    def __init__(self, blocks: Blocks, levels: Sequence[Level], pair: tuple[int, int], operation: str) -> None:
        super().__init__()
        source, destination = pair
        end = levels[destination]
        self.resample = Resample(blocks, levels, source, destination) if source != destination else None
        # Nothing else reads a resampled map, so the plan's choice of an activation in place stands there.
        self.activation = blocks.activation(shared=False) if source != destination and operation != SKIP else None
        steps = operation_steps(end.kernel)
        self.operation = None if operation == SKIP else Convolutions(blocks, end.features, steps[operation])
        self.reads_activation = self.resample is not None or self.operation is not None

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """x: the source node, (b, c, *spatial); activated: the same after the activation."""
        if self.resample is not None:
            x = self.resample(activated)
            if self.activation is not None:
                activated = self.activation(x)
        return x if self.operation is None else self.operation(activated)


class LayeredEncoder(nn.Module):
    """Stems and layers: from an image to the nodes of the last layer."""

    # Torch's types take whatever a module holds for a tensor.
    activation: Any
    layers: Any

    def __init__(
        self,
        stems: Mapping[int, nn.Module],
        layers: Sequence[Mapping[tuple[int, int], nn.Module]],
        activation: nn.Module,
    ) -> None:
        super().__init__()
        self.stems = nn.ModuleDict({str(level): stem for level, stem in stems.items()})
        self.layers = nn.ModuleList(
            nn.ModuleDict({edge_key(*pair): edge for pair, edge in layer.items()}) for layer in layers
        )
        self.pairs = [list(layer) for layer in layers]
        self.activation = activation

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """Nodes of the last layer by level, (b, c, *spatial), of images (b, c, *spatial)."""
        nodes = {int(level): stem(image) for level, stem in self.stems.items()}
        for pairs, layer in zip(self.pairs, self.layers, strict=True):
            read = {source for (source, _), edge in zip(pairs, layer.values(), strict=True) if edge.reads_activation}
            activated = {level: self.activation(node) if level in read else node for level, node in nodes.items()}
            following: dict[int, Tensor] = {}
            for (source, destination), edge in zip(pairs, layer.values(), strict=True):
                output = edge(nodes[source], activated[source])
                following[destination] = following[destination] + output if destination in following else output
            nodes = following
        return nodes


class Refine(nn.Module):
    """One step of the chain to the full resolution: activation, convolution, normalisation, upsampling."""

    def __init__(self, blocks: Blocks, levels: Sequence[Level], level: int) -> None:
        super().__init__()
        start, end = levels[level + 1], levels[level]
        self.activation = blocks.activation(shared=True)
        self.conv = blocks.conv(start.features, end.features, start.kernel)
        self.norm = blocks.norm(end.features)
        self.upsample = Upsample(start.stride)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, c, *spatial) of the next coarser level."""
        return self.upsample(self.norm(self.conv(self.activation(halved(x)))))


class ChainDecoder(nn.Module):
    """From the coarsest node upwards to the image's resolution, adding the nodes on the way; heads at every level."""

    def __init__(
        self,
        blocks: Blocks,
        levels: Sequence[Level],
        coarsest: int,
        num_classes: int,
        *,
        deep_supervision: bool,
        final_conv: bool = False,
    ) -> None:
        """Builds the chain.

        Args:
            blocks: layers as the plans say.
            levels: from the image's resolution down.
            coarsest: where the chain begins.
            num_classes: segmentation heads.
            deep_supervision: whether `forward` returns a list.
            final_conv: a convolution with the plan's kernel at the full resolution, before the last head.
        """
        super().__init__()
        self.deep_supervision = deep_supervision
        self.final = Convolutions(blocks, levels[0].features, [(levels[0].kernel, 1)]) if final_conv else None
        self.refine = nn.ModuleList(Refine(blocks, levels, level) for level in range(coarsest))
        self.activation = blocks.activation(shared=True)
        kernel = (1,) * blocks.dimensions
        self.seg_layers = nn.ModuleList(
            blocks.conv_op(level.features, num_classes, kernel, bias=True) for level in levels[:-1]
        )

    def forward(self, nodes: dict[int, Tensor]) -> Tensor | list[Tensor]:
        """Logits of nodes by level; with deep supervision a list from the highest resolution down."""
        # The coarsest there is: of a supernet that computes one topology alone it may be a finer one.
        coarsest = max(nodes)
        x, outputs = nodes[coarsest], []
        for level in range(coarsest, -1, -1):
            if level < coarsest:
                x = self.refine[level](x)
                if level in nodes:
                    x = x + nodes[level]
            if level == 0 and self.final is not None:
                x = self.final(self.activation(x))
            if level == 0 or (self.deep_supervision and level < len(self.seg_layers)):
                outputs.append(self.seg_layers[level](self.activation(x)))
        return outputs[::-1] if self.deep_supervision else outputs[-1]


class MultiResolutionNet(AbstractDynamicNetworkArchitectures):
    """What the discrete network and the supernet share towards nnU-Net."""

    encoder: Any
    decoder: Any
    key_to_encoder = "encoder"
    key_to_stem = "encoder.stems"

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of images (b, c, *spatial); with deep supervision a list from the highest resolution down."""
        return self.decoder(self.encoder(x))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all convolutions' outputs, as nnU-Net counts them, for a patch of spatial shape `input_size`.

        Raises:
            ValueError: not one number per axis.
        """
        return conv_feature_map_size(self, self.input_channels, input_size, self.dimensions)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation."""
        InitWeights_He(1e-2)(module)


class DiNTSNet(MultiResolutionNet):
    """A discrete topology; one class for 2-D and 3-D."""

    def __init__(
        self,
        *,
        input_channels: int,
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: Sequence[Any],
        strides: Sequence[Any],
        num_classes: int,
        topology: dict[str, Any],
        first_level: int = 0,
        final_conv: bool = False,
        conv_bias: bool = False,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: dict[str, Any] | None = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: dict[str, Any] | None = None,
        nonlin: type[nn.Module] | None = None,
        nonlin_kwargs: dict[str, Any] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        """Builds the network from plans, whose vocabulary this is.

        Args:
            input_channels: of the images.
            n_stages: `first_level` and the topology's levels together.
            features_per_stage: channels per stage.
            conv_op: `nn.Conv2d` or `nn.Conv3d`.
            kernel_sizes: per stage, per axis.
            strides: per stage, per axis, relative to the stage before.
            num_classes: segmentation heads.
            topology: see `Topology.to_json`; its level 0 is stage `first_level`.
            first_level: stages finer than this have no cells.
            final_conv: a convolution with the plan's kernel at the full resolution, before the head, as in MONAI.
            conv_bias: whether convolutions have a bias.
            norm_op: normalisation class.
            norm_op_kwargs: its arguments.
            dropout_op: must be None.
            dropout_op_kwargs: not used.
            nonlin: activation class.
            nonlin_kwargs: its arguments.
            deep_supervision: whether `forward` returns a list of logits.

        Raises:
            DataProblem: the topology is infeasible or does not fit the stages.
        """
        super().__init__()
        del dropout_op_kwargs
        if dropout_op is not None:
            raise DataProblem("DiNTSNet has no dropout: set dropout_op to null in the configuration's arch_kwargs")
        blocks = Blocks(conv_op, conv_bias, norm_op, norm_op_kwargs, nonlin, nonlin_kwargs)
        features = [features_per_stage] * n_stages if isinstance(features_per_stage, int) else features_per_stage
        levels = make_levels(features, kernel_sizes, strides, blocks.dimensions)
        found = Topology.from_json(topology)
        _require_fit(found, levels, n_stages, first_level)
        self.dimensions, self.input_channels = blocks.dimensions, input_channels
        self.keys_to_in_proj = tuple(
            f"encoder.stems.{level + first_level}.{_first_convolution(levels, level + first_level)}"
            for level in found.inputs()
        )
        stems = {
            level + first_level: Stem(blocks, levels, level + first_level, input_channels) for level in found.inputs()
        }
        layers = [
            {
                (source + first_level, destination + first_level): Edge(
                    blocks, levels, (source + first_level, destination + first_level), operation
                )
                for (source, destination), operation in sorted(layer.items(), key=lambda item: item[0][::-1])
            }
            for layer in found.layers
        ]
        self.encoder = LayeredEncoder(stems, layers, blocks.activation(shared=True))
        coarsest = found.outputs()[-1] + first_level
        self.decoder = ChainDecoder(
            blocks, levels, coarsest, num_classes, deep_supervision=deep_supervision, final_conv=final_conv
        )


def _first_convolution(levels: Sequence[Level], level: int) -> str:
    """The convolution of a stem that sees the image."""
    return "shrink.0" if any(max(step.stride) > 1 for step in levels[:level]) else "conv"


def _require_fit(topology: Topology, levels: Sequence[Level], n_stages: int, first_level: int) -> None:
    if not len(levels) == n_stages == first_level + topology.levels:
        raise DataProblem(
            f"the topology has {topology.levels} levels from stage {first_level} on, the configuration {len(levels)} "
            f"stages (n_stages {n_stages}): they must agree"
        )
    if n_stages < FEWEST_STAGES:
        raise DataProblem(
            f"{n_stages} stages leave nothing for deep supervision, whose weights in nnU-Net become 0/0: use at least "
            f"{FEWEST_STAGES}"
        )
    if topology.outputs()[-1] < topology.levels - 2:
        raise DataProblem(
            f"the topology's last layer ends at level {topology.outputs()[-1]}: it must reach level "
            f"{topology.levels - 2} or {topology.levels - 1}, where nnU-Net's deepest supervised output is"
        )
    for layer in topology.layers:
        for (_, destination), operation in layer.items():
            known = operation_steps(levels[destination + first_level].kernel)
            if operation not in known:
                raise DataProblem(
                    f"operation {operation!r} does not exist at level {destination} (kernel "
                    f"{list(levels[destination + first_level].kernel)}); there are {', '.join(known)}"
                )
