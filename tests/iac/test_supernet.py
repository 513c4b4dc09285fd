"""The supernet against the plain implementation, the discrete cell and its own promises."""

import copy
import itertools

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from pairs import every_pair
from plain_pc_darts import PlainCell
from torch import nn

from nnunet_nas.errors import DataProblem
from nnunet_nas.iac.genotype import EDGES, OPERATIONS, Genotype, discretise
from nnunet_nas.iac.network import IACUNet, discrete_state
from nnunet_nas.iac.operations import CONVOLUTIONS
from nnunet_nas.iac.relaxation import edge_weights, operation_probabilities
from nnunet_nas.iac.settings import IACLTHSettings
from nnunet_nas.iac.supernet import IACSupernet, Mixture, SuperCell, _shuffled
from nnunet_nas.skips.unet import SKIP_PREFIX, load_backbone

LEVELS = {"2d": ((9, 8), (3, 3)), "3d": ((5, 6, 7), (3, 3, 3)), "anisotropic": ((3, 8, 7), (1, 3, 3))}


def super_cell(shape, kernel, *, partial=4, norm="instance", width=16):
    torch.manual_seed(0)
    return SuperCell(
        skip_channels=10,
        width=width,
        partial=partial,
        conv_op=nn.Conv2d if len(shape) == 2 else nn.Conv3d,
        norm=norm,
        kernel=kernel,
    ).double()


def relaxed(share=1.0):
    """alpha, beta (some above the cap of edge weights) and active operations; at least one per edge."""
    rng = np.random.default_rng(3)
    active = rng.random((len(EDGES), len(OPERATIONS))) < share
    active[np.arange(len(EDGES)), rng.integers(0, 7, len(EDGES))] = True
    alpha, beta = torch.from_numpy(rng.standard_normal(active.shape)), torch.from_numpy(rng.standard_normal(14))
    return alpha.requires_grad_(), beta.requires_grad_(), active


def probabilities_and_weights(alpha, beta, active):
    return operation_probabilities(alpha, torch.from_numpy(active)), edge_weights(beta)


def unet(cls=PlainConvUNet, conv=nn.Conv2d, norm=nn.InstanceNorm2d, kernels=3, strides=(1, 2, 2)):
    torch.manual_seed(1)
    blocks = "n_conv_per_stage" if cls is PlainConvUNet else "n_blocks_per_stage"
    arguments = {
        "n_stages": 3, "features_per_stage": (8, 16, 32), "conv_op": conv, "kernel_sizes": kernels, "strides": strides,
        blocks: 1, "n_conv_per_stage_decoder": 1, "conv_bias": True, "norm_op": norm,
        "norm_op_kwargs": {"affine": True}, "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    }  # fmt: skip
    return cls(1, num_classes=2, **arguments), arguments


@pytest.mark.parametrize(
    ("level", "partial", "share", "norm"), every_pair(list(LEVELS), [1, 2, 4], [1.0, 0.4], ["instance", "batch"])
)
def test_it_equals_the_plain_implementation_forward_and_gradients(level, partial, share, norm):
    shape, kernel = LEVELS[level]
    fast = super_cell(shape, kernel, partial=partial, norm=norm)
    plain = PlainCell(fast)
    alpha, beta, active = relaxed(share)
    generator = torch.Generator().manual_seed(5)
    given = torch.randn(2, 2, 10, *shape, generator=generator, dtype=torch.float64)
    outputs, gradients = [], []
    for version in ("plain", "fast"):
        skip, up = (x.clone().requires_grad_() for x in given)
        p, w = probabilities_and_weights(alpha, beta, active)
        if version == "plain":
            output = plain(skip, up, p, w, active)
        else:
            output = fast(skip, up, Mixture(p * w[:, None], w, active))
        (output.square() * torch.linspace(0, 1, shape[-1], dtype=torch.float64)).sum().backward()
        assert torch.stack((skip, up)).equal(given)  # the decoder's tensors are not written to
        outputs.append(output.detach())
        gradients.append([skip.grad, up.grad, alpha.grad, beta.grad])
        alpha.grad = beta.grad = None
    torch.testing.assert_close(*outputs)
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert_same_weight_gradients(fast, plain, active)


def assert_same_weight_gradients(fast, plain, active):
    """Of projections, output and every edge's convolutions; what lies beyond the first c/K channels has none."""
    for name, layer in (("skip", fast.project_skip), ("up", fast.project_up), ("output", fast.output)):
        torch.testing.assert_close(layer.weight.grad, plain.weights[name].grad)
    torch.testing.assert_close(fast.output.bias.grad, plain.weights["bias"].grad)
    for operation, shape in CONVOLUTIONS.items():
        column = OPERATIONS.index(operation)
        for repeat in range(shape.repeats):
            for kind in ("depthwise", "pointwise"):
                weight, expected = getattr(fast, kind)[f"{operation}_{repeat}"], []
                for row in range(len(EDGES)):
                    whole = torch.zeros_like(weight[row])
                    if active[row, column]:
                        theirs = getattr(plain.edges[row].operations[column], kind)[repeat].grad
                        whole[tuple(slice(length) for length in theirs.shape)] = theirs
                    expected.append(whole)
                ours = torch.zeros_like(weight) if weight.grad is None else weight.grad
                torch.testing.assert_close(ours, torch.stack(expected))


@pytest.mark.parametrize("size", [(5, 4), (2, 3, 4)])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("groups", "channels"), [(2, 3), (3, 2), (4, 3), (4, 4), (5, 1)])
def test_channels_are_shuffled_by_hand(groups, channels, size, last):
    """Channel q K + k is channel q of group k; the mixed channels are group 0."""
    x = torch.randn(2, groups * channels, *size, generator=torch.Generator().manual_seed(0))
    shuffled = _shuffled(x[:, :channels], x[:, channels:], groups, last=last)
    assert shuffled.shape == x.shape
    for q, k in itertools.product(range(channels), range(groups)):
        assert shuffled[:, q * groups + k].equal(x[:, k * channels + q])


@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (2, 3, 4, 3, 5)])
@pytest.mark.parametrize("scaled", [True, False])
def test_instance_norm_has_the_gradients_of_torch(shape, scaled):
    torch.manual_seed(0)
    cell = super_cell(shape[2:], (3,) * (len(shape) - 2))
    x = torch.randn(shape, dtype=torch.float64) * 3 + 5
    scale = torch.randn(shape[1], dtype=torch.float64) if scaled else None
    weighted = torch.randn(shape, dtype=torch.float64)
    results = []
    for normalise in (cell._normalise, lambda x, scale: nn.functional.instance_norm(x, weight=scale, eps=1e-5)):
        leaves = [leaf.clone().requires_grad_() for leaf in (x, scale) if leaf is not None]
        y = normalise(*leaves, *[None] * (2 - len(leaves)))
        results.append([y.detach(), *torch.autograd.grad((y * weighted).sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_autocast_keeps_gradients_of_the_architecture_in_single_precision(norm):
    cell, (alpha, beta, active) = super_cell((9, 8), (3, 3), norm=norm).float(), relaxed()
    alpha, beta = (leaf.detach().float().requires_grad_() for leaf in (alpha, beta))
    skip, up = torch.randn(2, 2, 10, 9, 8, generator=torch.Generator().manual_seed(5))
    gradients = []
    for mixed_precision in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
            p, w = probabilities_and_weights(alpha, beta, active)
            output = cell(skip, up, Mixture(p * w[:, None], w, active))
        gradients.append(torch.autograd.grad(output.float().square().mean(), (alpha, beta)))
    for single, mixed in zip(*gradients, strict=True):
        assert mixed.dtype == torch.float32
        # bfloat16 resolves 0.4 %; the errors of the layers mostly cancel.
        assert (single - mixed).norm() < 0.03 * single.norm()


def test_a_pruned_operation_costs_nothing(monkeypatch):
    cell, calls = super_cell((9, 8), (3, 3)), []
    convolve = cell.convolve
    monkeypatch.setattr(cell, "convolve", lambda *args: calls.append(args[1].shape) or convolve(*args))
    alpha, beta, active = relaxed()
    p, w = probabilities_and_weights(alpha, beta, active)
    skip = torch.randn(1, 10, 9, 8, dtype=torch.float64)
    cell(skip, skip, Mixture(p * w[:, None], w, active))
    everything, calls[:] = len(calls), []
    only_identity = np.zeros_like(active)
    only_identity[:, 0] = True
    cell(skip, skip, Mixture(p * w[:, None], w, only_identity))
    # Five nodes send: identity, both poolings and six kernels each; identity alone is one 1x1 kernel.
    assert (everything, len(calls)) == (5 * (2 + 6), 5)


def test_a_settled_supernet_equals_the_discrete_cell_at_the_same_weights():
    # K = 1; w is 0.5 on the two kept edges and 0 elsewhere, so that a supernet's node is half of the discrete sum.
    torch.manual_seed(2)
    convolutions = [name for name in OPERATIONS if "conv" in name]
    rng = np.random.default_rng(0)
    backbone, arguments = unet()
    supernet = IACSupernet(copy.deepcopy(backbone), IACLTHSettings(partial_channels=1))
    p, w = np.zeros((14, 7)), rng.random(14)
    p[np.arange(14), [OPERATIONS.index(convolutions[index]) for index in rng.integers(0, 4, 14)]] = 1
    genotype = discretise(p, w)
    halves = np.array([0.5 if any(edge.row == row for edge in genotype.edges) else 0.0 for row in range(14)])
    kept = torch.from_numpy(halves).float()
    coefficients = torch.from_numpy(p).float() * kept[:, None]
    supernet.mixture = lambda: Mixture(coefficients, kept, p > 0)

    discrete = IACUNet(
        1, 2, backbone="dynamic_network_architectures.architectures.unet.PlainConvUNet",
        cells={"genotype": genotype.to_json(), "widths": supernet.widths(), "norm": "instance"},
        **arguments,
    )  # fmt: skip
    load_backbone(discrete, backbone.state_dict())
    discrete.load_theta_0(supernet.cell_state())
    for cell in discrete.decoder.skip_modules:
        half_the_nodes(cell)
    images = torch.randn(2, 1, 32, 24)
    for ours, theirs in zip(supernet(images), discrete(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def half_the_nodes(cell):
    for layer in cell.operations:
        layer.register_forward_hook(lambda _, given, result: result / 2)


@pytest.mark.parametrize("cls", [PlainConvUNet, ResidualEncoderUNet])
def test_theta_0_covers_every_weight_of_the_discrete_cells_but_norms(cls):
    backbone, arguments = unet(cls)
    supernet = IACSupernet(backbone, IACLTHSettings())
    genotype = discretise(*supernet.continuous_cell())
    genotype = Genotype.from_json({**genotype.to_json(), "5": {"1": "sep_conv_5", "4": "dil_conv_5"}})
    network = IACUNet(
        1, 2, backbone=f"dynamic_network_architectures.architectures.unet.{cls.__name__}",
        cells={"genotype": genotype.to_json(), "widths": supernet.widths()}, **arguments,
    )  # fmt: skip
    weights = discrete_state(supernet.cell_state(), genotype)
    norms = {
        f"{name}.{kind}"
        for name, module in network.named_modules()
        if isinstance(module, nn.InstanceNorm2d)
        for kind in ("weight", "bias")
    }
    own = {name: p for name, p in network.named_parameters() if name.startswith(SKIP_PREFIX) and name not in norms}
    assert {name: value.shape for name, value in weights.items()} == {name: p.shape for name, p in own.items()}


@pytest.mark.parametrize("what", ["widths", "levels", "no cells"])
def test_theta_0_of_other_cells_is_refused(what):
    backbone, arguments = unet()
    supernet = IACSupernet(backbone, IACLTHSettings())
    state, widths = supernet.cell_state(), supernet.widths()
    if what == "widths":
        widths = [width + 4 for width in widths]
    elif what == "levels":
        state = {key: value for key, value in state.items() if key.startswith(f"{SKIP_PREFIX}0.")}
    else:
        state = {f"{SKIP_PREFIX}0.psi.weight": torch.zeros(1)}
    network = IACUNet(
        1, 2, backbone="dynamic_network_architectures.architectures.unet.PlainConvUNet",
        cells={"genotype": GENOTYPE, "widths": widths}, **arguments,
    )  # fmt: skip
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(DataProblem, match="do not fit the cells"):
        network.load_theta_0(state)
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())


def test_training_changes_cells_alpha_and_beta_and_nothing_else():
    supernet = IACSupernet(unet(norm=nn.BatchNorm2d)[0], IACLTHSettings())
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    trained = [parameter for parameter in supernet.parameters() if parameter.requires_grad]
    assert len(trained) == len(supernet.cell_parameters()) + 2
    optimizer = torch.optim.SGD(trained, 0.1)
    supernet.train()
    for _ in range(2):
        optimizer.zero_grad()
        sum(output.square().mean() for output in supernet(torch.randn(2, 1, 32, 24))).backward()
        assert all(parameter.grad is None for parameter in supernet.encoder.parameters())
        optimizer.step()
    for name, value in supernet.state_dict().items():
        changed = not value.equal(before[name])
        assert changed == (name.startswith(SKIP_PREFIX) or name in ("alpha", "beta")), name


def test_the_beginning_is_uniform():
    p, w = IACSupernet(unet()[0], IACLTHSettings()).continuous_cell()
    assert p.dtype == w.dtype == np.float64
    np.testing.assert_allclose(p, 1 / 7)
    np.testing.assert_allclose(w, [1 / 2] * 2 + [1 / 3] * 3 + [1 / 4] * 4 + [1 / 5] * 5)


def test_a_backbone_of_another_width_does_not_fit():
    backbone, arguments = unet()
    other = PlainConvUNet(1, num_classes=2, **{**arguments, "features_per_stage": (8, 16, 24)})
    with pytest.raises(DataProblem, match="another architecture"):
        load_backbone(IACSupernet(backbone, IACLTHSettings()), other.state_dict())


@pytest.mark.parametrize("cls", [PlainConvUNet, ResidualEncoderUNet])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_feature_maps_of_cells_come_to_those_that_nnunet_counts(cls, deep_supervision):
    backbone, arguments = unet(cls)
    backbone.decoder.deep_supervision = arguments["deep_supervision"] = deep_supervision
    network = IACUNet(
        1, 2, backbone=f"dynamic_network_architectures.architectures.unet.{cls.__name__}",
        cells={"genotype": GENOTYPE, "widths": [16, 20]}, **arguments,
    )  # fmt: skip
    # Per voxel two projections, four separable convolutions of four each, and the output.
    cells = 32 * 24 * ((2 + 4 * 4) * 16 + 8) + 16 * 12 * ((2 + 4 * 4) * 20 + 16)
    assert network.compute_conv_feature_map_size((32, 24)) == backbone.compute_conv_feature_map_size((32, 24)) + cells
    with pytest.raises(ValueError, match="2 numbers"):
        network.compute_conv_feature_map_size((1, 32, 24))


def test_feature_maps_of_the_supernet_are_counted():
    backbone, _ = unet()
    plain = backbone.compute_conv_feature_map_size((32, 24))
    # Per voxel two projections, the output, and on 14 edges, with a quarter of the channels, identity, both
    # poolings together and one convolution for every application: 2 + 2 separable, 1 + 1 dilated.
    cells = sum(voxels * (2 * 16 + channels + 14 * 8 * 16 // 4) for voxels, channels in ((32 * 24, 8), (16 * 12, 16)))
    supernet = IACSupernet(backbone, IACLTHSettings(minimum_width=16))
    assert supernet.compute_conv_feature_map_size((32, 24)) == plain + cells


def test_networks_without_skips_are_refused():
    single = {"n_stages": 1, "features_per_stage": (8,), "strides": (1,)}
    _, arguments = unet()
    with pytest.raises(DataProblem, match="no skip connections"):
        IACUNet(
            1, 2, backbone="dynamic_network_architectures.architectures.unet.PlainConvUNet",
            cells={"genotype": GENOTYPE, "widths": []}, **{**arguments, **single},
        )  # fmt: skip


@pytest.mark.parametrize("widths", [None, [16], [16, 0], [16, "16"]])
def test_widths_that_do_not_fit_the_levels_are_refused(widths):
    _, arguments = unet()
    with pytest.raises(DataProblem, match="2 positive integers"):
        IACUNet(
            1, 2, backbone="dynamic_network_architectures.architectures.unet.PlainConvUNet",
            cells={"genotype": GENOTYPE, "widths": widths}, **arguments,
        )  # fmt: skip


GENOTYPE = {str(node): {"0": "identity", "1": "sep_conv_3"} for node in range(2, 6)}


def test_weights_of_cells_are_collected_once(monkeypatch):
    supernet = IACSupernet(unet()[0], IACLTHSettings())
    before, calls = supernet.cell_parameters(), []
    walk = supernet.named_parameters
    monkeypatch.setattr(supernet, "named_parameters", lambda *args, **kwargs: calls.append(1) or walk(*args, **kwargs))
    assert supernet.cell_parameters() is before
    assert not calls
