"""What `select_tiny` leaves beside the plans: scores.csv, selection.json and sensitivity.png."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_nas.complexity import Complexity
from nnunet_nas.figures import new_figure, write_figure
from nnunet_nas.files import replace_file
from nnunet_nas.xtiny.decision import Decision, explain
from nnunet_nas.xtiny.scoring import Candidate
from nnunet_nas.xtiny.selection import selectable_positions
from nnunet_nas.xtiny.widths import candidate_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Report:
    """A finished scoring.

    Attributes:
        inputs: what it was computed from, plain JSON; enough to replay it.
        base: name of the base configuration.
        candidates: widest first.
        complexity: cost of each candidate.
        seeds: one per row of `curves`.
        curves: (seeds, candidates); NaN where a candidate was not scored with a seed.
        decision: the recommended width.
        metric: what was measured.
        seconds: that the scores took, in all attempts.
        notes: what the user should know about the way of scoring, one sentence each.
    """

    inputs: dict[str, Any]
    base: str
    candidates: Sequence[Candidate]
    complexity: Sequence[Complexity]
    seeds: Sequence[int]
    curves: np.ndarray
    decision: Decision
    metric: str
    seconds: float
    notes: Sequence[str] = ()

    @property
    def caps(self) -> list[int]:
        """Caps of the candidates."""
        return [candidate.cap for candidate in self.candidates]

    def configuration(self, position: int) -> str:
        """Name of a candidate's configuration; the widest candidate is the base itself."""
        return self.base if position == 0 else candidate_name(self.base, self.caps[position])

    def differences(self) -> list[float | None]:
        """|difference| of the normalised mean curve to the next wider candidate; None for the widest."""
        return [None, *self.decision.paper.differences.tolist()]

    def to_json(self) -> dict[str, Any]:
        """Inputs, curve, score of every split, decision, stability."""
        decision = self.decision
        return {
            "selected": self._candidate_json(decision.position),
            "chosen_before_budgets": self.caps[decision.chosen],
            "rule": decision.rule,
            "stability": explain(decision, self.caps, self.seeds),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "seed_wins": {str(self.caps[position]): count for position, count in decision.seed_wins.items()},
            "resampled_shares": {str(self.caps[position]): share for position, share in decision.shares.items()},
            "paper_rule": {
                "selected_cap": self.caps[decision.paper.position],
                "selectable_caps": [self.caps[position] for position in selectable_positions(len(self.caps))],
                "normalised_curve": decision.paper.normalised.tolist(),
                "differences": decision.paper.differences.tolist(),
                "split_scores": {
                    str(self.caps[split - 1]): score for split, score in decision.paper.split_scores.items()
                },
            },
            "candidates": [self._candidate_json(position) for position in range(len(self.candidates))],
            "inputs": self.inputs,
        }

    def _candidate_json(self, position: int) -> dict[str, Any]:
        scores = self.curves[:, position]
        spread = self.decision.spread
        return {
            "configuration": self.configuration(position),
            "cap": self.caps[position],
            "features_per_stage": self.candidates[position].features,
            **self.complexity[position].to_json(),
            "score": float(np.nanmean(scores)),
            "score_by_seed": {
                str(seed): float(score) for seed, score in zip(self.seeds, scores, strict=True) if not np.isnan(score)
            },
            "fitted_log_spread": None if spread is None else float(spread[position]),
        }


def write_report(report: Report, folder: Path) -> None:
    """Writes the three files, each atomically.

    Raises:
        EnvironmentProblem: no permission or no space.
    """
    replace_file(folder / "scores.csv", scores_csv(report).encode())
    replace_file(folder / "selection.json", json.dumps(report.to_json(), indent=4).encode())
    write_figure(draw(report), folder / "sensitivity.png", dpi=150)


def scores_csv(report: Report) -> str:
    """One row per candidate and seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["configuration", "cap", "seed", report.metric, "parameters", "macs", "inference_mib"])
    for row, seed in enumerate(report.seeds):
        for position, cap in enumerate(report.caps):
            if np.isnan(report.curves[row, position]):
                continue
            cost = report.complexity[position]
            writer.writerow(
                [
                    report.configuration(position),
                    cap,
                    seed,
                    repr(float(report.curves[row, position])),
                    cost.parameters,
                    cost.macs,
                    round(cost.inference_mib, 3),
                ]
            )
    return text.getvalue()


def draw(report: Report) -> Figure:
    """The curve with its spread over seeds, its differences, and the parameters; the selected width is marked."""
    figure = new_figure(7, 7.5)
    figure.set_layout_engine("constrained")
    curve, differences, parameters = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1.5, 1.5])
    _draw_curve(curve, report)
    _draw_differences(differences, report)
    _draw_parameters(parameters, report)
    for axes in (curve, differences, parameters):
        axes.axvline(report.decision.position, color="tab:red", linestyle="--", linewidth=1.5, zorder=1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    parameters.set_xticks(range(len(report.caps)), [str(cap) for cap in report.caps])
    parameters.set_xlabel("channel cap")
    return figure


def _draw_curve(axes: Axes, report: Report) -> None:
    positions = np.arange(len(report.caps))
    highest, lowest = float(np.nanmax(report.curves)), float(np.nanmin(report.curves))
    logarithmic = 0 < 20 * lowest < highest
    if len(report.seeds) > 1:
        for index, curve in enumerate(report.curves):
            label = f"each of {len(report.seeds)} seeds" if index == 0 else None
            axes.plot(positions, curve, color="tab:blue", alpha=0.3, linewidth=0.8, marker=".", label=label)
    label = "mean over seeds" if len(report.seeds) > 1 else f"seed {report.seeds[0]}"
    axes.plot(positions, np.nanmean(report.curves, axis=0), color="tab:blue", marker="o", linewidth=2, label=label)
    allowed = selectable_positions(len(report.caps))
    axes.axvspan(allowed[0] - 0.5, allowed[-1] + 0.5, color="tab:gray", alpha=0.12, label="paper's rule can select")
    selected = report.decision.position
    axes.plot([], [], color="tab:red", linestyle="--", label=f"selected: {report.configuration(selected)}")
    if logarithmic:
        axes.set_yscale("log")
    axes.set_ylabel("Jacobian sensitivity" if report.metric == "jacobian" else report.metric)
    axes.set_title(f"{report.inputs['dataset']}, {report.base}: {len(report.inputs['cases'])} images")
    axes.legend(fontsize=8, loc="best")


def _draw_differences(axes: Axes, report: Report) -> None:
    differences = report.decision.paper.differences
    axes.bar(np.arange(len(differences)) + 0.5, differences, width=0.6, color="tab:orange")
    axes.set_ylabel("|difference|\n(normalised mean)")


def _draw_parameters(axes: Axes, report: Report) -> None:
    counts = [cost.parameters for cost in report.complexity]
    axes.plot(range(len(counts)), counts, color="tab:green", marker="s")
    axes.set_yscale("log")
    axes.set_ylabel("parameters")
    selected = report.decision.position
    axes.annotate(
        f"{counts[selected]:,}\n(1/{counts[0] / counts[selected]:,.0f} of the base)",
        (selected, counts[selected]),
        xytext=(8, 8),
        textcoords="offset points",
        fontsize=8,
        ha="left",
        va="bottom",
    )
