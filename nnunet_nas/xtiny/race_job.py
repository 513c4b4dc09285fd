"""A race from start to end: check everything, train and measure what is not known, decide, write.

What is measured is kept, so that a race goes on where it was, and one with another margin or budget begins with the
curves that are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np

from nnunet_nas.complexity import Complexity, complexity_of
from nnunet_nas.data import list_cases
from nnunet_nas.environment import folder_from_environment
from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.xtiny.race import Curve, Outcome, Rules, checkpoints, next_move
from nnunet_nas.xtiny.race_report import RaceReport, write_race
from nnunet_nas.xtiny.request import RACE_FOLD, inputs_of, race_cases, score_key
from nnunet_nas.xtiny.selection import within_budget
from nnunet_nas.xtiny.store import ScoreStore
from nnunet_nas.xtiny.training import Contestant, Course, Patches, validation_patches
from nnunet_nas.xtiny.width_job import WidthJob, Written


class RaceJob(WidthJob):
    """One race on one data set."""

    def check(self) -> None:
        """What a race cannot do; it trains, so that it needs a place for results."""
        settings = self.settings
        if settings.images is not None or settings.cases or settings.metric != "jacobian":
            raise UsageError(
                "-rule race measures trained networks on the validation cases of the split: leave out -n, -cases and "
                "-metric, or choose -rule paper"
            )
        if len(settings.seeds) > 1:
            raise UsageError("-rule race trains each width once: give one -seed, or choose -rule paper or spread")
        if settings.dry_run:
            raise UsageError("-rule race trains, and keeps what it trained: leave out --dry_run, or choose -rule paper")
        if len(self.candidates) < 2:
            raise DataProblem(f"{settings.configuration} is one channel wide: there is nothing to narrow")
        folder_from_environment("nnUNet_results")
        # A budget that not even the narrowest width satisfies is refused before any training.
        within_budget(len(self.costs) - 1, self.costs, settings.budgets)

    def find_cases(self) -> Sequence[str]:
        """The validation cases of nnU-Net's split, which is made if there is none."""
        list_cases(self.data_folder)
        if not (self.dataset / "splits_final.json").exists():
            self._course.make_split(self.candidates[-1])
        cases = race_cases(self.dataset)
        if len(cases) < 2:
            raise DataProblem(f"fold {RACE_FOLD} has {len(cases)} validation cases, too few to compare widths on")
        return cases

    @cached_property
    def complexity(self) -> list[Complexity]:
        """Of the candidates."""
        return [complexity_of(candidate.spec) for candidate in self.candidates]

    @property
    def costs(self) -> list[dict[str, float]]:
        """Of the candidates, by name."""
        return [cost.to_json() for cost in self.complexity]

    @property
    def rules(self) -> Rules:
        """Of the race."""
        settings = self.settings
        return Rules(margin=settings.margin, horizon=settings.horizon, budget=settings.race_budget)

    @property
    def relative_costs(self) -> list[float]:
        """MACs of one iteration of each candidate; that of the base is 1."""
        return [cost.macs / self.complexity[0].macs for cost in self.complexity]

    def announcement(self) -> str:
        """What the race costs at most and what it looks at, before it starts."""
        share = self.settings.race_budget / self.settings.horizon
        return (
            f"race: at most {self.settings.race_budget:,} iterations of the base, {share:.1%} of the "
            f"{self.settings.horizon:,} that you will train (-horizon); it uses labels, and decides on the "
            f"{len(self.cases)} validation cases of fold {RACE_FOLD}"
        )

    def run(self, progress: Callable[[float], object] = lambda spent: None) -> RaceReport:
        """Trains and measures what is not known yet and decides.

        Args:
            progress: called with what was spent, in iterations of the base.
        """
        curves = {position: self._curve(position) for position in range(len(self.candidates))}
        progress(sum(self.relative_costs[position] * curve.length for position, curve in curves.items()))
        while not isinstance(move := next_move(curves, self.relative_costs, self.rules), Outcome):
            self._advance(move.position, move.iterations, progress)
            curves[move.position] = self._curve(move.position)
        position = within_budget(move.position, self.costs, self.settings.budgets)
        return RaceReport(
            inputs=json.loads(json.dumps(inputs_of(self._key, self.settings))),
            base=self.settings.configuration,
            candidates=self.candidates,
            complexity=self.complexity,
            curves=curves,
            outcome=move,
            position=position,
            rules=self.rules,
            seconds=sum(self._store.seconds(self.settings.common_seeds[0], each.cap) for each in self.candidates),
        )

    def write(self, report: RaceReport) -> Written:
        """Adds the configurations, then writes the reports."""
        written = self.add_configurations(self.candidates[report.position].cap, report.inputs)
        write_race(report, self.output_folder)
        return written

    def provenance_settings(self) -> dict[str, Any]:
        """With the margin and the horizon."""
        shared = super().provenance_settings()
        return {"metric": self.settings.measure, **shared, "margin": self.rules.margin, "horizon": self.rules.horizon}

    @cached_property
    def _key(self) -> dict[str, Any]:
        return score_key(self.plans, self.settings, self.cases, self.device.type)

    @cached_property
    def _store(self) -> ScoreStore:
        return ScoreStore(self.output_folder, self._key)

    @cached_property
    def _course(self) -> Course:
        settings = self.settings
        return Course(
            self.plans,
            settings.configuration,
            RACE_FOLD,
            settings.horizon,
            settings.batch_size,
            settings.common_seeds[0],
            self.device,
        )

    @cached_property
    def _patches(self) -> Patches:
        return validation_patches(self._course, self.candidates[-1], self.cases)

    def _curve(self, position: int) -> Curve:
        """What the disk knows of a candidate."""
        known = self._store.known(self.settings.common_seeds[0], self.candidates[position].cap)
        steps = []
        for step in checkpoints(self.settings.horizon):
            if not all(_item(step, case) in known for case in self.cases):
                break
            steps.append(step)
        dice = [[known[_item(step, case)] for case in self.cases] for step in steps]
        return Curve(np.array(steps, dtype=int), np.array(dice).reshape(len(steps), len(self.cases)))

    def _advance(self, position: int, until: int, progress: Callable[[float], object]) -> None:
        candidate, seed = self.candidates[position], self.settings.common_seeds[0]
        length, started = self._curve(position).length, perf_counter()
        contestant = Contestant(self._course, candidate, self._name)
        ahead = next((step for step in checkpoints(self.settings.horizon) if step > length), until)
        if contestant.iteration > ahead or contestant.iteration < length:
            contestant.forget()  # not what the measurements are of: those were removed, or it was
            contestant = Contestant(self._course, candidate, self._name)
        for step in (step for step in checkpoints(self.settings.horizon) if length < step <= until):
            contestant.train(step, lambda: progress(self.relative_costs[position]))
            measured = contestant.measure(self._patches)
            contestant.save()
            now = perf_counter()
            values = {_item(step, case): value for case, value in measured.items()}
            self._store.add(seed, candidate.cap, values, now - started)
            started = now

    @property
    def _name(self) -> str:
        """Keeps trainings of other data, lengths and seeds apart."""
        return f"{self._store.path.stem}_{self.settings.common_seeds[0]}"


def _item(step: int, case: str) -> str:
    return f"{step} {case}"
