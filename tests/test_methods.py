"""The table of methods: what it names exists, and one more row is enough for one more method."""

import ast
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest

import nnunet_nas
from nnunet_nas.cli.main import main
from nnunet_nas.commands import DEFAULT_PLANS, STOCK_TRAINER
from nnunet_nas.histories import History, column
from nnunet_nas.methods import (
    METHODS,
    Dynamics,
    Method,
    has_control,
    part,
    result_trainer,
    retrofit_trainer,
    retrofitted,
    searches,
    trainers,
    with_settings,
)
from nnunet_nas.plans import Plans
from nnunet_nas.settings import setting


@pytest.mark.parametrize("name", METHODS)
def test_every_part_exists_and_is_its_methods(name):
    method = METHODS[name]
    assert method.name == name
    if method.settings:
        assert part(method.settings).method == name
    if method.trainer:
        assert part(method.trainer).__name__ == method.trainer_name
    if method.searches:
        assert part(method.trainer).settings_class is part(method.settings)
    assert (method.history is None) == (method.dynamics is None)
    parts = (method.refit, method.chance, method.draw, method.history, method.dynamics, method.cost, method.beside)
    for reference in filter(None, parts):
        assert callable(part(reference))


def test_what_the_table_says_of_today():
    assert with_settings() == ["iac", "iac_lth", "iac_retrofit", "dints", "distill", "schedule"]
    assert searches() == ["iac", "iac_lth", "dints"]
    assert retrofitted() == ["iac", "iac_lth", "skip"]
    assert {name: result_trainer(name) for name in (*METHODS, None, "unheard of")} == {
        "xtiny": None,
        "iac": "nnUNetTrainerIACRetrofit",
        "iac_lth": "nnUNetTrainerIACRetrofit",
        "iac_retrofit": None,
        "dints": None,
        "distill": None,
        "schedule": None,
        "skip": None,
        "encoder": None,
        "width": None,
        None: None,
        "unheard of": None,
    }
    assert [name for name in (*METHODS, None, "unheard of") if has_control(name)] == ["dints"]


def test_nnunet_finds_every_trainer_where_it_is_told_to_look():
    from nnunet_nas.ext_trainers import nnunet_nas_trainers

    found = {name: getattr(nnunet_nas_trainers, name) for name in trainers()}
    assert sorted(found) == [
        "nnUNetTrainerDiNTSSearch",
        "nnUNetTrainerDistill",
        "nnUNetTrainerIACLTHSearch",
        "nnUNetTrainerIACRetrofit",
        "nnUNetTrainerIACSearch",
        "nnUNetTrainerScheduled",
    ]
    # Pickled by the module that they are defined in: nnU-Net forgets the one that it found them in.
    assert all(getattr(sys.modules[cls.__module__], name) is cls for name, cls in found.items())
    assert not any(cls.__module__.endswith("nnunet_nas_trainers") for cls in found.values())


def spelt_in(path):
    """Text constants of a module, docstrings among them."""
    tree = ast.parse(path.read_text())
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_names_of_trainers_and_default_plans_stand_nowhere_else():
    package = Path(nnunet_nas.__file__).parent
    modules = [path for path in package.rglob("*.py") if path.name not in ("methods.py", "commands.py")]
    names = {*trainers(), STOCK_TRAINER, DEFAULT_PLANS}
    assert {path.name: found for path in modules if (found := spelt_in(path) & names)} == {}


@dataclass(frozen=True)
class ToySettings:
    method: ClassVar[str] = "toy"
    depth: int = setting(3, "our choice", "stages that are searched", minimum=1)


def refit_toy(found, target):
    features = [found.record["settings"]["width"]] * 3
    return target.with_features(features).architecture, [f"for {target.output_channels} classes"]


@dataclass(eq=False)
class ToyHistory(History):
    toy_gain: np.ndarray = column(dtype=np.int64)


def toy_dynamics(history):
    gains = history.toy_gain.tolist()
    rows = [[str(epoch), str(gain)] for epoch, gain in enumerate(gains)]
    return Dynamics({"gain": gains}, "gain per epoch", ["epoch", "gain"], rows, 0, lambda file, title: None)


@pytest.fixture
def fifth_method(monkeypatch):
    """A room of its own and one row: all that a new method needs."""
    room = ModuleType("toy_room")
    room.ToySettings, room.refit = ToySettings, refit_toy
    room.ToyHistory, room.dynamics = ToyHistory, toy_dynamics
    room.draw = lambda arguments, path, title: path.write_text(f"{title}: {arguments['width']}")
    room.nnUNetTrainerToySearch = type("nnUNetTrainerToySearch", (), {"settings_class": ToySettings})
    monkeypatch.setitem(sys.modules, "toy_room", room)
    row = Method(
        "toy",
        suffix="_toy",
        settings="toy_room:ToySettings",
        trainer="toy_room:nnUNetTrainerToySearch",
        in_backbone=True,
        refit="toy_room:refit",
        answer="width",
        draw="toy_room:draw",
        history="toy_room:ToyHistory",
        dynamics="toy_room:dynamics",
    )
    monkeypatch.setitem(METHODS, "toy", row)


def read(dataset):
    return json.loads((dataset / "nnUNetPlans.json").read_text())


def found_by_toy(dataset):
    """The plans of a data set on which the fifth method found something."""
    plans = {**read(dataset), "dataset_name": dataset.name}
    entry = {"inherits_from": "2d", "architecture": plans["configurations"]["2d"]["architecture"]}
    record = {"method": "toy", "base_digest": "sha256:x", "settings": {"width": 8}, "seeds": [0], "fold": 0}
    plans["configurations"]["mine"] = {**entry, "nas": record}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans))


def test_set_search_takes_a_fifth_method(dataset, capsys, fifth_method):
    assert main(["set_search", "-d", "11", "-c", "2d", "-m", "toy", "depth=2"]) == 0
    assert read(dataset)["configurations"]["2d"]["nas_settings"] == {"toy": {"depth": 2}}
    output = capsys.readouterr()
    assert "stages that are searched" in output.out
    assert output.err.splitlines()[-1] == "next: nnUNetv2_train 11 2d 0 -tr nnUNetTrainerToySearch"
    assert main(["set_search", "-d", "11", "-c", "2d", "-m", "toy", "depth=0"]) == 2
    assert "setting toy.depth must be an integer of at least 1 and at most 4294967295, not 0" in capsys.readouterr().err


def test_dynamics_takes_a_fifth_method(dataset, capsys, fifth_method, nnunet_folders):
    results = nnunet_folders / "nnUNet_results" / dataset.name
    folder = results / "nnUNetTrainerToySearch__nnUNetPlans__2d" / "fold_0"
    folder.mkdir(parents=True)
    history = ToyHistory()
    for gain in (1, 4):
        history.append(toy_gain=gain, train_loss=0, val_loss=0, dice=0, seconds=0)
    history.save(folder / "search_history.npz")
    assert main(["dynamics", "-d", "11", "-c", "2d", "-m", "toy"]) == 0
    assert capsys.readouterr().out.split() == ["gain", "per", "epoch", "epoch", "gain", "-----", "----", *"0114"]
    assert main(["dynamics", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"gain": [1, 4]}


def test_a_history_of_no_method_is_refused(dataset, capsys, nnunet_folders):
    np.savez(nnunet_folders / "search_history.npz", layout=1, toy_gain=np.array([1, 4]))
    assert main(["dynamics", str(nnunet_folders)]) == 4
    assert "is not the history of a search (it holds toy_gain): restore a copy" in capsys.readouterr().err


def test_transfer_and_ls_take_a_fifth_method(dataset, capsys, fifth_method):
    source = dataset.with_name("Dataset012_Other")
    shutil.copytree(dataset, source)
    found_by_toy(source)
    assert main(["transfer", "-d", "11", "-c", "2d", "-from", "12:mine"]) == 0
    # Found under a name of the user's own, it gets the method's; trained in a frozen backbone, as the row says.
    error = capsys.readouterr().err.splitlines()
    assert error[:2] == ["for 2 classes", f"next: nnUNetv2_train 11 2d_toy 0 -tr {retrofit_trainer()}"]
    entry = read(dataset)["configurations"]["2d_toy"]
    assert entry["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 8, 8]
    assert entry["nas"]["backbone_trainer"] is None
    assert main(["ls", "-d", "11"]) == 0
    output = capsys.readouterr()
    assert ["Dataset011_Fake", "nnUNetPlans", "2d_toy", "2d", "toy", "ok"] in [
        line.split()[:6] for line in output.out.splitlines()
    ]
    assert output.err == f"next: nnUNetv2_train 11 2d_toy 0 -tr {retrofit_trainer()}\n"


def test_draw_takes_a_fifth_method(dataset, capsys, fifth_method, tmp_path):
    plans = read(dataset)
    architecture = plans["configurations"]["2d"]["architecture"]
    drawn = {**architecture, "arch_kwargs": {**architecture["arch_kwargs"], "width": 8}}
    plans["configurations"]["mine"] = {"inherits_from": "2d", "architecture": drawn}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert main(["draw", "-d", "11", "-c", "mine", "-o", str(tmp_path / "width.txt")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'width.txt'}\n"
    assert (tmp_path / "width.txt").read_text() == "mine: 8"


def test_a_search_by_a_fifth_method_is_no_backbone(dataset, fifth_method, nnunet_folders):
    from nnunet_nas.skips.backbone import BackboneAddress, find_checkpoint

    results = nnunet_folders / "nnUNet_results" / dataset.name
    for trainer in ("nnUNetTrainerToySearch", "nnUNetTrainer_5epochs"):
        folder = results / f"{trainer}__nnUNetPlans__2d" / "fold_0"
        folder.mkdir(parents=True)
        (folder / "checkpoint_final.pth").touch()
    address = BackboneAddress(Plans.of(dataset, "nnUNetPlans"), "2d", 0, None, "checkpoint_final.pth")
    assert find_checkpoint(address)[1] == "nnUNetTrainer_5epochs"


def test_a_plain_training_of_ours_is_a_backbone_once_it_is_named(dataset, nnunet_folders):
    from nnunet_nas.skips.backbone import BackboneAddress, find_checkpoint

    folder = nnunet_folders / "nnUNet_results" / dataset.name / "nnUNetTrainerScheduled__nnUNetPlans__2d" / "fold_0"
    folder.mkdir(parents=True)
    (folder / "checkpoint_final.pth").touch()
    plans = Plans.of(dataset, "nnUNetPlans")
    address = BackboneAddress(plans, "2d", 0, "nnUNetTrainerScheduled", "checkpoint_final.pth")
    assert find_checkpoint(address) == (folder / "checkpoint_final.pth", "nnUNetTrainerScheduled")
