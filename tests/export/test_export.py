"""Exports of models with random weights: equal to nnU-Net, refused where they are not or cannot be."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from export import paper
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from nnunet_nas.cli.main import main
from nnunet_nas.errors import DataProblem
from nnunet_nas.export import folder as export_folder
from nnunet_nas.export.folder import ExportSettings, export
from nnunet_nas.runtime.predictor import Predictor
from nnunet_nas.runtime.recipe import Component, read_recipe

pytest.importorskip("onnxruntime", reason="needs the packages of nnunet-nas[export]")

CASES = {
    "3-D, resampled": {"model": {"spacing": (1.5, 0.8, 0.8)}, "images": {}},
    "2-D, two folds, no mirroring": {
        "model": {"patch_size": (16, 16), "spacing": (1.0, 1.0), "folds": ("0", "1"), "mirrored": False},
        "images": {},
    },
    "anisotropic, CT beside another channel, one plane apart": {
        "model": {"spacing": (5.0, 1.0, 1.0), "schemes": ("CTNormalization", "RescaleTo01Normalization")},
        "images": {"channels": 2, "spacing": (4.0, 0.7, 0.7)},
    },
    "regions, transposed": {
        "model": {
            "labels": {"background": 0, "whole": [1, 2], "core": 2},
            "regions_class_order": (1, 2),
            "plans_changes": {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]},
        },
        "images": {},
    },
    "ignore label": {"model": {"labels": {"background": 0, "organ": 1, "ignore": 2}}, "images": {}},
}


def _settings(tmp_path, model, **changes):
    settings = ExportSettings(
        model=model,
        folds=(),
        checkpoint="checkpoint_final.pth",
        output=tmp_path / "export",
        images=tmp_path / "images",
    )
    return dataclasses.replace(settings, **changes)


@pytest.fixture
def settings(tmp_path):
    paper.images(tmp_path / "images")
    return functools.partial(_settings, tmp_path, paper.trained(tmp_path / "Dataset001_Paper"))


@pytest.mark.parametrize("case", CASES)
def test_labels_are_nnunets(case, tmp_path):
    model = paper.trained(tmp_path / "Dataset001_Paper", **CASES[case]["model"])
    paper.images(tmp_path / "images", **CASES[case]["images"])
    found = export(_settings(tmp_path, model))
    assert [entry.differing for entry in found.cases] == [0, 0]
    assert found.logits < 1e-5
    assert all(len(entry.dice) >= 1 for entry in found.cases), "the random networks predict a foreground"
    assert read_recipe(tmp_path / "export").unverified is None


def test_the_archive_predicts_without_torch(settings, tmp_path):
    export(settings())
    blocked = tmp_path / "blocked"
    for package in ("torch", "nnunetv2", "nnunet_nas"):
        (blocked / package).mkdir(parents=True)
        (blocked / package / "__init__.py").write_text(f"raise ImportError('{package} is blocked')")
    done = subprocess.run(
        [sys.executable, tmp_path / "export" / "predict.pyz", "-i", tmp_path / "images", "-o", tmp_path / "out"],
        env={"PYTHONPATH": str(blocked), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    predictor = Predictor(tmp_path / "export")
    for case in predictor.cases(tmp_path / "images"):
        written = sitk.ReadImage(str(tmp_path / "out" / f"{case.name}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), predictor.predict(case.files))


def test_an_export_that_differs_is_refused_and_nothing_is_left(settings, tmp_path, monkeypatch):
    original = export_folder.write_network

    def spoilt(network, path, **kwargs):
        network.decoder.seg_layers[-1].bias.data += 0.01
        original(network, path, **kwargs)
        network.decoder.seg_layers[-1].bias.data -= 0.01

    monkeypatch.setattr(export_folder, "write_network", spoilt)
    with pytest.raises(DataProblem, match=r"does not agree with nnU-Net: logits differ by at most 1\.0e-02"):
        export(settings())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Dataset001_Paper", "images"]
    export(settings(unverified=True))
    assert "it differs, logits differ" in read_recipe(tmp_path / "export").unverified


def test_without_images_it_is_refused_or_marked(settings, tmp_path):
    with pytest.raises(DataProblem, match="no images to verify"):
        export(settings(images=None))
    assert export(settings(images=None, unverified=True)) is None
    done = subprocess.run(
        [sys.executable, tmp_path / "export" / "predict.pyz", "-i", tmp_path / "images", "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "WARNING: not verified against nnU-Net" in done.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"changes": {"previous_stage": "lowres"}}, "second stage of a cascade"),
        ({"plans_changes": {"image_reader_writer": "OwnIO"}}, "reader OwnIO"),
        ({"changes": {"preprocessor_name": "Own"}}, "preprocessor Own"),
        ({"changes": {"normalization_schemes": ["Own"]}}, "normalisation Own"),
        ({"changes": {"resampling_fn_data": "resample_torch_fornnunet"}}, "resampling_fn_data resample_torch"),
    ],
)
def test_what_the_runtime_lacks_is_refused_in_one_line(changed, message, tmp_path):
    model = paper.trained(tmp_path / "Dataset001_Paper", **changed)
    with pytest.raises(DataProblem, match=message) as problem:
        export(_settings(tmp_path, model, images=None, unverified=True))
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "export").exists()


def test_postprocessing_is_carried_as_numbers(settings, tmp_path):
    steps = (
        [remove_all_but_largest_component_from_segmentation] * 2,
        [{"labels_or_regions": [1, (1, 2)]}, {"labels_or_regions": 2}],
    )
    (tmp_path / "postprocessing.pkl").write_bytes(pickle.dumps(steps))
    found = export(settings(postprocessing=tmp_path / "postprocessing.pkl"))
    assert read_recipe(tmp_path / "export").postprocessing == (Component((1, 2), 0), Component((2,), 0))
    assert found.agrees


def test_the_command_says_what_it_found(settings, tmp_path, capsys):
    model = settings().model
    to_folder = ["export", "-m", str(model), "-o", str(tmp_path / "export")]
    assert main([*to_folder, "-i", str(tmp_path / "images"), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["agrees"] is True
    assert f"next: python {tmp_path / 'export' / 'predict.pyz'} -i" in shown.err
    assert main(to_folder) == 4
    assert "is not an empty folder" in capsys.readouterr().err
    assert main(["export", "-m", str(model), "-f", "3", "-o", str(tmp_path / "other")]) == 4
    assert "has no checkpoint_final.pth of fold 3; there: 0" in capsys.readouterr().err
    assert main(["export", "-o", str(tmp_path / "other")]) == 2


def test_a_bad_image_does_not_cost_the_others(settings, tmp_path):
    export(settings(images=None, unverified=True))
    (tmp_path / "images" / "case_0_0000.nii.gz").write_bytes(b"no image")
    done = subprocess.run(
        [sys.executable, tmp_path / "export" / "predict.pyz", "-i", tmp_path / "images", "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "case_0_0000.nii.gz cannot be read" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case_1.nii.gz"]
