"""`nnunet_nas add_random`: random cells and topologies in place of what a search found."""

import copy
import json

import numpy as np
import pytest

from nnunet_nas.architecture import build_network, network_spec
from nnunet_nas.cli.main import main
from nnunet_nas.dints import chance
from nnunet_nas.iac.sampling import random_genotype
from nnunet_nas.plans import Plans
from nnunet_nas.training_cost import training_memory

TOPOLOGY = {
    "levels": 3,
    "layers": [
        {"0->0": "conv", "0->1": "skip", "2->2": "conv"},
        {"0->0": "conv", "1->1": "zx_y", "1->2": "conv", "2->2": "skip"},
    ],
}
GENOTYPE = {
    "2": {"0": "sep_conv_3", "1": "identity"},
    "3": {"0": "max_pool_3", "2": "sep_conv_5"},
    "4": {"1": "dil_conv_3", "3": "avg_pool_3"},
    "5": {"3": "dil_conv_5", "4": "sep_conv_3"},
}
BACKBONE = {"checkpoint": "D/T__P__2d/fold_0/c.pth", "backbone_trainer": "T", "backbone_digest": "sha256:b"}
FOLDER = {"search_folder": "S__nnUNetPlans__2d/fold_0"}


def read(dataset):
    return json.loads((dataset / "nnUNetPlans.json").read_text())


@pytest.fixture
def add(dataset, capsys):
    """Calls the command beside what searches found; returns exit code, standard output and lines of standard error."""
    plans = read(dataset)
    flat, lowres = (plans["configurations"][name]["architecture"] for name in ("2d", "3d_lowres"))
    kept = {key: value for key, value in lowres["arch_kwargs"].items() if not key.startswith("n_conv_per_stage")}
    topology = {
        **lowres,
        "network_class_name": "nnunet_nas.dints.network.DiNTSNet",
        "arch_kwargs": {**kept, "topology": TOPOLOGY, "first_level": 0},
    }
    cells, tiny = copy.deepcopy(flat), copy.deepcopy(flat)
    cells["network_class_name"] = "nnunet_nas.iac.network.IACUNet"
    cells["arch_kwargs"] |= {
        "backbone": flat["network_class_name"],
        "cells": {"genotype": GENOTYPE, "widths": [24, 40], "norm": "instance", "residual": True},
    }
    digest = Plans(plans).digest
    for name, base, method, architecture, more in (
        ("3d_lowres_dints", "3d_lowres", "dints", topology, {}),
        ("2d_iaclth_residual", "2d", "iac_lth", cells, {**BACKBONE, **FOLDER}),
        ("2d_xtiny8", "2d", "xtiny", tiny, {}),
    ):
        record = {"method": method, "base_digest": digest(base), "settings": {"a": 1}, "seeds": [0], "fold": 0, **more}
        plans["configurations"][name] = {"inherits_from": base, "architecture": architecture, "nas": record}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans))

    def call(configuration, *words):
        capsys.readouterr()
        code = main(["add_random", "-d", "11", "-c", configuration, *words])
        output = capsys.readouterr()
        return code, output.out, output.err.splitlines()

    return call


def test_a_random_cell_differs_from_the_searched_one_in_its_genotype_alone(add, dataset):
    before = read(dataset)
    code, out, err = add("2d_iaclth_residual", "-seed", "3")
    assert (code, out) == (0, "2d_iaclth_residual_random3: added to plans nnUNetPlans of Dataset011_Fake\n")
    after = read(dataset)
    entry = after["configurations"].pop("2d_iaclth_residual_random3")
    assert after == before
    searched = copy.deepcopy(before["configurations"]["2d_iaclth_residual"]["architecture"])
    cells = searched["arch_kwargs"].pop("cells")
    assert entry["architecture"]["arch_kwargs"].pop("cells") == {
        **cells,
        "genotype": random_genotype(np.random.default_rng(3)).to_json(),
    }
    assert entry["architecture"] == searched
    assert entry["inherits_from"] == "2d"
    # In the same backbone and from the same weights.
    known = {"method": "iac_lth", "settings": {"a": 1}, "fold": 0, **BACKBONE, **FOLDER}
    assert {key: entry["nas"][key] for key in known} == known
    assert (entry["nas"]["random_like"], entry["nas"]["seeds"]) == ("2d_iaclth_residual", [3])
    assert err[-2] == "next: nnUNetv2_train 11 2d_iaclth_residual_random3 0 -tr nnUNetTrainerIACRetrofit"
    plans = Plans.of(dataset, "nnUNetPlans")
    assert plans.staleness("2d_iaclth_residual_random3") is None
    assert type(build_network(network_spec(plans, "2d_iaclth_residual_random3"))).__name__ == "IACUNet"


def test_a_seed_is_one_answer(add, dataset):
    assert add("2d_iaclth_residual")[0] == 0
    assert add("2d_iaclth_residual")[1] == (
        "2d_iaclth_residual_random0: already in plans nnUNetPlans of Dataset011_Fake\n"
    )
    added = json.loads(add("2d_iaclth_residual", "-seed", "1", "--json")[1])
    assert added["configuration"] == "2d_iaclth_residual_random1"
    first = read(dataset)["configurations"]["2d_iaclth_residual_random0"]["architecture"]
    assert added["architecture"] != first


def test_a_random_topology_has_the_size_of_the_searched_one(add, dataset):
    drawn = []
    for seed in range(3):
        code, _, err = add("3d_lowres_dints", "-seed", str(seed))
        name = f"3d_lowres_dints_random{seed}"
        assert code == 0
        assert err[0].startswith("7 edges, 2 of them skips, as in 3d_lowres_dints; training needs ")
        assert err[-2] == f"next: nnUNetv2_train 11 {name} 0"
        plans = Plans.of(dataset, "nnUNetPlans")
        searched, own = (plans.configurations[each] for each in ("3d_lowres_dints", name))
        kwargs = copy.deepcopy(own["architecture"]["arch_kwargs"])
        layers = kwargs.pop("topology")["layers"]
        operations = [operation for layer in layers for operation in layer.values()]
        assert (len(operations), operations.count("skip")) == (7, 2)
        expected = copy.deepcopy(searched["architecture"]["arch_kwargs"])
        del expected["topology"]
        assert kwargs == expected
        needed = [training_memory(network_spec(plans, each)).total for each in (name, "3d_lowres_dints")]
        assert needed[0] == pytest.approx(needed[1], rel=0.12)
        assert (own["nas"]["random_like"], own["nas"]["seeds"]) == ("3d_lowres_dints", [seed])
        drawn.append(json.dumps(layers))
    assert len(set(drawn)) == 3


def test_where_hardly_any_topology_has_the_size_there_is_another_control(add, monkeypatch):
    monkeypatch.setattr(chance, "_DRAWS", 0)
    code, _, err = add("3d_lowres_dints")
    assert code == 5
    assert "7 edges, 2 of them skips: give another -seed, or compare with nnU-Net's own network by" in err[0]
    assert err[0].endswith("nnunet_nas add_width -d 11 -c 3d_lowres -as 3d_lowres_dints")


def test_what_cannot_be_drawn_is_refused(add):
    code, _, err = add("2d_xtiny8")
    assert code == 4
    assert err == [
        "nnunet_nas add_random: 2d_xtiny8 was found by xtiny, whose answers are not drawn at random: choose the result "
        "of iac, iac_lth, dints"
    ]
    assert add("2d")[0] == 4
    with pytest.raises(SystemExit):
        add("3d_lowres_dints", "-seed", "-1")
