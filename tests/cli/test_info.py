"""`nnunet_nas info`: what configurations cost, and what it says of those that it cannot count."""

import hashlib
import json

import pytest

from nnunet_nas.cli.main import main


@pytest.fixture
def info(dataset, capsys):
    """Calls the command on the data set; returns exit code, standard output and standard error."""

    def call(*arguments, name="11"):
        try:
            code = main(["info", "-d", name, *map(str, arguments)])
        except SystemExit as end:
            code = end.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=4))


def convolutions(features, inputs=1, classes=2):
    """(inputs, outputs, weights per filter, voxels) of every convolution of the 2-D network, by hand.

    Three stages of two 3 x 3 convolutions at 32, 16 and 8 pixels; on the way up a transposed 2 x 2 convolution, two
    3 x 3 convolutions, the first of them on the concatenation, and a 1 x 1 head for each resolution.
    """
    sizes = [32 * 32, 16 * 16, 8 * 8]
    layers = []
    for channels, size in zip(features, sizes, strict=True):
        layers += [(inputs, channels, 9, size), (channels, channels, 9, size)]
        inputs = channels
    for stage in (1, 0):
        channels, below = features[stage], features[stage + 1]
        # A transposed convolution multiplies each voxel that it reads with each of its 2 x 2 weights.
        layers += [(below, channels, 4, sizes[stage + 1])]
        layers += [(2 * channels, channels, 9, sizes[stage]), (channels, channels, 9, sizes[stage])]
        layers += [(channels, classes, 1, sizes[stage])]
    return layers


def expected(features):
    layers = convolutions(features)
    weights = sum(inputs * outputs * kernel + outputs for inputs, outputs, kernel, _ in layers)
    # Scale and shift of the instance norm behind each of the two convolutions per stage and decoder stage.
    norms = sum(2 * 2 * channels for channels in [*features, features[1], features[0]])
    macs = sum(inputs * outputs * kernel * size for inputs, outputs, kernel, size in layers)
    # Without deep supervision nnU-Net computes the head of the highest resolution only.
    return weights + norms, macs - features[1] * 2 * 16 * 16


def test_parameters_and_macs_are_those_counted_by_hand(info):
    code, out, err = info("-c", "2d", "--json")
    (row,) = json.loads(out)["configurations"]
    parameters, macs = expected([16, 32, 32])
    assert (code, err) == (0, "")
    assert (row["configuration"], row["patch_size"]) == ("2d", [32, 32])
    assert (row["parameters"], row["macs"], row["flops"]) == (parameters, macs, 2 * macs)
    # Float32 weights and one momentum each.
    assert row["checkpoint_mib"] == pytest.approx(8 * parameters / 2**20)
    assert 0 < row["inference_mib"] < row["training_mib"]
    memory = row["to_train"]
    # Float32 weights, gradients and momentum, and of two patches what is kept of one, with deep supervision.
    assert memory["weights_mib"] == memory["gradients_mib"] == memory["momentum_mib"] == 4 * parameters / 2**20
    assert memory["batch_size"] == 2
    assert 2 * row["training_mib"] <= memory["activations_mib"] < 2.2 * row["training_mib"]
    assert memory["total_mib"] == pytest.approx(memory["activations_mib"] + 12 * parameters / 2**20)
    assert "nnunet" not in memory


def test_all_configurations_are_counted_in_the_order_of_the_plans(info):
    code, out, err = info("--json")
    listing = json.loads(out)
    rows = {row["configuration"]: row for row in listing["configurations"]}
    assert (code, err) == (0, "")
    assert (listing["dataset"], listing["plans"]) == ("Dataset011_Fake", "nnUNetPlans")
    assert list(rows) == ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres", "2d_bs4"]
    memory, twice = (rows[name].pop("to_train") for name in ("2d", "2d_bs4"))
    assert {**rows["2d_bs4"], "configuration": "2d"} == rows["2d"]
    assert twice["activations_mib"] == 2 * memory["activations_mib"]
    # The second stage of a cascade sees one more channel, the label of the first: 16 filters of 1 x 3 x 3.
    assert rows["3d_cascade_fullres"]["parameters"] - rows["3d_fullres"]["parameters"] == 16 * 9


def test_the_table_says_the_same(info):
    row = json.loads(info("-c", "2d", "--json")[1])["configurations"][0]
    code, out, _ = info("-c", "2d")
    header, _, line = out.splitlines()
    assert code == 0
    assert header.split()[:2] == ["configuration", "patch"]
    assert line.split()[:3] == ["2d", "32x32", f"{row['parameters']:,}"]
    assert f"{row['macs'] / 1e9:.3f} G" in line


def test_what_a_derived_configuration_needs_stands_beside_nnunets_own(info, capsys):
    assert main(["add_skip", "-d", "11", "-c", "2d", "-m", "attention"]) == 0
    capsys.readouterr()
    own, derived = json.loads(info("-c", "2d", "2d_attention", "--json")[1])["configurations"]
    beside = derived["to_train"]["nnunet"]
    assert (beside["configuration"], beside["total_mib"]) == ("2d", own["to_train"]["total_mib"])
    assert beside["times"] == pytest.approx(derived["to_train"]["total_mib"] / own["to_train"]["total_mib"])
    assert beside["times"] > 1
    header, _, _, line = info("-c", "2d", "2d_attention")[1].splitlines()
    assert "MiB to train" in header
    assert f"{derived['to_train']['total_mib']:.0f} ({beside['times']:.2f}x)" in line


def test_residual_encoders_are_counted(info):
    code, out, _ = info("-p", "nnUNetResEncUNetMPlans", "-c", "2d", "--json")
    (row,) = json.loads(out)["configurations"]
    assert code == 0
    assert row["parameters"] > expected([16, 32, 32])[0]


def test_nothing_is_written(info, nnunet_folders):
    def listing():
        files = [path for path in nnunet_folders.rglob("*") if path.is_file()]
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = listing()
    assert info("-c", "2d")[0] == 0
    assert listing() == before


def test_data_need_not_be_preprocessed(info, dataset):
    for path in (dataset / "nnUNetPlans_2d").iterdir():
        path.unlink()
    assert info("-c", "2d")[0] == 0


def test_a_stale_configuration_is_counted_and_said_to_be_stale(info, dataset):
    edit(
        dataset / "nnUNetPlans.json",
        lambda plans: plans["configurations"].update(
            {"2d_old": {"inherits_from": "2d", "nas": {"base_digest": "sha256:0"}}}
        ),
    )
    code, out, err = info("-c", "2d_old", "--json")
    assert (code, len(json.loads(out)["configurations"])) == (0, 1)
    assert err == "2d_old is stale: its base 2d has changed since it was derived (planned again?); derive it again\n"


UNFIT = {
    "class": ({"architecture": {"network_class_name": "a.B", "arch_kwargs": {}, "_kw_requires_import": []}}, "a.B"),
    "patch": ({"patch_size": [30, 30]}, "cannot process its patch size 30x30"),
    "no architecture": ({"architecture": None}, "no network that nnU-Net could build"),
    "arguments": (
        {"architecture": {"network_class_name": "a.B", "arch_kwargs": 1.5, "_kw_requires_import": []}},
        "architecture.arch_kwargs of the configuration must be an object, not 1.5",
    ),
    "classes": (
        {"architecture": {"network_class_name": None, "arch_kwargs": {}, "_kw_requires_import": []}},
        "architecture.network_class_name of the configuration must be text, not None",
    ),
    "names to import": (
        {"architecture": {"network_class_name": "a.B", "arch_kwargs": {}, "_kw_requires_import": [["conv_op"]]}},
        "architecture._kw_requires_import of the configuration must be a list of names",
    ),
    "batch": ({"batch_size": 0}, "must be two or three numbers from 1 to 2147483647, and batch_size one, not"),
    "huge batch": ({"batch_size": 10**400}, "must be two or three numbers"),
    "large batch": ({"batch_size": 2**31 - 1, "patch_size": [2**16, 2**16]}, "cannot process"),
    "line": ({"patch_size": [32]}, "must be two or three numbers"),
    "imports": (
        {"architecture": {"network_class_name": "a.B", "arch_kwargs": {}, "_kw_requires_import": 7}},
        "architecture._kw_requires_import of the configuration must be a list, not 7",
    ),
}


@pytest.mark.parametrize(("change", "fragment"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_counted_is_left_out_and_said(info, dataset, change, fragment):
    edit(
        dataset / "nnUNetPlans.json",
        lambda plans: plans.update(
            configurations={"2d": plans["configurations"]["2d"], "bad": {"inherits_from": "2d"}}
        ),
    )
    edit(dataset / "nnUNetPlans.json", lambda plans: plans["configurations"]["bad"].update(change))
    code, out, err = info("--json")
    assert (code, [row["configuration"] for row in json.loads(out)["configurations"]]) == (0, ["2d"])
    assert len(err.splitlines()) == 1
    assert err.startswith("bad is left out: ")
    assert fragment in err
    # Asked for by name it is an error.
    code, out, err = info("-c", "2d", "bad")
    assert (code, out, len(err.splitlines())) == (4, "", 1)
    assert fragment in err


def refused(call, code, fragment):
    actual, out, err = call()
    assert (actual, out, len(err.splitlines())) == (code, "", 1)
    assert err.startswith("nnunet_nas info: ")
    assert fragment in err


def test_an_unset_variable_is_named(info, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    refused(info, 3, "nnUNet_preprocessed is not set")


def test_unknown_things_are_named(info):
    refused(lambda: info(name="12"), 4, "data set 12 is not in nnUNet_preprocessed")
    refused(lambda: info(name="Fake"), 2, "-d Fake is neither a number nor a name")
    refused(lambda: info("-p", "myPlans"), 4, "myPlans.json does not exist")
    refused(lambda: info("-c", "2d", "4d"), 4, "configuration 4d is not in the plans")


@pytest.mark.parametrize("content", [b"", b'{"plans_name": "nnUNetPl', b"[]", b"{}"])
def test_broken_plans_are_said(info, dataset, content):
    (dataset / "nnUNetPlans.json").write_bytes(content)
    refused(info, 4, "nnUNetv2_plan_experiment -d 11")


def test_a_missing_dataset_json_is_said(info, dataset):
    (dataset / "dataset.json").unlink()
    refused(info, 4, "dataset.json does not exist")


def test_cells_stand_beside_their_backbone(info, dataset):
    def add_cells(plans):
        base = plans["configurations"]["2d"]["architecture"]
        inputs = {str(node): {"0": "sep_conv_3", "1": "identity"} for node in range(2, 6)}
        cells = {"genotype": inputs, "widths": [4, 8]}
        plans["configurations"]["2d_iaclth"] = {
            "inherits_from": "2d",
            "architecture": {
                **base,
                "network_class_name": "nnunet_nas.iac.network.IACUNet",
                "arch_kwargs": {**base["arch_kwargs"], "backbone": base["network_class_name"], "cells": cells},
            },
            "nas": {"method": "iac_lth", "base_digest": ""},
        }

    edit(dataset / "nnUNetPlans.json", add_cells)
    plain, own = json.loads(info("-c", "2d", "2d_iaclth", "--json")[1])["configurations"]
    assert "backbone" not in plain
    beside = own["backbone"]
    assert beside["configuration"] == "2d"
    assert beside["parameters"] == pytest.approx(own["parameters"] / plain["parameters"])
    assert beside["macs"] == pytest.approx(own["macs"] / plain["macs"])
    # The cells' three passes and less than two of the backbone's, whose weights get no gradients.
    assert 0 < beside["step_macs"] < beside["macs"]
    header, _, first, second = info("-c", "2d", "2d_iaclth")[1].splitlines()
    assert "beside the backbone" in header
    assert first.split()[-1] == "-"
    assert second.split()[-3:] == [f"{beside[key]:.2f}x" for key in ("parameters", "macs", "step_macs")]


@pytest.mark.parametrize(
    "entry", [None, [], {"inherits_from": ["2d"]}, {"inherits_from": "2d", "patch_size": [10**30, 8]}]
)
def test_a_configuration_that_is_sick_is_left_out_and_named(info, dataset, entry):
    edit(dataset / "nnUNetPlans.json", lambda plans: plans["configurations"].update(sick=entry))
    code, output, errors = info()
    assert code == 0
    assert "\n2d " in output
    assert "sick is left out" in errors
    assert info("-c", "sick")[0] == 4


def set_search(method, *words):
    from nnunet_nas.cli.main import main as command

    assert command(["set_search", "-d", "11", "-c", "2d", "-m", method, *words]) == 0


def test_searches_that_the_plans_have_settings_for_are_predicted(info, capsys):
    assert "searches" not in json.loads(info("-c", "2d", "--json")[1])["configurations"][0]
    set_search("schedule", "num_epochs=10")
    set_search("iac_lth", "num_epochs=20", "num_iterations_per_epoch=5", "trial_iterations=0")
    set_search("iac_retrofit", "num_epochs=1")  # 2d has no cells to train
    capsys.readouterr()
    plain, cells = json.loads(info("-c", "2d", "--json")[1])["configurations"][0]["searches"][::-1]
    assert (plain["method"], plain["iterations"], plain["plain_iterations"]) == ("schedule", 2500, 2500)
    assert (cells["method"], cells["iterations"]) == ("iac_lth", 100)
    table = info("-c", "2d")[1].splitlines()[4:]
    assert table[0].split()[:3] == ["configuration", "method", "iterations"]
    assert [line.split()[:3] for line in table[2:]] == [["2d", "iac_lth", "100"], ["2d", "schedule", "2,500"]]


def test_a_search_and_the_retrofit_of_what_it_finds_are_added_up(info):
    _, out, _ = info("-c", "2d", "-m", "iac_lth", "dints", "--json")
    cells, topology = json.loads(out)["configurations"][0]["searches"]
    assert cells["retrofit"]["method"] == "iac_retrofit"
    assert cells["retrofit"]["iterations"] == 100 * 250
    both = cells["default_trainings"] + cells["retrofit"]["default_trainings"]
    assert cells["default_trainings_with_retrofit"] == pytest.approx(both)
    assert "retrofit" not in topology
    header, _, first, second = info("-c", "2d", "-m", "iac_lth", "dints")[1].splitlines()[4:]
    assert header.endswith("with its retrofit")
    assert (first.split()[-1], second.split()[-1]) == (f"{both:.3f}", "-")


def test_a_search_is_predicted_before_there_are_settings(info):
    code, out, err = info("-c", "2d", "-m", "dints", "iac_retrofit", "--json")
    (found,) = json.loads(out)["configurations"][0]["searches"]
    assert (code, err, found["method"], found["iterations"]) == (0, "", "dints", 84 * 250)


def test_a_distillation_counts_its_teacher(info, capsys):
    assert main(["add_width", "-d", "11", "-c", "2d", "-width", "8"]) == 0
    capsys.readouterr()
    code, out, err = info("-c", "2d", "2d_w8", "-m", "distill", "--json")
    plain, student = json.loads(out)["configurations"]
    (cost,) = student["searches"]
    assert (code, cost["method"], cost["iterations"]) == (0, "distill", 250_000)
    # A forward pass of a network of twice the channels is four of the student's, whose step is less than three.
    assert cost["macs"] > 250_000 * student["to_train"]["batch_size"] * (plain["macs"] + 2.5 * student["macs"])
    assert 2 < cost["plain_iterations"] / cost["iterations"] < 3
    # 2d has nothing that could teach it.
    assert "searches" not in plain
    assert err.startswith("2d: the cost of distill cannot be told: configuration 2d inherits from none")


def test_what_cannot_be_predicted_is_said_and_the_rest_is_counted(info, capsys):
    set_search("dints", "num_levels=9")
    capsys.readouterr()
    code, out, err = info("-c", "2d", "--json")
    assert (code, "searches" in json.loads(out)["configurations"][0]) == (0, False)
    assert err.startswith("2d: the cost of dints cannot be told: 9 levels from stage 0 on do not fit")
    assert len(err.splitlines()) == 1


def test_nothing_is_searched_on_a_network_with_modules_in_its_skips(info, capsys):
    from nnunet_nas.cli.main import main as command

    set_search("iac_lth", "num_epochs=20")
    assert command(["add_skip", "-d", "11", "-c", "2d", "-m", "attention"]) == 0
    capsys.readouterr()
    code, out, err = info("-c", "2d_attention", "-m", "iac_lth", "dints", "iac_retrofit", "--json")
    assert (code, err) == (0, "")
    assert [cost["method"] for cost in json.loads(out)["configurations"][0]["searches"]] == ["iac_retrofit"]
