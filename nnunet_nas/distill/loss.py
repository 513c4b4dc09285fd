"""How far a student's logits are from a teacher's: Kullback-Leibler divergence at a temperature.

Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2: softened probabilities
of both, and the factor temperature^2 that keeps the gradient's size. Our choices: the divergence is summed over the
classes of a voxel and averaged over the voxels, regions are independent yes-or-no decisions whose divergences are
averaged as nnU-Net's cross entropy is, and voxels without a label (nnU-Net's ignore label) do not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn
from torch.nn import functional


def divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    temperature: float,
    regions: bool,
) -> torch.Tensor:
    """temperature^2 * KL(teacher || student), averaged over the voxels that count.

    Args:
        student: logits, (b, c, *spatial).
        teacher: likewise.
        mask: true where a voxel counts, (b, 1, *spatial); None: everywhere.
        temperature: divides the logits.
        regions: channels are independent (sigmoid), not classes (softmax).

    Returns:
        a number; 0 if no voxel counts.
    """
    student, teacher = student.float() / temperature, teacher.float() / temperature
    voxels = (_binary(student, teacher) if regions else _categorical(student, teacher)) * temperature**2
    if mask is None:
        return voxels.mean()
    return (voxels * mask).sum() / mask.sum().clamp(min=1)


def _categorical(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    student, teacher = functional.log_softmax(student, 1), functional.log_softmax(teacher, 1)
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1, keepdim=True)


def _binary(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    yes, no = torch.sigmoid(teacher), torch.sigmoid(-teacher)
    for_yes = functional.logsigmoid(teacher) - functional.logsigmoid(student)
    for_no = functional.logsigmoid(-teacher) - functional.logsigmoid(-student)
    return (yes * for_yes + no * for_no).mean(1, keepdim=True)


def labelled(target: torch.Tensor, ignore_label: int | None, *, regions: bool) -> torch.Tensor | None:
    """Where voxels have a label, as nnU-Net's losses see it.

    Args:
        target: labels, (b, 1, *spatial), or regions with the ignored voxels as last channel, (b, c, *spatial).
        ignore_label: nnU-Net's; None if there is none.
        regions: whether `target` holds regions.

    Returns:
        bool, (b, 1, *spatial); None without an ignore label.
    """
    if ignore_label is None:
        return None
    return ~target[:, -1:].bool() if regions else target != ignore_label


def at_the_resolutions_of(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The teacher's logits at each resolution of the student's.

    Where the teacher has no output of that shape, those of its finest one are averaged over the larger voxels.

    Args:
        student: logits, finest first, (b, c, *spatial) each.
        teacher: likewise.
    """
    by_shape = {logits.shape[2:]: logits for logits in teacher}
    pool = nn.AdaptiveAvgPool2d if teacher[0].dim() == 4 else nn.AdaptiveAvgPool3d
    return [
        by_shape[logits.shape[2:]] if logits.shape[2:] in by_shape else pool(tuple(logits.shape[2:]))(teacher[0])
        for logits in student
    ]


class DistillationLoss(nn.Module):
    """nnU-Net's loss and, for a batch whose teacher's logits were put here, the divergence from them.

    The outputs of deep supervision count as they do in nnU-Net's loss.

    Attributes:
        teacher: logits for the next batch, finest first; they are used once. None: nnU-Net's loss alone.
    """

    def __init__(
        self, loss: nn.Module, *, temperature: float, weight: float, ignore_label: int | None, regions: bool
    ) -> None:
        super().__init__()
        self.loss = loss
        self.teacher: Sequence[torch.Tensor] | None = None
        self._temperature = temperature
        self._weight = weight
        self._ignore_label = ignore_label
        self._regions = regions

    def forward(
        self, output: torch.Tensor | list[torch.Tensor], target: torch.Tensor | list[torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch.

        Args:
            output: logits, with deep supervision a list of them, finest first.
            target: labels or regions, likewise.
        """
        total: torch.Tensor = self.loss(output, target)
        teacher, self.teacher = self.teacher, None
        if teacher is None:
            return total
        student = output if isinstance(output, list | tuple) else [output]
        targets = target if isinstance(target, list | tuple) else [target]
        masks = [labelled(part, self._ignore_label, regions=self._regions) for part in targets]
        wanted = at_the_resolutions_of(student, teacher)
        weights = self.loss.weight_factors if isinstance(self.loss, DeepSupervisionWrapper) else (1.0,)
        distance = DeepSupervisionWrapper(self._divergence, weights)(student, wanted, masks)
        return total + self._weight * distance

    def _divergence(self, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return divergence(student, teacher, mask, temperature=self._temperature, regions=self._regions)
