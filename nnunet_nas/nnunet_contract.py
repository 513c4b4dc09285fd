"""What this package uses of nnU-Net and the libraries beside it: one table, checked against what is installed.

nnU-Net promises little about its insides from one minor release to the next. Each row names one thing that is used,
what for, and what must hold of it: the names of parameters, attributes of its instances, and words that stand in its
source (keys of files, options of commands, environment variables). `changes` says in a line each what does not hold.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import pkgutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

# What pyproject.toml asks for, and the versions of which the tests were run.
NNUNET_VERSIONS = ">=2.8,<3"
RUN_WITH = {"nnunetv2": ("2.8.1",), "torch": ("2.4.1", "2.14.1", "2.15.0")}


@dataclass(frozen=True)
class Used:
    """One thing that is used.

    Attributes:
        path: `module`, `module:name`, `module:Class.method`, or `command:name` for what a command runs.
        purpose: what is lost without it.
        parameters: of a call, in order, without self; None if it is not called.
        overridden: whether our trainers replace it, so that one more parameter would be handed to them, too.
        attributes: that its instances, or the module, must have.
        words: that must stand in its source as text.
    """

    path: str
    purpose: str
    parameters: tuple[str, ...] | None = None
    overridden: bool = False
    attributes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How it is called in messages."""
        return self.path.rpartition(":")[2]


_TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer"
_DATA = "nnunetv2.training.dataloading.nnunet_dataset"
_PLANS = "nnunetv2.utilities.plans_handling.plans_handler"
_LABELS = "nnunetv2.utilities.label_handling.label_handling"
_PLANNER = "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner:ExperimentPlanner"
_EVALUATION = "nnunetv2.evaluation.evaluate_predictions"
_PREDICTOR = "nnunetv2.inference.predict_from_raw_data:nnUNetPredictor"
_NETWORKS = "dynamic_network_architectures"
_BLOCKS = f"{_NETWORKS}.building_blocks"
_LOOP = "the searches follow nnU-Net's training loop"
_FILES = "nnU-Net's results are found by these names"
_COMMANDS = "users are told to run it"


def _used(
    purpose: str, paths: str, parameters: str | None = None, *, attributes: str = "", words: str = ""
) -> list[Used]:
    """Rows of which the same must hold; paths and names are separated by spaces."""
    wanted = None if parameters is None else tuple(parameters.split())
    return [
        Used(path, purpose, wanted, False, tuple(attributes.split()), tuple(words.split())) for path in paths.split()
    ]


def _hooks(purpose: str, methods: str, parameters: str = "") -> list[Used]:
    """Methods of nnU-Net's trainer that ours override."""
    paths = " ".join(f"{_TRAINER}.{method}" for method in methods.split())
    return [replace(used, overridden=True) for used in _used(purpose, paths, parameters)]


CONTRACT: tuple[Used, ...] = (
    # Trainers
    *_hooks("nnU-Net makes trainers so", "__init__", "plans configuration fold dataset_json device"),
    *_hooks(
        "searches build their networks there",
        "build_network_architecture",
        "plans_manager configuration_manager num_input_channels num_output_channels enable_deep_supervision",
    ),
    *_hooks(
        _LOOP,
        "_build_loss _set_batch_size_and_oversample configure_optimizers get_dataloaders initialize on_epoch_end "
        "on_epoch_start on_train_end on_train_epoch_start on_train_start plot_network_architecture run_training",
    ),
    *_hooks(_LOOP, "on_train_epoch_end", "train_outputs"),
    *_hooks(_LOOP, "on_validation_epoch_end", "val_outputs"),
    *_hooks(_LOOP, "set_deep_supervision_enabled", "enabled"),
    *_hooks(_LOOP, "train_step", "batch"),
    *_hooks("debug.json leaves out what is in checkpoints", "_save_debug_information"),
    *_hooks("the graph of a search changes and must not be compiled", "_do_i_compile"),
    *_hooks("DiNTS has fewer levels than the plans", "_get_deep_supervision_scales"),
    *_hooks("the backbone's mirroring is kept", "configure_rotation_dummyDA_mirroring_and_inital_patch_size"),
    *_hooks("a search sees the training cases of its fold only", "do_split"),
    *_hooks("--c goes on with a search", "load_checkpoint", "filename_or_checkpoint"),
    *_hooks("checkpoints are written atomically", "save_checkpoint", "filename"),
    *_hooks("a search has no model to validate", "perform_actual_validation", "save_probabilities"),
    *_hooks("a search validates the topology that it would deliver", "validation_step", "batch"),
    *_used(_LOOP, f"{_TRAINER}.on_validation_epoch_start", ""),
    *_used(
        "trainers read and set these",
        _TRAINER,
        attributes="_best_ema batch_size configuration_manager configuration_name current_epoch dataloader_train "
        "dataloader_val dataset_json device disable_checkpointing enable_deep_supervision fold get_training_transforms "
        "grad_scaler inference_allowed_mirroring_axes initial_lr is_ddp label_manager local_rank logger loss "
        "my_init_kwargs network num_epochs num_input_channels num_iterations_per_epoch num_val_iterations_per_epoch "
        "optimizer output_folder output_folder_base plans_manager preprocessed_dataset_folder_base print_to_log_file "
        "lr_scheduler save_every was_initialized",
        words="lrs train_losses val_losses mean_fg_dice dice_per_class_or_region epoch_end_timestamps",
    ),
    *_used(
        "backbones are read from, and retrofits written to, checkpoints with these keys",
        f"{_TRAINER}.save_checkpoint",
        words="network_weights optimizer_state grad_scaler_state logging _best_ema current_epoch init_args "
        "trainer_name inference_allowed_mirroring_axes",
    ),
    *_used(
        "augmentation=false trains as this trainer does",
        "nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA:nnUNetTrainerNoDA",
        attributes="get_training_transforms",
    ),
    *_used(
        "a teacher counts at each resolution as the labels do",
        "nnunetv2.training.loss.deep_supervision:DeepSupervisionWrapper",
        "loss weight_factors",
        attributes="weight_factors",
    ),
    *_used(
        "searches log as nnU-Net does",
        "nnunetv2.training.logging.nnunet_logger:MetaLogger",
        attributes="log get_value get_checkpoint load_checkpoint",
    ),
    *_used(
        "a search that ends stops its data loading processes",
        "batchgenerators.dataloading.nondet_multi_threaded_augmenter:NonDetMultiThreadedAugmenter",
        attributes="_finish",
    ),
    # Plans, networks and data
    *_used(
        "plans are read through it",
        f"{_PLANS}:PlansManager",
        "plans_file_or_dict",
        attributes="plans plans_name dataset_name get_label_manager",
        words="configurations inherits_from plans_name dataset_name",
    ),
    *_used(
        "configurations are written with these keys",
        f"{_PLANS}:ConfigurationManager",
        "configuration_dict",
        attributes="configuration patch_size batch_size network_arch_init_kwargs",
        words="architecture network_class_name arch_kwargs _kw_requires_import strides data_identifier patch_size "
        "batch_size previous_stage",
    ),
    *_used(
        "configurations are derived from these keys of the plans",
        "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner:ExperimentPlanner",
        words="n_stages features_per_stage conv_op kernel_sizes strides n_conv_per_stage_decoder conv_bias norm_op "
        "norm_op_kwargs dropout_op nonlin nonlin_kwargs",
    ),
    *_used(
        "heads and classes are counted by it",
        f"{_LABELS}:LabelManager",
        attributes="num_segmentation_heads foreground_labels foreground_regions has_regions ignore_label",
    ),
    *_used(
        "networks are built with the channels that it counts",
        f"{_LABELS}:determine_num_input_channels",
        "plans_manager configuration_or_config_manager dataset_json",
    ),
    *_used(
        "networks are built by it",
        "nnunetv2.utilities.get_network_from_plans:get_network_from_plans",
        "arch_class_name arch_kwargs arch_kwargs_req_import input_channels output_channels allow_init deep_supervision",
    ),
    *_used("images are read by it", f"{_DATA}:infer_dataset_class", "folder"),
    *_used(
        "preprocessed images are read through it",
        f"{_DATA}:nnUNetBaseDataset",
        "folder identifiers",
        attributes="load_case get_identifiers",
    ),
    *_used(
        "a race of widths measures on patches that it draws",
        "nnunetv2.training.dataloading.data_loader:nnUNetDataLoader",
        "data batch_size patch_size final_patch_size label_manager oversample_foreground_percent",
    ),
    *_used(
        "a race of widths measures on patches that it draws",
        f"{_TRAINER}.get_validation_transforms",
        "deep_supervision_scales is_cascaded foreground_labels regions ignore_label",
    ),
    *_used(
        "patches are cut by it",
        "acvl_utils.cropping_and_padding.bounding_boxes:crop_and_pad_nd",
        "image bbox pad_value",
    ),
    # Building blocks
    *_used(
        "cells and modules are built as the encoder is",
        f"{_BLOCKS}.plain_conv_encoder:PlainConvEncoder {_BLOCKS}.residual_encoders:ResidualEncoder",
        attributes="output_channels strides kernel_sizes conv_op conv_bias norm_op norm_op_kwargs nonlin nonlin_kwargs",
    ),
    *_used(
        "decoders are taken apart around the skips",
        f"{_BLOCKS}.unet_decoder:UNetDecoder",
        "encoder num_classes n_conv_per_stage deep_supervision",
        attributes="deep_supervision transpconvs stages seg_layers encoder",
    ),
    *_used(
        "stages and stems are made of it",
        f"{_BLOCKS}.simple_conv_blocks:StackedConvBlocks",
        "num_convs conv_op input_channels output_channels kernel_size initial_stride conv_bias norm_op "
        "norm_op_kwargs dropout_op dropout_op_kwargs nonlin nonlin_kwargs",
    ),
    *_used(
        "feature maps are counted as nnU-Net counts them",
        f"{_BLOCKS}.residual:BasicBlockD {_BLOCKS}.residual:BottleneckD",
        attributes="input_channels output_channels skip",
    ),
    *_used("tells 2-D from 3-D", f"{_BLOCKS}.helper:convert_conv_op_to_dim", "conv_op"),
    *_used(
        "networks declare their parts as it asks",
        f"{_NETWORKS}.architectures.abstract_arch:AbstractDynamicNetworkArchitectures",
        "",
        attributes="key_to_encoder key_to_stem keys_to_in_proj",
    ),
    *_used(
        "its own networks are known by their class",
        f"{_NETWORKS}.architectures.unet:PlainConvUNet {_NETWORKS}.architectures.unet:ResidualEncoderUNet",
    ),
    *_used("initial weights", f"{_NETWORKS}.initialization.weight_init:InitWeights_He", "neg_slope"),
    *_used("initial weights", f"{_NETWORKS}.initialization.weight_init:init_last_bn_before_add_to_0", "module"),
    # Evaluation
    *_used(
        "predictions are evaluated by it",
        f"{_EVALUATION}:compute_metrics_on_folder",
        "folder_ref folder_pred output_file image_reader_writer file_ending regions_or_labels ignore_label "
        "num_processes",
        words="metric_per_case metrics",
    ),
    *_used(
        "summary.json is read by these keys",
        f"{_EVALUATION}:compute_metrics",
        words="reference_file prediction_file metrics Dice n_ref",
    ),
    *_used("classes are named by it", f"{_EVALUATION}:label_or_region_to_key", "label_or_region"),
    *_used("classes are read by it", f"{_EVALUATION}:key_to_label_or_region", "key"),
    *_used("surfaces are measured on it", f"{_EVALUATION}:region_or_label_to_mask", "segmentation region_or_label"),
    *_used(
        "segmentations are read through it",
        "nnunetv2.imageio.reader_writer_registry:determine_reader_writer_from_dataset_json",
        "dataset_json_content example_file allow_nonmatching_filename verbose",
    ),
    *_used(
        "segmentations are read through it",
        "nnunetv2.imageio.base_reader_writer:BaseReaderWriter",
        attributes="read_seg",
    ),
    # Export
    *_used(
        "exports are compared with it",
        f"{_PREDICTOR}.__init__",
        "tile_step_size use_gaussian use_mirroring perform_everything_on_device device verbose "
        "verbose_preprocessing allow_tqdm",
    ),
    *_used(
        "trained models are loaded by it",
        f"{_PREDICTOR}.initialize_from_trained_model_folder",
        "model_training_output_dir use_folds checkpoint_name",
        words="dataset.json plans.json network_weights inference_allowed_mirroring_axes",
    ),
    *_used(
        "exports are compared with what it writes",
        f"{_PREDICTOR}.predict_from_files_sequential",
        "list_of_lists_or_source_folder output_folder_or_list_of_truncated_output_files save_probabilities "
        "overwrite folder_with_segs_from_prev_stage",
    ),
    *_used(
        "exports are made of what it loads",
        _PREDICTOR,
        attributes="network list_of_parameters plans_manager configuration_manager label_manager dataset_json "
        "allowed_mirroring_axes",
    ),
    # Names of files and folders
    *_used(
        _FILES,
        "nnunetv2.run.run_training:maybe_load_checkpoint",
        words="checkpoint_final.pth checkpoint_latest.pth checkpoint_best.pth",
    ),
    *_used("prove_tiny compares the lengths of trainings", f"{_TRAINER}._save_debug_information", words="debug.json"),
    *_used(_FILES, f"{_TRAINER}.do_split", words="splits_final.json"),
    *_used(_FILES, f"{_TRAINER}.on_train_start", words="plans.json dataset.json"),
    *_used(_FILES, f"{_TRAINER}.perform_actual_validation", words="validation summary.json"),
    *_used(
        "additions wait for a planning that copies dataset.json before it reads the old plans",
        f"{_PLANNER}.plan_experiment",
        "",
        words="dataset.json",
    ),
    *_used(
        "planning keeps configurations that it does not know", f"{_PLANNER}.save_plans", "plans", words="configurations"
    ),
    # Commands and environment variables
    *_used(_COMMANDS, "command:nnUNetv2_train", words="-tr -p --c --val -device"),
    *_used(
        _COMMANDS,
        "command:nnUNetv2_predict",
        words="-i -o -d -c -f -p -tr -device --continue_prediction --disable_progress_bar -npp -nps",
    ),
    *_used(_COMMANDS, "command:nnUNetv2_plan_and_preprocess command:nnUNetv2_plan_experiment", words="-d"),
    *_used(_COMMANDS, "command:nnUNetv2_preprocess", words="-d -c"),
    *_used(_COMMANDS, "command:nnUNetv2_evaluate_folder", words="-djfile -pfile -np"),
    *_used("its postprocessing is exported", "command:nnUNetv2_find_best_configuration"),
    *_used(
        "data, plans, results and trainers are found by these variables",
        "nnunetv2.paths",
        words="nnUNet_raw nnUNet_preprocessed nnUNet_results nnUNet_extTrainer",
    ),
    *_used(
        "identical runs need nnUNet_n_proc_DA=0",
        "nnunetv2.utilities.default_n_proc_DA:get_allowed_n_proc_DA",
        words="nnUNet_n_proc_DA",
    ),
    *_used("doctor says that it takes no nnUNet_n_proc_DA=0", f"{_PLANNER}.static_estimate_VRAM_usage"),
    *_used("predictions are evaluated in as many processes", "nnunetv2.configuration:default_num_processes"),
    *_used("sets the number of processes", "nnunetv2.configuration", words="nnUNet_def_n_proc"),
    *_used("doctor says when torch.compile is on", f"{_TRAINER}._do_i_compile", words="nnUNet_compile"),
)


def changes(contract: Iterable[Used] = CONTRACT) -> list[str]:
    """What no longer holds, one line each: library and version, what has changed, and what it is used for."""
    return [f"{_library(used)}: {change}: {used.purpose}" for used in contract for change in _changes(used)]


def _library(used: Used) -> str:
    module = used.path.partition(":")[0].partition(".")[0]
    package = "nnunetv2" if module == "command" else module
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def _changes(used: Used) -> list[str]:
    try:
        thing = _find(used.path)
    except (ImportError, AttributeError, LookupError) as error:
        reason = f" ({' '.join(str(error).split())})" if isinstance(error, ImportError) else ""
        return [f"{used.path.replace(':', '.').replace('command.', 'the command ')} is gone{reason}"]
    found = []
    if used.parameters is not None:
        found += _changed_parameters(used, thing)
    lost = [name for name in used.attributes if not _has(thing, name)]
    known = _words(thing) if used.words else set()
    unknown = [word for word in used.words if word not in known]
    found += [f"{used.name} has no {_quoted(lost)} any more"] if lost else []
    found += [f"{used.name} no longer knows {_quoted(unknown)}"] if unknown else []
    return found


def _find(path: str) -> Any:
    module, _, name = path.partition(":")
    if module == "command":
        entries = tuple(importlib.metadata.entry_points(group="console_scripts", name=name))
        return entries[0].load()
    return pkgutil.resolve_name(path if name else f"{module}:")


def _changed_parameters(used: Used, thing: Any) -> list[str]:
    """What differs between the parameters that are relied on and those that are there."""
    own = [parameter for parameter in inspect.signature(thing).parameters.values() if parameter.name != "self"]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own):
        return []  # takes anything, as a wrapped function does
    names, wanted = [parameter.name for parameter in own], list(used.parameters or ())
    lost = [name for name in wanted if name not in names]
    gained = [
        parameter.name
        for parameter in own
        if parameter.name not in wanted
        and parameter.kind is not parameter.VAR_KEYWORD
        and (used.overridden or parameter.default is parameter.empty)
    ]
    if lost or gained:
        parts = [f"{verb} {_quoted(which)}" for verb, which in (("lost", lost), ("gained", gained)) if which]
        return [f"{used.name} has {' and '.join(parts)}"]
    if names[: len(wanted)] != wanted:
        return [f"{used.name} takes its parameters in another order ({', '.join(names)})"]
    return []


def _has(thing: Any, attribute: str) -> bool:
    """Whether an object, its class or a constructor in its family has an attribute."""
    family = thing.__mro__[:-1] if isinstance(thing, type) else ()
    return hasattr(thing, attribute) or any(attribute in _assigned(member) for member in family)


@cache
def _assigned(owner: type) -> frozenset[str]:
    """Attributes that a class's methods assign to self."""
    nodes = ast.walk(_tree(owner)) if owner.__module__.partition(".")[0] != "torch" else ()
    return frozenset(
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def _words(thing: Any) -> set[str]:
    """The texts in the source of a module, class or function."""
    return {
        node.value for node in ast.walk(_tree(thing)) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def _tree(thing: Any) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
