"""Plans, recipes and geometry of models that exist on paper only, as nnU-Net and as the runtime see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_nas.runtime.recipe import Normalisation, Recipe, Resampling

STATISTICS = {"mean": 40.0, "std": 12.5, "percentile_00_5": -3.0, "percentile_99_5": 71.0}
LABELS: dict[str, Any] = {"background": 0, "organ": 1, "lesion": 2}
REGIONS: dict[str, Any] = {"background": 0, "whole": [1, 2], "core": 2}


def plans(
    spacing: Sequence[float],
    *,
    transpose: Sequence[int] = (0, 1, 2),
    schemes: Sequence[str] = ("ZScoreNormalization",),
    masked: Sequence[bool] = (False,),
    separate_z: bool | None = None,
    order_z: int = 0,
    patch_size: Sequence[int] = (8, 8, 8),
) -> PlansManager:
    """nnU-Net's plans with one configuration, `net`."""
    kwargs = {"is_seg": False, "order_z": order_z, "force_separate_z": separate_z}
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "architecture": {},
        "spacing": list(spacing),
        "patch_size": list(patch_size),
        "normalization_schemes": list(schemes),
        "use_mask_for_norm": list(masked),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**kwargs, "order": 3},
        "resampling_fn_seg_kwargs": {**kwargs, "order": 1, "is_seg": True},
        "resampling_fn_probabilities_kwargs": {**kwargs, "order": 1},
    }
    backward = [list(transpose).index(axis) for axis in range(3)]
    return PlansManager(
        {
            "dataset_name": "Dataset001_Paper",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "label_manager": "LabelManager",
            "transpose_forward": list(transpose),
            "transpose_backward": backward,
            "foreground_intensity_properties_per_channel": {str(c): STATISTICS for c in range(len(schemes))},
            "configurations": {"net": configuration},
        }
    )


def recipe(
    manager: PlansManager,
    *,
    labels: dict[str, Any] = LABELS,
    regions_class_order: Sequence[int] | None = None,
    **changes: Any,
) -> Recipe:
    """The recipe of those plans."""
    configuration = manager.plans["configurations"]["net"]
    how = configuration["resampling_fn_data_kwargs"]
    return Recipe(
        **{
            "networks": (),
            "reader": "SimpleITKIO",
            "file_ending": ".nii.gz",
            "channels": tuple(map(str, range(len(configuration["normalization_schemes"])))),
            "transpose": tuple(manager.transpose_forward),
            "normalisation": tuple(
                Normalisation(scheme, masked, STATISTICS)
                for scheme, masked in zip(
                    configuration["normalization_schemes"], configuration["use_mask_for_norm"], strict=True
                )
            ),
            "spacing": tuple(configuration["spacing"]),
            "resampling_data": Resampling(3, how["order_z"], how["force_separate_z"]),
            "resampling_logits": Resampling(1, how["order_z"], how["force_separate_z"]),
            "patch_size": tuple(configuration["patch_size"]),
            "mirror_axes": (),
            "labels": labels,
            "region_values": None if regions_class_order is None else tuple(regions_class_order),
            "heads": len(labels) - (0 if regions_class_order is None else 1),
            "postprocessing": (),
            "model": {},
            "unverified": None,
            **changes,
        }
    )
