"""What was found on one data set, refitted to the plans of another one.

The papers search on one data set and deploy on others. How a result is refitted is each method's own: see the `refit`
of its room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnunet_nas.architecture import NetworkSpec, build_without_weights, network_spec
from nnunet_nas.errors import DataProblem
from nnunet_nas.methods import METHODS, part
from nnunet_nas.plans import DerivedConfiguration, configuration_digest, provenance, resolve_configuration


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
        method = self.record["method"]
        return METHODS[method].suffix or f"_{method}"


def found_configuration(plans: dict[str, Any], name: str) -> Found:
    """A searched configuration of some plans.

    Raises:
        DataProblem: unknown, or not the result of a search.
    """
    configuration = resolve_configuration(plans, name)
    record = plans["configurations"][name].get("nas")
    method = METHODS.get(str((record or {}).get("method")))
    if method is None or method.refit is None:
        ours = [key for key, entry in plans["configurations"].items() if "nas" in entry]
        raise DataProblem(
            f"configuration {name} of {plans['dataset_name']} is not the result of a search; there: "
            f"{', '.join(ours) or 'none yet'}"
        )
    return Found(plans, name, configuration["architecture"], record)


def planned_features(base: dict[str, Any]) -> Any:
    """`features_per_stage` of the target's architecture.

    Raises:
        DataProblem: its network has none.
    """
    if "features_per_stage" not in base["arch_kwargs"]:
        raise DataProblem(
            f"the target's {base['network_class_name'].rpartition('.')[2]} has no features_per_stage: choose a "
            f"configuration with one of nnU-Net's U-Nets"
        )
    return base["arch_kwargs"]["features_per_stage"]


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
    own = len(resolve_configuration(found.plans, found.name)["patch_size"])
    if own != dimensions:
        raise DataProblem(
            f"{found.name} is of {own}-D patches, {base} of {dimensions}-D ones: choose a target configuration of the "
            f"same dimension"
        )
    method = METHODS[found.record["method"]]
    architecture, notes = part(method.refit)(found, configuration["architecture"], spec)
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
    if method.in_backbone:
        record["backbone_trainer"] = None
    return DerivedConfiguration(f"{base}{found.tag}", base, {"architecture": architecture}, record), notes
