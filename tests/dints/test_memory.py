"""The memory model against bytes counted on whole networks, and its expectation against enumeration."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_nas.blocks import Blocks
from nnunet_nas.complexity import MIB, kept_mib, training_bytes
from nnunet_nas.dints.decoding import decode
from nnunet_nas.dints.memory import MemoryModel, measure_memory
from nnunet_nas.dints.network import DiNTSNet
from nnunet_nas.dints.operations import OPERATIONS, SKIP, make_levels, operation_steps
from nnunet_nas.dints.topology import Topology, edges

FEATURES = (8, 12, 16, 24)
GEOMETRY = {
    "2d": ((64, 48), [[3, 3]] * 4, [[1, 1], [2, 2], [2, 2], [2, 2]]),
    "3d": ((16, 16, 16), [[3, 3, 3]] * 4, [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]),
    "anisotropic": (
        (8, 32, 32),
        [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
    ),
}
GEOMETRIES = pytest.mark.parametrize("name", GEOMETRY)
BATCH, CHANNELS, CLASSES = 2, 2, 3


def plan(name, **changes):
    patch, kernels, strides = GEOMETRY[name]
    kinds = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}
    conv, norm = kinds[len(patch)]
    return {
        "features_per_stage": FEATURES, "kernel_sizes": kernels, "strides": strides, "conv_op": conv, "conv_bias": True,
        "norm_op": norm, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True}, **changes,
    }  # fmt: skip


@cache
def measured(name, first_level=0, **changes):
    wanted = plan(name, **changes)
    keys = ("conv_op", "conv_bias", "norm_op", "norm_op_kwargs", "nonlin", "nonlin_kwargs")
    blocks = Blocks(**{key: wanted[key] for key in keys})
    levels = make_levels(wanted["features_per_stage"], wanted["kernel_sizes"], wanted["strides"], blocks.dimensions)
    return measure_memory(
        blocks, levels, first_level=first_level, patch_size=GEOMETRY[name][0], batch_size=BATCH,
        input_channels=CHANNELS, num_classes=CLASSES,
    )  # fmt: skip


def real_mib(topology, name, first_level=0, **changes):
    """Of the whole network, deep supervision included; the image, which is there in any case, is left out.

    Weights, gradients and momentum are 12 bytes per parameter.
    """
    with torch.device("meta"):
        network = DiNTSNet(
            input_channels=CHANNELS, n_stages=4, num_classes=CLASSES, topology=topology.to_json(),
            first_level=first_level, deep_supervision=True, **plan(name, **changes),
        )  # fmt: skip
    shape = (BATCH, CHANNELS, *GEOMETRY[name][0])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return (training_bytes(network, shape) + 12 * parameters - 4 * math.prod(shape)) / MIB


def random_topology(rng, name, first_level=0, layers=5):
    """With all operations of a level; the chain reaches all outputs of deep supervision."""
    kernels = GEOMETRY[name][1][first_level:]
    levels = len(kernels)
    selected = decode(rng.normal(-1, 2, (layers, 3 * levels - 2)), levels, outputs=0b11 << (levels - 2)).selected
    known = [list(operation_steps(kernel)) for kernel in kernels]
    names = [[str(rng.choice(known[end])) for _, end in edges(levels)] for _ in selected]
    return Topology.from_arrays(selected, names, levels)


@pytest.mark.parametrize("first_level", [0, 1])
@GEOMETRIES
def test_it_predicts_what_whole_networks_keep(name, first_level):
    model, rng = measured(name, first_level), np.random.default_rng(0)
    names = OPERATIONS[len(GEOMETRY[name][0])]
    for _ in range(3):
        topology = random_topology(rng, name, first_level)
        predicted, real = model.of(topology, names), real_mib(topology, name, first_level)
        # A node that is nothing but a skipped one, and a chain that begins above the coarsest level, need less.
        assert real - 1e-9 <= predicted <= 1.05 * real
        assert predicted <= model.full(len(topology.layers))


@pytest.mark.parametrize(
    "changes",
    [
        {"nonlin": nn.ReLU},
        {"nonlin": nn.GELU, "nonlin_kwargs": None},
        {"norm_op": nn.BatchNorm2d},
        {"norm_op": None, "norm_op_kwargs": None},
    ],
    ids=str,
)
def test_it_knows_what_other_layers_keep(changes):
    model, rng = measured("2d", **changes), np.random.default_rng(1)
    for _ in range(2):
        topology = random_topology(rng, "2d")
        real = real_mib(topology, "2d", **changes)
        assert real - 1e-9 <= model.of(topology, OPERATIONS[2]) <= 1.07 * real


def test_without_plain_skips_and_with_the_whole_chain_it_is_exact():
    model, rng, seen = measured("anisotropic", 0), np.random.default_rng(2), 0
    while seen < 3:
        drawn = random_topology(rng, "anisotropic")
        if drawn.outputs()[-1] < 3:
            continue
        layers = [
            {pair: "conv" if pair[0] == pair[1] and name == SKIP else name for pair, name in layer.items()}
            for layer in drawn.layers
        ]
        topology = Topology(4, tuple(layers))
        assert model.of(topology, OPERATIONS[3]) == pytest.approx(real_mib(topology, "anisotropic"), abs=1e-9)
        seen += 1


@GEOMETRIES
def test_operations_differ_in_memory(name):
    model = measured(name, 0)
    names = OPERATIONS[len(GEOMETRY[name][0])]
    for index, (source, end) in enumerate(edges(4)):
        cost = dict(
            zip(names, np.where(np.isfinite(model.edges[index]), model.kept_by_edges[index], np.inf), strict=True)
        )
        known = operation_steps(GEOMETRY[name][1][end])
        assert [operation for operation in names if np.isfinite(cost[operation])] == list(known)
        assert (cost[SKIP] == 0) == (source == end)
        two_steps = {cost[operation] for operation, steps in known.items() if len(steps) == 2}
        assert len(two_steps) == 1
        assert cost[SKIP] < cost["conv"] < two_steps.pop()


def test_a_convolution_and_a_node_by_hand():
    # Same level: two convolutions keep what is between them, 2 x 8 x 64 x 48 numbers of 4 bytes.
    model = measured("2d", norm_op=None, norm_op_kwargs=None)
    own = edges(4).index((0, 0))
    one_map = 2 * 8 * 64 * 48 * 4 / MIB
    cost = dict(zip(OPERATIONS[2], model.kept_by_edges[own], strict=True))
    assert cost == {SKIP: 0, "conv": 0, "y_x": one_map, "dilated": 0}
    # LeakyReLU keeps its input, the convolution after it its output.
    assert model.nodes[0] == 2 * one_map
    # A normalisation keeps its input, and mean, deviation and scale of 2 x 8 maps.
    assert measured("2d", 0).kept_by_edges[own, 1] == one_map + 3 * 2 * 8 * 4 / MIB
    # Weights, gradients and momentum of 8 x 8 kernels of 3 x 3 with biases, then of two of 3 x 1 and 1 x 3.
    assert (model.edges - model.kept_by_edges)[own, 1] == 3 * 4 * (8 * 8 * 9 + 8) / MIB
    assert (model.edges - model.kept_by_edges)[own, 2] == pytest.approx(3 * 4 * 2 * (8 * 8 * 3 + 8) / MIB)
    assert (model.edges - model.kept_by_edges)[own, 0] == 0


def test_bytes_are_counted_once_and_weights_not_at_all():
    x, weight = torch.ones(1000, requires_grad=True), torch.ones(1000, requires_grad=True)
    # x times weight keeps both; the exponential keeps its output; the square keeps that again.
    assert kept_mib(lambda: (x * weight).exp().square(), [weight]) == 8000 / MIB
    assert kept_mib(lambda: x + weight, []) == 0


def small_model(levels, operations, *, absent=False):
    """Numbers of no network; every part its own."""
    rng = np.random.default_rng(levels)
    cost = rng.uniform(1, 9, (3 * levels - 2, operations))
    if absent:
        cost[-1, -1] = np.inf
    return MemoryModel(cost, rng.uniform(1, 9, levels), rng.uniform(1, 9, levels), 2.5)


def relaxed(model, layers, seed=0):
    """x and softmax(alpha), (layers, E) and (layers, E, N)."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 1.5, (layers, len(model.edges))))
    alpha = torch.from_numpy(rng.normal(0, 1, (layers, *model.edges.shape)))
    alpha = alpha.masked_fill(torch.from_numpy(np.isinf(model.edges)), -1e9)
    return logits.requires_grad_(), alpha.requires_grad_()


def enumerated_mib(model, logits, operations):
    """Mean over all networks of one layer, each drawn edge by edge, and drawn again if it has none."""
    names = OPERATIONS[2][: operations.shape[-1]]
    probability = torch.sigmoid(logits).tolist()
    total = mass = 0.0
    for choice in itertools.product((None, *names), repeat=len(logits)):
        layer = {pair: name for pair, name in zip(edges(model.levels), choice, strict=True) if name}
        weight = math.prod(
            1 - p if name is None else p * o[names.index(name)]
            for p, o, name in zip(probability, operations.tolist(), choice, strict=True)
        )
        if layer and weight:
            mass += weight
            total += weight * model.of(Topology(model.levels, (layer,)), names)
    return total / mass


@pytest.mark.parametrize(("levels", "operations", "absent"), [(2, 4, False), (2, 3, True), (3, 2, False)])
def test_the_expectation_is_the_mean_of_all_networks(levels, operations, absent):
    model = small_model(levels, operations, absent=absent)
    logits, alpha = relaxed(model, 1)
    expected = model.expected(logits, torch.softmax(alpha, -1)).item()
    assert expected == pytest.approx(enumerated_mib(model, logits[0], torch.softmax(alpha[0], -1)))


def test_stems_and_the_chain_count_once_and_layers_add_up():
    model = small_model(2, 3)
    no_stems = MemoryModel(model.edges, model.nodes, np.zeros(2), 0.0)
    logits, alpha = relaxed(model, 2)
    operations = torch.softmax(alpha, -1)
    by_layer = enumerated_mib(model, logits[0], operations[0]) + enumerated_mib(no_stems, logits[1], operations[1])
    assert model.expected(logits, operations).item() == pytest.approx(by_layer)


def test_the_expectation_of_a_settled_topology_is_its_memory():
    model, rng = measured("2d", 0), np.random.default_rng(3)
    for _ in range(3):
        topology = random_topology(rng, "2d")
        logits = torch.from_numpy(np.where(topology.selected(), 60.0, -60.0))
        operations = torch.zeros(*logits.shape, 4, dtype=torch.float64)
        for number, layer in enumerate(topology.layers):
            for index, pair in enumerate(edges(4)):
                operations[number, index, OPERATIONS[2].index(layer.get(pair, "conv"))] = 1
        assert model.expected(logits, operations).item() == pytest.approx(model.of(topology, OPERATIONS[2]))


@pytest.mark.parametrize("logit", [-800.0, -40.0, 0.0, 40.0, 800.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_and_say_the_right_thing_at_saturated_logits(logit, dtype):
    model = small_model(3, 4, absent=True)
    logits = torch.full((2, 7), logit, dtype=dtype)
    logits[1, ::2] = -logit
    alpha = relaxed(model, 2)[1].detach().to(dtype) * 300
    logits.requires_grad_()
    alpha.requires_grad_()
    expected = model.expected(logits, torch.softmax(alpha, -1))
    assert 0 < expected.item() <= model.full(2) * (1 + 1e-6)
    gradients = torch.autograd.grad(expected, (logits, alpha))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_largest_network_by_hand():
    # E = 4: the dearest operation of each edge; both nodes and both stems; the chain.
    cost = np.array([[1, 2], [3, 0], [0, 4], [5, np.inf]], float)
    model = MemoryModel(cost, np.array([10.0, 20.0]), np.array([100.0, 200.0]), 1000.0)
    assert model.full(3) == 1000 + 300 + 3 * (30 + 2 + 3 + 4 + 5)
    # One edge down, read through the activation of level 0, then a plain skip, which reads none.
    path = Topology(2, ({(0, 1): "conv"}, {(1, 1): SKIP}))
    assert model.of(path, (SKIP, "conv")) == 1000 + 100 + (10 + 4) + 5
