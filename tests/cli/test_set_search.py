"""`nnunet_nas set_search`: what it writes into plans, and what it never touches."""

import json

import pytest

from nnunet_nas.cli.main import main

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
    assert rows["num_epochs"]["source"] == "paper"
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


def test_settings_do_not_make_derived_configurations_stale(dataset, capsys):
    main(["set_search", "-d", "11", "-c", "2d", "-m", "iac", "seed=4"])
    from nnunet_nas.plans import configuration_digest

    with_settings = plans(dataset)
    without = json.loads(json.dumps(with_settings))
    del without["configurations"]["2d"]["nas_settings"]
    assert configuration_digest(with_settings, "2d") == configuration_digest(without, "2d")
