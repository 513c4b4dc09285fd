"""The search space counted by hand, and genotypes that cannot be."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_nas.errors import DataProblem
from nnunet_nas.iac.genotype import EDGES, INPUTS_PER_NODE, NODES, OPERATIONS, Genotype, discretise, edges_into

VALID = {
    "2": {"0": "sep_conv_3", "1": "identity"},
    "3": {"0": "max_pool_3", "2": "sep_conv_5"},
    "4": {"1": "dil_conv_3", "3": "avg_pool_3"},
    "5": {"3": "dil_conv_5", "4": "sep_conv_3"},
}


@st.composite
def genotypes(draw):
    content = {}
    for node in range(2, NODES):
        sources = draw(st.lists(st.integers(0, node - 1), min_size=2, max_size=2, unique=True))
        content[str(node)] = {str(source): draw(st.sampled_from(OPERATIONS)) for source in sources}
    return content


def test_fourteen_edges_ninety_eight_entries_eight_kept():
    assert len(EDGES) == 2 + 3 + 4 + 5 == 14
    assert len(EDGES) * len(OPERATIONS) == 98
    assert len(Genotype.from_json(VALID).edges) == 4 * INPUTS_PER_NODE == 8


def test_edges_are_ordered_by_target_then_source():
    assert EDGES[:5] == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert [EDGES[edges_into(node)] for node in (2, 5)] == [EDGES[:2], EDGES[9:]]


@given(genotypes())
def test_json_both_ways(content):
    genotype = Genotype.from_json(json.loads(json.dumps(content)))
    assert genotype.to_json() == {node: dict(sorted(inputs.items())) for node, inputs in content.items()}
    assert Genotype.from_json(genotype.to_json()) == genotype


def without(node):
    return {key: value for key, value in VALID.items() if key != node}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "computed nodes 2, 3, 4, 5"),
        (without("5"), "computed nodes 2, 3, 4, 5"),
        ({**VALID, "6": VALID["5"]}, "computed nodes 2, 3, 4, 5"),
        ({**VALID, "3": {"0": "identity"}}, "node 3 needs 2 inputs"),
        ({**VALID, "3": {"0": "identity", "1": "identity", "2": "identity"}}, "node 3 needs 2 inputs"),
        ({**VALID, "3": ["identity", "identity"]}, "node 3 needs 2 inputs"),
        ({**VALID, "3": {"0": "identity", "3": "identity"}}, "cycle"),
        ({**VALID, "2": {"0": "identity", "4": "identity"}}, "must be one of 0, 1"),
        ({**VALID, "2": {"0": "identity", "-1": "identity"}}, "must be one of 0, 1"),
        ({**VALID, "2": {"0": "conv_7", "1": "identity"}}, "unknown operation 'conv_7' on edge 0 -> 2"),
        ({**VALID, "2": {"0": 3, "1": "identity"}}, "unknown operation 3"),
    ],
)
def test_impossible_genotypes_are_one_line(content, said):
    with pytest.raises(DataProblem) as problem:
        Genotype.from_json(content)
    assert said in str(problem.value)
    assert "\n" not in str(problem.value)


def test_discretised_by_hand():
    probabilities = np.full((14, 7), 0.1)
    probabilities[:, 3] = 0.4
    probabilities[EDGES.index((1, 4)), 6] = 0.5
    weights = np.zeros(14)
    # Node 2 keeps both. Node 3: 0.5, 0.2, 0.3 keeps 0 and 2. Node 4: 1 and 3. Node 5: three equal, the lowest two stay.
    weights[edges_into(2)] = 0.5, 0.5
    weights[edges_into(3)] = 0.5, 0.2, 0.3
    weights[edges_into(4)] = 0.1, 0.4, 0.1, 0.4
    weights[edges_into(5)] = 0.3, 0.05, 0.3, 0.3, 0.05
    assert discretise(probabilities, weights).to_json() == {
        "2": {"0": "sep_conv_3", "1": "sep_conv_3"},
        "3": {"0": "sep_conv_3", "2": "sep_conv_3"},
        "4": {"1": "dil_conv_5", "3": "sep_conv_3"},
        "5": {"0": "sep_conv_3", "2": "sep_conv_3"},
    }


def test_share_of_edges_without_weights():
    assert Genotype.from_json(VALID).parameter_free_share() == 3 / 8


@pytest.mark.parametrize("source", ["00", "\u0660", "0 ", "-0", "+0", "0_0"])
def test_a_source_is_written_in_one_way_only(source):
    content = {**VALID, "2": {source: "identity", "1": "identity"}}
    with pytest.raises(DataProblem, match="node 2 cannot read node"):
        Genotype.from_json(content)
    with pytest.raises(DataProblem, match="unknown operation"):
        Genotype.from_json({**VALID, "2": {"0": ["identity"], "1": "identity"}})
