"""Random cells are uniform over the search space."""

import numpy as np
import pytest
from scipy.stats import chisquare

from nnunet_nas.iac.genotype import EDGES, OPERATIONS, Genotype
from nnunet_nas.iac.sampling import edge_jaccard, random_genotype, random_jaccard, same_operation


def test_all_edges_and_operations_are_equally_probable():
    rng = np.random.default_rng(0)
    drawn = [random_genotype(rng) for _ in range(6000)]
    assert all(Genotype.from_json(cell.to_json()) == cell for cell in drawn[:100])
    rows = np.bincount([edge.row for cell in drawn for edge in cell.edges], minlength=len(EDGES))
    # Two of two, three, four and five sources.
    assert (rows[:2] == 6000).all()
    for first, sources in ((2, 3), (5, 4), (9, 5)):
        assert rows[first : first + sources].sum() == 2 * 6000
    pairs = [tuple(edge.source for edge in cell.inputs_of(5)) for cell in drawn]
    assert chisquare([pairs.count(pair) for pair in set(pairs)]).pvalue > 1e-3
    assert len(set(pairs)) == 10
    names = [edge.operation for cell in drawn for edge in cell.edges]
    assert chisquare([names.count(name) for name in OPERATIONS]).pvalue > 1e-3


def test_agreement_of_random_cells_is_what_the_space_says():
    rng = np.random.default_rng(1)
    cells = [random_genotype(rng) for _ in range(4000)]
    pairs = list(zip(cells[::2], cells[1::2], strict=True))
    # Of node 3, 4 and 5 a pair shares 4/3, 1 and 4/5 of its two sources on average, of node 2 both.
    shared = np.mean([2 * 8 * edge_jaccard(*pair) / (1 + edge_jaccard(*pair)) for pair in pairs])
    assert shared == pytest.approx(2 + 4 / 3 + 1 + 4 / 5, abs=0.1)
    assert np.mean([same_operation(*pair) for pair in pairs]) == pytest.approx(1 / 7, abs=0.02)
    assert edge_jaccard(cells[0], cells[0]) == same_operation(cells[0], cells[0]) == 1


def test_what_random_cells_have_in_common_is_known_exactly():
    rng = np.random.default_rng(1)
    drawn = [edge_jaccard(random_genotype(rng), random_genotype(rng)) for _ in range(3000)]
    assert np.mean(drawn) == pytest.approx(random_jaccard(), abs=4 * np.std(drawn) / 3000**0.5)
    assert random_jaccard() == pytest.approx(0.48419, abs=1e-5)
