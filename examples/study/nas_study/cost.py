"""What a study costs at most, before it starts: trainings, iterations, and multiply-accumulates where plans are there.

A training of a configuration that nobody knows yet is counted as one of its base.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas_study import records
from nas_study.grid import CELL_SEARCHES, Cell, Study, predicted
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.errors import NasError
from nnunet_nas.methods import settings_class
from nnunet_nas.plans import Plans
from nnunet_nas.settings import checked_values
from nnunet_nas.xtiny.request import TinySettings

# Snakemake's own folder: counting networks takes seconds, and the workflow is read again and again.
_KNOWN = Path(".snakemake/study_cost.json")


@dataclass(frozen=True)
class Part:
    """A training or a search.

    Attributes:
        what: `training`, `search`, `retrofit` or `race`, as it is counted.
        method: whose settings say how long it is.
        settings: that they are.
    """

    what: str
    method: str
    settings: dict[str, Any]

    @property
    def iterations(self) -> int:
        """At most."""
        settings: Any = settings_class(self.method)(**checked_values(settings_class(self.method), self.settings))
        return int(settings.num_epochs * settings.num_iterations_per_epoch)


def parts(study: Study, cell: Cell) -> list[Part]:
    """Everything that a cell trains."""
    method, schedule = study.method(cell), study.schedule(cell)
    kind = study.kind(cell.method)
    found = [Part("search", method["search"], method.get("settings", {}))] if kind == "search" else []
    if kind == "select" and method["select"].get("rule") == "race":
        # In iterations of the base, as its budget is.
        budget = method["select"].get("budget", TinySettings.race_budget)
        found = [Part("race", "schedule", {"num_epochs": budget, "num_iterations_per_epoch": 1})]
    taught = {"distill": method["distill"]} if "distill" in method else {"schedule": {}}
    one = [
        Part("training", name, {**schedule, **method.get("schedule", {}), **settings})
        for name, settings in taught.items()
    ]
    if kind in ("search", "random_of") and study.searched_by(cell.method) in CELL_SEARCHES:
        theirs = study.content["methods"][method.get("random_of", cell.method)]
        one = [Part("retrofit", "iac_retrofit", theirs.get("retrofit", {}))]
    if kind == "control_of":
        other = study.content["methods"][method["control_of"]]
        one = [Part("training", "iac_retrofit", other.get("retrofit", {}))]
        if method.get("as_long_as", "retrofit") != "retrofit":
            one.append(Part("training", other["search"], other.get("settings", {})))
    if kind == "transfer" and study.searched_by(cell.method) in CELL_SEARCHES:
        one = [Part("retrofit", "iac_retrofit", {})]
    return found + one * len(study.folds)


def announcement(study: Study) -> str:
    """What is ahead, in words."""
    cells = study.cells()
    counted: Counter[str] = Counter()
    iterations: Counter[str] = Counter()
    for cell in cells:
        for part in parts(study, cell):
            counted[part.what] += 1
            iterations[cell.method] += part.iterations
    selections = sum(study.kind(cell.method) == "select" for cell in cells)
    done = sum(records.state(predicted(cell)) == "done" for cell in cells)
    sizes = ", ".join(
        f"{len(study.content[part])} {part}" for part in ("datasets", "bases", "methods", "seeds", "folds")
    )
    names = ", ".join(f"{number} {what}{'e' * (what == 'search') + 's'}" for what, number in sorted(counted.items()))
    return "\n".join(
        [
            f"study {study.content['study']}: {sizes}; {len(cells)} cells, {done} of them done",
            f"at most {names}, {selections} selections; iterations: {sum(iterations.values()):,} ("
            + ", ".join(f"{method} {number:,}" for method, number in iterations.items())
            + ")",
            _macs_in_words(study, cells),
        ]
    )


def _macs_in_words(study: Study, cells: list[Cell]) -> str:
    total, known, problems = 0.0, 0, []
    for dataset in study.datasets:
        try:
            total += _macs(study, [cell for cell in cells if cell.dataset == dataset], problems)
            known += 1
        except NasError as error:
            problems.append(f"data set {dataset} is not counted ({error})")
    said = f"multiply-accumulates: {total:.3g} at most for {known} of {len(study.datasets)} data sets"
    return "; ".join([*([said] if known else []), *dict.fromkeys(problems)])


def _macs(study: Study, cells: list[Cell], problems: list[str]) -> float:
    """Of the cells of one data set; what cannot be counted of them is added to the problems.

    Raises:
        NasError: it is not planned yet.
    """
    plans = Plans.of(find_preprocessed_dataset(str(cells[0].dataset)), study.content["plans"])
    known = records.read(_KNOWN) or {}
    before, total = len(known), 0.0
    for cell in cells:
        for part in parts(study, cell):
            plain = part.what in ("training", "race") and part.method != "distill"
            counts_like = "training" if plain else part.method
            base = study.content["bases"][cell.base]
            key = _digest([plans.digest(base["configuration"]), base, counts_like, part.settings])
            try:
                if key not in known:
                    known[key] = _per_iteration(plans, base, counts_like, part)
            except NasError as error:
                problems.append(f"{cell.method} is not counted ({error})")
                continue
            total += part.iterations * known[key]
    if len(known) > before and _KNOWN.parent.is_dir():
        records.write(_KNOWN, known)
    return total


def _per_iteration(plans: Plans, base: dict[str, Any], counts_like: str, part: Part) -> float:
    from nnunet_nas.architecture import build_without_weights, network_spec
    from nnunet_nas.complexity import count_macs, training_shape
    from nnunet_nas.search_cost import search_cost
    from nnunet_nas.training_cost import plain_step
    from nnunet_nas.xtiny.widths import capped_features

    spec = network_spec(plans, base["configuration"])
    if "cap" in base:
        spec = spec.with_features(capped_features(spec.architecture["arch_kwargs"]["features_per_stage"], base["cap"]))
    spec = replace(
        spec,
        batch_size=base.get("batch_size", spec.batch_size),
        patch_size=tuple(base.get("patch_size", spec.patch_size)),
    )
    if counts_like in ("training", "distill"):
        teaching = count_macs(build_without_weights(spec), training_shape(spec)) if counts_like == "distill" else 0
        return float(spec.batch_size * (plain_step(spec) + teaching))
    if counts_like == "iac_retrofit":
        from nnunet_nas.iac.cost import most_expensive
        from nnunet_nas.iac.settings import IACLTHSettings
        from nnunet_nas.skips.cost import frozen_step

        return float(spec.batch_size * frozen_step(most_expensive(spec, IACLTHSettings())))
    settings = settings_class(counts_like)(**checked_values(settings_class(counts_like), part.settings))
    cost = search_cost(counts_like, spec, settings)
    return cost.macs / part.iterations


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
