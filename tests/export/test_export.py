"""Exports of models with random weights: equal to nnU-Net, refused where they are not or cannot be.

Writing a network takes torch seconds: tests share one, and those that write others are marked `integration`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from export import paper
from fake_dataset import BROKEN_DESCRIPTIONS
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from nnunet_nas.cli.main import main
from nnunet_nas.errors import DataProblem, EnvironmentProblem
from nnunet_nas.export import folder as export_folder
from nnunet_nas.export.folder import ExportSettings, export
from nnunet_nas.export.verification import CaseAgreement, Verification
from nnunet_nas.runtime.__main__ import main as predict
from nnunet_nas.runtime.predictor import Predictor
from nnunet_nas.runtime.recipe import Component, read_recipe

pytest.importorskip("onnxruntime", reason="needs the packages of nnunet-nas[export]")

FLAT = {"patch_size": (16, 16), "spacing": (1.0, 1.0)}
CASES = {
    "3-D, resampled": {"model": {"spacing": (1.5, 0.8, 0.8)}, "images": {}},
    "2-D, two folds, no mirroring": {"model": {**FLAT, "folds": ("0", "1"), "mirrored": False}, "images": {}},
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


def _settings(model, images, output, **changes):
    settings = ExportSettings(model=model, folds=(), checkpoint="checkpoint_final.pth", output=output, images=images)
    return dataclasses.replace(settings, **changes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A 2-D model, two images, its export with a postprocessing, and what the verification found."""
    root = tmp_path_factory.mktemp("exported")
    steps = (
        [remove_all_but_largest_component_from_segmentation] * 2,
        [{"labels_or_regions": [1, (1, 2)]}, {"labels_or_regions": 2}],
    )
    (root / "postprocessing.pkl").write_bytes(pickle.dumps(steps))
    settings = _settings(
        paper.trained(root / "Dataset001_Paper", **FLAT),
        paper.images(root / "images"),
        root / "export",
        postprocessing=root / "postprocessing.pkl",
    )
    return settings, export(settings)


@pytest.fixture
def settings(exported, tmp_path, monkeypatch):
    """Settings of a further export of that model, which copies the network instead of writing it again."""
    shared = exported[0]
    monkeypatch.setattr(
        export_folder, "write_network", lambda network, path, **shape: shutil.copy(shared.output / "fold_0.onnx", path)
    )
    return dataclasses.replace(shared, output=tmp_path / "export", postprocessing=None, cases=1)


def _predict(monkeypatch, export, images, output, *options):
    """Runs the runtime's command in this process."""
    arguments = ["predict.pyz", "-m", export, "-i", images, "-o", output, "-threads", "1", *options]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    return predict()


def test_labels_are_nnunets(exported):
    settings, found = exported
    assert [entry.differing for entry in found.cases] == [0, 0]
    assert found.logits < 1e-5
    assert all(entry.dice for entry in found.cases), "the random network predicts a foreground"
    recipe = read_recipe(settings.output)
    assert recipe.unverified is None
    assert recipe.postprocessing == (Component((1, 2), 0), Component((2,), 0)), "a pickle has become numbers"


@pytest.mark.parametrize(
    ("apart", "largest", "differing", "agrees"),
    [(9e-5, 1, 0, True), (2e-4, 5, 0, False), (2e-4, 50, 0, True), (0, 1, 10, True), (0, 1, 11, False)],
)
def test_how_closely_an_export_must_agree(apart, largest, differing, agrees):
    case = CaseAgreement("case", 100_000, differing, {"organ": 1.0}, apart, largest)
    assert Verification((case,), 0.5, True).agrees is agrees


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES)
def test_labels_are_nnunets_whatever_the_pipeline(case, tmp_path):
    model = paper.trained(tmp_path / "Dataset001_Paper", **CASES[case]["model"])
    images = paper.images(tmp_path / "images", **CASES[case]["images"])
    found = export(_settings(model, images, tmp_path / "export"))
    assert [entry.differing for entry in found.cases] == [0, 0]
    assert found.logits < 1e-5
    assert all(len(entry.dice) >= 1 for entry in found.cases), "the random networks predict a foreground"


def test_the_folder_is_complete_and_for_people(exported):
    folder = exported[0].output
    assert {path.name for path in folder.iterdir()} == {
        "README.txt", "fold_0.onnx", "predict.pyz", "recipe.json", "verification.json",
    }  # fmt: skip
    assert '    "patch_size": [16, 16],\n' in (folder / "recipe.json").read_text()
    assert json.loads((folder / "verification.json").read_text())["agrees"] is True
    instructions = (folder / "README.txt").read_text()
    assert "pip install numpy scipy onnxruntime SimpleITK\n" in instructions
    assert "python predict.pyz -i IMAGES -o SEGMENTATIONS\n" in instructions
    with zipfile.ZipFile(folder / "predict.pyz") as archive:
        sources = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")]
    assert len(sources) > 8
    assert not [source for source in sources if "pickle" in source], "nothing is unpickled"


def test_the_batch_is_free_and_the_patch_is_fixed(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[0].output / "fold_0.onnx", providers=["CPUExecutionProvider"])
    batch, *fixed = session.get_inputs()[0].shape
    assert isinstance(batch, str)
    assert fixed == [1, 16, 16]
    images = np.random.default_rng(0).normal(size=(3, 1, 16, 16)).astype(np.float32)
    together = session.run(None, {"image": images})[0]
    alone = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_archive_predicts_without_torch(exported, tmp_path):
    settings = exported[0]
    blocked = tmp_path / "blocked"
    for package in ("torch", "nnunetv2", "nnunet_nas"):
        (blocked / package).mkdir(parents=True)
        (blocked / package / "__init__.py").write_text(f"raise ImportError('{package} is blocked')")
    done = subprocess.run(
        [sys.executable, settings.output / "predict.pyz", "-i", settings.images, "-o", tmp_path / "out"],
        env={"PYTHONPATH": str(blocked), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    predictor = Predictor(settings.output)
    for case in predictor.cases(settings.images):
        written = sitk.ReadImage(str(tmp_path / "out" / f"{case.name}.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), predictor.predict(case.files))


@pytest.mark.integration
def test_an_archive_in_the_path_is_the_python_interface(exported):
    settings = exported[0]
    code = f"""
import sys
sys.path.insert(0, {str(settings.output / "predict.pyz")!r})
from pathlib import Path
from nnunet_nas.runtime import predictor
print(predictor.__file__)
print(predictor.Predictor(Path({str(settings.output)!r}), threads=1).recipe.channels)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert "predict.pyz" in shown[0]
    assert shown[1] == "('ZScoreNormalization',)"


def test_an_export_that_differs_is_refused_and_nothing_is_left(settings, tmp_path):
    model = shutil.copytree(settings.model, tmp_path / "Dataset001_Paper" / settings.model.name)
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    for name in [name for name in checkpoint["network_weights"] if "seg_layers" in name and name.endswith("bias")]:
        checkpoint["network_weights"][name] += 0.01
    torch.save(checkpoint, path)
    settings = dataclasses.replace(settings, model=model)
    with pytest.raises(DataProblem, match=r"does not agree with nnU-Net: logits differ by at most 1\.0e-02"):
        export(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["Dataset001_Paper"]
    export(dataclasses.replace(settings, unverified=True))
    assert "it differs, logits differ" in read_recipe(tmp_path / "export").unverified


def test_without_images_it_is_refused_or_marked_and_a_bad_image_does_not_cost_the_others(
    settings, tmp_path, monkeypatch, capsys
):
    with pytest.raises(DataProblem, match="no images to verify"):
        export(dataclasses.replace(settings, images=None))
    assert export(dataclasses.replace(settings, images=None, unverified=True)) is None
    images = shutil.copytree(settings.images, tmp_path / "images")
    (images / "case_0_0000.nii.gz").write_bytes(b"no image")
    assert _predict(monkeypatch, settings.output, images, tmp_path / "out") == 4
    said = capsys.readouterr().err
    assert "WARNING: not verified against nnU-Net" in said
    assert "case_0_0000.nii.gz cannot be read" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case_1.nii.gz"]


def test_what_is_there_is_predicted_again_or_kept_as_nnunet_does(exported, tmp_path, monkeypatch, capsys):
    settings = exported[0]
    (tmp_path / "out").mkdir()
    for case in ("case_0", "case_1"):
        (tmp_path / "out" / f"{case}.nii.gz").write_bytes(b"of another day")
    to_out = (monkeypatch, settings.output, settings.images, tmp_path / "out")
    assert _predict(*to_out, "--continue_prediction") == 0
    assert (tmp_path / "out" / "case_0.nii.gz").read_bytes() == b"of another day"
    assert _predict(*to_out) == 0
    assert (tmp_path / "out" / "case_0.nii.gz").read_bytes() != b"of another day"
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert _predict(*to_out[:3], tmp_path / "file" / "out") == 3
    assert capsys.readouterr().err.startswith(f"predict: -o {tmp_path / 'file' / 'out'} cannot be written (")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"changes": {"previous_stage": "lowres"}}, "second stage of a cascade"),
        ({"plans_changes": {"image_reader_writer": "OwnIO"}}, "reader OwnIO"),
        ({"plans_changes": {"label_manager": "OwnLabels"}}, "label manager OwnLabels"),
        ({"changes": {"preprocessor_name": "Own"}}, "preprocessor Own"),
        ({"changes": {"normalization_schemes": ["Own"]}}, "normalisation Own"),
        ({"changes": {"resampling_fn_data": "resample_torch_fornnunet"}}, "resampling_fn_data resample_torch"),
    ],
)
def test_what_the_runtime_lacks_is_refused_in_one_line(changed, message, tmp_path):
    model = paper.trained(tmp_path / "Dataset001_Paper", **changed)
    with pytest.raises(DataProblem, match=message) as problem:
        export(_settings(model, None, tmp_path / "export", unverified=True))
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "export").exists()


def test_a_folder_that_cannot_be_written_is_named(settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match=r"-o .*file/export cannot be written \(") as problem:
        export(dataclasses.replace(settings, output=tmp_path / "file" / "export"))
    assert "\n" not in str(problem.value)


def test_a_postprocessing_that_is_none_is_refused(settings, tmp_path):
    (tmp_path / "postprocessing.pkl").write_bytes(b"none")
    with pytest.raises(DataProblem, match="is not nnU-Net's postprocessing"):
        export(dataclasses.replace(settings, postprocessing=tmp_path / "postprocessing.pkl"))
    (tmp_path / "postprocessing.pkl").write_bytes(pickle.dumps(([np.flip], [{}])))
    with pytest.raises(DataProblem, match="step flip is not nnU-Net's"):
        export(dataclasses.replace(settings, postprocessing=tmp_path / "postprocessing.pkl"))


class Program:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_postprocessing_of_a_stranger_runs_nothing(settings, tmp_path):
    path = tmp_path / "postprocessing.pkl"
    path.write_bytes(pickle.dumps(([Program(tmp_path / "ran")], [{}])))
    with pytest.raises(DataProblem, match="postprocessing.pkl: step mkdir is not nnU-Net's: it cannot be exported"):
        export(dataclasses.replace(settings, postprocessing=path))
    assert not (tmp_path / "ran").exists()
    path.write_bytes(pickle.dumps(([remove_all_but_largest_component_from_segmentation], [{}])))
    with pytest.raises(DataProblem, match="is not nnU-Net's postprocessing"):
        export(dataclasses.replace(settings, postprocessing=path))


def test_the_command_says_what_it_found(settings, tmp_path, capsys):
    model = shutil.copytree(settings.model, tmp_path / "Dataset001_Paper" / settings.model.name)
    shutil.copytree(model / "fold_0", model / "fold_all")
    (model / "crossval_results_folds_0").mkdir()
    (model / "crossval_results_folds_0" / "postprocessing.pkl").touch()
    to_folder = ["export", "-m", str(model), "-o", str(tmp_path / "export")]
    assert main([*to_folder, "-f", "all", "-n", "1", "-i", str(settings.images), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["agrees"] is True
    assert "crossval_results_folds_0/postprocessing.pkl (-pp_pkl_file carries it along)" in shown.err
    assert f"next: python {tmp_path / 'export' / 'predict.pyz'} -i" in shown.err
    assert [network.file for network in read_recipe(tmp_path / "export").networks] == ["fold_all.onnx"]
    assert main(to_folder) == 4
    assert "is not an empty folder" in capsys.readouterr().err
    assert main(["export", "-m", str(model), "-f", "3", "-o", str(tmp_path / "other")]) == 4
    assert "has no checkpoint_final.pth of fold 3; there: 0, all" in capsys.readouterr().err
    assert main(["export", "-o", str(tmp_path / "other")]) == 2


@pytest.mark.parametrize("content", BROKEN_DESCRIPTIONS.values(), ids=BROKEN_DESCRIPTIONS)
def test_a_broken_description_beside_a_model_is_one_line(tmp_path, capsys, content):
    model = paper.trained(tmp_path / "Dataset011_Fake", **FLAT)
    (model / "dataset.json").write_bytes(content)
    assert main(["export", "-m", str(model), "-o", str(tmp_path / "exported"), "--unverified"]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "train it again" in error
    assert not (tmp_path / "exported").exists()


# Of what the network is built from nothing is broken, so that nnU-Net reads all of it.
@pytest.mark.parametrize("key", ["file_ending", "channel_names"])
@pytest.mark.parametrize("value", [7, ["x"], None])
def test_what_only_the_export_reads_of_a_description_is_looked_at(tmp_path, capsys, key, value):
    model = paper.trained(tmp_path / "Dataset011_Fake", **FLAT)
    content = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps({**content, key: value}))
    assert main(["export", "-m", str(model), "-o", str(tmp_path / "exported"), "--unverified"]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{key} in {model / 'dataset.json'} must be" in error
    assert not (tmp_path / "exported").exists()
