"""What every selection of a width shares: checks, the candidates' configurations, one at a time, writing."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nnunet_nas.architecture import derive, network_spec
from nnunet_nas.errors import DataProblem
from nnunet_nas.files import locked, require_writable
from nnunet_nas.plans import Plans, Provenance
from nnunet_nas.xtiny.request import TinySettings, keep_earlier, results_folder
from nnunet_nas.xtiny.scoring import candidates_of
from nnunet_nas.xtiny.widths import candidate_name


class Written(NamedTuple):
    """What a selection left behind.

    Attributes:
        configurations: names of those that were not in the plans yet.
        earlier: where the reports of an earlier run with other inputs were moved to, if there were any.
    """

    configurations: list[str]
    earlier: Path | None


class WidthJob(ABC):
    """One selection on one data set.

    Attributes:
        cases: that are looked at.
        output_folder: where reports and scores lie, beside the plans.
    """

    def __init__(self, dataset: Path, settings: TinySettings, device: torch.device) -> None:
        """Reads and checks everything.

        Args:
            dataset: preprocessed folder of the data set.
            settings: what to do.
            device: where to compute.

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
        self.check()
        self.cases = self.find_cases()
        self.output_folder = results_folder(dataset, settings)
        base = settings.configuration
        # All but the widest, which is the base itself.
        self._derived = [
            derive(candidate_name(base, candidate.cap), base, candidate.spec, self._provenance(candidate.cap, None, ()))
            for candidate in self.candidates[1:]
        ]
        if not settings.dry_run:
            self._require_open_door()

    @abstractmethod
    def check(self) -> None:
        """Raises what the rule cannot do."""

    @abstractmethod
    def find_cases(self) -> Sequence[str]:
        """The cases to look at."""

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

    def add_configurations(self, selected: int, inputs: dict[str, Any]) -> Written:
        """Adds the configurations, or the record of this run to those that are there; earlier reports are kept.

        Args:
            selected: cap.
            inputs: of this run's report.
        """
        derived = [
            replace(item, provenance=self._provenance(candidate.cap, selected, self.seeds_of(position)))
            for position, (item, candidate) in enumerate(zip(self._derived, self.candidates[1:], strict=True), start=1)
        ]
        added = self.plans.add(
            derived, output=self.settings.output, overwrite=self.settings.overwrite, renew_records=True
        )
        return Written(added, keep_earlier(self.output_folder, self.settings.reports, inputs))

    @property
    def data_folder(self) -> Path:
        """Preprocessed data of the configuration.

        Raises:
            DataProblem: it does not say which.
        """
        identifier = self.configuration.get("data_identifier")
        if not isinstance(identifier, str):
            raise DataProblem(
                f"configuration {self.settings.configuration} has no data_identifier: plan the data set again with "
                f"nnUNetv2_plan_experiment"
            )
        return self.dataset / identifier

    def seeds_of(self, position: int) -> Sequence[int]:
        """What a candidate's weights were drawn with."""
        return self.settings.common_seeds

    def provenance_settings(self) -> dict[str, Any]:
        """What decided, beside the width and the seeds."""
        return {"rule": self.settings.rule, "images": len(self.cases)}

    def _provenance(self, cap: int, selected_cap: int | None, seeds: Sequence[int]) -> Provenance:
        settings = {"cap": cap, **self.provenance_settings(), "selected_cap": selected_cap}
        return Provenance("xtiny", self.plans.digest(self.settings.configuration), settings, seeds)

    def _require_single_stage(self) -> None:
        if self.configuration.get("previous_stage"):
            raise DataProblem(
                f"{self.settings.configuration} is a cascade's second stage and takes another network's "
                f"predictions as input, which unlabelled images do not have: choose its single-stage base, for example "
                f"-c 3d_fullres"
            )

    def _require_open_door(self) -> None:
        require_writable(self.dataset)
        self.plans.check(self._derived, output=self.settings.output, overwrite=self.settings.overwrite)
        require_writable(self.output_folder)
