"""What a training step asks of a GPU, counted without one: launches, and MiB that autograd keeps.

    python examples/benchmarks/launches.py                      all networks, as nnU-Net trains them on a GPU
    python examples/benchmarks/launches.py -only iac retrofit   some of them
    python examples/benchmarks/launches.py -only dints_exact -names     and which operations they are

Forward pass, nnU-Net's loss with deep supervision, and backward pass run on fake tensors of device `cuda` (torch's
FakeTensorMode: shapes, types and devices, no numbers) under float16 autocast, as nnU-Net trains. A launch is an
operation of torch's lowest layer (aten) that reads or writes numbers: views, allocations and queries are left out. One
launch may be several kernels of CUDA. Blocking ones copy between the CPU and the GPU. MiB are storages that autograd
keeps from the forward to the backward pass, each once, weights not counted; `float32` beside it is the same without
autocast. Index tensors that networks make at their first step are there already.

Geometries are those that nnU-Net plans: 2-D 512x512, batch 12, 7 stages; 3-D 128x128x128, batch 2, 6 stages; DiNTS
96x96x96, batch 2, 12 layers, 5 stages, cells from half resolution on, 16 channels at the first stage. `retrofit` has
the largest cell, separable convolutions only; `mixed` one of every kind of operation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunet_nas.blocks import Blocks
from nnunet_nas.cli.common import format_table
from nnunet_nas.dints.network import DiNTSNet
from nnunet_nas.dints.operations import OPERATIONS, make_levels
from nnunet_nas.dints.supernet import DiNTSSupernet
from nnunet_nas.dints.topology import Topology, edges
from nnunet_nas.gpu_check.fake_cuda import backward, fake_cuda
from nnunet_nas.iac.genotype import MOST_EXPENSIVE, Genotype
from nnunet_nas.iac.network import IACUNet
from nnunet_nas.iac.settings import IACLTHSettings
from nnunet_nas.iac.supernet import IACSupernet

CLASSES = 3
MIB = 2**20
# Allocations and queries; views are known by their schemas.
_FREE = (
    "empty",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "empty_like",
    "_unsafe_view",
    "lift_fresh",
    "device",
)


@dataclass(frozen=True)
class Geometry:
    """What nnU-Net plans."""

    patch: tuple[int, ...]
    batch: int
    stages: int
    base: int = 32

    @property
    def features(self) -> list[int]:
        """Channels per stage."""
        most = 512 if len(self.patch) == 2 else 320
        return [min(most, self.base * 2**stage) for stage in range(self.stages)]

    @property
    def unet(self) -> dict[str, Any]:
        """In the vocabulary of plans."""
        flat = len(self.patch) == 2
        return {
            "n_stages": self.stages, "features_per_stage": self.features,
            "conv_op": nn.Conv2d if flat else nn.Conv3d, "kernel_sizes": [[3] * len(self.patch)] * self.stages,
            "strides": [[1 if stage == 0 else 2] * len(self.patch) for stage in range(self.stages)],
            "conv_bias": True, "norm_op": nn.InstanceNorm2d if flat else nn.InstanceNorm3d,
            "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True},
        }  # fmt: skip


FLAT, SOLID = Geometry((512, 512), 12, 7), Geometry((128, 128, 128), 2, 6)
DINTS = Geometry((96, 96, 96), 2, 5, base=16)
LAYERS, FIRST_LEVEL = 12, 1
MIXED = Genotype.from_json(
    {
        "2": {"0": "sep_conv_3", "1": "identity"},
        "3": {"0": "sep_conv_5", "2": "dil_conv_3"},
        "4": {"1": "max_pool_3", "3": "dil_conv_5"},
        "5": {"2": "sep_conv_3", "4": "sep_conv_5"},
    }
)


def plain(geometry: Geometry) -> nn.Module:
    """nnU-Net's own U-Net."""
    two = {"n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2}
    return PlainConvUNet(1, num_classes=CLASSES, deep_supervision=True, **geometry.unet, **two)


def iac(geometry: Geometry) -> nn.Module:
    """The relaxed cells of both searches, nothing pruned."""
    return IACSupernet(plain(geometry), IACLTHSettings())


def retrofit(geometry: Geometry, genotype: Genotype) -> nn.Module:
    """Residual cells in a frozen backbone."""
    with torch.device("meta"):
        widths = IACSupernet(plain(geometry), IACLTHSettings()).widths()
    network = IACUNet(
        1, CLASSES, backbone="dynamic_network_architectures.architectures.unet.PlainConvUNet", deep_supervision=True,
        cells={"genotype": genotype.to_json(), "widths": widths, "residual": True},
        **geometry.unet, n_conv_per_stage=2, n_conv_per_stage_decoder=2,
    )  # fmt: skip
    network.freeze_backbone()
    return network


def dints(geometry: Geometry, *, fast: bool, weights: bool = True) -> nn.Module:
    """All edges and operations; gradients of the weights, or of the architecture."""
    known = geometry.unet
    blocks = Blocks(*(known[key] for key in Blocks.__dataclass_fields__))
    levels = make_levels(known["features_per_stage"], known["kernel_sizes"], known["strides"], blocks.dimensions)
    network = DiNTSSupernet(
        input_channels=1, num_classes=CLASSES, blocks=blocks, levels=levels, first_level=FIRST_LEVEL,
        num_layers=LAYERS, deep_supervision=True, fast=fast,
    )  # fmt: skip
    for parameter in network.network_parameters():
        parameter.requires_grad_(weights)
    for parameter in network.architecture_parameters():
        parameter.requires_grad_(not weights)
    return network


def found(geometry: Geometry) -> nn.Module:
    """A found topology with every edge and every operation in turn: the largest that there is."""
    levels, names = geometry.stages - FIRST_LEVEL, OPERATIONS[len(geometry.patch)]
    pairs = edges(levels)
    chosen = [[names[(layer + edge) % len(names)] for edge in range(len(pairs))] for layer in range(LAYERS)]
    topology = Topology.from_arrays(np.ones((LAYERS, len(pairs)), bool), chosen, levels)
    return DiNTSNet(
        input_channels=1, num_classes=CLASSES, topology=topology.to_json(), first_level=FIRST_LEVEL,
        deep_supervision=True, **geometry.unet,
    )  # fmt: skip


NETWORKS: dict[str, tuple[Geometry, Callable[[Geometry], nn.Module]]] = {
    "plain_2d": (FLAT, plain),
    "iac_2d": (FLAT, iac),
    "retrofit_2d": (FLAT, lambda geometry: retrofit(geometry, MOST_EXPENSIVE)),
    "mixed_2d": (FLAT, lambda geometry: retrofit(geometry, MIXED)),
    "plain_3d": (SOLID, plain),
    "iac_3d": (SOLID, iac),
    "retrofit_3d": (SOLID, lambda geometry: retrofit(geometry, MOST_EXPENSIVE)),
    "dints_exact": (DINTS, lambda geometry: dints(geometry, fast=False)),
    "dints_exact_architecture": (DINTS, lambda geometry: dints(geometry, fast=False, weights=False)),
    "dints_fast": (DINTS, lambda geometry: dints(geometry, fast=True)),
    "dints_fast_architecture": (DINTS, lambda geometry: dints(geometry, fast=True, weights=False)),
    "dints_found": (DINTS, found),
}


class Launches(TorchDispatchMode):
    """Counts what a step asks of the GPU.

    Attributes:
        by_name: what reads or writes numbers.
        blocking: operations that take tensors of the CPU to the GPU or back, for which it stops.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.blocking: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not is_free(func):
            self.by_name[func.name()] += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        # Single numbers of the CPU are handed to a kernel as arguments.
        if {"cpu", "cuda"} <= {x.device.type for x in tensors if x.dim() or "copy" in func.name()}:
            self.blocking[func.name()] += 1
        return result


def is_free(func: Any) -> bool:
    """Views, allocations and queries."""
    view = any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)
    return view or func._schema.name.partition("::")[2] in _FREE


def loss_of(outputs: list[Tensor]) -> Tensor:
    """nnU-Net's, with its weights of deep supervision."""
    weights = [0.5**number for number in range(len(outputs) - 1)] + [0.0]
    single = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {},
        weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss,
    )  # fmt: skip
    targets = [torch.zeros_like(output[:, :1], dtype=torch.float32) for output in outputs]
    loss: Tensor = DeepSupervisionWrapper(single, weights)(outputs, targets)
    return loss


@dataclass
class Step:
    """One step: launches by name, stops for the CPU, and MiB that the network keeps."""

    forward: Counter[str]
    backward: Counter[str]
    blocking: int
    kept_mib: float
    kept_float32_mib: float

    @property
    def launches(self) -> int:
        """Of both passes."""
        return self.forward.total() + self.backward.total()


def measure(name: str) -> Step:
    """A step of a network, and what it keeps in half and in single precision."""
    geometry, build = NETWORKS[name]
    with fake_cuda():
        with torch.device("cuda"):
            network = build(geometry).train()
        image = torch.zeros(geometry.batch, 1, *geometry.patch, device="cuda")
        single = kept_mib(network, image)
        forward, back = Launches(), Launches()
        # Autocast keeps converted weights until it ends: one context for each step.
        with torch.autocast("cuda", torch.float16):
            half = kept_mib(network, image)
        with torch.autocast("cuda", torch.float16), forward:
            loss = loss_of(network(image))
        with back:
            backward(loss)
    blocking = forward.blocking.total() + back.blocking.total()
    return Step(forward.by_name, back.by_name, blocking, half, single)


def kept_mib(network: nn.Module, image: Tensor) -> float:
    """MiB of storages that autograd keeps, weights and image not counted."""
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers(), image)}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(image)
    total = sum(storage.nbytes() for storage in kept.values())
    del outputs
    return total / MIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-only", nargs="+", metavar="NAME", help=f"beginnings of names among {', '.join(NETWORKS)}")
    parser.add_argument("-names", action="store_true", help="the most frequent operations as well")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    names = [name for name in NETWORKS if not args.only or name.startswith(tuple(args.only))]
    steps = {name: measure(name) for name in names}
    if args.json:
        print(json.dumps({name: vars(step) | {"launches": step.launches} for name, step in steps.items()}, indent=4))
        return
    rows = [
        [name, str(step.forward.total()), str(step.backward.total()), str(step.launches), str(step.blocking),
         f"{step.kept_mib:.0f}", f"{step.kept_float32_mib:.0f}"]
        for name, step in steps.items()
    ]  # fmt: skip
    print(f"torch {torch.__version__}, fake CUDA, float16 autocast")
    print(format_table(["step", "forward", "backward", "launches", "blocking", "MiB kept", "float32"], rows))
    if args.names:
        for name, step in steps.items():
            for phase, counts in (("forward", step.forward), ("backward", step.backward)):
                print(f"{name} {phase}: " + ", ".join(f"{key} {count}" for key, count in counts.most_common(30)))


if __name__ == "__main__":
    sys.exit(main())
