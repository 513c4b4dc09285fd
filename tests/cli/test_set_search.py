"""`nnunet_nas set_search`: what it writes into plans, and what it never touches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_nas.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
CALL = ["set_search", "-d", "11", "-c", "2d", "-m", "iac_lth"]


def plans(dataset):
    return json.loads((dataset / "nnUNetPlans.json").read_text())


def test_it_writes_one_key_and_nothing_else(dataset):
    before = plans(dataset)
    assert main([*CALL, "gamma=2", "augmentation=false"]) == 0
    after = plans(dataset)
    assert after["configurations"]["2d"].pop("nas_settings") == {"iac_lth": {"gamma": 2.0, "augmentation": False}}
    assert after == before


def test_taken_back_the_file_is_what_it_was(dataset):
    before = (dataset / "nnUNetPlans.json").read_bytes()
    main([*CALL, "gamma=2", "tau0=1e-8"])
    main([*CALL, "gamma=default"])
    assert plans(dataset)["configurations"]["2d"]["nas_settings"] == {"iac_lth": {"tau0": 1e-8}}
    main([*CALL, "tau0=default"])
    assert (dataset / "nnUNetPlans.json").read_bytes() == before


def test_a_configuration_keeps_what_it_inherits_when_it_gets_its_own(dataset):
    main([*CALL, "gamma=2"])
    main(["set_search", "-d", "11", "-c", "2d_bs4", "-m", "iac_retrofit", "num_epochs=5"])
    content = plans(dataset)["configurations"]
    assert content["2d_bs4"]["nas_settings"] == {"iac_lth": {"gamma": 2.0}, "iac_retrofit": {"num_epochs": 5}}
    assert content["2d"]["nas_settings"] == {"iac_lth": {"gamma": 2.0}}
    main(["set_search", "-d", "11", "-c", "2d_bs4", "-m", "iac_retrofit", "num_epochs=default"])
    assert "nas_settings" not in plans(dataset)["configurations"]["2d_bs4"]


def test_it_shows_everything_with_its_source(dataset, capsys):
    main([*CALL, "gamma=2"])
    capsys.readouterr()
    assert main([*CALL, "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)["settings"]}
    assert (rows["gamma"]["value"], rows["gamma"]["default"], rows["gamma"]["origin"]) == (2.0, 1.5, "2d")
    assert rows["warmup_epochs"]["source"] == "paper"
    assert rows["tau0"]["source"] == "our choice"
    assert main(CALL) == 0
    table = capsys.readouterr()
    assert "initial threshold of the Jensen-Shannon divergence, nats" in table.out
    assert table.err.splitlines()[-1] == "next: nnUNetv2_train 11 2d 0 -tr nnUNetTrainerIACLTHSearch"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-c", "2d", "-m", "iac_lth", "gama=2"], 2, "did you mean gamma?"),
        (["-c", "2d", "-m", "iac_lth", "gamma=0.5"], 2, "at least 1"),
        (["-c", "2d", "-m", "iac", "gamma=2"], 2, "unknown setting 'gamma' of iac"),
        (["-c", "5d", "-m", "iac"], 4, "5d is not in the plans"),
        (["-c", "5d", "-m", "iac", "seed=3"], 4, "5d is not in the plans"),
        (["-c", "2d", "-m", "iac", "-p", "other", "seed=3"], 4, "other.json does not exist"),
        # All or none: the first of the two is fine.
        (["-c", "2d", "-m", "iac_lth", "gamma=2", "tau0=-1"], 2, "tau0 must be a number of at least 0, not -1"),
        (["-c", "2d", "-m", "iac_lth", "gamma=2", "gamma=3"], 2, "gamma is given twice"),
        (["-c", "2d", "-m", "iac_lth", "gamma=default", "gamma=3"], 2, "gamma is given twice"),
        (["-c", "2d", "-m", "iac_lth", "gama=default"], 2, "did you mean gamma?"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(arguments, code, said, dataset, capsys):
    before = (dataset / "nnUNetPlans.json").read_bytes()
    assert main(["set_search", "-d", "11", *arguments]) == code
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert said in errors[0]
    assert (dataset / "nnUNetPlans.json").read_bytes() == before


def test_a_broken_setting_can_be_mended_with_the_command_itself(dataset, capsys):
    content = plans(dataset)
    content["configurations"]["2d"]["nas_settings"] = {"iac_lth": {"gamma": "x"}}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content, indent=4))
    assert main([*CALL, "tau0=1e-9"]) == 4
    assert "gamma must be a number" in capsys.readouterr().err
    assert main([*CALL, "gamma=default"]) == 0
    assert "nas_settings" not in plans(dataset)["configurations"]["2d"]


def test_a_mistyped_key_of_an_earlier_hand_can_be_taken_out_with_the_command_itself(dataset, capsys):
    before = (dataset / "nnUNetPlans.json").read_bytes()
    content = plans(dataset)
    content["configurations"]["2d"]["nas_settings"] = {"iac_lth": {"gama": 2}}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content, indent=4))
    assert main(CALL) == 4
    assert "nnunet_nas set_search ... -m iac_lth gama=default" in capsys.readouterr().err
    assert main([*CALL, "gama=default"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err.splitlines()[0]) == ("", "gama was no setting of iac_lth and is taken out")
    assert (dataset / "nnUNetPlans.json").read_bytes() == before


def test_only_what_was_changed_is_shown_and_exactly_as_it_was_given(dataset, capsys):
    assert main([*CALL, "seed=12345678", "weights_lr=0.123456789", "tau0=1e-10", "outlier_k=2"]) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["seed", "12345678"], ["weights_lr", "0.123456789"], ["tau0", "1e-10"], ["outlier_k", "2"]]


def test_the_table_names_the_configuration_that_a_setting_is_inherited_from(dataset, capsys):
    main([*CALL, "gamma=2"])
    capsys.readouterr()
    assert main(["set_search", "-d", "11", "-c", "2d_bs4", "-m", "iac_lth", "--json"]) == 0
    origins = {row["key"]: row["origin"] for row in json.loads(capsys.readouterr().out)["settings"]}
    assert (origins["gamma"], origins["tau0"]) == ("2d", "default")


def test_showing_changes_nothing(dataset):
    before = (dataset / "nnUNetPlans.json").stat()
    assert main(CALL) == 0
    after = (dataset / "nnUNetPlans.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


SEARCHED = {"2d_iac": "iac", "2d_iaclth": "iac_lth", "2d_xtiny8": "xtiny"}


@pytest.mark.parametrize(
    ("configuration", "method", "command"),
    [
        ("2d", "iac", "2d 0 -tr nnUNetTrainerIACSearch"),
        ("2d", "iac_lth", "2d 0 -tr nnUNetTrainerIACLTHSearch"),
        ("2d", "iac_retrofit", "2d_iaclth_residual 0 -tr nnUNetTrainerIACRetrofit"),
        ("2d_iac", "iac_retrofit", "2d_iac 0 -tr nnUNetTrainerIACRetrofit"),
        ("2d_iaclth", "iac_retrofit", "2d_iaclth 0 -tr nnUNetTrainerIACRetrofit"),
        # A width is no cell: there is nothing to retrofit before cells are searched on it.
        ("2d_xtiny8", "iac_retrofit", "2d_xtiny8_iaclth_residual 0 -tr nnUNetTrainerIACRetrofit"),
    ],
)
def test_it_ends_with_the_commands_that_use_the_settings(configuration, method, command, dataset, capsys):
    content = plans(dataset)
    for name, searched_by in SEARCHED.items():
        content["configurations"][name] = {"inherits_from": "2d", "nas": {"method": searched_by}}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content, indent=4))
    # By name, because the command that is shown has the number.
    for assignments in ([], ["num_epochs=3"]):
        assert main(["set_search", "-d", "Dataset011_Fake", "-c", configuration, "-m", method, *assignments]) == 0
        assert capsys.readouterr().err.splitlines() == [
            "next: export nnUNet_extTrainer=$(nnunet_nas ext_path)",
            f"next: nnUNetv2_train 11 {command}",
        ]


def test_other_plans_are_named_in_the_next_command(dataset, capsys):
    assert main([*CALL, "-p", "nnUNetResEncUNetMPlans", "gamma=2"]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "next: nnUNetv2_train 11 2d 0 -p nnUNetResEncUNetMPlans -tr nnUNetTrainerIACLTHSearch"
    assert "nas_settings" not in plans(dataset)["configurations"]["2d"]


def test_an_unknown_method_is_a_wrong_call_that_lists_the_known_ones(dataset, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["set_search", "-d", "11", "-c", "2d", "-m", "nope"])
    assert caught.value.code == 2
    assert "'iac', 'iac_lth', 'iac_retrofit'" in capsys.readouterr().err


def test_it_answers_without_heavy_imports(dataset):
    # Half a second is the promise; torch alone takes longer, so the promise is kept or broken by what is imported.
    code = f"""
import sys
from nnunet_nas.cli.main import main
assert main({[*CALL, "gamma=2"]!r}) == 0
print(sorted({{"torch", "nnunetv2", "matplotlib", "numpy", "scipy"}} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_settings_do_not_make_derived_configurations_stale(dataset):
    from nnunet_nas.plans import Plans

    main(["set_search", "-d", "11", "-c", "2d", "-m", "iac", "seed=4"])
    with_settings = plans(dataset)
    without = json.loads(json.dumps(with_settings))
    del without["configurations"]["2d"]["nas_settings"]
    assert Plans(with_settings).digest("2d") == Plans(without).digest("2d")


@pytest.mark.parametrize("record", ["xtiny", [], 1])
def test_a_record_that_is_none_does_not_make_it_fail_after_it_wrote(dataset, record):
    content = plans(dataset)
    content["configurations"]["2d_bs4"]["nas"] = record
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content, indent=4))
    assert main(["set_search", "-d", "11", "-c", "2d_bs4", "-m", "iac_retrofit", "num_epochs=5"]) == 0
    assert plans(dataset)["configurations"]["2d_bs4"]["nas_settings"] == {"iac_retrofit": {"num_epochs": 5}}
