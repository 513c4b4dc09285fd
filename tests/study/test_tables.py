"""Tables and pictures of a study, whole and with cells that failed."""

from __future__ import annotations

import copy
import csv
import json
import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_dataset import default_plans
from filelock import FileLock
from nas_study import records, steps, tables
from nas_study.grid import Cell, derived, predicted, read_study, trained
from nas_study.pictures import figure_of

from nnunet_nas.plans import Plans

CASES = 8
SCHEMA = Path(__file__).resolve().parents[2] / "examples" / "study" / "schema.json"


def summary(path, shift, seed):
    rng = np.random.default_rng(seed)
    cases = [
        {
            "reference_file": f"labels/case_{number}.png",
            "prediction_file": f"out/case_{number}.png",
            "metrics": {
                str(label): {"Dice": 0.8 + shift + 0.01 * label + 0.01 * rng.normal(), "IoU": 0.5, "TP": 1, "FP": 1,
                             "FN": 1, "TN": 1, "n_ref": 2, "n_pred": 2}
                for label in (1, 2)
            },
        }
        for number in range(CASES)
    ]  # fmt: skip
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"metric_per_case": cases, "mean": {}, "foreground_mean": {}}))
    (path.parent / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2}}))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two seeds; `tiny` failed with seed 1, `cells` were interrupted and never begun."""
    monkeypatch.chdir(tmp_path)
    content = {
        "study": "few", "device": "cpu", "seeds": [0, 1], "datasets": {"5": None},
        "bases": {"a": {"configuration": "2d"}},
        "methods": {"w8": {"width": 8}, "tiny": {"select": {}}, "cells": {"search": "iac_lth"}},
    }  # fmt: skip
    study = read_study(content, SCHEMA)
    records.write("5/planned.json", {})
    shifts = {"base": 0.0, "w8": -0.001, "tiny": -0.05}
    for method, shift in shifts.items():
        for seed in (0, 1):
            cell = Cell(5, "a", method, seed)
            records.write(f"5/a/prepared_s{seed}.json", {})
            if (method, seed) == ("tiny", 1):
                records.begin(derived(cell))
                records.fail(derived(cell), "nnunet_nas ended with 4: no such thing")
                continue
            name = f"a_s{seed}" if method == "base" else f"a_s{seed}_xtiny{8 if method == 'w8' else 4}"
            records.write(derived(cell), {"configuration": name, "iterations": 0, "seconds": 1.0})
            records.write(trained(cell, 0), {"iterations": 100, "seconds": 50.0})
            path = tmp_path / cell.folder / "predictions" / name / "summary.json"
            summary(path, shift, seed=seed + 10 * len(name))
            costs = {"parameters": 1000 if method == "base" else 100, "macs": 10**9, "to_train_mib": 64.0}
            records.write(predicted(cell), {"configuration": name, "summary": str(path), "seconds": 3.0, **costs})
    records.begin(derived(Cell(5, "a", "cells", 0)))
    return study


def test_the_table_of_what_is_there_names_what_is_not(study):
    text = tables.write(study)
    lines = text.splitlines()
    rows = {line.split()[2]: line for line in lines[2:6]}
    assert list(rows) == ["base", "w8", "tiny", "cells"]
    assert rows["w8"].split()[3:6] == ["2/2", "100", "1.000"]
    assert rows["tiny"].split()[3] == "1/2"
    assert rows["cells"].split()[3] == "0/2"
    missing = lines[lines.index("Not in the table:") + 1 :]
    assert missing[0] == "  data set 5, base a, tiny, seed 1: derive failed: nnunet_nas ended with 4: no such thing"
    assert missing[1].startswith("  data set 5, base a, cells, seed 0: derive interrupted, or running since ")
    assert missing[2] == "  data set 5, base a, cells, seed 1: derive not begun"
    assert len(missing) == 3


def test_a_fold_waits_for_the_backbone_of_its_own(study):
    study.content["folds"] = [0, 1]
    cell = Cell(5, "a", "cells", 0)
    records.finish(derived(cell), {})
    records.write(trained(cell, 0), {})
    (line,) = (line for line in tables.unfinished(study) if line.startswith(f"{cell.name}: "))
    assert line == f"{cell.name}: train on fold 1 waits for 5/a/base/s0/trained_1.json"


def test_differences_are_those_of_compare(study):
    tables.write(study)
    rows = {row["method"]: row for row in csv.DictReader((tables.FOLDER / "study.csv").open())}
    dice = {}
    for method in ("base", "w8", "tiny"):
        summaries = sorted(Path().glob(f"5/a/{method}/s*/predictions/*/summary.json"))
        dice[method] = np.mean([list(tables.dice_of(path).values()) for path in summaries])
    for method in ("w8", "tiny"):
        row = rows[method]
        assert float(row["dice"]) == pytest.approx(dice[method])
        assert float(row["difference"]) == pytest.approx(dice[method] - dice["base"])
        assert float(row["low"]) < float(row["difference"]) < float(row["high"])
        assert row["against"] == "base"
    assert rows["tiny"]["verdict"] == "worse"
    assert rows["cells"]["dice"] == ""
    assert float(rows["base"]["iterations"]) == 100


def test_runs_of_a_method_may_have_found_different_networks(study):
    """Each seed searches anew."""
    for seed, width in ((0, 16), (1, 8)):
        (path,) = Path().glob(f"5/a/w8/s{seed}/predictions/*/summary.json")
        plans = default_plans()
        found = copy.deepcopy(plans["configurations"]["2d"])
        stages = found["architecture"]["arch_kwargs"]["n_stages"]
        found["architecture"]["arch_kwargs"]["features_per_stage"] = [width] * stages
        plans["configurations"][path.parent.name] = found
        (path.parent / "plans.json").write_text(json.dumps(plans))
        described = {"labels": {"background": 0, "a": 1, "b": 2}, "channel_names": {"0": "MRI"}, "file_ending": ".png"}
        (path.parent / "dataset.json").write_text(json.dumps(described))
    assert "cannot be compared" not in tables.write(study)
    rows = {row["method"]: row for row in csv.DictReader((tables.FOLDER / "study.csv").open())}
    assert rows["w8"]["difference"]


def test_latex_has_a_row_for_each(study):
    tables.write(study)
    text = (tables.FOLDER / "study.tex").read_text()
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 4
    assert {line.count("&") for line in body} == {len(tables.HEADER) - 1}
    assert r"95 \% interval" in text


def test_the_picture_shows_every_point_with_its_interval(study):
    tables.write(study)
    lines = [tables.line_of(study, 5, "a", method) for method in ("base", "w8", "tiny")]
    figure = figure_of(lines)
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "parameters", "MACs of a patch", "seconds of search and training",
    ]  # fmt: skip
    assert [len(axes.containers) for axes in figure.axes] == [3, 3, 3]
    assert (tables.FOLDER / "dice_5.png").stat().st_size > 10_000


def test_the_interval_holds_cases_and_seeds():
    runs = [{f"c{i}": 0.5 + 0.01 * i for i in range(10)}, {f"c{i}": 0.6 + 0.01 * i for i in range(9)}]
    mean, low, high = tables.mean_with_interval(runs)
    # Over the nine common cases: (0.54 + 0.64) / 2.
    assert mean == pytest.approx(0.59)
    assert low < 0.54
    assert high > 0.64


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("as_wide_as", "nnunet_nas add_width -d 5 -c {base} -p {plans} -as {found} --json"),
        ("random_of", "nnunet_nas add_random -d 5 -c {found} -p {plans} -seed 1 --json"),
    ],
)
def test_what_is_made_after_a_search_asks_for_what_fits_its_result(study, monkeypatch, kind, call):
    content = {**study.content, "methods": {"found": {"search": "dints"}, "made": {kind: "found"}}}
    asked = []

    def run(words, log):
        asked.append((shlex.join(map(str, words)), str(log)))
        return json.dumps({"configuration": "a_s1_made"})

    monkeypatch.setattr(steps, "run", run)
    monkeypatch.setattr(steps, "_done", lambda path: {"configuration": f"what {path} found"})
    cell = Cell(5, "a", "made", 1)
    record = steps.derive(read_study(content, SCHEMA), cell)
    assert record == {
        "configuration": "a_s1_made", "seconds": 0.0, "iterations": 0, "trainer": "nnUNetTrainerScheduled",
    }  # fmt: skip
    other = shlex.quote("what 5/a/found/s1/derived.json found")
    call = call.format(base=cell.configuration, plans=study.plans, found=other)
    assert asked == [(call, f"{cell.folder}/derive.log")]


def test_several_gpus_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 3")
    assert steps.visible_gpus() == ["0", "3"]


def test_a_step_takes_a_free_gpu(study, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    study.content["device"] = "cuda"
    with steps.one_gpu(study):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
        monkeypatch.setattr(steps, "visible_gpus", lambda: ["0", "3"])
        with steps.one_gpu(study):
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,3"


def test_a_selection_takes_a_free_gpu_too(study, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    study.content["device"] = "cuda"
    seen = []

    def run(words, log):
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        return json.dumps({"selected": {"configuration": "a_s0_xtiny4", "cap": 4}, "seconds": 0.5, "candidates": []})

    monkeypatch.setattr(steps, "run", run)
    with FileLock("locks/gpu_0.lock"):
        steps.derive(study, Cell(5, "a", "tiny", 0))
    assert seen == ["3"]


def test_a_selection_is_recorded_with_what_all_its_attempts_took(study, monkeypatch):
    """Not with what is left to do for the last of them, which may only read the answer."""
    candidates = [{"cap": 8, "iterations": 40}, {"cap": 4, "iterations": 60}]
    report = {"selected": {"configuration": "a_s0_xtiny4", "cap": 4}, "seconds": 1234.5, "candidates": candidates}
    monkeypatch.setattr(steps, "run", lambda words, log: json.dumps(report))
    record = steps.derive(study, Cell(5, "a", "tiny", 0))
    assert (record["seconds"], record["iterations"]) == (1234.5, 100)


def test_a_step_waits_for_a_gpu(study, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    study.content["device"] = "cuda"
    Path("locks").mkdir()
    others = [FileLock(f"locks/gpu_{gpu}.lock") for gpu in (0, 3)]
    for other in others:
        other.acquire()
    monkeypatch.setattr(steps.time, "sleep", lambda seconds: others[1].release())
    with steps.one_gpu(study):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    others[0].release()


@pytest.mark.parametrize(("device", "variables"), [("cpu", {}), ("cuda", {"SLURM_JOB_ID": "7"})])
def test_a_gpu_is_not_chosen_where_there_is_none_or_slurm_has_done_so(study, monkeypatch, device, variables):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    study.content["device"] = device
    with steps.one_gpu(study):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,3"


def test_gpus_of_the_machine_are_counted_without_their_parts(monkeypatch):
    listed = (
        "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-2)\nGPU 1: NVIDIA H100 (UUID: GPU-3)\n"
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(steps.subprocess, "run", lambda *words, **options: SimpleNamespace(stdout=listed))
    assert steps.visible_gpus() == ["0", "1"]


def test_planning_does_not_see_the_choice_of_no_workers(study, monkeypatch, nnunet_folders):
    raw = nnunet_folders / "nnUNet_raw" / "Dataset005_Five"
    for name in ("imagesTs", "labelsTs"):
        (raw / name).mkdir(parents=True)
        (raw / name / "case.nii.gz").touch()
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    seen = {}

    def run(words, **options):
        seen[words[0]] = options["env"].get("nnUNet_n_proc_DA")
        return SimpleNamespace(returncode=1, stdout="")

    monkeypatch.setattr(steps.subprocess, "run", run)
    with pytest.raises(steps.StepFailed):
        steps.plan(study, 5)
    assert seen == {"nnUNetv2_plan_and_preprocess": None}


def test_folds_predict_the_hold_out_together_and_cost_what_they_take_together(study, monkeypatch, nnunet_folders):
    study.content["folds"] = [0, 1]
    (nnunet_folders / "nnUNet_raw" / "Dataset005_Five").mkdir(parents=True)
    cell = Cell(5, "a", "w8", 0)
    records.write(trained(cell, 1), {"iterations": 100, "seconds": 30.0})
    assert tables._spent(study, cell) == (200, 81.0)
    Path(records.read(predicted(cell))["summary"]).unlink()
    records.write(derived(cell), {"configuration": "a_s0_xtiny8", "trainer": "T"})
    commands = []

    def run(words, log):
        commands.append(" ".join(map(str, words)))
        raise steps.StepFailed("it did")

    monkeypatch.setattr(steps, "run", run)
    with pytest.raises(steps.StepFailed):
        steps.predict(study, cell)
    assert " -c a_s0_xtiny8 -f 0 1 -p nnUNetPlans_few -tr T " in commands[0]


@pytest.mark.parametrize(
    ("search", "iterations"),
    [
        (("iac_lth", {"trial_iterations": 30}), 2 * 5 + 30),
        (("dints", {"selection": "evidence", "finalists": 3, "race_iterations": 7}), 2 * 5 + 3 * 7),
        (("dints", {"selection": "evidence", "finalists": 9, "race_iterations": 7, "samples": 1}), 2 * 5 + 2 * 7),
        (("dints", {}), 2 * 5),
    ],
)
def test_a_search_costs_what_follows_its_epochs_as_well(study, monkeypatch, tmp_path, search, iterations):
    name, settings = search
    given = {"num_epochs": 2, "num_iterations_per_epoch": 5, **settings}
    study.content["methods"]["cells"] = {"search": name, "settings": given}
    study.content["methods"]["longer"] = {"control_of": "cells", "as_long_as": "search_and_retrofit"}
    content = default_plans()
    content["configurations"]["2d"]["nas_settings"] = {name: given}
    monkeypatch.setattr(steps, "_plans", lambda *_: Plans(content))
    np.savez(tmp_path / "search_history.npz", seconds=np.array([10.0, 12.0]))
    for file, changed in ((steps.FINAL, 1000), ("training_log_1.txt", 900), ("training_log_2.txt", 1045)):
        (tmp_path / file).touch()
        os.utime(tmp_path / file, (changed, changed))
    found = steps._searched(tmp_path, study, Cell(5, "a", "cells", 0), "2d")
    assert found == {"seconds": 22.0 + 45.0, "iterations": iterations}
    if name != "dints":
        retrofit = 100 * 250  # by default
        assert steps._further_iterations(study, Cell(5, "a", "longer", 0)) == iterations + retrofit


def test_a_kill_in_a_prediction_costs_that_prediction(tmp_path):
    for number, name in enumerate(("b.png", "a.png", "dataset.json", "plans.json")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
    steps.drop_newest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.png", "dataset.json", "plans.json"]
    steps.drop_newest(tmp_path / "none")


@pytest.mark.parametrize(("text", "whole"), [(None, False), ("", False), ('{"mean": {', False), ("{}", True)])
def test_an_evaluation_that_was_killed_is_none(tmp_path, text, whole):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    assert steps.is_whole(tmp_path / "summary.json") is whole


def test_a_command_that_fails_is_quoted(tmp_path):
    log = tmp_path / "log"
    program = "import sys; print('{}'); print('{}', file=sys.stderr); sys.exit({})"
    with pytest.raises(steps.StepFailed, match=r" ended with 3: too small \(log: "):
        steps.run([sys.executable, "-c", program.format("chatter", "too small", 3)], log)
    assert steps.run([sys.executable, "-c", program.format("answer", "chatter", 0)], log) == "answer\n"
    assert "chatter" in log.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_what_a_command_prints_can_be_read_while_it_runs(tmp_path):
    program = "import sys; print('epoch 1'); print(open(sys.argv[1]).read(), file=sys.stderr)"
    steps.run([sys.executable, "-c", program, tmp_path / "train.out"], tmp_path / "train.log")
    assert (tmp_path / "train.log").read_text().count("epoch 1") == 3  # in the command, by the command, at its end
