"""A topology on other plans: its edges and operations, with the target's kernels, strides and channels (our choice)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_nas.architecture import NetworkSpec, import_arguments
from nnunet_nas.dints.operations import Level, make_levels, operation_steps
from nnunet_nas.dints.space import level_features, topology_architecture
from nnunet_nas.dints.topology import Topology
from nnunet_nas.errors import DataProblem
from nnunet_nas.transfer import Found, planned_features


def refit(found: Found, target: NetworkSpec) -> tuple[dict[str, Any], list[str]]:
    """Levels of the target; an operation that a level's kernel makes equal to a convolution becomes that."""
    kwargs, source = import_arguments(target.architecture), found.architecture["arch_kwargs"]
    topology, first_level = Topology.from_json(source["topology"]), int(source["first_level"])
    stages = first_level + topology.levels
    if stages > int(kwargs["n_stages"]):
        raise DataProblem(
            f"{found.name} needs {stages} stages ({topology.levels} levels from stage {first_level} on), the target "
            f"has {kwargs['n_stages']}: search with fewer levels (num_levels), or choose another target configuration"
        )
    features = level_features(planned_features(target), stages, found.record["settings"].get("features"))
    dimensions = len(source["kernel_sizes"][0])
    levels = make_levels(features, kwargs["kernel_sizes"][:stages], kwargs["strides"][:stages], dimensions)
    fitted, notes = on_levels(topology, levels[first_level:])
    content = fitted.to_json()
    final_conv = bool(source.get("final_conv", False))
    return topology_architecture(
        target.architecture, content, features, first_level=first_level, final_conv=final_conv
    ), notes


def on_levels(topology: Topology, levels: Sequence[Level]) -> tuple[Topology, list[str]]:
    """A topology with operations that its levels' kernels have, and what had to change, in words."""
    changed, layers = 0, []
    for layer in topology.layers:
        fitted = {}
        for (start, end), name in layer.items():
            fits = name in operation_steps(levels[end].kernel)
            fitted[start, end] = name if fits else "conv"
            changed += not fits
        layers.append(fitted)
    notes = [f"{changed} operations became plain convolutions, which the kernels make them equal to"] if changed else []
    return Topology(topology.levels, tuple(layers)), notes
