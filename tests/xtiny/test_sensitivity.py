"""Sensitivity: by hand for linear networks, batches against single images, refusals."""

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_nas.xtiny.sensitivity import (
    default_batch_size,
    input_gradient_norms,
    prepare,
    score_images,
    uses_batch_statistics,
)

CPU = torch.device("cpu")


def test_norm_of_a_pointwise_network_by_hand():
    # logits_k = w_k . x at each voxel: d(sum of logits)/dx_c = w_1c + w_2c everywhere; weights (1, 2), (2, 2) give
    # (3, 4) per voxel, norm 5, and over 9 voxels 5 * 3.
    network = nn.Conv2d(2, 2, 1, bias=False)
    network.weight.data = torch.tensor([[1.0, 2.0], [2.0, 2.0]])[:, :, None, None]
    assert input_gradient_norms(network, torch.randn(3, 2, 3, 3)).tolist() == pytest.approx([15, 15, 15])


def test_norm_is_over_the_whole_input_of_each_image():
    # y = x^2: the gradient is 2x, its norm 2 |x|.
    class Square(nn.Module):
        def forward(self, x):
            return x**2

    images = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 1.0]]]])
    assert input_gradient_norms(Square(), images).tolist() == pytest.approx([10, 2])


def small_network(norm=nn.InstanceNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norm(4, affine=True), nn.LeakyReLU(inplace=True), nn.Conv2d(4, 2, 3, padding=1)
    )


def scores(network, images, **options):
    cases = [f"case_{index}" for index in range(len(images))]
    found = {}
    for values in score_images(
        network, lambda some: torch.stack([images[int(c[5:])] for c in some]), cases, device=CPU, **options
    ):
        found.update(values)
    return np.array([found[case] for case in cases])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_a_batch_gives_every_image_its_own_score(batch_size):
    images = torch.randn(5, 1, 8, 8)
    network = prepare(small_network(), CPU)
    alone = [float(input_gradient_norms(network, image[None])) for image in images]
    assert scores(network, images, batch_size=batch_size) == pytest.approx(alone, rel=1e-5)


def test_batch_statistics_are_scored_one_image_at_a_time():
    images = torch.randn(4, 1, 8, 8)
    network = prepare(small_network(nn.BatchNorm2d), CPU)
    assert uses_batch_statistics(network)
    alone = [float(input_gradient_norms(network, image[None])) for image in images]
    together = input_gradient_norms(network, images).tolist()
    assert together != pytest.approx(alone, rel=1e-3)
    assert scores(network, images, batch_size=4) == pytest.approx(alone, rel=1e-5)


def test_known_batches_are_skipped_and_the_others_keep_their_company():
    images = torch.randn(6, 1, 8, 8)
    loaded = []

    def load(some):
        loaded.append(list(some))
        return torch.stack([images[int(case)] for case in some])

    network = prepare(small_network(), CPU)
    list(score_images(network, load, list("012345"), device=CPU, batch_size=2, known={"0", "1", "2"}))
    assert sorted(loaded) == [["2", "3"], ["4", "5"]]


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    scores(prepare(small_network(), CPU), torch.randn(4, 1, 8, 8), batch_size=1)
    assert torch.get_num_threads() == before


def test_dropout_is_off_and_weights_take_no_gradient():
    network = prepare(nn.Sequential(nn.Conv2d(1, 4, 1), nn.Dropout2d(0.5), nn.Conv2d(4, 1, 1)), CPU)
    images = torch.randn(1, 1, 4, 4)
    assert input_gradient_norms(network, images).tolist() == input_gradient_norms(network, images).tolist()
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_out_of_memory_on_a_gpu_halves_the_batch_and_goes_on(monkeypatch):
    from nnunet_nas.xtiny import sensitivity

    asked = []

    def norms(network, images):
        asked.append(len(images))
        if len(images) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return images.flatten(1).sum(1)

    class OnTheHost(torch.Tensor):
        def to(self, *args, **kwargs):
            return self

    monkeypatch.setattr(sensitivity, "input_gradient_norms", norms)
    images = torch.arange(5.0).reshape(5, 1, 1, 1).as_subclass(OnTheHost)
    found = {}
    for values in sensitivity.score_images(
        nn.Identity(),
        lambda some: images[[int(c) for c in some]],
        list("01234"),
        device=torch.device("cuda"),
        batch_size=5,
    ):
        found.update(values)
    assert asked == [5, 2, 2, 1]
    assert found == {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4}


def test_batch_size_keeps_the_largest_activation_in_bounds():
    # 32 MiB / (2 * 32 channels * 256 * 256 voxels * 4 bytes) = 2; a 56 x 40 patch allows 58.
    assert default_batch_size(32, 256 * 256, CPU) == 2
    assert default_batch_size(32, 56 * 40, CPU) == 58
    assert default_batch_size(32, 160**3, CPU) == 1
