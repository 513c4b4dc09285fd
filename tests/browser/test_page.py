"""The page of examples/browser in a real Chromium: masks beside the Python runtime's, and nothing that leaves it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from export import paper
from filelock import FileLock
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from scipy import ndimage

from nnunet_nas.export.folder import ExportSettings, export
from nnunet_nas.runtime.predictor import Predictor
from nnunet_nas.runtime.recipe import RECIPE

pytest.importorskip("onnxruntime", reason="needs the packages of nnunet-nas[export]")
pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "examples" / "browser"
# Of all pixels; rounding of convolutions differs between the two runtimes.
ALLOWED = 1e-3
REAL = {"colour": "Dataset107_DSB2018Nuclei", "grey": "Dataset106_AxonSEM"}
COMMON = {"patch_size": (64, 48), "spacing": (1.0, 1.0), "file_ending": ".png"}
READER = {"image_reader_writer": "NaturalImage2DIO"}
MODELS = {
    "colour": {
        "schemes": ("ZScoreNormalization", "RescaleTo01Normalization", "CTNormalization"),
        "folds": ("0", "1"),
        "plans_changes": READER,
    },
    "grey": {
        "labels": {"background": 0, "whole": [1, 2], "core": 2},
        "regions_class_order": (1, 2),
        "changes": {"use_mask_for_norm": [True]},
        "plans_changes": READER,
    },
    "plain": {
        "schemes": ("RGBTo01Normalization",) * 2 + ("NoNormalization",),
        "mirrored": False,
        "plans_changes": READER,
    },
}


def _program(*names):
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs {names[0]}, which is not installed")
    return found


@pytest.fixture(scope="module")
def chromium():
    """A browser; the page is built."""
    _program("node")
    npm, browser = _program("npm"), _program("chromium", "chromium-browser", "google-chrome")
    with FileLock(PAGE / "node_modules.lock"):
        if not (PAGE / "node_modules" / "playwright-core").is_dir():
            done = subprocess.run([npm, "ci"], cwd=PAGE, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"npm ci cannot install the page's packages: {done.stderr.strip()[-200:]}")
        subprocess.run([npm, "run", "build"], cwd=PAGE, capture_output=True, check=True)
    return browser


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Three exports of random weights."""
    root = tmp_path_factory.mktemp("exports")
    steps = ([remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": 2}])
    (root / "postprocessing.pkl").write_bytes(pickle.dumps(steps))
    for name, model in MODELS.items():
        export(
            ExportSettings(
                model=paper.trained(root / name / "Dataset001_Paper", **COMMON, **model),
                folds=(),
                checkpoint="checkpoint_final.pth",
                output=root / name / "export",
                postprocessing=root / "postprocessing.pkl" if name == "grey" else None,
                unverified=True,
            )
        )
    return root


def _picture(path, shape, seed):
    """Smooth noise in a black frame."""
    noise = np.random.default_rng(seed).normal(128, 300, shape)
    smooth = ndimage.gaussian_filter(noise, (2, 2, 0)[: len(shape)]).clip(0, 255).astype(np.uint8)
    smooth[:5] = smooth[:, -9:] = 0
    imageio.imwrite(path, smooth)
    return path


def _images(folder, name, data):
    depth = () if name == "grey" else (3,)
    shapes = [(150, 131, *depth), (40, 90, *depth)]  # larger than the patch, and smaller along one axis
    images = [_picture(folder / f"{name}{i}_0000.png", shape, i) for i, shape in enumerate(shapes)]
    if data is not None and name in REAL:
        images.append(next((data / REAL[name] / "imagesTs").iterdir()))
    return images


def _changed(export, target, **changes):
    shutil.copytree(export, target)
    recipe = json.loads((target / RECIPE).read_text())
    (target / RECIPE).write_text(json.dumps({**recipe, **changes}))
    return target


def _problems(exports, folder):
    """What is chosen, and what the page must say."""
    grey, colour = exports / "grey" / "export", exports / "colour" / "export"
    damaged = shutil.copytree(grey, folder / "damaged")
    with (damaged / "fold_0.onnx").open("ab") as file:
        file.write(b"0")
    cut = folder / "cut.png"
    cut.write_bytes(_picture(folder / "whole.png", (60, 60), 9).read_bytes()[:900])
    deep = folder / "deep.png"
    imageio.imwrite(deep, np.full((64, 64), 40_000, np.uint16))
    return [
        (_changed(grey, folder / "3d", patch_size=[8, 8, 8]), None, "cannot run a 3-D model"),
        (_changed(grey, folder / "four", channels=list("abcd")), None, "the model has 4 channels"),
        (_changed(grey, folder / "nifti", reader="SimpleITKIO", file_ending=".nii.gz"), None, "reads .nii.gz files"),
        (_changed(grey, folder / "spacing", spacing=[1.0, 0.5]), None, "resamples"),
        (_changed(grey, folder / "later", format=2), None, "has format 2, this page reads 1"),
        (damaged, None, "its digest differs"),
        (grey, cut, "not whole"),
        (grey, deep, "has 16 bits"),
        (grey, _picture(folder / "colour.png", (60, 60, 3), 1), "has 3 channels, the model was trained on 1"),
        (colour, folder / "whole.png", "has 1 channels, the model was trained on 3"),
    ]


def test_masks_are_the_runtimes_and_nothing_leaves_the_page(chromium, exports, tmp_path):
    data = Path(os.environ["NNUNET_NAS_TEST_DATA"]) if os.environ.get("NNUNET_NAS_TEST_DATA") else None
    models = []
    for name in MODELS:
        images = _images(tmp_path, name, data)
        chosen = exports / name / "export"
        if name == "colour":
            chosen = shutil.make_archive(str(tmp_path / name), "zip", chosen.parent, chosen.name)
        masks = [tmp_path / f"{image.stem}_mask.png" for image in images]
        models.append({"choose": str(chosen), "images": list(map(str, images)), "masks": list(map(str, masks))})
    problems = _problems(exports, tmp_path)
    job = {
        "chromium": chromium,
        "screenshot": str(tmp_path / "page.png"),
        "models": models,
        "problems": [{"choose": str(path), "image": image and str(image)} for path, image, _ in problems],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        ["node", PAGE / "test" / "end_to_end.mjs", tmp_path / "job.json"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["requests"] == [], "nothing is asked for once the page is loaded"
    assert seen["served"] == seen["loaded"] > 5
    assert [error for error in seen["errors"] if "Content Security Policy" in error] == []
    assert seen["progress"] > 1, "the page was drawn while the worker predicted"
    for name, model, found in zip(MODELS, models, seen["models"], strict=True):
        assert found["problem"] == ""
        assert found["warning"].startswith("Not verified against nnU-Net: ")
        _require_same_masks(Predictor(exports / name / "export", threads=1), model, found)
    for (_, _, message), said in zip(problems, seen["problems"], strict=True):
        assert message in said


def _require_same_masks(predictor, model, found):
    for image, path, run in zip(model["images"], model["masks"], found["runs"], strict=True):
        assert run["problem"] == ""
        assert " s, WebAssembly, " in run["status"]
        mask, expected = imageio.imread(path), predictor.predict([Path(image)])[0]
        assert mask.shape == expected.shape
        assert mask.dtype == expected.dtype
        assert len(np.unique(expected)) > 1, "the random network predicts several classes"
        assert np.mean(mask != expected) <= ALLOWED, image
        names = [line.split(" (")[0] for line in run["legend"]]
        assert names == [name for name in predictor.recipe.labels if name != "background"]
