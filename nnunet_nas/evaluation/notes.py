"""What a reader of a comparison must know, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_nas.evaluation.equivalence import POWER
from nnunet_nas.evaluation.intervals import RESAMPLES
from nnunet_nas.evaluation.paired import EXACT_CASES
from nnunet_nas.evaluation.report import PairTable
from nnunet_nas.evaluation.rows import FOREGROUND, Row
from nnunet_nas.evaluation.summaries import listed


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
