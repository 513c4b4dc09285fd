"""Evaluated models: which cases, which values, where the files are; read from what nnU-Net leaves behind.

A model is named as nnU-Net names its results folder (`TRAINER__PLANS__CONFIGURATION`), or is the path of such a folder,
of a folder with a `summary.json`, or of a folder of predictions, which nnU-Net then evaluates against given labels.
Cases are matched by the name of their label file.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from nnunet_nas import commands
from nnunet_nas.description import read_description
from nnunet_nas.environment import dataset_number, find_dataset
from nnunet_nas.errors import DataProblem, NasError, UsageError
from nnunet_nas.files import read_json

SUMMARY = "summary.json"
_SHOWN = 5


@dataclass(frozen=True)
class Case:
    """One evaluated case.

    Attributes:
        name: of the label file, without its ending.
        fold: `fold_0` for a validation case, empty for any other.
        prediction: the predicted segmentation; the file may be gone.
        reference: the label; the file may be gone.
        metrics: by class (`1`, or `(1, 2)` for a region, as in summary.json) and metric; NaN where it is undefined.
    """

    name: str
    fold: str
    prediction: Path
    reference: Path
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Model:
    """A model with its evaluated cases.

    Attributes:
        name: as the user gave it.
        home: folder with the `plans.json` and `dataset.json` that nnU-Net keeps beside a model and its predictions;
            None if there is none.
        configuration: of the plans; None if it cannot be told from the folder's name.
        cases: by name.
        unpredicted: files of labels without a prediction, where we evaluated a folder.
        dataset_json: content of the `dataset.json` there; empty if there is none.
        others: further runs of the same model, trained with other seeds; this one is the first of them.
    """

    name: str
    home: Path | None
    configuration: str | None
    cases: dict[str, Case]
    unpredicted: Sequence[str] = ()
    dataset_json: dict[str, Any] = field(default_factory=dict)
    others: Sequence[Model] = ()

    @property
    def runs(self) -> list[Model]:
        """All runs, this one first; each is called as the user called it."""
        names = self.name.split(",") if self.others else [self.name]
        return [replace(self, name=names[0], others=()), *self.others]

    @property
    def classes(self) -> list[str]:
        """Keys of the classes or regions, in the order of the file."""
        return list(next(iter(self.cases.values())).metrics)

    @property
    def folds(self) -> list[str]:
        """Folds that the cases are from; empty for predictions of other images."""
        return sorted({case.fold for case in self.cases.values()} - {""})

    def with_metrics(self, values: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Model:
        """The same model with further metrics.

        Args:
            values: by case, class and metric.
        """
        cases = {}
        for name, case in self.cases.items():
            added = values.get(name, {})
            metrics = {key: {**own, **added.get(key, {})} for key, own in case.metrics.items()}
            cases[name] = replace(case, metrics=metrics)
        return replace(self, cases=cases)


def find_results(dataset: str) -> Path:
    """The folder of a data set in `nnUNet_results`; raises what `find_dataset` raises."""
    return find_dataset("nnUNet_results", dataset, "train models with nnUNetv2_train {} CONFIGURATION FOLD first")


def find_model(name: str, results: Path | None) -> Path:
    """The folder or file that a model's name or path means.

    Args:
        name: `TRAINER__PLANS__CONFIGURATION`, or a path.
        results: the data set's folder in `nnUNet_results`, if one was given.

    Raises:
        UsageError: a name without a data set.
        DataProblem: no such model.
    """
    if results is not None and (results / name).is_dir():
        return results / name
    if Path(name).exists():
        return Path(name)
    if results is None:
        raise UsageError(f"-m {name} is no path here: say with -d DATASET which data set's model it is")
    there = sorted(path.name for path in results.iterdir() if path.is_dir() and model_parts(path))
    raise DataProblem(
        f"{results} has no model {name} (there: {', '.join(there) or 'none'}), and it is no path either: "
        f"give TRAINER__PLANS__CONFIGURATION"
    )


def is_trained_model(path: Path) -> bool:
    """Whether nnU-Net trained a model into this folder."""
    return path.is_dir() and not (path / SUMMARY).exists() and any(path.glob("fold_*"))


def evaluated_folds(path: Path) -> list[str]:
    """Folds of a trained model whose validation has been run, as nnU-Net's `-f` takes them."""
    return sorted(found.parent.parent.name.removeprefix("fold_") for found in path.glob(f"fold_*/validation/{SUMMARY}"))


def load_model(path: Path, name: str, *, folds: Sequence[str], labels: Path | None, processes: int) -> Model:
    """A model from whatever `find_model` found.

    Args:
        path: a trained model, a summary, a folder that holds one, or predictions.
        name: how the model is called in messages.
        folds: of a trained model.
        labels: to evaluate predictions against.
        processes: that evaluate.

    Raises:
        DataProblem: nothing evaluated, nothing to evaluate, or broken files.
    """
    if is_trained_model(path):
        return read_trained_model(path, name, folds)
    if path.is_file() or (path / SUMMARY).exists():
        return read_evaluated_folder(path, name)
    if labels is None:
        raise DataProblem(
            f"{path} has no {SUMMARY}: name the labels of its predictions with -ref LABELS_FOLDER, or run "
            f"{commands.evaluate(path)}"
        )
    return evaluate_predictions(path, name, labels, processes=processes)


def read_trained_model(path: Path, name: str, folds: Sequence[str]) -> Model:
    """A trained model with the validation cases of its folds.

    Args:
        path: `<nnUNet_results>/<data set>/TRAINER__PLANS__CONFIGURATION`.
        name: how the model is called in messages.
        folds: `0` to `4`, or `all`.

    Raises:
        DataProblem: a fold was not validated, its summary is broken, or a case was validated twice.
    """
    cases: dict[str, Case] = {}
    for fold in folds:
        summary = path / f"fold_{fold}" / "validation" / SUMMARY
        command = validation_command(path, fold)
        if not summary.exists():
            raise DataProblem(f"{name} has no validation of fold {fold} ({summary} does not exist): run {command}")
        for case in read_summary(summary, f"run {command}", fold=f"fold_{fold}").values():
            if case.name in cases:
                raise DataProblem(
                    f"{name} validated case {case.name} in {cases[case.name].fold} and in fold_{fold}: "
                    f"choose folds without common cases with -f"
                )
            cases[case.name] = case
    return Model(name, path, path.name.split("__")[-1], cases, dataset_json=_dataset_json(path))


def read_evaluated_folder(path: Path, name: str) -> Model:
    """A model from a folder with `summary.json`, or from such a file.

    Raises:
        DataProblem: no such file, or a broken one.
    """
    summary = path / SUMMARY if path.is_dir() else path
    mend = "run nnUNetv2_evaluate_folder again, or give the labels with -ref"
    cases = read_summary(summary, mend)
    home, configuration = _home(summary.parent)
    return Model(name, home, configuration, cases, dataset_json=_dataset_json(home))


def evaluate_predictions(path: Path, name: str, labels: Path, *, processes: int) -> Model:
    """A model from a folder of predictions, evaluated by nnU-Net; nothing is written.

    Args:
        path: the predictions, with the `dataset.json` and `plans.json` that nnU-Net puts there.
        name: how the model is called in messages.
        labels: folder of the labels, with the same file names.
        processes: that evaluate.

    Raises:
        DataProblem: missing files, or predictions without label.
    """
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, label_or_region_to_key
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_nas.architecture import NETWORK_ERRORS, one_line

    mend = f"predict with nnUNetv2_predict, or evaluate {path} with nnUNetv2_evaluate_folder"
    dataset_json = read_description(path / "dataset.json", mend, required=["labels", "file_ending"])
    plans, ending = read_json(path / "plans.json", mend), dataset_json["file_ending"]
    predictions = sorted(file.name for file in path.iterdir() if file.name.endswith(ending))
    if not predictions:
        raise DataProblem(f"{path} has no predictions (*{ending}): {mend}")
    unlabelled = [file for file in predictions if not (labels / file).exists()]
    if unlabelled:
        raise DataProblem(f"{labels} has no label for {listed(unlabelled)} of {path}: correct -ref")
    try:
        manager = PlansManager(plans).get_label_manager(dataset_json)
        reader = determine_reader_writer_from_dataset_json(dataset_json, str(labels / predictions[0]), verbose=False)()
    except NETWORK_ERRORS as error:
        raise DataProblem(f"nnU-Net cannot read the labels and images of {path} ({one_line(error)}): {mend}") from error
    classes = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    try:
        result = compute_metrics_on_folder(
            str(labels), str(path), None, reader, ending, classes, manager.ignore_label, processes
        )
    except (RuntimeError, ValueError, OSError) as error:
        # Unreadable files, or predictions of another shape than their labels.
        reason = " ".join(str(error).split())
        raise DataProblem(f"nnU-Net cannot evaluate {path} against {labels} ({reason}): {mend}") from error
    for case in result["metric_per_case"]:
        case["metrics"] = {label_or_region_to_key(key): values for key, values in case["metrics"].items()}
    missing = sorted(file.name for file in labels.glob(f"*{ending}") if file.name not in predictions)
    home, configuration = _home(path)
    return Model(name, home, configuration, _cases(result, path, fold=""), missing, dataset_json)


def read_summary(path: Path, mend: str, *, fold: str = "") -> dict[str, Case]:
    """Cases of one of nnU-Net's `summary.json`, by name.

    Args:
        path: the file.
        mend: what the user can do if it is missing or broken, ends the error message.
        fold: recorded with the cases.

    Raises:
        DataProblem: missing, truncated, or not such a file.
    """
    content = read_json(path, mend)
    try:
        cases = _cases(content, path.parent, fold=fold)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DataProblem(f"{path} is not a summary of nnU-Net's evaluation ({reason}): {mend}") from error
    if not cases or not next(iter(cases.values())).metrics:
        raise DataProblem(f"{path} holds no evaluated case: {mend}")
    return cases


def validation_command(path: Path, fold: str) -> str:
    """The nnU-Net call that produces a fold's validation: it validates, goes on training, or starts to train."""
    folder = path / f"fold_{fold}"
    found = model_parts(path)
    try:
        dataset = dataset_number(path.resolve().parent.name)
    except UsageError:
        found = None
    if found is None:
        return commands.train("DATASET", "CONFIGURATION", fold, switch="--val")
    trainer, plans, configuration = found
    switches = {"--val": folder / "checkpoint_final.pth", "--c": folder / "checkpoint_latest.pth"}
    return commands.train(
        dataset,
        configuration,
        fold,
        plans=plans,
        trainer=trainer,
        switch=next((switch for switch, checkpoint in switches.items() if checkpoint.exists()), ""),
    )


def prediction_command(model: Model, dataset: str) -> str:
    """The nnU-Net call that predicts with a trained model of a data set and all of its folds."""
    found = None if model.home is None else model_parts(model.home)
    if found is None:
        return "nnUNetv2_predict -h"
    trainer, plans, configuration = found
    folds = " ".join(fold.removeprefix("fold_") for fold in model.folds)
    return commands.predict(dataset_number(dataset), configuration, folds, plans=plans, trainer=trainer)


def model_parts(path: Path) -> tuple[str, str, str] | None:
    """Trainer, plans and configuration that name a model's folder; None for any other folder."""
    words = path.name.split("__")
    return (words[0], words[1], words[2]) if len(words) == 3 else None


def common_cases(models: Sequence[Model], *, allow_others: bool) -> tuple[list[str], list[str]]:
    """Cases that all models have, sorted, and a sentence for each model that has others or lacks predictions.

    Args:
        models: two or more.
        allow_others: whether cases that only some models have are left out; otherwise they are an error.

    Raises:
        DataProblem: different cases (unless allowed), no common ones, different classes, or different labels.
    """
    models = [run for model in models for run in model.runs]
    common = set.intersection(*(set(model.cases) for model in models))
    others = [
        f"{model.name} has {len(extra)} case(s) that not all models have: {listed(extra)}"
        for model in models
        if (extra := sorted(set(model.cases) - common))
    ]
    if not common:
        raise DataProblem(f"{' and '.join(model.name for model in models)} have no case in common: nothing is paired")
    if others and not allow_others:
        raise DataProblem(
            f"{'; '.join(others)}; evaluate all models on the same cases, or compare the {len(common)} common ones "
            f"with --common"
        )
    cases = sorted(common)
    for model in models[1:]:
        _require_same_labels(models[0], model, cases)
    return cases, others + [
        f"{model.name} has no prediction for {len(model.unpredicted)} label(s): {listed(model.unpredicted)}"
        for model in models
        if model.unpredicted
    ]


def read_patients(path: Path) -> dict[str, str]:
    """Whose case each one is, by case.

    Args:
        path: CSV with the columns `case` and `patient`, or JSON: an object of patients by case, or a list of objects
            with both; cases as in the tables, or with `.nii.gz`.

    Raises:
        DataProblem: no such file, or something else in it.
    """
    expected = f"{path} is no list of patients: give CSV with the columns case,patient or JSON of patients by case"
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            pairs = list(content.items()) if isinstance(content, dict) else [(e["case"], e["patient"]) for e in content]
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                pairs = [(row["case"], row["patient"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataProblem(f"{expected} ({' '.join(str(error).split())})") from error
    patients: dict[str, str] = {}
    for case, patient in pairs:
        if not case or patient in (None, ""):
            raise DataProblem(f"{expected} ({case or 'a line'} has no patient)")
        if patients.setdefault(str(case).removesuffix(".nii.gz"), str(patient)) != str(patient):
            raise DataProblem(f"{path} names two patients for case {case}: correct it")
    return patients


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def class_names(model: Model) -> dict[str, str]:
    """What the data set calls its classes or regions, by their key in summary.json; the key itself if it is unknown."""
    labels = model.dataset_json.get("labels", {})
    labels = labels if isinstance(labels, dict) else {}
    known = {str(tuple(value) if isinstance(value, list) else value): name for name, value in labels.items()}
    return {key: known.get(key, f"class {key}") for key in model.classes}


def _cases(content: dict[str, Any], folder: Path, *, fold: str) -> dict[str, Case]:
    cases = {}
    for entry in content["metric_per_case"]:
        reference = entry["reference_file"]
        name = _stem(reference)
        metrics = {
            str(key): {metric: _number(metric, value) for metric, value in values.items()}
            for key, values in entry["metrics"].items()
        }
        if any("Dice" not in values for values in metrics.values()):
            raise ValueError(f"no Dice of case {name}")
        if not isinstance(entry["prediction_file"], str):
            raise ValueError(f"the prediction of case {name} is no name of a file")
        if name in cases:
            raise ValueError(f"case {name} twice")
        cases[name] = Case(name, fold, _moved(entry["prediction_file"], folder), Path(reference), metrics)
    return cases


def _number(metric: str, value: Any) -> float:
    """A metric's value; None and NaN stand for a class that is neither in the label nor predicted."""
    number = math.nan if value is None else float(value)
    possible = not math.isinf(number) and not isinstance(value, bool)
    if not possible or (metric in ("Dice", "IoU") and not math.isnan(number) and not 0 <= number <= 1):
        raise ValueError(f"{metric} is {value}")
    return number


def _stem(file: str) -> str:
    # Summaries travel between machines: a Windows path splits both kinds of separators.
    name = PureWindowsPath(file).name
    return name.removesuffix(".nii.gz") if name.endswith(".nii.gz") else PureWindowsPath(name).stem


def _moved(file: str, folder: Path) -> Path:
    """A file as recorded, or of the same name beside the summary: results folders are copied and renamed."""
    beside = folder / PureWindowsPath(file).name
    try:
        return beside if beside.exists() else Path(file)
    except OSError:  # a name that no file can have
        return Path(file)


def _home(folder: Path) -> tuple[Path | None, str | None]:
    """Where the plans of a folder of predictions are, and the configuration if a folder is named after it."""
    # The last two: predictions of a validation lie in TRAINER__PLANS__CONFIGURATION/fold_0/validation.
    candidates = [folder, *folder.resolve().parents[:2]]
    for home in candidates:
        if (home / "plans.json").exists() and (home / "dataset.json").exists():
            try:
                known = read_json(home / "plans.json", "")["configurations"]
            except (NasError, KeyError, TypeError):
                continue
            names = [path.resolve().name.split("__")[-1] for path in candidates]
            return home, next((name for name in names if isinstance(known, dict) and name in known), None)
    return None, None


def _dataset_json(home: Path | None) -> dict[str, Any]:
    if home is None:
        return {}
    return read_description(home / "dataset.json", "copy it from the data set's preprocessed folder")


def _require_same_labels(first: Model, second: Model, cases: Sequence[str]) -> None:
    """Two evaluations can only be paired if they saw the same classes of the same labels."""
    for name in cases:
        one, other = first.cases[name].metrics, second.cases[name].metrics
        if one.keys() != other.keys():
            raise DataProblem(
                f"{first.name} and {second.name} were evaluated on different classes of case {name} "
                f"({', '.join(one)} and {', '.join(other)}): evaluate both with the same dataset.json"
            )
        for key in one:
            sizes = one[key].get("n_ref", math.nan), other[key].get("n_ref", math.nan)
            if all(map(math.isfinite, sizes)) and sizes[0] != sizes[1]:
                raise DataProblem(
                    f"{first.name} and {second.name} were evaluated against different labels: class {key} of case "
                    f"{name} has {sizes[0]:.0f} and {sizes[1]:.0f} voxels: evaluate both against the same labels"
                )
