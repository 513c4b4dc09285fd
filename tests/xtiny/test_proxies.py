"""Label-free proxies, by hand on small codes and networks."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_nas.cli.select_tiny import METRICS
from nnunet_nas.xtiny.proxies import (
    PROXIES,
    Scene,
    _Moments,
    activation_codes,
    agreement,
    encoder_statistics,
    sample_wise_patterns,
    without_normalisation,
)
from nnunet_nas.xtiny.sensitivity import prepare

CPU = torch.device("cpu")
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def scene(batch_size=2, seed=0):
    return Scene(lambda some: torch.stack([IMAGES[int(c)] for c in some]), list("0123"), (8, 8), CPU, batch_size, seed)


class TinyEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.LeakyReLU(inplace=True)),
                nn.Sequential(nn.Conv2d(4, 8, 3, 2, padding=1), nn.InstanceNorm2d(8), nn.LeakyReLU(inplace=True)),
            ]
        )


class TinyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = TinyEncoder()
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        for stage in self.encoder.stages:
            x = stage(x)
        return self.head(x)


def network():
    torch.manual_seed(0)
    return prepare(TinyNetwork(), CPU)


def test_command_line_offers_exactly_these():
    assert tuple(PROXIES) == METRICS


@pytest.mark.parametrize("name", [name for name in METRICS if name != "jacobian"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_values_are_finite_and_do_not_depend_on_the_batches(name, batch_size):
    one = next(PROXIES[name].measure(network(), scene(batch_size)))
    other = next(PROXIES[name].measure(network(), scene(3)))
    assert all(math.isfinite(value) for value in one.values())
    if name != "az_nas":  # its random vectors are drawn per batch
        assert one == pytest.approx(other, rel=1e-9)


def test_agreement_counts_equal_bits_and_padding():
    # Rows 11110000, 11111111, 00000000: they agree on 8, 4, 4 / 4, 8, 0 / 4, 0, 8 positions.
    codes = np.array([[0b11110000], [0b11111111], [0]], dtype=np.uint8)
    assert agreement(codes).tolist() == [[8, 4, 4], [4, 8, 0], [4, 0, 8]]


def test_sample_wise_patterns_are_distinct_columns():
    # Two images, columns (1,1) x 4 and (0,1) x 4: two distinct patterns.
    assert len(sample_wise_patterns(np.array([[0b11110000], [0b11111111]], dtype=np.uint8))) == 2
    assert len(sample_wise_patterns(np.array([[0b11001100], [0b11110000]], dtype=np.uint8))) == 4


def test_codes_are_signs_in_front_of_the_nonlinearity():
    codes = activation_codes(nn.Sequential(nn.Identity(), nn.ReLU()), scene())
    expected = np.packbits((IMAGES > 0).flatten(1).numpy(), axis=1)
    assert len(codes) == 1
    assert (codes[0] == expected).all()


def test_naswot_of_independent_codes():
    # K for the codes above: [[8, 4, 4], [4, 8, 0], [4, 0, 8]], determinant 8*64 - 4*32 - 4*32 = 256.
    codes = np.array([[0b11110000], [0b11111111], [0]], dtype=np.uint8)
    assert np.linalg.slogdet(agreement(codes))[1] == pytest.approx(math.log(256))


def test_synflow_of_two_layers_by_hand():
    # Absolute weights 2 and 3, input of ones: R = sum over 64 voxels of 6; each layer's theta * dR/dtheta is R.
    two = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.InstanceNorm2d(1), nn.Conv2d(1, 1, 1, bias=False))
    two[0].weight.data.fill_(-2)
    two[2].weight.data.fill_(3)
    value = next(PROXIES["synflow"].measure(two, scene()))["score"]
    assert value == pytest.approx(math.log(2 * 64 * 6))


def test_without_normalisation_leaves_none():
    left = [type(module) for module in without_normalisation(network()).modules()]
    assert nn.InstanceNorm2d not in left


def test_spectral_entropy_of_equal_and_single_directions():
    both, one = _Moments(), _Moments()
    both.add(torch.tensor([[[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]]))
    one.add(torch.tensor([[[1.0, -1.0], [0.0, 0.0]]]))
    assert both.spectral_entropy() == pytest.approx(math.log(2))
    assert one.spectral_entropy() == pytest.approx(0)


def test_channel_jacobian_of_a_pointwise_stage_is_its_weight():
    # y = W x with v = +-1 and v v^T averaging to the identity: A -> W^T, spectral norm of diag(3, 1) is 3.
    stage = nn.Conv2d(2, 2, 1, bias=False)
    stage.weight.data = torch.tensor([[3.0, 0.0], [0.0, 1.0]])[:, :, None, None]
    holder = nn.Module()
    holder.encoder = nn.Module()
    holder.encoder.stages = nn.ModuleList([nn.Conv2d(1, 2, 1), stage])
    wide = Scene(lambda some: torch.randn(len(some), 1, 64, 64), list("0123"), (64, 64), CPU, 4, 0)
    assert encoder_statistics(holder, wide)[1] == pytest.approx([3], rel=0.05)


def test_az_nas_joins_ranks():
    # Three widths; part values rank 1..3 in every part: sum of log(rank / 3) over four parts.
    parts = ("expressivity", "progressivity", "trainability", "complexity")
    curve = PROXIES["az_nas"].curve([dict.fromkeys(parts, value) for value in (30.0, 20.0, 10.0)])
    assert curve == pytest.approx([0, 4 * math.log(2 / 3), 4 * math.log(1 / 3)])
