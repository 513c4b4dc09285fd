"""The benchmark of searches within nnU-Net's own memory: what counts once, and what is paired with what."""

import os
import sys
from pathlib import Path
from unittest import mock

import pytest

sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
with mock.patch.dict(os.environ):  # the benchmark's own folder for results is not that of other tests
    import chance_within


def rows(arm, dice):
    return [
        {"arm": arm, "network": network, "seed": seed, "dice": str(value)} for (network, seed), value in dice.items()
    ]


def test_a_topology_that_two_searches_found_counts_once():
    values = {"0": 0.5, "1": 0.7, "2": 0.9}
    assert chance_within.once(values, {"0": "a", "1": "a", "2": "b"}) == pytest.approx([0.6, 0.9])
    assert chance_within.once(values, {}) == [0.5, 0.7, 0.9]


def test_networks_are_compared_at_the_seeds_that_both_were_trained_with():
    found = chance_within.trainings_of(rows("a", {("0", "100"): 0.9, ("0", "101"): 0.5, ("1", "100"): 0.4}), "a")
    assert chance_within.less(found, {"0": {"100": 0.8}, "2": {"100": 0.1}}) == pytest.approx({"0": 0.1})


def test_a_line_of_the_table_by_hand():
    table = rows("nnU-Net", {("0", "100"): 0.9}) + rows("a", {("0", "100"): 0.8, ("1", "100"): 0.8, ("2", "100"): 0.5})
    table += rows("random as a", {("0.0", "100"): 0.7, ("2.0", "100"): 0.5}) + rows("w", {("0", "100"): 0.6})
    line = chance_within.line(table, "a", {"0": "x", "1": "x", "2": "y"}, "w")
    assert line[:4] == ["a", "3", "2", "0.6500"]
    assert line[5] == "+0.0500"  # of fewer than three no interval
    assert line[6].startswith("+0.0500 [")
    assert line[7].startswith("-0.2500 [")
