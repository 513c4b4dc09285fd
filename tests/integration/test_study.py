"""The smallest study by the workflow: announced, killed, gone on with, with a cell that fails and is named."""

import csv
import json
import os
import shutil
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import Command, run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_spec("snakemake") is None, reason="snakemake is not installed: pip install '.[study]'"),
]
STUDY = Path(__file__).resolve().parents[2] / "examples" / "study"
SMALLEST = {
    "study": "smallest",
    "device": "cpu",
    "mirroring": False,
    "folds": [0, 1],
    "schedule": {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1},
    "datasets": {"998": {"phantom": {"n": 10, "n_test": 2, "size": 64}}},
    "bases": {"a": {"configuration": "2d", "cap": 8, "patch_size": [32, 32], "batch_size": 2}},
    "methods": {"w4": {"width": 4}, "taught": {"width": 4, "distill": {}, "against": "w4"}},
}
GENOTYPE = {str(node): {"0": "identity", "1": "sep_conv_3"} for node in range(2, 6)}
# More levels than the plan has: refused when the search begins.
FAILING = {"search": "dints", "settings": {"num_levels": 9}}
LOADING = {"nnUNet_n_proc_DA": "0"}


@pytest.fixture
def work(workspace, monkeypatch):
    """The phantom, and an empty folder for the study to run in."""
    folder = workspace / "study"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return workspace


def study_file(work, **changes):
    path = work / "study.yaml"  # JSON is YAML
    path.write_text(json.dumps({**SMALLEST, **changes}))
    return path


def words(file, *more):
    profile = STUDY / "profiles" / "local"
    return ("snakemake", "-s", STUDY / "Snakefile", "--configfile", file, "--profile", profile, *more)


def rows():
    return {row["method"]: row for row in csv.DictReader(Path("tables/study.csv").open())}


def test_announced_killed_gone_on_with_and_a_failed_cell_is_named(work):
    broken = study_file(work, methods={**SMALLEST["methods"], "topology": FAILING})
    _, said = run(work, *words(broken, "-n"), extra=LOADING)
    assert "study smallest: 1 datasets, 1 bases, 3 methods, 1 seeds, 2 folds; 4 cells, 0 of them done" in said
    assert "multiply-accumulates: " in said
    assert {path.name for path in Path().iterdir()} <= {".snakemake"}

    killed = Command(work, *words(broken), extra=LOADING)
    deadline = time.monotonic() + 900
    while not Path("998/a/base/s0/trained_0.begun").exists():
        assert killed.code is None, killed.stderr.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    run(work, *words(broken, "--unlock"), extra=LOADING)

    _, said = run(work, *words(broken), code=1, extra=LOADING)
    table = Path("tables/study.txt").read_text()
    missing = table[table.index("Not in the table:") :].splitlines()[1:]
    assert len(missing) == 1
    assert missing[0].startswith(
        "  data set 998, base a, topology, seed 0: derive failed: nnUNetv2_train ended with 4: "
    )
    assert "9 levels from stage 0 on do not fit" in missing[0]
    assert table in said
    found = rows()
    assert (found["base"]["seeds"], found["w4"]["seeds"], found["topology"]["seeds"]) == ("1", "1", "0")
    assert (found["w4"]["against"], found["taught"]["against"]) == ("base", "w4")
    assert found["taught"]["seeds"] == "1"
    # Two epochs of two iterations on each of two folds, with the teacher's; together they predict the hold-out.
    assert [float(found[method]["iterations"]) for method in ("base", "w4", "taught")] == [8, 8, 16]
    assert " -f 0 1 " in Path("998/a/taught/s0/predict.log").read_text()
    assert not Path("tables/complete").exists()

    # Without it the rest is done already, and trains nothing again.
    trained = Path("998/a/base/s0/trained_0.json").stat().st_mtime_ns
    run(work, *words(study_file(work)), extra=LOADING)
    assert Path("tables/complete").exists()
    assert "Not in the table" not in Path("tables/study.txt").read_text()
    assert Path("998/a/base/s0/trained_0.json").stat().st_mtime_ns == trained
    assert rows()["w4"] == found["w4"]


def test_a_wrong_key_is_one_line(work):
    _, said = run(work, *words(study_file(work, shedule={}), "-n"), code=1)
    assert "study: the study: unknown key shedule; did you mean schedule?" in said.splitlines()
    assert "Traceback" not in said


def test_a_base_that_was_trained_otherwise_is_refused(work):
    import sys

    from nnunet_nas.errors import DataProblem
    from nnunet_nas.plans import Plans

    sys.path.insert(0, str(STUDY))
    from nas_study import steps
    from nas_study.grid import Cell, Study

    dataset = work / "nnUNet_preprocessed" / "Dataset998_Phantom"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(work / name))
        cell = Cell(998, "a", "base", 0)
        assert steps.prepare(Study(SMALLEST), cell)["configuration"] == "a_s0"
        plans = Plans.of(dataset, "nnUNetPlans_smallest")
        assert plans.resolve("a_s0")["nas_settings"]["schedule"]["seed"] == 0
        assert max(plans.resolve("a_s0")["architecture"]["arch_kwargs"]["features_per_stage"]) == 8
        assert steps.derive(Study(SMALLEST), cell.of("w4"))["configuration"] == "a_s0_xtiny4"
        longer = Study({**SMALLEST, "schedule": {"num_epochs": 9}})
        steps.prepare(longer, cell)  # nothing was trained yet
        results = work / "nnUNet_results" / dataset.name / "nnUNetTrainerScheduled__nnUNetPlans_smallest__a_s0"
        results.mkdir(parents=True)
        with pytest.raises(DataProblem, match="was trained as the study's file said before"):
            steps.prepare(Study(SMALLEST), cell)
        shutil.rmtree(results)
        steps.prepare(Study(SMALLEST), cell)


def test_a_random_cell_is_made_after_the_search_with_its_settings(work, monkeypatch):
    import sys

    from nnunet_nas.plans import Plans

    sys.path.insert(0, str(STUDY))
    from nas_study import records, steps
    from nas_study.grid import Cell, Study, derived

    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(work / name))
    study = Study({**SMALLEST, "methods": {"cells": {"search": "iac_lth"}, "random": {"random_of": "cells"}}})
    cell, dataset = Cell(998, "a", "random", 3), work / "nnUNet_preprocessed" / "Dataset998_Phantom"
    steps.prepare(study, cell)
    found = "a_s3_iaclth_residual"
    with Plans.edited(dataset / "nnUNetPlans_smallest.json") as plans:
        architecture = plans.resolve("a_s3")["architecture"]
        skips = architecture["arch_kwargs"]["n_stages"] - 1
        cells = {"genotype": GENOTYPE, "widths": [4] * skips, "norm": "backbone", "residual": True}
        architecture["arch_kwargs"] |= {"backbone": architecture["network_class_name"], "cells": cells}
        architecture["network_class_name"] = "nnunet_nas.iac.network.IACUNet"
        record = {"method": "iac_lth", "base_digest": plans.digest("a_s3"), "settings": {}, "seeds": [3], "fold": 0}
        plans.configurations[found] = {"inherits_from": "a_s3", "architecture": architecture, "nas": record}
        plans.set("a_s3", "iac_retrofit", {"num_epochs": 7})
    records.write(derived(cell.of("cells")), {"configuration": found})
    made = steps.derive(study, cell)
    assert made == {
        "configuration": f"{found}_random3", "seconds": 0.0, "iterations": 0, "trainer": "nnUNetTrainerIACRetrofit",
    }  # fmt: skip
    drawn = Plans.of(dataset, "nnUNetPlans_smallest").resolve(f"{found}_random3")
    theirs = drawn["architecture"]["arch_kwargs"]["cells"]
    assert theirs["genotype"] != GENOTYPE
    assert {**theirs, "genotype": GENOTYPE} == cells
    assert drawn["nas_settings"]["iac_retrofit"] == {"num_epochs": 7}
