"""Closed forms against enumeration of all patterns, at saturated logits too, and against independent values.

The enumeration is in log space, so that it holds where probabilities underflow: a set's log probability is the
logsumexp over its patterns, that of its complement over all other patterns.
"""

import contextlib
import io
import json
import math
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from nnunet_nas.dints.probabilities import (
    log_activation,
    log_any,
    log_feasible,
    log_none,
    log_pair_weights,
    marginals,
    operation_entropy,
    pattern_entropy,
    topology_loss,
)
from nnunet_nas.dints.topology import activated, edges

REFERENCES = json.loads((Path(__file__).parent / "reference/dints_decode.json").read_text())
LOGITS = st.sampled_from([-800.0, -40.0, -20.0, 20.0, 40.0, 800.0]) | st.floats(-5, 5)
EXTREME = st.sampled_from([-2000.0, -800.0, -90.0, -20.0, 0.0, 1.0, 20.0, 90.0, 800.0, 2000.0])
ENDS = ("source", "destination")


@st.composite
def logits_of(draw, levels, layers, values=LOGITS, dtype=torch.float64):
    """Logits of some layers, and the number of levels."""
    levels, layers = draw(st.sampled_from(levels)), draw(st.sampled_from(layers))
    count = layers * (3 * levels - 2)
    drawn = draw(st.lists(values, min_size=count, max_size=count))
    return torch.tensor(drawn, dtype=dtype).reshape(layers, -1), levels


@cache
def patterns(levels):
    """All non-empty sets of edges, (M, E)."""
    return torch.tensor(list(product((False, True), repeat=3 * levels - 2))[1:])


@cache
def node_sets(levels, end):
    """Numbers of the sets of nodes that the patterns read from or write to, (M,)."""
    active = activated(patterns(levels).numpy(), levels)[ENDS.index(end)]
    return torch.from_numpy(active @ (1 << np.arange(levels)))


def log_eta(logits, levels):
    """Log probability of all patterns of every layer, (layers, M): Eq. 2."""
    chosen = torch.where(patterns(levels), logsigmoid(logits)[:, None], logsigmoid(-logits)[:, None]).sum(-1)
    return chosen - torch.logsumexp(chosen, 1, keepdim=True)


def enumerated_marginals(logits, levels):
    return torch.exp(log_eta(logits, levels)) @ patterns(levels).to(logits)


def enumerated_entropy(logits, levels):
    log_p = log_eta(logits, levels)
    return -(log_p.exp() * log_p).sum(1)


def enumerated_activation(logits, levels, end, *, complement=False):
    """Log probability of the node sets 1, 2, ..., or of everything else."""
    log_p, numbers = log_eta(logits, levels), node_sets(levels, end)
    chosen = [numbers != number if complement else numbers == number for number in range(1, 2**levels)]
    return torch.stack([torch.logsumexp(log_p[:, mask], 1) for mask in chosen], 1)


def enumerated_topology_loss(logits, levels):
    loss = 0
    for complement in (False, True):
        inputs = enumerated_activation(logits, levels, "destination", complement=complement)[:-1]
        outputs = enumerated_activation(logits, levels, "source", complement=complement)[1:]
        loss = loss - (inputs.exp() * outputs).sum()
    return loss


@cache
def feasible_sequences(levels, layers):
    """Patterns of every layer of all topologies whose nodes have input and output or neither: arrays of numbers."""
    fits = node_sets(levels, "destination")[:, None] == node_sets(levels, "source")[None]
    count = len(patterns(levels))
    mask = torch.ones((count,) * layers, dtype=torch.bool)
    for layer in range(layers - 1):
        mask &= fits.reshape((1,) * layer + (count, count) + (1,) * (layers - layer - 2))
    return mask.nonzero(as_tuple=True)


def enumerated_feasible(logits, levels):
    """Log P(feasible) and the edges' probabilities given feasibility."""
    sequences = feasible_sequences(levels, len(logits))
    log_p = sum(row[numbers] for row, numbers in zip(log_eta(logits, levels), sequences, strict=True))
    posterior = torch.softmax(log_p, 0)
    edge_wise = [posterior @ patterns(levels)[numbers].to(logits) for numbers in sequences]
    return torch.logsumexp(log_p, 0), torch.stack(edge_wise)


def close(found, expected):
    return torch.testing.assert_close(found, expected, rtol=1e-12, atol=2e-12)


def gradient(function, logits):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(function(logits).sum(), logits)[0]


CLOSED_AND_ENUMERATED = {
    "marginals": (lambda x, d: marginals(x), enumerated_marginals),
    "p_in": (
        lambda x, d: log_activation(x, d, end="destination"),
        lambda x, d: enumerated_activation(x, d, "destination"),
    ),
    "p_out": (lambda x, d: log_activation(x, d, end="source"), lambda x, d: enumerated_activation(x, d, "source")),
    "entropy": (lambda x, d: pattern_entropy(x), enumerated_entropy),
    "topology loss": (topology_loss, enumerated_topology_loss),
}


@pytest.mark.parametrize("name", CLOSED_AND_ENUMERATED)
@settings(deadline=None, max_examples=25)
@given(logits_of([2, 3], [2, 3]) | logits_of([4], [2]))
def test_closed_forms_are_the_enumeration(name, drawn):
    logits, levels = drawn
    closed, enumerated = CLOSED_AND_ENUMERATED[name]
    close(closed(logits, levels), enumerated(logits, levels))


@pytest.mark.parametrize("name", CLOSED_AND_ENUMERATED)
@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("spread", [1, 10])
def test_gradients_are_those_of_the_enumeration(name, levels, spread):
    generator = torch.Generator().manual_seed(levels)
    logits = spread * torch.randn(3, 3 * levels - 2, dtype=torch.float64, generator=generator)
    closed, enumerated = (
        gradient(lambda x, function=function: function(x, levels), logits) for function in CLOSED_AND_ENUMERATED[name]
    )
    torch.testing.assert_close(closed, enumerated, rtol=1e-10, atol=1e-11)


@settings(deadline=None, max_examples=20)
@given(logits_of([2, 3], [1]))
def test_pair_weights_are_the_enumeration(drawn):
    logits, levels = drawn
    found = log_pair_weights(logits, levels) - log_any(logits)[:, None, None]
    log_p, sources, destinations = (
        log_eta(logits, levels),
        node_sets(levels, "source"),
        node_sets(levels, "destination"),
    )
    for source, destination in product(range(1, 2**levels), repeat=2):
        mask = (sources == source) & (destinations == destination)
        if mask.any():
            close(found[:, source - 1, destination - 1], torch.logsumexp(log_p[:, mask], 1))
        else:
            assert (found[:, source - 1, destination - 1] < -1e29).all()


@settings(deadline=None, max_examples=25)
@given(logits_of([2], [1, 2, 3, 4]) | logits_of([3], [2]))
def test_p_feasible_is_the_enumeration_and_its_gradient_the_posterior_minus_the_marginal(drawn):
    logits, levels = drawn
    log_p, posterior = enumerated_feasible(logits, levels)
    close(log_feasible(logits, levels), log_p)
    close(gradient(lambda x: log_feasible(x, levels), logits), posterior - marginals(logits))


@pytest.mark.parametrize("values", ["normal", "saturated"])
def test_p_feasible_of_three_layers_and_levels(values):
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(3, 7)) if values == "normal" else rng.choice([-800, -40, -20, 20, 40, 800], (3, 7))
    logits = torch.tensor(drawn, dtype=torch.float64)
    log_p, posterior = enumerated_feasible(logits, 3)
    close(log_feasible(logits, 3), log_p)
    close(gradient(lambda x: log_feasible(x, 3), logits), posterior - marginals(logits))


def test_p_feasible_by_hand():
    # Even odds: each of the 15 patterns of a layer has 1/15; 2 edges are alone in writing {0} and in reading {0}, and
    # so for {1}; of single-edge patterns two write {0} and two write {1}, and ({0 -> 0, 1 -> 0}) makes three each;
    # the other nine write both. The same holds for what patterns read.
    expected = (3 * 3 + 3 * 3 + 9 * 9) / 15**2
    assert log_feasible(torch.zeros(2, 4, dtype=torch.float64), 2).exp().item() == pytest.approx(expected, rel=1e-14)
    assert log_feasible(torch.zeros(1, 4, dtype=torch.float64), 2).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("levels", range(1, 7))
@pytest.mark.parametrize("certainty", [40, 800, 2000])
def test_a_binary_feasible_architecture_is_feasible_with_certainty(levels, certainty):
    rng = np.random.default_rng(levels)
    selected = np.zeros((6, 3 * levels - 2), bool)
    # A union of paths from a stem to the last layer.
    for _ in range(2):
        level = rng.integers(levels)
        for row in selected:
            source, level = level, int(np.clip(level + rng.integers(-1, 2), 0, levels - 1))
            row[edges(levels).index((source, level))] = True
    logits = torch.from_numpy(np.where(selected, certainty, -certainty)).double()
    assert log_feasible(logits, levels).item() == pytest.approx(0, abs=1e-11)
    close(marginals(logits), torch.from_numpy(selected).double())
    close(pattern_entropy(logits), torch.zeros(6, dtype=torch.float64))
    assert topology_loss(logits, levels).item() == pytest.approx(0, abs=1e-11)


FUNCTIONS = {
    "log_any": lambda x, d: log_any(x),
    "log_none": lambda x, d: log_none(x),
    "marginals": lambda x, d: marginals(x),
    "pattern_entropy": lambda x, d: pattern_entropy(x),
    "operation_entropy": lambda x, d: operation_entropy(x),
    "p_in": lambda x, d: log_activation(x, d, end="destination"),
    "p_out": lambda x, d: log_activation(x, d, end="source"),
    "topology_loss": topology_loss,
    "log_pair_weights": log_pair_weights,
    "log_feasible": log_feasible,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@settings(deadline=None, max_examples=12)
@given(logits_of([1, 2, 3, 4, 5], [2, 3], EXTREME))
@example((torch.full((2, 7), 2000.0), 3))
@example((torch.full((2, 7), -2000.0), 3))
def test_values_and_gradients_are_finite(name, dtype, drawn):
    logits, levels = drawn[0].to(dtype).requires_grad_(), drawn[1]
    value = FUNCTIONS[name](logits, levels)
    assert value.isfinite().all()
    # Weighted, or the gradients of what sums to a constant would be trivial.
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=dtype).reshape(value.shape)
    weights = torch.where(value.detach() < -1e29, 0, weights)
    assert torch.autograd.grad((weights * value).sum(), logits)[0].isfinite().all()


@settings(deadline=None, max_examples=25)
@given(logits_of([2, 3, 4], [2], LOGITS))
def test_single_precision_stays_near_double(drawn):
    logits, levels = drawn
    logits = logits.float()
    # Sums of up to 8000 nats are rounded to 5e-4.
    for name in ("marginals", "p_in", "pattern_entropy", "log_feasible"):
        exact = FUNCTIONS[name](logits.double(), levels)
        torch.testing.assert_close(FUNCTIONS[name](logits, levels).double(), exact, rtol=1e-4, atol=2e-3, msg=name)


def test_marginals_and_entropies_by_hand():
    # One edge is always there. Two edges at even odds: three patterns, each edge in two of them.
    assert marginals(torch.tensor([[-3.0]])).item() == pytest.approx(1)
    two = torch.zeros(1, 2, dtype=torch.float64)
    assert marginals(two).tolist() == [pytest.approx([2 / 3, 2 / 3])]
    assert pattern_entropy(two).item() == pytest.approx(math.log(3))
    # Improbable edges: one of them, each as likely as the other.
    never = torch.full((1, 4), -800.0, dtype=torch.float64)
    assert marginals(never).tolist() == [pytest.approx([1 / 4] * 4)]
    assert pattern_entropy(never).item() == pytest.approx(math.log(4))
    assert operation_entropy(torch.zeros(5)).item() == pytest.approx(math.log(5))
    assert operation_entropy(torch.tensor([800.0, 0, 0])).item() == 0


@pytest.mark.parametrize("entry", REFERENCES, ids=lambda entry: f"D{entry['D']}-L{entry['L']}")
def test_independent_values(entry):
    levels = entry["D"]
    assert list(edges(levels)) == list(zip(entry["edge_source"], entry["edge_destination"], strict=True))
    logits = torch.tensor(entry["logits"], dtype=torch.float64)
    assert marginals(logits)[0].tolist() == pytest.approx(entry["marginals_layer0"], rel=1e-12)
    assert pattern_entropy(logits).tolist() == pytest.approx(entry["entropy_nats"], rel=1e-12)
    assert topology_loss(logits, levels).item() == pytest.approx(entry["topology_loss"], rel=1e-12)


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("spread", [0.01, 2])
def test_monai_agrees(levels, spread):
    dints = pytest.importorskip("monai.networks.nets.dints")
    with contextlib.redirect_stdout(io.StringIO()):
        search = dints.TopologySearch(channel_mul=1 / 32, num_blocks=3, num_depths=levels, spatial_dims=2).double()
    # Its edges are in our order.
    assert list(edges(levels)) == list(zip(search.arch_code2in, search.arch_code2out, strict=True))
    generator = torch.Generator().manual_seed(levels)
    logits = spread * torch.randn(3, 3 * levels - 2, dtype=torch.float64, generator=generator)
    search.log_alpha_a.data = logits.clone()
    eta, weights = search.get_prob_a(child=True)
    close(marginals(logits), weights.detach())
    close(pattern_entropy(logits), -(eta * eta.log()).sum(1).detach())
    theirs = search.get_topology_entropy(eta).item()
    # It adds 1e-5 within both logarithms: the same with our probabilities, and what that changes to first order.
    inputs = log_activation(logits, levels, end="destination")[:-1].exp()
    outputs = log_activation(logits, levels, end="source")[1:].exp()
    terms = inputs * (outputs + 1e-5).log() + (1 - inputs) * (1 - outputs + 1e-5).log()
    assert theirs == pytest.approx(-terms.sum().item(), rel=1e-12)
    lowered = 1e-5 * (inputs / outputs + (1 - inputs) / (1 - outputs)).sum().item()
    assert theirs <= topology_loss(logits, levels).item() <= theirs + lowered
