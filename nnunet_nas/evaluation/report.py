"""A comparison of models put together: per class and for the foreground mean, per data set or fold, and combined.

The first model is the reference; each other one is compared with it. Per case, the foreground mean is the mean over the
classes that both models have a value for. Holm's correction is over the classes of a pair, and for the foreground mean
over the models compared with the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.errors import DataProblem
from nnunet_nas.evaluation.costs import Cost
from nnunet_nas.evaluation.paired import EXACT_CASES, RESAMPLES, Comparison, Floats, compare, fisher, holm
from nnunet_nas.evaluation.summaries import Case, Model, class_names, listed

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
    """

    dataset: str
    fold: str
    models: Sequence[Model]
    cases: Sequence[str]

    @property
    def title(self) -> str:
        """What the cases are, in words."""
        folds = [self.fold] if self.fold else self.models[0].folds
        numbers = ", ".join(fold.removeprefix("fold_") for fold in folds)
        what = f"validation of fold{'s' if len(folds) > 1 else ''} {numbers}" if folds else "predictions"
        return f"{self.dataset}, {what}" if self.dataset else what


@dataclass(frozen=True)
class Row:
    """One class, or the foreground mean.

    Attributes:
        key: of the class in summary.json; `foreground mean`.
        name: what the data set calls it.
        cases: names of the cases compared.
        first: values of the first model, (cases,).
        second: values of the second model, (cases,).
        comparison: None without a single case.
        p_holm: the Wilcoxon p-value after Holm's correction; None without a single case.
        undefined: cases without a value in both models: the class is neither in the label nor predicted.
        one_sided: cases without a value in one model: the class is not in the label, and the other model predicts it.
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

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, without the values of the cases."""
        return {
            "class": self.key,
            "name": self.name,
            **(self.comparison.to_json() if self.comparison else {"cases": 0}),
            "p_holm": self.p_holm,
            "undefined_in_both": list(self.undefined),
            "undefined_in_one": list(self.one_sided),
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
        folds = {model.cases[case].fold for model in group.models}
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
    return [replace(table, rows=[overall, *table.rows[1:]]) for table, overall in zip(tables, corrected, strict=True)]


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
        for row in table.rows:
            if row.undefined and row.key != FOREGROUND:
                notes.append(
                    f"{where}: {row.name} is neither in the label nor predicted in {len(row.undefined)} case(s), which "
                    f"are not used: {listed(row.undefined)}"
                )
            if row.one_sided:
                notes.append(
                    f"{where}: {row.name} is not in the label and only one of the models predicts it in "
                    f"{len(row.one_sided)} case(s), which are not used: {listed(row.one_sided)}"
                )
    return notes


def settings_json(*, seed: int, tolerance: float | None) -> dict[str, Any]:
    """How the numbers were made."""
    return {
        "interval": f"BCa bootstrap of the mean difference, {RESAMPLES} resamples (percentile where BCa is degenerate)",
        "seed": seed,
        "p_value": f"Wilcoxon signed-rank, two-sided, zeros as Pratt, exact up to {EXACT_CASES} cases",
        "p_holm": "Holm over the classes of a pair; the foreground mean over the models compared with the first",
        "effect": "matched-pairs rank-biserial correlation, positive where the second model is better",
        "equivalence": "two one-sided paired t-tests of the mean difference against the margin; a verdict needs the "
        "90 % bootstrap interval on the same side",
        "surface_tolerance_mm": tolerance,
    }


def _model_json(group: Group, position: int, cost: Cost) -> dict[str, Any]:
    model = group.models[position]
    return {
        "letter": letter(position),
        "name": model.name,
        "dataset": group.dataset,
        "folder": None if model.home is None else str(model.home),
        "configuration": model.configuration,
        "folds": model.folds,
        "costs": cost.to_json(),
    }


def _rows(group: Group, position: int, metric: Metric, *, seed: int) -> list[Row]:
    names = class_names(group.models[0])
    first, second = (
        np.array([[_value(model.cases[case], key, metric) for key in names] for case in group.cases])
        for model in (group.models[0], group.models[position])
    )
    rows = [
        _row(group, key, name, (first[:, column], second[:, column]), metric, seed=seed)
        for column, (key, name) in enumerate(names.items())
    ]
    rows = _with_holm(rows)
    if len(rows) == 1:
        return rows
    both = np.isfinite(first) & np.isfinite(second)
    means = _mean_where(first, both), _mean_where(second, both)
    return [_row(group, FOREGROUND, FOREGROUND, means, metric, seed=seed), *rows]


def _with_holm(rows: Sequence[Row]) -> list[Row]:
    """The rows with their p-values corrected for each other's presence; rows without a case count as none."""
    corrected = iter(holm([row.comparison.p_value for row in rows if row.comparison]))
    return [replace(row, p_holm=next(corrected)) if row.comparison else row for row in rows]


def _row(group: Group, key: str, name: str, values: tuple[Floats, Floats], metric: Metric, *, seed: int) -> Row:
    first, second = values
    has_first, has_second = np.isfinite(first), np.isfinite(second)
    used = has_first & has_second

    def named(chosen: NDArray[np.bool_]) -> list[str]:
        return [case for case, wanted in zip(group.cases, chosen, strict=True) if wanted]

    found = None
    if used.any():
        better = metric.higher_is_better
        found = compare(first[used], second[used], margin=metric.margin, higher_is_better=better, seed=seed)
    return Row(
        key=key,
        name=name,
        cases=named(used),
        first=first[used],
        second=second[used],
        comparison=found,
        undefined=named(~has_first & ~has_second),
        one_sided=named(has_first ^ has_second),
    )


def _value(case: Case, key: str, metric: Metric) -> float:
    return case.metrics[key][metric.name]


def _mean_where(values: Floats, wanted: NDArray[np.bool_]) -> Floats:
    """Mean over the classes, (cases,); NaN for a case without any."""
    counts = wanted.sum(axis=1)
    sums = np.where(wanted, values, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(values), math.nan), where=counts > 0)


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
