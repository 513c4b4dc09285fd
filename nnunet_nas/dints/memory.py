"""Training memory of a topology, relaxed or discrete: what autograd keeps, weights, gradients and momentum.

The first is measured once per edge, operation and level on torch's `meta` device (no arithmetic, no memory), for
float32 at a given patch and batch; for the others see `training_cost`. The model is additive and counts every tensor
once: a node's map and its activation belong to the node, what an edge keeps beyond them to the edge, the image to
nothing. Its expectation under the relaxed topology is exact for independent edges given a non-empty pattern, and
differentiable.
(Our choice; the paper estimates by tensor size and counts edges only, section 3.5.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from nnunet_nas.blocks import Blocks
from nnunet_nas.complexity import kept_mib
from nnunet_nas.dints.network import ChainDecoder, Edge
from nnunet_nas.dints.operations import OPERATIONS, SKIP, Level, Stem, operation_steps
from nnunet_nas.dints.probabilities import log_any, marginals
from nnunet_nas.dints.topology import Topology, edges
from nnunet_nas.training_cost import state_mib


@dataclass(frozen=True)
class MemoryModel:
    """MiB of the parts of a network, in training; the image counts nowhere.

    Attributes:
        edges: (E, N), infinite where an operation does not exist.
        nodes: of a node that something reads through its activation, (D,).
        stems: (D,).
        fixed: the chain to the full resolution and its heads.
        state: what of `edges` is weights, gradients and momentum, (E, N) or one number for all.
    """

    edges: np.ndarray
    nodes: np.ndarray
    stems: np.ndarray
    fixed: float
    state: np.ndarray | float = 0.0

    @property
    def levels(self) -> int:
        """D."""
        return len(self.nodes)

    @property
    def kept_by_edges(self) -> np.ndarray:
        """What autograd keeps of edges, (E, N); 0 where an operation does not exist."""
        return np.where(np.isfinite(self.edges), self.edges - self.state, 0)

    def of(self, topology: Topology, operations: Sequence[str]) -> float:
        """MiB of a discrete topology; `operations` are the columns of `edges`."""
        total = self.fixed + float(self.stems[topology.inputs()].sum())
        for layer in topology.layers:
            read = {source for (source, end), name in layer.items() if source != end or name != SKIP}
            total += float(self.nodes[sorted(read)].sum())
            pairs = edges(self.levels)
            total += float(sum(self.edges[pairs.index(pair), operations.index(name)] for pair, name in layer.items()))
        return total

    def full(self, num_layers: int) -> float:
        """MiB of the largest network: every edge with its most expensive operation."""
        largest = np.where(np.isfinite(self.edges), self.edges, 0).max(1).sum()
        return float(self.fixed + self.stems.sum() + num_layers * (self.nodes.sum() + largest))

    def expected(self, edge_logits: Tensor, operations: Tensor) -> Tensor:
        """Expected MiB of a network drawn from the relaxed topology.

        Args:
            edge_logits: x, (layers, E).
            operations: softmax(alpha), (layers, E, N), 0 where an operation does not exist.
        """
        cost = torch.as_tensor(np.where(np.isfinite(self.edges), self.edges, 0)).to(edge_logits)
        by_edges = (marginals(edge_logits) * (operations * cost).sum(-1)).sum()
        nodes, stems = (torch.as_tensor(array).to(edge_logits) for array in (self.nodes, self.stems))
        pairs = edges(self.levels)
        same = torch.tensor([source == end for source, end in pairs], device=edge_logits.device)
        reads = torch.where(same, 1 - operations[..., 0], torch.ones_like(edge_logits))
        by_nodes = (_any_from(edge_logits, reads, self.levels) * nodes).sum()
        used = _any_from(edge_logits[:1], torch.ones_like(edge_logits[:1]), self.levels)
        return by_edges + by_nodes + (used * stems).sum() + self.fixed


def _any_from(logits: Tensor, share: Tensor, levels: int) -> Tensor:
    """Probability that a node has a leaving edge that counts, given a non-empty pattern, (layers, D).

    Args:
        logits: (layers, E).
        share: probability that an edge counts if it is there, (layers, E).
        levels: D.

    Over the first counting edge: sum_e m_e c_e prod_{before} (1 - p c); nothing cancels.
    """
    weight, counts = (
        torch.exp(logsigmoid(logits) - log_any(logits).unsqueeze(-1)) * share,
        torch.sigmoid(logits) * share,
    )
    columns = []
    for level in range(levels):
        own = [index for index, (source, _) in enumerate(edges(levels)) if source == level]
        none_before = torch.cumprod(torch.cat((torch.ones_like(counts[:, :1]), 1 - counts[:, own[:-1]]), 1), 1)
        columns.append((weight[:, own] * none_before).sum(1))
    return torch.stack(columns, 1)


def measure_memory(
    blocks: Blocks,
    levels: Sequence[Level],
    *,
    first_level: int,
    patch_size: Sequence[int],
    batch_size: int,
    input_channels: int,
    num_classes: int,
    final_conv: bool = False,
) -> MemoryModel:
    """Measures all parts, for training with deep supervision.

    Args:
        blocks: layers as the plans say.
        levels: all stages.
        first_level: stages finer than this have no cells.
        patch_size: voxels, spatial.
        batch_size: samples per step.
        input_channels: of the images.
        num_classes: segmentation heads.
        final_conv: see `network.ChainDecoder`.
    """
    shapes = _shapes(levels, patch_size)
    names = OPERATIONS[blocks.dimensions]
    stages = range(first_level, len(levels))
    pairs = [(source + first_level, end + first_level) for source, end in edges(len(stages))]

    def node(stage: int) -> Tensor:
        return torch.empty(batch_size, levels[stage].features, *shapes[stage], device="meta", requires_grad=True)

    def image() -> Tensor:
        return torch.empty(batch_size, input_channels, *patch_size, device="meta")

    def edge(pair: tuple[int, int], name: str) -> tuple[float, float]:
        """What autograd keeps, and weights, gradients and momentum."""
        if name not in operation_steps(levels[pair[1]].kernel):
            return np.inf, 0.0
        x, activated = node(pair[0]), node(pair[0])
        module = _on_meta(lambda: Edge(blocks, levels, pair, name))
        return kept_mib(lambda: module(x, activated), [*module.parameters(), x, activated]), state_mib(module)

    def stem(stage: int) -> float:
        picture, module = image(), _on_meta(lambda: Stem(blocks, levels, stage, input_channels))
        return state_mib(module) + kept_mib(lambda: module(picture), [*module.parameters(), picture])

    def activated_node(stage: int) -> float:
        # A convolution reads the activation, which keeps its input or its output.
        x, activation = node(stage), blocks.activation(shared=True)
        reader = _on_meta(lambda: blocks.conv(levels[stage].features, 1, levels[stage].kernel))
        return kept_mib(lambda: reader(activation(x)), list(reader.parameters()))

    decoder = _on_meta(
        lambda: ChainDecoder(blocks, levels, len(levels) - 1, num_classes, deep_supervision=True, final_conv=final_conv)
    )
    ends = {stage: node(stage) for stage in stages}
    kept, state = np.array([[edge(pair, name) for name in names] for pair in pairs]).transpose(2, 0, 1)
    return MemoryModel(
        edges=kept + state,
        nodes=np.array([activated_node(stage) for stage in stages]),
        stems=np.array([stem(stage) for stage in stages]),
        fixed=state_mib(decoder) + kept_mib(lambda: decoder(ends), list(decoder.parameters())),
        state=state,
    )


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def _shapes(levels: Sequence[Level], patch_size: Sequence[int]) -> list[tuple[int, ...]]:
    """Spatial shape of every stage, voxels."""
    shape, shapes = list(patch_size), []
    for level in levels:
        shape = [length // step for length, step in zip(shape, level.stride, strict=True)]
        shapes.append(tuple(shape))
    return shapes
