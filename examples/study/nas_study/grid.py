"""A study as a grid of cells: what there is to do, in which order, and in which files it is recorded.

A cell is one training's worth of answer: a data set, a base, a method (or `base`, the plain training) and a seed. It
has three steps: `derive` finds or makes its configuration, `train` trains it on each fold, `predict` predicts the
hold-out. This module knows files and names only; it imports neither torch nor nnU-Net nor Snakemake.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.methods import METHODS, settings_class
from nnunet_nas.settings import checked_values

BASE = "base"
TRAINER = "nnUNetTrainerScheduled"
DEFAULTS = {
    "plans": "nnUNetPlans",
    "device": "cuda",
    "seeds": [0],
    "folds": [0],
    "schedule": {},
    "mirroring": True,
    "margin": 0.01,
    "methods": {},
}
# Each method is one of these kinds, by the key that it has.
KINDS = ("width", "select", "search", "skip", "narrowed_to", "as_wide_as", "random_of", "control_of", "transfer")
# Kinds that wait for what another method on the same data set and base found, and keys that name one.
_MADE_AFTER = ("narrowed_to", "as_wide_as", "random_of")
_NAMES_ANOTHER = (*_MADE_AFTER, "control_of", "against")
CELL_SEARCHES = ("iac", "iac_lth")


@dataclass(frozen=True, order=True)
class Cell:
    """One cell of the grid."""

    dataset: int
    base: str
    method: str
    seed: int

    @property
    def folder(self) -> str:
        """Below the study's folder."""
        return f"{self.dataset}/{self.base}/{self.method}/s{self.seed}"

    @property
    def name(self) -> str:
        """For tables and messages."""
        return f"data set {self.dataset}, base {self.base}, {self.method}, seed {self.seed}"

    def of(self, method: str) -> Cell:
        """The cell of another method beside it."""
        return Cell(self.dataset, self.base, method, self.seed)

    @property
    def configuration(self) -> str:
        """What the base's plain training is called in the plans; the base of everything that is derived."""
        return f"{self.base}_s{self.seed}"

    @property
    def own_configuration(self) -> str:
        """Where a method needs settings of its own beside the base's."""
        return f"{self.configuration}_{self.method}"


class Study:
    """A study that makes sense.

    Attributes:
        content: of its file, with defaults.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        """Checks what a schema cannot.

        Raises:
            UsageError: in one line.
        """
        self.content = {**DEFAULTS, **content}
        self.plans = f"{self.content['plans']}_{self.content['study']}"
        for name in self.content["methods"]:
            self._check_method(name)
        for place, schedule in self._schedules():
            _check_settings("schedule", schedule, place)
        for name, base in self.content["bases"].items():
            self._known("data set", base.get("datasets", []), self.datasets, f"bases.{name}.datasets")
        self._check_reach()

    def _check_reach(self) -> None:
        """What a cell needs or is compared with must be in the grid, or it would be made unannounced."""
        cells = self.cells()
        known = set(cells)
        for cell in cells:
            method = self.method(cell)
            needed = [cell.of(method[key]) for key in _NAMES_ANOTHER if key in method]
            needed += [self.source(cell)] if "transfer" in method else []
            for other in needed:
                if other not in known:
                    raise UsageError(
                        f"methods.{cell.method} needs {other.method} on data set {other.dataset} and base "
                        f"{other.base}, where the study has none: confine one of them with datasets or bases"
                    )

    @property
    def datasets(self) -> list[int]:
        """Their numbers."""
        return [int(number) for number in self.content["datasets"]]

    @property
    def folds(self) -> list[int | str]:
        """That everything is trained on."""
        return list(self.content["folds"])

    def kind(self, method: str) -> str:
        """One of `KINDS`, or `base`."""
        if method == BASE:
            return BASE
        return next(kind for kind in KINDS if kind in self.content["methods"][method])

    def method(self, cell: Cell) -> dict[str, Any]:
        """Settings of a cell's method."""
        found: dict[str, Any] = self.content["methods"].get(cell.method, {})
        return found

    def _check_method(self, name: str) -> None:
        method = self.content["methods"][name]
        kinds = [kind for kind in KINDS if kind in method]
        place = f"methods.{name}"
        if len(kinds) != 1:
            raise UsageError(f"{place} must have exactly one of {', '.join(KINDS)}, not {', '.join(kinds) or 'none'}")
        self._check_named(place, method)
        self._known("base", method.get("bases", []), self.content["bases"], f"{place}.bases")
        self._known("data set", method.get("datasets", []), self.datasets, f"{place}.datasets")
        if "search" in method:
            self._check_search(name, method)
        for key, owner in (("settings", "search"), ("as_long_as", "control_of")):
            if key in method and owner not in method:
                raise UsageError(f"{place}.{key} belongs to a method with {owner}")
        for key in ("retrofit", "start"):
            if key in method and method.get("search") not in CELL_SEARCHES:
                raise UsageError(f"{place}.{key} belongs to a method with search: iac or iac_lth")
        if "transfer" in method:
            self._check_transfer(place, method["transfer"])
        if "distill" in method:
            if "transfer" in method or "control_of" in method or self.searched_by(name) in CELL_SEARCHES:
                raise UsageError(f"{place}.distill belongs to a method whose result is trained plainly, from nothing")
            _check_settings("distill", method["distill"], f"{place}.distill")

    def _check_named(self, place: str, method: dict[str, Any]) -> None:
        """Other methods that a method names."""
        methods = self.content["methods"]
        for key in _NAMES_ANOTHER:
            if key in method and method[key] != BASE:
                self._known("method", [method[key]], methods, f"{place}.{key}")
        if "control_of" in method and methods.get(method["control_of"], {}).get("search") not in CELL_SEARCHES:
            raise UsageError(f"{place}.control_of must name a method that searches for cells (iac, iac_lth)")
        if "random_of" in method and "search" not in methods.get(method["random_of"], {}):
            raise UsageError(f"{place}.random_of must name a method that searches")

    def _check_search(self, name: str, method: dict[str, Any]) -> None:
        _check_settings(method["search"], method.get("settings", {}), f"methods.{name}.settings")
        _check_settings("iac_retrofit", method.get("retrofit", {}), f"methods.{name}.retrofit")
        if method["search"] not in CELL_SEARCHES:
            return
        for other, theirs in self.content["methods"].items():
            alike = theirs.get("search") == method["search"]
            if alike and theirs.get("settings", {}) != method.get("settings", {}):
                raise UsageError(
                    f"methods.{name} and methods.{other} both search by {method['search']} with other settings in one "
                    f"backbone, where nnU-Net keeps one search: make two studies of it"
                )
            if theirs.get("search") in CELL_SEARCHES and theirs.get("retrofit", {}) != method.get("retrofit", {}):
                raise UsageError(
                    f"methods.{name} and methods.{other} have other retrofit settings for one backbone: give both the "
                    f"same, or make two studies of it"
                )

    def _check_transfer(self, place: str, transfer: dict[str, Any]) -> None:
        self._known("data set", [transfer["dataset"]], self.datasets, f"{place}.transfer.dataset")
        self._known("method", [transfer["method"]], self.content["methods"], f"{place}.transfer.method")
        self._known("base", [transfer["base"]] if "base" in transfer else [], self.content["bases"], f"{place}.base")

    @staticmethod
    def _known(what: str, names: list[Any], known: Any, place: str) -> None:
        for name in names:
            if name not in known:
                raise UsageError(f"{place}: there is no {what} {name}; there are: {', '.join(map(str, known))}")

    def _schedules(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield "schedule", self.content["schedule"]
        for part in ("bases", "methods"):
            for name, entry in self.content[part].items():
                yield f"{part}.{name}.schedule", entry.get("schedule", {})

    def searched_by(self, method: str) -> str | None:
        """The search that a method's answer comes from, or stands in place of; None where there is none."""
        methods = self.content["methods"]
        own = methods.get(method, {})
        if "transfer" in own:
            own = methods.get(own["transfer"]["method"], {})
        if "random_of" in own:
            own = methods.get(own["random_of"], {})
        found: str | None = own.get("search")
        return found

    def schedule(self, cell: Cell) -> dict[str, Any]:
        """`nas_settings.schedule` of a cell's plain training."""
        base = self.content["bases"][cell.base]
        return {**self.content["schedule"], **base.get("schedule", {}), "seed": cell.seed}

    def base_settings(self, base: str) -> dict[str, Any]:
        """What a base's configuration depends on, beside the seed."""
        entry = self.content["bases"][base]
        return {**entry, "schedule": {**self.content["schedule"], **entry.get("schedule", {})}}

    def cells(self) -> list[Cell]:
        """All of them, bases first."""
        return [
            Cell(dataset, base, method, seed)
            for dataset in self.datasets
            for base, entry in self.content["bases"].items()
            if dataset in entry.get("datasets", self.datasets)
            for method in self.methods_of(dataset, base)
            for seed in self.content["seeds"]
        ]

    def configurations(self, dataset: int) -> list[str]:
        """Of the user's plans, that the bases of a data set start from."""
        bases = self.content["bases"].values()
        return sorted({base["configuration"] for base in bases if dataset in base.get("datasets", self.datasets)})

    def methods_of(self, dataset: int, base: str) -> list[str]:
        """The base itself, then the methods that apply; what is transferred to a data set is not found there."""
        found = [BASE]
        for name, method in self.content["methods"].items():
            here = dataset in method.get("datasets", self.datasets) and base in method.get("bases", [base])
            if here and method.get("transfer", {}).get("dataset") != dataset:
                found.append(name)
        return found

    def reference(self, method: str) -> str:
        """What a method is compared with first: the base, or what it says."""
        found: str = self.content["methods"].get(method, {}).get("against", BASE)
        return found

    def trainer(self, cell: Cell) -> str:
        """Class name of what trains a cell's configuration."""
        if "distill" in self.method(cell):
            return str(METHODS["distill"].trainer_name)
        return _retrofit() if self.searched_by(cell.method) in CELL_SEARCHES else TRAINER

    def derive_needs(self, cell: Cell) -> list[str]:
        """Files that must be there before a cell's configuration can be found or made."""
        kind, method = self.kind(cell.method), self.method(cell)
        needs = [prepared(cell)]
        if kind == "search" and method["search"] in CELL_SEARCHES:
            needs += [trained(cell.of(BASE), fold) for fold in self.folds[:1]]
        if kind in _MADE_AFTER:
            needs.append(derived(cell.of(method[kind])))
        if kind == "control_of":
            needs += [trained(cell.of(BASE), fold) for fold in self.folds]
            if method.get("as_long_as") == "seconds":
                needs += [trained(cell.of(method["control_of"]), fold) for fold in self.folds[:1]]
        if kind == "transfer":
            needs.append(derived(self.source(cell)))
        return needs

    def train_needs(self, cell: Cell, fold: int | str) -> list[str]:
        """Files that must be there before a fold can be trained."""
        needs = [derived(cell)]
        if cell.method != BASE and (self.trainer(cell) == _retrofit() or "distill" in self.method(cell)):
            needs.append(trained(cell.of(BASE), fold))
        return needs

    def source(self, cell: Cell) -> Cell:
        """Where what a cell transfers was found."""
        transfer = self.method(cell)["transfer"]
        return Cell(transfer["dataset"], transfer.get("base", cell.base), transfer["method"], cell.seed)

    def needs_gpu(self, step: str, cell: Cell) -> bool:
        """Whether a step computes with networks on a GPU."""
        if self.content["device"] != "cuda":
            return False
        return step != "derive" or self.kind(cell.method) in ("search", "select")


def prepared(cell: Cell) -> str:
    """Record of the base's configuration."""
    return f"{cell.dataset}/{cell.base}/prepared_s{cell.seed}.json"


def derived(cell: Cell) -> str:
    """Record of a cell's configuration."""
    return f"{cell.folder}/derived.json"


def trained(cell: Cell, fold: int | str) -> str:
    """Record of a cell's training on a fold."""
    return f"{cell.folder}/trained_{fold}.json"


def predicted(cell: Cell) -> str:
    """Record of a cell's prediction of the hold-out."""
    return f"{cell.folder}/predicted.json"


def _retrofit() -> str:
    from nnunet_nas.methods import retrofit_trainer

    return retrofit_trainer()


def _check_settings(method: str, values: dict[str, Any], place: str) -> None:
    try:
        checked_values(settings_class(method), values)
    except DataProblem as error:
        raise UsageError(f"{place}: {str(error).partition(';')[0]}") from error


def read_study(content: Any, schema: Path) -> Study:
    """A study from the content of its file.

    Raises:
        UsageError: what is wrong, in one line.
    """
    from jsonschema import Draft7Validator

    plain = json.loads(json.dumps(content))
    errors = sorted(
        Draft7Validator(json.loads(schema.read_text())).iter_errors(plain), key=lambda error: list(map(str, error.path))
    )
    if errors:
        raise UsageError(_one_line(errors[0]))
    return Study(plain)


def _one_line(error: Any) -> str:
    """A schema's complaint as we write errors: where, what, and what is allowed."""
    place = ".".join(map(str, error.absolute_path)) or "the study"
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        near = difflib.get_close_matches(unknown, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{place}: unknown key {unknown}; {hint}"
    return f"{place}: {' '.join(error.message.split())}"
