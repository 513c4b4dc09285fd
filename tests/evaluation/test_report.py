"""From evaluated models to tables: undefined values, corrections, combinations, and the forms that are printed."""

import csv
import json
import math
from dataclasses import replace

import pytest

from nnunet_nas.errors import DataProblem
from nnunet_nas.evaluation import tables as texts
from nnunet_nas.evaluation.costs import Cost
from nnunet_nas.evaluation.equivalence import Equivalence, needed_cases
from nnunet_nas.evaluation.notes import notes_on, settings_json
from nnunet_nas.evaluation.report import Report, combine, compare_group, letter, split_by_fold
from nnunet_nas.evaluation.rows import FOREGROUND, Group, Metric
from nnunet_nas.evaluation.summaries import read_evaluated_folder, read_trained_model

DICE = Metric("Dice", "", higher_is_better=True, margin=0.01, digits=4)
NAN = math.nan


@pytest.fixture
def group(tmp_path, write_summary):
    """Makes a group of models from `{case: {class: Dice}}` of each."""

    def make(*models):
        read = []
        for position, cases in enumerate(models):
            folder = write_summary(tmp_path / f"model_{position}", cases)
            read.append(read_evaluated_folder(folder, folder.name))
        return Group("", "", read, sorted(models[0]))

    return make


@pytest.fixture
def folds(results, write_summary):
    """Two models of three folds with four cases each; the second one gains 0.02, loses 0.01, and gains 0.01."""
    models = []
    for name, gains in (("A__P__2d", (0, 0, 0)), ("B__P__2d", (0.02, -0.01, 0.01))):
        for fold, gain in enumerate(gains):
            cases = {f"case_{fold}{number}": {1: 0.5 + number / 100 + gain} for number in range(4)}
            write_summary(results / name / f"fold_{fold}" / "validation", cases)
        (results / name / "dataset.json").write_text("{}")
        models.append(read_trained_model(results / name, name, ["0", "1", "2"]))
    return Group("Dataset011_Fake", "", models, sorted(models[0].cases))


def rows_of(table):
    return {row.key: row for row in table.rows}


def report_of(group, tables):
    costs = [Cost(None, None, "unknown") for _ in group.models]
    return Report([group], [costs], tables, combine(tables), notes_on(tables), settings_json(seed=0, tolerance=1.0))


def test_one_class_is_its_own_foreground_mean(group):
    (table,) = compare_group(group({"a": {1: 0.5}, "b": {1: 0.6}}, {"a": {1: 0.6}, "b": {1: 0.8}}), DICE, seed=0)
    assert [row.key for row in table.rows] == ["1"]
    assert table.overall.comparison.difference == pytest.approx(0.15)
    assert table.overall.p_holm == table.overall.comparison.p_value


def test_the_foreground_mean_is_over_classes_that_both_models_have(group):
    first = {"a": {1: 0.8, 2: 0.6}, "b": {1: 0.8, 2: NAN}, "c": {1: 0.8, 2: NAN}, "d": {1: NAN, 2: NAN}}
    second = {"a": {1: 0.9, 2: 0.7}, "b": {1: 0.6, 2: NAN}, "c": {1: 0.8, 2: 0.0}, "d": {1: NAN, 2: NAN}}
    (table,) = compare_group(group(first, second), DICE, seed=0)
    rows = rows_of(table)
    assert list(rows) == [FOREGROUND, "1", "2"]
    assert list(rows[FOREGROUND].first) == pytest.approx([0.7, 0.8, 0.8])
    assert list(rows[FOREGROUND].second) == pytest.approx([0.8, 0.6, 0.8])
    assert (rows["2"].cases, rows["2"].undefined, rows["2"].one_sided) == (["a"], ["b", "d"], ["c"])
    # The other way round the means are the same.
    (mirrored,) = compare_group(group(second, first), DICE, seed=0)
    assert list(rows_of(mirrored)[FOREGROUND].first) == pytest.approx([0.8, 0.6, 0.8])
    assert list(rows_of(mirrored)[FOREGROUND].second) == pytest.approx([0.7, 0.8, 0.8])


def test_cases_without_a_value_are_counted_and_named(group):
    models = group({"a": {1: 0.8}, "b": {1: NAN}, "c": {1: NAN}}, {"a": {1: 0.7}, "b": {1: NAN}, "c": {1: 0.0}})
    notes = notes_on(compare_group(models, DICE, seed=0))
    assert len(notes) == 2
    assert "neither in the label nor predicted in 1 case(s), which are not used: b" in notes[0]
    assert "only one of the models predicts it in 1 case(s), which are not used: c" in notes[1]


def test_a_class_that_no_case_has(group):
    models = group({"a": {1: 0.8, 2: NAN}, "b": {1: 0.7, 2: NAN}}, {"a": {1: 0.7, 2: NAN}, "b": {1: 0.7, 2: NAN}})
    (table,) = compare_group(models, DICE, seed=0)
    assert rows_of(table)["2"].comparison is None
    assert rows_of(table)["2"].p_holm is None
    assert texts.comparison_text(table)[1][2] == ["class 2", "0", *["-"] * 10, "2", "0/0", "1"]
    # Nothing in the printed forms may be a NaN, which JSON does not know.
    json.dumps(report_of(models, [table]).to_json(), allow_nan=False)
    assert "nan" not in texts.comparison_csv([table])


def test_holm_is_over_classes_and_for_the_foreground_mean_over_models(group):
    cases = range(5)
    first = {f"c{case}": {1: 0.5, 2: 0.5} for case in cases}
    second = {f"c{case}": {1: 0.6 + case / 100, 2: 0.5 + (-1) ** case * case / 100} for case in cases}
    tables = compare_group(group(first, second, second), DICE, seed=0)
    rows = rows_of(tables[0])
    # All five cases better: p = 2/32. Holm doubles the smaller p-value of two classes.
    assert rows["1"].comparison.p_value == pytest.approx(2 / 32)
    assert rows["1"].p_holm == pytest.approx(4 / 32)
    assert rows["2"].p_holm == rows["2"].comparison.p_value
    assert [table.overall.p_holm for table in tables] == pytest.approx([4 / 32, 4 / 32])


def test_equivalence_is_corrected_over_the_models_for_every_row(group):
    first = {f"c{case}": {1: 0.5} for case in range(3)}
    # Gains of 0, 0.01 and 0.02 (t of 2 degrees, standard error 0.01 / sqrt(3)), and of 0 in all.
    second = {f"c{case}": {1: 0.5 + case / 100} for case in range(3)}
    tables = compare_group(group(first, second, first), Metric("Dice", "", True, 0.04, 4), seed=0)
    found = [table.overall.comparison.equivalence for table in tables]
    t = 0.03 / (0.01 / math.sqrt(3))
    p_value = 0.5 - t / (2 * math.sqrt(2 + t**2))
    assert [each.p_value for each in found] == pytest.approx([p_value, 0.0])
    # The larger one of two is left as it is, the smaller one doubled.
    assert [each.p_holm for each in found] == pytest.approx([p_value, 0.0])
    tables = compare_group(group(first, second, second), Metric("Dice", "", True, 0.04, 4), seed=0)
    assert [table.overall.comparison.equivalence.p_holm for table in tables] == pytest.approx([2 * p_value] * 2)
    assert [table.overall.comparison.equivalence.verdict for table in tables] == ["equivalent"] * 2
    # With one model 0.02 is enough for "not worse", with two 0.04 is not (half of 5 % each).
    alone = Equivalence(0.01, 0.03, 0.5, -0.005, 0.03)
    assert (alone.verdict, replace(alone, models=2).verdict) == ("not worse", "unclear")
    assert replace(Equivalence(0.01, 0.03, 0.03, -0.005, 0.005), models=2, p_holm=0.06).verdict == "unclear"
    assert replace(Equivalence(0.01, 0.03, 0.03, -0.005, 0.005), models=2, p_holm=0.03).verdict == "equivalent"


def test_few_cases_are_told_how_many_it_takes(group):
    first = {f"c{case}": {1: 0.5} for case in range(4)}
    second = {f"c{case}": {1: 0.5 + gain} for case, gain in enumerate((-0.02, 0.02, -0.02, 0.02))}
    tables = compare_group(group(first, second), DICE, seed=0)
    assert tables[0].overall.comparison.deviation == pytest.approx(0.04 / math.sqrt(3))
    needed = needed_cases(0.04 / math.sqrt(3), 0.01)
    assert notes_on(tables) == [
        f"predictions, Dice, B - A: about {needed} cases are needed to show equivalence of class 1 within ±0.01 at "
        "80 % power if the models do not differ (standard deviation of the differences 0.0231); here are 4"
    ]


def test_patients_are_named_in_every_form(group):
    first = {f"c{case}": {1: 0.5} for case in range(4)}
    second = {f"c{case}": {1: 0.5 + case / 100} for case in range(4)}
    grouped = replace(group(first, second), patients={"c0": "x", "c1": "x", "c2": "y", "c3": "y"})
    (table,) = compare_group(grouped, DICE, seed=0)
    assert grouped.size == "4 cases of 2 patients"
    header, (cells,) = texts.comparison_text(table)
    assert (header[2], cells[1], cells[2]) == ("patients", "4", "2")
    assert table.overall.differences == pytest.approx([0.005, 0.025])
    assert table.overall.to_json()["patients"] == 2
    assert "% predictions, by patient: Dice" in texts.comparison_latex(table)
    (row,) = csv.DictReader(texts.comparison_csv([table]).splitlines())
    assert (row["cases"], row["patients"]) == ("4", "2")


def test_models_against_the_same_first_one_are_not_independent(group):
    first = {f"c{case}": {1: 0.5} for case in range(5)}
    better = {f"c{case}": {1: 0.6 + case / 100} for case in range(5)}
    worse = {f"c{case}": {1: 0.4 - case / 100} for case in range(5)}
    (combined,) = combine(compare_group(group(first, better, worse), DICE, seed=0))
    q = (2 / 32) ** 2
    assert combined.p_fisher == pytest.approx(q * (1 - math.log(q)))
    assert (combined.gains, combined.losses, combined.independent) == (1, 1, False)
    assert texts.combined_text([combined])[1][0][-1].endswith("+")


def test_folds_are_compared_one_by_one_and_combined(folds):
    parts = split_by_fold(folds)
    assert [(part.fold, len(part.cases)) for part in parts] == [("fold_0", 4), ("fold_1", 4), ("fold_2", 4)]
    tables = [table for part in parts for table in compare_group(part, DICE, seed=0)]
    assert [table.overall.comparison.difference for table in tables] == pytest.approx([0.02, -0.01, 0.01])
    (combined,) = combine(tables)
    # Four cases of one sign: p = 2/16 each; chi-squared with 6 degrees: exp(-x/2) (1 + x/2 + (x/2)^2 / 2).
    half = -3 * math.log(2 / 16)
    assert combined.p_fisher == pytest.approx(math.exp(-half) * (1 + half + half**2 / 2))
    assert (combined.what, combined.gains, combined.losses) == ("B - A over 3 folds", 2, 1)
    assert combined.independent


def test_folds_of_different_splits_are_not_compared_one_by_one(folds, results, write_summary):
    for fold, cases in (("0", ("case_10", "x")), ("1", ("case_00",))):
        write_summary(results / "C__P__2d" / f"fold_{fold}" / "validation", {case: {1: 0.5} for case in cases})
    (results / "C__P__2d" / "dataset.json").write_text("{}")
    other = read_trained_model(results / "C__P__2d", "C__P__2d", ["0", "1"])
    with pytest.raises(DataProblem, match="case case_00 was validated in fold_0 and fold_1, depending on the model"):
        split_by_fold(Group("", "", [folds.models[0], other], ["case_00", "case_10"]))


def test_titles_say_which_cases(folds, group):
    assert folds.title == "Dataset011_Fake, validation of folds 0, 1, 2"
    assert split_by_fold(folds)[1].title == "Dataset011_Fake, validation of fold 1"
    assert group({"a": {1: 0.5}}, {"a": {1: 0.5}}).title == "predictions"


def test_letters():
    assert [letter(position) for position in (0, 1, 25, 26)] == ["A", "B", "Z", "M27"]


# Printed forms


@pytest.fixture
def table(group):
    """Two classes, four cases, of which one has no value."""
    first = {"a": {1: 0.5, 2: 0.5}, "b": {1: 0.6, 2: 0.5}, "c": {1: 0.7, 2: NAN}, "d": {1: 0.75, 2: 0.5}}
    second = {"a": {1: 0.6, 2: 0.5}, "b": {1: 0.7, 2: 0.5}, "c": {1: 0.7, 2: NAN}, "d": {1: 0.5, 2: 0.5}}
    return compare_group(group(first, second), DICE, seed=0)[0]


def test_text(table):
    header, rows = texts.comparison_text(table)
    cells = rows[1]
    assert len(cells) == len(header)
    assert cells[:5] == ["class 1", "4", "0.6375", "0.6250", "-0.0125"]
    assert cells[6] == "2/1/1"
    assert header[11:] == ["within ±0.01", "absent", "A/B predict", "p absent"]


def test_an_interval_that_is_not_bca_is_marked(table):
    cells = texts.comparison_text(table)[1][2]
    assert cells[5] == "[+0.0000, +0.0000]*"
    assert cells[11] == "equivalent"


def test_csv(table):
    rows = list(csv.DictReader(texts.comparison_csv([table]).splitlines()))
    assert [row["name"] for row in rows] == [FOREGROUND, "class 1", "class 2"]
    assert float(rows[1]["difference"]) == pytest.approx(-0.0125)
    assert (rows[2]["interval"], rows[2]["verdict"], rows[2]["undefined_in_both"]) == ("percentile", "equivalent", "1")
    cases = list(csv.DictReader(texts.cases_csv([table]).splitlines()))
    assert len(cases) == 4 + 4 + 3
    values = {(row["class"], row["case"]): (row["first_value"], row["second_value"]) for row in cases}
    assert values["1", "d"] == ("0.75", "0.5")


def test_latex(table):
    lines = texts.comparison_latex(table).splitlines()
    assert lines[0].startswith("% predictions: Dice; A = model_0, B = model_1")
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    columns = len("lrrrrcrrrrrlrrr")
    assert [line.count(" & ") for line in body] == [columns - 1] * 3
    assert lines[3].count(" & ") == columns - 1
    assert r"$-$0.0125" in body[1]


def test_json_is_complete(table):
    content = report_of(table.group, [table]).to_json()
    (comparison,) = content["comparisons"]
    row = comparison["rows"][1]
    assert (comparison["first"], comparison["second"]) == ("model_0", "model_1")
    assert (row["won"], row["lost"], row["tied"], row["equivalence"]["margin"]) == (2, 1, 1, 0.01)
    assert set(row["interval"]) == {"low", "high", "confidence", "method"}
    assert content["cases"] == {"": ["a", "b", "c", "d"]}


def test_p_values_have_two_digits():
    assert [texts.p_text(p_value) for p_value in (0.04321, 1.0, 3e-7, 1e-12)] == ["0.043", "1", "3e-07", "<1e-10"]
