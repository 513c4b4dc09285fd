"""What a race leaves beside the plans: scores.csv, selection.json and race.png."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_nas.complexity import Complexity
from nnunet_nas.figures import new_figure, write_figure
from nnunet_nas.files import replace_file
from nnunet_nas.xtiny.race import EQUAL, OPEN, Comparison, Curve, Outcome, Rules, has_learnt
from nnunet_nas.xtiny.request import RACE, RACE_FOLD, SCORES, SELECTION
from nnunet_nas.xtiny.scoring import Candidate
from nnunet_nas.xtiny.widths import candidate_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RaceReport:
    """A finished race.

    Attributes:
        inputs: what it was computed from, plain JSON.
        base: name of the base configuration.
        candidates: widest first.
        complexity: cost of each candidate.
        curves: what was measured, by position.
        outcome: of the race.
        position: recommended, after budgets.
        rules: of the race.
        seconds: that trainings and measurements took, in all attempts.
    """

    inputs: dict[str, Any]
    base: str
    candidates: Sequence[Candidate]
    complexity: Sequence[Complexity]
    curves: Mapping[int, Curve]
    outcome: Outcome
    position: int
    rules: Rules
    seconds: float

    def configuration(self, position: int) -> str:
        """Name of a candidate's configuration; the widest candidate is the base itself."""
        return self.base if position == 0 else candidate_name(self.base, self.candidates[position].cap)

    def to_json(self) -> dict[str, Any]:
        """Inputs, decision, comparisons."""
        return {
            "selected": self._candidate_json(self.position),
            "chosen_before_budgets": self.candidates[self.outcome.position].cap,
            "rule": RACE,
            "stability": self.sentences(),
            "notes": [],
            "spent_base_iterations": self.outcome.spent,
            "seconds": self.seconds,
            "comparisons": [self._comparison_json(comparison) for comparison in self.outcome.comparisons],
            "candidates": [self._candidate_json(position) for position in range(len(self.candidates))],
            "inputs": self.inputs,
        }

    def sentences(self) -> list[str]:
        """What was found, and how far it goes, one sentence per line."""
        caps = [candidate.cap for candidate in self.candidates]
        lines = [self._sentence(comparison) for comparison in self.outcome.comparisons]
        chosen = self.outcome.position
        if self.position != chosen:
            lines.append(f"The race chose cap {caps[chosen]}; cap {caps[self.position]} is the widest in the budget.")
        if chosen == 0:
            lines.append("No narrower width was shown to suffice: the base stays.")
        unfinished = (pair for pair in self.outcome.comparisons if pair.iterations < self.rules.horizon)
        if any(comparison.verdict == OPEN for comparison in unfinished):
            lines.append("What is open may be decided with a larger -race_budget: the race goes on from there.")
        lines.append(
            f"The race cost {self.outcome.spent:,.0f} iterations of the base; each width was trained once, and what "
            f"another training would give is not in the limits."
        )
        lines.append(
            f"It was decided on the validation cases of fold {RACE_FOLD}: judge the result on other folds or cases."
        )
        return lines

    def _sentence(self, comparison: Comparison) -> str:
        narrow, wide = (self.candidates[position].cap for position in (comparison.narrow, comparison.wide))
        pair, margin = f"Cap {narrow} beside {wide}", f"{self.rules.margin:g}"
        if comparison.look == 0:
            return f"{pair}: not measured within the budget."
        if not has_learnt(self.curves[comparison.narrow].until(comparison.iterations)):
            pair += f" ({narrow} has found nothing yet)"
        now = f"{comparison.measured:+.4f} Dice for {wide} after {comparison.iterations:,} iterations"
        if math.isnan(comparison.expected):
            there = "not extrapolated: no law is seen in the curves yet"
        elif comparison.iterations >= self.rules.horizon:
            there = f"at most {comparison.high:+.4f}, and there the training ends"
        else:
            there = f"{comparison.expected:+.4f} expected after {self.rules.horizon:,}, at most {comparison.high:+.4f}"
        verdict = {EQUAL: f"within {margin}", OPEN: "open, not taken"}.get(
            comparison.verdict, f"worse by over {margin}"
        )
        return f"{pair}: {now}, {there}: {verdict}."

    def _comparison_json(self, comparison: Comparison) -> dict[str, Any]:
        """Numbers that are not finite are null."""
        caps = {"cap": self.candidates[comparison.narrow].cap, "beside": self.candidates[comparison.wide].cap}
        values = {key: value for key, value in vars(comparison).items() if key not in ("narrow", "wide")}
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        return {**caps, **plain}

    def _candidate_json(self, position: int) -> dict[str, Any]:
        curve = self.curves[position]
        return {
            "configuration": self.configuration(position),
            "cap": self.candidates[position].cap,
            "features_per_stage": self.candidates[position].features,
            **self.complexity[position].to_json(),
            "iterations": curve.length,
            "score": float(curve.dice[-1].mean()) if curve.length else None,
        }


def write_race(report: RaceReport, folder: Path) -> None:
    """Writes the three files, each atomically.

    Raises:
        EnvironmentProblem: no permission or no space.
    """
    replace_file(folder / SCORES, curves_csv(report).encode())
    replace_file(folder / SELECTION, json.dumps(report.to_json(), indent=4).encode())
    write_figure(draw(report), folder / "race.png", dpi=150)


def curves_csv(report: RaceReport) -> str:
    """One row per width, measurement and case."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["configuration", "cap", "iterations", "case", "dice"])
    for position, curve in report.curves.items():
        start = [report.configuration(position), report.candidates[position].cap]
        for step, values in zip(curve.iterations, curve.dice, strict=True):
            for case, value in zip(report.inputs["cases"], values, strict=True):
                writer.writerow([*start, step, case, repr(float(value))])
    return text.getvalue()


def draw(report: RaceReport) -> Figure:
    """Mean Dice of each width over the iterations; the selected one is thick."""
    figure = new_figure(7, 4.5)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for position, curve in report.curves.items():
        if curve.length:
            chosen = position == report.position
            label = f"{report.configuration(position)}{' (selected)' if chosen else ''}"
            axes.plot(curve.iterations, curve.dice.mean(1), marker="o", linewidth=3 if chosen else 1, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("iterations")
    axes.set_ylabel("Dice, mean over validation cases")
    axes.set_title(f"{report.inputs['dataset']}, {report.base}: {len(report.inputs['cases'])} cases")
    if any(curve.length for curve in report.curves.values()):
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
