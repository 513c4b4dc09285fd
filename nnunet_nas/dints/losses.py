"""What a DiNTS search minimises beside the segmentation loss, in two modes.

`paper`: Eqs. 5, 7 and 10 as printed. `exact` (our choice): the entropies in nats per layer, the negative log
probability that the topology is feasible, and a hinge on the expected memory in MiB against the budget.

Eq. 10 holds M_e / M_a against sigma, and what M_a is decides what sigma can do. Eq. 9 as printed ("printed") counts
every edge with all its operations at once, so that the ratio of a network, whose edges have one operation each, never
comes near 1: sigma above some 0.3 (3-D) or 0.4 (2-D) asks for what cannot be. The authors' code in MONAI ("code")
leaves softmax(alpha) in M_a and sets the edges alone to one: the ratio runs from 0 to 1, by the edges. Ours ("largest")
is the largest network, every edge with its most expensive operation, as in `exact`: edges and operations both count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_nas.dints.memory import MemoryModel
from nnunet_nas.dints.probabilities import (
    log_feasible,
    marginals,
    operation_entropy,
    pattern_entropy,
    topology_loss,
)


@dataclass(frozen=True)
class ArchitectureTerms:
    """The parts of L_arch beside L_seg, scalars.

    Attributes:
        operations: L_alpha.
        patterns: L_eta.
        topology: L_tp or -log P(feasible), not weighted.
        memory: L_m.
    """

    operations: Tensor
    patterns: Tensor
    topology: Tensor
    memory: Tensor

    def total(self, topology_weight: float) -> Tensor:
        """The bracket of Eq. 11."""
        return self.operations + self.patterns + topology_weight * self.topology + self.memory


def paper_terms(
    edge_logits: Tensor, operation_logits: Tensor, model: MemoryModel, sigma: float, maximum: str = "code"
) -> ArchitectureTerms:
    """Eqs. 5, 7 and 10.

    Args:
        edge_logits: x, (layers, E).
        operation_logits: alpha before the softmax, (layers, E, N).
        model: memory of the parts; nodes, stems and chain do not enter, nor do weights, because the paper estimates by
            tensor size.
        sigma: share of the largest memory.
        maximum: what M_a is, `code`, `printed` or `largest`; see the module.
    """
    layers, count = edge_logits.shape
    patterns = 2.0**count - 1
    cost = torch.as_tensor(model.kept_by_edges).to(edge_logits)
    operations = torch.softmax(operation_logits, -1)
    by_edge = (operations * cost).sum(-1)
    expected = (marginals(edge_logits) * by_edge).sum()
    largest = {
        "code": by_edge.sum(),
        "printed": layers * cost.sum(),
        "largest": layers * cost.amax(-1).sum(),
    }[maximum]
    return ArchitectureTerms(
        operations=operation_entropy(operation_logits).sum() / operation_logits.numel(),
        patterns=pattern_entropy(edge_logits).sum() / (layers * patterns),
        topology=topology_loss(edge_logits, model.levels),
        memory=(expected / largest - sigma).abs(),
    )


def exact_terms(
    edge_logits: Tensor, operation_logits: Tensor, model: MemoryModel, budget_mib: float
) -> ArchitectureTerms:
    """Our form; arguments as of `paper_terms`, the budget in MiB.

    Operations of an edge count as much as the edge does: what will not be there need not be decided.
    """
    layers = len(edge_logits)
    operations = torch.softmax(operation_logits, -1)
    expected = model.expected(edge_logits, operations)
    weight = marginals(edge_logits)
    return ArchitectureTerms(
        operations=(weight * operation_entropy(operation_logits)).sum() / weight.sum(),
        patterns=pattern_entropy(edge_logits).sum() / layers,
        topology=-log_feasible(edge_logits, model.levels) / layers,
        memory=torch.relu(expected / budget_mib - 1),
    )
