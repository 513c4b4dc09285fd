"""Structures that are not there: what models invent is counted and tested, and no verdict passes over it."""

import csv
import json
import math

import numpy as np
import pytest

from nnunet_nas.evaluation import tables as texts
from nnunet_nas.evaluation.absent import Absent, compare_absent, completed, mcnemar
from nnunet_nas.evaluation.notes import notes_on
from nnunet_nas.evaluation.report import compare_group
from nnunet_nas.evaluation.rows import FOREGROUND, Group, Metric
from nnunet_nas.evaluation.summaries import read_evaluated_folder

DICE = Metric("Dice", "", higher_is_better=True, margin=0.01, digits=4)
NAN = math.nan


@pytest.fixture
def table(tmp_path, write_summary):
    """Compares two models given by `{case: {class: Dice}}`."""

    def make(first, second, margin=0.01, patients=None):
        folders = [write_summary(tmp_path / name, cases) for name, cases in (("one", first), ("two", second))]
        models = [read_evaluated_folder(folder, folder.name) for folder in folders]
        metric = Metric("Dice", "", higher_is_better=True, margin=margin, digits=4)
        return compare_group(Group("", "", models, sorted(first), patients or {}), metric, seed=0)[0]

    return make


def alike(present=30):
    """Cases with the structure, in which both models do nearly the same."""
    random = np.random.default_rng(0)
    first = {f"p{case:02d}": {1: value} for case, value in enumerate(random.uniform(0.7, 0.9, present))}
    return first, {case: {1: dice[1] + random.normal(0, 0.002)} for case, dice in first.items()}


def invented(first, second):
    """Adds cases without the structure: whether each model predicts it there."""
    one, other = alike()
    for case, (a, b) in enumerate(zip(first, second, strict=True)):
        one[f"n{case:02d}"], other[f"n{case:02d}"] = {1: 0.0 if a else NAN}, {1: 0.0 if b else NAN}
    return one, other


def test_a_model_that_invents_the_structure_in_twenty_cases_is_not_called_equivalent(table):
    assert table(*alike()).overall.comparison.equivalence.verdict == "equivalent"
    found = table(*invented([False] * 20, [True] * 20))
    assert found.overall.comparison.cases == 30
    assert found.overall.comparison.equivalence.verdict == "withheld"
    # All twenty on one side: 2 / 2^20.
    assert found.overall.absent == Absent(20, 0.0, 20.0, 0, 20, pytest.approx(2.0**-19))
    assert "predicts it in 0 and the second in 20, McNemar p = 1.9e-06" in notes_on([found])[-1]


def test_every_form_shows_it(table):
    found = table(*invented([False] * 20, [True] * 20))
    header, (cells,) = texts.comparison_text(found)
    assert header[-4:] == ["within ±0.01", "absent", "A/B predict", "p absent"]
    assert cells[-4:] == ["withheld", "20", "0/20", "1.9e-06"]
    (row,) = csv.DictReader(texts.comparison_csv([found]).splitlines())
    assert [row[name] for name in ("verdict", "absent", "absent_first", "absent_second")] == [
        "withheld",
        "20",
        "0.0",
        "20.0",
    ]
    assert float(row["p_absent"]) == pytest.approx(2.0**-19)
    latex = texts.comparison_latex(found)
    assert r"withheld & 20 & 0/20 & 1.9e-06 \\" in latex
    assert r"\begin{tabular}{lrrrrcrrrrrlrrr}" in latex
    content = json.loads(json.dumps(found.rows[0].to_json(), allow_nan=False))
    assert content["absent"]["only_second"] == 20
    assert content["equivalence"]["verdict"] == "withheld"
    # Where every label has the structure, nothing is said of it.
    assert "absent" not in texts.comparison_text(table(*alike()))[0]


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        # Neither invents anything, or both do in the same cases: what is left to compare decides.
        ([False] * 20, [False] * 20, "equivalent"),
        # One dropped case of 31 outweighs a margin of 0.01, whatever McNemar's test can say of a single one.
        ([False] * 20, [True] + [False] * 19, "withheld"),
        # The reference invents: the second model is not equivalent.
        ([True] * 20, [False] * 20, "withheld"),
    ],
)
def test_equivalence_needs_the_cases_without_the_structure(table, first, second, verdict):
    assert table(*invented(first, second)).overall.comparison.equivalence.verdict == verdict


def test_what_dropped_cases_do_not_change_stands(table):
    one, other = invented([True] * 20, [False] * 20)
    gained = {case: {1: dice[1] + 0.05 if case.startswith("p") else dice[1]} for case, dice in other.items()}
    assert table(one, gained).overall.comparison.equivalence.verdict == "better"
    one, other = invented([False] * 20, [True] + [False] * 19)
    assert table(one, other, margin=0.2).overall.comparison.equivalence.verdict == "equivalent"


def test_both_models_invent_where_only_the_label_tells(table, tmp_path):
    one, other = alike()
    for case in range(4):
        one[f"n{case}"] = other[f"n{case}"] = {1: 0.0}
    table(one, other)
    for name in ("one", "two"):
        file = tmp_path / name / "summary.json"
        content = json.loads(file.read_text())
        for entry in content["metric_per_case"]:
            if "/n" in entry["reference_file"]:
                entry["metrics"]["1"]["n_ref"] = 0
        file.write_text(json.dumps(content))
    models = [read_evaluated_folder(tmp_path / name, name) for name in ("one", "two")]
    (found,) = compare_group(Group("", "", models, sorted(one)), DICE, seed=0)
    assert found.overall.absent == Absent(4, 4.0, 4.0, 0, 0, 1.0)


def test_the_foreground_mean_does_not_hide_what_one_class_shows(table):
    one, other = alike()
    for position, case in enumerate(sorted(one)):
        one[case][2], other[case][2] = (NAN, 0.0) if position < 10 else (0.8, 0.8)
    found = {row.key: row for row in table(one, other).rows}
    assert found["1"].comparison.equivalence.verdict == "equivalent"
    assert found["2"].comparison.equivalence.verdict == "withheld"
    assert found[FOREGROUND].comparison.equivalence.verdict == "withheld"
    # Each of the ten cases has one absent class, which only the second model predicts: 2 / 2^10.
    assert found[FOREGROUND].absent == Absent(10, 0.0, 10.0, 0, 10, pytest.approx(2 / 2**10))


def test_mcnemar_by_hand():
    # Of 8 cases 7 on one side: (8 + 1) of 256 patterns are as extreme, on either side.
    assert mcnemar(1, 7) == mcnemar(7, 1) == pytest.approx(2 * 9 / 256)
    assert mcnemar(4, 4) == mcnemar(0, 0) == 1.0


def test_cases_of_a_patient_and_runs_of_a_model_count_together():
    # The first model's two runs disagree in case 2; the second one predicts in all cases of patient x.
    first, second = np.array([0.0, 0.5, 1.0]), np.array([1.0, 1.0, 0.0])
    assert compare_absent(first, second) == Absent(3, 1.5, 2.0, 1, 2, 1.0)
    assert compare_absent(first, second, ["x", "x", "y"]) == Absent(3, 1.5, 2.0, 1, 1, 1.0)
    assert compare_absent(first[:0], second[:0]) is None


def test_only_pairs_with_a_value_are_completed():
    first = np.array([[[0.5], [NAN], [NAN]]])
    second = np.array([[[0.6], [0.0], [NAN]], [[0.6], [NAN], [NAN]]])
    one, other = completed(first, second, best=1.0)
    assert np.array_equal(one, [[[0.5], [1.0], [NAN]]], equal_nan=True)
    assert np.array_equal(other, [[[0.6], [0.0], [NAN]], [[0.6], [1.0], [NAN]]], equal_nan=True)


def test_models_that_invent_equally_often_are_rarely_told_apart():
    random = np.random.default_rng(1)
    found = [compare_absent(*(random.random((2, 40)) < 0.3).astype(float)).p_value for _ in range(1000)]
    # An exact test of few pairs: never more often than 5 %, give or take three errors of the simulation.
    assert 0.005 < np.mean(np.array(found) < 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
