"""Every network that this package trains, small, as `gpu_check` builds them: from plans architectures, without data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nnunet_nas.architecture import NetworkSpec, build_network
from nnunet_nas.dints.settings import DiNTSSettings
from nnunet_nas.dints.trainers import nnUNetTrainerDiNTSSearch
from nnunet_nas.encoders.network import ENCODERS
from nnunet_nas.iac.genotype import Genotype, cells_architecture
from nnunet_nas.iac.settings import IACLTHSettings
from nnunet_nas.iac.trainers import nnUNetTrainerIACLTHSearch
from nnunet_nas.plans import wrapped
from nnunet_nas.randomness import seed_everything
from nnunet_nas.skips.network import MODULES

_STAGES = 4
_FEATURES = [8, 16, 32, 32]
# One of every kind of operation.
GENOTYPE = Genotype.from_json(
    {
        "2": {"0": "sep_conv_3", "1": "identity"},
        "3": {"0": "sep_conv_5", "2": "dil_conv_3"},
        "4": {"1": "max_pool_3", "3": "dil_conv_5"},
        "5": {"2": "avg_pool_3", "4": "sep_conv_3"},
    }
)


@dataclass(frozen=True)
class Subject:
    """A network to look at.

    Attributes:
        name: for the report.
        build: makes it on the CPU, the same at every call, with deep supervision.
        shape: of images, (b, c, *spatial).
        found: whether it is a result, whose graph stands still, and not a search's network.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    found: bool = True

    def images(self) -> torch.Tensor:
        """The same noise at every call."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(0))


def subjects(*, quick: bool = False) -> Iterator[Subject]:
    """All networks in 2-D, and in 3-D what is not bound to 2-D; `quick`: one of each kind, in 2-D."""
    for dimensions in (2,) if quick else (2, 3):
        base = unet(dimensions)
        for name, architecture in _found(base, quick=quick).items():
            spec = replace(base, architecture=architecture)
            yield Subject(f"{name}, {dimensions}-D", _builder(spec), _shape(spec))
        for name, build in _searched(base).items():
            yield Subject(f"{name}, {dimensions}-D", build, _shape(base), found=False)


def unet(dimensions: int, name: str = "PlainConvUNet") -> NetworkSpec:
    """A small U-Net as nnU-Net plans it."""
    per_stage = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    kwargs = {
        "n_stages": _STAGES, "features_per_stage": _FEATURES,
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d", "kernel_sizes": [[3] * dimensions] * _STAGES,
        "strides": [[1] * dimensions, *[[2] * dimensions] * (_STAGES - 1)],
        per_stage: [2] * _STAGES, "n_conv_per_stage_decoder": [2] * (_STAGES - 1), "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    architecture = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return NetworkSpec(architecture, 1, 3, (32,) * dimensions, 2)


def _found(base: NetworkSpec, *, quick: bool) -> dict[str, dict[str, Any]]:
    plain, dimensions = base.architecture, len(base.patch_size)
    widths = [8] * (_STAGES - 1)
    known = {
        "plain U-Net": plain,
        "residual-encoder U-Net": unet(dimensions, "ResidualEncoderUNet").architecture,
        "cells": cells_architecture(plain, GENOTYPE, widths=widths, norm="backbone", residual=False),
        "residual cells": cells_architecture(plain, GENOTYPE, widths=widths, norm="batch", residual=True),
        "found topology": _topology(plain, dimensions),
    }
    if not quick:
        network = "nnunet_nas.skips.network.SkipModuleUNet"
        known |= {f"skip module {name}": wrapped(plain, network, skip_module=name) for name in MODULES}
    if dimensions == 2:
        known |= {
            f"encoder {name}": encoder(plain, name) for name in (("mobilenetv3_large",) if quick else tuple(ENCODERS))
        }
    return known


def encoder(plain: dict[str, Any], name: str) -> dict[str, Any]:
    """A U-Net with an encoder of timm; 2-D."""
    kept = ("n_stages", "strides", "n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "nonlin")
    kwargs = {key: plain["arch_kwargs"][key] for key in (*kept, "nonlin_kwargs")}
    return {
        "network_class_name": "nnunet_nas.encoders.network.TimmUNet",
        "arch_kwargs": {**kwargs, "encoder": name},
        "_kw_requires_import": ["norm_op", "nonlin"],
    }


def _topology(plain: dict[str, Any], dimensions: int) -> dict[str, Any]:
    split = "y_x" if dimensions == 2 else "zx_y"
    layers = [
        {"0->0": "conv", "0->1": "skip", "2->2": "skip"},
        {"0->0": "skip", "1->0": "conv", "1->1": split, "2->3": "conv"},
        {"0->0": split, "1->1": "skip", "1->2": "conv", "3->2": "skip"},
    ]
    kwargs = {key: value for key, value in plain["arch_kwargs"].items() if not key.startswith("n_conv_per_stage")}
    return {
        **plain,
        "network_class_name": "nnunet_nas.dints.network.DiNTSNet",
        "arch_kwargs": {**kwargs, "topology": {"levels": _STAGES, "layers": layers}, "first_level": 0},
    }


def _searched(base: NetworkSpec) -> dict[str, Callable[[], nn.Module]]:
    def cells() -> nn.Module:
        seed_everything(0)
        return nnUNetTrainerIACLTHSearch.supernet(base, IACLTHSettings())

    def topologies(kind: str) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            seed_everything(0)
            settings = DiNTSSettings(num_layers=3, supernet=kind, first_level=0)  # type: ignore[arg-type]
            return nnUNetTrainerDiNTSSearch.supernet(base, settings)

        return build

    return {
        "IAC's search": cells,
        "DiNTS's search, exact": topologies("exact"),
        "DiNTS's search, fast": topologies("fast"),
    }


def _builder(spec: NetworkSpec) -> Callable[[], nn.Module]:
    return lambda: build_network(spec, seed=0, deep_supervision=True)


def _shape(spec: NetworkSpec) -> tuple[int, ...]:
    return (spec.batch_size, spec.input_channels, *spec.patch_size)
