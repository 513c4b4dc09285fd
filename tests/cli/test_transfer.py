"""`nnunet_nas transfer`: topologies, genotypes and widths on another data set's plans."""

import copy
import json
import math
import shutil

import pytest
import torch

from nnunet_nas.architecture import build_network, network_spec
from nnunet_nas.cli.main import main
from nnunet_nas.plans import Plans
from nnunet_nas.training_cost import training_memory

TOPOLOGY = {
    "levels": 3,
    "layers": [
        {"0->0": "yx_z", "0->1": "skip"},
        {"0->0": "conv", "1->1": "zx_y", "1->2": "conv"},
    ],
}
GENOTYPE = {
    "2": {"0": "sep_conv_3", "1": "identity"},
    "3": {"0": "max_pool_3", "2": "sep_conv_5"},
    "4": {"1": "dil_conv_3", "3": "avg_pool_3"},
    "5": {"3": "dil_conv_5", "4": "sep_conv_3"},
}
CELL_SETTINGS = {"minimum_width": 16, "width_divisor": 4, "partial_channels": 4}


def read(folder):
    return json.loads((folder / "nnUNetPlans.json").read_text())


def found(base, method, name, architecture, settings, **more):
    """An entry as a search adds it."""
    record = {"method": method, "base_digest": "sha256:x", "settings": settings, "seeds": [0], "fold": 0, **more}
    return name, {"inherits_from": base, "architecture": architecture, "nas": record}


@pytest.fixture
def two_datasets(dataset):
    """`Dataset012_Other`, on which searches found something, beside `Dataset011_Fake`."""
    source = dataset.with_name("Dataset012_Other")
    shutil.copytree(dataset, source)
    plans = {**read(source), "dataset_name": source.name}
    lowres = plans["configurations"]["3d_lowres"]["architecture"]
    kept = {key: value for key, value in lowres["arch_kwargs"].items() if not key.startswith("n_conv_per_stage")}
    topology = {
        **lowres,
        "network_class_name": "nnunet_nas.dints.network.DiNTSNet",
        "arch_kwargs": {**kept, "topology": TOPOLOGY, "first_level": 0},
    }
    flat = plans["configurations"]["2d"]["architecture"]
    cells = copy.deepcopy(flat)
    cells["network_class_name"] = "nnunet_nas.iac.network.IACUNet"
    cells["arch_kwargs"] |= {
        "backbone": flat["network_class_name"],
        "cells": {"genotype": GENOTYPE, "widths": [24, 40], "norm": "instance", "residual": True},
    }
    tiny = copy.deepcopy(flat)
    tiny["arch_kwargs"]["features_per_stage"] = [8, 8, 8]
    plans["configurations"] |= dict(
        [
            found(
                "3d_lowres", "dints", "3d_lowres_dints_b", topology, {"features": None}, training_mib={"budget": 2.0}
            ),
            found("2d", "iac_lth", "2d_iaclth_residual", cells, CELL_SETTINGS),
            found("2d", "xtiny", "2d_xtiny8", tiny, {"cap": 8}),
        ]
    )
    (source / "nnUNetPlans.json").write_text(json.dumps(plans))
    return dataset


def transfer(*options):
    return main(["transfer", "-d", "11", *options])


def test_what_training_needs_at_the_target_stands_beside_nnunets_own_and_the_budget(two_datasets, capsys):
    assert transfer("-c", "3d_fullres", "-from", "12:3d_lowres_dints_b") == 0
    text = capsys.readouterr().err
    plans = Plans(read(two_datasets))
    dataset_json = json.loads((two_datasets / "dataset.json").read_text())
    needed, own = (
        training_memory(network_spec(plans, name, dataset_json)) for name in ("3d_fullres_dints_b", "3d_fullres")
    )
    assert f"training needs {needed} at batch 2 of 8x32x32 in float32, {needed.total / own.total:.2f} times" in text
    assert f"what 3d_fullres does, {own}" in text
    assert (
        f"the search's budget was 2 MiB, at its own patch and batch: this is {needed.total / 2:.2f} times that" in text
    )


def test_a_topology_takes_the_targets_geometry(two_datasets, capsys):
    assert transfer("-c", "3d_fullres", "-from", "12:3d_lowres_dints_b") == 0
    output = capsys.readouterr()
    plans = read(two_datasets)
    entry = plans["configurations"]["3d_fullres_dints_b"]
    kwargs, base = entry["architecture"]["arch_kwargs"], plans["configurations"]["3d_fullres"]["architecture"]
    assert kwargs["strides"] == base["arch_kwargs"]["strides"]
    assert kwargs["kernel_sizes"] == base["arch_kwargs"]["kernel_sizes"]
    # At the finest level the kernel is 1x3x3, where a plane and then z is the plain convolution.
    assert kwargs["topology"]["layers"][0] == {"0->0": "conv", "0->1": "skip"}
    assert kwargs["topology"]["layers"][1] == TOPOLOGY["layers"][1]
    assert "1 operations became plain convolutions" in output.err
    assert entry["nas"]["transferred_from"] == {
        "dataset": "Dataset012_Other",
        "plans": "nnUNetPlans",
        "configuration": "3d_lowres_dints_b",
    }
    assert Plans(plans).staleness("3d_fullres_dints_b") is None
    assert output.err.splitlines()[-2] == "next: nnUNetv2_train 11 3d_fullres_dints_b 0"
    network = build_network(
        network_spec(Plans(plans), "3d_fullres_dints_b", json.loads((two_datasets / "dataset.json").read_text()))
    )
    assert type(network).__name__ == "DiNTSNet"


def test_cells_get_widths_for_the_targets_skips(two_datasets, capsys):
    assert transfer("-c", "2d", "-from", "Dataset012_Other:2d_iaclth_residual", "--json") == 0
    entry = json.loads(capsys.readouterr().out)
    plans = read(two_datasets)
    features = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"]
    cells = entry["architecture"]["arch_kwargs"]["cells"]
    # max(16, C / 4), rounded up to a multiple of 4.
    assert cells["widths"] == [max(16, math.ceil(math.ceil(c / 4) / 4) * 4) for c in features[:2]]
    assert cells["genotype"] == GENOTYPE
    assert cells["residual"] is True
    assert entry["configuration"] == "2d_iaclth_residual"


ENCODER = "2d_mobilenetv3_large"


@pytest.mark.parametrize(("source", "target"), [(ENCODER, ENCODER), (ENCODER, "2d"), ("2d", ENCODER)])
def test_cells_go_from_and_onto_classification_encoders(two_datasets, source, target):
    for dataset, name in (("12", source), ("11", target)):
        if name != "2d":
            assert main(["add_encoder", "-d", dataset, "-c", "2d", "-m", "mobilenetv3_large"]) == 0
    other = two_datasets.with_name("Dataset012_Other")
    plans = read(other)
    cells = copy.deepcopy(plans["configurations"][source]["architecture"])
    cells["arch_kwargs"] |= {"backbone": cells["network_class_name"], "cells": {"genotype": GENOTYPE}}
    cells["network_class_name"] = "nnunet_nas.iac.network.IACUNet"
    name, entry = found(source, "iac", f"{source}_iac", cells, CELL_SETTINGS)
    plans["configurations"][name] = entry
    (other / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert transfer("-c", target, "-from", f"12:{name}") == 0
    spec = network_spec(Plans.of(two_datasets, "nnUNetPlans"), f"{target}_iac")
    network = build_network(spec)
    channels = network.encoder.output_channels[:-1]
    assert spec.architecture["arch_kwargs"]["cells"]["widths"] == [
        max(16, math.ceil(math.ceil(c / 4) / 4) * 4) for c in channels
    ]
    logits = network(torch.zeros(2, spec.input_channels, *spec.patch_size))
    assert logits.shape == (2, spec.output_channels, *spec.patch_size)


@pytest.mark.parametrize("name", ["2d_xtiny8", "2d_dints"])
def test_widths_and_topologies_do_not_fit_classification_encoders(two_datasets, capsys, name):
    other = two_datasets.with_name("Dataset012_Other")
    plans = read(other)
    architecture = copy.deepcopy(plans["configurations"]["2d"]["architecture"])
    architecture["arch_kwargs"] |= {"topology": {"levels": 3, "layers": [{"0->0": "conv"}]}, "first_level": 0}
    plans["configurations"] |= dict([found("2d", "dints", "2d_dints", architecture, {"features": None})])
    (other / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert main(["add_encoder", "-d", "11", "-c", "2d", "-m", "mobilenetv3_large"]) == 0
    capsys.readouterr()
    assert transfer("-c", ENCODER, "-from", f"12:{name}") == 4
    assert "TimmUNet has no features_per_stage: choose a configuration" in capsys.readouterr().err


def test_modules_are_not_stacked(two_datasets, capsys):
    assert main(["add_skip", "-d", "11", "-c", "2d", "-m", "attention"]) == 0
    capsys.readouterr()
    assert transfer("-c", "2d_attention", "-from", "12:2d_iaclth_residual") == 4
    assert "has modules in its skip" in capsys.readouterr().err


def test_a_width_is_a_cap_on_the_targets_channels(two_datasets):
    assert transfer("-c", "3d_fullres", "-from", "12:2d_xtiny8") == 4
    assert transfer("-c", "2d", "-from", "12:2d_xtiny8") == 0
    content = read(two_datasets)["configurations"]["2d_xtiny8"]["architecture"]["arch_kwargs"]
    assert content["features_per_stage"] == [8, 8, 8]


@pytest.mark.parametrize(("planned", "code"), [(7, 4), (8, 4), (9, 0)])
def test_a_cap_that_changes_nothing_is_refused(two_datasets, planned, code, capsys):
    plans = read(two_datasets)
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] = [planned] * 3
    (two_datasets / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert transfer("-c", "2d", "-from", "12:2d_xtiny8") == code
    assert ("the cap 8 changes nothing" in capsys.readouterr().err) == (code == 4)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["-c", "2d", "-from", "12"], 2, "write DATASET:CONFIGURATION"),
        (["-c", "2d", "-from", "12:2d"], 4, "is not the result of a search; there: 3d_lowres_dints_b"),
        (["-c", "2d", "-from", "12:3d_lowres_dints_b"], 4, "choose a target configuration of the same dimension"),
        (["-c", "nothing", "-from", "12:2d_xtiny8"], 4, "nothing"),
        (["-c", "2d", "-from", "77:2d_xtiny8"], 4, "77"),
    ],
)
def test_what_cannot_fit_is_refused(two_datasets, capsys, options, code, message):
    before = (two_datasets / "nnUNetPlans.json").read_bytes()
    assert transfer(*options) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert (two_datasets / "nnUNetPlans.json").read_bytes() == before


def test_too_many_levels_for_the_target_are_refused_with_the_numbers(two_datasets, capsys):
    source = two_datasets.with_name("Dataset012_Other")
    plans = read(source)
    deep = plans["configurations"]["3d_lowres_dints_b"]["architecture"]["arch_kwargs"]
    deep["first_level"] = 1
    (source / "nnUNetPlans.json").write_text(json.dumps(plans))
    assert transfer("-c", "3d_fullres", "-from", "12:3d_lowres_dints_b") == 4
    assert "needs 4 stages (3 levels from stage 1 on), the target has 3" in capsys.readouterr().err


def test_names_from_plans_do_not_speak_to_the_terminal(two_datasets, capsys):
    content = read(two_datasets)
    content["configurations"]["3d\x1b[2J"] = {"inherits_from": "3d_fullres"}
    (two_datasets / "nnUNetPlans.json").write_text(json.dumps(content))
    assert transfer("-c", "3d\x1b[2J", "-from", "12:3d_lowres_dints_b") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("3d\\x1b[2J_dints_b: added to")
    assert "times what 3d\\x1b[2J does" in printed.err
    assert "next: nnUNetv2_train 11 '3d\\x1b[2J_dints_b' 0\n" in printed.err
    source = two_datasets.with_name("Dataset012_Other")
    content = read(source)
    content["configurations"]["\x1b[2J"] = {**content["configurations"]["2d_xtiny8"]}
    (source / "nnUNetPlans.json").write_text(json.dumps(content))
    assert transfer("-c", "2d", "-from", "12:2d") == 4
    refused = capsys.readouterr()
    assert (
        "not the result of a search; there: 3d_lowres_dints_b, 2d_iaclth_residual, 2d_xtiny8, \\x1b[2J" in refused.err
    )
    assert "\x1b" not in printed.out + printed.err + refused.err
