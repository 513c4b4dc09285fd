"""The benchmark of searches beside chance: nnU-Net's own network at equal cost, and its column of the table."""

import argparse
import json
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from nnunet_nas.architecture import network_spec
from nnunet_nas.complexity import complexity_of
from nnunet_nas.dints.topology import Topology
from nnunet_nas.plans import Plans
from nnunet_nas.training_cost import training_memory
from nnunet_nas.widths import with_width

sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
with mock.patch.dict(os.environ):  # the benchmark's own folder for results is not that of other tests
    import chance

EVIDENCE = Path(__file__).parents[1] / "examples" / "evidence" / "chance" / "trainings.csv"


class Trainer:
    """Whose found networks are nnU-Net's own at the widths 5, 7 and 20, of topologies of 1, 2 and 3 levels."""

    def __init__(self, own):
        self.own = own

    def base_spec(self):
        return self.own

    def spec_of(self, topology):
        return with_width(self.own, {1: 5, 2: 7, 3: 20}[topology.levels])


@pytest.fixture
def own(dataset):
    return network_spec(Plans.read(dataset / "nnUNetPlans.json"), "2d")


@pytest.mark.parametrize(
    ("network", "name", "cost"),
    [
        ("equal", "nnU-Net as a", lambda spec: training_memory(spec).total),
        ("equal_macs", "nnU-Net at the MACs of a", lambda spec: complexity_of(spec).macs),
    ],
)
def test_nnunets_own_network_costs_what_the_median_of_an_arm_does(own, tmp_path, network, name, cost):
    found = [Topology(levels, ({(0, 0): "conv"},)) for levels in (1, 2, 3)]
    for seed, topology in enumerate(found):
        row = {"dataset": 7, "arm": "a", "seed": seed, "topology": json.dumps(topology.to_json())}
        chance.append(tmp_path / "searches.csv", row)
    args = argparse.Namespace(
        networks=[network], arms=["a"], searches=tmp_path / "searches.csv", dataset=7, random=1, within=1
    )
    networks = chance.networks_of(args, Trainer(own), None)
    assert list(networks) == [(name, "0")]
    spec, size = networks[name, "0"]
    assert size == chance.NO_SIZE
    # The median of the widths 5, 7 and 20.
    assert spec == with_width(own, 7)
    assert cost(spec) < cost(with_width(own, 8))


def compared(path, monkeypatch):
    """Rows of the printed table, by data set, iterations and arm."""
    tables = []
    monkeypatch.setattr(chance, "format_table", lambda names, rows: tables.append((names, rows)))
    chance.compare(argparse.Namespace(table=path))
    names, rows = tables[0]
    assert names[-1] == "less nnU-Net's of equal MACs, 95 % interval"
    return {tuple(row[:3]): row[3:] for row in rows}


def test_a_network_of_equal_macs_is_one_more_column_and_changes_no_other(tmp_path, monkeypatch):
    path = tmp_path / "trainings.csv"
    lines = EVIDENCE.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if ",nnU-Net at the MACs of " not in line))
    before = compared(path, monkeypatch)
    found = [row for row in chance.rows_of(path) if (row["arm"], row["iterations"]) == ("evidence", "600")]
    seed = found[0]["seed"]
    chance.append(path, {**found[0], "arm": "nnU-Net at the MACs of evidence", "network": "0", "dice": "0.5"})
    after = compared(path, monkeypatch)
    assert {row[-1] for row in before.values()} == {""}
    assert {key: after[key][:-1] for key in before} == {key: row[:-1] for key, row in before.items()}
    dice = [float(row["dice"]) for row in found if row["seed"] == seed]
    assert after["107", "600", "evidence"][-1].startswith(f"{sum(dice) / len(dice) - 0.5:+.4f} [")
    assert after["107", "600", "random as evidence"][-1]
    assert not after["107", "150", "evidence"][-1]


def test_searches_within_nnunets_memory_are_compared_with_random_networks_within_it(tmp_path, monkeypatch):
    path = tmp_path / "trainings.csv"
    for arm, dice in (("a_own", (0.8, 0.82, 0.84)), (chance.WITHIN, (0.7, 0.7, 0.7)), ("b", (0.9, 0.9, 0.9))):
        for network, value in enumerate(dice):
            row = {"dataset": 7, "arm": arm, "network": network, "seed": 0, "iterations": 10, "dice": value}
            chance.append(path, row)
    found = compared(path, monkeypatch)
    less_random = 5
    assert found["7", "10", "a_own"][less_random].startswith("+0.1200 [+0.1")
    assert not found["7", "10", "b"][less_random]


@pytest.mark.parametrize(
    ("patch", "shape", "parts"),
    [
        ((4, 6), (1, 1, 8, 12), (4, 1, 4, 6)),  # a picture: four patches around its centre
        ((4, 6), (1, 9, 5, 5), (3, 1, 4, 6)),  # a volume, in 2-D: every third slice
        ((4, 6, 8), (1, 9, 5, 5), (1, 1, 4, 6, 8)),  # in 3-D: its centre
    ],
)
def test_the_hold_out_is_cut_to_patches_as_the_configuration_has_axes(patch, shape, parts):
    import chance_runs

    hold_out = chance_runs.HoldOut.__new__(chance_runs.HoldOut)
    hold_out.patch = patch
    image = np.random.default_rng(0).random(shape)
    found = hold_out._patches(image)
    assert found.shape == parts
    if len(patch) == 3:
        np.testing.assert_allclose(found[0, 0, :, :5, 1:6], image[0, 2:6], rtol=1e-6)
