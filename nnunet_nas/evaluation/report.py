"""A comparison of models put together: per class and for the foreground mean, per data set or fold, and combined.

The first model is the reference; each other one is compared with it. Per case, the foreground mean is the mean over the
classes that both models have a value for. Holm's correction is over the classes of a pair, and for the foreground mean
over the models compared with the first; that of equivalence is over these models for every row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.errors import DataProblem
from nnunet_nas.evaluation.absent import Absent, compare_absent, completed, reason_to_withhold
from nnunet_nas.evaluation.costs import Cost
from nnunet_nas.evaluation.equivalence import POWER
from nnunet_nas.evaluation.intervals import RESAMPLES, Floats, by_patient
from nnunet_nas.evaluation.paired import EXACT_CASES, Comparison, compare, fisher, holm
from nnunet_nas.evaluation.summaries import Model, class_names, listed

FOREGROUND = "foreground mean"


@dataclass(frozen=True)
class Metric:
    """What is compared.

    Attributes:
        name: as in summary.json, or as `surface_metrics` calls it.
        unit: `mm`, or empty for a share.
        higher_is_better: False for distances.
        margin: of equivalence, in the unit.
        digits: shown behind the point.
    """

    name: str
    unit: str
    higher_is_better: bool
    margin: float
    digits: int

    @property
    def best(self) -> float:
        """The value that cannot be better."""
        return 1.0 if self.higher_is_better else 0.0

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


@dataclass(frozen=True)
class Group:
    """Cases that are compared together: those of a data set, or of one of its folds.

    Attributes:
        dataset: name of the data set; empty if the models are given by path.
        fold: `fold_0` if only this fold is compared, otherwise empty.
        models: two or more, with these cases at least.
        cases: names of the cases that are compared.
        patients: whose cases they are, by case; empty if each case counts for itself.
    """

    dataset: str
    fold: str
    models: Sequence[Model]
    cases: Sequence[str]
    patients: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the cases are, in words."""
        folds = [self.fold] if self.fold else self.models[0].folds
        numbers = ", ".join(fold.removeprefix("fold_") for fold in folds)
        what = f"validation of fold{'s' if len(folds) > 1 else ''} {numbers}" if folds else "predictions"
        return f"{self.dataset}, {what}" if self.dataset else what

    @property
    def size(self) -> str:
        """How many cases there are, and of how many patients."""
        patients = f" of {len({self.patients[case] for case in self.cases})} patients" if self.patients else ""
        return f"{len(self.cases)} cases{patients}"

    def patients_of(self, cases: Sequence[str]) -> list[str] | None:
        """Whose cases these are; None if each case counts for itself."""
        return [self.patients[case] for case in cases] if self.patients else None


@dataclass(frozen=True)
class Row:
    """One class, or the foreground mean.

    Attributes:
        key: of the class in summary.json; `foreground mean`.
        name: what the data set calls it.
        cases: names of the cases compared.
        first: values of the first model, means over its runs, (cases,).
        second: values of the second model, (cases,).
        comparison: None without a single case.
        p_holm: the Wilcoxon p-value after Holm's correction; None without a single case.
        undefined: cases without a value in both models: the class is neither in the label nor predicted.
        one_sided: cases without a value in one model: the class is not in the label, and the other model predicts it.
        absent: what the models predict where the class is not in the label; None if it always is.
        patients: whose case each one is, (cases,); None if each case counts for itself.
    """

    key: str
    name: str
    cases: Sequence[str]
    first: Floats
    second: Floats
    comparison: Comparison | None
    p_holm: float | None = None
    undefined: Sequence[str] = ()
    one_sided: Sequence[str] = ()
    absent: Absent | None = None
    patients: Sequence[str] | None = None

    @property
    def differences(self) -> Floats:
        """Second - first of what counts once, cases or patients."""
        found = self.second - self.first
        return found if self.patients is None else by_patient(found[None], self.patients)[0]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, without the values of the cases."""
        return {
            "class": self.key,
            "name": self.name,
            **(self.comparison.to_json() if self.comparison else {"cases": 0}),
            "p_holm": self.p_holm,
            "undefined_in_both": list(self.undefined),
            "undefined_in_one": list(self.one_sided),
            "absent": None if self.absent is None else asdict(self.absent),
        }


@dataclass(frozen=True)
class PairTable:
    """A metric of two models.

    Attributes:
        group: the cases.
        metric: what is compared.
        position: of the second model in `group.models`; the first one is at 0.
        rows: the foreground mean, if there are several classes, and each class.
    """

    group: Group
    metric: Metric
    position: int
    rows: Sequence[Row]

    @property
    def overall(self) -> Row:
        """The foreground mean, or the only class."""
        return self.rows[0]

    @property
    def letters(self) -> tuple[str, str]:
        """What the two models are called in tables and pictures."""
        return letter(0), letter(self.position)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "dataset": self.group.dataset,
            "fold": self.group.fold,
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "higher_is_better": self.metric.higher_is_better,
            "first": self.group.models[0].name,
            "second": self.group.models[self.position].name,
            "rows": [row.to_json() for row in self.rows],
        }


@dataclass(frozen=True)
class Combined:
    """Fisher's combination of the overall p-values of several tables.

    Attributes:
        metric: name of what is compared.
        what: which comparisons, in words.
        p_values: that were combined.
        p_fisher: the combined one.
        gains: comparisons with a positive effect, the second model being better.
        losses: comparisons with a negative one.
        independent: False if the comparisons share their cases, so that the combined p-value is too small.
    """

    metric: str
    what: str
    p_values: Sequence[float]
    p_fisher: float
    gains: int
    losses: int
    independent: bool


@dataclass(frozen=True)
class Report:
    """A finished comparison.

    Attributes:
        groups: one per data set.
        costs: of each group's models.
        tables: by group (or fold), metric and second model, in this order.
        combined: over several tables.
        notes: what a reader must know, one sentence each.
        settings: how the numbers were made.
    """

    groups: Sequence[Group]
    costs: Sequence[Sequence[Cost]]
    tables: Sequence[PairTable]
    combined: Sequence[Combined]
    notes: Sequence[str]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, without the values of the cases."""
        return {
            "models": [
                _model_json(group, position, cost)
                for group, costs in zip(self.groups, self.costs, strict=True)
                for position, cost in enumerate(costs)
            ],
            "cases": {group.dataset: list(group.cases) for group in self.groups},
            "settings": self.settings,
            "comparisons": [table.to_json() for table in self.tables],
            "combined": [asdict(combined) for combined in self.combined],
            "notes": list(self.notes),
        }


def letter(position: int) -> str:
    """A, B, ... for the models, in the order given; M27 and so on beyond Z."""
    return chr(ord("A") + position) if position < 26 else f"M{position + 1}"


def split_by_fold(group: Group) -> list[Group]:
    """The same cases, each fold of its own.

    Raises:
        DataProblem: the models were trained with different splits.
    """
    by_fold: dict[str, list[str]] = {}
    for case in group.cases:
        folds = {run.cases[case].fold for model in group.models for run in model.runs}
        if len(folds) > 1:
            raise DataProblem(
                f"case {case} was validated in {' and '.join(sorted(folds))}, depending on the model: the models were "
                f"trained with different splits, compare them without --per_fold"
            )
        by_fold.setdefault(folds.pop(), []).append(case)
    return [replace(group, fold=fold, cases=cases) for fold, cases in sorted(by_fold.items())]


def compare_group(group: Group, metric: Metric, *, seed: int) -> list[PairTable]:
    """A table for each model but the first, compared with the first.

    Args:
        group: models and cases.
        metric: which all cases have.
        seed: of the bootstrap.
    """
    tables = [
        PairTable(group, metric, position, _rows(group, position, metric, seed=seed))
        for position in range(1, len(group.models))
    ]
    corrected = _with_holm([table.overall for table in tables])
    found = [[overall, *table.rows[1:]] for table, overall in zip(tables, corrected, strict=True)]
    by_model = zip(*map(_for_several_models, zip(*found, strict=True)), strict=True)
    return [replace(table, rows=list(rows)) for table, rows in zip(tables, by_model, strict=True)]


def combine(tables: Sequence[PairTable]) -> list[Combined]:
    """Fisher's combination wherever there is more than one comparison.

    For each model over the data sets or folds, and for each of those over the models compared with the first.

    Args:
        tables: of all groups and metrics.
    """
    found = []
    for metric in dict.fromkeys(table.metric for table in tables):
        ours = [table for table in tables if table.metric == metric]
        for position in sorted({table.position for table in ours}):
            chosen = [table for table in ours if table.position == position]
            kind = "folds" if chosen[0].group.fold else "data sets"
            pair = f"{letter(position)} - {letter(0)}"
            found.append(_combined(metric, f"{pair} over {len(chosen)} {kind}", chosen, independent=True))
        for title in dict.fromkeys(table.group.title for table in ours):
            chosen = [table for table in ours if table.group.title == title]
            what = f"{len(chosen)} models against {letter(0)}, {title}"
            found.append(_combined(metric, what, chosen, independent=False))
    return [combined for combined in found if combined is not None]


def notes_on(tables: Sequence[PairTable]) -> list[str]:
    """What a reader must know about cases that were not compared, one sentence each."""
    notes = []
    for table in tables:
        one, other = table.letters
        where = f"{table.group.title}, {table.metric.name}, {other} - {one}"
        notes += [f"{where}: {note}" for row in table.rows for note in _notes_on_row(row)]
        notes += [f"{where}: {note}" for note in _note_on_power(table)]
    return notes


def settings_json(
    *, seed: int, tolerance: float | Mapping[str, float] | None, patients: bool = False, runs: bool = False
) -> dict[str, Any]:
    """How the numbers were made."""
    what = "the patients, each with the mean over its cases" if patients else "the cases"
    interval = (
        f"BCa bootstrap of the mean difference over {what}, {RESAMPLES} resamples (percentile where BCa is degenerate)"
    )
    return {
        "interval": interval,
        "runs": "cases and runs are resampled (hierarchical), and p is that of a t-test with the error of both"
        if runs
        else None,
        "seed": seed,
        "p_value": f"Wilcoxon signed-rank, two-sided, zeros as Pratt, exact up to {EXACT_CASES} cases",
        "p_holm": "Holm over the classes of a pair; the foreground mean over the models compared with the first",
        "effect": "matched-pairs rank-biserial correlation, positive where the second model is better",
        "equivalence": "two one-sided paired t-tests of the mean difference against the margin, Holm over the models "
        "compared with the first; a verdict needs the 90 % bootstrap interval on the same side, and is withheld where "
        "what a model predicts in cases without the class contradicts it",
        "absent": "McNemar's exact test of the cases without the class in which only one model predicts it",
        "surface_tolerance_mm": tolerance,
    }


def _notes_on_row(row: Row) -> list[str]:
    notes = []
    if row.undefined and row.key != FOREGROUND:
        notes.append(
            f"{row.name} is neither in the label nor predicted in {len(row.undefined)} case(s), which are not used: "
            f"{listed(row.undefined)}"
        )
    if row.one_sided:
        notes.append(
            f"{row.name} is not in the label and only one of the models predicts it in {len(row.one_sided)} case(s), "
            f"which are not used: {listed(row.one_sided)}"
        )
    found = row.comparison.equivalence if row.comparison else None
    if found and found.verdict == "withheld":
        notes.append(f"the verdict on {row.name} is withheld: {found.withheld}")
    return notes


def _note_on_power(table: PairTable) -> list[str]:
    """How many cases could have settled the question, if these could not."""
    found = table.overall.comparison
    if found is None or found.equivalence is None or found.cases_needed is None:
        return []
    here = found.cases if found.patients is None else found.patients
    if found.equivalence.verdict not in ("unclear", "not worse", "not better") or here >= found.cases_needed:
        return []
    what = "cases" if found.patients is None else "patients"
    return [
        f"about {found.cases_needed} {what} are needed to show equivalence of {table.overall.name} within "
        f"±{table.metric.margin:g} at {100 * POWER:g} % power if the models do not differ (standard deviation of the "
        f"differences {found.deviation:.3g}); here are {here}"
    ]


def _model_json(group: Group, position: int, cost: Cost) -> dict[str, Any]:
    model = group.models[position]
    return {
        "letter": letter(position),
        "name": model.name,
        "dataset": group.dataset,
        "folder": None if model.home is None else str(model.home),
        "configuration": model.configuration,
        "folds": model.folds,
        "runs": [run.name for run in model.runs],
        "costs": cost.to_json(),
    }


def _rows(group: Group, position: int, metric: Metric, *, seed: int) -> list[Row]:
    names = class_names(group.models[0])
    pair = group.models[0], group.models[position]
    first, second = (_values(model, group.cases, list(names), metric.name) for model in pair)
    # What no run has a value for is in no label; where all have one, only the voxels of the label tell.
    empty = np.isnan(first).any(axis=0) | np.isnan(second).any(axis=0)
    empty |= _values(pair[0], group.cases, list(names), "n_ref")[0] == 0

    def row(key: str, name: str, columns: slice) -> Row:
        chosen = first[..., columns], second[..., columns]
        return _row(group, (key, name), chosen, empty[:, columns], metric, seed=seed)

    rows = [row(key, name, slice(column, column + 1)) for column, (key, name) in enumerate(names.items())]
    overall = [row(FOREGROUND, FOREGROUND, slice(None))] if len(rows) > 1 else []
    return [*overall, *_with_holm(rows)]


def _with_holm(rows: Sequence[Row]) -> list[Row]:
    """The rows with their p-values corrected for each other's presence; rows without a case count as none."""
    corrected = iter(holm([row.comparison.p_value for row in rows if row.comparison]))
    return [replace(row, p_holm=next(corrected)) if row.comparison else row for row in rows]


def _for_several_models(rows: Sequence[Row]) -> list[Row]:
    """One row of each model compared with the first, with the tests of equivalence corrected for their number."""
    tested = [row.comparison.equivalence for row in rows if row.comparison and row.comparison.equivalence]
    corrected = iter(holm([found.p_value for found in tested]))

    def correct(row: Row) -> Row:
        if row.comparison is None or row.comparison.equivalence is None:
            return row
        found = replace(row.comparison.equivalence, models=len(tested), p_holm=next(corrected))
        return replace(row, comparison=replace(row.comparison, equivalence=found))

    return [correct(row) for row in rows]


def _row(
    group: Group,
    title: tuple[str, str],
    values: tuple[Floats, Floats],
    empty: NDArray[np.bool_],
    metric: Metric,
    *,
    seed: int,
) -> Row:
    """A class, or the mean over several.

    Args:
        group: the cases.
        title: key and name.
        values: of both models, (runs, cases, classes), NaN where there is none.
        empty: whether the label is without the class, (cases, classes).
        metric: what they are of.
        seed: of the bootstrap.
    """
    first, second, used = _means_of_common(*values)
    full = completed(*values, best=metric.best)
    # Pairs of values of which some are missing, but not all.
    dropped = np.isnan(np.concatenate(values)).any(axis=0) & np.isfinite(full[0]).all(axis=0)
    one_sided = np.any(dropped, axis=1)

    def named(chosen: NDArray[np.bool_]) -> list[str]:
        return [case for case, wanted in zip(group.cases, chosen, strict=True) if wanted]

    def compared(one: Floats, other: Floats, chosen: NDArray[np.bool_]) -> Comparison | None:
        if not chosen.any():
            return None
        patients, better = group.patients_of(named(chosen)), metric.higher_is_better
        pair = one[:, chosen], other[:, chosen]
        return compare(*pair, margin=metric.margin, higher_is_better=better, patients=patients, seed=seed)

    some = np.any(empty, axis=1)
    one, other = (_share_predicted(model, empty)[some] for model in values)
    absent = compare_absent(one, other, group.patients_of(named(some)))
    found = compared(first, second, used)
    if found and found.equivalence:
        counted = compared(*_means_of_common(*full)) if dropped.any() else None
        with_dropped = counted.equivalence if counted else None
        why = reason_to_withhold(found.equivalence, absent, with_dropped, int(one_sided.sum()))
        found = replace(found, equivalence=replace(found.equivalence, withheld=why))
    return Row(
        key=title[0],
        name=title[1],
        cases=named(used),
        first=first.mean(axis=0)[used],
        second=second.mean(axis=0)[used],
        comparison=found,
        undefined=named(~used & ~one_sided),
        one_sided=named(~used & one_sided),
        absent=absent,
        patients=group.patients_of(named(used)),
    )


def _values(model: Model, cases: Sequence[str], keys: Sequence[str], metric: str) -> Floats:
    """(runs, cases, classes), NaN where there is no value."""
    found = [
        [[run.cases[case].metrics[key].get(metric, math.nan) for key in keys] for case in cases] for run in model.runs
    ]
    return np.array(found, dtype=np.float64)


def _means_of_common(first: Floats, second: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Means over the classes that all runs of both models have, (runs, cases) each, and which cases have any."""
    common = np.isfinite(first).all(axis=0) & np.isfinite(second).all(axis=0)
    counts = common.sum(axis=1)
    sums = (np.where(common, values, 0.0).sum(axis=2) for values in (first, second))
    one, other = (np.divide(each, counts, out=np.full(each.shape, math.nan), where=counts > 0) for each in sums)
    return one, other, counts > 0


def _share_predicted(values: Floats, empty: NDArray[np.bool_]) -> Floats:
    """Of the absent classes of each case, the share that is predicted, a mean over runs, (cases,)."""
    predicted = (np.isfinite(values) & empty).sum(axis=2).mean(axis=0)
    return predicted / np.maximum(empty.sum(axis=1), 1)


def _combined(metric: Metric, what: str, tables: Sequence[PairTable], *, independent: bool) -> Combined | None:
    found = [table.overall.comparison for table in tables if table.overall.comparison]
    if len(found) < 2:
        return None
    p_values = [comparison.p_value for comparison in found]
    return Combined(
        metric=metric.name,
        what=what,
        p_values=p_values,
        p_fisher=fisher(p_values),
        gains=sum(comparison.effect > 0 for comparison in found),
        losses=sum(comparison.effect < 0 for comparison in found),
        independent=independent,
    )
