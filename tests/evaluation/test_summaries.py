"""Reading what nnU-Net's evaluation leaves behind, and saying what is missing."""

import json
import math
from pathlib import Path

import pytest

from nnunet_nas.errors import DataProblem, EnvironmentProblem, UsageError
from nnunet_nas.evaluation.summaries import (
    _moved,
    class_names,
    common_cases,
    evaluated_folds,
    find_model,
    find_results,
    is_trained_model,
    load_model,
    read_evaluated_folder,
    read_patients,
    read_trained_model,
    validation_command,
)

NAME = "nnUNetTrainer__nnUNetPlans__2d"


@pytest.fixture
def model(results, write_summary):
    """A model with two validated folds."""
    folder = results / NAME
    write_summary(folder / "fold_0" / "validation", {"a": {1: 0.5}, "b": {1: 0.6}})
    write_summary(folder / "fold_1" / "validation", {"c": {1: 0.7}})
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "bright": 1}}))
    (folder / "plans.json").write_text(json.dumps({"configurations": {"2d": {}}}))
    return folder


def evaluated(folder):
    return read_evaluated_folder(folder, folder.name)


# Which folder is meant


def test_a_data_set_is_found_by_number_and_name(results):
    assert {find_results(name) for name in ("11", "011", "Dataset011_Fake")} == {results}


def test_a_data_set_that_is_not_there_is_said(results, monkeypatch):
    with pytest.raises(DataProblem, match=r"data set 12 is not in .*there: Dataset011_Fake.*nnUNetv2_train 12"):
        find_results("12")
    with pytest.raises(UsageError, match="Fake is not a data set name"):
        find_results("Fake")
    (results.parent / "Dataset011_Other").mkdir()
    with pytest.raises(DataProblem, match="ambiguous: Dataset011_Fake, Dataset011_Other"):
        find_results("11")
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(EnvironmentProblem, match="nnUNet_results is not set"):
        find_results("11")


def test_a_model_is_found_by_name_and_by_path(model, tmp_path):
    assert find_model(NAME, model.parent) == model
    assert find_model(str(model), None) == model
    with pytest.raises(DataProblem, match=f"no model 2d \\(there: {NAME}\\).*TRAINER__PLANS__CONFIGURATION"):
        find_model("2d", model.parent)
    with pytest.raises(UsageError, match="say with -d DATASET"):
        find_model(NAME, None)


def test_what_kind_of_folder_it_is(model, write_summary, tmp_path):
    assert is_trained_model(model)
    assert not is_trained_model(write_summary(tmp_path / "predictions", {"a": {1: 0.5}}))
    assert evaluated_folds(model) == ["0", "1"]


# Trained models


def test_folds_are_merged(model):
    found = read_trained_model(model, NAME, ["0", "1"])
    assert list(found.cases) == ["a", "b", "c"]
    assert found.folds == ["fold_0", "fold_1"]
    assert found.cases["c"].metrics["1"]["Dice"] == 0.7
    assert (found.home, found.configuration) == (model, "2d")
    assert class_names(found) == {"1": "bright"}


def test_a_case_of_two_folds_is_refused(model, write_summary):
    write_summary(model / "fold_all" / "validation", {"a": {1: 0.5}})
    with pytest.raises(DataProblem, match="case a in fold_0 and in fold_all: choose folds"):
        read_trained_model(model, NAME, ["0", "all"])


@pytest.mark.parametrize(
    ("checkpoint", "option"), [("checkpoint_final.pth", " --val"), ("checkpoint_latest.pth", " --c"), (None, "")]
)
def test_a_validation_that_was_not_run_is_an_nnunet_call_away(model, checkpoint, option):
    fold = model / "fold_2"
    fold.mkdir()
    if checkpoint:
        (fold / checkpoint).touch()
    with pytest.raises(DataProblem, match="no validation of fold 2") as caught:
        read_trained_model(model, NAME, ["0", "2"])
    assert str(caught.value).endswith(f"run nnUNetv2_train 11 2d 2{option}")


def test_the_call_names_plans_and_trainer_that_are_not_nnunets_own(results):
    folder = results / "nnUNetTrainer_5epochs__myPlans__3d_fullres"
    assert validation_command(folder, "0") == "nnUNetv2_train 11 3d_fullres 0 -p myPlans -tr nnUNetTrainer_5epochs"
    assert validation_command(results.parent / "copied", "0") == "nnUNetv2_train DATASET CONFIGURATION 0 --val"


# Summaries


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not valid JSON"),
        ('{"metric_per_case": [{"metr', "not valid JSON"),
        ("[]", "not a summary of nnU-Net's evaluation"),
        ("{}", "no 'metric_per_case'"),
        ('{"metric_per_case": []}', "no evaluated case"),
        ('{"metric_per_case": [{"reference_file": "a.png"}]}', "no 'metrics'"),
        (
            '{"metric_per_case": [{"reference_file": "a", "prediction_file": "a", "metrics": {"1": {"IoU": 1}}}]}',
            "no Dice of case a",
        ),
        (
            '{"metric_per_case": [{"reference_file": "a", "prediction_file": "a", "metrics": {"1": {"Dice": "x"}}}]}',
            "could not convert",
        ),
        ('{"metric_per_case": [{"reference_file": "a", "prediction_file": "a", "metrics": {}}]}', "no evaluated case"),
    ],
)
def test_a_broken_summary_is_said(tmp_path, content, reason):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(DataProblem, match=reason) as caught:
        evaluated(tmp_path)
    assert "nnUNetv2_evaluate_folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_undefined_dice_is_nan_however_it_was_written(tmp_path, write_summary):
    folder = write_summary(tmp_path / "model", {"a": {1: math.nan, 2: None, 3: 0.5}})
    metrics = evaluated(folder).cases["a"].metrics
    assert [math.isnan(metrics[key]["Dice"]) for key in "123"] == [True, True, False]


def test_names_of_cases_have_no_ending_and_no_folder(tmp_path, write_summary):
    folder = write_summary(tmp_path / "nifti", {"case.1": {1: 0.5}})
    assert list(evaluated(folder).cases) == ["case.1"]
    folder = write_summary(tmp_path / "png", {"case_2": {1: 0.5}}, ending=".png")
    text = (folder / "summary.json").read_text().replace("/labels/", "C:\\\\labels\\\\")
    (folder / "summary.json").write_text(text)
    assert list(evaluated(folder).cases) == ["case_2"]


def test_a_prediction_is_looked_for_beside_a_summary_that_moved(tmp_path, write_summary):
    folder = write_summary(tmp_path / "old", {"a": {1: 0.5}, "b": {1: 0.5}})
    (folder / "a.nii.gz").touch()
    moved = folder.rename(tmp_path / "new")
    cases = evaluated(moved).cases
    assert cases["a"].prediction == moved / "a.nii.gz"
    assert cases["b"].prediction == folder / "b.nii.gz"


def test_a_summary_can_be_named_itself(tmp_path, write_summary):
    folder = write_summary(tmp_path / "model", {"a": {1: 0.5}})
    found = load_model(folder / "summary.json", "m", folds=["0"], labels=None, processes=1)
    assert list(found.cases) == ["a"]
    assert (found.home, found.configuration, class_names(found)) == (None, None, {"1": "class 1"})


def test_predictions_without_evaluation_need_labels(tmp_path):
    with pytest.raises(DataProblem, match=r"has no summary.json.*-ref LABELS_FOLDER.*nnUNetv2_evaluate_folder"):
        load_model(tmp_path, "m", folds=["0"], labels=None, processes=1)


def test_regions_have_names(tmp_path, write_summary):
    folder = write_summary(tmp_path / "2d", {"a": {(1, 2): 0.5, 2: 0.4}})
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "regions_class_order": [1, 2]}))
    (folder / "plans.json").write_text(json.dumps({"configurations": {"2d": {}}}))
    found = evaluated(folder)
    assert class_names(found) == {"(1, 2)": "whole", "2": "core"}
    assert (found.home, found.configuration) == (folder, "2d")


def test_the_configuration_of_predictions_is_known_from_folders_named_after_it(model):
    found = evaluated(model / "fold_0" / "validation")
    assert (found.home, found.configuration) == (model, "2d")
    assert evaluated_folds(model.parent) == []


# Cases that two models share


@pytest.fixture
def two(tmp_path, write_summary):
    """Makes two models from their cases."""

    def make(first, second):
        folders = [write_summary(tmp_path / name, cases) for name, cases in (("one", first), ("two", second))]
        return [evaluated(folder) for folder in folders]

    return make


def test_the_same_cases_in_another_order(two):
    models = two({"a": {1: 0.5}, "b": {1: 0.6}}, {"b": {1: 0.5}, "a": {1: 0.6}})
    assert common_cases(models, allow_others=False) == (["a", "b"], [])


def test_different_cases_are_named_and_never_dropped_silently(two):
    models = two({name: {1: 0.5} for name in "abcdefgh"}, {name: {1: 0.5} for name in "ax"})
    with pytest.raises(DataProblem, match="the 1 common ones with --common") as caught:
        common_cases(models, allow_others=False)
    said = ["one has 7 case(s) that not all models have: b, c, d, e, f and 2 more", "two has 1 case(s)"]
    assert all(words in str(caught.value) for words in said)
    cases, notes = common_cases(models, allow_others=True)
    assert cases == ["a"]
    assert len(notes) == 2
    assert notes[1].endswith(": x")


def test_no_common_case(two):
    with pytest.raises(DataProblem, match="one and two have no case in common"):
        common_cases(two({"a": {1: 0.5}}, {"b": {1: 0.5}}), allow_others=True)


def test_different_classes(two):
    with pytest.raises(DataProblem, match=r"different classes of case a \(1 and 1, 2\)"):
        common_cases(two({"a": {1: 0.5}}, {"a": {1: 0.5, 2: 0.5}}), allow_others=False)


def test_different_labels(two, tmp_path):
    two({"a": {1: 0.5}}, {"a": {1: 0.5}})
    file = tmp_path / "two" / "summary.json"
    file.write_text(file.read_text().replace('"n_ref": 50', '"n_ref": 51'))
    models = [evaluated(tmp_path / name) for name in ("one", "two")]
    with pytest.raises(DataProblem, match="different labels: class 1 of case a has 50 and 51 voxels"):
        common_cases(models, allow_others=False)


# Patients


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("patients.csv", "case,patient,age\na,x,50\nb.nii.gz,x,50\nc,7,61\n"),
        ("patients.csv", "\ufeffpatient,case\nx,a\nx,b\n7,c\n"),
        ("patients.json", '{"a": "x", "b": "x", "c": 7}'),
        (
            "patients.json",
            '[{"case": "a", "patient": "x"}, {"case": "b", "patient": "x"}, {"case": "c", "patient": 7}]',
        ),
    ],
)
def test_patients_are_read(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_patients(tmp_path / name) == {"a": "x", "b": "x", "c": "7"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.csv", None, "No such file"),
        ("patients.csv", "case;patient\na;x\n", "no list of patients.*case,patient"),
        ("patients.csv", "case,patient\na,\n", "a has no patient"),
        ("patients.csv", "case,patient\na,x\na,y\n", "two patients for case a"),
        ("patients.json", '{"a": ', "no list of patients"),
        ("patients.json", '["a"]', "no list of patients"),
        ("patients.json", "3", "no list of patients"),
    ],
)
def test_what_names_no_patients_is_said(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataProblem, match=reason) as caught:
        read_patients(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dice", [1.7, -1, float("inf"), float("-inf"), True, 10**30])
def test_a_dice_that_cannot_be_is_refused(model, dice):
    path = model / "fold_0" / "validation" / "summary.json"
    content = json.loads(path.read_text())
    content["metric_per_case"][0]["metrics"]["1"]["Dice"] = dice
    path.write_text(json.dumps(content))
    with pytest.raises(DataProblem, match=r"summary\.json is not a summary of nnU-Net's evaluation"):
        read_trained_model(model, NAME, ["0"])


def test_plans_beside_that_are_broken_only_leave_the_configuration_unknown(model):
    (model / "plans.json").write_text(json.dumps({"configurations": 1}))
    found = evaluated(model / "fold_0" / "validation")
    assert (found.home, found.configuration) == (model, None)


def test_a_recorded_name_that_no_file_can_have_is_none_beside_the_summary(tmp_path):
    name = "x" * 5000 + ".nii.gz"
    assert _moved(f"/elsewhere/{name}", tmp_path) == Path(f"/elsewhere/{name}")
