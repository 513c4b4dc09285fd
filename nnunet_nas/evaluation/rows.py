"""What is compared, and its rows: a class, or the mean over several, of two models.

Values are (runs, cases, classes), NaN where there is none. A row is about the cases that all runs of both models have a
value for; what the others hide is counted beside it (see `absent`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.evaluation.absent import Absent, compare_absent, completed, reason_to_withhold
from nnunet_nas.evaluation.intervals import Floats, by_patient
from nnunet_nas.evaluation.paired import Comparison, compare, holm
from nnunet_nas.evaluation.summaries import Model, class_names

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


def rows_of(group: Group, position: int, metric: Metric, *, seed: int) -> list[Row]:
    """The foreground mean, if there are several classes, and each class: the model at `position` against the first."""
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
    return [*overall, *with_holm(rows)]


def with_holm(rows: Sequence[Row]) -> list[Row]:
    """The rows with their p-values corrected for each other's presence; rows without a case count as none."""
    corrected = iter(holm([row.comparison.p_value for row in rows if row.comparison]))
    return [replace(row, p_holm=next(corrected)) if row.comparison else row for row in rows]


def for_several_models(rows: Sequence[Row]) -> list[Row]:
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
