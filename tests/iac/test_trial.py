"""The trial of a cell against the plain skip."""

import pytest
import torch
from scipy.stats import ttest_1samp
from torch import nn

from nnunet_nas.iac.trial import gain_of, losses, train_briefly


def test_the_gain_is_paired_with_its_t_interval():
    before, after = [1.0, 2.0, 3.0, 4.0], [0.8, 1.9, 2.7, 3.8]
    gain = gain_of(before, after)
    interval = ttest_1samp([0.2, 0.1, 0.3, 0.2], 0).confidence_interval(0.95)
    assert gain.mean == pytest.approx(0.2)
    assert gain.mean - gain.half_width == pytest.approx(interval.low)
    assert gain.batches == 4
    assert gain.beats_the_identity


def test_a_gain_within_its_noise_is_none():
    assert not gain_of([1.0, 2.0, 3.0], [0.5, 2.4, 2.8]).beats_the_identity
    assert not gain_of([1.0, 2.0], [1.0, 2.0]).beats_the_identity


def test_a_short_training_lowers_the_loss_of_what_is_not_frozen():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    network[0].requires_grad_(False)
    frozen = network[0].weight.clone()
    batch = torch.randn(64, 2)

    def loss_of(inputs, model):
        return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    before = losses(network, [batch], loss_of)
    train_briefly(network, iter([batch] * 20), 20, loss_of=loss_of, scaler=torch.amp.GradScaler("cpu", enabled=False))
    assert losses(network, [batch], loss_of)[0] < before[0]
    assert network[0].weight.equal(frozen)
