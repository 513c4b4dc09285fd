"""What teaches: one trained network, or those of several folds, found where nnU-Net left them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_nas import commands
from nnunet_nas.architecture import build_network, network_spec
from nnunet_nas.environment import dataset_number
from nnunet_nas.errors import DataProblem
from nnunet_nas.plans import Plans
from nnunet_nas.precision import half_precision
from nnunet_nas.skips.backbone import Backbone, BackboneAddress, load_checkpoint


class Teacher(nn.Module):
    """Averages the logits of networks that learn nothing any more; in half precision on CUDA, as nnU-Net trains."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks).requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The mean logits, finest first.

        Args:
            images: (b, c, *spatial).
        """
        with half_precision(images.device):
            outputs = [network(images) for network in self.networks]
        levels = [output if isinstance(output, list | tuple) else [output] for output in outputs]
        return [torch.stack(level).mean(0) for level in zip(*levels, strict=True)]


@dataclass(frozen=True)
class TeacherAddress:
    """Whose logits a configuration learns from.

    Attributes:
        plans: of both.
        student: the configuration that learns.
        configuration: the teacher's; None: what the student inherits from.
        folds: of the teacher.
        trainer: class name of the teacher's trainer; None: see `BackboneAddress`.
        checkpoint: see there.
    """

    plans: Plans
    student: str
    configuration: str | None
    folds: Sequence[int | str]
    trainer: str | None
    checkpoint: str

    def resolved(self) -> str:
        """The teacher's configuration.

        Raises:
            DataProblem: none is named and there is none that the student inherits from, or its data are others, or one
                file is to stand for several folds.
        """
        if "/" in self.checkpoint and len(self.folds) > 1:
            raise DataProblem(
                f"teacher_checkpoint={self.checkpoint} is one file and teacher_folds are {len(self.folds)}: give a "
                f"file name that every fold's folder has, with {self._set('teacher_checkpoint=default')}"
            )
        name = self.configuration or self.plans.configurations[self.student].get("inherits_from")
        if name is None:
            raise DataProblem(
                f"configuration {self.student} inherits from none, so that its teacher must be named: "
                f"{self._set('teacher_configuration=NAME')}"
            )
        theirs, ours = (self.plans.resolve(each).get("data_identifier") for each in (name, self.student))
        if theirs != ours:
            raise DataProblem(
                f"{name} sees the data {theirs} and {self.student} sees {ours}: name a teacher on the same data with "
                f"{self._set('teacher_configuration=NAME')}"
            )
        return str(name)

    def _set(self, assignment: str) -> str:
        return commands.set_search(
            "distill",
            assignment,
            dataset=dataset_number(self.plans.dataset_name),
            configuration=self.student,
            plans=self.plans.name,
        )

    def of_fold(self, fold: int | str) -> BackboneAddress:
        """Where the teacher of one fold is."""
        return BackboneAddress(
            self.plans,
            self.resolved(),
            fold,
            self.trainer,
            self.checkpoint,
            role="teacher",
            method="distill",
            set_on=self.student,
        )


@dataclass(frozen=True)
class Found:
    """A teacher and where it comes from.

    Attributes:
        teacher: on the CPU.
        paths: of its checkpoints.
        mirroring: axes along which its images were mirrored; None if they were not.
    """

    teacher: Teacher
    paths: Sequence[Path]
    mirroring: tuple[int, ...] | None


def find_teacher(address: TeacherAddress, dataset_json: dict[str, Any], *, deep_supervision: bool) -> Found:
    """Reads the networks of all its folds.

    Args:
        address: of the teacher.
        dataset_json: nnU-Net's description of the data set.
        deep_supervision: whether it teaches at all resolutions.

    Raises:
        DataProblem: a network is not trained yet, does not fit, or was mirrored along other axes than the others.
    """
    spec = network_spec(address.plans, address.resolved(), dataset_json)
    trained = [load_checkpoint(address.of_fold(fold)) for fold in address.folds]
    mirroring = {backbone.mirroring for backbone in trained}
    if len(mirroring) > 1:
        raise DataProblem(f"the teachers of folds {', '.join(map(str, address.folds))} were mirrored along other axes")
    networks = []
    for backbone in trained:
        network = build_network(spec, deep_supervision=deep_supervision, initialise=False)
        _load(network, backbone)
        networks.append(network)
    return Found(Teacher(networks), [backbone.path for backbone in trained], mirroring.pop())


def _load(network: nn.Module, backbone: Backbone) -> None:
    try:
        network.load_state_dict(backbone.weights)
    except RuntimeError as error:
        raise DataProblem(
            f"the weights of {backbone.path} do not fit the teacher's configuration: train the teacher again"
        ) from error
