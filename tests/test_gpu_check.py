"""The checks for machines with a GPU, on one without: what they see, what they say, and what they pass over."""

import json
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from nnunet_nas.cli.main import main
from nnunet_nas.errors import EnvironmentProblem
from nnunet_nas.gpu_check import agreement, checks
from nnunet_nas.gpu_check.networks import Subject
from nnunet_nas.gpu_check.outcome import Outcome, guarded, judged
from nnunet_nas.gpu_check.workplace import finish, trainers

CPU = torch.device("cpu")
METHODS_HERE = tuple(trainers())
OF_CARDS = ("peak memory of a step", "waits of the host in forward and backward")


class Norm(nn.Module):
    """A batch norm that activates, which torch's conversion for several GPUs does not know."""

    class Joint(nn.BatchNorm2d):
        def forward(self, x):
            return torch.relu(super().forward(x))

    def __init__(self):
        super().__init__()
        self.norm = self.Joint(1)

    def forward(self, x):
        return [self.norm(x)]


class Reads(nn.Module):
    """A network that asks the card for a number."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        y = self.conv(x)
        return [y if y.sum().item() > 0 else -y]


def only(monkeypatch, build):
    monkeypatch.setattr(agreement, "subjects", lambda **_: iter([Subject("one", build, (2, 1, 8, 8))]))


def test_a_network_that_differs_fails(monkeypatch):
    seeds = iter(range(10))

    def other_each_time():
        torch.manual_seed(next(seeds))
        return nn.Sequential(nn.Conv2d(1, 2, 3))

    only(monkeypatch, other_each_time)
    (found,) = agreement.check_networks(CPU, quick=True)
    assert found.status == "failed"


def test_one_and_several_threads_agree(monkeypatch):
    before = torch.get_num_threads()
    found = list(agreement.check_scores(CPU))
    assert [outcome.status for outcome in found] == ["ok", "ok"]
    assert torch.get_num_threads() == before


def test_a_norm_that_loses_its_activation_fails(monkeypatch):
    only(monkeypatch, Norm)
    (found,) = agreement.check_several_gpus_network(quick=True)
    assert found.status == "failed"


def test_a_number_read_inside_a_step_fails(monkeypatch):
    only(monkeypatch, Reads)
    (found,) = guarded("half", lambda: agreement.check_half_precision_without_a_card(quick=True))
    assert found.status == "failed"
    assert "DataDependentOutputException" in found.found


def test_what_needs_cards_is_skipped_by_name_and_failures_decide_the_exit_code(monkeypatch, capsys):
    groups = {
        "norms": checks.Group(lambda: iter([judged("one", "1", "2", passed=False)])),
        "scores": checks.Group(lambda: iter([judged("two", "2", "2", passed=True)])),
        "busy": checks.Group(lambda place: iter(()), cards=1, data=True),
        "two_gpus": checks.Group(lambda place: iter(()), cards=2, data=True),
    }
    monkeypatch.setattr(checks, "groups", lambda device, *, quick: groups)
    assert main(["gpu_check", "-device", "cpu", "--json"]) == 1
    outcomes = json.loads(capsys.readouterr().out)["outcomes"]
    assert [outcome["status"] for outcome in outcomes] == ["failed", "ok", "skipped", "skipped"]
    assert outcomes[3]["expected"] == "a machine with 2 CUDA GPUs"
    assert main(["gpu_check", "-device", "cpu", "-only", "scores", "two_gpus"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "ok      two: 2 (expected: 2)"
    assert printed[-1].endswith("2 checks, 0 failed, 1 skipped")


def test_an_outcome_is_told_before_the_next_is_looked_for(monkeypatch, capsys):
    told = []

    def two():
        print("nnU-Net talks")
        yield judged("first", "1", "1", passed=True)
        assert [outcome.name for outcome in told] == ["first"]
        yield judged("second", "1", "1", passed=True)

    monkeypatch.setattr(checks, "groups", lambda device, *, quick: {"norms": checks.Group(two)})
    outcomes = checks.run(CPU, (), quick=True, tell=told.append)
    assert outcomes == told
    assert [outcome.status for outcome in outcomes] == ["ok", "ok"]
    assert capsys.readouterr() == ("", "nnU-Net talks\n")


def test_a_command_that_does_not_end_is_ended():
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with pytest.raises(EnvironmentProblem, match="not done after 0 s, and was ended"):
        finish(process, seconds=0.1)
    assert process.returncode is not None


def test_the_names_that_choose_are_those_of_the_table():
    assert tuple(checks.groups(CPU, quick=True)) == checks.NAMES


def test_unknown_names_and_devices_that_are_not_here_are_refused(capsys):
    assert main(["gpu_check", "-device", "cpu", "-only", "speed"]) == 2
    assert "use doctor, networks" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["gpu_check"]) == 3


@pytest.mark.integration
def test_the_command_on_a_cpu(capsys):
    assert main(["gpu_check", "-device", "cpu", "--quick", "-only", "norms", "steps", "busy", "--json"]) == 0
    outcomes = [Outcome(**each) for each in json.loads(capsys.readouterr().out)["outcomes"]]
    names = [outcome.name for outcome in outcomes if outcome.status == "ok"]
    for method in METHODS_HERE:
        assert any(name.startswith(f"{method}: 2 steps on cpu") for name in names), method
    skipped = {outcome.name: outcome.expected for outcome in outcomes if outcome.status == "skipped"}
    of_cards = [f"{method}: {what}" for method in METHODS_HERE for what in OF_CARDS]
    assert list(skipped) == [*of_cards, "busy"]
    for method in METHODS_HERE:
        predicted = re.fullmatch(r"within 15% of the (\d+) MiB predicted", skipped[f"{method}: {OF_CARDS[0]}"])
        assert 0 < int(predicted[1]) < 1000
