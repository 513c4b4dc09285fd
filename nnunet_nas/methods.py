"""The methods, each in one row: what is read under its name in plans, and where its parts are.

Parts stand as `module:name` and are imported when they are needed, so that this table costs nothing to read. A new
method brings its own room and one row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
        refit: fits a result to other plans, see `transfer`; None where nothing is found.
        chance: draws an answer at random in place of a result, see `chance`; None where nothing can be drawn.
        answer: argument of its networks that holds what was found; empty where there is nothing to draw.
        check: raises for an answer in a network's arguments that cannot be, and builds nothing; None: checks nothing.
        draw: draws that from a network's arguments into a file, under a title.
        history: schema of what its search records, see `histories`; None where nothing is recorded.
        dynamics: function from such a history to `Dynamics`; likewise.
        averaged: function from several such histories and their names to `Dynamics`; None where there is none.
        cost: function from a network and settings to the phases of `search_cost`; None where they cannot be told.
        beside: function from plans, a configuration and settings to the network that `cost` takes beside its own, if
            there is one; None where there never is.
        retrofit_cost: likewise, of the retrofit of what a search can find, from the retrofit's settings as well.
        has_control: whether its results stand beside nnU-Net's own network, made as wide as their memory allows.
    """

    name: str
    suffix: str = ""
    settings: str | None = None
    trainer: str | None = None
    in_backbone: bool = False
    refit: str | None = None
    chance: str | None = None
    answer: str = ""
    check: str | None = None
    draw: str | None = None
    history: str | None = None
    dynamics: str | None = None
    averaged: str | None = None
    cost: str | None = None
    beside: str | None = None
    retrofit_cost: str | None = None
    has_control: bool = False

    @property
    def trainer_name(self) -> str | None:
        """Class name of the trainer, as `-tr` takes it."""
        return None if self.trainer is None else self.trainer.partition(":")[2]

    @property
    def searches(self) -> bool:
        """Whether its trainer searches, and leaves a history and a result."""
        return self.dynamics is not None


@dataclass(frozen=True)
class Dynamics:
    """How a search arrived at its result.

    Attributes:
        content: everything, as plain JSON.
        headline: above the table; may be empty.
        header: of the table.
        rows: its cells.
        words: how many columns from the left are words; the others are numbers.
        draw: draws into a file, under a title.
    """

    content: dict[str, Any]
    headline: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int
    draw: Callable[[Path, str], None]


# What names of configurations add whose cells are added to the skip: what is trained unless the paper's is wanted.
RESIDUAL = "_residual"
# Names of methods that are asked for by name.
XTINY, IAC, IAC_LTH, DINTS, DISTILL, SCHEDULE, ENCODER = (
    "xtiny", "iac", "iac_lth", "dints", "distill", "schedule", "encoder",
)  # fmt: skip
# Trains what was found, or any module in the skips, in the frozen backbone.
RETROFIT = "iac_retrofit"

METHODS = {
    method.name: method
    for method in (
        Method(XTINY, refit="nnunet_nas.xtiny.refit:refit"),
        Method(
            IAC,
            suffix="_iac",
            settings="nnunet_nas.iac.settings:IACSettings",
            trainer="nnunet_nas.iac.trainers:nnUNetTrainerIACSearch",
            in_backbone=True,
            refit="nnunet_nas.iac.refit:refit",
            chance="nnunet_nas.iac.chance:by_chance",
            answer="cells",
            check="nnunet_nas.iac.genotype:check_answer",
            draw="nnunet_nas.iac.drawing.cell:draw_answer",
            history="nnunet_nas.iac.history:CellHistory",
            dynamics="nnunet_nas.iac.dynamics:dynamics",
            averaged="nnunet_nas.iac.dynamics:averaged",
            cost="nnunet_nas.iac.cost:bilevel",
            retrofit_cost="nnunet_nas.iac.cost:retrofit",
        ),
        Method(
            IAC_LTH,
            suffix="_iaclth",
            settings="nnunet_nas.iac.settings:IACLTHSettings",
            trainer="nnunet_nas.iac.trainers:nnUNetTrainerIACLTHSearch",
            in_backbone=True,
            refit="nnunet_nas.iac.refit:refit",
            chance="nnunet_nas.iac.chance:by_chance",
            answer="cells",
            check="nnunet_nas.iac.genotype:check_answer",
            draw="nnunet_nas.iac.drawing.cell:draw_answer",
            history="nnunet_nas.iac.history:CellHistory",
            dynamics="nnunet_nas.iac.dynamics:dynamics",
            averaged="nnunet_nas.iac.dynamics:averaged",
            cost="nnunet_nas.iac.cost:one_level",
            retrofit_cost="nnunet_nas.iac.cost:retrofit",
        ),
        Method(
            RETROFIT,
            settings="nnunet_nas.skips.settings:IACRetrofitSettings",
            trainer="nnunet_nas.skips.retrofit:nnUNetTrainerIACRetrofit",
            cost="nnunet_nas.skips.cost:retrofit_phases",
        ),
        Method(
            DINTS,
            suffix="_dints",
            settings="nnunet_nas.dints.settings:DiNTSSettings",
            trainer="nnunet_nas.dints.trainers:nnUNetTrainerDiNTSSearch",
            refit="nnunet_nas.dints.refit:refit",
            chance="nnunet_nas.dints.chance:by_chance",
            answer="topology",
            check="nnunet_nas.dints.topology:check_answer",
            draw="nnunet_nas.dints.drawing:draw_answer",
            history="nnunet_nas.dints.history:TopologyHistory",
            dynamics="nnunet_nas.dints.dynamics:dynamics",
            cost="nnunet_nas.dints.cost:phases",
            has_control=True,
        ),
        Method(
            DISTILL,
            settings="nnunet_nas.distill.settings:DistillSettings",
            trainer="nnunet_nas.distill.trainer:nnUNetTrainerDistill",
            cost="nnunet_nas.distill.cost:phases",
            beside="nnunet_nas.distill.cost:teacher",
        ),
        Method(
            SCHEDULE,
            settings="nnunet_nas.schedule.settings:ScheduleSettings",
            trainer="nnunet_nas.schedule.trainer:nnUNetTrainerScheduled",
            cost="nnunet_nas.search_cost:plain_phases",
        ),
        Method("skip", in_backbone=True),
        Method(ENCODER),
        Method("width"),
    )
}


def with_settings() -> list[str]:
    """Names of the methods that have settings."""
    return [name for name, method in METHODS.items() if method.settings]


def with_cost() -> list[str]:
    """Names of the methods whose cost can be predicted."""
    return [name for name, method in METHODS.items() if method.cost]


def searches() -> list[str]:
    """Names of the methods whose trainer searches."""
    return [name for name, method in METHODS.items() if method.searches]


def retrofitted() -> list[str]:
    """Names of the methods whose results the retrofit trains."""
    return [name for name, method in METHODS.items() if method.in_backbone]


def trainers() -> list[str]:
    """Class names of all trainers."""
    return [method.trainer_name for method in METHODS.values() if method.trainer_name]


def retrofit_trainer() -> str:
    """Class name of the trainer that trains modules in a frozen backbone."""
    return str(METHODS[RETROFIT].trainer_name)


def result_trainer(name: str | None) -> str | None:
    """Class name of the trainer that configurations of a method are meant for; None for nnU-Net's own.

    What was searched in a frozen backbone is trained there; other modules are trained there only if a user wants that.
    """
    method = METHODS.get(str(name))
    return retrofit_trainer() if method is not None and method.in_backbone and method.searches else None


def has_control(name: str | None) -> bool:
    """Whether configurations of a method stand beside nnU-Net's own network, made as wide as their memory allows."""
    method = METHODS.get(str(name))
    return method is not None and method.has_control


def part(reference: str | None) -> Any:
    """What a `module:name` of the table stands for."""
    module, name = str(reference).split(":")
    return getattr(importlib.import_module(module), name)


def settings_class(name: str) -> type:
    """The dataclass of a method's settings.

    Raises:
        DataProblem: unknown method, or one without settings.
    """
    known = with_settings()
    if name not in known:
        raise DataProblem(f"nas_settings: unknown method {name!r}; known: {', '.join(known)}: correct the plans")
    found: type = part(METHODS[name].settings)
    return found
