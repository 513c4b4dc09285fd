"""The relaxed network against Eq. 1 written out, against the discrete network, and its own promises."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, conv3d, instance_norm, interpolate, leaky_relu, pad

from nnunet_nas.blocks import Blocks
from nnunet_nas.dints.decoding import decode
from nnunet_nas.dints.mixing import composed_kernels
from nnunet_nas.dints.network import DiNTSNet
from nnunet_nas.dints.operations import OPERATIONS, SKIP, Convolutions, make_levels, operation_steps
from nnunet_nas.dints.supernet import DiNTSSupernet
from nnunet_nas.dints.topology import Topology, edges
from nnunet_nas.errors import DataProblem

FEATURES = (3, 4, 5)
# Patch, kernels and strides; three stages.
GEOMETRY = {
    "2d": ((16, 12), [[3, 3]] * 3, [[1, 1], [2, 2], [2, 2]]),
    "3d": ((8, 8, 4), [[3, 3, 3]] * 3, [[1, 1, 1], [2, 2, 2], [2, 2, 1]]),
    "anisotropic": ((4, 8, 8), [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [[1, 1, 1], [1, 2, 2], [2, 2, 2]]),
}
GEOMETRIES = pytest.mark.parametrize("name", GEOMETRY)
FIRST_LEVELS = pytest.mark.parametrize("first_level", [0, 1])


def plan(name, features=FEATURES, **changes):
    """nnU-Net's vocabulary for a network of three stages, activation in place as its plans have it."""
    patch, kernels, strides = GEOMETRY[name]
    kinds = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}
    conv, norm = kinds[len(patch)]
    return {
        "features_per_stage": features, "kernel_sizes": kernels, "strides": strides, "conv_op": conv, "conv_bias": True,
        "norm_op": norm, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True}, **changes,
    }  # fmt: skip


def supernet(name, *, first_level=0, num_layers=2, fast=False, deep_supervision=True, **changes):
    """In double precision, with random weights everywhere, in norms and in the architecture too."""
    wanted = plan(name, **changes)
    keys = ("conv_op", "conv_bias", "norm_op", "norm_op_kwargs", "nonlin", "nonlin_kwargs")
    blocks = Blocks(**{key: wanted[key] for key in keys})
    geometry = (wanted["features_per_stage"], wanted["kernel_sizes"], wanted["strides"], blocks.dimensions)
    network = DiNTSSupernet(
        input_channels=2,
        num_classes=3,
        blocks=blocks,
        levels=make_levels(*geometry),
        first_level=first_level,
        num_layers=num_layers,
        deep_supervision=deep_supervision,
        fast=fast,
    ).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return network


def images(name):
    return torch.randn(2, 2, *GEOMETRY[name][0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def size_of(outputs):
    """One number of a list of logits, to which everything contributes."""
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(output.shape, generator=generator, dtype=output.dtype) for output in outputs]
    return sum((output * weight).mean() for output, weight in zip(outputs, weights, strict=True))


def plain_forward(network, image):
    """Eq. 1 as it is printed, with m in its plain form; then the chain to the full resolution."""
    probability = torch.sigmoid(network.encoder.edge_logits)
    m = probability / (1 - (1 - probability).prod(1, keepdim=True))
    nodes = {int(level): stem(image) for level, stem in network.encoder.stems.items()}
    for number, layer in enumerate(network.encoder.layers):
        following = {}
        for index, (key, edge) in enumerate(layer.items()):
            source, end = map(int, key.split("_to_"))
            x = nodes[source] if source == end else edge.resample(leaky_relu(nodes[source]))
            outputs = [x, *(part.norm(part.convs(leaky_relu(x))) for part in edge.operations.values())]
            names = OPERATIONS[network.dimensions]
            existing = [0, *(names.index(operation) for operation in edge.operations)]
            shares = torch.softmax(network.encoder.alpha[number, index, existing], 0)
            mixed = sum(share * output for share, output in zip(shares, outputs, strict=True))
            following[end] = following.get(end, 0) + m[number, index] * mixed
        nodes = following
    chain, logits = network.decoder, []
    x = nodes[max(nodes)]
    for level in range(max(nodes), -1, -1):
        if level < max(nodes):
            step = chain.refine[level]
            x = step.norm(step.conv(leaky_relu(x)))
            x = interpolate(x, scale_factor=step.upsample.factors, mode=step.upsample.mode, align_corners=False)
            x = x + nodes.get(level, 0)
        if level < len(chain.seg_layers):
            logits.insert(0, chain.seg_layers[level](leaky_relu(x)))
    return logits


def mixed_edge(edge, x, activated, weights):
    """The fast form of one edge, as the module describes it: kernels at unit norm, mixed; one norm; then upsampling."""
    if edge.resample is not None:
        x = edge.resample.norm(edge.resample.conv(activated))
    activated_x = activated if edge.resample is None else leaky_relu(x)
    own = weights[edge.columns]
    parts = list(edge.operations.values())
    kernels = [
        composed_kernels([conv.weight[None] for conv in part.convs], steps)[0]
        for part, steps in zip(parts, edge.steps.values(), strict=True)
    ]
    reach = [max(kernel.shape[axis] for kernel in kernels) for axis in range(2, kernels[0].dim())]
    kernel = 0
    for kernel_of_one, share in zip(kernels, own / own.sum(), strict=True):
        margins = [(wide - size) // 2 for wide, size in zip(reach, kernel_of_one.shape[2:], strict=True)]
        unit = kernel_of_one / kernel_of_one.flatten(1).norm(dim=1).view(-1, *[1] * (kernel_of_one.dim() - 1))
        kernel = kernel + share * pad(unit, [margin for each in reversed(margins) for margin in (each, each)])
    convolve = conv3d if kernel.dim() == 5 else conv2d
    output = convolve(activated_x, kernel, padding=[size // 2 for size in reach])
    scale = sum(weight * part.norm.weight for weight, part in zip(own, parts, strict=True))
    shift = sum(weight * part.norm.bias for weight, part in zip(own, parts, strict=True))
    total = x * weights[0] + instance_norm(output, weight=scale, bias=shift, eps=parts[0].norm.eps)
    if edge.goes_up:
        factors = edge.resample.upsample.factors
        total = interpolate(total, scale_factor=factors, mode=edge.resample.upsample.mode, align_corners=False)
    return total


def random_topology(levels, dimensions, kernels, *, outputs, seed):
    """Feasible, with an output in the set `outputs` and every operation that a level has."""
    rng = np.random.default_rng(seed)
    selected = decode(rng.normal(0, 2, (3, 3 * levels - 2)), levels, outputs=outputs).selected
    known = [list(operation_steps(kernel)) for kernel in kernels]
    names = [[str(rng.choice(known[end])) for _, end in edges(levels)] for _ in selected]
    return Topology.from_arrays(selected, names, levels)


def settle(network, topology):
    """Architecture parameters of which nothing but the topology is left."""
    alpha, logits = network.encoder.alpha, network.encoder.edge_logits
    with torch.no_grad():
        alpha.zero_()
        logits.fill_(-60)
        for number, layer in enumerate(topology.layers):
            for pair, operation in layer.items():
                index = edges(topology.levels).index(pair)
                logits[number, index] = 60
                alpha[number, index, OPERATIONS[network.dimensions].index(operation)] = 1000


def discrete_twin(network, topology, name, first_level):
    """`DiNTSNet` with the supernet's weights."""
    twin = DiNTSNet(
        input_channels=2, num_classes=3, n_stages=3, topology=topology.to_json(), first_level=first_level,
        deep_supervision=True, **plan(name),
    ).double()  # fmt: skip
    operations = {
        f"encoder.layers.{number}.{source + first_level}_to_{end + first_level}": operation
        for number, layer in enumerate(topology.layers)
        for (source, end), operation in layer.items()
    }
    weights = {}
    for key in twin.state_dict():
        edge, dot, rest = key.partition(".operation.")
        weights[key] = network.state_dict()[f"{edge}.operations.{operations[edge]}.{rest}" if dot else key]
    twin.load_state_dict(weights)
    return twin


@FIRST_LEVELS
@GEOMETRIES
def test_it_equals_eq_1_written_out_forward_and_gradients(name, first_level):
    network, results = supernet(name, first_level=first_level), []
    for forward in (network, lambda image: plain_forward(network, image)):
        image = images(name).requires_grad_()
        outputs = forward(image)
        assert all(output.dtype == torch.float64 for output in outputs)
        given = {"image": image, **dict(network.named_parameters())}
        gradients = torch.autograd.grad(size_of(outputs), given.values())
        results.append(
            ({str(n): output.detach() for n, output in enumerate(outputs)}, dict(zip(given, gradients, strict=True)))
        )
    for ours, plain in zip(*results, strict=True):
        assert list(ours) == list(plain)
        for key, value in ours.items():
            torch.testing.assert_close(value, plain[key], msg=lambda text, key=key: f"{key}: {text}")


@GEOMETRIES
def test_the_fast_form_equals_its_edges_one_by_one_forward_and_gradients(name):
    # In 3-D the coarsest maps have too few voxels, and are computed as in the exact form.
    network, results = supernet(name, fast=True), []
    encoder = network.encoder

    def one_by_one(image):
        nodes = {int(level): stem(image) for level, stem in encoder.stems.items()}
        weights = encoder.mixing_weights()
        for number, layer in enumerate(encoder.layers):
            following = {}
            for index, (key, edge) in enumerate(layer.items()):
                source, end = map(int, key.split("_to_"))
                if edge.mixes(nodes[source], nodes[end]):
                    output = mixed_edge(edge, nodes[source], leaky_relu(nodes[source]), weights[number, index])
                else:
                    x = nodes[source] if source == end else edge.resample(leaky_relu(nodes[source]))
                    outputs = [x, *(part.norm(part.convs(leaky_relu(x))) for part in edge.operations.values())]
                    own = weights[number, index][[0, *edge.columns]]
                    output = sum(weight * value for weight, value in zip(own, outputs, strict=True))
                following[end] = following.get(end, 0) + output
            nodes = following
        return nodes

    for forward in (encoder, one_by_one):
        image = images(name).requires_grad_()
        nodes = forward(image)
        given = {"image": image, **dict(encoder.named_parameters())}
        gradients = torch.autograd.grad(size_of(nodes.values()), given.values(), allow_unused=True)
        results.append(
            [
                *nodes.values(),
                *(torch.zeros_like(x) if g is None else g for x, g in zip(given.values(), gradients, strict=True)),
            ]
        )
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.integration)])
@FIRST_LEVELS
@GEOMETRIES
def test_settled_it_equals_the_discrete_network_with_the_same_weights(name, first_level, seed):
    levels = 3 - first_level
    kernels = GEOMETRY[name][1][first_level:]
    topology = random_topology(levels, len(kernels[0]), kernels, outputs=1 << (levels - 1), seed=seed)
    network = supernet(name, first_level=first_level, num_layers=3)
    settle(network, topology)
    twin = discrete_twin(network, topology, name, first_level)
    for ours, theirs in zip(network(images(name)), twin(images(name)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_chain_that_begins_at_a_finer_level_differs_by_the_constants_of_its_norms_only():
    # The supernet's chain begins at the coarsest level, whose map is 0: its norm gives its bias.
    topology = Topology(3, ({(0, 0): "conv", (1, 1): SKIP}, {(0, 1): SKIP, (1, 1): "dilated"}))
    network = supernet("2d")
    settle(network, topology)
    nn.init.zeros_(network.decoder.refine[1].norm.bias)
    twin = discrete_twin(network, topology, "2d", 0)
    assert len(twin.decoder.refine) == 1
    for ours, theirs in zip(network(images("2d")), twin(images("2d")), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("fast", [False, True])
@FIRST_LEVELS
@GEOMETRIES
def test_one_topology_alone_is_the_discrete_network_with_the_same_weights(name, first_level, fast):
    levels = 3 - first_level
    kernels = GEOMETRY[name][1][first_level:]
    network = supernet(name, first_level=first_level, num_layers=3, fast=fast)
    mixed = network(images(name))
    # One whose chain begins at the coarsest level, one at the level above.
    for seed, outputs in ((0, 1 << (levels - 1)), (1, 1 << (levels - 2))):
        topology = random_topology(levels, len(kernels[0]), kernels, outputs=outputs, seed=seed)
        network.encoder.topology = topology
        for ours, theirs in zip(
            network(images(name)), discrete_twin(network, topology, name, first_level)(images(name)), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
    network.encoder.topology = None
    for ours, before in zip(network(images(name)), mixed, strict=True):
        torch.testing.assert_close(ours, before)


def test_one_topology_alone_has_gradients_for_its_own_weights_only():
    topology = Topology(3, ({(0, 0): "conv", (1, 1): SKIP}, {(0, 1): SKIP, (1, 1): "dilated"}))
    network = supernet("2d")
    network.encoder.topology = topology
    size_of(network(images("2d"))).backward()
    touched = {name for name, value in network.named_parameters() if value.grad is not None and ".layers." in name}
    assert {".".join(name.split(".")[2:5]) for name in touched} == {
        "0.0_to_0.operations",
        "1.0_to_1.resample",
        "1.1_to_1.operations",
    }
    assert not [name for name in touched if "y_x" in name]
    assert network.encoder.alpha.grad is None


def test_without_deep_supervision_there_is_the_finest_output_only():
    whole, single = supernet("2d"), supernet("2d", deep_supervision=False)
    assert single(images("2d")).equal(whole(images("2d"))[0])


@pytest.mark.parametrize("fast", [False, True])
@GEOMETRIES
def test_gradients_reach_every_edge_and_every_operation_that_exists(name, fast):
    network = supernet(name, fast=fast)
    size_of(network(images(name))).backward()
    alpha, exists = network.encoder.alpha.grad, network.encoder.exists
    reached = alpha != 0
    assert reached.equal(exists.expand_as(reached))
    assert (network.encoder.edge_logits.grad != 0).all()
    for key, parameter in network.named_parameters():
        # Mixed kernels leave out the biases, which the normalisation after them takes away.
        unused = fast and ".convs." in key and key.endswith(".bias")
        assert unused if parameter.grad is None else parameter.grad.isfinite().all(), key


@GEOMETRIES
def test_operations_that_do_not_exist_weigh_nothing(name):
    network = supernet(name)
    with torch.no_grad():
        network.encoder.alpha[..., 1:] = 50
    weights, names = network.encoder.mixing_weights(), OPERATIONS[network.dimensions]
    for index, (_, end) in enumerate(edges(3)):
        known = operation_steps(GEOMETRY[name][1][end])
        assert [operation in known for operation in names] == network.encoder.exists[index].tolist()
        for column, operation in enumerate(names):
            assert (weights[:, index, column] == 0).all() == (operation not in known)
    probability = torch.sigmoid(network.encoder.edge_logits)
    # The weights of an edge sum to m.
    torch.testing.assert_close(weights.sum(-1), probability / (1 - (1 - probability).prod(1, keepdim=True)))


@pytest.mark.parametrize(
    ("kernel", "operation"),
    [((3, 3, 3), name) for name in OPERATIONS[3][1:]]
    + [((1, 3, 3), "zx_y"), ((5, 3, 3), "zy_x")]
    + [((3, 3), name) for name in OPERATIONS[2][1:]],
    ids=str,
)
def test_a_composed_kernel_is_its_convolutions_in_sequence_away_from_the_border(kernel, operation):
    torch.manual_seed(0)
    wanted = plan("2d" if len(kernel) == 2 else "3d")
    blocks = Blocks(wanted["conv_op"], True, None, None, None, None)
    steps = operation_steps(kernel)[operation]
    convs = Convolutions(blocks, 3, steps).double().convs
    x = torch.randn(1, 3, *[9] * len(kernel), dtype=torch.float64)
    composed = composed_kernels([conv.weight[None] for conv in convs], steps)[0]
    convolve = conv2d if len(kernel) == 2 else conv3d
    difference = convs(x) - convolve(x, composed, padding=[size // 2 for size in composed.shape[2:]])
    inside = difference[(..., *[slice(2, -2)] * len(kernel))].flatten(2)
    # What is left are the biases: the same number everywhere in a channel.
    torch.testing.assert_close(inside, inside[..., :1].expand_as(inside))
    assert (inside[..., 0] != 0).all()


@FIRST_LEVELS
@GEOMETRIES
def test_the_fast_form_has_the_same_shapes_and_stays_finite(name, first_level):
    fast, exact = (supernet(name, first_level=first_level, fast=form) for form in (True, False))
    ours, theirs = fast(images(name)), exact(images(name))
    assert [output.shape for output in ours] == [output.shape for output in theirs]
    assert all(output.isfinite().all() for output in ours)
    # Half resolution leaves no more than 8 voxels per channel in this 3-D patch.
    assert ours[0].allclose(theirs[0]) == (name == "3d" and first_level == 1)


def test_one_operation_alone_is_the_same_in_both_forms_except_above_a_coarser_level():
    # Channels are scaled to unit norm and normalised again; only the small number in the norm's denominator knows. A
    # bias between two convolutions would be missed at the border.
    topology = Topology(3, ({(0, 0): "conv", (1, 2): "conv"}, {(0, 1): "y_x", (2, 2): "dilated"}))
    outputs = []
    for form in (False, True):
        network = supernet("2d", fast=form, conv_bias=False, norm_op_kwargs={"eps": 1e-12, "affine": True})
        settle(network, topology)
        outputs.append(network(images("2d"))[0])
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)


def test_the_fast_form_computes_small_maps_exactly():
    # 16 * 12 voxels, fewer than 8 for each of 24 channels.
    outputs = [supernet("2d", features=(24, 24, 24), fast=form)(images("2d"))[0] for form in (True, False)]
    assert outputs[0].equal(outputs[1])
    outputs = [supernet("2d", features=(23, 24, 24), fast=form)(images("2d"))[0] for form in (True, False)]
    assert not outputs[0].equal(outputs[1])


@pytest.mark.parametrize("logit", [-800.0, 800.0])
@pytest.mark.parametrize("fast", [False, True])
def test_saturated_edges_and_operations_keep_outputs_and_gradients_finite(logit, fast):
    network = supernet("2d", fast=fast).float()
    with torch.no_grad():
        network.encoder.edge_logits.fill_(-800)[:, ::2] = logit
        network.encoder.alpha.fill_(-800)[..., 0] = 800
    outputs = network(images("2d").float())
    size_of(outputs).backward()
    assert all(output.isfinite().all() for output in outputs)
    for key, parameter in network.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("fast", [False, True])
def test_autocast_keeps_gradients_of_the_architecture_in_single_precision(fast):
    network, gradients = supernet("2d", features=(8, 8, 8), fast=fast).float(), []
    network.apply(network.initialize)
    for mixed_precision in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
            nodes = network.encoder(images("2d").float())
            outputs = [output.float() for output in network.decoder(nodes)]
        assert all(node.dtype == torch.float32 for node in nodes.values())
        gradients.append(torch.autograd.grad(size_of(outputs), network.architecture_parameters()))
    for single, mixed in zip(*gradients, strict=True):
        assert mixed.dtype == torch.float32
        # Rounding inside the convolutions costs some percent; sums in bfloat16 would cost half of the gradient.
        assert (single - mixed).norm() < 0.2 * single.norm()


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_op": nn.BatchNorm2d},
        {"norm_op_kwargs": {"eps": 1e-5}},
        {"norm_op_kwargs": None},
        {"norm_op": None, "norm_op_kwargs": None},
    ],
    ids=str,
)
def test_the_fast_form_needs_affine_instance_normalisation(changes):
    with pytest.raises(DataProblem, match="supernet=exact"):
        supernet("2d", fast=True, **changes)
    assert all(output.isfinite().all() for output in supernet("2d", **changes)(images("2d")))


def test_the_beginning_is_drawn_from_the_seed():
    network = supernet("3d", num_layers=12)
    drawn = []
    for seed in (0, 0, 1):
        network.draw_architecture(torch.Generator().manual_seed(seed))
        drawn.append([parameter.detach().clone() for parameter in network.architecture_parameters()])
    (alpha, logits), same, other = drawn
    assert alpha.shape == (12, 7, 5)
    assert logits.shape == (12, 7)
    # 420 and 84 numbers: three standard errors.
    assert abs(alpha.mean() - 1) < 3 * 0.01 / 420**0.5
    assert abs(logits.mean()) < 3 * 0.01 / 84**0.5
    assert 0.007 < logits.std() < 0.013
    assert alpha.equal(same[0])
    assert not alpha.equal(other[0])


def test_every_parameter_belongs_to_the_weights_or_to_the_architecture():
    network = supernet("2d")
    parts = [*network.architecture_parameters(), *network.network_parameters()]
    assert {id(part) for part in parts} == {id(part) for part in network.parameters()}
    assert len(parts) == len(list(network.parameters()))


def test_parameters_are_collected_once_and_again_where_they_were_replaced(monkeypatch):
    network = supernet("2d")
    before, calls = network.network_parameters(), []
    walk = network.named_parameters
    monkeypatch.setattr(network, "named_parameters", lambda *args, **kwargs: calls.append(1) or walk(*args, **kwargs))
    assert network.network_parameters() is before
    assert not calls
    network.encoder.alpha = nn.Parameter(network.encoder.alpha.detach().clone())
    network.decoder.seg_layers[0].bias = nn.Parameter(torch.zeros(3).double())
    after = network.network_parameters()
    assert calls
    assert any(parameter is network.decoder.seg_layers[0].bias for parameter in after)
