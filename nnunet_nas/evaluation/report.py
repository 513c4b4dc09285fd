"""A comparison of models put together: per class and for the foreground mean, per data set or fold, and combined.

The first model is the reference; each other one is compared with it. Per case, the foreground mean is the mean over the
classes that both models have a value for. Holm's correction is over the classes of a pair, and for the foreground mean
over the models compared with the first; that of equivalence is over these models for every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nnunet_nas.errors import DataProblem
from nnunet_nas.evaluation.costs import Cost
from nnunet_nas.evaluation.paired import fisher
from nnunet_nas.evaluation.rows import Group, Metric, Row, for_several_models, rows_of, with_holm


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
        PairTable(group, metric, position, rows_of(group, position, metric, seed=seed))
        for position in range(1, len(group.models))
    ]
    corrected = with_holm([table.overall for table in tables])
    found = [[overall, *table.rows[1:]] for table, overall in zip(tables, corrected, strict=True)]
    by_model = zip(*map(for_several_models, zip(*found, strict=True)), strict=True)
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
