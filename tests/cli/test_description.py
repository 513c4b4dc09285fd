"""A broken `dataset.json` is one line and exit code 4, whatever reads it, and nothing is written."""

import json

import numpy as np
import pytest
from fake_dataset import BROKEN_DESCRIPTIONS
from searches import make_trainer, message

from nnunet_nas.cli.main import main
from nnunet_nas.dints.trainers import nnUNetTrainerDiNTSSearch
from nnunet_nas.iac.trainers import nnUNetTrainerIACLTHSearch
from nnunet_nas.schedule.trainer import nnUNetTrainerScheduled

COMMANDS = {
    "info": "",
    "add_skip": "-c 2d -m attention",
    "add_encoder": "-c 2d -m mobilenetv3_large",
    "add_width": "-c 2d -width 24",
    "import_dints": "-c 2d -code CODE",
    "transfer": "-c 2d_bs4 -from 11:2d_found",
    "select_tiny": "-c 2d -device cpu",
    "prove_tiny": "-c 2d -f 0 -widths 16 -device cpu",
}
OPTIONS = {**{name: f"{name} -d 11 {words}" for name, words in COMMANDS.items()},
           "paper's rule": "select_tiny -d 11 -c 2d -rule paper -device cpu"}  # fmt: skip


@pytest.fixture
def search_results(dataset, tmp_path):
    """Plans with a width that was found, and the code of a topology."""
    content = json.loads((dataset / "nnUNetPlans.json").read_text())
    record = {"method": "xtiny", "base_digest": "sha256:x", "settings": {}, "seeds": [0]}
    found = {"inherits_from": "2d", "architecture": content["configurations"]["2d"]["architecture"], "nas": record}
    content["configurations"]["2d_found"] = found
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content, indent=4))
    code = tmp_path / "code.json"
    code.write_text(json.dumps({"arch_code_a": np.ones((2, 7)).tolist(), "arch_code_c": np.full((2, 7), 2).tolist()}))
    return code


def break_description(dataset, content):
    path = dataset / "dataset.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize("content", [None, *BROKEN_DESCRIPTIONS.values()], ids=["missing", *BROKEN_DESCRIPTIONS])
def test_commands_refuse_it_in_one_line(dataset, search_results, capsys, content):
    break_description(dataset, content)
    before = {path: path.read_bytes() for path in dataset.glob("*.json")}
    for name, words in OPTIONS.items():
        capsys.readouterr()
        code = main(words.replace("CODE", str(search_results)).split())
        error = capsys.readouterr().err
        if name == "info" and code == 0:  # which counts what it can
            assert all("is left out: " in line for line in error.splitlines())
            continue
        assert (code, error.count("\n")) == (4, 1), (name, error)
        assert "dataset.json" in error, name
    assert {path: path.read_bytes() for path in dataset.glob("*.json")} == before


@pytest.mark.parametrize("trainer", [nnUNetTrainerIACLTHSearch, nnUNetTrainerDiNTSSearch, nnUNetTrainerScheduled])
@pytest.mark.parametrize("content", ["list", "number", "nothing", "channels", "labels", "ending"])
def test_trainers_refuse_what_nnunet_hands_to_them(dataset, capsys, trainer, content):
    """What is not JSON does not come as far: nnU-Net reads it before."""
    break_description(dataset, BROKEN_DESCRIPTIONS[content])
    with pytest.raises(SystemExit) as stop:
        make_trainer(trainer, dataset)
    assert stop.value.code == 4
    assert "dataset.json" in message(capsys)
