"""The continuous cell: operation probabilities, capped edge weights, annealing (IAC-LTH, sections 3.2 and 6.3).

Pure torch functions on small tensors; they keep the dtype and the gradients of what they are given.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from nnunet_nas.iac.genotype import EDGES, INPUT_NODES, NODES

_CAP = 0.5
_NONLINEARITIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "elu": F.elu,
    "identity": lambda beta: beta,
    "softplus": F.softplus,
}


def operation_probabilities(alpha: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Softmax over the active operations of each edge (Eq. 2).

    Args:
        alpha: architecture parameters, (14, 7).
        active: operations that were not pruned, bool, (14, 7), at least one per edge.

    Returns:
        probabilities, (14, 7); exactly 0 for pruned operations.
    """
    return torch.softmax(alpha.masked_fill(~active, -math.inf), dim=1)


def edge_weights(beta: torch.Tensor, nonlinearity: str = "elu") -> torch.Tensor:
    """Weights of the edges into each node: softmax of phi(beta), no entry above a half (Eqs. 5 to 8).

    Where the largest weight w_max exceeds 0.5 it becomes 0.5 and the others 0.5 w / (1 - w_max). The others are
    computed as half the softmax among themselves: the same number, and finite where w_max rounds to 1.

    Args:
        beta: edge parameters, (14,).
        nonlinearity: phi: `elu`, `identity` or `softplus` (our choice; the paper's function is lost).

    Returns:
        weights, (14,), that sum to 1 over the edges into a node.
    """
    logits = _by_target(_NONLINEARITIES[nonlinearity](beta))
    free = torch.softmax(logits, dim=1)
    largest = F.one_hot(free.argmax(dim=1), free.shape[1]).bool()
    others = torch.softmax(logits.masked_fill(largest, -math.inf), dim=1)
    capped = torch.where(largest, _CAP, _CAP * others)
    weights = torch.where(free.amax(dim=1, keepdim=True) > _CAP, capped, free)
    return torch.cat([weights[row, : row + INPUT_NODES] for row in range(len(weights))])


def cosine_power(step: float, steps: float, *, start: float, end: float = 0.0, power: float = 10.0) -> float:
    """Cosine power annealing from `start` to `end`: eta at `step` of `steps`.

    eta = end + (start - end) (p^(1 + u) - p) / (p^2 - p) with u = (1 + cos(pi step / steps)) / 2; `power` 1 is its
    limit, plain cosine annealing. The paper gives no power; 10 is our choice.
    """
    unit = (1 + math.cos(math.pi * step / steps)) / 2
    share = unit if power == 1 else (power ** (1 + unit) - power) / (power**2 - power)
    return end + (start - end) * share


def _by_target(values: torch.Tensor) -> torch.Tensor:
    """(14,) as one row per computed node, (4, 5), filled with -inf."""
    table = values.new_full((NODES - INPUT_NODES, NODES - 1), -math.inf)
    return table.index_put(_positions(values.device), values)


@functools.cache
def _positions(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each edge, made once per device: a copy from the host would stop a GPU at every step."""
    targets = torch.tensor([target - INPUT_NODES for _, target in EDGES], device=device)
    return targets, torch.tensor([source for source, _ in EDGES], device=device)
