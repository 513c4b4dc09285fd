"""The search space of a configuration: geometry, channels and layers come from the plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim

from nnunet_nas.architecture import NetworkSpec, import_arguments
from nnunet_nas.blocks import Blocks
from nnunet_nas.commands import set_search
from nnunet_nas.dints.memory import MemoryModel, measure_memory
from nnunet_nas.dints.network import FEWEST_STAGES
from nnunet_nas.dints.operations import OPERATIONS, Level, make_levels
from nnunet_nas.dints.settings import DiNTSSettings
from nnunet_nas.errors import DataProblem


class Space:
    """The search space of a configuration: what plans and settings say together.

    Attributes:
        blocks: layers as the plans say.
        levels: all stages of the result.
        search_levels: the same with the channels of the search.
        first_level: stages finer than this have no cells.
        final_conv: whether a convolution at the full resolution comes before the head.
        architecture: the plans' `arch_kwargs`, as they stand there.
    """

    def __init__(self, architecture: dict[str, Any], settings: DiNTSSettings) -> None:
        """Checks that the stages of a configuration's `architecture` suffice.

        Raises:
            DataProblem: they do not, or the configuration has dropout or no stages.
        """
        kwargs = import_arguments(architecture)
        missing = [key for key in ("n_stages", "features_per_stage", "kernel_sizes", "strides") if key not in kwargs]
        if missing:
            raise DataProblem(f"the configuration's arch_kwargs have no {missing[0]}: choose one of nnU-Net's U-Nets")
        if kwargs.get("dropout_op") is not None:
            raise DataProblem("DiNTS has no dropout: choose a configuration whose dropout_op is null")
        self.architecture: dict[str, Any] = deepcopy(architecture)
        available = int(kwargs["n_stages"])
        # At full resolution a 3-D search keeps some four times as much: beyond what GPUs have at nnU-Net's patches.
        half = convert_conv_op_to_dim(kwargs["conv_op"]) == 3 and available > FEWEST_STAGES
        self.first_level = int(half) if settings.first_level is None else settings.first_level
        self.final_conv = self.first_level > 0 if settings.final_conv is None else settings.final_conv
        wanted = available - self.first_level if settings.num_levels is None else settings.num_levels
        stages = self.first_level + wanted
        if wanted < 2 or stages > available or stages < FEWEST_STAGES:
            raise DataProblem(
                f"{wanted} levels from stage {self.first_level} on do not fit the plan's {available} stages: DiNTS "
                f"needs at least 2 levels, and {FEWEST_STAGES} stages with those above them; set num_levels and "
                f"first_level with {set_search(settings.method)}"
            )
        self.blocks = Blocks(
            conv_op=kwargs["conv_op"],
            conv_bias=kwargs.get("conv_bias", False),
            norm_op=kwargs.get("norm_op"),
            norm_op_kwargs=kwargs.get("norm_op_kwargs"),
            nonlin=kwargs.get("nonlin"),
            nonlin_kwargs=kwargs.get("nonlin_kwargs"),
        )
        self.features = level_features(kwargs["features_per_stage"], stages, settings.features)
        # The paper searches at half the channels that it retrains with.
        finest = max(1, self.features[0] // 2) if settings.search_features is None else settings.search_features
        geometry = (kwargs["kernel_sizes"][:stages], kwargs["strides"][:stages], self.blocks.dimensions)
        self.levels: list[Level] = make_levels(self.features, *geometry)
        self.search_levels = make_levels(level_features(self.features, stages, finest), *geometry)

    def memory(self, spec: NetworkSpec) -> MemoryModel:
        """What results need in training, at the batch, patch and channels of a network."""
        return measure_memory(
            self.blocks,
            self.levels,
            first_level=self.first_level,
            patch_size=spec.patch_size,
            batch_size=spec.batch_size,
            input_channels=spec.input_channels,
            num_classes=spec.output_channels,
            final_conv=self.final_conv,
        )

    def require_divisible(self, patch_size: Sequence[int]) -> None:
        """A patch must be a whole number of voxels at every level.

        Raises:
            DataProblem: it is not.
        """
        for axis, size in enumerate(patch_size):
            divisor = math.prod(level.stride[axis] for level in self.levels)
            if size % divisor:
                raise DataProblem(
                    f"patch size {'x'.join(map(str, patch_size))} is not divisible by {divisor} along axis {axis}, the "
                    f"product of the strides of {len(self.levels)} stages: correct patch_size in the plans, or set a "
                    f"lower num_levels with {set_search(DiNTSSettings.method)}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Operations in the order of every array."""
        return OPERATIONS[self.blocks.dimensions]

    def network(self, topology: dict[str, Any]) -> dict[str, Any]:
        """`architecture` of a configuration with a topology."""
        return topology_architecture(
            self.architecture, topology, self.features, first_level=self.first_level, final_conv=self.final_conv
        )


def level_features(plan: int | Sequence[int], stages: int, finest: int | None) -> list[int]:
    """Channels per stage, in proportion to the plan's if another number is wanted at the finest stage."""
    planned = [plan] * stages if isinstance(plan, int) else [int(features) for features in plan[:stages]]
    if finest is None:
        return planned
    return [max(1, round(features * finest / planned[0])) for features in planned]


def topology_architecture(
    base: dict[str, Any], topology: dict[str, Any], features: Sequence[int], *, first_level: int, final_conv: bool
) -> dict[str, Any]:
    """The plans' `architecture` of a topology: the base's geometry, blocks and channels.

    Args:
        base: `architecture` of the configuration below.
        topology: see `Topology.to_json`.
        features: channels per stage.
        first_level: stages finer than this have no cells.
        final_conv: see `network.DiNTSNet`.
    """
    kept = ("conv_op", "conv_bias", "norm_op", "norm_op_kwargs", "dropout_op", "dropout_op_kwargs", "nonlin")
    old = base["arch_kwargs"]
    stages = len(features)
    kwargs = {key: deepcopy(old[key]) for key in (*kept, "nonlin_kwargs") if key in old}
    kwargs |= {
        "n_stages": stages,
        "features_per_stage": list(features),
        "kernel_sizes": deepcopy(old["kernel_sizes"][:stages]),
        "strides": deepcopy(old["strides"][:stages]),
        "first_level": first_level,
        "topology": topology,
    }
    if final_conv:
        kwargs["final_conv"] = True
    return {
        "network_class_name": "nnunet_nas.dints.network.DiNTSNet",
        "arch_kwargs": kwargs,
        "_kw_requires_import": [key for key in base["_kw_requires_import"] if key in kwargs],
    }
