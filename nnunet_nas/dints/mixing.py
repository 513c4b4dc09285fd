"""What a step of the relaxed network computes of its parameters alone, for all edges of all layers at once.

On a GPU one edge after the other costs thousands of launches of tiny kernels; together they are a few dozen, with the
same numbers. Edges into the same level have the same operations and channels, so that theirs are stacked:

- weights and biases in the half precision of autocast,
- affine parts of normalisations times the weights m softmax(alpha) of their operations,
- in the fast form the mixture of every edge's kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from nnunet_nas.dints.operations import Step
from nnunet_nas.precision import autocast_dtype


class Converted:
    """Parameters of convolutions as autocast would convert them, in one go instead of one by one."""

    def __init__(self, convolutions: Sequence[Any]) -> None:
        parameters = [own for conv in convolutions for own in (conv.weight, conv.bias) if own is not None]
        parts = iter(_together(parameters))
        self._own = {id(conv): (next(parts), None if conv.bias is None else next(parts)) for conv in convolutions}

    def convolve(self, conv: Any, x: Tensor) -> Tensor:
        """What the module `conv` computes of `x`."""
        output: Tensor = conv._conv_forward(x, *self._own[id(conv)])
        return output

    def weight(self, conv: Any) -> Tensor:
        """Of a convolution."""
        return self._own[id(conv)][0]


def _together(parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    dtype = autocast_dtype(parameters[0].device) if parameters else None
    if dtype is None or parameters[0].dtype != torch.float32:
        return parameters
    flat = torch.cat([parameter.flatten() for parameter in parameters]).to(dtype)
    parts = flat.split([parameter.numel() for parameter in parameters])
    return [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]


@dataclass(frozen=True)
class Affine:
    """Scale and shift of normalisations times the weights of their operations.

    Attributes:
        scale: (layers, edges, operations, c), or parts of it.
        shift: likewise.
    """

    scale: Tensor
    shift: Tensor

    def parts(self) -> list[Affine]:
        """Along the first axis."""
        return [Affine(*pair) for pair in zip(self.scale.unbind(), self.shift.unbind(), strict=True)]

    def summed(self) -> Affine:
        """Over the operations, which stay an axis."""
        return Affine(self.scale.sum(-2, keepdim=True), self.shift.sum(-2, keepdim=True))


def weighted_affine(norms: Sequence[Any], weights: Tensor) -> Affine:
    """Affine parts times weights, (layers, edges, operations, c).

    Args:
        norms: affine instance norms of the same channels, layer by layer, edge by edge, operation by operation.
        weights: of these operations, (layers, edges, operations).
    """
    shape = (*weights.shape, -1)
    scale, shift = (torch.stack(own).view(shape) for own in ([n.weight for n in norms], [n.bias for n in norms]))
    return Affine(scale * weights.unsqueeze(-1), shift * weights.unsqueeze(-1))


def mixed_kernels(kernels: Sequence[Sequence[Tensor]], steps: Sequence[Sequence[Step]], weights: Tensor) -> Tensor:
    """One kernel for every edge: its operations' kernels, each output channel at unit norm, in shares of their weights.

    Unit norm is what a normalisation would give them, for white inputs.

    Args:
        kernels: by operation and step, stacked over edges, (edges, outputs, inputs, *kernel).
        steps: kernel and dilation, likewise.
        weights: (edges, operations).

    Returns:
        (edges, outputs, inputs, *kernel), as wide as the widest operation.
    """
    composed = [composed_kernels(own, theirs) for own, theirs in zip(kernels, steps, strict=True)]
    reach = [max(kernel.shape[axis] for kernel in composed) for axis in range(3, composed[0].dim())]
    stacked = torch.stack([_centred(kernel, reach) for kernel in composed], 1)
    norms = torch.linalg.vector_norm(stacked.flatten(3), dim=-1).clamp(min=1e-8)
    # Where m or the skip has left nothing for them, the clamp keeps 0 / 0 out.
    shares = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    factors = shares.unsqueeze(-1) / norms
    return (stacked * factors.view(*factors.shape, *(1,) * (stacked.dim() - 3)).to(stacked.dtype)).sum(
        1, dtype=stacked.dtype
    )


def composed_kernels(kernels: Sequence[Tensor], steps: Sequence[Step]) -> Tensor:
    """The single kernels that convolutions in sequence amount to, away from the border; dilation is written out.

    Args:
        kernels: of convolutions without anything between them but biases, which do not matter before a normalisation;
            (edges, outputs, inputs, *kernel) each.
        steps: their kernels and dilations.

    Returns:
        (edges, outputs, inputs, *kernel).
    """
    kernel = _dilated(kernels[0], steps[0][1])
    for following, (_, dilation) in zip(kernels[1:], steps[1:], strict=True):
        second = _dilated(following, dilation)
        # The two span different axes, so every pair of taps meets at one place of its own.
        sizes = [a + b - 1 for a, b in zip(kernel.shape[3:], second.shape[3:], strict=True)]
        product = torch.einsum("emip,eomq->eoipq", kernel.flatten(3), second.flatten(3))
        axes = product.unflatten(3, kernel.shape[3:]).unflatten(3 + len(sizes), second.shape[3:])
        interleaved = [3 + axis + len(sizes) * part for axis in range(len(sizes)) for part in range(2)]
        kernel = axes.permute(0, 1, 2, *interleaved).reshape(*product.shape[:3], *sizes)
    return kernel


def _dilated(kernel: Tensor, dilation: int) -> Tensor:
    if dilation == 1:
        return kernel
    wide = kernel.new_zeros(*kernel.shape[:3], *(dilation * (size - 1) + 1 for size in kernel.shape[3:]))
    taps = (slice(None), slice(None), slice(None), *[slice(None, None, dilation)] * (kernel.dim() - 3))
    wide[taps] = kernel
    return wide


def _centred(kernel: Tensor, reach: Sequence[int]) -> Tensor:
    """Zeros around kernels up to the size `reach`."""
    margins = [(wide - size) // 2 for wide, size in zip(reach, kernel.shape[3:], strict=True)]
    return pad(kernel, [margin for each in reversed(margins) for margin in (each, each)]) if any(margins) else kernel
