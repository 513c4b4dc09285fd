"""`nnunet_nas select_tiny -rule race` from end to end on a tiny data set, with trainings of seconds.

The bases have 32 channels at most: caps 32 (the base), 16, 8, 4, 2, 1. The labels are what is bright: after 45
iterations 8 channels and more have a Dice of 0.8, and fewer have found next to nothing.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from searches import read_plans, use_regions_and_an_ignore_label

from nnunet_nas.cli.main import main
from nnunet_nas.xtiny.race_job import RaceJob
from nnunet_nas.xtiny.request import TinySettings
from nnunet_nas.xtiny.store import ScoreStore
from nnunet_nas.xtiny.training import Contestant

# In nnU-Net's training loop: seconds each, so they run with the slow layer.
pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("-rule", "race", "-horizon", "45", "-race_budget", "500", "-margin", "0.9")


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


@pytest.fixture
def race(dataset, capsys):
    """Calls the command on the data set; returns exit code, standard output and standard error."""

    def call(*arguments):
        code = main(["select_tiny", "-d", "11", "-device", "cpu", *SHORT, *map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture
def results(dataset):
    return dataset / "nas_xtiny" / "nnUNetPlans__2d__race"


def selection(results):
    return json.loads((results / "selection.json").read_text())


def test_with_a_margin_that_everything_meets_the_narrowest_width_that_has_learnt_anything_wins(race, dataset, results):
    code, out, err = race()
    assert code == 0
    assert err.splitlines()[0] == (
        "race: at most 500 iterations of the base, 1111.1% of the 45 that you will train (-horizon); it uses labels, "
        "and decides on the 3 validation cases of fold 0"
    )
    found = selection(results)
    assert found["selected"]["configuration"] == "2d_xtiny8"
    assert {candidate["iterations"] for candidate in found["candidates"]} == {45}
    dice = {candidate["cap"]: candidate["score"] for candidate in found["candidates"]}
    assert min(dice[32], dice[16], dice[8]) > 0.5
    assert max(dice[4], dice[2], dice[1]) < 0.05
    assert out.splitlines()[-2] == "  nnUNetv2_train 11 2d_xtiny8 0"
    assert "Cap 1 beside 4 (1 has found nothing yet)" in out
    assert "judge the result on other folds or cases" in out
    assert {path.suffix for path in results.iterdir()} == {".json", ".csv", ".png", ".jsonl"}
    record = read_plans(dataset)["configurations"]["2d_xtiny8"]["nas"]
    assert record["settings"]["rule"] == "race"
    assert record["settings"]["margin"] == 0.9


def test_what_does_not_fit_the_budget_is_not_taken(race, results):
    assert race("-race_budget", 1)[0] == 0
    found = selection(results)
    assert found["selected"]["configuration"] == "2d"
    assert found["spent_base_iterations"] <= 1
    assert "No narrower width was shown to suffice: the base stays." in found["stability"]


def test_a_second_race_answers_at_once_and_another_margin_trains_nothing_again(race, results, monkeypatch):
    assert race()[0] == 0
    before = (results / "selection.json").read_bytes()

    def fail(*arguments):
        raise AssertionError("something was trained")

    monkeypatch.setattr(Contestant, "train", fail)
    assert race()[0] == 0
    assert (results / "selection.json").read_bytes() == before
    assert race("-margin", 0.95)[0] == 0
    assert selection(results)["inputs"]["margin"] == 0.95
    assert len(list(results.glob("earlier_*"))) == 1


def test_a_finished_race_is_printed_without_torch(race):
    assert race()[0] == 0
    call = ["select_tiny", "-d", "11", "-device", "cpu", *SHORT]
    script = f"import sys; from nnunet_nas.cli.main import main; main({call}); print('torch' in sys.modules)"
    again = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("measurements", [0, 1, 3])
def test_an_interrupted_race_goes_on_to_the_same_numbers(race, dataset, results, monkeypatch, measurements):
    assert race()[0] == 0
    whole = (results / "scores.csv").read_bytes()
    shutil.rmtree(results)
    shutil.rmtree(dataset.parents[1] / "nnUNet_results" / dataset.name)
    add, added = ScoreStore.add, []

    def interrupt(self, seed, cap, values, seconds):
        if len(added) == measurements:
            raise KeyboardInterrupt
        added.append(seconds)
        add(self, seed, cap, values, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(ScoreStore, "add", interrupt)
        code, _, err = race()
    assert code == 130
    assert err.splitlines()[-1] == "interrupted: scores so far are kept, the same command goes on from there"

    def count(self, seed, cap, values, seconds):
        added.append(seconds)
        add(self, seed, cap, values, seconds)

    monkeypatch.setattr(ScoreStore, "add", count)
    assert race()[0] == 0
    assert min(added) > 0
    assert selection(results)["seconds"] == pytest.approx(sum(added))
    assert (results / "scores.csv").read_bytes() == whole


def test_labels_that_were_replaced_are_noticed(race, dataset, results):
    assert race()[0] == 0
    before = selection(results)["inputs"]["data_fingerprint"]
    (dataset / "nnUNetPlans_2d" / "case_03_seg.b2nd").touch()
    assert race()[0] == 0
    assert selection(results)["inputs"]["data_fingerprint"] != before


def test_no_finished_training_is_feigned(race, dataset):
    """The trainings stand under other plans: nothing takes them for those of a user."""
    assert race()[0] == 0
    folders = [path.name for path in (dataset.parents[1] / "nnUNet_results" / dataset.name).iterdir()]
    assert sorted(folders) == [f"nnUNetTrainer__nnUNetPlans_race__2d_xtiny{cap}" for cap in (1, 16, 2, 32, 4, 8)]
    assert race("-margin", 0.95, "--overwrite")[0] == 0


def job(dataset, **settings):
    return RaceJob(dataset, TinySettings(rule="race", horizon=45, **settings), torch.device("cpu"))


def test_all_widths_see_the_same_patches_and_are_measured_on_the_same(dataset):
    """Once more from the trainer itself: Dice of a width is nnU-Net's, on patches that stay as they are."""
    made = job(dataset)
    contestant = Contestant(made._course, made.candidates[-1], "x")
    first, second = contestant.measure(made._patches), contestant.measure(made._patches)
    assert first == second
    assert sorted(first) == list(made.cases)
    case = made.cases[0]
    batch = made._patches[case]
    with torch.no_grad():
        logits = contestant._trainer.network.eval()(batch["data"])[0]
    predicted, wanted = logits.argmax(1).numpy() == 1, batch["target"][0][:, 0].numpy() == 1
    dice = 2 * np.sum(predicted & wanted) / (predicted.sum() + wanted.sum())
    assert first[case] == pytest.approx(dice, abs=1e-4)


def test_fewer_patches_per_iteration_when_asked_for(dataset):
    made = job(dataset, batch_size=1)
    assert made._course.trainer(made.candidates[-1]).batch_size == 1


def test_the_rate_follows_the_whole_schedule(dataset):
    made = RaceJob(dataset, TinySettings(rule="race", horizon=1000), torch.device("cpu"))
    contestant = Contestant(made._course, made.candidates[-1], "x")
    contestant.iteration = 499
    contestant.train(501, lambda: None)
    # Two of four epochs of 250 iterations are over.
    assert contestant._trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (1 - 2 / 4) ** 0.9)


def test_regions_and_an_ignore_label(race, dataset):
    use_regions_and_an_ignore_label(dataset)
    assert race()[0] == 0


@pytest.mark.parametrize("split", [True, False])
def test_data_that_are_not_preprocessed_are_said(race, dataset, split):
    shutil.rmtree(dataset / "nnUNetPlans_2d")
    if split:
        cases = {"train": ["case_00", "case_01"], "val": ["case_02", "case_03"]}
        (dataset / "splits_final.json").write_text(json.dumps([cases] * 5))
    code, out, err = race()
    assert (code, out, len(err.splitlines())) == (4, "", 1)
    assert "the data are not preprocessed" in err


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (("-n", 4), 2, "leave out -n, -cases and -metric"),
        (("-cases", "case_00"), 2, "leave out -n, -cases and -metric"),
        (("-metric", "swap"), 2, "leave out -n, -cases and -metric"),
        (("-seed", 1, 2), 2, "give one -seed"),
        (("--dry_run",), 2, "leave out --dry_run"),
        (("-max_params", 1), 5, "no width satisfies parameters <= 1"),
    ],
)
def test_what_a_race_cannot_do_is_refused_in_one_line(race, arguments, code, fragment):
    found, out, err = race(*arguments)
    assert (found, out) == (code, "")
    assert len(err.splitlines()) == 1
    assert fragment in err


def test_a_place_for_results_is_needed(race, monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    code, _, err = race()
    assert code == 3
    assert "nnUNet_results is not set" in err


def test_a_split_without_the_fold_is_said(race, dataset):
    (dataset / "splits_final.json").write_text("[]")
    code, _, err = race()
    assert code == 4
    assert "splits_final.json has no fold 0" in err
