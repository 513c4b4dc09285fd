"""The distance from a teacher, by hand."""

import math

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn

from nnunet_nas.distill.loss import DistillationLoss, at_the_resolutions_of, divergence, labelled


def logits(*channels, shape=(1, 2)):
    """The same logits at every voxel, (1, c, *shape)."""
    return torch.tensor(channels, dtype=torch.float32).reshape(1, -1, 1, 1).expand(1, len(channels), *shape).clone()


# The teacher says (3/4, 1/4), the student (1/2, 1/2).
CLASSES = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_classes_by_hand(temperature):
    teacher = logits(temperature * math.log(3), 0)
    found = divergence(logits(0, 0), teacher, None, temperature=temperature, regions=False)
    assert float(found) == pytest.approx(temperature**2 * CLASSES, rel=1e-5)


def test_regions_by_hand():
    """The first region as the classes above, the second agreed: half of that on average."""
    teacher, student = logits(math.log(3), -0.7), logits(0, -0.7)
    found = divergence(student, teacher, None, temperature=1.0, regions=True)
    assert float(found) == pytest.approx(CLASSES / 2, rel=1e-5)


@pytest.mark.parametrize("regions", [False, True])
def test_who_agrees_has_nothing_to_learn(regions):
    same = torch.randn(2, 3, 4, 4, requires_grad=True)
    found = divergence(same, same.detach(), None, temperature=3.0, regions=regions)
    found.backward()
    assert float(found.detach()) == pytest.approx(0, abs=1e-6)
    assert same.grad.abs().max() < 1e-6


def test_the_gradient_of_a_high_temperature_does_not_vanish():
    """Hinton et al., section 2.1: at high temperature the gradient tends to (z - v) / c, whatever the temperature."""
    student, teacher = torch.zeros(1, 2, 1, 1, requires_grad=True), logits(1.0, -1.0, shape=(1, 1))
    divergence(student, teacher, None, temperature=1000.0, regions=False).backward()
    assert student.grad.flatten().tolist() == pytest.approx([-0.5, 0.5], rel=1e-3)


@pytest.mark.parametrize("regions", [False, True])
def test_large_logits_stay_finite(regions):
    found = divergence(logits(-1e4, 1e4), logits(1e4, -1e4), None, temperature=1.0, regions=regions)
    assert torch.isfinite(found)


def test_voxels_without_a_label_do_not_count():
    teacher = torch.cat([logits(math.log(3), 0, shape=(1, 1)), logits(50, 0, shape=(1, 1))], dim=3)
    mask = labelled(torch.tensor([[[[1, 7]]]]), 7, regions=False)
    found = divergence(logits(0, 0), teacher, mask, temperature=1.0, regions=False)
    assert float(found) == pytest.approx(CLASSES, rel=1e-5)
    nothing = labelled(torch.tensor([[[[7, 7]]]]), 7, regions=False)
    assert float(divergence(logits(0, 0), teacher, nothing, temperature=1.0, regions=False)) == 0


def test_the_last_channel_of_regions_marks_what_is_ignored():
    target = torch.tensor([[[[1, 0]], [[0, 1]]]])
    assert labelled(target, 3, regions=True).tolist() == [[[[True, False]]]]
    assert labelled(target.bool(), 3, regions=True).tolist() == [[[[True, False]]]]
    assert labelled(target, None, regions=True) is None


def test_a_resolution_that_the_teacher_lacks_is_averaged_from_its_finest():
    teacher = [torch.arange(16.0).reshape(1, 1, 4, 4), torch.full((1, 1, 2, 2), 9.0)]
    student = [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)]
    found = at_the_resolutions_of(student, teacher)
    assert [part.flatten().tolist() for part in found] == [list(range(16)), [9] * 4, [7.5]]


class Labels(nn.Module):
    """A loss of 1 at each resolution."""

    def forward(self, output, target):
        return output.sum() * 0 + 1


def test_resolutions_count_as_in_nnunets_loss_and_a_teacher_once():
    loss = DistillationLoss(
        DeepSupervisionWrapper(Labels(), (0.75, 0.25, 0.0)),
        temperature=1.0,
        weight=10.0,
        ignore_label=None,
        regions=False,
    )
    student = [logits(0, 0, shape=(4, 4)), logits(0, 0, shape=(2, 2)), logits(0, 0, shape=(1, 1))]
    taught = [logits(math.log(3), 0, shape=(4, 4)), logits(0, 0, shape=(2, 2)), logits(50, 0, shape=(1, 1))]
    targets = [part[:, :1] for part in student]
    assert float(loss(student, targets)) == pytest.approx(1)
    loss.teacher = taught
    assert float(loss(student, targets)) == pytest.approx(1 + 10 * 0.75 * CLASSES, rel=1e-5)
    assert float(loss(student, targets)) == pytest.approx(1)


def test_without_deep_supervision_there_is_one_resolution():
    loss = DistillationLoss(Labels(), temperature=1.0, weight=2.0, ignore_label=None, regions=False)
    loss.teacher = [logits(math.log(3), 0)]
    assert float(loss(logits(0, 0), torch.zeros(1, 1, 1, 2))) == pytest.approx(1 + 2 * CLASSES, rel=1e-5)
