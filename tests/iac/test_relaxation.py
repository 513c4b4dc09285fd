"""Probabilities, capped edge weights and annealing, with numbers that can be checked with a pencil."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_nas.iac.genotype import edges_into
from nnunet_nas.iac.relaxation import cosine_power, edge_weights, operation_probabilities

BETAS = st.lists(st.floats(-50, 50), min_size=14, max_size=14)
ALL = torch.ones(14, 7, dtype=torch.bool)


def betas(node, *values):
    beta = torch.zeros(14, dtype=torch.float64)
    beta[edges_into(node)] = torch.tensor(values, dtype=torch.float64)
    return beta


@settings(deadline=None)
@given(BETAS, st.sampled_from(["elu", "identity", "softplus"]))
def test_weights_sum_to_one_and_none_is_above_a_half(values, nonlinearity):
    weights = edge_weights(torch.tensor(values, dtype=torch.float64), nonlinearity)
    for node in range(2, 6):
        assert weights[edges_into(node)].sum().item() == pytest.approx(1, abs=1e-12)
    assert weights.max().item() <= 0.5 + 1e-12
    assert weights.min().item() >= 0


@settings(deadline=None)
@given(BETAS)
def test_node_2_is_always_half_and_half(values):
    assert edge_weights(torch.tensor(values, dtype=torch.float64))[:2].tolist() == pytest.approx([0.5, 0.5], abs=1e-15)


def test_below_the_cap_it_is_the_softmax():
    # exp(phi) = 1, 2, 2 -> 0.2, 0.4, 0.4
    weights = edge_weights(betas(3, 0, math.log(2), math.log(2)), "identity")
    assert weights[edges_into(3)].tolist() == pytest.approx([0.2, 0.4, 0.4])


def test_above_the_cap_the_others_share_the_other_half():
    # exp(phi) = 6, 1, 3: softmax 0.6, 0.1, 0.3; capped 0.5, 0.5 * 0.1 / 0.4, 0.5 * 0.3 / 0.4
    weights = edge_weights(betas(3, math.log(6), 0, math.log(3)), "identity")
    assert weights[edges_into(3)].tolist() == pytest.approx([0.5, 0.125, 0.375])


def test_phi_is_the_elu_by_default():
    # elu(-1) = 1/e - 1, elu(0) = 0, elu(0.3) = 0.3
    raw = [math.exp(math.exp(-1) - 1), 1, math.exp(0.3)]
    weights = edge_weights(betas(3, -1, 0, 0.3))
    assert weights[edges_into(3)].tolist() == pytest.approx([value / sum(raw) for value in raw])


@pytest.mark.parametrize("size", [1e2, 1e4, -1e4])
def test_extreme_beta_give_finite_weights_and_gradients(size):
    beta = torch.zeros(14)
    beta[[2, 7, 12]] = size
    beta.requires_grad_()
    weights = edge_weights(beta)
    (weights * torch.arange(14.0)).sum().backward()
    assert weights.isfinite().all()
    assert beta.grad.isfinite().all()


def test_gradients_agree_with_finite_differences_on_both_sides_of_the_cap():
    generator = torch.Generator().manual_seed(0)
    beta = torch.randn(14, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(edge_weights, (beta,))


def test_constant_alpha_are_uniform_and_pruned_operations_exactly_zero():
    active = ALL.clone()
    active[3, [0, 6]] = False
    probabilities = operation_probabilities(torch.zeros(14, 7, dtype=torch.float64), active)
    assert probabilities[0].tolist() == pytest.approx([1 / 7] * 7)
    assert probabilities[3].tolist() == pytest.approx([0, 0.2, 0.2, 0.2, 0.2, 0.2, 0])
    assert not probabilities[3, [0, 6]].any()


def test_pruned_alpha_receive_no_gradient():
    active = ALL.clone()
    active[5, 2:] = False
    alpha = torch.randn(14, 7, requires_grad=True)
    operation_probabilities(alpha, active).square().sum().backward()
    assert not alpha.grad[5, 2:].any()
    assert alpha.grad[5, :2].any()


def test_power_one_is_plain_cosine():
    for step in range(0, 201, 20):
        cosine = 0.01 * (1 + math.cos(math.pi * step / 200)) / 2
        assert cosine_power(step, 200, start=0.01, power=1) == pytest.approx(cosine)
        assert cosine_power(step, 200, start=0.01, power=1 + 1e-7) == pytest.approx(cosine, rel=1e-5, abs=1e-10)


def test_annealing_by_hand():
    # Half way u = 1/2: (10^1.5 - 10) / (100 - 10)
    assert cosine_power(100, 200, start=1, power=10) == pytest.approx((10**1.5 - 10) / 90)
    assert cosine_power(0, 200, start=0.01, end=0.001) == pytest.approx(0.01)
    assert cosine_power(200, 200, start=0.01, end=0.001) == pytest.approx(0.001)
