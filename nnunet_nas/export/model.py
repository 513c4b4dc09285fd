"""A trained model as nnU-Net's predictor loads it, and its recipe."""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_nas.architecture import NETWORK_ERRORS, one_line, require_trusted
from nnunet_nas.checkpoints import read_checkpoint
from nnunet_nas.description import read_description
from nnunet_nas.errors import DataProblem
from nnunet_nas.runtime.images import READERS
from nnunet_nas.runtime.preprocessing import SCHEMES
from nnunet_nas.runtime.recipe import Component, Network, Normalisation, Recipe, Resampling

_RESAMPLING = "resample_data_or_seg_to_shape"
_KEEP_LARGEST = (
    "nnunetv2.postprocessing.remove_connected_components", "remove_all_but_largest_component_from_segmentation"
)  # fmt: skip
_STATISTICS = ("mean", "std", "percentile_00_5", "percentile_99_5")


@dataclass(frozen=True)
class TrainedModel:
    """A model that nnU-Net can predict with.

    Attributes:
        folder: nnU-Net's `TRAINER__PLANS__CONFIGURATION`.
        folds: that take part.
        checkpoint: file name.
        predictor: nnU-Net's own, on the CPU, with the weights of all folds.
    """

    folder: Path
    folds: tuple[str, ...]
    checkpoint: str
    predictor: Any

    @property
    def network(self) -> nn.Module:
        """The network, with the weights of whichever fold was loaded last."""
        network: nn.Module = self.predictor.network
        return network

    def load_fold(self, position: int) -> nn.Module:
        """The network with the weights of one fold, in evaluation mode."""
        self.network.load_state_dict(self.predictor.list_of_parameters[position])
        return self.network.eval()


def load_model(folder: Path, folds: Sequence[str], checkpoint: str, *, step: float, mirroring: bool) -> TrainedModel:
    """Loads a trained model.

    Args:
        folder: nnU-Net's results folder of one trainer, plans and configuration.
        folds: 0 to 4 or `all`; empty for all that have the checkpoint.
        checkpoint: file name.
        step: of the sliding window, in patch sizes.
        mirroring: whether nnU-Net's predictor mirrors.

    Raises:
        DataProblem: no such model, no checkpoint, or one that nnU-Net cannot load.
    """
    present = tuple(path.parent.name.removeprefix("fold_") for path in sorted(folder.glob(f"fold_*/{checkpoint}")))
    wanted = tuple(folds) or tuple(fold for fold in present if fold != "all") or present
    missing = [fold for fold in wanted if fold not in present]
    if missing or not wanted:
        raise DataProblem(
            f"{folder} has no {checkpoint} of fold {', '.join(missing) or '0'}; there: "
            f"{', '.join(present) or 'none'}: train it first, or choose with -f and -chk"
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predictor = nnUNetPredictor(
                tile_step_size=step, use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False
            )
            plans = PlansManager(str(folder / "plans.json"))
            configuration = plans.get_configuration(_configuration(folder)).configuration
            _require_exportable(plans.plans, configuration)
            require_trusted(configuration["architecture"])
            read_description(folder / "dataset.json", "train it again", required=["labels", "file_ending"])
            for fold in wanted:  # with care, before nnU-Net reads it without
                read_checkpoint(folder / f"fold_{fold}" / checkpoint, "train it again", ["network_weights"])
            predictor.initialize_from_trained_model_folder(str(folder), wanted, checkpoint)
    except (*NETWORK_ERRORS, OSError, EOFError, pickle.UnpicklingError) as error:
        raise DataProblem(f"nnU-Net cannot load {folder} ({one_line(error)}): train it again") from error
    return TrainedModel(folder, wanted, checkpoint, predictor)


def recipe_of(model: TrainedModel, networks: Sequence[Network], postprocessing: Path | None) -> Recipe:
    """The recipe of a model.

    Args:
        model: trained.
        networks: as exported, one per fold.
        postprocessing: `postprocessing.pkl` of `nnUNetv2_find_best_configuration`; None for none.

    Raises:
        DataProblem: something in its pipeline that the runtime does not have, named.
    """
    predictor = model.predictor
    plans, manager, labels = predictor.plans_manager, predictor.configuration_manager, predictor.label_manager
    configuration, dataset = manager.configuration, predictor.dataset_json
    return Recipe(
        networks=tuple(networks),
        reader=plans.plans["image_reader_writer"],
        file_ending=dataset["file_ending"],
        channels=tuple((dataset.get("channel_names") or dataset["modality"]).values()),
        transpose=tuple(plans.transpose_forward),
        normalisation=_normalisation(plans.plans, configuration),
        spacing=tuple(float(step) for step in manager.spacing),
        resampling_data=_resampling(configuration, "resampling_fn_data"),
        resampling_logits=_resampling(configuration, "resampling_fn_probabilities"),
        patch_size=tuple(int(size) for size in manager.patch_size),
        mirror_axes=tuple(predictor.allowed_mirroring_axes or ()),
        labels=dict(dataset["labels"]),
        region_values=tuple(dataset["regions_class_order"]) if labels.has_regions else None,
        heads=int(labels.num_segmentation_heads),
        postprocessing=() if postprocessing is None else _postprocessing(postprocessing),
        model={
            "dataset": plans.dataset_name,
            "plans": plans.plans_name,
            "configuration": _configuration(model.folder),
            "trainer": model.folder.name.partition("__")[0],
            "folds": list(model.folds),
            "checkpoint": model.checkpoint,
            "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        },
        unverified="this export was not compared with nnU-Net's own prediction",
    )


def _configuration(folder: Path) -> str:
    return folder.name.rpartition("__")[2]


def _require_exportable(plans: dict[str, Any], configuration: dict[str, Any]) -> None:
    """Refuses what nnU-Net lets its users replace and this runtime does not have."""
    if configuration.get("previous_stage"):
        raise DataProblem("the second stage of a cascade reads another network's prediction: export its first stage")
    if plans["image_reader_writer"] not in READERS:
        raise DataProblem(
            f"reader {plans['image_reader_writer']} is not one of nnU-Net's ({', '.join(READERS)}): it cannot be "
            f"exported"
        )
    if configuration["preprocessor_name"] != "DefaultPreprocessor":
        raise DataProblem(f"preprocessor {configuration['preprocessor_name']} is not nnU-Net's: it cannot be exported")
    if plans.get("label_manager", "LabelManager") != "LabelManager":
        raise DataProblem(f"label manager {plans['label_manager']} is not nnU-Net's: it cannot be exported")
    unknown = sorted(set(configuration["normalization_schemes"]) - set(SCHEMES))
    if unknown:
        raise DataProblem(f"normalisation {unknown[0]} is not one of nnU-Net's: it cannot be exported")


def _normalisation(plans: dict[str, Any], configuration: dict[str, Any]) -> tuple[Normalisation, ...]:
    statistics = plans["foreground_intensity_properties_per_channel"]
    return tuple(
        Normalisation(scheme, bool(masked), {key: float(statistics[str(channel)][key]) for key in _STATISTICS})
        for channel, (scheme, masked) in enumerate(
            zip(configuration["normalization_schemes"], configuration["use_mask_for_norm"], strict=True)
        )
    )


def _resampling(configuration: dict[str, Any], function: str) -> Resampling:
    if configuration[function] != _RESAMPLING:
        raise DataProblem(f"{function} {configuration[function]} is not nnU-Net's default: it cannot be exported")
    settings = configuration[f"{function}_kwargs"]
    if settings.get("is_seg"):
        raise DataProblem(f"{function} resamples label maps (is_seg): it cannot be exported")
    return Resampling(int(settings["order"]), int(settings["order_z"]), settings["force_separate_z"])


class _Steps(pickle.Unpickler):
    """Reads nnU-Net's steps, and runs nothing: a pickle may name any function, and call it while it is read."""

    def find_class(self, module: str, name: str) -> Any:
        """The one function that nnU-Net puts there."""
        if (module, name) != _KEEP_LARGEST:
            raise DataProblem(f"step {name} is not nnU-Net's: it cannot be exported")
        return super().find_class(module, name)


def _postprocessing(path: Path) -> tuple[Component, ...]:
    """nnU-Net's steps."""
    try:
        functions, arguments = _Steps(io.BytesIO(path.read_bytes())).load()
        return tuple(_component(given) for _, given in zip(functions, arguments, strict=True))
    except DataProblem as error:
        raise DataProblem(f"{path}: {error}") from error
    except Exception as error:
        raise DataProblem(f"{path} is not nnU-Net's postprocessing ({one_line(error)})") from error


def _component(given: dict[str, Any]) -> Component:
    chosen = given["labels_or_regions"]
    values = {
        int(value)
        for entry in (chosen if isinstance(chosen, list) else [chosen])
        for value in (entry if isinstance(entry, (tuple, list)) else (entry,))
    }
    return Component(tuple(sorted(values)), int(given.get("background_label", 0)))
