"""What is to be proven: the base that was trained, the candidates, and the cases that judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_nas.commands import DEFAULT_PLANS, STOCK_TRAINER, ours
from nnunet_nas.environment import folder_from_environment
from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.files import read_json
from nnunet_nas.methods import METHODS, trainers
from nnunet_nas.plans import Plans
from nnunet_nas.settings import overrides
from nnunet_nas.xtiny import proof
from nnunet_nas.xtiny.proof_runs import FINAL, HoldOut, Trained, find_hold_out
from nnunet_nas.xtiny.request import RACE, RACE_FOLD, SELECTION
from nnunet_nas.xtiny.widths import caps_of

AUTO, HOLD_OUT, VALIDATION = JUDGES = ("auto", "test", "validation")
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


def find_base(dataset: str, settings: ProofSettings) -> Trained:
    """The trained base.

    Raises:
        UsageError: `-tr` names a trainer that leaves no network trained on the labels alone.
        DataProblem: it is not trained (the message ends with the command to do so), or by several trainers.
    """
    name, folds = settings.configuration, settings.folds
    others = set(trainers()) - {METHODS["schedule"].trainer_name}
    if settings.trainer in others:
        raise UsageError(f"-tr {settings.trainer} trains no base: name the trainer that trained {name}")
    results, suffix = folder_from_environment("nnUNet_results") / dataset, f"__{settings.plans}__{name}"
    trained = {
        path.name.removesuffix(suffix)
        for path in (results.iterdir() if results.is_dir() else ())
        if path.name.endswith(suffix) and any((path / f"fold_{fold}" / FINAL).exists() for fold in folds)
    } - others
    if settings.trainer is None and len(trained) > 1 and STOCK_TRAINER not in trained:
        raise DataProblem(f"{name} was trained by {', '.join(sorted(trained))}: choose one with -tr")
    found = STOCK_TRAINER if STOCK_TRAINER in trained or not trained else next(iter(trained))
    base = Trained(dataset, settings.plans, name, settings.trainer or found)
    missing = [fold for fold in folds if not base.is_trained(fold)]
    if missing:
        commands = [base.train_command(fold, "--c" if base.fold(fold).is_dir() else "") for fold in missing]
        raise DataProblem(
            f"the base is not trained (fold {', '.join(missing)} of {base.name}): run {' && '.join(commands)}"
        )
    return base


def candidate_caps(plans: Plans, settings: ProofSettings, features: Sequence[int]) -> list[int]:
    """Caps of the candidates: those that were named, or the one that was selected and the next wider ones.

    Args:
        plans: of the base.
        settings: what is asked for.
        features: channels per stage of the base.

    Raises:
        UsageError: a width is not narrower than the base.
        DataProblem: none is named or selected.
    """
    base, widest = settings.configuration, max(features)
    if settings.widths:
        wrong = [cap for cap in settings.widths if not 0 < cap < widest]
        if wrong:
            raise UsageError(f"-widths {wrong[0]}: give caps from 1 to {widest - 1}, {base} itself has {widest}")
        return sorted(set(settings.widths))
    narrower = [cap for cap in caps_of(features) if cap < widest]
    caps = [record["settings"].get("selected_cap") for record in _records(plans, base)]
    selected = next((cap for cap in reversed(caps) if cap in narrower), None)
    if selected is None:
        select = ours("select_tiny", plans.number, base, plans=settings.plans)
        raise DataProblem(f"no width of {base} is selected: run {select} first, or name candidates with -widths")
    last = narrower.index(selected)
    return narrower[max(0, last + 1 - _WIDTHS) : last + 1]


def raced_on(plans: Plans, settings: ProofSettings) -> str | None:
    """The fold on whose validation cases a race has looked at widths of the base; None without a race."""
    folder = plans.path.parent / "nas_xtiny" / f"{settings.plans}__{settings.configuration}__{RACE}"
    recorded = any(record["settings"].get("rule") == RACE for record in _records(plans, settings.configuration))
    return str(RACE_FOLD) if recorded or (folder / SELECTION).exists() else None


def _records(plans: Plans, base: str) -> list[dict[str, Any]]:
    """Of all widths of a base that the plans have, the latest last."""
    derived = [name for name, entry in plans.configurations.items() if entry.get("inherits_from") == base]
    found = [plans.record(name) for name in derived if plans.method(name) == "xtiny"]
    records = [record for record in found if record and isinstance(record.get("settings"), dict)]
    return sorted(records, key=lambda record: str(record.get("created", "")))


def find_judge(plans: Plans, settings: ProofSettings) -> HoldOut | None:
    """The hold-out cases that judge; None if validation cases do.

    Raises:
        UsageError: all cases were trained on.
        DataProblem: hold-out cases are asked for, and there are none or not all of them are labelled.
    """
    dataset, ending = plans.path.parent.name, str(plans.dataset_json.get("file_ending", ""))
    found = None if settings.judge == VALIDATION else find_hold_out(dataset, ending)
    if settings.judge == HOLD_OUT and found is None:
        raise DataProblem(
            f"{dataset} has no labelled hold-out cases in nnUNet_raw (imagesTs and labelsTs): add them, or judge on "
            f"validation cases with -judge validation"
        )
    if found is None and "all" in settings.folds:
        raise UsageError(
            "-f all trains on all cases, so that none is left to judge on: give folds, or hold-out cases (imagesTs, "
            "labelsTs) and -judge test"
        )
    return found


def validation_cases(dataset: Path, folds: Sequence[str]) -> list[str]:
    """Of these folds, by nnU-Net's split.

    Raises:
        DataProblem: there is none.
    """
    path = dataset / "splits_final.json"
    splits = read_json(path, "restore it: the base was trained with it")
    try:
        return sorted(case for fold in folds for case in splits[int(fold)]["val"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise DataProblem(f"{path} has no fold {' or '.join(folds)}: choose others with -f") from error


def require_same_settings(base: Trained, plans: Plans, names: Sequence[str]) -> None:
    """Refuses settings of the base's trainer that are not those that the base was trained with.

    Args:
        base: as it was trained.
        plans: as they are now.
        names: of the candidates' configurations, in the plans or not yet.

    Raises:
        DataProblem: they differ.
    """
    method = next((item for item in METHODS.values() if item.settings and item.trainer_name == base.trainer), None)
    if method is None:
        return
    then = overrides(Plans.read(base.folder / "plans.json").resolve(base.configuration), method.name)
    for name in (base.configuration, *(name for name in names if name in plans.configurations)):
        if overrides(plans.resolve(name), method.name) != then:
            change = ours("set_search", plans.number, name, "-m", method.name, plans=base.plans)
            raise DataProblem(
                f"settings {method.name} of {name} are not those that the base was trained with ({then}): set them "
                f"back with {change}"
            )


def require_same_length(base: Trained, model: Trained, folds: Sequence[str]) -> None:
    """Refuses a candidate whose training, where it has ended, had another length or rate than the base's.

    Raises:
        DataProblem: it had.
    """
    for fold in folds:
        wanted, had = base.schedule(fold), model.schedule(fold)
        if model.is_trained(fold) and wanted and had and wanted != had:
            differs = [f"{key} {had[key]:g} instead of {wanted[key]:g}" for key in wanted if had[key] != wanted[key]]
            raise DataProblem(
                f"{model.name} was trained otherwise than the base ({', '.join(differs)}): move {model.fold(fold)} away"
            )
