"""Costs: known parameter counts, and MACs and memory of small networks worked out by hand."""

import io

import fake_dataset
import pytest
import torch
from torch import nn

from nnunet_nas.architecture import NetworkSpec, build_network
from nnunet_nas.complexity import complexity_of, count_macs, inference_bytes, step_macs, training_bytes
from nnunet_nas.xtiny.widths import capped_features


def plain_unet(*, channels, classes, cap=512, stages=7, patch=(128, 128)):
    """nnU-Net's plain 2-D U-Net with 32..512 channels under a cap."""
    return NetworkSpec(
        architecture=fake_dataset.plain_unet(
            2,
            [[1, 1]] + [[2, 2]] * (stages - 1),
            [[3, 3]] * stages,
            capped_features([32, 64, 128, 256, 512, 512, 512][:stages], cap),
        ),
        input_channels=channels,
        output_channels=classes,
        patch_size=patch,
        batch_size=2,
    )


@pytest.mark.parametrize(
    ("channels", "cap", "parameters"), [(3, 512, 33_472_396), (3, 16, 79_548), (3, 8, 20_388), (1, 8, 20_244)]
)
def test_parameters_are_those_of_the_paper(channels, cap, parameters):
    assert complexity_of(plain_unet(channels=channels, classes=2, cap=cap)).parameters == parameters


def test_macs_of_a_convolution_by_hand():
    # 3x3 kernel, 2 -> 5 channels, 8x8 outputs: 9 * 2 * 5 * 64 multiply-accumulates.
    assert count_macs(nn.Conv2d(2, 5, 3, padding=1), (1, 2, 8, 8)) == 9 * 2 * 5 * 64


def test_macs_of_a_strided_and_a_transposed_convolution_by_hand():
    # Stride 2: 4x4 outputs. Transposed 2x2 with stride 2: each of 8x8 inputs meets 2*2 weights.
    assert count_macs(nn.Conv2d(2, 5, 3, 2, padding=1), (1, 2, 8, 8)) == 9 * 2 * 5 * 16
    assert count_macs(nn.ConvTranspose2d(2, 5, 2, 2), (1, 2, 8, 8)) == 4 * 2 * 5 * 64


def test_flops_are_twice_the_macs():
    cost = complexity_of(plain_unet(channels=1, classes=2, cap=8))
    assert cost.flops == 2 * cost.macs


def test_inference_memory_of_two_layers_by_hand():
    # 1 -> 4 -> 2 channels, 8x8 floats of 4 bytes: input 256, middle 1024, output 512. The caller holds the input
    # throughout; the middle is alive together with the output: 256 + 1024 + 512.
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    assert inference_bytes(network, (1, 1, 8, 8)) == 256 + 1024 + 512


def test_inference_memory_forgets_what_is_freed():
    # Four layers of the same width: never more than one input and one output of a layer (and the network's input).
    network = nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(4)])
    assert inference_bytes(network, (1, 4, 8, 8)) == 3 * 1024


def test_training_memory_of_two_layers_by_hand():
    # Each convolution keeps its input: 256 + 1024 bytes; weights do not count.
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    assert training_bytes(network, (1, 1, 8, 8)) == 256 + 1024


def test_training_memory_counts_a_tensor_kept_twice_once():
    # ReLU keeps its output, which is also what the next convolution keeps.
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    assert training_bytes(network, (1, 1, 8, 8)) == 256 + 1024


@pytest.mark.parametrize("cap", [512, 8])
def test_counting_without_weights_equals_counting_the_real_network(cap):
    spec = plain_unet(channels=1, classes=3, cap=cap, stages=4, patch=(32, 32))
    cost, network, shape = complexity_of(spec), build_network(spec), (1, 1, 32, 32)
    assert cost.macs == count_macs(network, shape)
    assert cost.inference_mib == inference_bytes(network, shape) / 2**20
    assert cost.training_mib == training_bytes(network, shape) / 2**20


def test_checkpoint_size_is_that_of_weights_and_momentum():
    spec = plain_unet(channels=1, classes=2, stages=5)
    network = build_network(spec)
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    network(torch.randn(1, 1, 64, 64)).sum().backward()
    optimiser.step()
    file = io.BytesIO()
    torch.save({"network_weights": network.state_dict(), "optimizer_state": optimiser.state_dict()}, file)
    assert complexity_of(spec).checkpoint_mib == pytest.approx(file.tell() / 2**20, rel=0.02)


def test_a_training_step_costs_three_passes_and_two_where_weights_are_frozen():
    # The first layer passes no gradient on to its inputs: forward, weights; the second: forward, weights, inputs.
    network = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    assert step_macs(network, (2, 5)) == 2 * (2 * 5 * 7 + 3 * 7 * 3)
    network[1].requires_grad_(False)
    assert step_macs(network, (2, 5)) == 2 * (2 * 5 * 7 + 2 * 7 * 3)
