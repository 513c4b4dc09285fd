"""`nnunet_nas ls` shows what is there, broken and stale things included, and never fails because of one of them."""

import copy
import json

import pytest

from nnunet_nas.cli.main import main
from nnunet_nas.plans import Plans

FLAT = {
    "data_identifier": "nnUNetPlans_2d",
    "batch_size": 12,
    "patch_size": [64, 48],
    "spacing": [1.0, 1.0],
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {"n_stages": 3, "features_per_stage": [32, 64, 128], "strides": [[1, 1], [2, 2], [2, 2]]},
        "_kw_requires_import": [],
    },
}


CELL = {str(node): {"0": "identity", "1": "sep_conv_3"} for node in range(2, 6)}


def plans_with(**configurations):
    return {"dataset_name": "Dataset004_Toy", "plans_name": "nnUNetPlans", "configurations": configurations}


def narrow(plans, base, features):
    """The entry that a search would add: same architecture, fewer features, digest of the base of today."""
    architecture = copy.deepcopy(plans["configurations"][base]["architecture"])
    architecture["arch_kwargs"]["features_per_stage"] = features
    record = {"method": "xtiny", "base_digest": Plans(plans).digest(base)}
    return {"inherits_from": base, "architecture": architecture, "nas": record}


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """The preprocessed folder of a data set with one plans file: 2d, preprocessed, and 2d_xtiny8 made from it."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / "Dataset004_Toy"
    (folder / "nnUNetPlans_2d").mkdir(parents=True)
    for name in ("dataset.json", "dataset_fingerprint.json", "splits_final.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    plans = plans_with(**{"2d": copy.deepcopy(FLAT)})
    plans["configurations"]["2d_xtiny8"] = narrow(plans, "2d", [8, 16, 32])
    write(folder, "nnUNetPlans", plans)
    return folder


def write(folder, name, plans):
    content = plans if isinstance(plans, str) else json.dumps(plans)
    (folder / f"{name}.json").write_text(content, encoding="utf-8")


def read(folder, name="nnUNetPlans"):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def listed(capsys, *arguments):
    """What `ls --json` prints, by plans and configuration, and its exit code."""
    code = main(["ls", "--json", *arguments])
    datasets = json.loads(capsys.readouterr().out)["datasets"]
    return {plans["name"]: plans for dataset in datasets for plans in dataset["plans"]}, code


def cells(text):
    """The cells of a printed table, below its two header lines."""
    return [[cell.strip() for cell in line.split("  ") if cell] for line in text.splitlines()[2:]]


def test_one_line_per_configuration_with_base_and_method(dataset, capsys):
    assert main(["ls"]) == 0
    output = capsys.readouterr()
    assert cells(output.out) == [
        ["Dataset004_Toy", "nnUNetPlans", "2d", "-", "-", "ok"],
        ["Dataset004_Toy", "nnUNetPlans", "2d_xtiny8", "2d", "xtiny", "ok"],
    ]
    assert output.err == "next: nnunet_nas ls -d 4\n"


@pytest.mark.parametrize("given", ["4", "Dataset004_Toy"])
def test_a_data_set_in_detail_and_the_command_that_trains_what_was_found(dataset, capsys, given):
    assert main(["ls", "-d", given]) == 0
    output = capsys.readouterr()
    assert cells(output.out) == [
        ["Dataset004_Toy", "nnUNetPlans", "2d", "-", "-", "ok", "yes", "64x48", "12", "32 64 128"],
        ["Dataset004_Toy", "nnUNetPlans", "2d_xtiny8", "2d", "xtiny", "ok", "yes", "64x48", "12", "8 16 32"],
    ]
    assert output.err == "next: nnUNetv2_train 4 2d_xtiny8 0\n"


def test_before_a_search_the_next_command_is_the_search(dataset, capsys):
    (dataset / "nnUNetPlans.json").unlink()
    write(dataset, "nnUNetResEncUNetMPlans", plans_with(**{"2d": FLAT}))
    assert main(["ls", "-d", "4"]) == 0
    assert capsys.readouterr().err == "next: nnunet_nas select_tiny -d 4 -c 2d -p nnUNetResEncUNetMPlans\n"


def test_json_carries_the_same(dataset, capsys):
    plans, code = listed(capsys)
    assert code == 0
    assert plans["nnUNetPlans"]["file"] == str(dataset / "nnUNetPlans.json")
    assert plans["nnUNetPlans"]["configurations"][1] == {
        "name": "2d_xtiny8",
        "base": "2d",
        "method": "xtiny",
        "stale": None,
        "remedy": None,
        "problem": None,
        "preprocessed": True,
        "patch_size": [64, 48],
        "batch_size": 12,
        "features_per_stage": [8, 16, 32],
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"genotype": {"2": {"0": "identity", "1": "conv"}}}, "genotype: give the computed nodes 2, 3, 4, 5"),
        ({"genotype": {**CELL, "5": {"0": "identity", "5": "identity"}}}, "node 5 cannot read node 5"),
        ({"widths": [8]}, "cells.widths must be 2 positive integers"),
        ({"widths": [8, True]}, "cells.widths must be 2 positive integers"),
        ({"norm": "layer"}, "cells.norm must be one of backbone, instance, batch, not 'layer'"),
        ({"residual": "no"}, "cells.residual must be true or false, not 'no'"),
    ],
)
def test_cells_that_were_edited_into_impossible_ones_are_broken(dataset, capsys, change, problem):
    plans = read(dataset)
    entry = narrow(plans, "2d", [32, 64, 128])
    entry["architecture"]["arch_kwargs"]["cells"] = {"genotype": CELL, "widths": [8, 16], **change}
    entry["nas"]["method"] = "iac_lth"
    plans["configurations"]["2d_iaclth"] = entry
    write(dataset, "nnUNetPlans", plans)
    listing, _ = listed(capsys)
    found = listing["nnUNetPlans"]["configurations"][-1]["problem"]
    assert (
        found is None if problem is None else f"configuration 2d_iaclth: {problem}" in found.replace("genotype: n", "n")
    )
    assert main(["ls"]) == 0
    assert cells(capsys.readouterr().out)[-1][-1] == ("ok" if problem is None else "broken")


@pytest.mark.parametrize(
    ("topology", "problem"),
    [
        ({"levels": 3, "layers": [{"2->2": "conv"}]}, None),
        ({"levels": 3, "layers": [{"2->2": "conv"}, {"0->0": "conv"}]}, "has an output and no input"),
        ({"levels": 3, "layers": [{"2->0": "conv"}]}, "layer 0 has no edge '2->0'"),
        ({"levels": 2, "layers": [{"1->1": "conv"}]}, "the topology has 2 levels from stage 0 on, of 3 stages"),
    ],
)
def test_topologies_that_were_edited_into_impossible_ones_are_broken(dataset, capsys, topology, problem):
    plans = read(dataset)
    entry = narrow(plans, "2d", [32, 64, 128])
    entry["architecture"]["arch_kwargs"]["topology"] = topology
    entry["nas"]["method"] = "dints"
    plans["configurations"]["2d_dints"] = entry
    write(dataset, "nnUNetPlans", plans)
    found = listed(capsys)[0]["nnUNetPlans"]["configurations"][-1]["problem"]
    assert found is None if problem is None else "configuration 2d_dints: " in found and problem in found


def test_a_configuration_whose_base_was_planned_again_is_stale(dataset, capsys):
    plans = read(dataset)
    plans["configurations"]["2d"]["patch_size"] = [128, 96]
    write(dataset, "nnUNetPlans", plans)
    assert main(["ls"]) == 0
    output = capsys.readouterr()
    assert [row[-1] for row in cells(output.out)] == ["ok", "stale"]
    assert "2d_xtiny8: its base 2d has changed" in output.err
    assert "do not train it: make it again with nnunet_nas select_tiny -d 4 -c 2d --overwrite\n" in output.err
    listing, _ = listed(capsys)
    assert [entry["stale"] is None for entry in listing["nnUNetPlans"]["configurations"]] == [True, False]


def test_a_stale_configuration_is_not_proposed_for_training(dataset, capsys):
    plans = read(dataset)
    plans["configurations"]["2d"]["patch_size"] = [128, 96]
    write(dataset, "nnUNetPlans", plans)
    assert main(["ls", "-d", "4"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "next: nnunet_nas select_tiny -d 4 -c 2d"


def test_a_configuration_of_nnunet_that_inherits_is_not_ours(dataset, capsys):
    plans = plans_with(**{"3d_fullres": FLAT, "3d_cascade_fullres": {"inherits_from": "3d_fullres"}})
    write(dataset, "nnUNetPlans", plans)
    listing, _ = listed(capsys)
    cascade = listing["nnUNetPlans"]["configurations"][1]
    assert (cascade["base"], cascade["method"], cascade["stale"]) == ("3d_fullres", None, None)
    assert cascade["features_per_stage"] == [32, 64, 128]


def test_a_network_without_features_per_stage_is_listed(dataset, capsys):
    plans = read(dataset)
    del plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"]
    write(dataset, "nnUNetPlans", plans)
    listing, code = listed(capsys, "-d", "4")
    assert code == 0
    assert listing["nnUNetPlans"]["configurations"][0]["features_per_stage"] is None


def test_a_configuration_that_was_planned_but_not_preprocessed_says_so(dataset, capsys):
    (dataset / "nnUNetPlans_2d").rmdir()
    listing, _ = listed(capsys, "-d", "4")
    assert listing["nnUNetPlans"]["configurations"][0]["preprocessed"] is False


BROKEN_FILES = {
    "truncated": '{"plans_name": "otherPlans", "configurations": {"2d"',
    "empty": "",
    "configurations are a list": '{"plans_name": "otherPlans", "configurations": []}',
    "no plans_name": '{"configurations": {}}',
}


@pytest.mark.parametrize("content", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_a_broken_plans_file_is_named_and_the_others_are_listed(dataset, capsys, content):
    write(dataset, "otherPlans", content)
    assert main(["ls"]) == 0
    output = capsys.readouterr()
    assert cells(output.out)[0] == ["Dataset004_Toy", "nnUNetPlans", "2d", "-", "-", "ok"]
    assert cells(output.out)[2] == ["Dataset004_Toy", "otherPlans", "-", "-", "-", "broken"]
    assert f"problem: {dataset / 'otherPlans.json'}" in output.err


@pytest.mark.parametrize("content", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_asked_for_by_name_a_broken_plans_file_is_exit_code_4(dataset, capsys, content):
    write(dataset, "otherPlans", content)
    assert main(["ls", "-d", "4"]) == 4
    output = capsys.readouterr()
    assert cells(output.out)[0][2] == "2d"
    assert output.err.startswith(f"nnunet_nas ls: {dataset / 'otherPlans.json'}")
    assert output.err.count("\n") == 1
    listing, code = listed(capsys, "-d", "4")
    assert code == 4
    assert str(dataset / "otherPlans.json") in listing["otherPlans"]["problem"]


BROKEN_CONFIGURATIONS = {
    "unknown base": ({"inherits_from": "3d"}, "3d, the base of bad, is not in the plans"),
    "inherits from itself": ({"inherits_from": "bad"}, "inherits from itself"),
    "of an older nnU-Net": ({"data_identifier": "x", "patch_size": [8, 8], "batch_size": 2}, "no architecture"),
    "not an object": ([], "is not one of nnU-Net v2"),
    "provenance is text": ({**FLAT, "nas": "xtiny"}, "is not one of nnU-Net v2"),
}


@pytest.mark.parametrize(("entry", "reason"), BROKEN_CONFIGURATIONS.values(), ids=BROKEN_CONFIGURATIONS)
def test_a_broken_configuration_is_named_and_the_others_are_listed(dataset, capsys, entry, reason):
    write(dataset, "nnUNetPlans", plans_with(**{"2d": FLAT, "bad": entry}))
    assert main(["ls"]) == 0
    output = capsys.readouterr()
    assert [row[-1] for row in cells(output.out)] == ["ok", "broken"]
    assert reason in output.err
    assert main(["ls", "-d", "4"]) == 4
    assert reason in capsys.readouterr().err


def test_json_of_another_kind_is_not_taken_for_plans(dataset, capsys):
    write(dataset, "my_notes", {"author": "me"})
    write(dataset, "my_splits", [{"train": [], "val": []}])
    listing, _ = listed(capsys, "-d", "4")
    assert list(listing) == ["nnUNetPlans"]


def test_a_data_set_without_plans_is_listed_with_the_command_that_plans(dataset, capsys):
    (dataset / "nnUNetPlans.json").unlink()
    assert main(["ls", "-d", "4"]) == 0
    output = capsys.readouterr()
    assert cells(output.out)[0][:2] == ["Dataset004_Toy", "none"]
    assert output.err == "next: nnUNetv2_plan_and_preprocess -d 4\n"


def test_no_data_sets_is_an_empty_list_and_the_command_that_makes_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    assert main(["ls"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "next: nnUNetv2_plan_and_preprocess -d DATASET\n")
    assert listed(capsys) == ({}, 0)


def test_an_unknown_data_set_is_exit_code_4_and_an_unset_variable_3(dataset, monkeypatch, capsys):
    assert main(["ls", "-d", "5"]) == 4
    assert "there: Dataset004_Toy" in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_preprocessed")
    assert main(["ls"]) == 3
    assert "nnUNet_preprocessed is not set" in capsys.readouterr().err


def test_one_sick_file_does_not_hide_the_others_nor_speak_to_the_terminal(dataset, capsys):
    write(dataset, "nnUNetPlans", plans_with(**{"2d": FLAT, "\x1b[31mred": {"inherits_from": "2d"}, "sick": None}))
    (dataset / "deep.json").write_text("[" * 100_000)
    (dataset / "digits.json").write_text('{"configurations": ' + "1" * 5000 + "}")
    assert main(["ls"]) == 0
    printed = capsys.readouterr()
    rows = printed.out.splitlines()
    assert any("2d" in row and row.rstrip().endswith("ok") for row in rows)
    assert sum(row.rstrip().endswith("broken") for row in rows) == 3
    assert "\x1b" not in printed.out + printed.err
    assert "\\x1b[31mred" in printed.out
