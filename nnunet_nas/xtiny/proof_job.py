"""A proof from start to end: check everything, train and evaluate widths in their order, decide, write.

Everything is on the disk where nnU-Net keeps it: a proof that was cut off goes on, and one that was finished is only
computed again. What can be refused is refused by the constructor, before anything is trained.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_nas.architecture import NetworkSpec, build_without_weights, derive, network_spec
from nnunet_nas.complexity import Complexity, complexity_of, count_macs, step_macs
from nnunet_nas.errors import DataProblem, NasError
from nnunet_nas.evaluation.rows import Group, Metric, Row, rows_of
from nnunet_nas.evaluation.summaries import Model, common_cases, listed, read_patients
from nnunet_nas.files import locked, read_json, require_writable
from nnunet_nas.methods import METHODS
from nnunet_nas.plans import DerivedConfiguration, Plans, Provenance
from nnunet_nas.schedule.settings import ScheduleSettings
from nnunet_nas.settings import read_settings
from nnunet_nas.xtiny import proof
from nnunet_nas.xtiny.proof_report import PROOF, Planned, ProofReport, Trial, write_proof
from nnunet_nas.xtiny.proof_request import (
    HOLD_OUT,
    VALIDATION,
    ProofSettings,
    candidate_caps,
    find_base,
    find_judge,
    raced_on,
    require_same_length,
    require_same_settings,
    validation_cases,
)
from nnunet_nas.xtiny.proof_runs import Bench, Trained, after_others
from nnunet_nas.xtiny.request import keep_earlier
from nnunet_nas.xtiny.scoring import candidates_of
from nnunet_nas.xtiny.widths import candidate_name, capped_features


class ProofJob:
    """One proof on one data set.

    Attributes:
        base: as it was trained.
        caps: of the candidates, in the order of testing.
        hold_out: the cases that judge; None if validation cases do.
        output_folder: of the reports, beside the plans; predictions and what nnU-Net prints: in that of plain proofs.
    """

    def __init__(self, dataset: Path, settings: ProofSettings) -> None:
        """Reads and checks everything.

        Args:
            dataset: preprocessed folder of the data set.
            settings: what to do.

        Raises:
            NasError: anything that would make the job fail later.
        """
        self.dataset, self.settings, self._folds = dataset, settings, settings.folds
        self.plans = Plans.of(dataset, settings.plans)
        self.plans.require_fresh(settings.configuration)
        self._require_single_stage()
        self.spec = network_spec(self.plans, settings.configuration)
        # Refuses networks without widths.
        self._features = candidates_of(self.spec, settings.configuration)[0].features
        self.base = find_base(dataset.name, settings)
        self.caps = proof.in_order(candidate_caps(self.plans, settings, self._features), settings.order)
        self.hold_out = find_judge(self.plans, settings)
        self.patients = {} if settings.patients is None else read_patients(settings.patients)
        self.cases = list(self.hold_out.cases) if self.hold_out else validation_cases(dataset, self._folds)
        self._require_patients(self.cases)
        if self.units < 2:
            raise DataProblem(f"{self.units} of {self._unit} to judge on, and a test needs two: choose others with -f")
        self._work_folder = dataset / "nas_xtiny" / f"{settings.plans}__{settings.configuration}__{PROOF}"
        self.output_folder = self._work_folder
        if settings.distill:
            self.output_folder = self._work_folder.with_name(f"{self._work_folder.name}_distill")
        for folder in (dataset, self._work_folder, self.output_folder):
            require_writable(folder)
        self.plans.check(self._derived)
        self._teaching = self._distillation() if settings.distill else None
        require_same_settings(self.base, self.plans, [self._name(cap) for cap in self.caps])
        for cap in self.caps:
            require_same_length(self.base, self.candidate(cap), self._folds)

    def _require_single_stage(self) -> None:
        if self.plans.resolve(self.settings.configuration).get("previous_stage"):
            raise DataProblem(
                f"{self.settings.configuration} is a cascade's second stage, whose widths are not selected: choose a "
                f"single-stage base, for example -c 3d_fullres"
            )

    def _require_patients(self, cases: Sequence[str]) -> None:
        unknown = [case for case in cases if case not in self.patients]
        if self.settings.patients is not None and unknown:
            raise DataProblem(
                f"{self.settings.patients} names no patient for {len(unknown)} case(s): add {listed(unknown)}"
            )

    @property
    def units(self) -> int:
        """What counts once in the tests: cases, or patients."""
        return len({self.patients[case] for case in self.cases} if self.patients else self.cases)

    @property
    def _unit(self) -> str:
        return "patients" if self.patients else "cases"

    def candidate(self, cap: int) -> Trained:
        """What is trained for a width."""
        trainer = str(METHODS["distill"].trainer_name) if self.settings.distill else self.base.trainer
        return replace(self.base, configuration=self._name(cap), trainer=trainer)

    def _name(self, cap: int) -> str:
        return candidate_name(self.settings.configuration, cap)

    def _narrowed(self, cap: int) -> NetworkSpec:
        return self.spec.with_features(capped_features(self._features, cap))

    @cached_property
    def _derived(self) -> list[DerivedConfiguration]:
        base = self.settings.configuration
        digest = self.plans.digest(base)

        def record(cap: int) -> Provenance:
            return Provenance("xtiny", digest, {"cap": cap, "rule": "named", "selected_cap": None})

        return [derive(self._name(cap), base, self._narrowed(cap), record(cap)) for cap in self.caps]

    @cached_property
    def costs(self) -> dict[int, Complexity]:
        """Of the candidates, by cap."""
        return {cap: complexity_of(self._narrowed(cap)) for cap in self.caps}

    @cached_property
    def planned(self) -> list[Planned]:
        """The candidates and their trainings, in the order of testing."""
        shape = (1, self.spec.input_channels, *self.spec.patch_size)
        base = build_without_weights(self.spec)
        step, teaching = step_macs(base, shape), count_macs(base, shape) if self.settings.distill else 0
        found = []
        for cap in self.caps:
            macs = step_macs(build_without_weights(self._narrowed(cap)), shape) + teaching
            left = sum(not self.candidate(cap).is_trained(fold) for fold in self._folds) / len(self._folds)
            found.append(Planned(cap, self._name(cap), self.costs[cap], macs / step, left))
        return found

    def announcement(self) -> list[str]:
        """What it will cost beside the base's training, and what the cases can show, one sentence per line."""
        left = [item.share * item.left for item in self.planned]
        tests = proof.planned_tests(self.settings.order, len(self.caps))
        ends = "passes" if self.settings.order == proof.NARROW else "fails"
        lines = [
            f"{item.configuration}: training costs {item.share:.3g} of the base's{'' if item.left else ', and is done'}"
            for item in self.planned
        ]
        lines.append(
            f"Up to {sum(left):.3g} trainings of the base are left, {left[0]:.3g} if the first width {ends} "
            f"(multiply-accumulates of a step x iterations{self._length()}; validation and prediction come on top)."
        )
        deviation = proof.largest_deviation(self.units, self.settings.margin, tests)
        lines.append(
            f"{self.units} {self._unit} judge: equivalence of a width that does not differ is shown with 80 % "
            f"probability if its differences have a standard deviation of at most {deviation:.3g} Dice."
        )
        return lines

    def _length(self) -> str:
        found = self.base.schedule(self._folds[0])
        return "" if found is None else f", {found['num_epochs'] * found['num_iterations_per_epoch']:,.0f} each"

    @contextlib.contextmanager
    def alone(self, say: Callable[[str], object]) -> Iterator[Bench]:
        """Keeps a second proof of the same base out, and waits for what an earlier one has left running.

        Args:
            say: tells what is going on.

        Raises:
            EnvironmentProblem: another process is at it.
        """
        busy = f"another prove_tiny is at work on {self.settings.configuration} of {self.dataset.name}: wait for it"
        with (
            locked(self._work_folder, timeout=0, busy=busy),
            after_others(self._work_folder / ".running.lock", say) as lock,
        ):
            yield Bench(self._work_folder, self.settings.device, self.settings.processes, say, lock)

    def run(self, bench: Bench) -> ProofReport:
        """Trains and judges one width after the other until the order says that it is over."""
        self._prepare_plans()
        base = self._judged(self.base, bench)
        trials: list[Trial] = []
        while not proof.finished([trial.passed for trial in trials], self.settings.order, len(self.caps)):
            trials.append(self._trial(self.caps[len(trials)], base, bench))
        return self._report(trials)

    def _prepare_plans(self) -> None:
        """The candidates' configurations; with distillation the base is their teacher, and its schedule theirs."""
        self.plans.add(self._derived)
        if self._teaching is not None:
            with Plans.edited(self.plans.path) as plans:
                for cap in self.caps:
                    plans.set(self._name(cap), "distill", self._teaching)

    def _distillation(self) -> dict[str, Any]:
        """Settings under which a candidate learns from the base for as long as that was trained.

        Raises:
            DataProblem: how long that was is not known.
        """
        schedules = [self.base.schedule(fold) for fold in self._folds]
        if schedules[0] is None or any(schedule != schedules[0] for schedule in schedules):
            raise DataProblem(
                f"how long the base was trained is not known, or differs between folds ({self.base.folder}/fold_*/"
                f"debug.json): train it again, or leave out --distill"
            )
        augmentation: dict[str, Any] = {}
        if METHODS["schedule"].trainer_name == self.base.trainer:
            settings = read_settings(ScheduleSettings, self.plans.resolve(self.settings.configuration))
            augmentation = {"augmentation": settings.augmentation, "seed": settings.seed}
        return {
            **schedules[0],
            **augmentation,
            "teacher_configuration": self.settings.configuration,
            "teacher_trainer": self.base.trainer,
        }

    def _judged(self, model: Trained, bench: Bench) -> Model:
        """A model, trained and evaluated."""
        for fold in self._folds:
            bench.train(model, fold, validate=self.hold_out is None)
        if self.hold_out is None:
            return model.validation(self._folds)
        return bench.predict(model, self._folds, self.hold_out)

    def _trial(self, cap: int, base: Model, bench: Bench) -> Trial:
        model = self._judged(self.candidate(cap), bench)
        require_same_length(self.base, self.candidate(cap), self._folds)
        row = self._compared(base, model)
        tests = proof.planned_tests(self.settings.order, len(self.caps))
        if row.comparison is None or row.comparison.equivalence is None:
            raise DataProblem(f"{model.name} and {base.name} have less than two cases with a Dice in common")
        found = proof.corrected(row.comparison.equivalence, tests)
        row = replace(row, comparison=replace(row.comparison, equivalence=found))
        passed = proof.passes(found, self.settings.claim)
        bench.say(f"{self._name(cap)}: {found.verdict}, {'passes' if passed else 'fails'}")
        return Trial(cap, self._name(cap), self.costs[cap], row, passed)

    def _compared(self, base: Model, model: Model) -> Row:
        """The foreground mean, or the only class, of a candidate beside the base."""
        cases, _ = common_cases([base, model], allow_others=False)
        self._require_patients(cases)
        group = Group(self.dataset.name, "", [base, model], cases, self.patients)
        dice = Metric("Dice", "", higher_is_better=True, margin=self.settings.margin, digits=4)
        return rows_of(group, 1, dice, seed=self.settings.seed)[0]

    def _report(self, trials: Sequence[Trial]) -> ProofReport:
        settings = self.settings
        return ProofReport(
            inputs=self.inputs,
            base=settings.configuration,
            base_cost=complexity_of(self.spec),
            trainer=self.base.trainer,
            schedule=self.base.schedule(self._folds[0]),
            planned=self.planned,
            trials=trials,
            independence=proof.independence(
                hold_out=self.hold_out is not None,
                folds=self._folds,
                raced_on=raced_on(self.plans, settings),
                named=bool(settings.widths),
            ),
            looks=self._earlier_looks(),
        )

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Everything that the report depends on, plain JSON."""
        asked = {key: value for key, value in asdict(self.settings).items() if key not in ("device", "processes")}
        return json.loads(
            json.dumps(
                {
                    **asked,
                    "dataset": self.dataset.name,
                    "base_digest": self.plans.digest(self.settings.configuration),
                    "trainer": self.base.trainer,
                    "widths": self.caps,
                    "judge": HOLD_OUT if self.hold_out else VALIDATION,
                    "cases": self.cases,
                    "patients": self.patients or None,
                    "distillation": self._teaching,
                }
            )
        )

    def _earlier_looks(self) -> int:
        """Proofs with other settings that have looked at some of these cases."""
        folders = self._work_folder.parent.glob(f"{self._work_folder.name}*")
        looks = 0
        for path in (path for folder in folders for path in folder.rglob(f"{PROOF}.json")):
            with contextlib.suppress(NasError, KeyError, TypeError):
                inputs = read_json(path, "")["inputs"]
                looks += inputs != self.inputs and bool(set(inputs["cases"]) & set(self.cases))
        return looks

    def write(self, report: ProofReport, text: str) -> Path | None:
        """Writes the reports, `text` for a person; where those of an earlier proof with other settings are now."""
        names = [f"{PROOF}.{ending}" for ending in ("json", "csv", "png", "txt")]
        earlier = keep_earlier(self.output_folder, [*names, "cases.csv"], self.inputs)
        write_proof(report, self.output_folder, text)
        return earlier
