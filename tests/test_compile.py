"""What torch.compile makes of the networks that plans name: one graph each, the same numbers, under autocast too.

nnU-Net compiles on CUDA unless `nnUNet_compile` is off, so a found network must not break its graph. Tracing is alike
whatever compiles the graph; Inductor itself takes minutes, and runs with the slow layer.
"""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from nnunet_nas.blocks import Blocks
from nnunet_nas.dints.network import DiNTSNet
from nnunet_nas.dints.operations import OPERATIONS, make_levels
from nnunet_nas.dints.supernet import DiNTSSupernet
from nnunet_nas.dints.topology import Topology, edges
from nnunet_nas.iac import cell as cells
from nnunet_nas.iac.genotype import Genotype
from nnunet_nas.iac.network import IACUNet

STAGES, LAYERS = 3, 3
MIXED = {
    "2": {"0": "sep_conv_3", "1": "identity"},
    "3": {"0": "sep_conv_5", "2": "dil_conv_3"},
    "4": {"1": "max_pool_3", "3": "dil_conv_5"},
    "5": {"2": "avg_pool_3", "4": "sep_conv_5"},
}
PLAN = {
    "n_stages": STAGES, "features_per_stage": [4, 8, 16], "conv_op": nn.Conv2d, "kernel_sizes": [[3, 3]] * STAGES,
    "strides": [[1, 1], [2, 2], [2, 2]], "conv_bias": True, "norm_op": nn.InstanceNorm2d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True},
    "deep_supervision": True,
}  # fmt: skip
TWO = {"n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1}


def found():
    """Every edge, and every operation in turn."""
    pairs, names = edges(STAGES), OPERATIONS[2]
    chosen = [[names[(layer + edge) % len(names)] for edge in range(len(pairs))] for layer in range(LAYERS)]
    topology = Topology.from_arrays(np.ones((LAYERS, len(pairs)), bool), chosen, STAGES)
    return DiNTSNet(input_channels=1, num_classes=2, topology=topology.to_json(), **PLAN)


def retrofit():
    """Cells in a frozen backbone, every kind of operation in them."""
    network = IACUNet(
        1, 2, backbone="dynamic_network_architectures.architectures.unet.PlainConvUNet",
        cells={"genotype": Genotype.from_json(MIXED).to_json(), "widths": [4, 4], "residual": False}, **PLAN, **TWO,
    )  # fmt: skip
    network.freeze_backbone()
    return network


def recomputed_retrofit():
    """Likewise, with cells that are computed again in the backward pass."""
    network = retrofit()
    network.decoder.recompute = True
    return network


def mixture(*, fast=False, num_layers=2):
    """DiNTS's supernet, whose weights are trained."""
    blocks = Blocks(*(PLAN[key] for key in Blocks.__dataclass_fields__))
    levels = make_levels(PLAN["features_per_stage"], PLAN["kernel_sizes"], PLAN["strides"], 2)
    network = DiNTSSupernet(
        input_channels=1, num_classes=2, blocks=blocks, levels=levels, first_level=1, num_layers=num_layers,
        deep_supervision=True, fast=fast,
    )  # fmt: skip
    network.apply(network.initialize)
    network.train_only(weights=True)
    return network


def step(network, compiled, images, half):
    """Outputs and gradients."""
    for parameter in network.parameters():
        parameter.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        outputs = compiled(images)
    sum(output.float().square().mean() for output in outputs).backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return [output.detach().clone() for output in outputs], gradients


def compare(build, backend, *, half, tolerance):
    torch.manual_seed(0)
    network, images = build(), torch.randn(2, 1, 16, 16)
    expected, wanted = step(network, network, images, half)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(network, backend=backend)
    step(network, compiled, images, half)
    outputs, gradients = step(network, compiled, images, half)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    for ours, theirs in zip(outputs, expected, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()
    assert gradients.keys() == wanted.keys()
    # The bias of a convolution before a norm has none but rounding, so the whole is the measure.
    whole = sum(gradient.square().sum() for gradient in wanted.values()).sqrt()
    assert all((gradients[name] - wanted[name]).norm() <= tolerance * whole for name in wanted)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("build", [found, retrofit])
def test_one_graph_and_the_same_numbers(build, half):
    compare(build, "eager", half=half, tolerance=1e-6)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("build", [retrofit, recomputed_retrofit])
def test_cells_as_a_gpu_computes_them_are_one_graph_too(build, half, monkeypatch):
    monkeypatch.setattr(cells, "waits_for_calls", lambda device: True)
    compare(build, "eager", half=half, tolerance=1e-6)


@pytest.mark.parametrize("fast", [False, True])
def test_the_mixture_of_dints_is_one_graph(fast):
    compare(functools.partial(mixture, fast=fast), "eager", half=False, tolerance=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("build", [found, retrofit, recomputed_retrofit, mixture])
def test_inductor_agrees(build):
    compare(build, "inductor", half=False, tolerance=1e-4)
