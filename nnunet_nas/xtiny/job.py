"""One selection from start to end: check everything, score what is not known, decide, write.

Everything that can be refused is refused by `TinyJob`'s constructor, so that no scoring ends at a closed door.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nnunet_nas.architecture import build_without_weights, derive, network_spec
from nnunet_nas.complexity import complexity_of
from nnunet_nas.data import PatchSource, list_cases
from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.files import locked, require_writable
from nnunet_nas.plans import Plans, Provenance
from nnunet_nas.xtiny.decision import decide
from nnunet_nas.xtiny.proxies import PROXIES
from nnunet_nas.xtiny.report import Report, write_report
from nnunet_nas.xtiny.request import TinySettings, inputs_of, keep_earlier, results_folder, score_key
from nnunet_nas.xtiny.scoring import Scorer, candidates_of
from nnunet_nas.xtiny.selection import MIN_CANDIDATES, MIN_SPREAD_SEEDS, within_budget
from nnunet_nas.xtiny.sensitivity import uses_batch_statistics
from nnunet_nas.xtiny.store import ScoreStore
from nnunet_nas.xtiny.widths import candidate_name

_ONE_AT_A_TIME = "The network has batch normalisation, in which images influence each other: scored one at a time."
# From this share of the largest possible score on, a metric hardly tells widths apart (our choice).
_NEARLY = 0.9


class Written(NamedTuple):
    """What a selection left behind.

    Attributes:
        configurations: names of those that were not in the plans yet.
        earlier: where the reports of an earlier run with other inputs were moved to, if there were any.
    """

    configurations: list[str]
    earlier: Path | None


class TinyJob:
    """One selection on one data set.

    Attributes:
        output_folder: where reports and scores lie, beside the plans.
        notes: what the user should know about the way of scoring, one sentence each.
    """

    def __init__(self, dataset: Path, settings: TinySettings, device: torch.device) -> None:
        """Reads and checks everything.

        Args:
            dataset: preprocessed folder of the data set.
            settings: what to do.
            device: where to score.

        Raises:
            NasError: anything that would make the job fail later.
        """
        self.dataset = dataset
        self.settings = settings
        self.device = device
        self.plans = Plans.of(dataset, settings.plans)
        self.plans.require_fresh(settings.configuration)
        self.configuration = self.plans.resolve(settings.configuration)
        self._require_single_stage()
        self.base = network_spec(self.plans, settings.configuration)
        self.candidates = candidates_of(self.base, settings.configuration)
        self._require_enough_candidates()
        self._require_sound_seeds()
        self.notes = [_ONE_AT_A_TIME] if uses_batch_statistics(build_without_weights(self.base)) else []
        self.source = PatchSource(self._data_folder, self._cases(), self.base.patch_size)
        self._require_enough_images()
        self.output_folder = results_folder(dataset, settings)
        base = settings.configuration
        # All but the widest, which is the base itself.
        self._derived = [
            derive(candidate_name(base, candidate.cap), base, candidate.spec, self._provenance(candidate.cap, None))
            for candidate in self.candidates[1:]
        ]
        if not settings.dry_run:
            self._require_open_door()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps a second scoring of the same configuration out: it would do the same work twice.

        Raises:
            EnvironmentProblem: another process is at it.
        """
        if self.settings.dry_run:
            yield
            return
        busy = (
            f"another select_tiny is scoring {self.settings.configuration} of {self.dataset.name}: wait for it and "
            f"run this again, its scores will be used"
        )
        with locked(self.output_folder, timeout=0, busy=busy):
            yield

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

    def steps(self) -> int:
        """How many steps `run` will report in total."""
        return self.scorer.steps(self.candidates, self.settings.seeds)

    def run(self, progress: Callable[[int], object] = lambda steps: None) -> Report:
        """Scores what is not known yet and decides; writes nothing but scores.

        Args:
            progress: called with the number of steps done.
        """
        complexity = [complexity_of(candidate.spec) for candidate in self.candidates]
        costs = [cost.to_json() for cost in complexity]
        # A budget that not even the narrowest width satisfies is refused before scoring.
        within_budget(len(costs) - 1, costs, self.settings.budgets)
        curves: np.ndarray = self.scorer.curves(self.candidates, self.settings.seeds, progress)
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
            complexity=complexity,
            seeds=self.settings.seeds,
            curves=curves,
            decision=decision,
            metric=self.settings.metric,
            notes=[*self.notes, *saturated],
        )

    def write(self, report: Report) -> Written:
        """Adds the configurations, or the record of this run to those that are there, then writes the reports."""
        selected = report.caps[report.decision.position]
        derived = [
            replace(item, provenance=self._provenance(cap, selected))
            for item, cap in zip(self._derived, report.caps[1:], strict=True)
        ]
        added = self.plans.add(
            derived, output=self.settings.output, overwrite=self.settings.overwrite, renew_records=True
        )
        earlier = keep_earlier(self.output_folder, report.inputs)
        write_report(report, self.output_folder)
        return Written(added, earlier)

    def _saturated(self, curves: np.ndarray) -> list[str]:
        """A sentence about widths that a metric cannot tell apart, because no network can score more on these images.

        Raises:
            DataProblem: it can tell none apart.
        """
        metric, images = self.settings.metric, len(self.source.cases)
        ceiling = PROXIES[metric].ceiling(images)
        full = [
            candidate.cap
            for candidate, score in zip(self.candidates, curves.max(axis=0), strict=True)
            if score >= _NEARLY * ceiling
        ]
        more = "take more images with -n, or another -metric"
        if curves.min() >= ceiling:
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

    @property
    def _data_folder(self) -> Path:
        identifier = self.configuration.get("data_identifier")
        if not isinstance(identifier, str):
            raise DataProblem(
                f"configuration {self.settings.configuration} has no data_identifier: plan the data set again with "
                f"nnUNetv2_plan_experiment"
            )
        return self.dataset / identifier

    def _cases(self) -> list[str]:
        known = list_cases(self._data_folder)
        if len(set(self.settings.cases)) != len(self.settings.cases):
            raise UsageError("-cases names a case twice")
        return self.settings.cases_among(known)

    @cached_property
    def _key(self) -> dict[str, Any]:
        return score_key(self.plans, self.settings, self.source.cases, self.device.type)

    def _provenance(self, cap: int, selected_cap: int | None) -> Provenance:
        settings = {
            "cap": cap,
            "metric": self.settings.metric,
            "rule": self.settings.rule,
            "images": len(self.source.cases),
            "selected_cap": selected_cap,
        }
        return Provenance("xtiny", self.plans.digest(self.settings.configuration), settings, self.settings.seeds)

    def _require_single_stage(self) -> None:
        if self.configuration.get("previous_stage"):
            raise DataProblem(
                f"{self.settings.configuration} is a cascade's second stage and takes another network's "
                f"predictions as input, which unlabelled images do not have: choose its single-stage base, for example "
                f"-c 3d_fullres"
            )

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
        if self.settings.rule == "spread" and len(seeds) < MIN_SPREAD_SEEDS:
            raise UsageError(f"-rule spread needs at least {MIN_SPREAD_SEEDS} seeds: -seed 0 1 2 3 4 5 6 7 8 9")

    def _require_enough_images(self) -> None:
        least, images = PROXIES[self.settings.metric].minimum_images, len(self.source.cases)
        if images < least:
            raise UsageError(
                f"-metric {self.settings.metric} compares images with each other and needs {least}, not {images}: -n 64"
            )

    def _require_open_door(self) -> None:
        require_writable(self.dataset)
        self.plans.check(self._derived, output=self.settings.output, overwrite=self.settings.overwrite)
        require_writable(self.output_folder)
