"""What was found on one data set, refitted to the plans of another one.

DiNTS: the topology, with the target's kernels, strides and channels. IAC and IAC-LTH: the genotype, with cells as wide
as the target's skips ask for. XTinyU-Net: the cap. The papers search on one data set and deploy on others; the rules of
refitting are our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from nnunet_nas.architecture import NetworkSpec, build_without_weights, import_arguments, network_spec
from nnunet_nas.dints.operations import make_levels, operation_steps
from nnunet_nas.dints.space import level_features, topology_architecture
from nnunet_nas.dints.topology import Topology
from nnunet_nas.errors import DataProblem
from nnunet_nas.iac.cell import cell_width
from nnunet_nas.iac.genotype import Genotype
from nnunet_nas.plans import DerivedConfiguration, configuration_digest, provenance, resolve_configuration
from nnunet_nas.skips.unet import require_skips
from nnunet_nas.xtiny.widths import capped_features

_SUFFIXES = {"dints": "_dints", "iac": "_iac", "iac_lth": "_iaclth"}


@dataclass(frozen=True)
class Found:
    """A configuration that a search added.

    Attributes:
        plans: that it stands in.
        name: of the configuration.
        architecture: `architecture` of the plans.
        record: its provenance.
    """

    plans: dict[str, Any]
    name: str
    architecture: dict[str, Any]
    record: dict[str, Any]

    @property
    def tag(self) -> str:
        """What its name adds to its base's."""
        base = str(self.plans["configurations"][self.name]["inherits_from"])
        if self.name.startswith(base):
            return self.name[len(base) :]
        return _SUFFIXES.get(self.record["method"], f"_{self.record['method']}")


def found_configuration(plans: dict[str, Any], name: str) -> Found:
    """A searched configuration of some plans.

    Raises:
        DataProblem: unknown, or not the result of a search.
    """
    configuration = resolve_configuration(plans, name)
    record = plans["configurations"][name].get("nas")
    if record is None or record.get("method") not in _REFITS:
        ours = [key for key, entry in plans["configurations"].items() if "nas" in entry]
        raise DataProblem(
            f"configuration {name} of {plans['dataset_name']} is not the result of a search; there: "
            f"{', '.join(ours) or 'none yet'}"
        )
    return Found(plans, name, configuration["architecture"], record)


def transfer(
    found: Found, plans: dict[str, Any], base: str, dataset_json: dict[str, Any]
) -> tuple[DerivedConfiguration, list[str]]:
    """The configuration to add to the target's plans, and what was refitted, in words.

    Args:
        found: on the source data set.
        plans: of the target.
        base: the target's configuration that it is derived from.
        dataset_json: of the target, for channels and labels.

    Raises:
        DataProblem: it cannot fit, with the reason.
    """
    configuration = resolve_configuration(plans, base)
    spec = network_spec(plans, base, dataset_json)
    dimensions = len(configuration["patch_size"])
    own = import_arguments(found.architecture)["conv_op"].__name__
    if own != f"Conv{dimensions}d":
        raise DataProblem(
            f"{found.name} is made of {own}, {base} of {dimensions}-D patches: choose a target configuration of the "
            f"same dimension"
        )
    architecture, notes = _REFITS[found.record["method"]](found, configuration["architecture"], spec)
    # That nnU-Net can build it is seen here, not after an hour of preprocessing.
    build_without_weights(
        NetworkSpec(architecture, spec.input_channels, spec.output_channels, spec.patch_size, spec.batch_size)
    )
    record = provenance(
        method=found.record["method"],
        base_digest=configuration_digest(plans, base),
        settings=found.record["settings"],
        seeds=found.record["seeds"],
        fold=found.record.get("fold"),
    )
    record["transferred_from"] = {
        "dataset": found.plans["dataset_name"],
        "plans": found.plans["plans_name"],
        "configuration": found.name,
    }
    if found.record["method"] in ("iac", "iac_lth"):
        record["backbone_trainer"] = None
    return DerivedConfiguration(f"{base}{found.tag}", base, {"architecture": architecture}, record), notes


def _refit_topology(found: Found, base: dict[str, Any], spec: NetworkSpec) -> tuple[dict[str, Any], list[str]]:
    """Levels of the target; an operation that a level's kernel makes equal to a convolution becomes that."""
    del spec
    kwargs, source = import_arguments(base), found.architecture["arch_kwargs"]
    topology, first_level = Topology.from_json(source["topology"]), int(source["first_level"])
    stages = first_level + topology.levels
    if stages > int(kwargs["n_stages"]):
        raise DataProblem(
            f"{found.name} needs {stages} stages ({topology.levels} levels from stage {first_level} on), the target "
            f"has {kwargs['n_stages']}: search with fewer levels (num_levels), or choose another target configuration"
        )
    features = level_features(kwargs["features_per_stage"], stages, found.record["settings"].get("features"))
    dimensions = len(source["kernel_sizes"][0])
    levels = make_levels(features, kwargs["kernel_sizes"][:stages], kwargs["strides"][:stages], dimensions)
    changed = 0
    layers = []
    for layer in topology.layers:
        refitted = {}
        for (start, end), name in layer.items():
            fits = name in operation_steps(levels[first_level + end].kernel)
            refitted[start, end] = name if fits else "conv"
            changed += not fits
        layers.append(refitted)
    notes = [f"{changed} operations became plain convolutions, which the kernels make them equal to"] if changed else []
    content = Topology(topology.levels, tuple(layers)).to_json()
    return topology_architecture(base, content, features, first_level), notes


def _refit_cells(found: Found, base: dict[str, Any], spec: NetworkSpec) -> tuple[dict[str, Any], list[str]]:
    """The genotype, with widths by the rule of the search for the target's skips."""
    cells, settings = found.architecture["arch_kwargs"]["cells"], found.record["settings"]
    network: Any = build_without_weights(spec)
    name = base["network_class_name"]
    if "cells" in base["arch_kwargs"]:
        raise DataProblem(f"{name} has cells in its skips already: choose the configuration below it")
    require_skips(network, name)
    widths = [
        cell_width(
            int(channels),
            minimum=settings["minimum_width"],
            divisor=settings["width_divisor"],
            multiple=settings["partial_channels"],
        )
        for channels in network.encoder.output_channels[: len(network.decoder.stages)]
    ]
    architecture = deepcopy(base)
    genotype = Genotype.from_json(cells["genotype"]).to_json()
    architecture["arch_kwargs"] |= {"backbone": name, "cells": {**cells, "genotype": genotype, "widths": widths}}
    architecture["network_class_name"] = "nnunet_nas.iac.network.IACUNet"
    return architecture, [f"cells are {', '.join(map(str, widths))} channels wide"]


def _refit_width(found: Found, base: dict[str, Any], spec: NetworkSpec) -> tuple[dict[str, Any], list[str]]:
    """The cap, on the target's channels."""
    del spec
    cap = int(found.record["settings"]["cap"])
    planned = base["arch_kwargs"]["features_per_stage"]
    if not isinstance(planned, list) or max(planned) <= cap:
        raise DataProblem(f"the cap {cap} changes nothing in features_per_stage={planned}: the target is as narrow")
    architecture = deepcopy(base)
    architecture["arch_kwargs"]["features_per_stage"] = capped_features(planned, cap)
    return architecture, []


_REFITS: dict[str, Callable[[Found, dict[str, Any], NetworkSpec], tuple[dict[str, Any], list[str]]]] = {
    "dints": _refit_topology,
    "iac": _refit_cells,
    "iac_lth": _refit_cells,
    "xtiny": _refit_width,
}
