"""`prove_tiny` with stand-ins for nnU-Net's commands, which leave the files that those leave."""

import csv
import itertools
import json
import os
import subprocess
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_nas.cli.main import main
from nnunet_nas.errors import EnvironmentProblem
from nnunet_nas.xtiny import proof_report, proof_runs

# What a network of each width reaches, case by case, on top of 0.9; the base has 32 channels.
LEVELS = {"2d": 0.0, "2d_xtiny16": 0.001, "2d_xtiny8": -0.001, "2d_xtiny4": -0.05}
CASES = [f"test_{number:02d}" for number in range(12)]
VALIDATION = {"0": ["case_00", "case_01", "case_02"], "1": ["case_03", "case_04"]}
SCHEDULE = {
    "num_epochs": "2",
    "num_iterations_per_epoch": "10",
    "num_val_iterations_per_epoch": "1",
    "initial_lr": "0.01",
}


def write_checkpoint(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", path.parent.parent.name)


def write_summary(folder, configuration, cases):
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, case in enumerate(cases):
        dice = 0.9 + LEVELS[configuration] + 0.002 * np.sin(number * (1 + LEVELS[configuration]))
        metrics = {"1": {"Dice": dice, "n_ref": 10}}
        file = f"{case}.nii.gz"
        entries.append({"reference_file": f"/labels/{file}", "prediction_file": str(folder / file), "metrics": metrics})
    (folder / "summary.json").write_text(json.dumps({"metric_per_case": entries}))


class NnUNet:
    """Stands in for nnU-Net's commands.

    Attributes:
        called: the commands so far.
        dies_at: number of the command that is killed in the middle.
    """

    def __init__(self, root):
        self.root, self.called, self.dies_at = root, [], None

    def __call__(self, words):
        self.called.append(words)
        options = dict(itertools.pairwise(words))
        dies = len(self.called) == self.dies_at
        {
            "nnUNetv2_train": self.train,
            "nnUNetv2_predict": self.predict,
            "nnUNetv2_evaluate_folder": self.evaluate,
        }[words[0]](words, options, dies)
        if dies:
            raise EnvironmentProblem("killed")

    def train(self, words, options, dies):
        trainer, plans = options.get("-tr", "nnUNetTrainer"), options.get("-p", "nnUNetPlans")
        folder = self.fold(f"{trainer}__{plans}__{words[2]}", words[3])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "debug.json").write_text(json.dumps(SCHEDULE))
        if dies:
            write_checkpoint(folder / "checkpoint_latest.pth")
            (folder / "checkpoint_best.pth").write_bytes(b"PK half of")
            return
        write_checkpoint(folder / "checkpoint_final.pth")
        write_summary(folder / "validation", words[2], VALIDATION[words[3]])
        for name in ("dataset.json", "plans.json"):
            (folder.parent / name).write_bytes(self.source(name).read_bytes())

    def predict(self, words, options, dies):
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        target = self.root / options["-o"]
        for name in ("dataset.json", "plans.json"):
            (target / name).write_bytes(self.source(name).read_bytes())
        spacing = {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": np.eye(3).ravel()}
        for number, case in enumerate(CASES):
            file = target / f"{case}.nii.gz"
            if not file.exists():
                SimpleITKIO().write_seg(np.zeros((2, 3, 4)), str(file), {"sitk_stuff": spacing})
            if dies and number == 5:
                file.write_bytes(file.read_bytes()[:-7])
                return

    def evaluate(self, words, options, dies):
        folder = self.root / words[2]
        write_summary(folder, folder.name.split("__")[-1], CASES)
        if dies:
            (folder / "summary.json").write_bytes((folder / "summary.json").read_bytes()[:100])

    def source(self, name):
        """The file whose copy nnU-Net keeps beside its results."""
        folder = self.root / "nnUNet_preprocessed/Dataset011_Fake"
        return folder / {"plans.json": "nnUNetPlans.json"}.get(name, name)

    def fold(self, model, fold="0"):
        return self.root / "nnUNet_results/Dataset011_Fake" / model / f"fold_{fold}"

    def short(self):
        """The commands so far, in few words."""
        kinds = {"nnUNetv2_train": "train", "nnUNetv2_predict": "predict", "nnUNetv2_evaluate_folder": "evaluate"}
        found = []
        for words in self.called:
            name = words[2].split("__")[-1] if words[0] != "nnUNetv2_predict" else words[words.index("-c") + 1]
            found.append(" ".join([kinds[words[0]], name, *(word for word in words if word in ("--c", "--val"))]))
        return found


@pytest.fixture
def nnunet(dataset, nnunet_folders, monkeypatch):
    """A data set with a trained base and nnU-Net's commands."""
    found = NnUNet(nnunet_folders)
    # Drawing takes longer than all the rest.
    monkeypatch.setattr(proof_report, "write_figure", lambda figure, path, dpi: path.touch())
    monkeypatch.setattr(proof_report, "draw", lambda report: None)
    monkeypatch.setattr(proof_runs.Bench, "run", lambda bench, words, log: found(words))
    splits = [{"train": [], "val": cases} for cases in VALIDATION.values()]
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    found.train(["nnUNetv2_train", "11", "2d", "0"], {}, False)
    return found


@pytest.fixture
def hold_out(nnunet_folders):
    raw = nnunet_folders / "nnUNet_raw/Dataset011_Fake"
    for folder, channel in (("imagesTs", "_0000"), ("labelsTs", "")):
        (raw / folder).mkdir(parents=True)
        for case in CASES:
            (raw / folder / f"{case}{channel}.nii.gz").write_bytes(b"")
    # Only its kind matters, which a real one shows.
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    spacing = {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": np.eye(3).ravel()}
    SimpleITKIO().write_seg(np.zeros((2, 3, 4)), str(raw / "labelsTs" / f"{CASES[0]}.nii.gz"), {"sitk_stuff": spacing})
    return raw


@pytest.fixture
def prove(nnunet, capfd):
    """Calls the command; exit code, output and errors."""

    def call(*arguments):
        words = ["prove_tiny", "-d", 11, "-f", 0, "-device", "cpu", *arguments]
        code = main([str(word) for word in words])
        return SimpleNamespace(code=code, **capfd.readouterr()._asdict())

    return call


def folder_of(dataset, kind="proof"):
    return dataset / "nas_xtiny" / f"nnUNetPlans__2d__{kind}"


def report(dataset, kind="proof"):
    return json.loads((folder_of(dataset, kind) / "proof.json").read_text())


def test_from_the_narrowest_width_to_the_first_that_passes(prove, nnunet, hold_out, dataset):
    found = prove("-widths", 4, 8, 16)
    assert found.code == 0, found.err
    assert nnunet.short() == [
        *("predict 2d", "evaluate 2d"),
        *("train 2d_xtiny4", "predict 2d_xtiny4", "evaluate 2d_xtiny4"),
        *("train 2d_xtiny8", "predict 2d_xtiny8", "evaluate 2d_xtiny8"),
    ]
    content = report(dataset)
    assert content["selected"]["configuration"] == "2d_xtiny8"
    assert [trial["passed"] for trial in content["tested"]] == [False, True]
    assert content["tested"][1]["equivalence"]["models"] == 3
    assert content["independent_cases"] is True
    assert "Judged on hold-out cases" in found.out
    assert "each at 5 % / 3" in found.out
    assert "Not tested, because the order ended before: 2d_xtiny16." in found.out
    assert "nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d 11 -c 2d_xtiny8 -f 0" in found.out
    names = sorted(path.name for path in folder_of(dataset).iterdir() if path.is_file() and path.name[0] != ".")
    assert names == ["cases.csv", "proof.csv", "proof.json", "proof.png", "proof.txt"]
    assert (folder_of(dataset) / "proof.txt").read_text().splitlines()[2].startswith("2d ")
    rows = list(csv.DictReader((folder_of(dataset) / "cases.csv").open()))
    assert len(rows) == 2 * len(CASES)
    assert float(rows[0]["dice_base"]) == 0.9


def test_from_the_widest_width_to_the_first_that_fails(prove, nnunet, hold_out, dataset):
    found = prove("-widths", 4, 8, 16, "-order", "wide", "--json")
    assert [word for word in nnunet.short() if word.startswith("train")] == [
        "train 2d_xtiny16",
        "train 2d_xtiny8",
        "train 2d_xtiny4",
    ]
    content = json.loads(found.out)
    assert content["selected"]["configuration"] == "2d_xtiny8"
    assert [trial["claimed"] for trial in content["tested"]] == [True, True, False]
    assert content["tested"][0]["equivalence"]["models"] == 1


def test_the_interval_lies_in_the_margin_exactly_where_the_tests_do(prove, hold_out, dataset):
    prove("-widths", 4, 8, 16)
    for trial in report(dataset)["tested"]:
        low, high = trial["interval_of_tests"]
        assert (low > -0.01 and high < 0.01) == (trial["p_claim"] < 0.05)


def test_a_finished_proof_runs_nothing_again(prove, nnunet, hold_out, dataset):
    prove("-widths", 8)
    first, calls = report(dataset), len(nnunet.called)
    found = prove("-widths", 8)
    assert len(nnunet.called) == calls
    assert report(dataset) == first
    assert "training costs" in found.err
    assert "and is done" in found.err
    assert not list(folder_of(dataset).glob("earlier_*"))


@pytest.mark.parametrize("dies_at", range(1, 9))
def test_cut_off_anywhere_it_ends_in_the_same_report(prove, nnunet, hold_out, dataset, dies_at):
    nnunet.dies_at = dies_at
    assert prove("-widths", 4, 8).code == 3
    nnunet.called, nnunet.dies_at = [], None
    assert prove("-widths", 4, 8).code == 0
    disturbed = report(dataset)
    left = nnunet.short()
    # Finished work is not done again: what is left begins with the command that was cut off.
    order = ["predict 2d", "evaluate 2d"]
    order += [f"{verb} 2d_xtiny{cap}" for cap in (4, 8) for verb in ("train", "predict", "evaluate")]
    expected = order[dies_at - 1 :]
    if expected[0].startswith("train"):
        expected[0] += " --c"
        cap = expected[0].split()[1]
        assert (nnunet.fold(f"nnUNetTrainer__nnUNetPlans__{cap}") / "checkpoint_best.broken").exists()
    assert left == expected
    assert disturbed["selected"]["configuration"] == "2d_xtiny8"
    assert len(disturbed["inputs"]["cases"]) == 12


def test_finished_predictions_are_kept_and_half_ones_made_again(prove, nnunet, hold_out, dataset):
    nnunet.dies_at = 1
    prove("-widths", 8)
    folder = folder_of(dataset) / "predictions/folds_0/nnUNetTrainer__nnUNetPlans__2d"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}
    assert len(before) == 6
    nnunet.dies_at = None
    prove("-widths", 8)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}
    assert len(after) == 12
    assert [name for name in before if before[name] != after[name]] == [f"{CASES[5]}.nii.gz"]


def test_predictions_of_other_weights_are_made_again(prove, nnunet, hold_out):
    prove("-widths", 8)
    nnunet.called = []
    checkpoint = nnunet.fold("nnUNetTrainer__nnUNetPlans__2d_xtiny8") / "checkpoint_final.pth"
    os.utime(checkpoint, ns=(1, 1))
    prove("-widths", 8)
    assert nnunet.short() == ["predict 2d_xtiny8", "evaluate 2d_xtiny8"]


def test_validation_cases_judge_where_there_is_no_hold_out(prove, nnunet, dataset):
    found = prove("-widths", 8, "-margin", 0.1)
    assert found.code == 0, found.err
    assert nnunet.short() == ["train 2d_xtiny8"]
    content = report(dataset)
    assert content["inputs"]["cases"] == VALIDATION["0"]
    assert content["independent_cases"] is None
    assert "if results on these validation cases have suggested them" in found.out


def test_a_validation_that_is_missing_is_made_up_for(prove, nnunet):
    (nnunet.fold("nnUNetTrainer__nnUNetPlans__2d") / "validation/summary.json").unlink()
    prove("-widths", 8, "-margin", 0.1)
    assert nnunet.short() == ["train 2d --val", "train 2d_xtiny8"]


@pytest.mark.parametrize(("fold", "independent"), [(0, False), (1, True)])
def test_a_race_has_looked_at_the_validation_cases_of_its_fold(prove, nnunet, dataset, fold, independent):
    assert prove("-widths", 8, "-margin", 0.1).code == 0
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    record = plans["configurations"]["2d_xtiny8"]["nas"]
    record["settings"] = {"cap": 8, "rule": "race", "selected_cap": 8}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(plans))
    nnunet.train(["nnUNetv2_train", "11", "2d", str(fold)], {}, False)
    found = prove("-f", fold, "-margin", 0.1)
    assert found.code == 0, found.err
    assert report(dataset)["independent_cases"] is independent
    assert ("Selected and judged on the same cases" in found.out) is not independent
    assert report(dataset)["inputs"]["widths"] == [8, 16]


def test_distilled_candidates_learn_from_the_base_for_as_long(prove, nnunet, hold_out, dataset):
    found = prove("-widths", 8, "-distill")
    assert found.code == 0, found.err
    assert "2d_xtiny8: training costs" in found.err
    (command,) = [words for words in nnunet.called if words[0] == "nnUNetv2_train"]
    assert command[command.index("-tr") + 1] == "nnUNetTrainerDistill"
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    settings = plans["configurations"]["2d_xtiny8"]["nas_settings"]["distill"]
    assert settings["num_epochs"] == 2
    assert settings["num_iterations_per_epoch"] == 10
    assert settings["teacher_trainer"] == "nnUNetTrainer"
    assert settings["teacher_configuration"] == "2d"
    content = report(dataset, "proof_distill")
    assert content["planned"][0]["share_of_base_training"] > 1 / 3
    assert "by distillation from the base" in found.out
    assert "-tr nnUNetTrainerDistill" in found.out


def test_a_second_proof_keeps_the_first_and_says_that_there_was_one(prove, hold_out, dataset):
    prove("-widths", 8)
    found = prove("-widths", 8, 16)
    assert "reports are kept" in found.err
    (kept,) = folder_of(dataset).glob("earlier_*")
    assert sorted(path.name for path in kept.iterdir()) == [
        *("cases.csv", "proof.csv", "proof.json", "proof.png", "proof.txt")
    ]
    assert report(dataset)["earlier_proofs_on_these_cases"] == 1
    assert "1 proof(s) with other settings have looked at these cases" in found.out


def test_patients_count_once(prove, hold_out, dataset, tmp_path):
    patients = tmp_path / "patients.csv"
    lines = [f"{case},{number // 2}" for number, case in enumerate(CASES)]
    patients.write_text("\n".join(["case,patient", *lines]))
    found = prove("-widths", 8, "-patients", patients)
    assert "6 patients judge" in found.err
    assert report(dataset)["tested"][0]["patients"] == 6
    patients.write_text("\n".join(["case,patient", *lines[1:]]))
    assert "names no patient for 1 case(s): add test_00" in prove("-widths", 8, "-patients", patients).err


def test_a_width_that_is_better_is_not_worse(prove, hold_out, dataset, monkeypatch):
    monkeypatch.setitem(LEVELS, "2d_xtiny8", 0.05)
    prove("-widths", 8)
    assert report(dataset)["selected"] is None
    prove("-widths", 8, "-claim", "not_worse")
    assert report(dataset)["selected"]["configuration"] == "2d_xtiny8"


def test_a_dry_run_tells_the_cost_and_trains_nothing(prove, nnunet, hold_out, dataset):
    found = prove("-widths", 8, 16, "--dry_run")
    assert found.code == 0
    assert not nnunet.called
    assert "trainings of the base are left" in found.err
    assert "20 each" in found.err
    assert "12 cases judge" in found.err
    assert "2d_xtiny8" not in json.loads((dataset / "nnUNetPlans.json").read_text())["configurations"]


REFUSALS = {
    "no selection": (["-f", 0], 4, "no width of 2d is selected: run nnunet_nas select_tiny -d 11 -c 2d first"),
    "untrained fold": (["-f", 0, 3, "-widths", 8], 4, "run nnUNetv2_train 11 2d 3"),
    "another trainer": (["-widths", 8, "-tr", "nnUNetTrainer_5epochs"], 4, "2d 0 -tr nnUNetTrainer_5epochs"),
    "no trainer of a base": (["-widths", 8, "-tr", "nnUNetTrainerDistill"], 2, "trains no base"),
    "as wide as the base": (["-widths", 32], 2, "give caps from 1 to 31"),
    "no hold-out": (["-widths", 8, "-judge", "test"], 4, "has no labelled hold-out cases in nnUNet_raw"),
    "cascade": (["-c", "3d_cascade_fullres", "-widths", 8], 4, "second stage"),
    "no such configuration": (["-c", "3d", "-widths", 8], 4, "configuration 3d is not in the plans"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_line(prove, nnunet, case):
    arguments, code, words = REFUSALS[case]
    found = prove(*arguments)
    assert found.code == code
    assert words in found.err
    assert len(found.err.strip().splitlines()) == 1
    assert not nnunet.called


def test_the_base_is_found_by_its_trainer_and_searches_are_none(prove, nnunet, dataset):
    base = nnunet.fold("nnUNetTrainer__nnUNetPlans__2d").parent
    base.rename(base.with_name("nnUNetTrainer_5epochs__nnUNetPlans__2d"))
    write_checkpoint_of("nnUNetTrainerIACLTHSearch", nnunet)
    assert prove("-widths", 8, "-margin", 0.1).code == 0
    assert nnunet.called[0] == [
        "nnUNetv2_train",
        "11",
        "2d_xtiny8",
        "0",
        "-tr",
        "nnUNetTrainer_5epochs",
        "-device",
        "cpu",
    ]
    write_checkpoint_of("nnUNetTrainer_10epochs", nnunet)
    found = prove("-widths", 8, "-margin", 0.1)
    assert "2d was trained by nnUNetTrainer_10epochs, nnUNetTrainer_5epochs: choose one with -tr" in found.err


def write_checkpoint_of(trainer, nnunet):
    folder = nnunet.fold(f"{trainer}__nnUNetPlans__2d")
    folder.mkdir(parents=True)
    write_checkpoint(folder / "checkpoint_final.pth")


def test_hold_out_cases_without_labels_are_refused(prove, hold_out):
    (hold_out / "labelsTs" / f"{CASES[3]}.nii.gz").unlink()
    found = prove("-widths", 8)
    assert found.code == 4
    assert "hold different cases (1, first test_03)" in found.err


def test_a_candidate_that_was_trained_otherwise_is_refused(prove, nnunet, monkeypatch):
    monkeypatch.setitem(SCHEDULE, "num_epochs", "3")
    nnunet.train(["nnUNetv2_train", "11", "2d_xtiny8", "0"], {}, False)
    found = prove("-widths", 8)
    assert found.code == 4
    assert "was trained otherwise than the base (num_epochs 3 instead of 2)" in found.err


def test_distillation_needs_to_know_how_long_the_base_was_trained(prove, nnunet, hold_out):
    (nnunet.fold("nnUNetTrainer__nnUNetPlans__2d") / "debug.json").unlink()
    found = prove("-widths", 8, "--distill")
    assert found.code == 4
    assert "how long the base was trained is not known" in found.err


def test_a_command_that_fails_is_one_line_and_names_its_log(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(proof_runs, "_program", lambda name: "/bin/false")
    bench = proof_runs.Bench(tmp_path, "cpu", 1, print)
    with pytest.raises(EnvironmentProblem, match="nnUNetv2_train ended with 1 .*training.log"):
        bench.run(["nnUNetv2_train", "11"], "training")


@pytest.mark.skipif(os.name == "nt", reason="commands do not inherit locks there")
def test_what_an_earlier_run_left_running_is_waited_for(tmp_path):
    said, path = [], tmp_path / "lock"
    with proof_runs.after_others(path, said.append) as lock:
        left = subprocess.Popen(["sleep", "0.5"], pass_fds=[lock.fileno()])
    assert said == []
    with proof_runs.after_others(path, said.append):
        assert left.poll() is not None or left.wait(1) == 0
    assert said == ["waits for a command of nnU-Net's that an earlier run has started and that still runs"]


def test_a_trained_base_is_left_alone(prove, nnunet, hold_out):
    folder = nnunet.fold("nnUNetTrainer__nnUNetPlans__2d")
    (folder / "checkpoint_best.pth").write_bytes(b"half")
    prove("-widths", 8)
    assert (folder / "checkpoint_best.pth").read_bytes() == b"half"
