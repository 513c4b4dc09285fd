"""Data sets are found by number or name, and every failure says what to do."""

import pytest

from nnunet_nas.environment import (
    dataset_names,
    dataset_number,
    find_preprocessed_dataset,
    folder_from_environment,
)
from nnunet_nas.errors import DataProblem, EnvironmentProblem, UsageError


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    """A folder with data sets 4 and 27, and things that are no data sets."""
    for name in ("Dataset004_Hippocampus", "Dataset027_ACDC", "Dataset5_TwoDigitsMissing", "Dataset006", "backup"):
        (tmp_path / name).mkdir()
    (tmp_path / "Dataset009_File").touch()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return tmp_path


def test_a_variable_names_a_folder(preprocessed):
    assert folder_from_environment("nnUNet_preprocessed") == preprocessed


@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_variable_is_an_environment_problem_that_gives_the_export(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("nnUNet_raw", raising=False)
    else:
        monkeypatch.setenv("nnUNet_raw", value)
    with pytest.raises(EnvironmentProblem, match="nnUNet_raw is not set: export nnUNet_raw=") as caught:
        folder_from_environment("nnUNet_raw")
    assert caught.value.exit_code == 3


def test_a_variable_that_names_no_folder_is_an_environment_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "gone"))
    with pytest.raises(EnvironmentProblem, match="gone is not a folder"):
        folder_from_environment("nnUNet_raw")


def test_data_sets_are_folders_named_as_nnunet_names_them(preprocessed):
    assert dataset_names(preprocessed) == ["Dataset004_Hippocampus", "Dataset027_ACDC"]


def test_a_folder_that_cannot_be_listed_is_an_environment_problem(tmp_path):
    with pytest.raises(EnvironmentProblem, match="cannot list"):
        dataset_names(tmp_path / "gone")


@pytest.mark.parametrize("given", ["4", "04", "004", "Dataset004_Hippocampus"])
def test_number_and_name_find_the_same_data_set(preprocessed, given):
    assert find_preprocessed_dataset(given) == preprocessed / "Dataset004_Hippocampus"


@pytest.mark.parametrize("given", ["77", "077", "Dataset077_Unknown"])
def test_an_unknown_data_set_lists_the_known_ones_and_the_command_that_makes_it(preprocessed, given):
    with pytest.raises(DataProblem, match="there: Dataset004_Hippocampus, Dataset027_ACDC") as caught:
        find_preprocessed_dataset(given)
    # nnUNetv2_plan_and_preprocess takes numbers only.
    assert "nnUNetv2_plan_and_preprocess -d 77 first" in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("given", ["hippocampus", "-4", "4.0", "", "Dataset004", "../Dataset004_Hippocampus"])
def test_neither_number_nor_name_is_a_usage_error(preprocessed, given):
    with pytest.raises(UsageError, match="neither a number nor a name") as caught:
        find_preprocessed_dataset(given)
    assert caught.value.exit_code == 2


def test_two_data_sets_of_one_number_need_the_full_name(preprocessed):
    (preprocessed / "Dataset004_Again").mkdir()
    with pytest.raises(DataProblem, match="ambiguous: Dataset004_Again, Dataset004_Hippocampus"):
        find_preprocessed_dataset("4")
    assert find_preprocessed_dataset("Dataset004_Again").name == "Dataset004_Again"


def test_the_number_is_in_the_name():
    assert dataset_number("Dataset004_Hippocampus") == 4
    assert dataset_number("Dataset1234_Large") == 1234
    with pytest.raises(UsageError, match="Hippocampus is not a data set name"):
        dataset_number("Hippocampus")
