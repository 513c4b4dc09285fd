"""A tiny preprocessed data set, written by hand in the format of nnU-Net 2.8 in well under a second.

Nothing here runs nnU-Net's commands. The plans hold every kind of configuration that nnU-Net makes, with networks of
at most 32 channels: caps 32, 16, 8, 4, 2, 1, of which the paper's rule can select 16 and 8.
"""

import json

import numpy as np

DATASET = "Dataset011_Fake"
CASES = tuple(f"case_{number:02d}" for number in range(12))
FEATURES = [16, 32, 32]
DESCRIPTION = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "bright": 1},
    "numTraining": len(CASES),
    "file_ending": ".nii.gz",
    "name": "Fake",
}
# What a kill, a full disk, another program or a wrong hand leaves of it.
BROKEN_DESCRIPTIONS = {
    "empty": b"",
    "cut": json.dumps(DESCRIPTION).encode()[:40],
    "binary": b"\x80\x04\x95",
    "deep": b"[" * 100_000,
    "list": b"[]",
    "number": b"7",
    "nothing": b"{}",
    "channels": json.dumps({**DESCRIPTION, "channel_names": "x"}).encode(),
    "labels": json.dumps({**DESCRIPTION, "labels": ["bright"]}).encode(),
    "label": json.dumps({**DESCRIPTION, "labels": {"bright": [None]}}).encode(),
    "ending": json.dumps({**DESCRIPTION, "file_ending": None}).encode(),
}


def write_json(path, content):
    """Formats as nnU-Net's `save_json` does: four spaces, keys in their order, no newline at the end."""
    path.write_text(json.dumps(content, indent=4))


def plain_unet(dimensions, strides, kernel_sizes, features=FEATURES, *, convolutions=2):
    """The architecture entry of nnU-Net's default planner; `convolutions`: of each stage."""
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": len(features),
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": kernel_sizes,
            "strides": strides,
            "n_conv_per_stage": [convolutions] * len(features),
            "n_conv_per_stage_decoder": [convolutions] * (len(features) - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def residual_unet(dimensions, strides, kernel_sizes):
    """The architecture entry of nnU-Net's residual-encoder planners."""
    entry = plain_unet(dimensions, strides, kernel_sizes)
    entry["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    arguments = {}
    for key, value in entry["arch_kwargs"].items():
        arguments["n_blocks_per_stage" if key == "n_conv_per_stage" else key] = value
    arguments.update(n_blocks_per_stage=[1, 1, 2], n_conv_per_stage_decoder=[1, 1])
    entry["arch_kwargs"] = arguments
    return entry


def configuration(identifier, patch_size, spacing, architecture):
    """A configuration as the planners write it."""
    resampling = "resample_data_or_seg_to_shape"
    entry = {
        "data_identifier": identifier,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch_size,
        "median_image_size_in_voxels": [float(size) for size in patch_size],
        "spacing": spacing,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resampling,
        "resampling_fn_seg": resampling,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": resampling,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": architecture,
        "batch_dice": len(patch_size) == 2,
    }
    return json.loads(json.dumps(entry))


def plans_content(name, configurations, planner):
    """A whole plans file."""
    return {
        "dataset_name": DATASET,
        "plans_name": name,
        "original_median_spacing_after_transp": [3.0, 1.0, 1.0],
        "original_median_shape_after_transp": [10, 36, 36],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": configurations,
        "experiment_planner_used": planner,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
    }


INTENSITIES = {
    "max": 255.0,
    "mean": 141.90345764160156,
    "median": 145.0,
    "min": 0.0,
    "percentile_00_5": 8.0,
    "percentile_99_5": 255.0,
    "std": 66.10084533691406,
}
HALVES_2D = [[1, 1], [2, 2], [2, 2]]
CUBES_2D = [[3, 3]] * 3
HALVES_ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
CUBES_ANISOTROPIC = [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
HALVES_3D = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
CUBES_3D = [[3, 3, 3]] * 3


def default_plans():
    """`nnUNetPlans`: 2-D, anisotropic 3-D, a cascade, and one configuration that a user derived."""
    configurations = {
        "2d": configuration("nnUNetPlans_2d", [32, 32], [1.0, 1.0], plain_unet(2, HALVES_2D, CUBES_2D)),
        "3d_lowres": {
            **configuration("nnUNetPlans_3d_lowres", [8, 16, 16], [3.0, 2.0, 2.0], plain_unet(3, HALVES_3D, CUBES_3D)),
            "next_stage": "3d_cascade_fullres",
        },
        "3d_fullres": configuration(
            "nnUNetPlans_3d_fullres", [8, 32, 32], [3.0, 1.0, 1.0], plain_unet(3, HALVES_ANISOTROPIC, CUBES_ANISOTROPIC)
        ),
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        "2d_bs4": {"inherits_from": "2d", "batch_size": 4},
    }
    return plans_content("nnUNetPlans", configurations, "ExperimentPlanner")


def residual_plans():
    """`nnUNetResEncUNetMPlans`: the residual-encoder preset shares the default planner's data."""
    configurations = {
        "2d": configuration("nnUNetPlans_2d", [32, 32], [1.0, 1.0], residual_unet(2, HALVES_2D, CUBES_2D)),
        "3d_fullres": configuration(
            "nnUNetPlans_3d_fullres",
            [8, 32, 32],
            [3.0, 1.0, 1.0],
            residual_unet(3, HALVES_ANISOTROPIC, CUBES_ANISOTROPIC),
        ),
    }
    return plans_content("nnUNetResEncUNetMPlans", configurations, "nnUNetPlannerResEncM")


def write_case(folder, case, shape, patch_size):
    """One preprocessed case of noise, written by nnU-Net itself."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    rng = np.random.default_rng(list(case.encode()))
    data = rng.standard_normal((1, *shape), dtype=np.float32)
    seg = (data > 1).astype(np.int8)
    blocks, chunks = comp_blosc2_params(data.shape, patch_size)
    properties = {"spacing": [3.0, 1.0, 1.0], "class_locations": {1: np.argwhere(seg == 1)}}
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(folder / case), chunks, blocks)


def write_dataset(dataset):
    """The data set that the tests copy; its 2-D cases are smaller and larger than the patch."""
    shapes = {"2d": (3, 40, 28), "3d_lowres": (10, 18, 18), "3d_fullres": (10, 36, 36)}
    plans = default_plans()
    for name, shape in shapes.items():
        folder = dataset / f"nnUNetPlans_{name}"
        folder.mkdir(parents=True)
        for case in CASES:
            write_case(folder, case, shape, plans["configurations"][name]["patch_size"])
    write_json(dataset / "dataset.json", DESCRIPTION)
    write_json(
        dataset / "dataset_fingerprint.json",
        {
            "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
            "median_relative_size_after_cropping": 1.0,
            "shapes_after_crop": [[10, 36, 36]] * len(CASES),
            "spacings": [[3.0, 1.0, 1.0]] * len(CASES),
        },
    )
    # After the description, as nnU-Net writes them.
    write_json(dataset / "nnUNetPlans.json", plans)
    write_json(dataset / "nnUNetResEncUNetMPlans.json", residual_plans())
