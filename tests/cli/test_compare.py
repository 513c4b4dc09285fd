"""`nnunet_nas compare` as a user calls it: trained models, folders of predictions, several data sets, and errors."""

import csv
import json
import math
import multiprocessing
import shutil
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
from fake_dataset import BROKEN_DESCRIPTIONS

from nnunet_nas.cli.main import main

ONE = "nnUNetTrainer__nnUNetPlans__2d"
TWO = "nnUNetTrainer_5epochs__nnUNetPlans__2d_bs4"
SPACING = (0.5, 0.5, 3.0)  # of SimpleITK: x, y, z


def entry(folder, name, dice):
    return {
        "metrics": {"1": {"Dice": dice, "n_ref": 64}},
        "prediction_file": str(folder / f"{name}.nii.gz"),
        "reference_file": f"/labels/{name}.nii.gz",
    }


def write_summary(folder, dice):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"metric_per_case": [entry(folder, name, value) for name, value in dice.items()]}
    (folder / "summary.json").write_text(json.dumps(content))


def write_volume(path, start, shape=(4, 16, 16)):
    """A box of 2 x 6 x 6 voxels at `start`, 3 mm by 0.5 mm by 0.5 mm."""
    import SimpleITK as sitk

    volume = np.zeros(shape, dtype=np.uint8)
    z, y, x = start
    volume[z : z + 2, y : y + 6, x : x + 6] = 1
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(SPACING)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def train(nnunet_folders, fake_preprocessed, name, folds, dataset="Dataset011_Fake"):
    """A model's results folder as nnU-Net leaves it; `folds` are lists of Dice."""
    folder = nnunet_folders / "nnUNet_results" / dataset / name
    folder.mkdir(parents=True)
    shutil.copy(fake_preprocessed / "nnUNetPlans.json", folder / "plans.json")
    shutil.copy(fake_preprocessed / "dataset.json", folder)
    for fold, values in enumerate(folds):
        dice = {f"case_{fold}{number}": value for number, value in enumerate(values)}
        write_summary(folder / f"fold_{fold}" / "validation", dice)
    return folder


@pytest.fixture
def models(nnunet_folders, fake_preprocessed):
    """Two models of two folds; the second one is better by 0.001 to 0.006, and worse by 0.002 in one case."""
    first = [[0.8, 0.81, 0.82, 0.83], [0.7, 0.71, 0.72]]
    second = [[0.801, 0.812, 0.823, 0.834], [0.705, 0.716, 0.718]]
    return [train(nnunet_folders, fake_preprocessed, *model) for model in ((ONE, first), (TWO, second))]


@pytest.fixture
def compare(capsys):
    """Calls the command; returns exit code, standard output and standard error."""

    def call(*arguments):
        try:
            code = main(["compare", *map(str, arguments)])
        except SystemExit as end:
            code = end.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture
def predictions(tmp_path, fake_preprocessed):
    """Labels of two cases and predictions of two models: one shifted by a voxel along x, one along z."""
    for number in range(2):
        name = f"case_{number}.nii.gz"
        write_volume(tmp_path / "labels" / name, (1, 4 + number, 4))
        write_volume(tmp_path / "2d" / name, (1, 4 + number, 5))
        write_volume(tmp_path / "2d_bs4" / name, (2, 4 + number, 4))
    folders = [tmp_path / name for name in ("2d", "2d_bs4")]
    for folder in folders:
        shutil.copy(fake_preprocessed / "nnUNetPlans.json", folder / "plans.json")
        shutil.copy(fake_preprocessed / "dataset.json", folder)
    return tmp_path / "labels", *folders


def test_two_trained_models(compare, models):
    code, out, err = compare("-d", 11, "-m", ONE, TWO)
    assert code == 0
    lines = out.splitlines()
    assert lines[:2] == [f"A  {ONE}", f"B  {TWO}"]
    assert "Dataset011_Fake, validation of folds 0, 1: 7 cases" in lines
    cells = next(line for line in lines if line.startswith("bright")).split()
    # Means of seven cases; six won, one lost.
    assert cells[1:5] == ["7", "0.7700", "0.7727", "+0.0027"]
    assert "6/1/0" in cells
    # The two configurations have the same network: its parameters are counted once more in test_info.
    costs = [line.split() for line in lines if line.startswith(("A  2d", "B  2d_bs4"))]
    assert costs[0][2] == costs[1][2] == "32x32"
    assert costs[0][3] == costs[1][3]
    assert err == "next: nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d 11 -c 2d -f 0 1\n"


def test_names_in_summaries_do_not_speak_to_the_terminal(compare, models):
    for model, dice in zip(models, ("NaN", "0.8"), strict=True):
        summary = model / "fold_0/validation/summary.json"
        content = json.loads(summary.read_text().replace("case_00", "case\\u001b[31m"))
        content["metric_per_case"][0]["metrics"]["1"] = {"Dice": float(dice), "n_ref": 0}
        summary.write_text(json.dumps(content))
    _, out, err = compare("-d", 11, "-m", ONE, TWO)
    assert "case\\x1b[31m" in err
    assert "\x1b" not in out + err


def test_the_next_command_is_for_the_model_that_is_no_worse(compare, models, nnunet_folders, fake_preprocessed):
    worse = [[0.6 - number / 100 for number in range(4)], [0.5, 0.51, 0.52]]
    train(nnunet_folders, fake_preprocessed, "nnUNetTrainer__nnUNetPlans__2d_bad", worse)
    _, _, err = compare("-d", 11, "-m", "nnUNetTrainer__nnUNetPlans__2d_bad", TWO)
    assert err.endswith("-d 11 -c 2d_bs4 -f 0 1 -tr nnUNetTrainer_5epochs\n")
    # Four cases that say nothing: more of them are wanted.
    unclear = [[0.9, 0.7, 0.85, 0.8]]
    train(nnunet_folders, fake_preprocessed, "nnUNetTrainer__nnUNetPlans__2d_unclear", unclear)
    _, out, err = compare("-d", 11, "-m", ONE, "nnUNetTrainer__nnUNetPlans__2d_unclear", "-f", 0)
    assert "unclear" in out
    assert err.splitlines()[-1] == "next: nnUNetv2_train 11 2d 2"


def test_one_fold_and_each_fold(compare, models, tmp_path):
    _, out, _ = compare("-d", 11, "-m", ONE, TWO, "-f", 0, "--json")
    (comparison,) = json.loads(out)["comparisons"]
    assert comparison["rows"][0]["cases"] == 4
    _, out, _ = compare("-d", 11, "-m", ONE, TWO, "--per_fold", "--json", "-o", tmp_path / "out")
    assert (tmp_path / "out" / "paired_differences_Dataset011_Fake_fold_1.png").exists()
    content = json.loads(out)
    assert [item["fold"] for item in content["comparisons"]] == ["fold_0", "fold_1"]
    (combined,) = content["combined"]
    # Four of four won, two of three won (rank sum 5 of 6: {}, {1} below on either side): p = 2/16 and 4/8.
    assert combined["p_values"] == pytest.approx([2 / 16, 4 / 8])
    q = 2 / 16 * 4 / 8
    assert combined["p_fisher"] == pytest.approx(q * (1 - math.log(q)))


def test_several_data_sets_are_combined(compare, models, nnunet_folders, fake_preprocessed):
    for name, value in ((ONE, 0.5), (TWO, 0.6)):
        train(nnunet_folders, fake_preprocessed, name, [[value, value + 0.1]], dataset="Dataset012_Other")
    code, out, _ = compare("-d", 11, "Dataset012_Other", "-m", ONE, TWO)
    assert code == 0
    assert "Dataset011_Fake, validation of folds 0, 1: 7 cases" in out
    assert "Dataset012_Other, validation of fold 0: 2 cases" in out
    assert "B - A over 2 data sets" in out


def test_json_csv_and_latex(compare, models):
    _, out, err = compare("-d", 11, "-m", ONE, TWO, "--json")
    content = json.loads(out)
    assert err == ""
    # Sizes of the differences: 1, 2, 2, 3, 4, 5, 6 thousandths, one of the 2 is the loss, with rank 2.5. As extreme are
    # {}, {1}, {2.5} and the other {2.5}, on either side.
    assert [model["costs"]["parameters"] > 0 for model in content["models"]] == [True, True]
    assert content["comparisons"][0]["rows"][0]["p_value"] == pytest.approx(8 / 128)
    _, out, _ = compare("-d", 11, "-m", ONE, TWO, "--csv")
    (row,) = csv.DictReader(out.splitlines())
    assert (row["first"], row["second"], row["won"]) == (ONE, TWO, "6")
    _, out, _ = compare("-d", 11, "-m", ONE, TWO, "--latex")
    assert out.splitlines()[-1] == r"\end{tabular}"
    assert compare("-d", 11, "-m", ONE, TWO, "--latex", "--csv")[0] == 2


def test_runs_of_a_model_are_one_model(compare, models, nnunet_folders, fake_preprocessed):
    again = "nnUNetTrainer_again__nnUNetPlans__2d"
    train(nnunet_folders, fake_preprocessed, again, [[0.82, 0.83, 0.84, 0.85], [0.72, 0.73, 0.74]])
    _, out, err = compare("-d", 11, "-m", f"{ONE},{again}", TWO, "--json")
    content = json.loads(out)
    (row,) = content["comparisons"][0]["rows"]
    # The second run is better by 0.02 in each case: the mean of both by 0.01.
    assert row["mean_first"] == pytest.approx(0.77 + 0.01)
    assert (row["interval"]["method"], row["cases"]) == ("hierarchical", 7)
    assert content["models"][0]["runs"] == [ONE, again]
    assert "hierarchical" in content["settings"]["runs"]
    note = "values are means over the runs of a model (A 2, B 1); intervals resample runs as well as cases"
    assert note in content["notes"][0]
    assert "how runs of B would differ is not known from one" in err
    _, out, err = compare("-d", 11, "-m", f"{ONE},{again}", TWO)
    assert f"A  {ONE},{again}  (2 runs)" in out.splitlines()
    assert err.splitlines()[-1].startswith("next: nnUNetv2_")
    refused(compare("-d", 11, "-m", f"{ONE},{again}", again), 2, f"names {again} twice")
    wider = "nnUNetTrainer__nnUNetPlans__3d_fullres"
    train(nnunet_folders, fake_preprocessed, wider, [[0.82, 0.83, 0.84, 0.85], [0.72, 0.73, 0.74]])
    refused(compare("-d", 11, "-m", f"{ONE},{wider}", TWO), 2, f"{wider} has another network than the first run")
    code, out, err = compare("-d", 11, "-m", f"{ONE},{wider}", TWO, "--searched")
    assert code == 0
    assert f"the runs of {ONE},{wider} have different networks: its costs are those of the first" in err


def test_patients_count_once(compare, models, tmp_path):
    file = tmp_path / "patients.csv"
    file.write_text("case,patient\n" + "".join(f"case_0{n},p{n // 2}\n" for n in range(4)))
    _, out, err = compare("-d", 11, "-m", ONE, TWO, "-f", 0, "-patients", file, "-o", tmp_path / "out")
    assert "Dataset011_Fake, validation of fold 0: 4 cases of 2 patients" in out
    assert "each patient counts once" in err
    (row,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["comparisons"][0]["rows"]
    # Gains of 1 and 2 thousandths, and of 3 and 4: 1.5 and 3.5, whose signs agree in 2 of 4 patterns.
    assert (row["cases"], row["patients"], row["won"], row["p_value"]) == (4, 2, 2, pytest.approx(0.5))
    assert row["difference"] == pytest.approx(0.0025)
    refused(compare("-d", 11, "-m", ONE, TWO, "-patients", file), 4, "names no patient for 3 case(s): add case_10")


def test_the_folder_has_pictures_numbers_and_cases(compare, models, tmp_path):
    folder = tmp_path / "new" / "comparison"
    code, out, err = compare("-d", 11, "-m", ONE, TWO, "-o", folder, "--json")
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "cases.csv",
        "comparison.json",
        "paired_differences.png",
    ]
    assert json.loads((folder / "comparison.json").read_text()) == json.loads(out)
    assert len((folder / "cases.csv").read_text().splitlines()) == 1 + 7
    assert "written" in err


def test_the_seed_changes_the_bootstrap_and_nothing_else(compare, models):
    random = np.random.default_rng(0)
    for model in models:
        write_summary(model / "fold_2" / "validation", {f"c{case}": random.random() for case in range(20)})
    rows = []
    for seed in (0, 0, 1):
        _, out, _ = compare("-d", 11, "-m", ONE, TWO, "-f", 2, "--json", "-seed", seed)
        rows.append(json.loads(out)["comparisons"][0]["rows"][0])
    assert rows[0] == rows[1]
    intervals = [row.pop("interval") for row in rows]
    p_values = [row.pop("equivalence")["p_value"] for row in rows]
    assert intervals[0] != intervals[2]
    assert p_values[0] == p_values[2]
    assert rows[0] == rows[2]


def test_time_is_shown_when_asked_for(compare, models):
    _, out, _ = compare("-d", 11, "-m", ONE, TWO, "--time")
    assert "ms per patch" in out
    _, out, _ = compare("-d", 11, "-m", ONE, TWO, "--time", "--json")
    content = json.loads(out)
    assert all(model["costs"]["seconds_per_patch"] > 0 for model in content["models"])
    assert content["settings"]["seconds_per_patch"] == "forward pass of one patch, float32, cpu, median"


# Predictions, labels and surfaces


@pytest.fixture
def threads(monkeypatch):
    """nnU-Net evaluates in threads: its new processes would import torch again."""
    context = SimpleNamespace(Pool=ThreadPool)
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)


@pytest.mark.usefixtures("threads")
def test_each_class_has_its_tolerance(compare, predictions):
    labels, one, other = predictions
    call = "-m", one, other, "-ref", labels, "-metrics", "nsd", "-np", 1, "--json", "-tolerance"
    for tolerance in (["bright=0.6"], ["1=0.6"], [0.4, "bright=0.6"], [0.6]):
        content = json.loads(compare(*call, *tolerance)[1])
        assert content["comparisons"][1]["rows"][0]["mean_first"] == 1.0
        assert content["settings"]["surface_tolerance_mm"] == 0.6
    assert json.loads(compare(*call, "bright=0.4")[1])["comparisons"][1]["rows"][0]["mean_first"] < 1.0
    refused(
        compare(*call, "dark=1"), 2, "-tolerance names dark, which is no class: give MM for all, or CLASS=MM of bright"
    )
    assert compare(*call, "bright=none")[0] == 2


@pytest.mark.usefixtures("threads")
def test_predictions_are_evaluated_by_nnunet_and_measured_in_mm(compare, predictions):
    labels, one, other = predictions
    write_volume(labels / "case_2.nii.gz", (1, 4, 4))
    code, out, err = compare(
        "-m", one, other, "-ref", labels, "-metrics", "hd95", "nsd", "-tolerance", 0.6, "-np", 1, "--json"
    )
    assert code == 0
    found = {item["metric"]: item["rows"][0] for item in json.loads(out)["comparisons"]}
    # A box of 6 voxels along x moved by one: 5/6 overlap. A box of 2 slices moved by one: 1/2 overlap.
    assert (found["Dice"]["mean_first"], found["Dice"]["mean_second"]) == pytest.approx((5 / 6, 1 / 2))
    # One voxel along x is 0.5 mm, within the tolerance. One slice is 3 mm; from the middle of the box's lost face, the
    # surface is nearer sideways: 0.5, 1 and 1.5 mm at most, while the rim and the far face need all 3 mm.
    assert (found["HD95"]["mean_first"], found["HD95"]["mean_second"]) == pytest.approx((0.5, 3.0))
    assert found["NSD"]["mean_first"] == 1.0
    assert found["NSD"]["mean_second"] < 1.0
    assert found["HD95"]["lost"] == 2
    assert not (one / "summary.json").exists()
    assert err.count("has no prediction for 1 label(s): case_2.nii.gz") == 2
    assert [model["configuration"] for model in json.loads(out)["models"]] == ["2d", "2d_bs4"]


def test_surfaces_of_evaluated_folders_need_labels_that_are_there(compare, predictions):
    labels, one, other = predictions
    for folder in (one, other):
        write_summary(folder, {"case_0": 0.8, "case_1": 0.7})
    code, out, err = compare("-m", one, other, "-metrics", "nsd", "-np", 1)
    assert (code, out) == (4, "")
    assert "/labels/case_0.nii.gz does not exist" in err
    assert "-ref" in err
    code, out, err = compare("-m", one, other, "-metrics", "nsd", "-np", 1, "-ref", labels)
    assert code == 0
    assert "NSD" in out
    assert err.endswith(f"next: nnunet_nas compare -m {one} {other} -ref {labels} -metrics hd95 nsd -o comparison\n")


def test_predictions_without_labels(compare, predictions):
    _, one, other = predictions
    refused(compare("-m", one, other), 4, "name the labels of its predictions with -ref LABELS_FOLDER")
    refused(compare("-m", one, other, "-ref", one / "none"), 2, "is no folder")
    refused(compare("-m", one, other, "-ref", one.parent, "-np", 1), 4, "has no label for case_0.nii.gz, case_1.nii.gz")


# Errors


def refused(call, code, fragment):
    assert (call[0], call[1], call[2].count("\n")) == (code, "", 1)
    assert call[2].startswith("nnunet_nas compare: ")
    assert fragment in call[2]


def test_what_does_not_make_a_comparison(compare, models):
    refused(compare("-d", 11, "-m", ONE), 2, "is one model: name two or more")
    refused(compare("-d", 11, "-m", ONE, TWO, ONE), 2, f"names {ONE} twice")
    refused(compare("-m", ONE, TWO), 2, "say with -d DATASET")
    refused(compare("-d", 12, "-m", ONE, TWO), 4, "data set 12 is not in nnUNet_results")
    refused(compare("-d", 11, "-m", ONE, "2d"), 4, "no model 2d (there: ")
    assert compare("-d", 11, "-m", ONE, TWO, "-margin", 0)[0] == 2
    assert compare("-d", 11, "-m", ONE, TWO, "-f", "first")[0] == 2


def test_a_validation_that_was_not_run(compare, models):
    (models[1] / "fold_1" / "validation" / "summary.json").unlink()
    (models[1] / "fold_1" / "checkpoint_final.pth").touch()
    call = "nnUNetv2_train 11 2d_bs4 1 -tr nnUNetTrainer_5epochs --val"
    refused(compare("-d", 11, "-m", ONE, TWO), 4, call)
    assert compare("-d", 11, "-m", ONE, TWO, "-f", 0)[0] == 0


def test_different_cases(compare, models):
    write_summary(models[1] / "fold_1" / "validation", {"case_10": 0.7, "case_11": 0.7})
    refused(compare("-d", 11, "-m", ONE, TWO), 4, f"{ONE} has 1 case(s) that not all models have: case_12")
    code, out, err = compare("-d", 11, "-m", ONE, TWO, "--common")
    assert code == 0
    assert "6 cases" in out
    assert "note: " in err
    assert "case_12" in err


def test_a_broken_summary(compare, models):
    file = models[0] / "fold_0" / "validation" / "summary.json"
    file.write_text(file.read_text()[:100])
    refused(compare("-d", 11, "-m", ONE, TWO), 4, "is not valid JSON")


def test_folds_are_for_trained_models(compare, predictions):
    labels, one, other = predictions
    refused(compare("-m", one, other, "-ref", labels, "-f", 0), 2, "-f and --per_fold are for trained models")


def test_models_without_plans_are_compared_without_costs(compare, models):
    for model in models:
        (model / "plans.json").unlink()
    code, out, err = compare("-d", 11, "-m", ONE, TWO)
    assert code == 0
    assert "parameters" not in out
    assert err.count("are unknown: ") == 2


@pytest.mark.parametrize("content", BROKEN_DESCRIPTIONS.values(), ids=BROKEN_DESCRIPTIONS)
def test_a_broken_description_beside_a_model_is_one_line(compare, models, predictions, content):
    labels, one, two = predictions
    for folder, words in ((models[0], ["-d", 11, "-m", ONE, TWO]), (one, ["-m", one, two, "-ref", labels])):
        (folder / "dataset.json").write_bytes(content)
        code, out, err = compare(*words)
        if content in (BROKEN_DESCRIPTIONS["nothing"], BROKEN_DESCRIPTIONS["label"]) and folder == models[0]:
            assert code == 0
            assert "the costs of" in err
            continue
        assert (code, out, err.count("\n")) == (4, "", 1), (words, err)
        assert str(folder) in err
