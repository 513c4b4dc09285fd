"""Plans are read by nnU-Net's rules and never damaged: additions only, all or none, whatever happens meanwhile."""

import copy
import difflib
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_nas.errors import DataProblem, EnvironmentProblem, UsageError
from nnunet_nas.files import replace_file
from nnunet_nas.plans import DerivedConfiguration, Plans, Provenance, package_versions, wrapped

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def plans_file(dataset):
    return Plans.of(dataset, "nnUNetPlans").path


def read(path):
    return json.loads(path.read_text())


def edit(path, change):
    """Rewrites a plans file as a user or nnU-Net would."""
    plans = read(path)
    change(plans)
    path.write_text(json.dumps(plans, indent=4))


def derive(plans, cap, base="2d", suffix="xtiny"):
    """A narrow version of a configuration, as a search would hand it over."""
    architecture = copy.deepcopy(Plans(plans).resolve(base)["architecture"])
    features = architecture["arch_kwargs"]["features_per_stage"]
    architecture["arch_kwargs"]["features_per_stage"] = [min(cap, value) for value in features]
    provenance = Provenance("xtiny", Plans(plans).digest(base), {"cap": cap}, [369])
    return DerivedConfiguration(f"{base}_{suffix}{cap}", base, architecture, provenance)


def add(path, *caps, base="2d", plans=None, **options):
    """Adds narrow versions of `base`, searched on `plans` (default: what the file says now)."""
    plans = read(path) if plans is None else plans
    derived = [derive(plans, cap, base) for cap in caps]
    return Plans(plans, path).add(derived, **options)


def write_settings(path, *changes):
    """Changes settings in the file, as `set_search` does."""
    with Plans.edited(path) as plans:
        plans.set(*changes)


def train(results, name, plans="nnUNetPlans", trainer="nnUNetTrainer"):
    folder = results / "Dataset011_Fake" / f"{trainer}__{plans}__{name}"
    (folder / "fold_0").mkdir(parents=True)
    return folder


def no_leftovers(folder):
    return not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_every_configuration_resolves_as_in_nnunet(plans_file):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(str(plans_file))
    plans = Plans.read(plans_file).content
    assert list(plans["configurations"]) == ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres", "2d_bs4"]
    for name in plans["configurations"]:
        assert Plans(plans).resolve(name) == manager.get_configuration(name).configuration


def test_the_nearest_value_wins_and_the_parent_is_named(plans_file):
    resolved = Plans.read(plans_file).resolve("2d_bs4")
    assert (resolved["batch_size"], resolved["patch_size"], resolved["inherits_from"]) == (4, [32, 32], "2d")


KEYS = st.sampled_from(["batch_size", "spacing", "patch_size", "previous_stage"])
VALUES = st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=2), st.none())


@st.composite
def inheriting_plans(draw):
    """Plans of up to five configurations, each of which may inherit from one before it."""
    configurations = {}
    for number in range(draw(st.integers(1, 5))):
        entry = {"architecture": number, **draw(st.dictionaries(KEYS, VALUES, max_size=3))}
        if configurations and draw(st.booleans()):
            entry["inherits_from"] = draw(st.sampled_from(list(configurations)))
            entry.pop("architecture")
        configurations[f"c{number}"] = entry
    return {"plans_name": "p", "configurations": configurations}


@settings(max_examples=50, deadline=None)
@given(inheriting_plans())
def test_any_inheritance_resolves_as_in_nnunet(plans):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    for name in plans["configurations"]:
        before = copy.deepcopy(plans)
        expected = PlansManager(copy.deepcopy(plans)).get_configuration(name).configuration
        assert Plans(plans).resolve(name) == expected
        assert plans == before


def test_a_resolved_configuration_is_a_copy(plans_file):
    plans = Plans.read(plans_file).content
    Plans(plans).resolve("2d_bs4")["architecture"]["arch_kwargs"]["features_per_stage"][0] = 1
    assert plans == Plans.read(plans_file).content


def test_an_unknown_configuration_is_named_with_what_there_is(plans_file):
    with pytest.raises(DataProblem, match=r"configuration 2D is not in the plans; choose one of: 2d, 3d_lowres, "):
        Plans.read(plans_file).resolve("2D")


def test_a_missing_base_is_named(plans_file):
    plans = Plans.read(plans_file).content
    del plans["configurations"]["2d"]
    with pytest.raises(DataProblem, match="2d, the base of 2d_bs4, is not in the plans"):
        Plans(plans).resolve("2d_bs4")


def test_a_circle_is_shown(plans_file):
    plans = Plans.read(plans_file).content
    plans["configurations"]["2d"]["inherits_from"] = "2d_bs4"
    with pytest.raises(DataProblem, match="2d_bs4 inherits from itself .2d_bs4 -> 2d -> 2d_bs4."):
        Plans(plans).resolve("2d_bs4")


@pytest.mark.parametrize("entry", [None, [], "3d_fullres"])
def test_what_is_no_configuration_is_refused(plans_file, entry):
    plans = Plans.read(plans_file).content
    plans["configurations"]["2d"] = entry
    with pytest.raises(DataProblem, match="configuration 2d is not one of nnU-Net v2"):
        Plans(plans).resolve("2d_bs4")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"plans_name": "nnUNetPlans", "configurations": {"2d": {"ba',
        b"\x80\x04\x95 a pickle",
        b"[]",
        b"{}",
        b'{"configurations": {}}',
        b'{"plans_name": "nnUNetPlans", "configurations": []}',
    ],
)
def test_what_is_not_plans_is_refused_with_the_way_out(plans_file, content):
    plans_file.write_bytes(content)
    with pytest.raises(DataProblem, match="nnUNetv2_plan_experiment -d 11 ") as caught:
        Plans.read(plans_file)
    assert str(plans_file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_plans_are_refused_with_the_way_out(dataset):
    with pytest.raises(DataProblem, match="does not exist: run nnUNetv2_plan_experiment -d 11 "):
        Plans.of(dataset, "nnUNetResEncUNetLPlans")


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)
CONTENT_KEYS = st.text(min_size=1, max_size=4).filter(lambda key: key != "nas")
CONTENT = st.dictionaries(CONTENT_KEYS, JSON_VALUES, max_size=5)


def digest_of(content):
    return Plans({"configurations": {"c": content}}).digest("c")


def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=50, deadline=None)
@given(CONTENT)
def test_the_digest_does_not_depend_on_the_order_of_keys(content):
    assert digest_of(content) == digest_of(reversed_keys(content))


@settings(max_examples=50, deadline=None)
@given(CONTENT, CONTENT_KEYS, JSON_VALUES)
def test_the_digest_changes_with_any_content(content, key, value):
    changed = {**content, key: value}
    # Compared as text, because Python holds 1, 1.0 and True for equal and JSON does not.
    same = json.dumps(content, sort_keys=True) == json.dumps(changed, sort_keys=True)
    assert (digest_of(content) == digest_of(changed)) is same


@settings(max_examples=50, deadline=None)
@given(CONTENT, JSON_VALUES, JSON_VALUES)
def test_the_digest_leaves_out_records_and_search_settings(content, record, search):
    assert digest_of(content) == digest_of({**content, "nas": record, "nas_settings": search})


@pytest.mark.parametrize("key", ["batch_size", "patch_size", "architecture", "data_identifier", "batch_dice"])
def test_the_digest_covers_what_is_inherited(plans_file, key):
    plans = Plans.read(plans_file).content
    before = Plans(plans).digest("3d_cascade_fullres")
    plans["configurations"]["3d_fullres"][key] = "changed"
    assert Plans(plans).digest("3d_cascade_fullres") != before


def test_the_digest_is_the_same_whether_content_is_inherited_or_repeated(plans_file):
    plans = Plans.read(plans_file).content
    plans["configurations"]["copy"] = {**plans["configurations"]["2d"], "batch_size": 4}
    assert Plans(plans).digest("2d_bs4") == Plans(plans).digest("copy")


def test_only_the_additions_are_in_the_diff(plans_file):
    before = plans_file.read_text()
    assert add(plans_file, 16, 8) == ["2d_xtiny16", "2d_xtiny8"]
    lines = list(difflib.unified_diff(before.splitlines(), plans_file.read_text().splitlines(), n=0))[2:]
    assert [line for line in lines if line.startswith("-")] == []
    plans = read(plans_file)
    for name in ("2d_xtiny16", "2d_xtiny8"):
        del plans["configurations"][name]
    assert json.dumps(plans, indent=4) == before


def test_what_is_written_is_formatted_as_nnunet_formats_it(plans_file, tmp_path):
    from batchgenerators.utilities.file_and_folder_operations import load_json, save_json

    add(plans_file, 8)
    save_json(load_json(str(plans_file)), str(tmp_path / "saved.json"), sort_keys=False)
    assert plans_file.read_bytes() == (tmp_path / "saved.json").read_bytes()


def test_an_added_configuration_inherits_and_says_where_it_comes_from(plans_file):
    digest = Plans(read(plans_file)).digest("2d")
    add(plans_file, 8)
    entry = read(plans_file)["configurations"]["2d_xtiny8"]
    assert list(entry) == ["inherits_from", "architecture", "nas"]
    assert entry["inherits_from"] == "2d"
    assert entry["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 8, 8]
    assert entry["architecture"]["arch_kwargs"]["strides"] == [[1, 1], [2, 2], [2, 2]]
    record = entry["nas"]
    assert (record["method"], record["base_digest"], record["seeds"], record["fold"]) == ("xtiny", digest, [369], None)
    assert record["versions"] == package_versions()
    assert set(record["versions"]) == {"nnunet-nas", "nnunetv2", "torch", "dynamic-network-architectures"}


ALWAYS = ["method", "base_digest", "settings", "seeds", "fold", "checkpoint", "versions", "created"]
BACKBONE = {"backbone_trainer": "T", "backbone_digest": "sha256:x"}


@pytest.mark.parametrize(
    ("method", "known", "further"),
    [
        ("xtiny", {}, []),
        ("encoder", {}, []),
        ("skip", {}, ["backbone_trainer"]),
        (
            "iac_lth",
            {"fold": 0, "checkpoint": "c", **BACKBONE, "search_folder": "s/fold_0", "epochs": 9},
            ["backbone_trainer", "backbone_digest", "search_folder", "epochs"],
        ),
        ("iac", {"transferred_from": {"dataset": "D"}}, ["transferred_from", "backbone_trainer"]),
        (
            "dints",
            {"fold": 1, "search_folder": "s/fold_1", "training_mib": {"predicted": 1.0}},
            ["search_folder", "training_mib"],
        ),
        ("dints", {"transferred_from": {"dataset": "D"}}, ["transferred_from"]),
        ("dints", {"random_like": "2d_dints"}, ["random_like"]),
    ],
)
def test_a_record_has_the_keys_of_its_method_in_their_order(method, known, further):
    record = DerivedConfiguration("c", "2d", {}, Provenance(method, "sha256:b", {"kernels": (3, 5)}, (1, 2), **known))
    content = record.entry()["nas"]
    assert list(content) == ALWAYS + further
    assert (content["settings"], content["seeds"]) == ({"kernels": [3, 5]}, [1, 2])
    assert {key: content[key] for key in known} == known
    assert all(content[key] is None for key in ("fold", "checkpoint", *further) if key not in known)


def test_what_goes_around_a_backbone_keeps_its_arguments_and_is_not_stacked():
    plain = {"network_class_name": "a.UNet", "arch_kwargs": {"n_stages": 3}, "_kw_requires_import": ["conv_op"]}
    around = wrapped(plain, "b.CellUNet", cells={"widths": [1]})
    assert around == {
        "network_class_name": "b.CellUNet",
        "arch_kwargs": {"n_stages": 3, "backbone": "a.UNet", "cells": {"widths": [1]}},
        "_kw_requires_import": ["conv_op"],
    }
    assert plain["arch_kwargs"] == {"n_stages": 3}
    with pytest.raises(DataProblem, match=r"b.CellUNet has modules in its skips already: choose the configuration be"):
        wrapped(around, "b.CellUNet", cells={})


def test_nnunet_reads_what_was_added(plans_file):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    add(plans_file, 4, base="3d_fullres")
    manager = PlansManager(str(plans_file)).get_configuration("3d_fullres_xtiny4")
    assert manager.network_arch_init_kwargs["features_per_stage"] == [4, 4, 4]
    assert manager.pool_op_kernel_sizes == [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    assert (manager.data_identifier, manager.batch_size) == ("nnUNetPlans_3d_fullres", 2)


def test_adding_again_does_not_touch_the_file(plans_file):
    add(plans_file, 16, 8)
    os.utime(plans_file, (1, 1))
    before = plans_file.stat()
    assert add(plans_file, 16, 8) == []
    after = plans_file.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_what_is_there_keeps_its_provenance_and_the_users_keys(plans_file):
    add(plans_file, 16, 8)

    def customise(plans):
        plans["configurations"]["2d_xtiny8"].update(batch_size=12, nas_settings={"iac": {"epochs": 1}})
        plans["configurations"]["2d_xtiny8"]["nas"]["created"] = "long ago"
        del plans["configurations"]["2d_xtiny16"]

    edit(plans_file, customise)
    before = read(plans_file)["configurations"]["2d_xtiny8"]
    assert add(plans_file, 16, 8) == ["2d_xtiny16"]
    assert read(plans_file)["configurations"]["2d_xtiny8"] == before


def test_the_users_configurations_and_unknown_keys_stay(plans_file):
    edit(plans_file, lambda plans: plans.update(note={"by": "Zoë", "small": 1e-05, "large": 10**18}))
    before = read(plans_file)
    add(plans_file, 8)
    after = read(plans_file)
    del after["configurations"]["2d_xtiny8"]
    assert json.dumps(after) == json.dumps(before)


def refused(path, *caps, match, error=DataProblem, **options):
    """Adding is refused, by the check before a search as well, and no byte changes."""
    before = path.read_bytes()
    plans = options.pop("plans", None) or read(path)
    derived = [derive(plans, cap) for cap in caps]
    for function in (Plans(plans, path).check, Plans(plans, path).add):
        with pytest.raises(error, match=match) as caught:
            function(derived, **options)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert no_leftovers(path.parent)


def clash(plans):
    """A configuration of the user's own under a name that a search would use."""
    plans["configurations"]["2d_xtiny8"] = {"inherits_from": "2d", "batch_size": 7}


def test_a_name_that_is_taken_is_refused_and_nothing_else_is_added(plans_file):
    edit(plans_file, clash)
    refused(plans_file, 16, 8, 4, match=r"2d_xtiny8 exists .*it has other content.*--overwrite .* -o NAME")
    assert "2d_xtiny16" not in read(plans_file)["configurations"]


def test_a_name_that_is_taken_is_replaced_when_asked_for(plans_file):
    edit(plans_file, clash)
    assert add(plans_file, 8, overwrite=True) == ["2d_xtiny8"]
    entry = read(plans_file)["configurations"]["2d_xtiny8"]
    assert "batch_size" not in entry
    assert entry["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 8, 8]


def test_search_settings_survive_a_replacement(plans_file):
    edit(plans_file, clash)
    edit(plans_file, lambda plans: plans["configurations"]["2d_xtiny8"].update(nas_settings={"iac": {"epochs": 3}}))
    add(plans_file, 8, overwrite=True)
    assert read(plans_file)["configurations"]["2d_xtiny8"]["nas_settings"] == {"iac": {"epochs": 3}}


def plan_again(plans):
    """What nnU-Net's re-planning does: the base is replaced, configurations that it does not know stay."""
    plans["configurations"]["2d"]["batch_size"] = 99


def test_a_configuration_whose_base_changed_is_stale_and_refused(plans_file):
    add(plans_file, 8)
    assert Plans(read(plans_file)).staleness("2d_xtiny8") is None
    edit(plans_file, plan_again)
    assert "2d has changed" in Plans(read(plans_file)).staleness("2d_xtiny8")
    refused(plans_file, 8, match="2d_xtiny8 exists .*its base 2d has changed")


def test_a_stale_configuration_is_replaced_when_asked_for(plans_file):
    add(plans_file, 8)
    edit(plans_file, plan_again)
    assert add(plans_file, 8, overwrite=True) == ["2d_xtiny8"]
    assert Plans(read(plans_file)).staleness("2d_xtiny8") is None


def normalise_by_intensities(plans):
    plans["configurations"]["2d"]["normalization_schemes"] = ["CTNormalization"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transpose_forward", [2, 0, 1]),
        ("image_reader_writer", "NibabelIO"),
        ("foreground_intensity_properties_per_channel", {"0": {"mean": 1.0}}),
    ],
)
def test_what_the_plans_say_of_all_configurations_makes_them_stale_too(plans_file, key, value):
    edit(plans_file, normalise_by_intensities)
    add(plans_file, 8)
    assert Plans.read(plans_file).staleness("2d_xtiny8") is None
    edit(plans_file, lambda plans: plans.update({key: value}))
    assert "its base 2d has changed" in Plans.read(plans_file).staleness("2d_xtiny8")


def test_intensities_count_only_where_images_are_normalised_by_them(plans_file):
    add(plans_file, 8)
    edit(plans_file, lambda plans: plans.update(foreground_intensity_properties_per_channel={"0": {"mean": 1.0}}))
    assert Plans.read(plans_file).staleness("2d_xtiny8") is None


def test_a_digest_of_the_first_kind_still_counts(plans_file):
    # As version 0.1 recorded it for this data set, before digests covered what stands above the configurations.
    resolved = Plans.read(plans_file).resolve("2d")
    canonical = json.dumps(resolved, sort_keys=True, separators=(",", ":"))
    first = "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
    add(plans_file, 8)
    edit(plans_file, lambda plans: plans["configurations"]["2d_xtiny8"]["nas"].update(base_digest=first))
    edit(plans_file, lambda plans: plans.update(image_reader_writer="NibabelIO"))
    assert Plans.read(plans_file).staleness("2d_xtiny8") is None
    edit(plans_file, plan_again)
    assert "its base 2d has changed" in Plans.read(plans_file).staleness("2d_xtiny8")


def test_plans_that_are_just_being_rewritten_in_place_are_waited_for(plans_file):
    whole = plans_file.read_bytes()
    plans_file.write_bytes(whole[: len(whole) // 2])
    writer = threading.Timer(0.15, plans_file.write_bytes, [whole])
    writer.start()
    assert "2d" in Plans.read(plans_file).configurations
    writer.join()


def test_what_another_program_overwrites_at_the_same_moment_is_said(plans_file, monkeypatch):
    planned = read(plans_file)
    write = replace_file

    def overtaken(path, content, **options):
        write(path, content, **options)
        path.write_text(json.dumps(planned, indent=4))

    monkeypatch.setattr("nnunet_nas.plans.replace_file", overtaken)
    with pytest.raises(EnvironmentProblem, match=r"what was added is lost: wait until .* run the same command again"):
        add(plans_file, 8)
    monkeypatch.undo()
    assert add(plans_file, 8) == ["2d_xtiny8"]


@pytest.mark.parametrize("key", ["plans_name", "dataset_name"])
@pytest.mark.parametrize("name", ["..", "../../home", "/etc", "a\\b"])
def test_names_that_lead_out_of_a_folder_are_refused(plans_file, key, name):
    edit(plans_file, lambda plans: plans.update({key: name}))
    with pytest.raises(DataProblem, match=f"{key} .* leads out of a folder: correct the plans"):
        Plans.read(plans_file)


def in_place(path, number):
    """What nnU-Net's planning does, which keeps configurations that it does not know."""
    content = read(path)
    content["configurations"]["3d_fullres"]["batch_size"] = number
    with path.open("r+") as file:
        file.truncate()
        json.dump(content, file, indent=4)


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_nothing_of_a_program_that_writes_at_the_same_moment_is_lost(plans_file, monkeypatch, moment):
    numbers = iter([17])

    def write(path, content, *, last_check=lambda: None):
        number = next(numbers, None)
        if number is None:
            replace_file(path, content, last_check=last_check)
        elif moment == "before":
            in_place(path, number)
            replace_file(path, content, last_check=last_check)
        elif moment == "after":
            planned = read(path)
            planned["configurations"]["3d_fullres"]["batch_size"] = number
            replace_file(path, content, last_check=last_check)
            path.write_text(json.dumps(planned))
        else:
            planned = read(path)
            planned["configurations"]["3d_fullres"]["batch_size"] = number
            with path.open("r+") as file:  # which has no name by the time that it is written
                replace_file(path, content, last_check=last_check)
                file.truncate()
                json.dump(planned, file)

    monkeypatch.setattr("nnunet_nas.plans.replace_file", write)
    assert add(plans_file, 8) == ["2d_xtiny8"]
    found = read(plans_file)["configurations"]
    assert "2d_xtiny8" in found
    assert found["3d_fullres"]["batch_size"] == 17
    assert no_leftovers(plans_file.parent)


def announce(path, age=0.0):
    """What nnU-Net's planning does before it reads the plans."""
    description = path.with_name("dataset.json")
    description.write_bytes(description.read_bytes())
    then = time.time() - age
    os.utime(description, (then, then))


def test_a_planning_that_has_read_the_plans_is_waited_for(plans_file, monkeypatch, capsys):
    """Much longer than what is waited without a sign of one."""
    planning = []

    def write(path, content, *, last_check=lambda: None):
        if not planning:
            announce(path)
            planned = read(path)
            planned["configurations"]["3d_fullres"]["batch_size"] = 17
            planning.append(threading.Timer(1.5, lambda: path.write_text(json.dumps(planned))))
            planning[0].start()
        replace_file(path, content, last_check=last_check)

    monkeypatch.setattr("nnunet_nas.plans.replace_file", write)
    assert add(plans_file, 8) == ["2d_xtiny8"]
    planning[0].join()
    found = read(plans_file)["configurations"]
    assert "2d_xtiny8" in found
    assert found["3d_fullres"]["batch_size"] == 17
    assert "waiting for nnU-Net's planning" in capsys.readouterr().err


def test_a_planning_that_has_read_what_was_set_does_not_make_it_lost(plans_file, monkeypatch):
    """It keeps configurations that it does not know, and what stands in them."""
    edit(plans_file, lambda plans: plans["configurations"].update(mine={"inherits_from": "2d"}))

    def write(path, content, *, last_check=lambda: None):
        replace_file(path, content, last_check=last_check)
        in_place(path, 17)

    monkeypatch.setattr("nnunet_nas.plans.replace_file", write)
    with Plans.edited(plans_file) as plans:
        plans.set("mine", "dints", {"seed": 3})
    found = read(plans_file)["configurations"]
    assert found["mine"]["nas_settings"] == {"dints": {"seed": 3}}
    assert found["3d_fullres"]["batch_size"] == 17


@pytest.mark.parametrize(("age", "waits"), [(0, True), (29, True), (31, False), (-3600, True)])
def test_a_planning_that_never_writes_is_waited_for_half_a_minute(plans_file, monkeypatch, age, waits):
    """It may have died, or a user have copied the description; one from the future says nothing of its age."""
    os.utime(plans_file, (0, 0))
    announce(plans_file, age)
    slept = []
    now = time.monotonic()
    monkeypatch.setattr("nnunet_nas.plans.time.monotonic", lambda: now + sum(slept))
    monkeypatch.setattr("nnunet_nas.plans.time.sleep", slept.append)
    assert add(plans_file, 8) == ["2d_xtiny8"]
    expected = min(30, 30 - age) if waits else 0
    assert sum(slept) == pytest.approx(0.2 + expected, abs=1)


def test_nobody_waits_where_the_plans_are_newer_than_the_description(plans_file, monkeypatch):
    announce(plans_file)
    edit(plans_file, lambda plans: plans.update(note="planned"))
    slept = []
    monkeypatch.setattr("nnunet_nas.plans.time.sleep", slept.append)
    assert add(plans_file, 8) == ["2d_xtiny8"]
    assert sum(slept) == pytest.approx(0.2)


def test_half_a_file_of_a_program_that_died_does_not_replace_what_was_added(plans_file, monkeypatch):
    def write(path, content, *, last_check=lambda: None):
        with path.open("r+") as file:
            replace_file(path, content, last_check=last_check)
            file.truncate(100)

    monkeypatch.setattr("nnunet_nas.plans.replace_file", write)
    assert add(plans_file, 8) == ["2d_xtiny8"]
    assert "2d_xtiny8" in read(plans_file)["configurations"]


def test_a_configuration_whose_base_is_gone_is_stale(plans_file):
    add(plans_file, 8)
    edit(plans_file, lambda plans: plans["configurations"].pop("2d"))
    assert Plans(read(plans_file)).staleness("2d_xtiny8") == "its base 2d is no longer in the plans"


def test_a_configuration_of_someone_else_is_never_stale(plans_file):
    assert Plans(read(plans_file)).staleness("2d_bs4") is None


def test_a_base_that_changed_during_the_search_is_refused(plans_file):
    searched_on = read(plans_file)
    edit(plans_file, plan_again)
    refused(plans_file, 8, plans=searched_on, match="configuration 2d in .* is not the one that was searched on")


def test_a_base_that_disappeared_during_the_search_is_refused(plans_file):
    searched_on = read(plans_file)
    edit(plans_file, lambda plans: plans["configurations"].pop("2d"))
    refused(plans_file, 8, plans=searched_on, match="configuration 2d is not in the plans")


def test_a_trained_configuration_is_never_replaced(plans_file, nnunet_folders):
    edit(plans_file, clash)
    folder = train(nnunet_folders / "nnUNet_results", "2d_xtiny8", trainer="nnUNetTrainer_5epochs")
    refused(plans_file, 16, 8, overwrite=True, match=f"2d_xtiny8 is not replaced because it was trained .*{folder}")


def test_where_trained_models_cannot_be_looked_for_nothing_is_replaced(plans_file, nnunet_folders, monkeypatch):
    edit(plans_file, clash)
    before = plans_file.read_bytes()
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(EnvironmentProblem, match="nnUNet_results is not set"):
        add(plans_file, 16, 8, overwrite=True)
    monkeypatch.setenv("nnUNet_results", str(nnunet_folders / "unmounted"))
    with pytest.raises(EnvironmentProblem, match="is not a folder"):
        add(plans_file, 16, 8, overwrite=True)
    assert plans_file.read_bytes() == before


def test_what_killed_writers_left_is_removed_by_the_next_one(plans_file):
    left, others = (plans_file.with_name(f".{name}.json.abcd1234.tmp") for name in ("nnUNetPlans", "otherPlans"))
    left.write_bytes(b"half")
    others.write_bytes(b"half")
    add(plans_file, 8)
    assert not left.exists()
    assert others.exists()


def test_training_something_else_is_no_obstacle(plans_file, nnunet_folders):
    edit(plans_file, clash)
    results = nnunet_folders / "nnUNet_results"
    for name, plans in (("2d", "nnUNetPlans"), ("2d_xtiny8", "myPlans"), ("my_2d_xtiny8", "nnUNetPlans")):
        train(results, name, plans)
    assert add(plans_file, 8, overwrite=True) == ["2d_xtiny8"]


def test_a_separate_file_carries_its_own_name_and_leaves_the_original_alone(plans_file):
    before = plans_file.read_bytes()
    assert add(plans_file, 8, output="tinyPlans") == ["2d_xtiny8"]
    separate = read(plans_file.with_name("tinyPlans.json"))
    assert separate["plans_name"] == "tinyPlans"
    assert plans_file.read_bytes() == before
    del separate["configurations"]["2d_xtiny8"]
    assert json.dumps({**separate, "plans_name": "nnUNetPlans"}, indent=4) == before.decode()


def test_a_separate_file_is_written_although_the_original_has_the_configurations_already(plans_file):
    add(plans_file, 8)
    add(plans_file, 8, output="tinyPlans")
    separate = read(plans_file.with_name("tinyPlans.json"))
    assert (separate["plans_name"], "2d_xtiny8" in separate["configurations"]) == ("tinyPlans", True)


def test_a_separate_file_that_exists_is_extended(plans_file):
    target = plans_file.with_name("tinyPlans.json")
    add(plans_file, 8, output="tinyPlans")
    edit(target, lambda plans: plans.update(note="mine"))
    assert add(plans_file, 8, 4, output="tinyPlans") == ["2d_xtiny4"]
    assert read(target)["note"] == "mine"
    assert list(read(target)["configurations"])[-2:] == ["2d_xtiny8", "2d_xtiny4"]


def test_naming_the_original_as_output_is_the_original(plans_file):
    assert add(plans_file, 8, output="nnUNetPlans") == ["2d_xtiny8"]
    assert "2d_xtiny8" in read(plans_file)["configurations"]


@pytest.mark.parametrize("output", ["dataset", "dataset_fingerprint", "splits_final"])
def test_names_of_nnunets_own_files_are_refused(plans_file, output):
    before = {path.name: path.read_bytes() for path in plans_file.parent.glob("*.json")}
    with pytest.raises(UsageError, match=f"-o {output}: nnU-Net keeps its own"):
        add(plans_file, 8, output=output)
    assert {path.name: path.read_bytes() for path in plans_file.parent.glob("*.json")} == before


@pytest.mark.parametrize("output", ["", "a/b", "../up", ".hidden", "two__parts", "with space", "-o", "a\n"])
def test_names_that_nnunet_could_not_use_are_refused(plans_file, output):
    with pytest.raises(UsageError, match="give a plans identifier"):
        Plans({}, plans_file).beside(output)


@pytest.mark.parametrize("output", [None, "tinyPlans"])
def test_a_file_whose_inner_name_differs_is_refused(plans_file, output):
    target = Plans({}, plans_file).beside(output)
    target.write_text(json.dumps({**read(plans_file), "plans_name": "somePlans"}, indent=4))
    refused(plans_file, 8, output=output, match=f"calls itself plans_name=somePlans: set it to {target.stem}")


def test_a_separate_file_on_another_base_is_refused(plans_file):
    add(plans_file, 8, output="tinyPlans")
    edit(plans_file.with_name("tinyPlans.json"), plan_again)
    refused(plans_file, 4, output="tinyPlans", match="2d in .*tinyPlans.json is not the one that was searched on")


def test_a_symbolic_link_stays_one_and_what_it_points_to_is_extended(plans_file, tmp_path):
    elsewhere = tmp_path / "archive" / "plans_v3.json"
    elsewhere.parent.mkdir()
    plans_file.rename(elsewhere)
    plans_file.symlink_to(elsewhere)
    add(plans_file, 8)
    assert plans_file.is_symlink()
    assert "2d_xtiny8" in read(elsewhere)["configurations"]


def test_writers_through_a_link_and_through_the_file_keep_each_other_out(plans_file, tmp_path, monkeypatch):
    from nnunet_nas.files import locked

    link = tmp_path / "nnUNet_preprocessed" / "Dataset012_Link" / "nnUNetPlans.json"
    link.parent.mkdir()
    link.symlink_to(plans_file)
    monkeypatch.setattr("nnunet_nas.plans._LOCK_SECONDS", 0.05)
    with (
        locked(plans_file, timeout=0, busy="busy"),
        pytest.raises(EnvironmentProblem, match="another process has been writing"),
    ):
        add(link, 8)


def set_by(path, name):
    return read(path)["configurations"][name].get("nas_settings")


def test_settings_are_the_only_key_that_is_written(plans_file):
    expected = read(plans_file)
    write_settings(plans_file, "2d", "iac_lth", {"gamma": 2.0, "augmentation": False})
    expected["configurations"]["2d"]["nas_settings"] = {"iac_lth": {"gamma": 2.0, "augmentation": False}}
    assert plans_file.read_text() == json.dumps(expected, indent=4)


def test_settings_of_other_methods_and_keys_stay(plans_file):
    write_settings(plans_file, "2d", "iac", {"seed": 4})
    write_settings(plans_file, "2d", "iac_lth", {"gamma": 2.0})
    write_settings(plans_file, "2d", "iac_lth", {"tau0": 1e-8})
    assert set_by(plans_file, "2d") == {"iac": {"seed": 4}, "iac_lth": {"gamma": 2.0, "tau0": 1e-8}}


@pytest.mark.parametrize("name", ["2d", "2d_bs4"])
def test_with_the_last_setting_taken_back_the_file_is_what_it_was(plans_file, name):
    before = plans_file.read_bytes()
    write_settings(plans_file, name, "iac", {"seed": 4})
    write_settings(plans_file, name, "iac_lth", {"gamma": 2.0, "tau0": 1e-8})
    write_settings(plans_file, name, "iac", {}, ["seed"])
    assert set_by(plans_file, name) == {"iac_lth": {"gamma": 2.0, "tau0": 1e-8}}
    write_settings(plans_file, name, "iac_lth", {}, ["gamma", "tau0"])
    assert plans_file.read_bytes() == before


def test_own_settings_start_from_the_inherited_ones_as_nnunet_would_drop_them(plans_file):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    write_settings(plans_file, "2d", "iac_lth", {"gamma": 2.0})
    write_settings(plans_file, "2d_bs4", "iac_retrofit", {"num_epochs": 5})
    both = {"iac_lth": {"gamma": 2.0}, "iac_retrofit": {"num_epochs": 5}}
    assert PlansManager(str(plans_file)).get_configuration("2d_bs4").configuration["nas_settings"] == both
    assert set_by(plans_file, "2d") == {"iac_lth": {"gamma": 2.0}}


def test_an_inherited_setting_can_be_taken_back_for_one_configuration(plans_file):
    write_settings(plans_file, "2d", "iac_lth", {"gamma": 2.0})
    write_settings(plans_file, "2d_bs4", "iac_lth", {}, ["gamma"])
    # Empty, not absent: without the key nnU-Net would inherit the setting again.
    assert set_by(plans_file, "2d_bs4") == {}
    assert set_by(plans_file, "2d") == {"iac_lth": {"gamma": 2.0}}
    write_settings(plans_file, "2d_bs4", "iac_lth", {"gamma": 2.0})
    assert set_by(plans_file, "2d_bs4") is None


def test_a_value_of_another_type_is_another_value(plans_file):
    # 1 equals True for Python and is no answer to a yes-or-no question.
    edit(plans_file, lambda plans: plans["configurations"]["2d"].update(nas_settings={"iac": {"augmentation": 1}}))
    write_settings(plans_file, "2d_bs4", "iac", {"augmentation": True})
    assert set_by(plans_file, "2d_bs4")["iac"]["augmentation"] is True
    write_settings(plans_file, "2d", "iac", {"augmentation": True})
    assert set_by(plans_file, "2d")["iac"]["augmentation"] is True


def test_settings_that_stand_already_do_not_touch_the_file(plans_file):
    write_settings(plans_file, "2d", "iac", {"seed": 4})
    # As a user's editor might leave it.
    plans_file.write_text(json.dumps(read(plans_file), indent=2))
    before = plans_file.read_bytes()
    write_settings(plans_file, "2d", "iac", {"seed": 4}, ["num_epochs"])
    assert plans_file.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [([1], "nas_settings must be"), ({"iac": 3}, "nas_settings.iac must be"), ({"iak": {}}, "unknown method 'iak'")],
)
def test_settings_are_not_written_into_what_are_none(plans_file, content, message):
    edit(plans_file, lambda plans: plans["configurations"]["2d"].update(nas_settings=content))
    before = plans_file.read_bytes()
    with pytest.raises(DataProblem, match=message):
        write_settings(plans_file, "2d_bs4", "iac", {"seed": 4})
    assert plans_file.read_bytes() == before


def test_settings_of_a_configuration_that_is_not_there_are_refused(plans_file):
    before = plans_file.read_bytes()
    with pytest.raises(DataProblem, match="5d is not in the plans; choose one of: 2d, "):
        write_settings(plans_file, "5d", "iac", {"seed": 4})
    assert plans_file.read_bytes() == before


def test_settings_wait_for_another_writer(plans_file, monkeypatch):
    from nnunet_nas.files import locked

    before = plans_file.read_bytes()
    monkeypatch.setattr("nnunet_nas.plans._LOCK_SECONDS", 0.05)
    with (
        locked(plans_file, timeout=0, busy="busy"),
        pytest.raises(EnvironmentProblem, match="another process has been writing"),
    ):
        write_settings(plans_file, "2d", "iac", {"seed": 4})
    assert plans_file.read_bytes() == before


CHANGES = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["iac", "iac_lth"]),
    st.dictionaries(st.sampled_from(["x", "y"]), st.integers(0, 2), max_size=2),
    st.sets(st.sampled_from(["x", "y"]), max_size=1),
)


@pytest.mark.integration
@settings(max_examples=50, deadline=None)
@given(st.lists(CHANGES, max_size=6))
def test_any_sequence_of_changes_leaves_in_force_what_was_asked_for(changes):
    configurations = {"a": {}, "b": {"inherits_from": "a"}, "c": {"inherits_from": "b"}}
    plans = {"plans_name": "p", "configurations": configurations}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.json"
        path.write_text(json.dumps(plans, indent=4))
        for name, method, values, removed in changes:
            before = Plans(read(path)).resolve(name).get("nas_settings", {})
            write_settings(path, name, method, values, sorted(removed))
            after = Plans(read(path)).resolve(name).get("nas_settings", {})
            wanted = {**before.get(method, {}), **values}
            wanted = {key: value for key, value in wanted.items() if key not in removed}
            assert after == {key: value for key, value in {**before, method: wanted}.items() if value}
        everything = ["x", "y"]
        for name in ("a", "b", "c"):
            for method in ("iac", "iac_lth"):
                write_settings(path, name, method, {}, everything)
        assert path.read_text() == json.dumps(plans, indent=4)


def raise_os_error(code):
    def function(*arguments, **keywords):
        raise OSError(code, os.strerror(code))

    return function


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (("os.fsync", errno.ENOSPC), "no space left"),
        (("os.fsync", errno.EDQUOT), "no space left"),
        (("os.fsync", errno.EIO), "check the disk"),
        (("nnunet_nas.files._create_beside", errno.ENOSPC), "no space left"),
        (("nnunet_nas.files._create_beside", errno.EROFS), "make it writable"),
        (("nnunet_nas.files._create_beside", errno.EACCES), "make it writable"),
    ],
)
@pytest.mark.parametrize("output", [None, "tinyPlans"])
def test_a_failed_write_leaves_everything_as_it_was(plans_file, monkeypatch, failure, message, output):
    before = {path.name: path.read_bytes() for path in plans_file.parent.glob("*.json")}
    function, code = failure
    with monkeypatch.context() as patch:
        patch.setattr(function, raise_os_error(code))
        with pytest.raises(EnvironmentProblem, match=message):
            add(plans_file, 8, output=output)
    assert {path.name: path.read_bytes() for path in plans_file.parent.glob("*.json")} == before
    assert no_leftovers(plans_file.parent)
    assert add(plans_file, 8, output=output) == ["2d_xtiny8"]


@pytest.mark.parametrize("function", ["os.fsync", "nnunet_nas.files._create_beside"])
def test_a_failed_write_of_settings_leaves_everything_as_it_was(plans_file, monkeypatch, function):
    before = plans_file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(function, raise_os_error(errno.ENOSPC))
        with pytest.raises(EnvironmentProblem, match="no space left"):
            write_settings(plans_file, "2d", "iac", {"seed": 4})
    assert plans_file.read_bytes() == before
    assert no_leftovers(plans_file.parent)


WRITER = """
import sys
from pathlib import Path
import filelock
from nnunet_nas.plans import Plans, DerivedConfiguration, Provenance
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
plans = Plans.read(path)
provenance = Provenance("xtiny", plans.digest("2d"), {})
architecture = plans.configurations["2d"]["architecture"]
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
for number in range(count):
    plans.add([DerivedConfiguration(f"{name}{number}", "2d", architecture, provenance)])
"""


def start_writer(path, name, count):
    """A process that has imported everything and waits for a line before it writes."""
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_that_add_at_once_both_end_up_in_the_file(plans_file):
    writers = [start_writer(plans_file, name, 15) for name in ("first", "second")]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    names = set(read(plans_file)["configurations"])
    assert {f"{name}{number}" for name in ("first", "second") for number in range(15)} <= names


def test_a_kill_at_any_instant_leaves_whole_plans(plans_file):
    before = read(plans_file)
    written = 0
    rng = random.Random(0)
    for attempt in range(8):
        writer = start_writer(plans_file, f"kill{attempt}_", 10**6)
        writer.stdin.write("go\n")
        writer.stdin.flush()
        # On a busy machine a writer may not have begun by then: it is killed while it writes, not before.
        deadline = time.monotonic() + 60
        while f"kill{attempt}_0" not in read(plans_file)["configurations"]:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(timeout=60) == -signal.SIGKILL
        plans = read(plans_file)
        added = [name for name in plans["configurations"] if name not in before["configurations"]]
        assert len(added) > written
        written = len(added)
        for name in added:
            del plans["configurations"][name]
        assert plans == before
    # The lock of the killed process is free, and the next writer goes on.
    assert add(plans_file, 8) == ["2d_xtiny8"]
