"""Recipes: a round trip, and folders that are not what was exported."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from runtime import models

from nnunet_nas.errors import DataProblem
from nnunet_nas.runtime.recipe import FORMAT, RECIPE, Component, Network, Recipe, file_digest, read_recipe


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fold_0.onnx").write_bytes(b"network")
    network = Network("fold_0.onnx", "0", file_digest(tmp_path / "fold_0.onnx"))
    recipe = models.recipe(models.plans((1, 1, 1)), networks=(network,), postprocessing=(Component((1, 2), 0),))
    (tmp_path / RECIPE).write_text(json.dumps(recipe.to_json()))
    return tmp_path


def _change(folder, **changes):
    path = folder / RECIPE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_recipe_comes_back_as_it_was(folder):
    recipe = read_recipe(folder)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.postprocessing == (Component((1, 2), 0),)


def test_a_recipe_of_a_later_version_is_refused(folder):
    _change(folder, format=FORMAT + 1)
    with pytest.raises(DataProblem, match=f"has format {FORMAT + 1}, this runtime reads {FORMAT}"):
        read_recipe(folder)


def test_a_network_that_was_changed_is_refused(folder):
    (folder / "fold_0.onnx").write_bytes(b"another")
    with pytest.raises(DataProblem, match="its digest differs"):
        read_recipe(folder)


def test_a_network_that_is_missing_is_named(folder):
    (folder / "fold_0.onnx").unlink()
    with pytest.raises(DataProblem, match=r"fold_0\.onnx is missing"):
        read_recipe(folder)


@pytest.mark.parametrize("file", ["../fold_0.onnx", "/etc/passwd", 7])
def test_a_network_outside_the_folder_is_refused(folder, file):
    network = {"file": file, "fold": "0", "sha256": file_digest(folder / "fold_0.onnx")}
    (folder.parent / "fold_0.onnx").write_bytes(b"network")
    _change(folder, networks=[network])
    with pytest.raises(DataProblem, match="names a network outside its folder"):
        read_recipe(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}'])
def test_what_is_no_recipe_is_refused_in_one_line(content, tmp_path):
    (tmp_path / RECIPE).write_text(content)
    with pytest.raises(DataProblem, match="export") as problem:
        read_recipe(tmp_path)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("labels", "expected"), [({"background": 0, "a": 254}, "uint8"), ({str(v): v for v in range(256)}, "uint16")]
)
def test_label_maps_are_as_small_as_nnunets(labels, expected):
    assert models.recipe(models.plans((1, 1, 1)), labels=labels).label_type == expected


def test_the_runtime_imports_neither_torch_nor_nnunet():
    code = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "nnunetv2", "batchgenerators", "skimage", "pandas", "filelock"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import nnunet_nas.runtime.__main__
print(sorted(name for name in sys.modules if name.startswith("nnunet_nas")))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    outside = {name for name in eval(shown) if not name.startswith("nnunet_nas.runtime")}
    assert outside == {"nnunet_nas", "nnunet_nas.errors"}, "predict.pyz carries no other module"
