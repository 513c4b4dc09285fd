"""The trained network that a search or a retrofit starts from: where nnU-Net left it, and whether it still fits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nnunet_nas import commands
from nnunet_nas.checkpoints import read_checkpoint
from nnunet_nas.commands import STOCK_TRAINER
from nnunet_nas.environment import dataset_number, folder_from_environment
from nnunet_nas.errors import DataProblem
from nnunet_nas.methods import trainers
from nnunet_nas.plans import Plans
from nnunet_nas.skips.unet import SkipUNet, load_backbone

if TYPE_CHECKING:
    from nnunet_nas.trainer import ConfiguredTrainer


@dataclass(frozen=True)
class BackboneAddress:
    """Where nnU-Net keeps the results of one training.

    Attributes:
        plans: that it was trained with.
        configuration: the configuration that was trained.
        fold: 0 to 4, or `all`.
        trainer: its class name; None: nnUNetTrainer, or else the only one that is there.
        checkpoint: file name in the fold's folder, or a path.
        role: what it is called in messages and names of settings.
        method: whose settings choose it.
        set_on: the configuration whose settings choose it; None: the one that was trained.
    """

    plans: Plans
    configuration: str
    fold: int | str
    trainer: str | None
    checkpoint: str
    role: str = "backbone"
    method: str = "METHOD"
    set_on: str | None = None

    def train_command(self) -> str:
        """The call that trains it."""
        number = dataset_number(self.plans.dataset_name)
        return commands.train(number, self.configuration, self.fold, plans=self.plans.name, trainer=self.trainer)


@dataclass(frozen=True)
class Backbone:
    """A trained backbone.

    Attributes:
        path: of its checkpoint.
        trainer: class name of its trainer; None for a checkpoint given by path.
        weights: its state dict, on the CPU.
        mirroring: axes that its training mirrored, which inference may use; None if it did not mirror.
    """

    path: Path
    trainer: str | None
    weights: dict[str, torch.Tensor]
    mirroring: tuple[int, ...] | None

    def digest(self) -> str:
        """A digest of the weights, to notice that another training took the place of the one that was searched on."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(self.weights[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return "sha256:" + digest.hexdigest()

    def address(self) -> str:
        """The checkpoint below nnUNet_results, as it is recorded in plans; the plain path elsewhere."""
        results = folder_from_environment("nnUNet_results").resolve()
        path = self.path.resolve()
        return path.relative_to(results).as_posix() if path.is_relative_to(results) else str(path)


def start_from_backbone(
    trainer: ConfiguredTrainer, network: SkipUNet, configuration: str, *, trained_by: str | None, checkpoint: str
) -> Backbone:
    """Puts the trained backbone of a trainer's fold into its network; the trainer mirrors from now on as that did.

    Args:
        trainer: of the modules in the skips.
        network: of that trainer, without wrappers.
        configuration: that the backbone was trained for.
        trained_by: class name of the backbone's trainer; None: see `BackboneAddress`.
        checkpoint: likewise.

    Raises:
        DataProblem: no backbone of this fold, or one that does not fit.
    """
    backbone = load_checkpoint(BackboneAddress(trainer.plans, configuration, trainer.fold, trained_by, checkpoint))
    load_backbone(network, backbone.weights)
    trainer.inherit_mirroring(backbone.mirroring)
    trainer.print_to_log_file(f"Backbone: {backbone.path}")
    return backbone


def load_checkpoint(address: BackboneAddress) -> Backbone:
    """Finds and reads a backbone.

    Raises:
        DataProblem: not trained yet (the message is the command to do so), several trainers to choose from, not
            readable, or trained with plans that have changed since.
    """
    path, trainer = find_checkpoint(address)
    again = f"train it again: {address.train_command()}"
    checkpoint = read_checkpoint(path, again, ["network_weights", "init_args"])
    weights = checkpoint["network_weights"]
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise DataProblem(f"{path} holds no weights of a network: {again}")
    _require_same_plans(path, checkpoint["init_args"], address)
    mirroring = checkpoint.get("inference_allowed_mirroring_axes")
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    return Backbone(path, trainer, weights, None if mirroring is None else tuple(mirroring))


def find_checkpoint(address: BackboneAddress) -> tuple[Path, str | None]:
    """The file of a backbone's checkpoint and the trainer that wrote it.

    Raises:
        DataProblem: it is not there, or several trainers could be meant.
    """
    if "/" in address.checkpoint:
        path = Path(address.checkpoint).expanduser()
        if not path.is_file():
            correct = commands.set_search(address.method, f"{address.role}_checkpoint=FILE")
            raise DataProblem(f"{address.role}_checkpoint={address.checkpoint} is no file: correct it with {correct}")
        return path, None
    folder = folder_from_environment("nnUNet_results") / address.plans.dataset_name
    suffix = f"__{address.plans.name}__{address.configuration}"
    found = {
        entry.name.removesuffix(suffix): entry / f"fold_{address.fold}" / address.checkpoint
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if entry.name.endswith(suffix)
    }
    # A search leaves no network and a retrofit has modules already: none of ours is taken unless it is named.
    for ours in set(trainers()) - {address.trainer}:
        found.pop(ours, None)
    trained = {trainer: path for trainer, path in found.items() if path.is_file()}
    trainer = address.trainer or _only(trained, address)
    if trainer in trained:
        return trained[trainer], trainer
    started = f" (a training of {trainer} is there, but not finished: add --c)" if trainer in found else ""
    raise DataProblem(
        f"no {address.role}: fold {address.fold} of {address.configuration} has no {address.checkpoint}{started}; "
        f"train it first: {address.train_command()}"
    )


def _only(trained: Mapping[str, Path], address: BackboneAddress) -> str:
    if STOCK_TRAINER in trained or not trained:
        return STOCK_TRAINER
    if len(trained) > 1:
        choose = commands.set_search(
            address.method,
            f"{address.role}_trainer=NAME",
            dataset=dataset_number(address.plans.dataset_name),
            configuration=address.set_on or address.configuration,
            plans=address.plans.name,
        )
        raise DataProblem(
            f"{address.role}s of several trainers: {', '.join(sorted(trained))}; choose one with {choose}"
        )
    return next(iter(trained))


def _require_same_plans(path: Path, trained: Any, address: BackboneAddress) -> None:
    if not isinstance(trained, dict) or not isinstance(trained.get("plans"), dict):
        raise DataProblem(f"{path} does not say what it was trained with: train it again: {address.train_command()}")
    name = trained.get("configuration")
    if name != address.configuration:
        raise DataProblem(f"{path} was trained for configuration {name}, not {address.configuration}")
    if not address.plans.matches(name, Plans(trained["plans"]).digest(name)):
        raise DataProblem(
            f"{path} was trained with another version of configuration {name} (planned again since?): restore the "
            f"plans it was trained with, or train it again: {address.train_command()}"
        )
