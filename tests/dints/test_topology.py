"""Topologies by hand: their edges, what makes them infeasible, their JSON both ways and every refusal."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_nas.dints.topology import Topology, activated, edges, infeasible_node
from nnunet_nas.errors import DataProblem

# Two levels, edges (0, 0), (1, 0), (0, 1), (1, 1).
STAY_FINE, UP, DOWN, STAY_COARSE = np.eye(4, dtype=bool)
NOTHING = np.zeros(4, bool)


@st.composite
def unions_of_paths(draw):
    """A topology in which every active node lies on a path from a stem to the last layer, and its number of levels."""
    levels, layers = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    selected = np.zeros((layers, 3 * levels - 2), bool)
    for _ in range(draw(st.integers(1, 4))):
        level = draw(st.integers(0, levels - 1))
        for row in selected:
            source, level = level, draw(st.integers(max(level - 1, 0), min(level + 1, levels - 1)))
            row[edges(levels).index((source, level))] = True
    return selected, levels


def test_edges_are_ordered_by_destination_then_source():
    assert edges(1) == ((0, 0),)
    assert edges(3) == ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (2, 2))


@pytest.mark.parametrize("levels", range(1, 9))
def test_number_of_edges(levels):
    assert len(edges(levels)) == 3 * levels - 2


def test_activated_nodes_by_hand():
    sources, destinations = activated(np.array([UP | STAY_COARSE, DOWN]), 2)
    assert sources.tolist() == [[False, True], [True, False]]
    assert destinations.tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([STAY_FINE, STAY_FINE], None),
        ([DOWN, UP, DOWN | STAY_FINE], None),
        ([NOTHING], "layer 0 has no edge"),
        ([STAY_FINE, NOTHING, STAY_FINE], "layer 1 has no edge"),
        ([DOWN | STAY_FINE, STAY_FINE], "the node at level 1 after layer 0 has an input and no output"),
        ([STAY_FINE, STAY_FINE, STAY_FINE | UP], "the node at level 1 after layer 1 has an output and no input"),
    ],
)
def test_what_makes_a_topology_infeasible(rows, problem):
    assert infeasible_node(np.array(rows), 2) == problem


@settings(deadline=None)
@given(unions_of_paths())
def test_unions_of_paths_are_feasible(drawn):
    assert infeasible_node(*drawn) is None


@settings(deadline=None)
@given(unions_of_paths(), st.data())
def test_an_edge_too_many_or_too_few_is_refused_exactly_where_a_node_hangs(drawn, data):
    selected, levels = drawn
    layer = data.draw(st.integers(0, len(selected) - 1))
    edge = data.draw(st.integers(0, selected.shape[1] - 1))
    selected[layer, edge] ^= True
    sources, destinations = activated(selected, levels)
    hangs = (destinations[:-1] != sources[1:]).any() or not selected.any(1).all()
    assert (infeasible_node(selected, levels) is not None) == hangs


@settings(deadline=None)
@given(unions_of_paths())
def test_arrays_and_json_both_ways(drawn):
    selected, levels = drawn
    names = [[f"operation {layer}.{edge}" for edge in range(selected.shape[1])] for layer in range(len(selected))]
    topology = Topology.from_arrays(selected, names, levels)
    assert (topology.selected() == selected).all()
    assert all(
        topology.layers[layer][edges(levels)[edge]] == names[layer][edge] for layer, edge in np.argwhere(selected)
    )
    assert Topology.from_json(json.loads(json.dumps(topology.to_json()))) == topology


def test_json_by_hand():
    topology = Topology(2, ({(0, 1): "conv", (0, 0): "skip"}, {(1, 0): "p3d", (0, 0): "skip"}))
    content = topology.to_json()
    assert content == {"levels": 2, "layers": [{"0->0": "skip", "0->1": "conv"}, {"0->0": "skip", "1->0": "p3d"}]}
    assert [list(layer) for layer in content["layers"]] == [["0->0", "0->1"], ["0->0", "1->0"]]
    assert (topology.inputs(), topology.outputs()) == ([0], [0])
    assert Topology(2, ({(1, 0): "a", (1, 1): "a"},)).inputs() == [1]
    assert Topology(2, ({(1, 0): "a", (1, 1): "a"},)).outputs() == [0, 1]


def content_of(*layers, levels=2):
    return {"levels": levels, "layers": list(layers)}


FORM = 'a topology is {"levels": D, "layers": [{"0->1": "conv", ...}, ...]}: mend the plans'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], FORM),
        (None, FORM),
        ({"levels": 2}, FORM),
        (content_of({"0->0": "a"}) | {"stems": [0]}, FORM),
        (content_of(levels=0), "levels must be a positive integer and layers a list of dictionaries, not 0 and []"),
        (content_of(levels=True), "levels must be a positive integer and layers a list of dictionaries, not True"),
        (content_of(levels=2.0), "levels must be a positive integer and layers a list of dictionaries, not 2.0"),
        ({"levels": 2, "layers": {}}, "levels must be a positive integer and layers a list of dictionaries, not 2 and"),
        (content_of(), "the topology is infeasible: it has no layers; search again, or mend its JSON in the plans"),
        (content_of({"0->0": "a"}, ["0->0"]), "layer 1 must be a dictionary of edges, not ['0->0']"),
        (
            content_of({"0->0": "a"}, {"0->2": "a"}),
            "layer 1 has no edge '0->2'; edges join neighbouring levels 0 to 1, for example \"0->1\"",
        ),
        (content_of({"0->0": 1}), "the operation of edge 0->0 in layer 0 must be a name, not 1"),
        (content_of({"0->0": "a"}, {}), "the topology is infeasible: layer 1 has no edge; search again"),
        (
            content_of({"0->1": "a"}, {"0->0": "a"}),
            "the topology is infeasible: the node at level 0 after layer 0 has an output and no input; search again",
        ),
        (
            content_of({"0->0": "a", "0->1": "a"}, {"0->0": "a"}),
            "the topology is infeasible: the node at level 1 after layer 0 has an input and no output; search again",
        ),
    ],
)
def test_refusals_say_what_is_wrong(content, message):
    with pytest.raises(DataProblem) as refusal:
        Topology.from_json(content)
    assert message in str(refusal.value)


def test_operations_must_name_every_edge():
    with pytest.raises(ValueError, match="zip"):
        Topology.from_arrays(np.array([STAY_FINE]), [["conv"]], 2)


def test_more_levels_than_an_image_can_have_are_refused_at_once():
    with pytest.raises(DataProblem, match="32 levels at most"):
        Topology.from_json({"levels": 10**30, "layers": [{"0->0": "conv"}]})
