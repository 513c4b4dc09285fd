"""Training steps on a GPU that is not there: torch's fake tensors know shape, type and device, and have no numbers.

What it finds: operands on two devices (an index that stayed on the CPU), types that do not fit, a number that is read
from the GPU inside a step (`item`, `if tensor`: the host would wait), and, if asked for, double precision, which
Apple's GPUs do not have. Autocast and gradient scaler decide as on a card.

What it cannot see: values; half against float operands of a convolution; generators of random numbers on the CPU; a CPU
index in `index_put`; memory, time and everything that a kernel does. The engine of autograd asks for a card, so the
graph is walked here, in Python, with the same nodes.
"""

from __future__ import annotations

import contextlib
import sys
import unittest.mock
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)


@contextlib.contextmanager
def fake_cuda(*, reads: bool = False) -> Iterator[None]:
    """Inside, `cuda` is there; real tensors from outside count as being on the CPU.

    Args:
        reads: whether numbers may be read from the card (each is 1); otherwise that is an error.
    """
    _forget_cached_tensors()
    patches = (
        unittest.mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        unittest.mock.patch.object(Tensor, "backward", backward),
        unittest.mock.patch("torch.autograd.grad", gradients),
        # Reads whether a gradient was infinite: the one place where nnU-Net's steps wait for the GPU, between passes.
        unittest.mock.patch("torch.amp.GradScaler._maybe_opt_step", _step),
        unittest.mock.patch.object(nn.Module, "_apply", _apply),
        # After the step nnU-Net reads the loss.
        unittest.mock.patch.object(Tensor, "numpy", _zeros),
    )
    readers = (
        unittest.mock.patch.object(Tensor, "item", _one),
        unittest.mock.patch.object(Tensor, "__float__", _one),
        unittest.mock.patch.object(Tensor, "tolist", _ones),
    )
    try:
        with contextlib.ExitStack() as stack:
            for patch in (*patches, *(readers if reads else ())):
                stack.enter_context(patch)
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            yield
    finally:
        _forget_cached_tensors()


def _forget_cached_tensors() -> None:
    """Networks keep index tensors; fake and real ones must not meet."""
    for name, module in list(sys.modules.items()):
        if name.startswith("nnunet_nas."):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _step(scaler: Any, optimizer: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
    del scaler, state
    return optimizer.step(*args, **kwargs)


def _one(tensor: Tensor) -> float:
    del tensor
    return 1.0


def _ones(tensor: Tensor) -> Any:
    return np.ones(tuple(tensor.shape)).tolist()


def _zeros(tensor: Tensor, **kwargs: Any) -> np.ndarray:
    del kwargs
    if tensor.device.type != "cpu":
        raise TypeError(f"a tensor on {tensor.device} has no numpy array")
    return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """What `to`, `double` and the like do, with new parameters: fake tensors cannot take the place of others."""
    made: dict[int, Tensor] = {}
    for part in module.modules() if recurse else [module]:
        both: tuple[Any, Any] = part._parameters, part._buffers
        for tensors in both:
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    with torch.no_grad():
                        there = function(tensor).detach()
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(there, tensor.requires_grad) if is_parameter else there
                tensors[name] = made[id(tensor)]
    return module


class NoDoublePrecision(TorchDispatchMode):
    """Refuses float64 on the card, as Apple's GPUs do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raises TypeError for an operation whose result is in double precision on the card."""
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda" and tensor.dtype == torch.float64:
                raise TypeError(f"{func} makes float64 on the card")
        return result


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """What `loss.backward()` does: adds to the gradients of all leaves."""

    def add(leaf: Tensor, gradient: Tensor) -> None:
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient

    _walk([loss], [torch.ones_like(loss)], add)


@torch.no_grad()
def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor | None, ...]:
    """What `torch.autograd.grad` gives, for inputs that are leaves."""
    del kwargs
    tops = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    leaves = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None:
        seeds = [torch.ones_like(top) for top in tops]
    else:
        seeds = [grad_outputs] if isinstance(grad_outputs, Tensor) else list(grad_outputs)
    found: dict[int, Tensor] = {}

    def add(leaf: Tensor, gradient: Tensor) -> None:
        found[id(leaf)] = found[id(leaf)] + gradient if id(leaf) in found else gradient

    _walk(tops, seeds, add)
    return tuple(found.get(id(leaf)) for leaf in leaves)


def _walk(tops: Sequence[Tensor], seeds: Sequence[Tensor], at_leaf: Callable[[Tensor, Tensor], None]) -> None:
    """Runs the nodes of a graph, each after all that lead to it."""
    start = [top.grad_fn for top in tops]
    waiting = _edges_into(start)
    pending: dict[tuple[Any, int], Tensor] = {}
    for top, seed in zip(tops, seeds, strict=True):
        _add(pending, (top.grad_fn, top.output_nr), seed)
    ready = [node for node in dict.fromkeys(start) if not waiting[node]]
    while ready:
        node: Any = ready.pop()
        given = [pending.pop((node, number), None) for number in range(len(node._input_metadata))]
        if hasattr(node, "variable"):
            if given[0] is not None:
                at_leaf(node.variable, given[0])
            continue
        for gradient, (target, number) in zip(_results(node, given), node.next_functions, strict=True):
            if target is None:
                continue
            if gradient is not None:
                _add(pending, (target, number), _fitting(gradient, target._input_metadata[number]))
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)


def _edges_into(start: Sequence[Any]) -> Counter[Any]:
    counted: Counter[Any] = Counter()
    seen, stack = set(start), list(dict.fromkeys(start))
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                counted[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    return counted


def _results(node: Any, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    if all(gradient is None for gradient in given):
        return [None] * len(node.next_functions)
    results = node(*given) if callable(node) else node.apply(*given)
    return results if isinstance(results, (tuple, list)) else [results]


def _fitting(gradient: Tensor, wanted: Any) -> Tensor:
    """What the engine makes of a gradient before it hands it on; it refuses another device.

    Raises:
        RuntimeError: the gradient is on another device than its tensor.
    """
    if gradient.device != wanted.device and gradient.dim():
        raise RuntimeError(f"a gradient on {gradient.device} for a tensor on {wanted.device}")
    if gradient.shape != torch.Size(wanted.shape):
        gradient = gradient.sum_to_size(wanted.shape)
    return gradient.to(device=wanted.device, dtype=wanted.dtype)


def _add(pending: dict[tuple[Any, int], Tensor], key: tuple[Any, int], gradient: Tensor) -> None:
    pending[key] = pending[key] + gradient if key in pending else gradient
