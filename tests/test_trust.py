"""Plans name classes; only those of networks are imported, or of packages that the user trusts."""

import json
import subprocess
import sys

import pytest
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_nas.cli.main import main
from nnunet_nas.errors import DataProblem
from nnunet_nas.trust import locate_class


def test_networks_and_their_parts_are_found():
    assert locate_class("torch.nn.LeakyReLU", "nonlin") is nn.LeakyReLU
    assert locate_class("torch.nn.modules.conv.Conv2d", "conv_op") is nn.Conv2d
    name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    assert locate_class(name, "network_class_name") is PlainConvUNet
    assert locate_class("nnunet_nas.iac.network.IACUNet", "network_class_name").__name__ == "IACUNet"


@pytest.mark.parametrize(
    "name",
    [
        "subprocess.Popen",
        "os.system",
        "torch.hub.load",
        "torch.load",
        "torch.nnx.Conv2d",
        "torch.nn.functional.relu",
        "torch.nn.init.torch.os.system",
        "torch.nn.modules.module.Any",
        "nnunet_nas.plans.os.system",
        "nnunet_nas.cli.main.main",
        "dynamic_network_architectures.nowhere.Net",
        "",
        None,
        ["torch.nn.LeakyReLU"],
    ],
)
def test_everything_else_is_refused_by_name(name):
    with pytest.raises(DataProblem, match="^nonlin"):
        locate_class(name, "nonlin")


def test_a_package_that_is_not_trusted_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "strange_networks.py").write_text(
        "from pathlib import Path\nPath(__file__ + '.ran').touch()\nNet = int\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataProblem, match="export NNUNET_NAS_TRUST=strange_networks; otherwise"):
        locate_class("strange_networks.Net", "network_class_name")
    assert not (tmp_path / "strange_networks.py.ran").exists()
    monkeypatch.setenv("NNUNET_NAS_TRUST", "strange_networks")
    assert locate_class("strange_networks.Net", "network_class_name") is int
    sys.modules.pop("strange_networks")


@pytest.mark.parametrize(
    "command",
    [
        ["info", "-d", "11"],
        ["info", "-d", "11", "-c", "2d"],
        ["add_skip", "-d", "11", "-c", "2d", "-m", "attention"],
        ["select_tiny", "-d", "11", "-c", "2d", "-device", "cpu"],
        ["select_tiny", "-d", "11", "-c", "2d", "-device", "cpu", "-rule", "paper"],
        ["transfer", "-d", "11", "-c", "2d", "-from", "11:2d_attention"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("key", ["nonlin", "network_class_name", "norm_op"])
def test_no_command_runs_what_a_strangers_plans_name(dataset, command, key, capsys, monkeypatch):
    if command[0] == "transfer":
        assert main(["add_skip", "-d", "11", "-c", "2d", "-m", "attention"]) == 0
    ran, content = [], json.loads((dataset / "nnUNetPlans.json").read_text())
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: ran.append((args, kwargs)))
    architecture = content["configurations"]["2d"]["architecture"]
    if key == "network_class_name":
        architecture[key] = "subprocess.Popen"
    else:
        architecture["arch_kwargs"][key] = "subprocess.Popen"
        architecture["arch_kwargs"][f"{key}_kwargs"] = {"args": ["true"]}
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    code = main(command)
    printed = capsys.readouterr()
    assert not ran
    assert "subprocess.Popen is not of torch.nn" in printed.err or command[0] == "transfer"
    assert code == (0 if command == ["info", "-d", "11"] else 4)
