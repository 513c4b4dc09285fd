"""One selection from start to end: check everything, score what is not known, decide, write.

Everything that can be refused is refused by `TinyJob`'s constructor, so that no scoring ends at a closed door.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from nnunet_nas.architecture import build_without_weights
from nnunet_nas.complexity import Complexity, complexity_of
from nnunet_nas.data import PatchSource, list_cases
from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.xtiny.allocation import Components, allocate
from nnunet_nas.xtiny.decision import decide
from nnunet_nas.xtiny.proxies import PROXIES
from nnunet_nas.xtiny.report import Report, write_report
from nnunet_nas.xtiny.request import DEFAULT_SEED, inputs_of, score_key
from nnunet_nas.xtiny.scoring import Scorer
from nnunet_nas.xtiny.selection import MIN_CANDIDATES, MIN_SPREAD_SEEDS, within_budget
from nnunet_nas.xtiny.sensitivity import uses_batch_statistics
from nnunet_nas.xtiny.store import ScoreStore
from nnunet_nas.xtiny.width_job import WidthJob, Written

_ONE_AT_A_TIME = "The network has batch normalisation, in which images influence each other: scored one at a time."
# From this share of the largest possible score on, a metric hardly tells widths apart (our choice).
_NEARLY = 0.9
# Every width is drawn so often at least that what draws do is seen, and narrow ones more often, until the curve's mean
# variance is by the law that of so many draws of every width (our choices).
_LEAST = {"paper": 2, "spread": 10}
_WORTH = {"paper": 2.5, "spread": 10}


class TinyJob(WidthJob):
    """One selection at initialisation.

    Attributes:
        notes: what the user should know about the way of scoring, one sentence each.
        source: the images.
    """

    def check(self) -> None:
        """Too few candidates or seeds for the rule."""
        self._require_enough_candidates()
        self._require_sound_seeds()
        self.notes = [_ONE_AT_A_TIME] if uses_batch_statistics(build_without_weights(self.base)) else []

    def find_cases(self) -> list[str]:
        """The images to score, drawn or named; opens them."""
        known = list_cases(self.data_folder)
        if len(set(self.settings.cases)) != len(self.settings.cases):
            raise UsageError("-cases names a case twice")
        self.source = PatchSource(self.data_folder, self.settings.cases_among(known), self.base.patch_size)
        self._require_enough_images()
        return self.source.cases

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer of this job's images, metric and device, on the scores that are stored when it is first asked for.

        That is once the job is `alone`.
        """
        return Scorer(
            proxy=PROXIES[self.settings.metric],
            source=self.source,
            store=ScoreStore(self.output_folder, self._key, read_only=self.settings.dry_run),
            device=self.device,
            batch_size=self.settings.batch_size,
        )

    @cached_property
    def complexity(self) -> list[Complexity]:
        """Of the candidates."""
        return [complexity_of(candidate.spec) for candidate in self.candidates]

    @cached_property
    def draws(self) -> list[int]:
        """How many seeds each candidate is scored with."""
        if common := self.settings.common_seeds:
            return [len(common)] * len(self.candidates)
        law = Components.of_law([candidate.features for candidate in self.candidates], self.complexity)
        rule, images = self.settings.rule, len(self.cases)
        variance = float(law.variance(_WORTH[rule], images).mean())
        return [int(number) for number in allocate(law, variance, images=images, least=_LEAST[rule])]

    @property
    def seeds(self) -> list[int]:
        """Of the weights; a candidate with fewer draws has the first ones."""
        others = (seed for seed in range(max(self.draws) + 1) if seed != DEFAULT_SEED)
        return list(self.settings.common_seeds) or [DEFAULT_SEED, *others][: max(self.draws)]

    def seeds_of(self, position: int) -> Sequence[int]:
        """What a candidate's weights were drawn with."""
        return self.seeds[: self.draws[position]]

    def steps(self) -> int:
        """How many steps `run` will report in total."""
        return self.scorer.steps(sum(self.draws))

    def run(self, progress: Callable[[int], object] = lambda steps: None) -> Report:
        """Scores what is not known yet and decides; writes nothing but scores.

        Args:
            progress: called with the number of steps done.
        """
        costs = [cost.to_json() for cost in self.complexity]
        # A budget that not even the narrowest width satisfies is refused before scoring.
        within_budget(len(costs) - 1, costs, self.settings.budgets)
        curves: np.ndarray = self.scorer.curves(self.candidates, self.seeds, progress, draws=self.draws)
        saturated = self._saturated(curves)
        decision = decide(
            curves,
            [candidate.features for candidate in self.candidates],
            costs,
            rule=self.settings.rule,
            budgets=self.settings.budgets,
        )
        return Report(
            inputs=inputs_of(self._key, self.settings),
            base=self.settings.configuration,
            candidates=self.candidates,
            complexity=self.complexity,
            seeds=self.seeds,
            curves=curves,
            decision=decision,
            metric=self.settings.metric,
            seconds=self._seconds(),
            notes=[*self.notes, *saturated],
        )

    def _seconds(self) -> float:
        store = self.scorer.store
        return sum(
            store.seconds(seed, candidate.cap)
            for place, candidate in enumerate(self.candidates)
            for seed in self.seeds_of(place)
        )

    def write(self, report: Report) -> Written:
        """Adds the configurations, then writes the reports."""
        written = self.add_configurations(report.caps[report.decision.position], report.inputs)
        write_report(report, self.output_folder)
        return written

    def _saturated(self, curves: np.ndarray) -> list[str]:
        """A sentence about widths that a metric cannot tell apart, because no network can score more on these images.

        Raises:
            DataProblem: it can tell none apart.
        """
        metric, images = self.settings.metric, len(self.source.cases)
        ceiling = PROXIES[metric].ceiling(images)
        full = [
            candidate.cap
            for candidate, score in zip(self.candidates, np.nanmax(curves, axis=0), strict=True)
            if score >= _NEARLY * ceiling
        ]
        more = "take more images with -n, or another -metric"
        if np.nanmin(curves) >= ceiling:
            raise DataProblem(
                f"the curve is flat: {metric} cannot exceed {ceiling:.0f} on {images} images, and every width "
                f"reaches that: {more}"
            )
        if not full:
            return []
        return [
            f"{metric} cannot exceed {ceiling:.0f} on {images} images, and caps {', '.join(map(str, full))} are there "
            f"or nearly there: it hardly tells them apart, {more}."
        ]

    @cached_property
    def _key(self) -> dict[str, Any]:
        return score_key(self.plans, self.settings, self.source.cases, self.device.type)

    def provenance_settings(self) -> dict[str, Any]:
        """With the metric."""
        return {"metric": self.settings.metric, **super().provenance_settings()}

    def _require_enough_candidates(self) -> None:
        if len(self.candidates) < MIN_CANDIDATES:
            raise DataProblem(
                f"{self.settings.configuration} is at most {self.candidates[0].cap} channels wide, which gives "
                f"{len(self.candidates)} candidates, and the rule needs {MIN_CANDIDATES}: train it as it is"
            )

    def _require_sound_seeds(self) -> None:
        seeds = self.settings.seeds
        if len(set(seeds)) != len(seeds):
            raise UsageError("-seed names a seed twice")
        if self.settings.rule == "spread" and self.settings.metric != "jacobian":
            raise UsageError(
                "-rule spread is about the law of gradients at initialisation: use it with -metric jacobian"
            )
        if self.settings.rule == "spread" and 0 < len(self.settings.common_seeds) < MIN_SPREAD_SEEDS:
            raise UsageError(f"-rule spread needs at least {MIN_SPREAD_SEEDS} seeds: -seed 0 1 2 3 4 5 6 7 8 9")

    def _require_enough_images(self) -> None:
        least, images = PROXIES[self.settings.metric].minimum_images, len(self.source.cases)
        if images < least:
            raise UsageError(
                f"-metric {self.settings.metric} compares images with each other and needs {least}, not {images}: -n 64"
            )
