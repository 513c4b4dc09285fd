"""What `prove_tiny` leaves beside the plans: proof.json, proof.csv, proof.txt, proof.png and cases.csv."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy import stats

from nnunet_nas.commands import STOCK_TRAINER
from nnunet_nas.complexity import Complexity
from nnunet_nas.evaluation.equivalence import ALPHA, POWER, Equivalence, needed_cases
from nnunet_nas.evaluation.paired import Comparison
from nnunet_nas.evaluation.rows import Row
from nnunet_nas.evaluation.tables import p_text
from nnunet_nas.figures import BLUE, GREEN, RED, YELLOW, new_figure, write_figure
from nnunet_nas.files import replace_file
from nnunet_nas.methods import METHODS
from nnunet_nas.xtiny import proof
from nnunet_nas.xtiny.proof import Independence
from nnunet_nas.xtiny.proof_runs import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROOF = "proof"
_CLAIMED = {
    proof.EQUIVALENT: "equivalent to {base} within {margin:g} Dice",
    proof.NOT_WORSE: "not worse than {base} by {margin:g} Dice or more",
}


@dataclass(frozen=True)
class Planned:
    """A candidate and its training.

    Attributes:
        cap: of its channels.
        configuration: its name.
        complexity: its costs.
        share: of the base's training, in multiply-accumulates of a step times iterations.
        left: part of the folds that is still to be trained.
    """

    cap: int
    configuration: str
    complexity: Complexity
    share: float
    left: float


@dataclass(frozen=True)
class Trial:
    """A width that was tested.

    Attributes:
        cap: of its channels.
        configuration: its name.
        complexity: its costs.
        row: the base first, then the width, with its corrected tests.
        passed: whether the test allows the claim.
    """

    cap: int
    configuration: str
    complexity: Complexity
    row: Row
    passed: bool

    @property
    def comparison(self) -> Comparison:
        """With the base."""
        assert self.row.comparison is not None
        return self.row.comparison

    @property
    def tests(self) -> Equivalence:
        """Of equivalence."""
        assert self.comparison.equivalence is not None
        return self.comparison.equivalence

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Of the difference: within the margins exactly where the two one-sided tests are below their level."""
        units = self.comparison.cases if self.comparison.patients is None else self.comparison.patients
        level, deviation = ALPHA / self.tests.models, self.comparison.deviation or 0.0
        half = float(stats.t.ppf(1 - level, units - 1)) * deviation / math.sqrt(units)
        return self.comparison.difference - half, self.comparison.difference + half


@dataclass(frozen=True)
class ProofReport:
    """A finished proof.

    Attributes:
        inputs: what it was computed from, plain JSON.
        base: name of the base configuration.
        base_cost: its costs.
        trainer: of the base.
        schedule: of the trainings; None if nnU-Net has not noted it.
        planned: candidates in the order of testing.
        trials: those that were tested.
        independence: of selection and judgement.
        looks: proofs with other settings that have looked at some of the cases.
    """

    inputs: dict[str, Any]
    base: str
    base_cost: Complexity
    trainer: str
    schedule: Schedule | None
    planned: Sequence[Planned]
    trials: Sequence[Trial]
    independence: Independence
    looks: int

    @cached_property
    def chosen(self) -> Trial | None:
        """The narrowest width that is claimed to do what the base does."""
        caps = [trial.cap for trial in self.trials]
        cap = proof.smallest(caps, [trial.passed for trial in self.trials], self.inputs["order"])
        return next((trial for trial in self.trials if trial.cap == cap), None)

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        claim = _CLAIMED[self.inputs["claim"]].format(base=self.base, margin=self.inputs["margin"])
        if self.chosen is None:
            return f"No width was shown to be {claim}."
        trial, found = self.chosen, self.chosen.comparison
        low, high = trial.interval
        share = self.base_cost.parameters / trial.complexity.parameters
        units = f"{found.cases} cases" if found.patients is None else f"{found.patients} patients"
        return (
            f"{trial.configuration} ({trial.complexity.parameters:,} parameters, 1/{share:,.0f} of the base's) is "
            f"{claim}: difference {found.difference:+.4f}, {self._confidence(trial):.3g} % interval "
            f"[{low:+.4f}, {high:+.4f}], p {self._compared_p(trial)} ({units})."
        )

    def sentences(self) -> list[str]:
        """The verdict and what a reader must know about it, one sentence per line."""
        inputs = self.inputs
        lines = [self.verdict, self.independence.sentence, proof.how_tested(inputs["order"], len(self.planned))]
        lines.append(
            "Tests are one-sided paired t-tests of the mean difference (two of them for equivalence); a claim needs "
            "the 90 % bootstrap interval on the same side."
        )
        if len(self.trials) < len(self.planned):
            others = ", ".join(item.configuration for item in self.planned[len(self.trials) :])
            lines.append(f"Not tested, because the order ended before: {others}.")
        lines += [line for trial in self.trials for line in self._notes(trial)]
        if self.looks:
            lines.append(
                f"{self.looks} proof(s) with other settings have looked at these cases: the error above is that of a "
                f"single one."
            )
        lines += [self._lengths(), "Each network was trained once: how another training would differ is not known."]
        return lines

    def _notes(self, trial: Trial) -> list[str]:
        """Why a width failed, where more cases or a look at single ones would help."""
        found = trial.comparison
        if trial.passed:
            return []
        if trial.tests.verdict == "withheld":
            return [f"{trial.configuration}: the verdict is withheld: {trial.tests.withheld}."]
        units = found.cases if found.patients is None else found.patients
        what = "cases" if found.patients is None else "patients"
        needed = needed_cases(found.deviation or 0.0, trial.tests.margin, alpha=ALPHA / trial.tests.models)
        if trial.tests.verdict in ("better", "worse") or units >= needed:
            return [f"{trial.configuration}: {trial.tests.verdict}."]
        return [
            f"{trial.configuration}: {trial.tests.verdict}; about {needed} {what} show equivalence with "
            f"{100 * POWER:g} % probability if there is no difference, here are {units}."
        ]

    def _lengths(self) -> str:
        by = f"Trained by {self.trainer}"
        if self.inputs["distill"]:
            by += ", the candidates by distillation from the base"
            if self.trainer not in (STOCK_TRAINER, METHODS["schedule"].trainer_name):
                by += " (of what that trainer changes they share length, rate and mirroring)"
        if self.schedule is None:
            return f"{by}."
        epochs, iterations = self.schedule["num_epochs"], self.schedule["num_iterations_per_epoch"]
        return f"{by}, {epochs:g} epochs of {iterations:g} iterations each."

    @staticmethod
    def _confidence(trial: Trial) -> float:
        return 100 * (1 - 2 * ALPHA / trial.tests.models)

    def _compared_p(self, trial: Trial) -> str:
        text = p_text(self._p_value(trial))
        return text if text.startswith("<") else f"= {text}"

    def _p_value(self, trial: Trial) -> float:
        """Of the claim, corrected."""
        equal = self.inputs["claim"] == proof.EQUIVALENT
        return min(1.0, trial.tests.models * (trial.tests.p_value if equal else trial.tests.p_not_worse))

    def to_json(self) -> dict[str, Any]:
        """Inputs, verdict, tests."""
        return {
            "selected": None if self.chosen is None else self._trial_json(self.chosen),
            "verdict": self.verdict,
            "independent_cases": self.independence.known,
            "sentences": self.sentences(),
            "level": ALPHA,
            "base": {"configuration": self.base, "trainer": self.trainer, **self.base_cost.to_json()},
            "schedule": self.schedule,
            "planned": [
                {"configuration": item.configuration, "cap": item.cap, "share_of_base_training": item.share}
                for item in self.planned
            ],
            "tested": [self._trial_json(trial) for trial in self.trials],
            "earlier_proofs_on_these_cases": self.looks,
            "inputs": self.inputs,
        }

    def _trial_json(self, trial: Trial) -> dict[str, Any]:
        low, high = trial.interval
        return {
            "configuration": trial.configuration,
            "cap": trial.cap,
            "claimed": trial is self.chosen or (trial.passed and self.inputs["order"] == proof.WIDE),
            "passed": trial.passed,
            "p_claim": self._p_value(trial),
            "interval_of_tests": [low, high],
            **trial.complexity.to_json(),
            **trial.comparison.to_json(),
        }


def table(report: ProofReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text: the base, then the candidates in the order of testing."""
    header = ["configuration", "parameters", "MACs", "training", "Dice", "difference", "interval", "p", "within", ""]
    first = report.trials[0].comparison.mean_first if report.trials else math.nan
    rows = [[report.base, *_sizes(report.base_cost), "1", f"{first:.4f}", "", "", "", "", ""]]
    tested = {trial.cap: trial for trial in report.trials}
    for item in report.planned:
        row = [item.configuration, *_sizes(item.complexity), f"{item.share:.3g}"]
        rows.append([*row, *(_cells(report, tested[item.cap]) if item.cap in tested else ["-", "", "", "", "", ""])])
    return header, rows


def _sizes(cost: Complexity) -> list[str]:
    return [f"{cost.parameters:,}", f"{cost.macs / 1e9:.4g} G"]


def _cells(report: ProofReport, trial: Trial) -> list[str]:
    low, high = trial.interval
    chosen = "<- proven" if trial is report.chosen else ""
    values = [f"{trial.comparison.mean_second:.4f}", f"{trial.comparison.difference:+.4f}"]
    return [*values, f"[{low:+.4f}, {high:+.4f}]", p_text(report._p_value(trial)), trial.tests.verdict, chosen]


def write_proof(report: ProofReport, folder: Path, text: str) -> None:
    """Writes the files, each atomically.

    Args:
        report: what was found.
        folder: to write to.
        text: the same for a person.

    Raises:
        EnvironmentProblem: no permission or no space.
    """
    replace_file(folder / f"{PROOF}.txt", f"{text}\n".encode())
    replace_file(folder / f"{PROOF}.csv", proof_csv(report).encode())
    replace_file(folder / "cases.csv", cases_csv(report).encode())
    replace_file(folder / f"{PROOF}.json", json.dumps(report.to_json(), indent=4).encode())
    write_figure(draw(report), folder / f"{PROOF}.png", dpi=150)


def proof_csv(report: ProofReport) -> str:
    """One row per candidate that was tested."""
    header = ["configuration", "cap", "parameters", "macs", "share_of_base_training", "dice_base", "dice", "difference"]
    header += [
        "low",
        "high",
        "bootstrap_low",
        "bootstrap_high",
        "deviation",
        "p",
        "tests",
        "verdict",
        "passed",
        "proven",
    ]
    lines: list[list[object]] = []
    for item, trial in zip(report.planned, report.trials, strict=False):
        found, tests = trial.comparison, trial.tests
        cells = [item.configuration, item.cap, item.complexity.parameters, item.complexity.macs, item.share]
        values = [found.mean_first, found.mean_second, found.difference, *trial.interval, tests.low, tests.high]
        outcome = [found.deviation, report._p_value(trial), tests.models, tests.verdict, trial.passed]
        lines.append([*cells, *values, *outcome, trial is report.chosen])
    return _csv(header, lines)


def cases_csv(report: ProofReport) -> str:
    """One row per candidate and case."""
    lines = []
    for trial in report.trials:
        patients = trial.row.patients or [""] * len(trial.row.cases)
        values = zip(trial.row.cases, patients, trial.row.first.tolist(), trial.row.second.tolist(), strict=True)
        lines += [[trial.configuration, *value] for value in values]
    return _csv(["configuration", "case", "patient", "dice_base", "dice"], lines)


def _csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def draw(report: ProofReport) -> Figure:
    """Dice against parameters and against MACs.

    Bars are the intervals of the difference to the base at which the tests were made: the width passes where its bar is
    within the band, the margin around the base (and the bootstrap agrees).
    """
    figure = new_figure(8.5, 4.6)
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_panel(left, report, "parameters", "parameters")
    _draw_panel(right, report, "macs", "MACs of one patch")
    left.set_ylabel(f"Dice, mean over {'patients' if report.inputs['patients'] else 'cases'}")
    figure.suptitle(_title(report), fontsize=10)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def _title(report: ProofReport) -> str:
    trained = "distilled from the base" if report.inputs["distill"] else "trained alike"
    judged = "hold-out cases" if report.inputs["judge"] == "test" else "validation cases"
    what = f"{report.inputs['dataset']}, {report.base}, candidates {trained}: {len(report.inputs['cases'])} {judged}"
    level = f"{report._confidence(report.trials[0]):.3g}"
    return f"{what}\nbars: {level} % intervals of the difference to the base, within the band where the tests say so"


def _draw_panel(axes: Axes, report: ProofReport, cost: str, label: str) -> None:
    margin, chosen = report.inputs["margin"], report.chosen
    level = report.trials[0].comparison.mean_first
    axes.axhspan(level - margin, level + margin, color=YELLOW, alpha=0.35, linewidth=0, label=f"margin of {margin:g}")
    axes.axhline(level, color="black", linewidth=0.8)
    axes.plot([getattr(report.base_cost, cost)], [level], "ks", markersize=6, label=f"base {report.base}")
    shown = {True: "passes", False: "fails"}
    for trial in report.trials:
        low, high = trial.interval
        colour, marker = (BLUE, "o") if trial.passed else (RED, "v")
        axes.errorbar(
            [getattr(trial.complexity, cost)],
            [level + trial.comparison.difference],
            [[trial.comparison.difference - low], [high - trial.comparison.difference]],
            color=colour,
            marker=marker,
            markersize=6,
            capsize=3,
            linewidth=1.4,
            label=shown.pop(trial.passed, None),
        )
        # Above the bar, and above the ring where it is higher.
        axes.annotate(
            str(trial.cap),
            (getattr(trial.complexity, cost), level + high),
            xytext=(0, 11 if trial is chosen else 6),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="bottom",
            bbox={"boxstyle": "square,pad=0.1", "color": "white", "alpha": 0.7},
        )
    if chosen is not None:
        place = [getattr(chosen.complexity, cost)], [level + chosen.comparison.difference]
        label_chosen = f"proven: {chosen.configuration}"
        axes.plot(
            *place, "o", markersize=15, markerfacecolor="none", color=GREEN, markeredgewidth=2, label=label_chosen
        )
    _scale_costs(axes, label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _scale_costs(axes: Axes, label: str) -> None:
    """Logarithmic, with few ticks that can be read."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    few = high > 100 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if few else (1, 3)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(label)
