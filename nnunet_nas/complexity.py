"""What a network costs: parameters, multiply-accumulates, activation memory, checkpoint size.

Everything is counted on torch's `meta` device: no weights, no arithmetic, any patch size in milliseconds. One
multiply-accumulate (MAC) is two floating-point operations (FLOPs); convolutions and matrix products are counted, the
normalisations, activations and sums are not (torch's own `FlopCounterMode` decides).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from nnunet_nas.architecture import NETWORK_ERRORS, NetworkSpec, build_without_weights, one_line
from nnunet_nas.errors import DataProblem

MIB = 2**20


@dataclass(frozen=True)
class Complexity:
    """Costs of one network at its patch size, for a batch of one patch in float32.

    Attributes:
        parameters: trainable weights, heads of deep supervision included.
        macs: multiply-accumulates of one forward pass.
        flops: 2 * macs.
        inference_mib: MiB, largest sum of activations alive at once during a forward pass without gradients.
        training_mib: MiB that autograd keeps from the forward to the backward pass, without weights.
        checkpoint_mib: MiB of weights and SGD momentum, which make up nnU-Net's checkpoint file.
    """

    parameters: int
    macs: int
    flops: int
    inference_mib: float
    training_mib: float
    checkpoint_mib: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def complexity_of(spec: NetworkSpec) -> Complexity:
    """Counts a configuration's network at its patch size.

    Raises:
        DataProblem: nnU-Net cannot build the network, or it does not fit its patch size.
    """
    network, shape = build_without_weights(spec), training_shape(spec)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    stored = sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))
    with _processing(spec):
        macs = count_macs(network, shape)
        inference = inference_bytes(network, shape)
        training = training_bytes(network, shape)
    return Complexity(
        parameters=parameters,
        macs=macs,
        flops=2 * macs,
        inference_mib=inference / MIB,
        training_mib=training / MIB,
        checkpoint_mib=(stored + 4 * parameters) / MIB,
    )


def macs_of(spec: NetworkSpec) -> int:
    """The multiply-accumulates of `complexity_of` alone, in half of the time; raises as it does."""
    network = build_without_weights(spec)
    with _processing(spec):
        return count_macs(network, training_shape(spec))


def training_shape(spec: NetworkSpec) -> tuple[int, ...]:
    """A batch of one patch."""
    return (1, spec.input_channels, *spec.patch_size)


@contextlib.contextmanager
def _processing(spec: NetworkSpec) -> Iterator[None]:
    """Inside, a network that does not fit its patch size is a DataProblem."""
    try:
        yield
    except NETWORK_ERRORS as error:
        raise DataProblem(
            f"{spec.architecture['network_class_name']} cannot process its patch size "
            f"{'x'.join(map(str, spec.patch_size))} ({one_line(error)}): correct the configuration or plan again"
        ) from error


def count_macs(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-accumulates of one forward pass.

    Args:
        network: on any device.
        shape: of the input, (b, c, *spatial).
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(_input_like(network, shape))
    return counter.get_total_flops() // 2


def step_macs(network: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-accumulates of a forward and a backward pass; of frozen weights no gradients are computed."""
    counter = FlopCounterMode(display=False)
    with torch.enable_grad(), counter:
        outputs = network(_input_like(network, shape))
        sum(output.sum() for output in tree_leaves(outputs)).backward()
    return counter.get_total_flops() // 2


def inference_bytes(network: nn.Module, shape: Sequence[int]) -> int:
    """Largest number of bytes of activations alive at once during a forward pass without gradients."""
    tracker = _LiveBytes()
    with torch.no_grad(), tracker:
        network(_input_like(network, shape))
    return tracker.peak


def training_bytes(network: nn.Module, shape: Sequence[int]) -> int:
    """Bytes that autograd keeps of a forward pass for the backward pass; weights do not count."""
    return kept_bytes(lambda: network(_input_like(network, shape)), list(network.parameters()))


def kept_bytes(run: Callable[[], object], not_counted: Sequence[torch.Tensor]) -> int:
    """Bytes that autograd keeps during `run` for a backward pass; a storage kept twice counts once."""
    own = {tensor.untyped_storage()._cdata for tensor in not_counted}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for storage in kept.values())
    del result
    return total


def kept_mib(run: Callable[[], object], not_counted: Sequence[torch.Tensor]) -> float:
    """MiB that autograd keeps during `run`, each storage once."""
    return kept_bytes(run, not_counted) / MIB


def _input_like(network: nn.Module, shape: Sequence[int]) -> torch.Tensor:
    parameter = next(network.parameters())
    return torch.empty(tuple(shape), dtype=parameter.dtype, device=parameter.device)


class _LiveBytes(TorchDispatchMode):
    """Sums the storages that operations produce and that are still referenced, and remembers the largest sum.

    Attributes:
        peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        self.peak = max(self.peak, self._live)
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._known:
            return
        self._known.add(address)
        self._live += storage.nbytes()
        weakref.finalize(storage, self._forget, address, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self._live -= size
