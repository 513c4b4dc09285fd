"""What was found on one data set, refitted to the plans of another one.

The papers search on one data set and deploy on others. How a result is refitted is each method's own: see the `refit`
of its room.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nnunet_nas.architecture import NETWORK_ERRORS, NetworkSpec, derive, network_spec, one_line
from nnunet_nas.errors import DataProblem
from nnunet_nas.methods import METHODS, part
from nnunet_nas.plans import DerivedConfiguration, Plans, Provenance
from nnunet_nas.training_cost import memory_beside, training_memory


@dataclass(frozen=True)
class Found:
    """A configuration that a search added.

    Attributes:
        plans: that it stands in.
        name: of the configuration.
        architecture: `architecture` of the plans.
        record: its provenance, as the plans hold it.
    """

    plans: Plans
    name: str
    architecture: dict[str, Any]
    record: dict[str, Any]

    @property
    def tag(self) -> str:
        """What its name adds to its base's."""
        base, method = str(self.plans.configurations[self.name]["inherits_from"]), self.record["method"]
        return self.name[len(base) :] if self.name.startswith(base) else METHODS[method].suffix or f"_{method}"


def found_configuration(plans: Plans, name: str) -> Found:
    """A searched configuration of some plans.

    Raises:
        DataProblem: unknown, or not the result of a search.
    """
    configuration, method = plans.resolve(name), METHODS.get(str(plans.method(name)))
    if method is None or method.refit is None:
        ours = [key for key in plans.configurations if plans.record(key) is not None]
        raise DataProblem(
            f"configuration {name} of {plans.dataset_name} is not the result of a search; there: "
            f"{', '.join(ours) or 'none yet'}"
        )
    record, architecture = plans.record(name) or {}, configuration.get("architecture")
    settings, seeds = record.get("settings"), record.get("seeds")
    if not isinstance(settings, dict) or not isinstance(seeds, list) or not isinstance(architecture, dict):
        raise DataProblem(f"configuration {name} of {plans.dataset_name} is not as a search left it: restore the plans")
    return Found(plans, name, architecture, record)


def planned_features(target: NetworkSpec) -> Any:
    """`features_per_stage` of a target.

    Raises:
        DataProblem: its network has none.
    """
    architecture = target.architecture
    if "features_per_stage" not in architecture["arch_kwargs"]:
        raise DataProblem(
            f"the target's {architecture['network_class_name'].rpartition('.')[2]} has no features_per_stage: choose a "
            f"configuration with one of nnU-Net's U-Nets"
        )
    return architecture["arch_kwargs"]["features_per_stage"]


def transfer(found: Found, plans: Plans, base: str) -> tuple[DerivedConfiguration, list[str]]:
    """The configuration to add to the target's plans, and what was refitted, in words.

    Args:
        found: on the source data set.
        plans: of the target.
        base: the target's configuration that it is derived from.

    Raises:
        DataProblem: it cannot fit, with the reason.
    """
    spec = network_spec(plans, base)
    own, dimensions = len(found.plans.resolve(found.name)["patch_size"]), len(spec.patch_size)
    if own != dimensions:
        raise DataProblem(
            f"{found.name} is made for {own}-D patches, {base} has {dimensions}-D ones: choose a target configuration "
            f"of the same dimension"
        )
    record = found.record
    try:
        architecture, notes = part(METHODS[record["method"]].refit)(found, spec)
    except NETWORK_ERRORS as error:
        raise DataProblem(
            f"configuration {found.name} of {found.plans.dataset_name} is not as a search left it ({one_line(error)}): "
            f"restore the plans"
        ) from error
    source = {"dataset": found.plans.dataset_name, "plans": found.plans.name, "configuration": found.name}
    provenance = Provenance(
        record["method"],
        plans.digest(base),
        record["settings"],
        record["seeds"],
        fold=record.get("fold"),
        transferred_from=source,
    )
    refitted = replace(spec, architecture=architecture)
    derived = derive(f"{base}{found.tag}", base, refitted, provenance)
    return derived, [*notes, *_memory(found, plans, base, refitted)]


def _memory(found: Found, plans: Plans, base: str, refitted: NetworkSpec) -> list[str]:
    """What training needs at the target, where all of the network is trained; its budget, if the search had one."""
    if METHODS[found.record["method"]].in_backbone:
        return []
    notes = [memory_beside(refitted, base, network_spec(plans, base))]
    budget = (found.record.get("training_mib") or {}).get("budget")
    if isinstance(budget, (int, float)) and budget > 0:
        times = training_memory(refitted).total / budget
        notes.append(
            f"the search's budget was {budget:.0f} MiB, at its own patch and batch: this is {times:.2f} times that"
        )
    return notes
