"""`nnunet_nas add_width`: nnU-Net's own network, as wide as a limit allows, as a plans configuration."""

import json
import math
import sys
from types import ModuleType

import pytest
import torch

from nnunet_nas.architecture import build_network, network_spec
from nnunet_nas.cli.main import main
from nnunet_nas.complexity import complexity_of
from nnunet_nas.plans import Plans
from nnunet_nas.training_cost import training_memory
from nnunet_nas.widths import planned_features, with_width

BOTH = pytest.mark.parametrize("plans", ["nnUNetPlans", "nnUNetResEncUNetMPlans"])


def read(dataset, plans="nnUNetPlans"):
    return json.loads((dataset / f"{plans}.json").read_text())


def spec_of(dataset, name, plans="nnUNetPlans"):
    return network_spec(Plans.of(dataset, plans), name)


def memory(spec):
    return training_memory(spec).total


def macs(spec):
    return complexity_of(spec).macs


def next_wider(width):
    """After a width that a limit allows: one channel more, or eight from 16 on."""
    return width + 1 if width < 16 else width + 8


@pytest.fixture
def add(dataset, capsys):
    """Calls the command on the data set; returns exit code, standard output and lines of standard error."""

    def call(*words, plans="nnUNetPlans", configuration="2d"):
        capsys.readouterr()
        chosen = [] if plans == "nnUNetPlans" else ["-p", plans]
        code = main(["add_width", "-d", "11", "-c", configuration, *chosen, *words])
        output = capsys.readouterr()
        return code, output.out, output.err.splitlines()

    return call


@BOTH
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_nnunet_builds_the_widest_network_within_a_limit_of_memory(add, dataset, plans, configuration):
    before, base = read(dataset, plans), spec_of(dataset, configuration, plans)
    limit = 2.1 * memory(base)
    code, out, err = add("-memory_limit_mib", str(limit), plans=plans, configuration=configuration)
    (name,) = set(read(dataset, plans)["configurations"]) - set(before["configurations"])
    width = int(name.removeprefix(f"{configuration}_w"))
    assert width > 16
    assert width % 8 == 0
    assert (code, out) == (0, f"{name}: added to plans {plans} of Dataset011_Fake\n")
    # The base has 16, 32 and 32 channels.
    features = [width, 2 * width, 2 * width]
    assert err[0].startswith(f"channels of the stages {' '.join(map(str, features))}, the widest within the ")
    option = "" if plans == "nnUNetPlans" else f" -p {plans}"
    assert err[-2:] == [
        f"next: nnUNetv2_train 11 {name} 0{option}",
        f"next: nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d 11 -c {name} -f 0{option}",
    ]
    spec = spec_of(dataset, name, plans)
    assert memory(spec) <= limit < memory(with_width(base, next_wider(width)))
    network = build_network(spec, seed=0, deep_supervision=True)
    assert type(network) is type(build_network(base))
    assert [stage.output_channels for stage in _stages(network)] == features
    outputs = network(torch.randn(2, spec.input_channels, *spec.patch_size))
    assert outputs[0].shape == (2, 2, *spec.patch_size)
    after = read(dataset, plans)
    entry = after["configurations"].pop(name)
    assert after == before
    assert (entry["inherits_from"], entry["nas"]["method"]) == (configuration, "width")
    unit = {"unit": "MiB of training memory", "multiple_of": 8}
    assert entry["nas"]["settings"] == {"width": width, "limit": limit, **unit}
    assert Plans.of(dataset, plans).staleness(name) is None


def _stages(network):
    """Of the encoder; in the plain one each is a sequence that ends in its convolutions."""
    return [stage[-1] if isinstance(stage, torch.nn.Sequential) else stage for stage in network.encoder.stages]


def test_operations_are_a_limit_too_and_another_one(add, dataset):
    base = spec_of(dataset, "2d")
    assert add("-macs", f"{3 * macs(base):.6e}")[0] == 0
    assert add("-memory_limit_mib", str(3 * memory(base)))[0] == 0
    by_macs, by_memory = list(read(dataset)["configurations"])[-2:]
    spec = spec_of(dataset, by_macs)
    width = planned_features(spec)[0]
    assert macs(spec) <= 3 * macs(base) < macs(with_width(base, next_wider(width)))
    # Multiply-accumulates grow with the square of the width, activations with the width.
    assert 16 < width < planned_features(spec_of(dataset, by_memory))[0]


def test_channels_are_whole_eights_unless_the_exact_width_is_asked_for(add, dataset):
    base = spec_of(dataset, "2d")
    limit = str((macs(with_width(base, 43)) + macs(with_width(base, 44))) / 2)
    rounded, exact = (json.loads(add("-macs", limit, *words, "--json")[1]) for words in ([], ["--exact"]))
    assert [rounded["configuration"], exact["configuration"]] == ["2d_w40", "2d_w43"]
    assert rounded["architecture"]["arch_kwargs"]["features_per_stage"] == [40, 80, 80]
    assert exact["architecture"]["arch_kwargs"]["features_per_stage"] == [43, 86, 86]
    assert (rounded["nas"]["settings"]["multiple_of"], "multiple_of" in exact["nas"]["settings"]) == (8, False)
    assert add("-width", "35")[0] == 0
    assert "2d_w35" in read(dataset)["configurations"]


def test_another_configuration_is_the_limit_and_its_control_costs_all_of_it(add, dataset):
    assert add("-width", "27")[0] == 0
    assert main(["add_skip", "-d", "11", "-c", "2d_w27", "-m", "conv"]) == 0
    wanted = spec_of(dataset, "2d_w27_conv")
    for option, cost in (("-as", memory), ("-as_macs", macs)):
        code, out, err = add(option, "2d_w27_conv", "--json")
        added = json.loads(out)
        width = added["architecture"]["arch_kwargs"]["features_per_stage"][0]
        assert (code, added["configuration"]) == (0, f"2d_w{width}")
        settings = added["nas"]["settings"]
        assert settings["as"] == "2d_w27_conv"
        assert "multiple_of" not in settings
        assert " of 2d_w27_conv" in err[0]
        base = spec_of(dataset, "2d")
        assert cost(with_width(base, width)) <= cost(wanted) < cost(with_width(base, width + 1))


def test_what_is_trained_in_a_frozen_backbone_needs_less_memory(add, dataset):
    """Configurations of searched cells are compared as the retrofit trains them."""
    assert main(["add_skip", "-d", "11", "-c", "2d", "-m", "conv"]) == 0
    content = read(dataset)
    content["configurations"]["2d_conv"]["nas"]["method"] = "iac_lth"
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    frozen = training_memory(spec_of(dataset, "2d_conv"), frozen=True).total
    assert frozen < memory(spec_of(dataset, "2d_conv"))
    settings = json.loads(add("-as", "2d_conv", "--json")[1])["nas"]["settings"]
    assert settings["limit"] == frozen


@pytest.mark.parametrize("words", [("-width", "16"), ("-as", "2d"), ("-as_macs", "2d")])
def test_the_base_itself_is_said_and_nothing_added(add, dataset, words):
    before = (dataset / "nnUNetPlans.json").read_bytes()
    code, out, err = add(*words)
    assert (code, out) == (0, "2d itself has 16 channels at the finest stage: nothing was added\n")
    assert err[-2] == "next: nnUNetv2_train 11 2d 0"
    listed = json.loads(add(*words, "--json")[1])
    assert (listed["configuration"], listed["architecture"]) == ("2d", spec_of(dataset, "2d").architecture)
    assert (dataset / "nnUNetPlans.json").read_bytes() == before


@BOTH
def test_below_the_narrowest_it_says_what_the_least_is(add, dataset, plans):
    before = (dataset / f"{plans}.json").read_bytes()
    base = spec_of(dataset, "2d", plans)
    least = math.ceil(memory(with_width(base, 1)))
    code, out, err = add("-memory_limit_mib", "0.01", plans=plans)
    assert (code, out) == (5, "")
    assert err == [
        f"nnunet_nas add_width: the narrowest network, 1 at the finest stage, needs {least} MiB of training memory: "
        f"a limit of 0.01 must be raised to that"
    ]
    least = macs(with_width(base, 1))
    assert f" needs {least} multiply-accumulates" in add("-macs", str(least - 1), plans=plans)[2][0]
    assert (dataset / f"{plans}.json").read_bytes() == before
    # What it asks for is enough.
    assert add("-macs", str(least), plans=plans)[0] == 0
    assert read(dataset, plans)["configurations"]["2d_w1"]["architecture"]["arch_kwargs"]["features_per_stage"][0] == 1


def test_added_again_it_stays_and_other_content_needs_overwrite(add, dataset, nnunet_folders):
    assert add("-width", "24")[0] == 0
    before = (dataset / "nnUNetPlans.json").read_bytes()
    # Reached by another question, it is the same network.
    code, out, _ = add("-as", "2d_w24")
    assert (code, out) == (0, "2d_w24: already in plans nnUNetPlans of Dataset011_Fake\n")
    assert (dataset / "nnUNetPlans.json").read_bytes() == before
    content = json.loads(before)
    content["configurations"]["2d_w24"]["architecture"]["arch_kwargs"]["features_per_stage"] = [24, 24, 24]
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    code, _, (error,) = add("-width", "24")
    assert code == 4
    assert "2d_w24 exists" in error
    trained = nnunet_folders / "nnUNet_results" / dataset.name / "nnUNetTrainer__nnUNetPlans__2d_w24"
    trained.mkdir(parents=True)
    code, _, (error,) = add("-width", "24", "--overwrite")
    assert code == 4
    assert "2d_w24 is not replaced because it was trained" in error
    trained.rmdir()
    assert add("-width", "24", "--overwrite")[0] == 0
    assert (dataset / "nnUNetPlans.json").stat().st_size == len(before)


def test_separate_plans(add, dataset):
    before = (dataset / "nnUNetPlans.json").read_bytes()
    code, _, err = add("-width", "24", "-o", "widePlans")
    assert (code, err[-2]) == (0, "next: nnUNetv2_train 11 2d_w24 0 -p widePlans")
    assert "2d_w24" in read(dataset, "widePlans")["configurations"]
    assert (dataset / "nnUNetPlans.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-as", "nowhere"], 4, "configuration nowhere is not in the plans"),
        (["-width", "0"], 2, "-width 0: give channels of the finest stage, 1 to 8192"),
        (["-width", "8193"], 2, "-width 8193: give channels"),
        (
            ["-memory_limit_mib", "1e12"],
            2,
            "8192 channels at the finest stage need less than 1e+12 MiB of training mem",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(add, dataset, words, code, message):
    before = (dataset / "nnUNetPlans.json").read_bytes()
    actual, out, (error,) = add(*words)
    assert (actual, out) == (code, "")
    assert message in error
    assert (dataset / "nnUNetPlans.json").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-width", "24", "-as", "2d"],
        ["-memory_limit_mib", "0"],
        ["-macs", "-5"],
        ["-macs", "nan"],
        ["-macs", "inf"],
        ["-width", "2.5"],
    ],
)
def test_a_call_without_one_question_is_wrong(add, words):
    with pytest.raises(SystemExit) as stop:
        add(*words)
    assert stop.value.code == 2


def test_other_networks_are_refused(add, dataset):
    assert main(["add_skip", "-d", "11", "-c", "2d", "-m", "attention"]) == 0
    code, _, (error,) = add("-width", "24", configuration="2d_attention")
    assert code == 4
    assert "configuration 2d_attention: its network is SkipModuleUNet, not nnU-Net's PlainConvUNet or" in error


def test_stale_configurations_are_refused(add, dataset):
    assert add("-width", "24")[0] == 0
    content = read(dataset)
    content["configurations"]["2d"]["batch_size"] = 3
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    for words, configuration in ((["-as", "2d_w24"], "2d"), (["-width", "8"], "2d_w24")):
        code, _, (error,) = add(*words, configuration=configuration)
        assert code == 4
        assert "configuration 2d_w24 is stale" in error


def test_norms_of_groups_are_kept_whole(add, dataset, monkeypatch):
    """Of groups of four channels, widths are multiples of four."""

    class InFours(torch.nn.GroupNorm):
        def __init__(self, channels):
            if channels % 4:
                raise ValueError(f"{channels} channels are no groups of 4")
            super().__init__(channels // 4, channels)

    module = ModuleType("norms_in_fours")
    module.InFours, InFours.__module__ = InFours, "norms_in_fours"
    monkeypatch.setitem(sys.modules, "norms_in_fours", module)
    monkeypatch.setenv("NNUNET_NAS_TRUST", "norms_in_fours")
    content = read(dataset)
    kwargs = content["configurations"]["2d"]["architecture"]["arch_kwargs"]
    kwargs.update(norm_op="norms_in_fours.InFours", norm_op_kwargs={})
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    base = spec_of(dataset, "2d")
    limit = (memory(with_width(base, 24)) + memory(with_width(base, 28))) / 2
    assert json.loads(add("-memory_limit_mib", str(limit), "--json")[1])["configuration"] == "2d_w24"
    code, _, (error,) = add("-memory_limit_mib", "0.01")
    assert code == 5
    assert "the narrowest network, 4 at the finest stage" in error
    code, _, (error,) = add("-width", "22")
    assert code == 4
    assert "22 channels are no groups of 4" in error


def test_a_found_topology_has_its_control_named_and_the_call_gives_it(dataset, tmp_path, capsys):
    code = tmp_path / "code.json"
    code.write_text(json.dumps({"arch_code_a": [[1] * 7] * 2, "arch_code_c": [[1] * 7] * 2}))
    words = ["-code", str(code), "-name", "_dints", "-first_level", "0"]
    assert main(["import_dints", "-d", "11", "-c", "3d_fullres", *words]) == 0
    control = "nnunet_nas add_width -d 11 -c 3d_fullres -as 3d_fullres_dints"
    for command in (["info", "-d", "11"], ["ls", "-d", "11"]):
        capsys.readouterr()
        assert main(command) == 0
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("control: ")]
        assert lines == [f"control: {control}"], command
    assert main(control.split()[1:]) == 0
    added = list(read(dataset)["configurations"])[-1]
    found, base = spec_of(dataset, "3d_fullres_dints"), spec_of(dataset, "3d_fullres")
    width = planned_features(spec_of(dataset, added))[0]
    assert memory(with_width(base, width)) <= memory(found) < memory(with_width(base, next_wider(width)))
    content = read(dataset)
    content["configurations"]["3d_fullres"]["batch_size"] = 3
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    for command in (["info", "-d", "11"], ["ls", "-d", "11"]):
        capsys.readouterr()
        assert main(command) == 0
        assert "control: " not in capsys.readouterr().err, command
