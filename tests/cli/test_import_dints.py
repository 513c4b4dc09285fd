"""`nnunet_nas import_dints`: MONAI's architecture codes as plans configurations."""

import json

import numpy as np
import pytest
import torch

from nnunet_nas.architecture import build_network, network_spec
from nnunet_nas.cli.main import main
from nnunet_nas.plans import Plans


@pytest.fixture
def code(tmp_path):
    """Two levels, three layers, all edges; operations 0 to 4 in turn."""
    path = tmp_path / "arch_code.pth"
    torch.save({"arch_code_a": np.ones((3, 4)), "arch_code_c": np.arange(12).reshape(3, 4) % 5}, path)
    return path


def plans(dataset):
    return json.loads((dataset / "nnUNetPlans.json").read_text())


def test_it_adds_a_configuration_that_stock_nnunet_trains(dataset, code, capsys):
    before = plans(dataset)
    assert main(["import_dints", "-d", "11", "-c", "3d_fullres", "-code", str(code), "-name", "_monai"]) == 0
    after = plans(dataset)
    entry = after["configurations"].pop("3d_fullres_monai")
    assert after == before
    kwargs = entry["architecture"]["arch_kwargs"]
    # From half resolution on, where the plan has three stages; MONAI's convolution at the full resolution.
    assert (kwargs["first_level"], kwargs["n_stages"], kwargs["final_conv"]) == (1, 3, True)
    assert kwargs["strides"] == before["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"]
    assert kwargs["topology"]["layers"][0] == {"0->0": "skip", "0->1": "yx_z", "1->0": "conv", "1->1": "zx_y"}
    assert (entry["inherits_from"], entry["nas"]["method"]) == ("3d_fullres", "dints")
    assert entry["nas"]["settings"]["code"] == "arch_code.pth"
    assert len(entry["nas"]["settings"]["sha256"]) == 64
    now = Plans(plans(dataset))
    assert now.staleness("3d_fullres_monai") is None
    spec = network_spec(now, "3d_fullres_monai", json.loads((dataset / "dataset.json").read_text()))
    outputs = build_network(spec, deep_supervision=True)(torch.randn(1, 1, 8, 32, 32))
    assert [tuple(output.shape[2:]) for output in outputs] == [(8, 32, 32), (8, 16, 16)]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training needs ")
    assert lines[1] == "next: nnUNetv2_train 11 3d_fullres_monai 0"


def test_operations_that_a_kernel_lacks_become_convolutions(dataset, tmp_path, capsys):
    path = tmp_path / "code.json"
    path.write_text(json.dumps({"arch_code_a": np.ones((2, 7)).tolist(), "arch_code_c": np.full((2, 7), 2).tolist()}))
    assert main(["import_dints", "-d", "11", "-c", "3d_fullres", "-code", str(path), "-first_level", "0"]) == 0
    kwargs = plans(dataset)["configurations"]["3d_fullres_dints_import"]["architecture"]["arch_kwargs"]
    assert (kwargs["first_level"], kwargs["n_stages"]) == (0, 3)
    # The finest level has a kernel of 1x3x3, in which z is nothing to look along; two edges of each layer end there.
    assert kwargs["topology"]["layers"][0]["0->0"] == kwargs["topology"]["layers"][0]["1->0"] == "conv"
    assert kwargs["topology"]["layers"][0]["0->1"] == "yx_z"
    assert "4 operations became plain convolutions" in capsys.readouterr().err


def test_what_was_imported_can_be_listed_and_drawn_and_transferred(dataset, code, capsys, tmp_path):
    assert main(["import_dints", "-d", "11", "-c", "3d_fullres", "-code", str(code)]) == 0
    assert main(["ls", "-d", "11"]) == 0
    assert "3d_fullres_dints_import" in capsys.readouterr().out
    picture = tmp_path / "topology.png"
    assert main(["draw", "-d", "11", "-c", "3d_fullres_dints_import", "-o", str(picture)]) == 0
    assert picture.stat().st_size > 1000
    assert main(["transfer", "-d", "11", "-c", "3d_lowres", "-from", "11:3d_fullres_dints_import"]) == 0
    assert (
        plans(dataset)["configurations"]["3d_lowres_dints_import"]["architecture"]["arch_kwargs"]["final_conv"] is True
    )


@pytest.mark.parametrize(
    ("options", "exit_code", "text"),
    [
        (["-c", "2d"], 4, "must be of 0 and 1 and arch_code_c of numbers below 2 in 2-D"),
        (["-c", "3d_fullres", "-name", "a/b"], 2, "-name a/b"),
        (["-c", "3d_fullres", "-name", ""], 2, "-name"),
        (["-c", "nothing"], 4, "nothing is not in the plans"),
    ],
)
def test_what_does_not_fit_is_refused(dataset, code, capsys, options, exit_code, text):  # noqa: PLR0917
    before = plans(dataset)
    assert main(["import_dints", "-d", "11", "-code", str(code), *options]) == exit_code
    assert text in capsys.readouterr().err
    assert plans(dataset) == before


def test_a_missing_or_deep_code_is_refused(dataset, tmp_path, capsys):
    assert main(["import_dints", "-d", "11", "-c", "3d_fullres", "-code", str(tmp_path / "none.pth")]) == 4
    assert "does not exist" in capsys.readouterr().err
    path = tmp_path / "code.json"
    path.write_text(json.dumps({"arch_code_a": np.ones((2, 10)).tolist(), "arch_code_c": np.ones((2, 10)).tolist()}))
    assert main(["import_dints", "-d", "11", "-c", "3d_fullres", "-code", str(path)]) == 4
    text = "the code has 4 levels, with stage 1 as the finest one the last is stage 4 of the plan, which has 3 stages"
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("n_stages", "3"), ("kernel_sizes", 3), ("features_per_stage", [None])])
def test_a_configuration_that_nnunet_did_not_write_is_one_line(dataset, code, capsys, key, value):
    content = plans(dataset)
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"][key] = value
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    assert main(["import_dints", "-d", "11", "-c", "3d_fullres", "-code", str(code)]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert plans(dataset) == content


def test_names_from_files_do_not_speak_to_the_terminal(dataset, code, tmp_path, capsys):
    content = plans(dataset)
    content["configurations"]["3d\x1b[2J"] = {"inherits_from": "3d_fullres"}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    assert main(["import_dints", "-d", "11", "-c", "3d\x1b[2J", "-code", str(code)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("3d\\x1b[2J_dints_import: added to")
    assert "times what 3d\\x1b[2J does" in printed.err
    assert "next: nnUNetv2_train 11 '3d\\x1b[2J_dints_import' 0\n" in printed.err
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"\x1b[2J": []}))
    assert main(["import_dints", "-d", "11", "-c", "3d_fullres", "-code", str(broken)]) == 4
    refused = capsys.readouterr()
    assert "the code has no arch_code_a, only \\x1b[2J:" in refused.err
    assert "\x1b" not in printed.out + printed.err + refused.err
