"""The methods, each in one row: what is read under its name in plans, and where its parts are.

Parts stand as `module:name` and are imported when they are needed, so that this table costs nothing to read. A new
method brings its own room and one row here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from nnunet_nas.errors import DataProblem


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: in provenance (`nas.method`) and in `nas_settings`.
        suffix: what its results' names add to their base's; empty where that depends on the answer.
        settings: dataclass of its settings; None where it has none in the plans.
        trainer: the trainer that reads those settings.
        in_backbone: whether its results are trained inside a frozen backbone, by the retrofit.
        refit: fits a result to other plans; None where nothing is searched.
        dynamics: shows how a search arrived at its result; None where there is no history.
    """

    name: str
    suffix: str = ""
    settings: str | None = None
    trainer: str | None = None
    in_backbone: bool = False
    refit: str | None = None
    dynamics: str | None = None

    @property
    def trainer_name(self) -> str | None:
        """Class name of the trainer, as `-tr` takes it."""
        return None if self.trainer is None else self.trainer.partition(":")[2]

    @property
    def searches(self) -> bool:
        """Whether its trainer searches, and leaves a history and a result."""
        return self.dynamics is not None


METHODS = {
    method.name: method
    for method in (
        Method("xtiny", refit="nnunet_nas.xtiny.refit:refit"),
        Method(
            "iac",
            suffix="_iac",
            settings="nnunet_nas.iac.settings:IACSettings",
            trainer="nnunet_nas.iac.trainers:nnUNetTrainerIACSearch",
            in_backbone=True,
            refit="nnunet_nas.iac.refit:refit",
            dynamics="nnunet_nas.iac.dynamics:show",
        ),
        Method(
            "iac_lth",
            suffix="_iaclth",
            settings="nnunet_nas.iac.settings:IACLTHSettings",
            trainer="nnunet_nas.iac.trainers:nnUNetTrainerIACLTHSearch",
            in_backbone=True,
            refit="nnunet_nas.iac.refit:refit",
            dynamics="nnunet_nas.iac.dynamics:show",
        ),
        Method(
            "iac_retrofit",
            settings="nnunet_nas.skips.settings:IACRetrofitSettings",
            trainer="nnunet_nas.skips.retrofit:nnUNetTrainerIACRetrofit",
        ),
        Method(
            "dints",
            suffix="_dints",
            settings="nnunet_nas.dints.settings:DiNTSSettings",
            trainer="nnunet_nas.dints.trainers:nnUNetTrainerDiNTSSearch",
            refit="nnunet_nas.dints.refit:refit",
            dynamics="nnunet_nas.dints.dynamics:show",
        ),
        Method("skip", in_backbone=True),
        Method("encoder"),
    )
}
WITH_SETTINGS = tuple(name for name, method in METHODS.items() if method.settings)
SEARCHES = tuple(name for name, method in METHODS.items() if method.searches)
RETROFITTED = tuple(name for name, method in METHODS.items() if method.in_backbone)
RETROFIT_TRAINER = str(METHODS["iac_retrofit"].trainer_name)


def result_trainer(name: str | None) -> str | None:
    """Class name of the trainer that a configuration found by method `name` is meant for; None for nnU-Net's own."""
    return RETROFIT_TRAINER if name in RETROFITTED and name != "skip" else None


def part(reference: str) -> Any:
    """What a `module:name` of the table stands for."""
    module, name = reference.split(":")
    return getattr(importlib.import_module(module), name)


def settings_class(name: str) -> type:
    """The dataclass of a method's settings.

    Raises:
        DataProblem: unknown method, or one without settings.
    """
    if name not in WITH_SETTINGS:
        raise DataProblem(
            f"nas_settings: unknown method {name!r}; known: {', '.join(WITH_SETTINGS)}: correct the plans"
        )
    found: type = part(str(METHODS[name].settings))
    return found
