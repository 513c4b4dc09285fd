"""A proof from start to end: check everything, train and evaluate widths in their order, decide, write.

Everything is on the disk where nnU-Net keeps it: a proof that was cut off goes on, and one that was finished is only
computed again. What can be refused is refused by the constructor, before anything is trained.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_nas.architecture import NetworkSpec, build_without_weights, derive, network_spec
from nnunet_nas.commands import DEFAULT_PLANS, STOCK_TRAINER, ours
from nnunet_nas.complexity import Complexity, complexity_of, count_macs, step_macs
from nnunet_nas.environment import folder_from_environment
from nnunet_nas.errors import DataProblem, NasError, UsageError
from nnunet_nas.evaluation.rows import Group, Metric, Row, rows_of
from nnunet_nas.evaluation.summaries import Model, common_cases, listed, read_patients
from nnunet_nas.files import locked, read_json, require_writable
from nnunet_nas.methods import METHODS, trainers
from nnunet_nas.plans import DerivedConfiguration, Plans, Provenance
from nnunet_nas.schedule.settings import ScheduleSettings
from nnunet_nas.settings import overrides, read_settings
from nnunet_nas.xtiny import proof
from nnunet_nas.xtiny.proof_report import PROOF, Planned, ProofReport, Trial, write_proof
from nnunet_nas.xtiny.proof_runs import FINAL, Bench, HoldOut, Trained, after_others, find_hold_out
from nnunet_nas.xtiny.request import RACE, RACE_FOLD, SELECTION, keep_earlier
from nnunet_nas.xtiny.scoring import candidates_of
from nnunet_nas.xtiny.widths import candidate_name, capped_features, caps_of

AUTO, HOLD_OUT, VALIDATION = JUDGES = ("auto", "test", "validation")
_DISTILL = "nnUNetTrainerDistill"
# Candidates without -widths: the selected one and the next wider ones.
_WIDTHS = 3


@dataclass(frozen=True)
class ProofSettings:
    """What is to be proven, and how.

    Attributes:
        configuration: the base, for example `2d`.
        plans: plans identifier.
        folds: to train; `0` to `4`, or `all`.
        trainer: of the base and of the candidates; None: nnU-Net's own, or else the only one that is there.
        widths: caps of the candidates; empty: the selected one and the next wider ones.
        margin: Dice that does not matter.
        order: one of `proof.ORDERS`.
        claim: one of `proof.CLAIMS`.
        distill: candidates learn from the base.
        judge: one of `JUDGES`; `auto` takes the hold-out cases if there are any.
        patients: file that says whose case each one is; None if each case counts for itself.
        seed: of the bootstrap.
        device: to train and predict on.
        processes: that predict and evaluate; None for nnU-Net's defaults.
    """

    configuration: str = "2d"
    plans: str = DEFAULT_PLANS
    folds: tuple[str, ...] = ("0",)
    trainer: str | None = None
    widths: tuple[int, ...] = ()
    margin: float = 0.01
    order: str = proof.NARROW
    claim: str = proof.EQUIVALENT
    distill: bool = False
    judge: str = AUTO
    patients: Path | None = None
    seed: int = 0
    device: str = "cuda"
    processes: int | None = None


class ProofJob:
    """One proof on one data set.

    Attributes:
        base: as it was trained.
        caps: of the candidates, in the order of testing.
        hold_out: the cases that judge; None if validation cases do.
        output_folder: where reports and predictions lie, beside the plans.
    """

    def __init__(self, dataset: Path, settings: ProofSettings) -> None:
        """Reads and checks everything.

        Args:
            dataset: preprocessed folder of the data set.
            settings: what to do.

        Raises:
            NasError: anything that would make the job fail later, a base that is not trained first of all.
        """
        self.dataset = dataset
        self.settings = settings
        self.plans = Plans.of(dataset, settings.plans)
        self.plans.require_fresh(settings.configuration)
        if self.plans.resolve(settings.configuration).get("previous_stage"):
            raise DataProblem(
                f"{settings.configuration} is a cascade's second stage, whose widths are not selected: choose a "
                f"single-stage base, for example -c 3d_fullres"
            )
        self.spec = network_spec(self.plans, settings.configuration)
        candidates_of(self.spec, settings.configuration)
        self.base = self._find_base()
        self.caps = proof.in_order(self._widths(), settings.order)
        self.hold_out = self._find_judge()
        self.patients = {} if settings.patients is None else read_patients(settings.patients)
        self.cases = list(self.hold_out.cases) if self.hold_out else self._validation_cases()
        self._require_patients(self.cases)
        self._require_several()
        kind = f"{PROOF}_distill" if settings.distill else PROOF
        self.output_folder = dataset / "nas_xtiny" / f"{settings.plans}__{settings.configuration}__{kind}"
        self._require_open_door()
        self._require_same_schedules()

    # What is there already

    def _find_base(self) -> Trained:
        """The trained base.

        Raises:
            DataProblem: it is not trained (the message is the command to do so), or by several trainers.
        """
        dataset, plans, name = self.dataset.name, self.settings.plans, self.settings.configuration
        # What they leave is no network trained on the labels alone.
        others = set(trainers()) - {METHODS["schedule"].trainer_name}
        if self.settings.trainer in others:
            raise UsageError(f"-tr {self.settings.trainer} trains no base: name the trainer that trained {name}")
        results, suffix = folder_from_environment("nnUNet_results") / dataset, f"__{plans}__{name}"
        trained = sorted(
            path.name.removesuffix(suffix)
            for path in (results.iterdir() if results.is_dir() else ())
            if path.name.endswith(suffix) and any((path / f"fold_{fold}" / FINAL).exists() for fold in self._folds)
        )
        trained = [trainer for trainer in trained if trainer not in others]
        trainer = self.settings.trainer
        if trainer is None and len(trained) > 1 and STOCK_TRAINER not in trained:
            raise DataProblem(f"{name} was trained by {', '.join(trained)}: choose one with -tr")
        if trainer is None:
            trainer = STOCK_TRAINER if STOCK_TRAINER in trained or not trained else trained[0]
        base = Trained(dataset, plans, name, trainer)
        missing = [fold for fold in self._folds if not base.is_trained(fold)]
        if missing:
            begun = [fold for fold in missing if base.fold(fold).is_dir()]
            commands = [base.train_command(fold, "--c" if fold in begun else "") for fold in missing]
            raise DataProblem(
                f"the base is not trained (fold {', '.join(missing)} of {base.name}): run {' && '.join(commands)}"
            )
        return base

    @property
    def _folds(self) -> tuple[str, ...]:
        return self.settings.folds

    @property
    def _features(self) -> list[int]:
        return list(self.spec.architecture["arch_kwargs"]["features_per_stage"])

    def _widths(self) -> list[int]:
        """Caps of the candidates.

        Raises:
            DataProblem: none is named or selected, or one is as wide as the base.
        """
        widest, base = max(self._features), self.settings.configuration
        if self.settings.widths:
            wrong = [cap for cap in self.settings.widths if not 0 < cap < widest]
            if wrong:
                raise UsageError(f"-widths {wrong[0]}: give caps from 1 to {widest - 1}, {base} itself has {widest}")
            return sorted(set(self.settings.widths))
        narrower = [cap for cap in caps_of(self._features) if cap < widest]
        found = self._selected()
        if found not in narrower:
            select = ours("select_tiny", self.plans.number, base, plans=self.settings.plans)
            raise DataProblem(f"no width of {base} is selected: run {select} first, or name candidates with -widths")
        last = narrower.index(found)
        return narrower[max(0, last + 1 - _WIDTHS) : last + 1]

    def _records(self) -> list[dict[str, Any]]:
        """Of all widths of the base that the plans have, the earliest first."""
        names = [self._name(cap) for cap in range(1, max(self._features))]
        found = [self.plans.record(name) for name in names if name in self.plans.configurations]
        records = [record for record in found if record and isinstance(record.get("settings"), dict)]
        return sorted(records, key=lambda record: str(record.get("created", "")))

    def _selected(self) -> int | None:
        """The cap that was selected last."""
        caps = [record["settings"].get("selected_cap") for record in self._records()]
        return next((cap for cap in reversed(caps) if isinstance(cap, int)), None)

    def _raced_on(self) -> str | None:
        """The fold on whose validation cases a race has looked at widths of this base."""
        folder = f"{self.settings.plans}__{self.settings.configuration}__{RACE}"
        raced = any(record["settings"].get("rule") == RACE for record in self._records())
        return str(RACE_FOLD) if raced or (self.dataset / "nas_xtiny" / folder / SELECTION).exists() else None

    def _find_judge(self) -> HoldOut | None:
        judge = self.settings.judge
        ending = str(self.plans.dataset_json.get("file_ending", ""))
        found = None if judge == VALIDATION else find_hold_out(self.dataset.name, ending)
        if judge == HOLD_OUT and found is None:
            raise DataProblem(
                f"{self.dataset.name} has no labelled hold-out cases in nnUNet_raw (imagesTs and labelsTs): add them, "
                f"or judge on validation cases with -judge validation"
            )
        if found is None and "all" in self._folds:
            raise UsageError(
                "-f all trains on all cases, so that none is left to judge on: give folds, or hold-out cases "
                "(imagesTs, labelsTs) and -judge test"
            )
        return found

    def _validation_cases(self) -> list[str]:
        """Of the folds, by nnU-Net's split.

        Raises:
            DataProblem: there is none.
        """
        path = self.dataset / "splits_final.json"
        splits = read_json(path, "restore it: the base was trained with it")
        try:
            return sorted(case for fold in self._folds for case in splits[int(fold)]["val"])
        except (IndexError, KeyError, TypeError, ValueError) as error:
            folds = " or ".join(self._folds)
            raise DataProblem(f"{path} has no fold {folds}: choose others with -f") from error

    # Refusals

    def _require_patients(self, cases: Sequence[str]) -> None:
        unknown = [case for case in cases if case not in self.patients]
        if self.settings.patients is not None and unknown:
            raise DataProblem(
                f"{self.settings.patients} names no patient for {len(unknown)} case(s): add {listed(unknown)}"
            )

    def _require_several(self) -> None:
        if self.units < 2:
            raise DataProblem(f"{self.units} {self._unit} to judge on, and a test needs two: choose others with -f")

    @property
    def units(self) -> int:
        """What counts once in the tests: cases, or patients."""
        return len({self.patients[case] for case in self.cases} if self.patients else self.cases)

    @property
    def _unit(self) -> str:
        return "patients" if self.patients else "cases"

    def _require_open_door(self) -> None:
        require_writable(self.dataset)
        require_writable(self.output_folder)
        self.plans.check(self._derived)

    def _require_same_schedules(self) -> None:
        """Whatever was or will be trained differs from the base in its width alone."""
        for cap in self.caps:
            for fold in self._folds:
                self._require_same_length(self.candidate(cap), fold)
        method = next((m for m in METHODS.values() if m.settings and m.trainer_name == self.base.trainer), None)
        if method is None:
            return
        trained = Plans.read(self.base.folder / "plans.json")
        then = overrides(trained.resolve(self.settings.configuration), method.name)
        for name in (self.settings.configuration, *map(self._name, self.caps)):
            now = overrides(self.plans.resolve(name), method.name) if name in self.plans.configurations else then
            if now != then:
                raise DataProblem(
                    f"settings {method.name} of {name} are not those that the base was trained with ({then}): set them "
                    f"back with {ours('set_search', self.plans.number, name, plans=self.settings.plans)} -m "
                    f"{method.name} ..."
                )

    def _require_same_length(self, model: Trained, fold: str) -> None:
        """Length and rate of a candidate's training, where it has begun, are the base's."""
        theirs, its = self.base.schedule(fold), model.schedule(fold)
        if model.is_trained(fold) and theirs and its and theirs != its:
            differs = [f"{key} {its[key]:g} instead of {theirs[key]:g}" for key in theirs if its[key] != theirs[key]]
            raise DataProblem(
                f"{model.name} was trained otherwise than the base ({', '.join(differs)}): move {model.fold(fold)} away"
            )

    # What it will cost

    def _name(self, cap: int) -> str:
        return candidate_name(self.settings.configuration, cap)

    def _narrowed(self, cap: int) -> NetworkSpec:
        return self.spec.with_features(capped_features(self._features, cap))

    @cached_property
    def _derived(self) -> list[DerivedConfiguration]:
        base = self.settings.configuration
        digest = self.plans.digest(base)
        return [
            derive(
                self._name(cap),
                base,
                self._narrowed(cap),
                Provenance("xtiny", digest, {"cap": cap, "rule": "named", "selected_cap": None}),
            )
            for cap in self.caps
        ]

    def candidate(self, cap: int) -> Trained:
        """What is trained for a width."""
        trainer = _DISTILL if self.settings.distill else self.base.trainer
        return replace(self.base, configuration=self._name(cap), trainer=trainer)

    @cached_property
    def costs(self) -> dict[int, Complexity]:
        """Of the candidates, by cap."""
        return {cap: complexity_of(self._narrowed(cap)) for cap in self.caps}

    @cached_property
    def base_cost(self) -> Complexity:
        """Of the base."""
        return complexity_of(self.spec)

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

    # The work

    @contextlib.contextmanager
    def alone(self, say: Callable[[str], object]) -> Iterator[Bench]:
        """Keeps a second proof of the same kind out, and waits for what an earlier one has left running.

        Args:
            say: tells what is going on.

        Raises:
            EnvironmentProblem: another process is at it.
        """
        busy = f"another prove_tiny is at work on {self.settings.configuration} of {self.dataset.name}: wait for it"
        with (
            locked(self.output_folder, timeout=0, busy=busy),
            after_others(self.output_folder / ".running.lock", say) as lock,
        ):
            yield Bench(self.output_folder, self.settings.device, self.settings.processes, say, lock)

    def run(self, bench: Bench) -> ProofReport:
        """Trains and judges one width after the other until the order says that it is over."""
        self._prepare_plans()
        base = self._judged(self.base, bench)
        trials: list[Trial] = []
        while not proof.finished([trial.passed for trial in trials], self.settings.order, len(self.caps)):
            trials.append(self._trial(self.caps[len(trials)], base, bench))
        return self._report(trials)

    def _prepare_plans(self) -> None:
        """The candidates' configurations; with distillation the base as their teacher, and its schedule."""
        self.plans.add(self._derived)
        if not self.settings.distill:
            return
        settings = self._distillation()
        with Plans.edited(self.plans.path) as plans:
            for cap in self.caps:
                plans.set(self._name(cap), "distill", settings)

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
        for fold in self._folds:
            self._require_same_length(self.candidate(cap), fold)
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
        patients: Mapping[str, str] = self.patients
        group = Group(self.dataset.name, "", [base, model], cases, patients)
        dice = Metric("Dice", "", higher_is_better=True, margin=self.settings.margin, digits=4)
        return rows_of(group, 1, dice, seed=self.settings.seed)[0]

    def _report(self, trials: Sequence[Trial]) -> ProofReport:
        settings = self.settings
        return ProofReport(
            inputs=self.inputs,
            base=settings.configuration,
            base_cost=self.base_cost,
            trainer=self.base.trainer,
            schedule=self.base.schedule(self._folds[0]),
            planned=self.planned,
            trials=trials,
            independence=proof.independence(
                hold_out=self.hold_out is not None,
                folds=self._folds,
                raced_on=self._raced_on(),
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
                }
            )
        )

    def _earlier_looks(self) -> int:
        """Proofs with other settings that have looked at some of these cases."""
        folders = self.output_folder.parent.glob(f"{self.settings.plans}__{self.settings.configuration}__{PROOF}*")
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
