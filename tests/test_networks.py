"""One contract for every network that plans can name: what nnU-Net does to a network must work on it."""

import dataclasses
import io
import itertools

import pytest
import torch

from nnunet_nas.architecture import NetworkSpec, build_network
from nnunet_nas.encoders.network import ENCODERS
from nnunet_nas.xtiny.widths import capped_features

# Geometry as nnU-Net plans it: spatial shape, kernels and strides per stage.
GEOMETRY = {
    "2d": ((32, 24), [[3, 3]] * 4, [[1, 1], [2, 2], [2, 2], [2, 2]]),
    "3d": ((16, 16, 16), [[3, 3, 3]] * 4, [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]),
    "anisotropic": (
        (6, 32, 32),
        [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]],
        [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]],
    ),
}
STAGES = 4


def spec(network, geometry, cap):
    """A plans architecture, narrowed to `cap`."""
    patch, kernels, strides = GEOMETRY[geometry]
    dim = len(patch)
    kwargs = {
        "n_stages": STAGES,
        "features_per_stage": capped_features([32, 64, 128, 128], cap),
        "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage_decoder": [1] * (STAGES - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    kwargs["n_conv_per_stage" if network == "PlainConvUNet" else "n_blocks_per_stage"] = [1] * STAGES
    return NetworkSpec(
        architecture={
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
            "arch_kwargs": kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        input_channels=2,
        output_channels=3,
        patch_size=patch,
        batch_size=2,
    )


GENOTYPE = {
    "2": {"0": "sep_conv_3", "1": "identity"},
    "3": {"0": "max_pool_3", "2": "sep_conv_5"},
    "4": {"1": "dil_conv_3", "3": "avg_pool_3"},
    "5": {"3": "dil_conv_5", "4": "sep_conv_3"},
}


def with_cells(backbone, geometry, cap):
    """The same with a searched cell in every skip connection; residual ones where the U-Net is not."""
    plain = spec(backbone, geometry, cap)
    kwargs = {
        **plain.architecture["arch_kwargs"],
        "backbone": plain.architecture["network_class_name"],
        "cells": {
            "genotype": GENOTYPE,
            "widths": [16] * (STAGES - 1),
            "norm": "backbone",
            "residual": backbone == "PlainConvUNet",
        },
    }
    architecture = {**plain.architecture, "network_class_name": "nnunet_nas.iac.network.IACUNet", "arch_kwargs": kwargs}
    return dataclasses.replace(plain, architecture=architecture)


def with_topology(name, geometry, cap):
    """A searched topology with the same geometry: several paths, two stems, every kind of operation and edge."""
    plain = spec("PlainConvUNet", geometry, cap)
    split = "y_x" if geometry == "2d" else "zx_y"
    layers = {
        "whole": [
            {"0->0": "conv", "0->1": "skip", "2->2": "skip"},
            {"0->0": "skip", "1->0": "conv", "1->1": split, "2->3": "conv"},
            {"0->0": split, "1->1": "skip", "1->2": "conv", "3->2": "skip"},
        ],
        "path": [{"1->2": "skip"}, {"2->2": "skip"}, {"2->2": "conv"}],
        "half": [{"0->0": "skip", "0->1": split}, {"0->0": "skip", "1->1": "skip", "1->2": "conv"}],
    }[name]
    first_level = int(name == "half")
    kwargs = {
        key: value for key, value in plain.architecture["arch_kwargs"].items() if not key.startswith("n_conv_per_stage")
    }
    kwargs |= {"topology": {"levels": STAGES - first_level, "layers": layers}, "first_level": first_level}
    architecture = {
        **plain.architecture,
        "network_class_name": "nnunet_nas.dints.network.DiNTSNet",
        "arch_kwargs": kwargs,
    }
    return dataclasses.replace(plain, architecture=architecture)


def with_skip_modules(name, geometry, cap):
    """A published module in every skip connection; over both kinds of U-Net."""
    plain = spec("ResidualEncoderUNet" if name == "nested" else "PlainConvUNet", geometry, cap)
    kwargs = {
        **plain.architecture["arch_kwargs"],
        "backbone": plain.architecture["network_class_name"],
        "skip_module": name,
    }
    network = "nnunet_nas.skips.network.SkipModuleUNet"
    return dataclasses.replace(
        plain, architecture={**plain.architecture, "network_class_name": network, "arch_kwargs": kwargs}
    )


def with_encoder(name, geometry, cap):
    """An encoder of timm in place of nnU-Net's; the widths are its own."""
    plain = spec("PlainConvUNet", geometry, cap)
    wanted = ("n_stages", "strides", "n_conv_per_stage_decoder", "conv_bias", "norm_op", "norm_op_kwargs", "nonlin")
    kwargs = {key: plain.architecture["arch_kwargs"][key] for key in (*wanted, "nonlin_kwargs")}
    architecture = {
        "network_class_name": "nnunet_nas.encoders.network.TimmUNet",
        "arch_kwargs": {**kwargs, "encoder": name},
        "_kw_requires_import": ["norm_op", "nonlin"],
    }
    return dataclasses.replace(plain, architecture=architecture)


BACKBONES = ("PlainConvUNet", "ResidualEncoderUNet")
QUICK_ENCODER = "mobilenetv3_large"  # the others take seconds each
# Builder, name and widths that it is tried in.
KINDS = (
    *((spec, name, (1, 8)) for name in BACKBONES),
    *((with_cells, name, (8,)) for name in BACKBONES),
    *((with_topology, name, (8,)) for name in ("whole", "path", "half")),
    *((with_skip_modules, name, (8,)) for name in ("attention", "residual_attention", "nested", "conv")),
)
CONTRACT = []


def on_every_network(test):
    """Every kind of network goes through the test, in one geometry and width each.

    Kinds and tests take turns with them, so that each pair of kind, geometry, width and test meets somewhere.
    """
    turn, cases = len(CONTRACT), []
    for number, (build, name, widths) in enumerate(KINDS):
        geometry = tuple(GEOMETRY)[(turn + number) % len(GEOMETRY)]
        cases.append((build, name, geometry, widths[(turn + number) % len(widths)]))
    CONTRACT.append(cases)
    encoders = [(with_encoder, QUICK_ENCODER, "2d", 8)] + [
        pytest.param((with_encoder, name, "2d", 8), marks=pytest.mark.integration)
        for name in ENCODERS
        if name != QUICK_ENCODER
    ]
    return pytest.mark.parametrize(
        "network_spec",
        [*cases, *encoders],
        indirect=True,
        ids=lambda case: f"{case[0].__name__}-{case[1]}-{case[2]}-{case[3]}",
    )(test)


@pytest.fixture
def network_spec(request):
    build, *arguments = request.param
    return build(*arguments)


def images(network_spec, batch=2):
    return torch.randn(
        batch, network_spec.input_channels, *network_spec.patch_size, generator=torch.Generator().manual_seed(0)
    )


@on_every_network
def test_logits_have_the_shape_of_the_input(network_spec):
    logits = build_network(network_spec)(images(network_spec))
    assert logits.shape == (2, network_spec.output_channels, *network_spec.patch_size)


@on_every_network
def test_deep_supervision_goes_from_the_highest_resolution_down(network_spec):
    outputs = build_network(network_spec, deep_supervision=True)(images(network_spec))
    strides = network_spec.architecture["arch_kwargs"]["strides"]
    size = list(network_spec.patch_size)
    assert len(outputs) == STAGES - 1
    for output, stride in zip(outputs, strides, strict=False):
        size = [length // step for length, step in zip(size, stride, strict=True)]
        assert list(output.shape[2:]) == size


@on_every_network
def test_weights_fit_with_deep_supervision_on_and_off(network_spec):
    trained = build_network(network_spec, seed=1, deep_supervision=True)
    restored = build_network(network_spec, seed=2)
    restored.load_state_dict(trained.state_dict(), strict=True)
    trained.decoder.deep_supervision = False
    assert trained(images(network_spec)).equal(restored(images(network_spec)))


@on_every_network
def test_saved_and_loaded_it_predicts_the_same(network_spec):
    network, file = build_network(network_spec, seed=1), io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    loaded = build_network(network_spec, seed=2)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert loaded(images(network_spec)).equal(network(images(network_spec)))


@on_every_network
def test_gradients_are_finite_and_reach_every_weight(network_spec):
    network = build_network(network_spec, seed=1, deep_supervision=True)
    sum(output.square().mean() for output in network(images(network_spec))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@on_every_network
def test_the_same_seed_gives_the_same_weights(network_spec):
    one, same, other = (build_network(network_spec, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(one[key].equal(same[key]) for key in one)
    assert not all(one[key].equal(other[key]) for key in one)


@on_every_network
def test_it_answers_what_nnunet_asks(network_spec):
    network = build_network(network_spec)
    assert network.compute_conv_feature_map_size(network_spec.patch_size) > 0
    assert callable(network.initialize)
    assert network.get_submodule(network.key_to_encoder)
    assert network.get_submodule(network.key_to_stem)
    # Of a list of alternatives, some of which a network may not have.
    names = {name for name, _ in network.named_modules()}
    assert names & set(network.keys_to_in_proj)


@on_every_network
def test_it_exports(network_spec):
    network = build_network(network_spec, seed=1).eval()
    exported = torch.export.export(network, (images(network_spec, batch=1),))
    assert torch.allclose(
        exported.module()(images(network_spec, batch=1)), network(images(network_spec, batch=1)), atol=1e-5
    )


@on_every_network
def test_several_gpus_train_what_one_predicts_with(network_spec):
    network = build_network(network_spec, seed=1).eval()
    alone, names = network(images(network_spec)), list(network.state_dict())
    # As nnU-Net's trainer does with -num_gpus.
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert converted(images(network_spec)).equal(alone)
    assert list(converted.state_dict()) == names


def test_every_pair_of_kind_geometry_width_and_test_meets():
    met = set()
    for turn, cases in enumerate(CONTRACT):
        for build, name, geometry, width in cases:
            factors = ("kind", (build, name)), ("geometry", geometry), ("width", width), ("test", turn)
            met |= set(itertools.combinations(factors, 2))
    kinds = {("kind", (build, name)): widths for build, name, widths in KINDS}
    geometries, tests = ([(factor, value) for value in values] for factor, values in (
        ("geometry", GEOMETRY), ("test", range(len(CONTRACT)))))  # fmt: skip
    wanted = set(itertools.product(kinds, [*geometries, *tests])) | set(itertools.product(geometries, tests))
    for width in (("width", 1), ("width", 8)):
        wanted |= {(kind, width) for kind, widths in kinds.items() if width[1] in widths}
        wanted |= {(geometry, width) for geometry in geometries} | {(width, test) for test in tests}
    assert len(CONTRACT) == 9
    assert wanted <= met


@pytest.mark.integration
@pytest.mark.parametrize(
    ("build", "name"), [(with_cells, "PlainConvUNet"), (with_topology, "whole"), (with_skip_modules, "nested")]
)
def test_our_networks_are_one_graph_for_the_compiler(build, name):
    described = build(name, "2d", 8)
    network = build_network(described, seed=1)
    # The eager backend traces as nnU-Net's does and generates no code; one case, because tracing takes seconds.
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert compiled(images(described)).equal(network(images(described)))
