"""Trained models on paper: results folders as nnU-Net leaves them, with random weights, and images for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from fake_dataset import plain_unet

from nnunet_nas.architecture import NetworkSpec, build_network

STATISTICS = {"mean": 60.0, "std": 40.0, "percentile_00_5": 2.0, "percentile_99_5": 190.0}
MODEL = "nnUNetTrainer__nnUNetPlans__net"


def architecture(dimensions: int, features: tuple[int, ...] = (4, 8)) -> dict[str, Any]:
    """A plain U-Net of two stages."""
    strides = [[1] * dimensions, *[[2] * dimensions] * (len(features) - 1)]
    return plain_unet(dimensions, strides, [[3] * dimensions] * len(features), features, convolutions=1)


def trained(
    root: Path,
    *,
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    patch_size: tuple[int, ...] = (8, 16, 16),
    schemes: tuple[str, ...] = ("ZScoreNormalization",),
    labels: dict[str, Any] | None = None,
    regions_class_order: tuple[int, ...] | None = None,
    folds: tuple[str, ...] = ("0",),
    mirrored: bool = True,
    network: dict[str, Any] | None = None,
    file_ending: str = ".nii.gz",
    plans_changes: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> Path:
    """A results folder.

    Args:
        root: `nnUNet_results/DATASET`.
        spacing: of the configuration.
        patch_size: likewise.
        schemes: normalisation per channel.
        labels: of the data set; background, organ, lesion.
        regions_class_order: for regions.
        folds: each with weights of its own.
        mirrored: whether training mirrored, along all axes.
        network: `architecture` of the plans.
        file_ending: of the images.
        plans_changes: of the plans' top level.
        changes: of the configuration.
    """
    labels = labels or {"background": 0, "organ": 1, "lesion": 2}
    how = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    resampling = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "net",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "spacing": list(spacing),
        "normalization_schemes": list(schemes),
        "use_mask_for_norm": [False] * len(schemes),
        **{f"resampling_fn_{what}": resampling for what in ("data", "seg", "probabilities")},
        "resampling_fn_data_kwargs": {**how, "order": 3},
        "resampling_fn_seg_kwargs": {**how, "order": 1, "is_seg": True},
        "resampling_fn_probabilities_kwargs": {**how, "order": 1},
        "architecture": network or architecture(len(patch_size)),
        "batch_dice": False,
        **(changes or {}),
    }
    plans = {
        "dataset_name": root.name,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {str(c): STATISTICS for c in range(len(schemes))},
        "configurations": {"net": configuration},
        **(plans_changes or {}),
    }
    dataset = {
        "channel_names": {str(channel): scheme for channel, scheme in enumerate(schemes)},
        "labels": labels,
        "numTraining": 1,
        "file_ending": file_ending,
        **({} if regions_class_order is None else {"regions_class_order": list(regions_class_order)}),
    }
    heads = len([name for name in labels if name != "ignore"]) - (0 if regions_class_order is None else 1)
    spec = NetworkSpec(configuration["architecture"], len(schemes), heads, patch_size, 2)
    return write(root / MODEL, plans, dataset, spec, folds=folds, mirrored=mirrored)


def write(
    folder: Path,
    plans: dict[str, Any],
    dataset: dict[str, Any],
    spec: NetworkSpec,
    *,
    folds: tuple[str, ...] = ("0",),
    mirrored: bool = True,
) -> Path:
    """The results folder `TRAINER__PLANS__CONFIGURATION`, each fold with random weights of its own."""
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for number, fold in enumerate(folds):
        (folder / f"fold_{fold}").mkdir()
        unet: Any = build_network(spec, seed=number, deep_supervision=True)
        for head in unet.decoder.seg_layers:  # so that every class is somewhere the likeliest
            torch.nn.init.normal_(head.weight)
        torch.save(
            {
                "network_weights": unet.state_dict(),
                "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": folder.name.rpartition("__")[2]},
                "inference_allowed_mirroring_axes": tuple(range(len(spec.patch_size))) if mirrored else None,
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return folder


def images(
    folder: Path, *, channels: int = 1, shape: tuple[int, ...] = (9, 24, 20), spacing: tuple[float, ...] = (1, 1, 1)
) -> Path:
    """Two smooth random cases; `spacing` is (z, y, x)."""
    folder.mkdir(parents=True)
    for case in range(2):
        for channel in range(channels):
            noise = np.random.default_rng([case, channel]).normal(100, 60, (9, 24, 20)).astype(np.float32)
            noise[:, :3] = 0
            image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), 1.0)
            image.SetSpacing(tuple(map(float, spacing[::-1])))
            sitk.WriteImage(image, str(folder / f"case_{case}_{channel:04d}.nii.gz"))
    return folder
