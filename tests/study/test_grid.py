"""The grid of a study: its cells, what each of them waits for, and files that make no sense, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from nas_study import cost, records
from nas_study.grid import KINDS, Cell, read_study

from nnunet_nas.errors import UsageError
from nnunet_nas.xtiny.request import TinySettings

SCHEMA = Path(__file__).resolve().parents[2] / "examples" / "study" / "schema.json"
TRAINED_BASE = "1/plain/base/s0/trained_0.json"


@pytest.fixture
def study(content):
    return read_study(content, SCHEMA)


def test_the_cells(study):
    cells = study.cells()
    assert len(cells) == len(set(cells))
    # Data set 1: base, tiny, w8, cells, longer, topology, thin, attention on `plain` alone, two seeds each.
    methods = {cell.method for cell in cells if cell.dataset == 1}
    assert methods == {"base", "tiny", "w8", "cells", "longer", "topology", "thin", "attention", "taught"}
    assert {cell.base for cell in cells if cell.dataset == 1} == {"plain"}
    # Data set 2: on `plain` also what comes from data set 1, no topology; on `narrow` what is not confined to `plain`.
    assert sum(cell.dataset == 2 for cell in cells) == 2 * (8 + 5)
    assert sum(cell.dataset == 1 for cell in cells) == 2 * 9


def test_a_data_set_is_planned_for_its_own_bases(content):
    bases = {"plain": {"configuration": "2d"}, "deep": {"configuration": "3d_fullres", "datasets": [2]}}
    study = read_study({**content, "bases": bases, "methods": {}}, SCHEMA)
    assert (study.configurations(1), study.configurations(2)) == (["2d"], ["2d", "3d_fullres"])


def test_what_each_step_waits_for(study):
    def needs(method, dataset=1):
        cell = Cell(dataset, "plain", method, 0)
        return study.derive_needs(cell)[1:], study.train_needs(cell, 0)[1:]

    assert needs("base") == needs("w8") == needs("tiny") == needs("topology") == needs("attention") == ([], [])
    assert needs("cells") == ([TRAINED_BASE], [TRAINED_BASE])
    assert needs("taught") == ([], [TRAINED_BASE])
    assert needs("longer") == ([TRAINED_BASE], [])
    assert needs("thin") == (["1/plain/topology/s0/derived.json"], [])
    assert needs("from1", dataset=2) == (["1/plain/topology/s0/derived.json"], [])
    wide = {**study.content, "methods": {"topology": {"search": "dints"}, "wide": {"as_wide_as": "topology"}}}
    wide["methods"] = {name: {**method, "bases": ["plain"]} for name, method in wide["methods"].items()}
    assert read_study(wide, SCHEMA).derive_needs(Cell(2, "plain", "wide", 0))[1:] == [
        "2/plain/topology/s0/derived.json"
    ]
    assert study.derive_needs(Cell(1, "plain", "w8", 1))[0] == "1/plain/prepared_s1.json"


def test_a_random_answer_is_made_after_the_search_and_trained_as_its_result(content):
    content["methods"] |= {
        "cell": {"random_of": "cells", "bases": ["plain"]},
        "shape": {"random_of": "topology", "datasets": [1], "bases": ["plain"], "against": "topology"},
        "celltoo": {"transfer": {"dataset": 1, "method": "cell"}, "bases": ["plain"]},
    }
    study = read_study(content, SCHEMA)

    def needs(method, dataset=1):
        cell = Cell(dataset, "plain", method, 0)
        return study.derive_needs(cell)[1:], study.train_needs(cell, 0)[1:], study.trainer(cell)

    assert needs("cell") == (["1/plain/cells/s0/derived.json"], [TRAINED_BASE], "nnUNetTrainerIACRetrofit")
    assert needs("shape") == (["1/plain/topology/s0/derived.json"], [], "nnUNetTrainerScheduled")
    assert needs("celltoo", 2)[2] == "nnUNetTrainerIACRetrofit"
    # As many iterations as what it is a control of, without the search.
    spent = {name: cost.parts(study, Cell(1, "plain", name, 0)) for name in ("cells", "cell", "topology", "shape")}
    assert spent["cell"] == spent["cells"][1:]
    assert [part.iterations for part in spent["cell"]] == [20]
    assert spent["shape"] == spent["topology"][1:]
    assert [part.iterations for part in spent["shape"]] == [50]


def test_a_search_sees_the_first_fold_and_each_retrofit_its_own_backbone(content):
    study, cell = read_study({**content, "folds": [2, 0]}, SCHEMA), Cell(1, "plain", "cells", 0)
    assert study.derive_needs(cell)[1:] == ["1/plain/base/s0/trained_2.json"]
    assert [study.train_needs(cell, fold)[1:] for fold in (2, 0)] == [
        ["1/plain/base/s0/trained_2.json"],
        [TRAINED_BASE],
    ]
    longer = study.derive_needs(cell.of("longer"))
    assert longer[1:] == ["1/plain/base/s0/trained_2.json", TRAINED_BASE]


def test_who_trains_what(study):
    trainers = {cell.method: study.trainer(cell) for cell in study.cells()}
    assert trainers.pop("cells") == "nnUNetTrainerIACRetrofit"
    assert trainers.pop("taught") == "nnUNetTrainerDistill"
    assert set(trainers.values()) == {"nnUNetTrainerScheduled"}


def test_gpus_are_for_networks_only(content):
    study = read_study({**content, "device": "cuda"}, SCHEMA)
    wanted = {
        (step, method): study.needs_gpu(step, Cell(1, "plain", method, 0))
        for step in ("derive", "train", "predict")
        for method in ("base", "w8", "tiny", "cells")
    }
    assert {key for key, needs in wanted.items() if not needs} == {("derive", "base"), ("derive", "w8")}


WRONG = {
    "a key": ({"shedule": {}}, "the study: unknown key shedule; did you mean schedule?"),
    "a kind": ({"methods": {"a": {}}}, "methods.a must have exactly one of width, select"),
    "two kinds": ({"methods": {"a": {"width": 8, "skip": "nested"}}}, "not width, skip"),
    "a key of a method": ({"methods": {"a": {"widht": 8}}}, "methods.a: unknown key widht; did you mean width?"),
    "a value": ({"methods": {"a": {"width": 0}}}, "methods.a.width: 0 is less than the minimum of 1"),
    "a base": (
        {"methods": {"a": {"width": 8, "bases": ["x"]}}},
        "methods.a.bases: there is no base x; there are: plain",
    ),
    "a method": ({"methods": {"a": {"control_of": "b"}}}, "methods.a.control_of: there is no method b"),
    "a control": ({"methods": {"a": {"control_of": "b"}, "b": {"width": 4}}}, "must name a method that searches"),
    "a setting": (
        {"methods": {"a": {"search": "iac_lth", "settings": {"epochs": 5}}}},
        "methods.a.settings: unknown setting 'epochs' of iac_lth, did you mean num_epochs?",
    ),
    "a schedule": ({"schedule": {"num_epochs": 0}}, "schedule: setting schedule.num_epochs must be an integer of at"),
    "two searches": (
        {"methods": {"a": {"search": "iac", "settings": {"num_epochs": 50}}, "b": {"search": "iac"}}},
        "both search by iac with other settings in one backbone",
    ),
    "a retrofit": ({"methods": {"a": {"search": "dints", "retrofit": {}}}}, "belongs to a method with search: iac"),
    "the reach of a method": (
        {"methods": {"a": {"search": "dints", "datasets": [1]}, "b": {"narrowed_to": "a"}}},
        "methods.b needs a on data set 2 and base plain, where the study has none",
    ),
    "the reach of a width": (
        {"methods": {"a": {"search": "dints", "datasets": [1]}, "b": {"as_wide_as": "a"}}},
        "methods.b needs a on data set 2 and base plain, where the study has none",
    ),
    "a random one of what is not searched": (
        {"methods": {"a": {"width": 8}, "b": {"random_of": "a"}}},
        "methods.b.random_of must name a method that searches",
    ),
    "a random cell that is taught": (
        {"methods": {"a": {"search": "iac"}, "b": {"random_of": "a", "distill": {}}}},
        "methods.b.distill belongs to a method whose result is trained plainly",
    ),
    "the reach of a random one": (
        {"methods": {"a": {"search": "dints", "datasets": [1]}, "b": {"random_of": "a"}}},
        "methods.b needs a on data set 2 and base plain, where the study has none",
    ),
    "a width as of nothing": ({"methods": {"b": {"as_wide_as": "a"}}}, "methods.b.as_wide_as: there is no method a"),
    "the reach of a comparison": (
        {"methods": {"a": {"width": 8, "bases": ["plain"]}, "b": {"width": 4, "against": "a"}}},
        "methods.b needs a on data set 2 and base narrow, where the study has none",
    ),
    "a teacher": (
        {"methods": {"a": {"skip": "conv", "distill": {"teacher_trainer": "x"}}}},
        "methods.a.distill: unknown key teacher_trainer; known: temperature, weight",
    ),
    "what is not taught": (
        {"methods": {"a": {"search": "iac", "distill": {}}}},
        "methods.a.distill belongs to a method whose result is trained plainly",
    ),
    "no base": ({"bases": {}}, "bases: "),
    "a name": ({"study": "my study"}, "study: 'my study' does not match"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_makes_no_sense_is_said_in_one_line(content, change, message):
    with pytest.raises(UsageError) as error:
        read_study({**content, **change}, SCHEMA)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_cost_before_it_starts(study, monkeypatch, tmp_path, nnunet_folders):
    monkeypatch.chdir(tmp_path)
    said = cost.announcement(study).splitlines()
    assert said[0] == "study all: 2 datasets, 2 bases, 9 methods, 2 seeds, 1 folds; 44 cells, 0 of them done"
    # Bases, widths, selections, attention: of 50, 50, 50 and 15 iterations; cells: 60 and 20; longer: as the 20.
    assert "base 300, tiny 300, w8 300, cells 320, longer 80" in said[1]
    assert "attention 90, taught 180" in said[1]
    assert "4 retrofits, 6 searches" in said[1]
    assert "data set 1 is not counted" in said[2]


def test_a_race_costs_its_budget_before_the_width_is_trained(content):
    content["methods"] = {"race": {"select": {"rule": "race", "budget": 40}}, "tiny": {"select": {"rule": "race"}}}
    study = read_study(content, SCHEMA)
    spent = {name: cost.parts(study, Cell(1, "plain", name, 0)) for name in ("race", "tiny")}
    assert [(part.what, part.iterations) for part in spent["race"]] == [("race", 40), ("training", 50)]
    assert [part.iterations for part in spent["tiny"]] == [TinySettings.race_budget, 50]


def test_multiply_accumulates_of_what_is_planned(dataset, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake").mkdir()
    content = {
        "study": "few", "schedule": {"num_epochs": 2, "num_iterations_per_epoch": 5}, "datasets": {"11": None},
        "bases": {"a": {"configuration": "2d"}}, "methods": {"w8": {"width": 8}},
    }  # fmt: skip
    from nnunet_nas.architecture import network_spec
    from nnunet_nas.plans import Plans
    from nnunet_nas.training_cost import plain_step

    spec = network_spec(Plans.of(dataset, "nnUNetPlans"), "2d")
    total = 2 * 10 * spec.batch_size * plain_step(spec)
    said = f"multiply-accumulates: {total:.3g} at most for 1 of 1 data sets"
    assert cost.announcement(read_study(content, SCHEMA)).splitlines()[2] == said
    monkeypatch.setattr(cost, "_per_iteration", None)  # known by now
    assert cost.announcement(read_study(content, SCHEMA)).splitlines()[2] == said


class TestRecords:
    def test_a_step_is_begun_then_done(self, tmp_path):
        path = tmp_path / "cell" / "derived.json"
        assert records.state(path) == "not begun"
        records.begin(path)
        assert records.state(path).startswith("interrupted, or running since ")
        records.finish(path, {"configuration": "2d"})
        assert (records.state(path), records.read(path)) == ("done", {"configuration": "2d"})

    def test_a_failure_is_forgotten_with_the_next_attempt(self, tmp_path):
        path = tmp_path / "derived.json"
        records.begin(path)
        records.fail(path, "it ended with 4")
        assert records.state(path) == "failed: it ended with 4"
        records.begin(path)
        assert "failed" not in records.state(path)


@pytest.mark.parametrize("file", sorted((SCHEMA.parents[1] / "evidence").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_questions_are_studies(file):
    yaml = pytest.importorskip("yaml")
    study = read_study(yaml.safe_load(file.read_text()), SCHEMA)
    assert len(study.content["seeds"]) >= 3
    assert study.cells()


def test_the_file_that_the_readme_shows_is_a_study():
    yaml = pytest.importorskip("yaml")
    text = SCHEMA.with_name("README.md").read_text().split("## The file\n\n")[1].split("\n\n")[0]
    study = read_study(yaml.safe_load("\n".join(line[4:] for line in text.splitlines())), SCHEMA)
    assert {study.kind(name) for name in study.content["methods"]} == set(KINDS)
    assert study.cells()
