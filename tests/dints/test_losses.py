"""The terms beside the segmentation loss, by hand for two levels: four edges, fifteen patterns."""

import contextlib
import io
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
    found = paper_terms(*uniform(), MODEL, 0.8, "printed")
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


def test_the_largest_memory_by_hand_in_three_readings():
    def ratio(maximum, edges=0.0):
        logits, alpha = uniform()
        return paper_terms(logits + edges, alpha, MODEL, 0.0, maximum).memory.item()

    # Every edge in 8 of 15 patterns. Per layer operations cost 4, 8, 4 and 0 on average, 8, 16, 8 and 0 together, the
    # most expensive ones 8, 12, 6 and 0.
    assert ratio("code") == pytest.approx(8 / 15)
    assert ratio("printed") == pytest.approx(8 / 15 * 16 / 32)
    assert ratio("largest") == pytest.approx(8 / 15 * 16 / 26)
    # With all edges there, a network of average operations.
    assert [ratio(name, 50.0) for name in ("code", "printed", "largest")] == pytest.approx([1, 16 / 32, 16 / 26])


@pytest.mark.parametrize(("maximum", "reaches"), [("printed", False), ("code", True), ("largest", True)])
def test_where_the_largest_memory_is_a_networks_sigma_can_be_met(maximum, reaches):
    """By descent on the memory term alone: what it settles at, at sigma 0.9."""
    rng = np.random.default_rng(0)
    cost = np.concatenate([np.zeros((7, 1)), rng.uniform(8, 10, (7, 4))], 1)
    model = MemoryModel(cost, np.ones(3), np.ones(3), 0.0)
    logits = torch.zeros(3, 7, dtype=torch.float64, requires_grad=True)
    alpha = torch.zeros(3, 7, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, alpha], 0.3)
    for _ in range(200):
        optimizer.zero_grad()
        loss = paper_terms(logits, alpha, model, 0.9, maximum).memory
        loss.backward()
        optimizer.step()
    assert (loss.item() < 0.05) == reaches


def test_the_reading_of_the_code_is_monais():
    monai = pytest.importorskip("monai.networks.nets.dints")
    with contextlib.redirect_stdout(io.StringIO()):
        search = monai.TopologySearch(channel_mul=1 / 16, num_blocks=3, num_depths=3, spatial_dims=3)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in (search.log_alpha_a, search.log_alpha_c):
            parameter.copy_(torch.from_numpy(rng.normal(0, 2, parameter.shape)))
    size = (2, 1, 32, 32, 32)
    theirs = search.get_ram_cost_usage(size) / search.get_ram_cost_usage(size, full=True)
    # Theirs of every output voxel of an edge, in the order of our edges.
    voxels = np.array([search.filter_nums[end] / 8**end for end in search.arch_code2out])
    cost = (1 + search.ram_cost[0]) * voxels[:, None]
    model = MemoryModel(cost, np.ones(3), np.ones(3), 0.0)
    x, alpha = (tensor.detach().double().requires_grad_() for tensor in (search.log_alpha_a, search.log_alpha_c))
    ours = paper_terms(x, alpha, model, 0.0, "code").memory
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = torch.autograd.grad(theirs, (search.log_alpha_a, search.log_alpha_c))
    for found, wanted in zip(torch.autograd.grad(ours, (x, alpha)), gradients, strict=True):
        assert found.float().allclose(wanted, rtol=1e-3, atol=1e-6)
    # Whatever the operations: at even odds an edge is in 2^6 of the 2^7 - 1 patterns.
    with torch.no_grad():
        search.log_alpha_a.zero_()
    even = search.get_ram_cost_usage(size) / search.get_ram_cost_usage(size, full=True)
    assert even.item() == pytest.approx(64 / 127, rel=1e-5)


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
