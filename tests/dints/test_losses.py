"""The terms beside the segmentation loss, by hand for two levels: four edges, fifteen patterns."""

import math

import numpy as np
import pytest
import torch

from nnunet_nas.dints.losses import ArchitectureTerms, exact_terms, paper_terms
from nnunet_nas.dints.memory import MemoryModel

# Two operations, skip and conv, on the edges 0->0, 1->0, 0->1, 1->1; the last has no conv.
COST = np.array([[0, 8], [4, 12], [2, 6], [0, np.inf]], float)
MODEL = MemoryModel(COST, np.array([16.0, 4.0]), np.array([32.0, 64.0]), 128.0)
BOTH = pytest.mark.parametrize("mode", ["paper", "exact"])


def uniform(layers=2):
    """All edges at even odds, both operations alike where there are two."""
    alpha = torch.zeros(layers, 4, 2, dtype=torch.float64)
    alpha[:, 3, 1] = -1e9
    return torch.zeros(layers, 4, dtype=torch.float64), alpha


def terms(mode, logits, alpha, model=MODEL, budget=100.0):
    return paper_terms(logits, alpha, model, 0.8) if mode == "paper" else exact_terms(logits, alpha, model, budget)


def test_the_paper_by_hand():
    found = paper_terms(*uniform(), MODEL, 0.8)
    # Eq. 5: three of four edges have an entropy of ln 2, over 2 x 4 x 2 probabilities; 15 equally likely patterns,
    # over 15 of them.
    assert found.operations.item() == pytest.approx(2 * 3 * math.log(2) / 16)
    assert found.patterns.item() == pytest.approx(math.log(15) / 15)
    # A node has an input in 12 of 15 patterns: {0}, {1} and both are active in 3, 3 and 9 of them, read as often.
    one, both = 3 / 15, 9 / 15
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (one, one, both)]
    assert found.topology.item() == pytest.approx(sum(entropy))
    # Every edge in 8 of 15 patterns; operations cost 4, 8, 4 and 0 on average, 8 + 16 + 8 + 0 together.
    assert found.memory.item() == pytest.approx(abs(8 / 15 * 16 / 32 - 0.8))


def test_the_exact_form_by_hand():
    found = exact_terms(*uniform(), MODEL, 100.0)
    assert found.operations.item() == pytest.approx(3 / 4 * math.log(2))
    assert found.patterns.item() == pytest.approx(math.log(15))
    # 3, 3 and 9 patterns write {0}, {1} and both, as many read them: 99 of 15 x 15 pairs fit.
    assert found.topology.item() == pytest.approx(-math.log((3 * 3 + 3 * 3 + 9 * 9) / 225) / 2)
    # Level 0 is read unless only the skip 0->0 leaves it: p(counting edge) = 1 - (1 - 1/4)(1 - 1/2) = 5/8, over 15/16.
    # Level 1 likewise, by 1->0 alone: 1/2. A stem by any edge: 3/4.
    nodes = (16 * 5 / 8 + 4 * 1 / 2) / (15 / 16)
    stems = (32 + 64) * 3 / 4 / (15 / 16)
    expected = 128 + stems + 2 * (nodes + 8 / 15 * 16)
    assert found.memory.item() == pytest.approx(expected / 100 - 1)


def test_what_will_not_be_there_need_not_be_decided():
    logits, alpha = uniform()
    alpha[:, 0, 1] = 50  # 0->0 is decided
    logits[:] = -50
    logits[:, 0] = 50
    assert exact_terms(logits, alpha, MODEL, 100.0).operations.item() == pytest.approx(0, abs=1e-12)
    assert paper_terms(logits, alpha, MODEL, 0.8).operations.item() == pytest.approx(2 * 2 * math.log(2) / 16)


def test_memory_is_zero_at_the_budget_and_below_and_relative_above():
    logits, alpha = uniform()
    expected = MODEL.expected(logits, torch.softmax(alpha, -1)).item()
    assert exact_terms(logits, alpha, MODEL, expected).memory.item() == pytest.approx(0, abs=1e-12)
    for logits_of_edges in logits, logits.clone().requires_grad_():
        assert exact_terms(logits_of_edges, alpha, MODEL, 1.001 * expected).memory == 0
    assert exact_terms(logits, alpha, MODEL, expected / 1.5).memory.item() == pytest.approx(0.5)


def test_memory_pushes_edges_and_dear_operations_down_only_above_the_budget():
    for budget, pushes in ((1e6, False), (10.0, True)):
        logits, alpha = (tensor.requires_grad_() for tensor in uniform())
        exact_terms(logits, alpha, MODEL, budget).memory.backward()
        # The free skip 1->1 makes the others rarer, since a pattern needs only one edge.
        assert (logits.grad[:, :3] > 0).all() == pushes
        assert (alpha.grad[:, :3, 1] > 0).all() == pushes
        assert logits.grad.any() == pushes


def test_equation_11_weighs_the_topology_alone():
    assert ArchitectureTerms(*map(torch.tensor, (1.0, 2.0, 30.0, 4.0))).total(0.1).item() == pytest.approx(10)


@BOTH
@pytest.mark.parametrize("pattern", ["all", "none", "alternating", "layers", "random"])
@pytest.mark.parametrize("size", [1.0, 30.0, 800.0])
@pytest.mark.parametrize("levels", [2, 4])
def test_gradients_of_every_term_are_finite_everywhere(mode, pattern, size, levels):
    rng = np.random.default_rng(0)
    count = 3 * levels - 2
    signs = np.ones((3, count))
    if pattern == "none":
        signs[:] = -1
    elif pattern == "alternating":
        signs[:, ::2] = -1
    elif pattern == "layers":
        signs[1] = -1
    elif pattern == "random":
        signs = rng.choice([-1, 1], signs.shape)
    logits = torch.from_numpy(size * signs).requires_grad_()
    alpha = torch.from_numpy(size * rng.choice([-1, 1], (3, count, 4)))
    alpha[:, :, 2] = -1e9
    alpha.requires_grad_()
    cost = rng.uniform(1, 9, (count, 4))
    cost[:, 2] = np.inf
    model = MemoryModel(cost, rng.uniform(1, 9, levels), rng.uniform(1, 9, levels), 3.0)
    found = terms(mode, logits, alpha, model, budget=1.0)
    for name, term in vars(found).items():
        assert term.isfinite(), name
        gradients = torch.autograd.grad(term, (logits, alpha), retain_graph=True, allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients), name


def test_a_step_along_the_gradient_of_the_exact_form_makes_a_feasible_topology_likelier():
    # The paper's topology loss pulls towards feasibility, too; ours does so by its definition.
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(0, 1, (4, 7))).requires_grad_()
    alpha = torch.zeros(4, 7, 2, dtype=torch.float64)
    model = MemoryModel(np.ones((7, 2)), np.ones(3), np.ones(3), 0.0)
    before = exact_terms(logits, alpha, model, 1e6).topology
    (gradient,) = torch.autograd.grad(before, logits)
    after = exact_terms(logits - 0.1 * gradient, alpha, model, 1e6).topology
    assert after < before
