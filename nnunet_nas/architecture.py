"""The network of a plans configuration, built exactly as nnU-Net builds it.

nnU-Net's own `get_network_from_plans` does the work. Around it: seeding as the searches need it, networks without
weights for counting, and one-line errors for plans that nnU-Net would answer with a traceback.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pydoc
import reprlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_nas.errors import DataProblem
from nnunet_nas.plans import DerivedConfiguration, Plans, Provenance
from nnunet_nas.randomness import seed_everything
from nnunet_nas.trust import locate_class

# What nnU-Net and the networks that plans can name raise for arguments that do not fit, or classes that do not import.
NETWORK_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
    pydoc.ErrorDuringImport,
)
_ARCHITECTURE_KEYS: dict[str, tuple[type, str]] = {
    "network_class_name": (str, "text"),
    "arch_kwargs": (dict, "an object"),
    "_kw_requires_import": (list, "a list"),
}
# Torch's own limit is that of 64 bits, for the product with everything else.
_LARGEST = 2**31


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that nnU-Net needs to build a configuration's network.

    Attributes:
        architecture: `{network_class_name, arch_kwargs, _kw_requires_import}` as in the plans.
        input_channels: image channels, and the previous stage's labels in a cascade.
        output_channels: segmentation heads: labels with background, or regions.
        patch_size: voxels, (y, x) or (z, y, x).
        batch_size: samples per training step, as planned.
    """

    architecture: dict[str, Any]
    input_channels: int
    output_channels: int
    patch_size: tuple[int, ...]
    batch_size: int

    def with_features(self, features_per_stage: list[int]) -> NetworkSpec:
        """The same network with other channel widths."""
        architecture = copy.deepcopy(self.architecture)
        architecture["arch_kwargs"]["features_per_stage"] = features_per_stage
        return replace(self, architecture=architecture)


def network_spec(plans: Plans, name: str, dataset_json: dict[str, Any] | None = None) -> NetworkSpec:
    """What nnU-Net would build for configuration `name`.

    Args:
        plans: that it stands in.
        name: the configuration.
        dataset_json: nnU-Net's description of the data set, for channels and labels; None: the one beside the plans.

    Raises:
        DataProblem: unknown configuration, or one without a network (old plans that nnU-Net cannot convert, others that
            are not as nnU-Net writes them).
    """
    configuration = plans.resolve(name)
    dataset_json = plans.dataset_json if dataset_json is None else dataset_json
    try:
        plans_manager = PlansManager(copy.deepcopy(plans.content))
        with _without_chatter():
            manager = ConfigurationManager(configuration)
            heads = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
        inputs = determine_num_input_channels(plans_manager, manager, dataset_json)
        return spec_of(manager, inputs, heads)
    except NETWORK_ERRORS as error:
        raise DataProblem(
            f"configuration {name} has no network that nnU-Net could build ({one_line(error)}): "
            f"plan the data set again with nnUNetv2_plan_experiment, or correct dataset.json"
        ) from error


def spec_of(manager: ConfigurationManager, input_channels: int, output_channels: int) -> NetworkSpec:
    """What nnU-Net would build for a configuration that it has read.

    Raises:
        DataProblem: `architecture` holds other things than nnU-Net's planning writes.
    """
    architecture = manager.configuration["architecture"]
    for key, (kind, called) in _ARCHITECTURE_KEYS.items():
        if not isinstance(architecture[key], kind):
            raise DataProblem(
                f"architecture.{key} of the configuration must be {called}, not {reprlib.repr(architecture[key])}: "
                f"plan the data set again with nnUNetv2_plan_experiment"
            )
    if not all(isinstance(key, str) for key in architecture["_kw_requires_import"]):
        raise DataProblem(
            "architecture._kw_requires_import of the configuration must be a list of names: plan the data set again "
            "with nnUNetv2_plan_experiment"
        )
    patch_size, batch_size = tuple(int(size) for size in manager.patch_size), int(manager.batch_size)
    _require_sizes(patch_size, batch_size)
    return NetworkSpec(
        architecture={key: copy.deepcopy(architecture[key]) for key in _ARCHITECTURE_KEYS},
        input_channels=int(input_channels),
        output_channels=int(output_channels),
        patch_size=patch_size,
        batch_size=batch_size,
    )


def _require_sizes(patch_size: tuple[int, ...], batch_size: int) -> None:
    if len(patch_size) not in (2, 3) or not all(0 < size < _LARGEST for size in (*patch_size, batch_size)):
        raise DataProblem(
            f"patch_size of the configuration must be two or three numbers from 1 to {_LARGEST - 1}, and batch_size "
            f"one, not {reprlib.repr(patch_size)} and {reprlib.repr(batch_size)}: plan the data set again with "
            f"nnUNetv2_plan_experiment"
        )


def build_network(
    spec: NetworkSpec, *, seed: int | None = None, deep_supervision: bool = False, initialise: bool = True
) -> nn.Module:
    """The network with nnU-Net's own initialisation, float32, on the CPU.

    Args:
        spec: what to build.
        seed: Python, NumPy and torch are seeded with it first; None leaves the random states alone.
        deep_supervision: whether `forward` returns a list of logits.
        initialise: False leaves torch's own initial weights.

    Raises:
        DataProblem: nnU-Net cannot build it (for instance norm groups that do not divide a narrow width).
    """
    if seed is not None:
        seed_everything(seed)
    try:
        require_trusted(spec.architecture)
        with _without_chatter():
            return get_network_from_plans(
                *(spec.architecture[key] for key in _ARCHITECTURE_KEYS),
                spec.input_channels,
                spec.output_channels,
                allow_init=initialise,
                deep_supervision=deep_supervision,
            )
    except NETWORK_ERRORS as error:
        features = spec.architecture["arch_kwargs"].get("features_per_stage")
        raise DataProblem(
            f"nnU-Net cannot build {spec.architecture['network_class_name']} with features_per_stage={features}: "
            f"{one_line(error)}"
        ) from error


def import_arguments(architecture: dict[str, Any]) -> dict[str, Any]:
    """`arch_kwargs` of a plans architecture with its dotted names imported, as nnU-Net imports them.

    Raises:
        DataProblem: a name that cannot be imported.
    """
    kwargs = copy.deepcopy(architecture["arch_kwargs"])
    for key in architecture["_kw_requires_import"]:
        name = kwargs.get(key)
        if name is None:
            continue
        kwargs[key] = locate_class(name, f"arch_kwargs.{key}")
    return kwargs


def require_trusted(architecture: dict[str, Any]) -> None:
    """Refuses an architecture that names classes which are not networks or their parts; see `trust`.

    Raises:
        DataProblem: the first such name, or one that cannot be imported.
    """
    import_arguments(architecture)
    locate_class(architecture["network_class_name"], "network_class_name", moved=True)


def one_line(error: Exception) -> str:
    """Kind and text of a foreign exception, for a message of ours."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Drops what nnU-Net says about old plans and moved classes: it copes, and would say so for each width."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def build_without_weights(spec: NetworkSpec, *, deep_supervision: bool = False) -> nn.Module:
    """The network on torch's `meta` device: shapes only, no memory and no time, for counting."""
    # There torch draws normal numbers, of which nothing is kept, in Python: most of the time that building took.
    with torch.device("meta"):
        return build_network(spec, deep_supervision=deep_supervision, initialise=False)


def derive(
    name: str, base: str, spec: NetworkSpec, provenance: Provenance, *, weights: bool = False
) -> DerivedConfiguration:
    """A configuration to be added to plans, whose network nnU-Net can build: seen here, not when it is to be trained.

    Args:
        name: of the new configuration.
        base: the configuration that it inherits from.
        spec: of the base, with the new architecture.
        provenance: where it comes from.
        weights: build with weights, which takes time, so that files of initial weights are read as well.

    Raises:
        DataProblem: nnU-Net cannot build it.
    """
    build_network(spec) if weights else build_without_weights(spec)
    return DerivedConfiguration(name, base, spec.architecture, provenance)
