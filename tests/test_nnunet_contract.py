"""The table of what is used of nnU-Net is complete, holds here, and a changed nnU-Net is named exactly."""

import ast
import importlib.metadata
import inspect
import re
import sys
import textwrap
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_nas
from nnunet_nas import nnunet_contract
from nnunet_nas.methods import METHODS, part
from nnunet_nas.nnunet_contract import CONTRACT, NNUNET_VERSIONS, changes

PACKAGE = Path(nnunet_nas.__file__).parent
SOURCES = [path for path in PACKAGE.rglob("*.py") if path.name != "nnunet_contract.py"]
LIBRARIES = ("nnunetv2", "dynamic_network_architectures", "acvl_utils", "batchgenerators", "batchgeneratorsv2")
LISTED = {used.path for used in CONTRACT}
OF_TRAINER = [used for used in CONTRACT if used.path.startswith(nnunet_contract._TRAINER)]
HOOKS = {used.name.partition(".")[2]: used for used in OF_TRAINER if used.overridden}


def imported(path):
    """What a file imports from the libraries, as the table spells it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            yield from (f"{node.module}:{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in LIBRARIES)


def our_trainers():
    """Our trainers and the classes of ours that they inherit from."""
    named = [part(method.trainer) for method in METHODS.values() if method.trainer]
    return {member for trainer in named for member in trainer.__mro__ if member.__module__.startswith("nnunet_nas")}


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


class TestComplete:
    def test_every_import_is_listed(self):
        used = {name for path in SOURCES for name in imported(path)}
        assert len(used) > 15
        assert used <= LISTED

    def test_every_overridden_method_is_listed_as_such_with_the_parameters_that_ours_take(self):
        overridden = {
            (name, trainer)
            for trainer in our_trainers()
            for name, value in vars(trainer).items()
            if name in vars(nnUNetTrainer) and (inspect.isroutine(value) or isinstance(value, property))
            if name == "__init__" or not name.startswith("__")
        }
        assert len({name for name, _ in overridden}) > 15
        for name, trainer in overridden:
            assert tuple(parameters(getattr(trainer, name))) == HOOKS[name].parameters, name
        assert set(HOOKS) == {name for name, _ in overridden}

    def test_every_attribute_of_nnunets_trainer_that_ours_touch_is_listed(self):
        theirs = {*vars(nnUNetTrainer), *nnunet_contract._assigned(nnUNetTrainer)}
        touched = {
            node.attr
            for trainer in our_trainers()
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(trainer))))
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()")
        }
        listed = {name for used in OF_TRAINER for name in (used.name.partition(".")[2], *used.attributes)}
        assert len(touched & theirs) > 40
        assert touched & theirs <= listed

    def test_every_command_and_environment_variable_in_the_package_is_listed(self):
        text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
        commands = {f"command:{name}" for name in re.findall(r"\bnnUNetv2_[a-z_]+", text)}
        variables = set(re.findall(r"[^.\w](nnUNet_[a-zA-Z_]+)", text))
        assert commands <= LISTED
        assert variables <= {word for used in CONTRACT for word in used.words}

    def test_nothing_is_listed_that_the_package_does_not_name(self):
        named = set(re.findall(r"[\w.-]+", "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)))
        named |= {part for name in named for part in name.split(".")}
        listed = {name for used in CONTRACT for name in (*used.attributes, *used.words)}
        assert listed - named == set()

    def test_the_range_of_versions_is_that_of_the_package(self):
        project = PACKAGE.parent / "pyproject.toml"
        assert f'"nnunetv2{NNUNET_VERSIONS}"' in project.read_text(encoding="utf-8")

    def test_the_versions_that_were_run_are_those_of_the_documentation(self):
        table = (PACKAGE.parent / "docs" / "versions.md").read_text(encoding="utf-8")
        rows = [
            [cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines() if line.startswith("| 2")
        ]
        assert {"nnunetv2": {row[0] for row in rows}, "torch": {row[1] for row in rows}} == {
            name: set(versions) for name, versions in nnunet_contract.RUN_WITH.items()
        }


def test_what_is_installed_here_keeps_it():
    assert changes() == []


def build_without_deep_supervision(plans_manager, configuration_manager, num_input_channels, num_output_channels):
    raise NotImplementedError


def build_in_another_order(
    configuration_manager, plans_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
):
    raise NotImplementedError


class PlansOfTomorrow:
    def __init__(self, plans_file_or_dict):
        self.plans = plans_file_or_dict
        self.identifier = self.plans["plans_name"]
        self.dataset_name = self.plans["dataset_name"]
        self.names = (self.plans["configurations"], "inherits_from")

    def get_label_manager(self, dataset_json):
        raise NotImplementedError


def compiles(self):
    return "NNUNET_COMPILE"


TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer"
CHANGED = {
    "a parameter less": (
        f"{TRAINER}.build_network_architecture",
        staticmethod(build_without_deep_supervision),
        "nnUNetTrainer.build_network_architecture has lost `enable_deep_supervision`: searches build their networks "
        "there",
    ),
    "another order": (
        f"{TRAINER}.build_network_architecture",
        staticmethod(build_in_another_order),
        "nnUNetTrainer.build_network_architecture takes its parameters in another order (configuration_manager, "
        "plans_manager, num_input_channels, num_output_channels, enable_deep_supervision): searches build their "
        "networks there",
    ),
    "one more for a method that ours override": (
        f"{TRAINER}.set_deep_supervision_enabled",
        lambda self, enabled, levels=None: None,
        "nnUNetTrainer.set_deep_supervision_enabled has gained `levels`: the searches follow nnU-Net's training loop",
    ),
    "another name": (
        f"{TRAINER}.do_split",
        lambda self, number: "splits_final.json",
        "nnUNetTrainer.do_split has gained `number`: a search sees the training cases of its fold only",
    ),
    "an attribute less": (
        "nnunetv2.utilities.plans_handling.plans_handler.PlansManager",
        PlansOfTomorrow,
        "PlansManager has no `plans_name` any more: plans are read through it",
    ),
    "another environment variable": (
        f"{TRAINER}._do_i_compile",
        compiles,
        "nnUNetTrainer._do_i_compile no longer knows `nnUNet_compile`: doctor says when torch.compile is on",
    ),
    "one more that a call must give": (
        "acvl_utils.cropping_and_padding.bounding_boxes.crop_and_pad_nd",
        lambda image, bbox, pad_value, mode: None,
        "crop_and_pad_nd has gained `mode`: patches are cut by it",
    ),
}


@pytest.mark.parametrize(("target", "value", "message"), CHANGED.values(), ids=CHANGED)
def test_what_has_changed_is_named_with_the_version_and_what_it_is_for(monkeypatch, target, value, message):
    monkeypatch.setattr(target, value)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.0")
    library = target.partition(".")[0]
    assert changes() == [f"{library} 2.9.0: {message}"]


def test_one_more_that_a_call_may_give_is_no_change(monkeypatch):
    target = "acvl_utils.cropping_and_padding.bounding_boxes.crop_and_pad_nd"
    monkeypatch.setattr(target, lambda image, bbox, pad_value=0, mode="constant", **more: None)
    assert changes() == []


def test_what_is_gone_is_named_whether_function_module_or_command(monkeypatch):
    assert changes() == []  # and everything is imported: the module that goes missing is missed by the table alone
    monkeypatch.delattr("nnunetv2.evaluation.evaluate_predictions.key_to_label_or_region")
    monkeypatch.setitem(sys.modules, "nnunetv2.utilities.default_n_proc_DA", None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.0")
    entries = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda *, group, name: () if name == "nnUNetv2_predict" else entries(group=group, name=name),
    )
    first, second, third = changes()
    path = "nnunetv2.evaluation.evaluate_predictions.key_to_label_or_region"
    assert first == f"nnunetv2 2.9.0: {path} is gone: classes are read by it"
    assert second == "nnunetv2 2.9.0: the command nnUNetv2_predict is gone: users are told to run it"
    assert third.startswith("nnunetv2 2.9.0: nnunetv2.utilities.default_n_proc_DA.get_allowed_n_proc_DA is gone (")


def test_a_decoder_that_names_its_parts_anew_is_noticed(monkeypatch):
    class Decoder:
        def __init__(self, encoder, num_classes, n_conv_per_stage, deep_supervision, nonlin_first=False):
            self.encoder, self.deep_supervision, self.stages = encoder, deep_supervision, num_classes
            self.upsampling = self.heads = n_conv_per_stage

    monkeypatch.setattr("dynamic_network_architectures.building_blocks.unet_decoder.UNetDecoder", Decoder)
    (change,) = changes()
    assert "UNetDecoder has no `transpconvs`, `seg_layers` any more: decoders are taken apart" in change
