"""A configuration whose base has changed is made again by the command that is named, whatever had made it."""

import json
import shlex
import shutil

import pytest

from nnunet_nas.cli.main import main
from nnunet_nas.methods import METHODS, RETROFIT
from nnunet_nas.plans import Plans
from nnunet_nas.renewal import _LIMITS, Made, renewal

# Of a plan with 16 channels at the finest stage, what each command adds.
CALLS = {
    "skip": "add_skip -d 11 -c 2d -m conv",
    "width": "add_width -d 11 -c 2d -width 24",
    "width by memory": "add_width -d 11 -c 2d -memory_limit_mib 7.5",
    "width by another's memory": "add_width -d 11 -c 2d -as 2d_bs4",
    "width by operations": "add_width -d 11 -c 2d -macs 60000000",
    "width by operations, exact": "add_width -d 11 -c 2d -macs 60000000 --exact",
    "width by another's operations": "add_width -d 11 -c 2d -as_macs 3d_lowres",
    "encoder": "add_encoder -d 11 -c 2d -m mobilenetv3_large",
    "imported topology": "import_dints -d 11 -c 3d_fullres -code code.json -name _monai -first_level 0",
    "imported topology by default": "import_dints -d 11 -c 2d -code code.json",
    "transfer": "transfer -d 11 -c 2d -from Dataset012_Other:2d_xtiny8",
    "transfer of other plans": "transfer -d 11 -c 2d -from Dataset012_Other:2d_xtiny8 -from_plans narrowPlans",
    "in other plans": "add_skip -d 11 -c 2d -p nnUNetResEncUNetMPlans -m conv",
}


def read(folder, plans="nnUNetPlans"):
    return json.loads((folder / f"{plans}.json").read_text())


def write(folder, content, plans="nnUNetPlans"):
    (folder / f"{plans}.json").write_text(json.dumps(content))


@pytest.fixture
def workplace(dataset, monkeypatch, tmp_path):
    """Beside the data set: an architecture code where commands run, and another data set with a width."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.json").write_text(json.dumps({"arch_code_a": [[1] * 7] * 2, "arch_code_c": [[1] * 7] * 2}))
    source = dataset.with_name("Dataset012_Other")
    shutil.copytree(dataset, source)
    for plans in ("nnUNetPlans", "narrowPlans"):
        content = {**read(source), "dataset_name": source.name, "plans_name": plans}
        narrow = json.loads(json.dumps(content["configurations"]["2d"]["architecture"]))
        narrow["arch_kwargs"]["features_per_stage"] = [8, 8, 8]
        record = {"method": "xtiny", "base_digest": "sha256:x", "settings": {"cap": 8}, "seeds": [0], "fold": None}
        content["configurations"]["2d_xtiny8"] = {"inherits_from": "2d", "architecture": narrow, "nas": record}
        write(source, content, plans)
    return dataset


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_named_command_makes_the_configuration_again(workplace, capsys, call):
    words = call.split()
    plans = words[words.index("-p") + 1] if "-p" in words else "nnUNetPlans"
    before = set(read(workplace, plans)["configurations"])
    assert main(words) == 0
    content = read(workplace, plans)
    (name,) = set(content["configurations"]) - before
    record = content["configurations"][name]["nas"]
    # Another spacing is another base, and the same network.
    content["configurations"][words[words.index("-c") + 1]]["spacing"][-1] *= 2
    write(workplace, content, plans)
    capsys.readouterr()
    assert main(["ls", "-d", "11"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stale: ")]
    command = line.partition(": make it again with ")[2]
    assert "search" not in line
    assert command == shlex.join(["nnunet_nas", *_ordered(words), "--overwrite"])
    assert main(shlex.split(command)[1:]) == 0
    now = Plans.of(workplace, plans)
    assert now.staleness(name) is None
    assert now.configurations[name]["nas"]["settings"].keys() == record["settings"].keys()


def test_info_names_the_same_command(dataset, capsys):
    assert main(["add_skip", "-d", "11", "-c", "2d", "-m", "conv"]) == 0
    content = read(dataset)
    content["configurations"]["2d"]["batch_size"] += 1
    write(dataset, content)
    capsys.readouterr()
    assert main(["info", "-d", "11", "-c", "2d_conv"]) == 0
    command = "nnunet_nas add_skip -d 11 -c 2d -m conv --overwrite"
    assert f"(planned again?); make it again with {command}\n" in capsys.readouterr().err


def _ordered(words):
    """Data set, configuration and plans first, an import's name always."""
    if words[0] == "import_dints" and "-name" not in words:
        words = [*words, "-name", "_dints_import"]
    if "-p" not in words:
        return words
    at = words.index("-p")
    return [*words[:5], *words[at : at + 2], *words[5:at], *words[at + 2 :]]


def made(method, settings=None, name="2d_x", **record):
    return Made(name, "2d", {"method": method, "settings": settings or {}, **record}, 4, "nnUNetPlans")


@pytest.mark.parametrize(
    ("configuration", "advice"),
    [
        (
            made("iac_lth", fold=2, search_folder="T__nnUNetPlans__2d/fold_2"),
            "remove it from the plans, move its search (T__nnUNetPlans__2d/fold_2) away, and search again with "
            "nnUNetv2_train 4 2d 2 -tr nnUNetTrainerIACLTHSearch",
        ),
        (
            made("dints", fold="all"),
            "remove it from the plans, move its search away, and search again with "
            "nnUNetv2_train 4 2d all -tr nnUNetTrainerDiNTSSearch",
        ),
        (
            made("xtiny", {"cap": 8, "rule": "race", "metric": "dice"}),
            "make it again with nnunet_nas select_tiny -d 4 -c 2d --overwrite",
        ),
        (
            made("xtiny", {"cap": 8, "rule": "paper", "metric": "jacobian"}),
            "make it again with nnunet_nas select_tiny -d 4 -c 2d -rule paper --overwrite",
        ),
        (
            made("xtiny", {"cap": 8, "rule": "paper", "metric": "synflow"}),
            "make it again with nnunet_nas select_tiny -d 4 -c 2d -rule paper -metric synflow --overwrite",
        ),
        (
            made("iac_lth", fold=0, seeds=[3], random_like="2d_iaclth", search_folder="T__nnUNetPlans__2d/fold_0"),
            "make it again with nnunet_nas add_random -d 4 -c 2d_iaclth -seed 3 --overwrite",
        ),
        (
            made("encoder", {"encoder": "resnet50", "weights": "/a b/w.pth"}),
            "make it again with nnunet_nas add_encoder -d 4 -c 2d -m resnet50 -weights '/a b/w.pth' --overwrite",
        ),
    ],
)
def test_searches_and_selections_are_run_again(configuration, advice):
    assert renewal(configuration) == advice


def test_every_method_that_derives_configurations_can_say_how():
    settings = {"skip_module": "conv", "encoder": "resnet50", "width": 8}
    derives = [name for name in METHODS if name not in (RETROFIT, "distill", "schedule")]
    advice = [renewal(made(name, settings)) for name in derives]
    assert all("nnunet_nas " in words or "nnUNetv2_train 4 2d 0" in words for words in advice)


@pytest.mark.parametrize(
    "configuration",
    [
        made("another"),
        made("schedule"),
        made("skip"),
        made("encoder", {"encoder": 5}),
        made("width", {"limit": 5, "unit": "apples"}),
        made("width", {}),
        made("dints", {"code": 5}),
        made("dints", {"code": "a.json"}, name="other"),
        made("xtiny", transferred_from={"dataset": "Dataset012_Other"}),
        made("xtiny", transferred_from=["Dataset012_Other"]),
        made("dints", seeds=[0], random_like=5),
        made("dints", seeds=0, random_like="2d_dints"),
        Made("2d_x", "2d", {"method": "skip", "settings": "conv"}, 4, "nnUNetPlans"),
    ],
)
def test_what_a_record_does_not_tell_is_not_guessed(configuration):
    assert renewal(configuration) == "derive it again"


def test_limits_are_of_what_add_width_writes():
    from nnunet_nas.widths import MACS, MEMORY

    assert set(_LIMITS) == {MEMORY.unit, MACS.unit}


def test_without_its_base_nothing_can_be_made_again(dataset, capsys):
    assert main(["add_skip", "-d", "11", "-c", "2d", "-m", "conv"]) == 0
    content = read(dataset)
    del content["configurations"]["2d"]
    write(dataset, content)
    capsys.readouterr()
    assert main(["ls", "-d", "11"]) == 4
    plans = Plans.of(dataset, "nnUNetPlans")
    assert plans.remedy("2d_conv") == "put its base back, or remove it from the plans"


def test_plans_of_a_trainer_know_their_data_set_by_name(dataset):
    assert main(["add_skip", "-d", "11", "-c", "2d", "-m", "conv"]) == 0
    command = "make it again with nnunet_nas add_skip -d {} -c 2d -m conv --overwrite"
    content = read(dataset)
    assert Plans(content).remedy("2d_conv") == command.format(11)
    assert Plans({**content, "dataset_name": "odd"}).remedy("2d_conv") == command.format("DATASET")
