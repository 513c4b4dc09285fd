"""What `predict.pyz` says of files from someone else holds nothing that a terminal would take for a command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from runtime import models

from nnunet_nas.errors import DataProblem
from nnunet_nas.runtime import __main__ as program
from nnunet_nas.runtime.predictor import Case
from nnunet_nas.runtime.recipe import RECIPE

CLEAR = "\x1b[2J"


def call(monkeypatch, capsys, *words):
    """Exit code and standard error."""
    monkeypatch.setattr(sys, "argv", ["predict.pyz", *map(str, words)])
    code = program.main()
    return code, capsys.readouterr().err


@pytest.fixture
def predictor(monkeypatch):
    """Stands in for one of a recipe that was not verified, which cannot read cases named `bad`."""

    class Stub:
        def __init__(self, folder, **options):
            self.recipe = SimpleNamespace(unverified=f"logits differ{CLEAR}", file_ending=".nii.gz")

        def cases(self, folder):
            return [Case(f"{name}{CLEAR}", (Path(f"{name}{CLEAR}_0000.nii.gz"),)) for name in ("good", "bad")]

        def predict(self, files, output):
            if files[0].name.startswith("bad"):
                raise DataProblem(f"{files[0]} cannot be read")

    monkeypatch.setattr(program, "Predictor", Stub)


@pytest.mark.usefixtures("predictor")
def test_names_of_images_and_words_of_the_recipe(monkeypatch, capsys, tmp_path):
    code, text = call(monkeypatch, capsys, "-i", tmp_path, "-o", tmp_path / "out")
    warning, good, bad = text.splitlines()
    assert code == 4
    assert warning == "WARNING: not verified against nnU-Net: logits differ\\x1b[2J"
    assert good.startswith(f"1/2 {tmp_path / 'out'}")
    assert "good\\x1b[2J.nii.gz" in good
    assert bad == "predict: bad\\x1b[2J_0000.nii.gz cannot be read"


def test_a_damaged_recipe(monkeypatch, capsys, tmp_path):
    content = models.recipe(models.plans((1, 1, 1))).to_json()
    content["networks"] = [{"file": f"../{CLEAR}.onnx", "fold": "0", "sha256": ""}]
    (tmp_path / RECIPE).write_text(json.dumps(content))
    code, text = call(monkeypatch, capsys, "-m", tmp_path, "-i", tmp_path, "-o", tmp_path / "out")
    assert code == 4
    assert "names a network outside its folder (../\\x1b[2J.onnx)" in text
    assert "\x1b" not in text
