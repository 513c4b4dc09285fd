"""Stage III: the discrete cells are trained in the frozen backbone (IAC-LTH, sections 3.4 and 6.3).

The checkpoints are complete models and name nnU-Net's own trainer: only training differs here, and what predicts is the
network that the plans name. So `nnUNetv2_predict`, ensembling, export and import need this package and no
environment variable.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nnunet_nas import commands
from nnunet_nas.architecture import build_network, spec_of
from nnunet_nas.checkpoints import read_checkpoint
from nnunet_nas.description import PLAN_AGAIN, require_description
from nnunet_nas.environment import dataset_number, folder_from_environment
from nnunet_nas.errors import DataProblem, exit_with_one_line
from nnunet_nas.methods import METHODS, retrofitted
from nnunet_nas.plans import Plans
from nnunet_nas.randomness import seed_everything
from nnunet_nas.settings import overrides, read_settings
from nnunet_nas.skips.backbone import Backbone, start_from_backbone
from nnunet_nas.skips.recompute import recomputes
from nnunet_nas.skips.settings import RATE, RESIDUAL_RATE, IACRetrofitSettings
from nnunet_nas.skips.unet import SkipUNet
from nnunet_nas.trainer import ModelTrainer

_FRESH = commands.set_search(IACRetrofitSettings.method, "init=random")
_FINAL = "checkpoint_final.pth"
# Beside what nnU-Net keeps, which ignores it. Checkpoints without it are from versions whose default was the paper's.
_EPOCHS, _EPOCHS_BEFORE = "nnunet_nas_num_epochs", 200


class nnUNetTrainerIACRetrofit(ModelTrainer):
    """Trains cell weights with nnU-Net's loss, optimiser and schedule; everything else stays as the backbone had it."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        self.goes_on = bool(plans.get("continue_training"))
        with exit_with_one_line():
            self.settings = read_settings(IACRetrofitSettings, Plans(plans).resolve(configuration))
            self.record = _searched(Plans(plans), configuration)
            require_description(dataset_json, "dataset.json", PLAN_AGAIN, required=["labels"])
            super().__init__(plans, configuration, fold, dataset_json, device)
        self.follow_settings()
        if self.settings.batch_size is not None:
            self.configuration_manager.configuration["batch_size"] = self.settings.batch_size
        self.initial_lr = self._initial_rate()

    def _initial_rate(self) -> float:
        if self.settings.initial_lr is not None:
            return float(self.settings.initial_lr)
        cells = self.configuration_manager.network_arch_init_kwargs.get("cells", {})
        return RESIDUAL_RATE if cells.get("residual") else RATE

    def initialize(self) -> None:
        """nnU-Net's initialisation with fresh weights by the seed of the settings."""
        seed_everything(self.settings.seed)
        with exit_with_one_line():
            super().initialize()
            self._fit_the_device()

    def _fit_the_device(self) -> None:
        """Cells are recomputed where that is asked for, or where the GPU is too small otherwise.

        Raises:
            EnvironmentProblem: it is too small in any case.
            DataProblem: recomputing is asked for, but would update the statistics of batch norms twice.
        """
        spec = replace(
            spec_of(self.configuration_manager, self.num_input_channels, self.label_manager.num_segmentation_heads),
            batch_size=self.batch_size,
        )

        def build() -> Any:
            network: Any = build_network(spec, deep_supervision=self.enable_deep_supervision, initialise=False)
            network.freeze_backbone()
            return network

        network = self.unwrapped()
        network.decoder.recompute = recomputes(
            self,
            network,
            build,
            (spec.batch_size, spec.input_channels, *spec.patch_size),
            what="the retrofit",
            advice=f"set batch_size below {spec.batch_size} with {self._set_search('batch_size=NUMBER')}",
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's optimiser for the cells alone."""
        self.unwrapped().freeze_backbone()
        cells = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer, scheduler = super().configure_optimizers()
        for group in optimizer.param_groups:
            group["params"] = cells
        return optimizer, scheduler

    def on_train_start(self) -> None:
        """Loads backbone and initial cell weights before nnU-Net's preparations, unless a training goes on."""
        with exit_with_one_line():
            if not self.was_initialized:
                self.initialize()
            if not self.resumed:
                self.start_from_backbone()
            super().on_train_start()

    def start_from_backbone(self) -> None:
        """Puts this fold's backbone and the initial cell weights into the network.

        Raises:
            DataProblem: no backbone of this fold, one that does not fit or was not searched on, or theta_0 was lost.
        """
        network, base = self.unwrapped(), self.plans.configurations[self.configuration_name]["inherits_from"]
        trained_by, checkpoint = self.record["backbone_trainer"], self._backbone_checkpoint()
        backbone = start_from_backbone(self, network, base, trained_by=trained_by, checkpoint=checkpoint)
        self._compare_with_the_searched(backbone)
        if self._starts_from_theta_0():
            path = self._search_folder() / "theta_0.pth"
            _load_theta_0(network, path)
            self.print_to_log_file(f"Initial weights of the cells: {path}")
        else:
            self.print_to_log_file(f"Initial weights of the cells: random, seed {self.settings.seed}")

    def _backbone_checkpoint(self) -> str:
        """The one in the settings, or the one that the search used; a path serves the fold searched on alone."""
        searched = self.record.get("checkpoint")
        if self.settings.backbone_checkpoint is not None:
            return str(self.settings.backbone_checkpoint)
        if searched is None:
            return _FINAL
        if self.record["backbone_trainer"] is not None:
            return Path(searched).name
        return str(folder_from_environment("nnUNet_results") / searched) if self._is_searched_fold() else _FINAL

    def _is_searched_fold(self) -> bool:
        return bool(self.fold == self.record.get("fold"))

    def _compare_with_the_searched(self, backbone: Backbone) -> None:
        """Says where the cells were searched in another backbone than the one that they are put into.

        Raises:
            DataProblem: of the fold that was searched on, and nobody asked for it.
        """
        searched, name = self.record.get("backbone_digest"), self.configuration_name
        if searched is None or searched == backbone.digest():
            return
        if not self._is_searched_fold():
            self.print_to_log_file(
                f"The cells of {name} were searched in the backbone of fold {self.record.get('fold')}; that of fold "
                f"{self.fold} is another one."
            )
        elif self.settings.backbone_checkpoint is not None:
            self.print_to_log_file(
                f"WARNING: the cells of {name} were searched in another backbone, {self.record['checkpoint']}, or in "
                f"what stood there then."
            )
        else:
            chosen = self._set_search(f"backbone_checkpoint={Path(str(self.record['checkpoint'])).name}")
            raise DataProblem(
                f"{backbone.path} is not the backbone that the cells of {name} were searched in (trained again "
                f"since?): put that one back, search again, or use this one all the same with {chosen}"
            )

    def _set_search(self, assignment: str) -> str:
        manager = self.plans_manager
        return commands.set_search(
            self.settings.method,
            assignment,
            dataset=dataset_number(manager.dataset_name),
            configuration=self.configuration_name,
            plans=manager.plans_name,
        )

    def _starts_from_theta_0(self) -> bool:
        if self.settings.init == "auto":
            # A genotype from another data set comes without the initial weights of its search.
            return self.record["method"] == "iac_lth" and "search_folder" in self.record
        return self.settings.init == "theta_0"

    def _search_folder(self) -> Path:
        if "search_folder" not in self.record:
            raise DataProblem(
                f"configuration {self.configuration_name} was transferred from another data set and has no theta_0: "
                f"start from fresh weights with {_FRESH}"
            )
        results = folder_from_environment("nnUNet_results")
        return results / self.plans.dataset_name / self.record["search_folder"]

    def go_on_as(self, checkpoint: dict[str, Any]) -> None:
        """For as many epochs as the training began with, where the plans do not set another number by now."""
        began_with = int(checkpoint.get(_EPOCHS, _EPOCHS_BEFORE))
        if began_with == self.num_epochs or self._sets_epochs():
            return
        self.num_epochs, self.save_every = began_with, began_with + 1
        if self.was_initialized:
            self.optimizer, self.lr_scheduler = self.configure_optimizers()
        other = self._set_search("num_epochs=NUMBER")
        self.print_to_log_file(f"This training began with {began_with} epochs and goes on so; another number: {other}")

    def _sets_epochs(self) -> bool:
        resolved = self.plans.resolve(self.configuration_name)
        return "num_epochs" in overrides(resolved, self.settings.method)

    def checkpoint(self) -> dict[str, Any]:
        """As of all; with the epochs that the schedule is for."""
        return {**super().checkpoint(), _EPOCHS: self.num_epochs}

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """nnU-Net's; images are mirrored as before."""
        super().load_checkpoint(filename_or_checkpoint)
        self.inherit_mirroring(self.inference_allowed_mirroring_axes)


def _searched(plans: Plans, configuration: str) -> dict[str, Any]:
    """The provenance of a searched configuration.

    Raises:
        DataProblem: the configuration has no cells, or its base has changed since.
    """
    fitting = [name for name in plans.configurations if plans.method(name) in retrofitted()]
    if configuration not in fitting:
        raise DataProblem(
            f"configuration {configuration} has no searched cells; search them with -tr "
            f"{METHODS['iac_lth'].trainer_name}, or choose one of: {', '.join(fitting) or 'none yet'}"
        )
    plans.require_fresh(configuration)
    record: dict[str, Any] = plans.configurations[configuration]["nas"]
    return record


def _load_theta_0(network: SkipUNet, path: Path) -> None:
    """Resets the cells to the weights that the search began with.

    Raises:
        DataProblem: the file is missing, or is that of other cells.
    """
    if not path.is_file():
        raise DataProblem(
            f"{path} is missing, the initial weights that IAC-LTH goes back to: restore it, or start from fresh ones "
            f"with {_FRESH}"
        )
    try:
        network.load_theta_0(read_checkpoint(path, f"restore it, or start from fresh weights with {_FRESH}"))
    except DataProblem as error:
        raise DataProblem(f"{path}: {error}") from error
