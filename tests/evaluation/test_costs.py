"""Costs of compared models: counted as `nnunet_nas info` counts them, measured in turns."""

import contextlib
import itertools
import json
import math
import shutil

import pytest
import torch

from nnunet_nas.architecture import network_spec
from nnunet_nas.complexity import complexity_of
from nnunet_nas.evaluation.costs import Cost, cost_of, precision_on, seconds_per_patch
from nnunet_nas.evaluation.rows import Group
from nnunet_nas.evaluation.summaries import Case, Model
from nnunet_nas.evaluation.tables import COSTS, cost_text
from nnunet_nas.plans import Plans


@pytest.fixture
def model(fake_preprocessed, tmp_path):
    """Makes a model of a configuration, in a folder as nnU-Net leaves it."""
    shutil.copy(fake_preprocessed / "nnUNetPlans.json", tmp_path / "plans.json")
    shutil.copy(fake_preprocessed / "dataset.json", tmp_path / "dataset.json")

    def make(configuration, home=tmp_path):
        nowhere = tmp_path / "a.nii.gz"
        cases = {"a": Case("a", "", nowhere, nowhere, {"1": {}})}
        description = json.loads((fake_preprocessed / "dataset.json").read_text())
        return Model(f"m_{configuration}", home, configuration, cases, dataset_json=description)

    return make


def test_costs_are_those_of_the_plans(model, fake_preprocessed):
    plans, dataset = (
        json.loads((fake_preprocessed / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json")
    )
    spec = network_spec(Plans(plans), "2d", dataset)
    found = cost_of(model("2d"))
    assert found == Cost(spec, complexity_of(spec))
    assert found.to_json()["patch_size"] == [32, 32]


@pytest.mark.parametrize(
    ("configuration", "has_home", "reason"),
    [("2d", False, "no plans.json"), (None, True, "no folder named after"), ("4d", True, "4d is not in the plans")],
)
def test_unknown_costs_say_why(model, tmp_path, configuration, has_home, reason):
    found = cost_of(model(configuration, tmp_path if has_home else None))
    assert found.to_json() is None
    assert f"the costs of m_{configuration} are unknown" in found.problem
    assert reason in found.problem


def test_the_table_shows_shares_of_the_first_model(model):
    group = Group("", "", [model("2d"), model("3d_fullres"), model(None)], [])
    header, rows = cost_text(group, [cost_of(one) for one in group.models])
    assert header == [column.heading for column in COSTS]
    parameters = [int(row[3].replace(",", "")) for row in rows[:2]]
    assert rows[0][4] == ""
    assert rows[1][4] == f"{parameters[1] / parameters[0]:.3g}x"
    assert rows[2] == ["C", "-", *["-"] * 7]
    # The other way round it is a part.
    _, rows = cost_text(Group("", "", group.models[1::-1], []), [cost_of(one) for one in group.models[1::-1]])
    assert rows[1][4] == f"1/{parameters[1] / parameters[0]:.3g}"


def test_time_is_the_median_of_alternating_passes(model):
    # A clock whose steps are 1, 2, 3, ...: each pass reads it twice, before and after.
    clock = itertools.accumulate(itertools.count(1))
    specs = [cost_of(model("2d")).spec] * 2
    seconds = seconds_per_patch(specs, torch.device("cpu"), repeats=3, clock=lambda: float(next(clock)))
    # Passes take 2, 4, 6, ... in turn; the first two of each network do not count: 10, 14, 18 and 12, 16, 20.
    assert seconds == [14.0, 16.0]


def test_time_is_measured_in_the_precision_that_nnunet_predicts_in(model, monkeypatch):
    entered = []

    @contextlib.contextmanager
    def recorded(device):
        entered.append(device)
        with torch.autocast(device.type, torch.bfloat16):
            yield

    found = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: found.append(output))
    monkeypatch.setattr("nnunet_nas.evaluation.costs.half_precision", recorded)
    seconds_per_patch([cost_of(model("2d")).spec], torch.device("cpu"), repeats=1)
    hook.remove()
    assert entered == [torch.device("cpu")]
    assert found[-1].dtype == torch.bfloat16
    assert precision_on(torch.device("cuda")) == "float16 under autocast"
    assert precision_on(torch.device("mps")) == precision_on(torch.device("cpu")) == "float32"


def test_time_is_really_measured(model):
    (seconds,) = seconds_per_patch([cost_of(model("2d")).spec], torch.device("cpu"), repeats=2)
    assert 0 < seconds < math.inf
