"""What training holds in memory, part by part, against numbers counted by hand and against a real training step."""

from dataclasses import replace

import pytest
import torch

from nnunet_nas.architecture import build_network, network_spec
from nnunet_nas.complexity import training_bytes
from nnunet_nas.plans import Plans
from nnunet_nas.training_cost import TrainingMemory, share_of_default_training, training_memory

MIB = 2**20


@pytest.fixture
def spec(dataset):
    return network_spec(Plans.read(dataset / "nnUNetPlans.json"), "2d")


def test_the_parts_are_those_of_a_training_step(spec):
    memory, network = training_memory(spec), build_network(spec, deep_supervision=True)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    sum(output.sum() for output in network(torch.randn(2, 1, 32, 32))).backward()
    optimizer.step()
    weights = list(network.parameters())
    momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
    for held, part in ((weights, memory.weights), ([w.grad for w in weights], memory.gradients),
                       (momentum, memory.momentum)):  # fmt: skip
        assert part == sum(tensor.numel() * tensor.element_size() for tensor in held) / MIB
    assert memory.activations == training_bytes(network, (2, 1, 32, 32)) / MIB
    assert memory.total == memory.activations + 3 * memory.weights


def test_the_batch_multiplies_activations_only(spec):
    once, twice = training_memory(spec), training_memory(replace(spec, batch_size=4))
    assert twice.activations == pytest.approx(2 * once.activations)
    assert (twice.weights, twice.gradients, twice.momentum) == (once.weights, once.gradients, once.momentum)


def test_it_names_its_parts():
    memory = TrainingMemory(activations=100.4, weights=10, gradients=9, momentum=8)
    assert str(memory) == "127 MiB (activations 100, weights 10, gradients 9, momentum 8)"
    assert memory.to_json()["total_mib"] == pytest.approx(127.4)
    assert list(memory.to_json()) == ["activations_mib", "weights_mib", "gradients_mib", "momentum_mib", "total_mib"]


def test_a_default_training_is_a_thousand_epochs():
    assert share_of_default_training(250, 2.0) == pytest.approx(0.002)
