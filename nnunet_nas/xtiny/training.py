"""One width in training: nnU-Net's own trainer with its loaders, augmentation, loss, optimiser and schedule, in pieces.

A piece ends at a measurement, and its end is kept on the disk; a piece that was cut off is repeated. Every piece begins
with random numbers of its own, so that with loading in one process (nnUNet_n_proc_DA=0) an interrupted training is the
same as one in a single go, and all widths see the same patches.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_nas.errors import DataProblem
from nnunet_nas.files import replace_file
from nnunet_nas.plans import Plans
from nnunet_nas.precision import LossWatch
from nnunet_nas.randomness import seed_everything
from nnunet_nas.trainer import to_bytes
from nnunet_nas.xtiny.scoring import Candidate
from nnunet_nas.xtiny.widths import candidate_name

# nnU-Net changes the learning rate once in so many iterations.
_EPOCH = 250
# Of each validation case; the last of them shows foreground, as nnU-Net's sampling has it.
_PATCHES = 3

Patches = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Course:
    """What all widths have in common.

    Attributes:
        plans: of the base.
        base: its name.
        fold: whose training cases are trained on, and whose validation cases measured.
        horizon: iterations of the whole training, of which this is the beginning.
        batch_size: patches per iteration; None: as planned.
        seed: of weights and patches.
        device: to train on.
    """

    plans: Plans
    base: str
    fold: int
    horizon: int
    batch_size: int | None
    seed: int
    device: torch.device

    def trainer(self, candidate: Candidate) -> Any:
        """nnU-Net's trainer of a width, in a results folder of its own: it is no finished training."""
        content, name = deepcopy(self.plans.content), candidate_name(self.base, candidate.cap)
        entry: dict[str, Any] = {"inherits_from": self.base, "architecture": candidate.spec.architecture}
        if self.batch_size is not None:
            entry["batch_size"] = self.batch_size
        content["configurations"][name] = entry
        content |= {"plans_name": f"{self.plans.name}_race", "continue_training": False}
        with _silence():
            trainer = nnUNetTrainer(content, name, self.fold, self.plans.dataset_json, self.device)
            trainer.num_epochs = max(1, math.ceil(self.horizon / _EPOCH))
            # With two stages nnU-Net's weights of the deep supervision levels are 0/0.
            trainer.enable_deep_supervision = len(candidate.features) > 2
            seed_everything(self.seed)
            trainer.initialize()
        return trainer

    def make_split(self, candidate: Candidate) -> None:
        """Lets nnU-Net write its split into the data set's folder, as before any training; of no matter which width."""
        trainer = self.trainer(candidate)
        with _silence():
            trainer.do_split()


class Contestant:
    """One width in training.

    Attributes:
        iteration: how many it has trained.
    """

    def __init__(self, course: Course, candidate: Candidate, name: str) -> None:
        """Takes up what is on the disk, or begins.

        Args:
            course: of all widths.
            candidate: this width.
            name: of the race, in the name of the file.
        """
        self._course = course
        self._trainer = course.trainer(candidate)
        self._path = Path(self._trainer.output_folder) / f"{name}.pth"
        self.iteration = 0
        if self._path.exists():
            self._load()

    def train(self, until: int, tick: Callable[[], object]) -> None:
        """Trains on, calling `tick` after each iteration.

        Raises:
            DataProblem: the loss is not a number, or stays so where nnU-Net skips such steps.
        """
        trainer = self._trainer
        if self.iteration >= until:
            return
        seed_everything(self._course.seed + self.iteration)
        watch = LossWatch(trainer.grad_scaler)
        with _silence(), _loaders(trainer) as loader:
            trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
            trainer.network.train()
            while self.iteration < until:
                trainer.lr_scheduler.step(self.iteration // _EPOCH)
                watch.add(torch.as_tensor(trainer.train_step(next(loader))["loss"]))
                found = watch.fault()
                if found is not None:
                    raise DataProblem(
                        f"the loss of {trainer.configuration_name} became {found} in iteration {self.iteration}: look "
                        f"for NaN in the preprocessed data, or let another -rule decide"
                    )
                self.iteration += 1
                tick()

    def measure(self, patches: Patches) -> dict[str, float]:
        """Dice of each case on its patches: classes that neither label nor prediction has do not count."""
        trainer = self._trainer
        trainer.network.eval()
        with torch.no_grad():
            return {case: _dice(trainer.validation_step(_copied(batch))) for case, batch in patches.items()}

    def save(self) -> None:
        """Keeps the training on the disk, atomically."""
        scaler = self._trainer.grad_scaler
        state = {
            "iteration": self.iteration,
            "network": self._trainer.network.state_dict(),
            "optimizer": self._trainer.optimizer.state_dict(),
            "grad_scaler": None if scaler is None else scaler.state_dict(),
        }
        replace_file(self._path, to_bytes(state))

    def _load(self) -> None:
        try:
            state = torch.load(self._path, map_location=self._trainer.device, weights_only=True)
            self._trainer.network.load_state_dict(state["network"])
            self._trainer.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:
            raise DataProblem(
                f"{self._path} is not the training of a race ({type(error).__name__}): remove it to train anew"
            ) from error
        if self._trainer.grad_scaler is not None:
            self._trainer.grad_scaler.load_state_dict(state["grad_scaler"])
        self.iteration = int(state["iteration"])

    def forget(self) -> None:
        """Removes what is on the disk."""
        self._path.unlink(missing_ok=True)


def validation_patches(course: Course, candidate: Candidate, cases: Sequence[str]) -> Patches:
    """The same patches of each case for all widths, drawn as nnU-Net draws them for its validation.

    Args:
        course: of all widths.
        candidate: any of them.
        cases: to measure.

    Returns:
        for each case a batch as nnU-Net's loaders give it.
    """
    trainer = course.trainer(candidate)
    labels = trainer.label_manager
    transforms = trainer.get_validation_transforms(
        trainer._get_deep_supervision_scales(),
        foreground_labels=labels.foreground_labels,
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=labels.ignore_label,
    )
    size, patches = trainer.configuration_manager.patch_size, {}
    for number, case in enumerate(cases):
        seed_everything(course.seed + number)
        dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, [case])
        loader = nnUNetDataLoader(dataset, _PATCHES, size, size, labels, 1 / _PATCHES, transforms=transforms)
        patches[case] = next(loader)
    return patches


def _dice(step: dict[str, Any]) -> float:
    correct, wrong = 2 * step["tp_hard"], step["fp_hard"] + step["fn_hard"]
    present = correct + wrong > 0
    return float(np.mean(correct[present] / (correct + wrong)[present])) if present.any() else 1.0


def _copied(batch: dict[str, Any]) -> dict[str, Any]:
    """nnU-Net's validation writes into the labels that it is given."""
    target = batch["target"]
    return {**batch, "target": [part.clone() for part in target] if isinstance(target, list) else target.clone()}


@contextlib.contextmanager
def _loaders(trainer: Any) -> Iterator[Any]:
    """The training loader; processes of both loaders end with the block."""
    training, validation = trainer.get_dataloaders()
    try:
        yield training
    finally:
        for loader in (training, validation):
            if hasattr(loader, "_finish"):
                loader._finish()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drops what nnU-Net says: it stands in its log, too."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
