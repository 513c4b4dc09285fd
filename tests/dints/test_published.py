"""Architecture codes as MONAI writes them, read and checked against its own network."""

import json
import pickle

import numpy as np
import pytest
import torch

from nnunet_nas.dints.network import DiNTSNet
from nnunet_nas.dints.published import read_code, topology_of
from nnunet_nas.dints.topology import edges
from nnunet_nas.errors import DataProblem


def code(seed=0, layers=4, levels=3, operations=5):
    """A feasible one: all edges, of which each has an operation of its own."""
    count = 3 * levels - 2
    choices = np.random.default_rng(seed).integers(0, operations, (layers, count))
    nodes = np.ones((layers + 1, levels), int)
    return {"node_a": nodes, "arch_code_a": np.ones((layers, count)), "arch_code_c": choices}


def test_by_hand():
    # Two levels: edges from 0 to 0, from 1 to 0, from 0 to 1, from 1 to 1.
    content = {
        "arch_code_a": [[1, 0, 1, 0], [0, 1, 0, 1]],
        "arch_code_c": [[1, 4, 2, 0], [3, 0, 3, 4]],
        "node_a": [[1, 0], [1, 1], [1, 1]],
    }
    with pytest.raises(DataProblem, match="infeasible: the node at level 0 after layer 0 has an input and no output"):
        topology_of(content, 3)
    content["arch_code_a"][1][0] = 1
    assert topology_of(content, 3).to_json() == {
        "levels": 2,
        "layers": [
            {"0->0": "conv", "0->1": "yx_z"},
            {"0->0": "zx_y", "1->0": "skip", "1->1": "zy_x"},
        ],
    }


@pytest.mark.parametrize("form", ["torch", "arrays", "json", "pair", "one_hot"])
def test_all_forms_mean_the_same(tmp_path, form):
    content = code()
    expected = topology_of(content, 3)
    path = tmp_path / ("code.json" if form == "json" else "code.pth")
    if form == "json":
        path.write_text(json.dumps({key: value.tolist() for key, value in content.items()}))
    elif form == "torch":
        torch.save({key: torch.from_numpy(value) for key, value in content.items()}, path)
    elif form == "pair":
        torch.save({"code": [content["arch_code_a"], content["arch_code_c"]]}, path)
    elif form == "one_hot":
        torch.save({**content, "arch_code_c": np.eye(5)[content["arch_code_c"]]}, path)
    else:
        torch.save({**content, "best_dsc": np.float64(0.9), "iter_num": 7}, path)
    assert topology_of(read_code(path), 3) == expected


def test_a_file_that_would_run_code_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return print, ("run",)

    path = tmp_path / "code.pth"
    torch.save({**code(), "trap": Trap()}, path)
    with pytest.raises(DataProblem, match="would run code of"):
        read_code(path)
    path.write_bytes(pickle.dumps(code()))
    with pytest.raises(DataProblem, match="arch_code_a"):
        read_code(path)
    objects = np.array([[1, None]], dtype=object)
    torch.save({**code(), "arch_code_a": objects}, path)
    with pytest.raises(DataProblem):
        read_code(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"arch_code_a": {}}, "arch_code_a is not an array of numbers"),
        ({"arch_code_a": np.ones((4, 6))}, r"has shape \(4, 6\), not \(layers, 3 levels - 2\)"),
        ({"arch_code_a": np.ones(7)}, r"has shape \(7,\)"),
        ({"arch_code_a": np.full((4, 7), 0.5)}, "must be of 0 and 1"),
        ({"arch_code_a": np.full((4, 7), np.nan)}, "entries that are no numbers"),
        ({"arch_code_c": np.zeros((3, 7))}, r"arch_code_c has shape \(3, 7\)"),
        ({"arch_code_c": np.full((4, 7), 5)}, "numbers below 5 in 3-D"),
        ({"arch_code_c": np.ones((4, 7, 5))}, "one operation for every edge"),
        ({"arch_code_c": [["a"] * 7] * 4}, "arch_code_c is not an array of numbers"),
        ({"node_a": np.zeros((5, 3))}, "node_a is not what the edges of arch_code_a join"),
        ({"node_a": np.ones((3, 5))}, "node_a is not what the edges"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change, text):
    with pytest.raises(DataProblem, match=text) as problem:
        topology_of({**code(), **change}, 3)
    assert "\n" not in str(problem.value)


def test_a_code_without_operations_is_refused():
    content = code()
    del content["arch_code_c"]
    with pytest.raises(DataProblem, match="has no arch_code_c, only node_a, arch_code_a"):
        topology_of(content, 3)


def test_2d_codes_have_two_operations():
    names = {name for layer in topology_of(code(operations=2), 2).layers for name in layer.values()}
    assert names == {"skip", "conv"}
    with pytest.raises(DataProblem, match="numbers below 2 in 2-D"):
        topology_of(code(), 2)


@pytest.mark.parametrize("seed", range(2))
def test_the_network_has_the_edges_and_kernels_of_monais(seed, tmp_path):
    monai = pytest.importorskip("monai.networks.nets.dints")
    layers, levels, space = 3, 3, {"channel_mul": 1 / 8, "spatial_dims": 3, "use_downsample": True}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        search = monai.TopologySearch(num_blocks=layers, num_depths=levels, **space)
        for logits in (search.log_alpha_a, search.log_alpha_c):
            logits.data.normal_(0, 2)
        nodes, chosen, operations, most_probable = search.decode()
    path = tmp_path / "search_code.pt"
    content = {"node_a": nodes, "arch_code_a": chosen, "arch_code_c": operations, "arch_code_a_max": most_probable}
    torch.save(content, path)
    theirs = monai.TopologyInstance(arch_code=[chosen, operations], num_blocks=layers, num_depths=levels, **space)
    topology = topology_of(read_code(path), 3)
    ours = DiNTSNet(
        input_channels=1, n_stages=4, features_per_stage=[4, 8, 16, 32], conv_op=torch.nn.Conv3d, num_classes=2,
        kernel_sizes=[[3] * 3] * 4, strides=[[1] * 3, *[[2] * 3] * 3], topology=topology.to_json(), first_level=1,
        norm_op=torch.nn.InstanceNorm3d, nonlin=torch.nn.ReLU,
    )  # fmt: skip
    seen = 0
    for number, layer in enumerate(ours.encoder.layers):
        for index, (source, end) in enumerate(edges(levels)):
            assert (theirs.arch_code2in[index], theirs.arch_code2out[index]) == (source, end)
            key, cell = f"{source + 1}_to_{end + 1}", f"({number}, {index})"
            assert (key in layer) == (cell in theirs.cell_tree) == bool(chosen[number, index])
            if key not in layer:
                continue
            operation = layer[key].operation
            own = [] if operation is None else [conv.kernel_size[::-1] for conv in operation.convs]
            mixed = [module for module in theirs.cell_tree[cell].op.modules() if isinstance(module, torch.nn.Conv3d)]
            # Theirs are x, y, z.
            assert own == [conv.kernel_size for conv in mixed]
            seen += bool(own)
    assert seen
