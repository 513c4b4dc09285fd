"""Summaries of evaluations as nnU-Net 2.8 writes them, by hand."""

import json
from pathlib import Path

import pytest


def case_entry(folder, name, dice, ending=".nii.gz"):
    """One entry of `metric_per_case`; `dice` by class."""
    metrics = {
        str(key): {"Dice": value, "IoU": value, "FN": 5, "FP": 5, "TN": 900, "TP": 45, "n_pred": 50, "n_ref": 50}
        for key, value in dice.items()
    }
    return {
        "metrics": metrics,
        "prediction_file": str(folder / f"{name}{ending}"),
        "reference_file": str(Path("/labels") / f"{name}{ending}"),
    }


@pytest.fixture
def write_summary():
    """Writes a folder's summary.json from `{case: {class: Dice}}` and returns the folder."""

    def write(folder, cases, ending=".nii.gz"):
        folder.mkdir(parents=True, exist_ok=True)
        entries = [case_entry(folder, name, dice, ending) for name, dice in cases.items()]
        content = {"foreground_mean": {}, "mean": {}, "metric_per_case": entries}
        (folder / "summary.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty data set in `nnUNet_results`."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    folder = tmp_path / "Dataset011_Fake"
    folder.mkdir()
    return folder
