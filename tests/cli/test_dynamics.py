"""`nnunet_nas dynamics` and `nnunet_nas draw`, on histories and plans made here."""

import json

import numpy as np
import pytest

from nnunet_nas.cli.main import main
from nnunet_nas.dints.dynamics import settled_epochs
from nnunet_nas.dints.history import TopologyHistory
from nnunet_nas.iac.history import CellHistory

SCALARS = {
    "log_feasible": -3.5,
    "nll": 2.0,
    "pattern_entropy": 1.25,
    "operation_entropy": 0.5,
    "expected_mib": 40.0,
    "selected_mib": 41.0,
    "budget_mib": 50.0,
    "train_loss": 0.1,
    "val_loss": np.nan,
    "dice": np.nan,
    "seconds": 1.0,
}
GENOTYPE = {
    "2": {"0": "sep_conv_3", "1": "identity"},
    "3": {"0": "max_pool_3", "2": "sep_conv_5"},
    "4": {"1": "dil_conv_3", "3": "avg_pool_3"},
    "5": {"3": "dil_conv_5", "4": "sep_conv_3"},
}


@pytest.fixture
def topology_search(tmp_path):
    """Three epochs of two layers and two levels (four edges)."""
    history = TopologyHistory()
    for epoch in range(3):
        selected = np.ones((2, 4), bool)
        selected[0, 1] = epoch > 0
        history.append(
            edge_logits=np.full((2, 4), float(epoch)),
            operations=np.full((2, 4, 4), 0.25),
            selected=selected,
            warmup=epoch == 0,
            gap=2 - epoch,
            **SCALARS,
        )
    folder = tmp_path / "Trainer__Plans__3d" / "fold_0"
    folder.mkdir(parents=True)
    history.save(folder / "search_history.npz")
    return folder


@pytest.fixture
def cell_search(tmp_path):
    """Two epochs in which the first operation of every edge leads."""
    history = CellHistory()
    for epoch in range(2):
        probabilities = np.full((14, 7), 0.1)
        probabilities[:, 0] = 0.4
        history.append(
            probabilities=probabilities,
            weights=np.linspace(0.5, 0.1, 14),
            active=np.ones((14, 7), bool),
            js=np.full(14, np.nan),
            tau=np.full(14, np.nan),
            warmup=epoch == 0,
            train_loss=0.1,
            val_loss=0.1,
            dice=0.5,
            seconds=1.0,
        )
    folder = tmp_path / "Trainer__Plans__2d" / "fold_0"
    folder.mkdir(parents=True)
    history.save(folder / "search_history.npz")
    return folder


def test_an_edge_settles_when_it_is_for_good_what_it_is_at_the_end():
    selected = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]], bool)[:, None, :]
    assert settled_epochs(selected).tolist() == [[0, 1, 2, 0]]


def test_a_topology_search_as_table_and_json(topology_search, capsys, tmp_path):
    assert main(["dynamics", str(topology_search), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["gap"] == [2, 1, 0]
    assert content["weights_only_epochs"] == 1
    edge = content["edges"][1]
    assert (edge["layer"], edge["source"], edge["destination"], edge["settled"]) == (0, 1, 0, 1)
    assert edge["probability"] == [0.5, 0.731059, 0.880797]
    assert main(["dynamics", str(topology_search), "-o", str(tmp_path / "pictures")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["2", "0", "-3.500", "1.250", "0.500", "40.0", "8/8"]
    assert (tmp_path / "pictures" / "dynamics.png").stat().st_size > 10_000


def test_a_cell_search_as_table_and_json(cell_search, capsys, tmp_path):
    assert main(["dynamics", str(cell_search), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["epochs"] == 2
    assert len(content["edges"]) == 14
    assert main(["dynamics", str(cell_search / "search_history.npz"), "-o", str(tmp_path / "pictures")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 epochs, 1 of them warm-up; first epoch in:"
    assert len(lines) == 3 + 14
    assert (tmp_path / "pictures" / "dynamics.png").stat().st_size > 10_000


def test_several_cell_searches_are_averaged(cell_search, capsys, tmp_path):
    folders = [str(cell_search), str(cell_search)]
    assert main(["dynamics", *folders, "-o", str(tmp_path / "pictures")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 searches; every two cells share 1.00 of their edges (random cells: 0.48)")
    assert [line.split()[0] for line in lines[3:]] == ["Trainer__Plans__2d/fold_0"] * 2 + ["mean"]
    assert (tmp_path / "pictures" / "dynamics.png").stat().st_size > 10_000
    assert main(["dynamics", *folders, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["epochs"] == [2, 2]
    assert content["to_final"]["cosine"]["mean"] == pytest.approx([1, 1])


def test_topologies_are_not_averaged(topology_search, capsys):
    assert main(["dynamics", str(topology_search), str(topology_search)]) == 2
    assert "give one folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "give the folder of a search, or -d, -c and -m"),
        (["nowhere"], 4, "nowhere does not exist"),
        (["-d", "11", "-c", "2d", "-m", "dints"], 4, "nnUNetTrainerDiNTSSearch__nnUNetPlans__2d/fold_0"),
    ],
)
def test_without_a_history_it_says_what_to_give(dataset, capsys, options, code, message):
    assert main(["dynamics", *options]) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_what_plans_hold_is_drawn(dataset, capsys, tmp_path):
    path = dataset / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    plain = plans["configurations"]["2d"]["architecture"]
    kinds = {
        "cells": {"cells": {"genotype": GENOTYPE}},
        "topology": {"topology": {"levels": 2, "layers": [{"0->1": "conv"}, {"1->0": "skip", "1->1": "y_x"}]}},
    }
    for name, kwargs in kinds.items():
        architecture = {**plain, "arch_kwargs": {**plain["arch_kwargs"], **kwargs}}
        plans["configurations"][name] = {"inherits_from": "2d", "architecture": architecture}
    path.write_text(json.dumps(plans))
    for name in kinds:
        file = tmp_path / f"{name}.png"
        assert main(["draw", "-d", "11", "-c", name, "-o", str(file)]) == 0
        assert file.stat().st_size > 10_000
    assert main(["draw", "-d", "11", "-c", "2d"]) == 4
    assert "neither searched cells nor a topology" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_said_before_anything_is_drawn(topology_search, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["dynamics", str(topology_search), "-o", str(tmp_path / "file")]) == 3
    assert f"cannot write {tmp_path / 'file'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda history: history.edge_logits.__setitem__((0, 0, 0), np.nan),
        lambda history: history.operations.__setitem__((0, 0, 0, 0), np.inf),
        lambda history: history.selected.__setitem__((0, 0, 0), 0.5),
        lambda history: history.warmup.__setitem__(0, np.nan),
        lambda history: vars(history).update(
            edge_logits=np.zeros((3, 2, 3)), operations=np.ones((3, 2, 3, 4)), selected=np.ones((3, 2, 3))
        ),
    ],
)
def test_a_damaged_history_is_one_line(topology_search, change, capsys):
    path = topology_search / "search_history.npz"
    history = TopologyHistory.load(path)
    change(history)
    history.save(path)
    assert main(["dynamics", str(path)]) == 4
    assert "run the search again" in capsys.readouterr().err
