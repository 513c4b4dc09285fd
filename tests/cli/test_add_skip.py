"""`nnunet_nas add_skip`: published skip modules as plans configurations."""

import json

import pytest

from nnunet_nas.architecture import build_network, network_spec
from nnunet_nas.cli.main import main
from nnunet_nas.plans import Plans


def plans(dataset):
    return json.loads((dataset / "nnUNetPlans.json").read_text())


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("module", ["attention", "residual_attention", "nested", "conv"])
def test_it_adds_a_network_that_nnunet_builds(dataset, capsys, configuration, module):
    before = plans(dataset)
    assert main(["add_skip", "-d", "11", "-c", configuration, "-m", module]) == 0
    name, after = f"{configuration}_{module}", plans(dataset)
    entry = after["configurations"].pop(name)
    assert after == before
    assert (entry["inherits_from"], entry["nas"]["method"]) == (configuration, "skip")
    assert Plans(plans(dataset)).staleness(name) is None
    spec = network_spec(Plans(plans(dataset)), name, json.loads((dataset / "dataset.json").read_text()))
    assert type(build_network(spec)).__name__ == "SkipModuleUNet"
    assert capsys.readouterr().err.splitlines() == [
        f"next: nnUNetv2_train 11 {name} 0",
        f"or, on the frozen backbone: nnUNetv2_train 11 {name} 0 -tr nnUNetTrainerIACRetrofit",
        f"then: nnUNetv2_predict -i INPUT_FOLDER -o OUTPUT_FOLDER -d 11 -c {name} -f 0",
    ]


def test_modules_are_not_stacked(dataset, capsys):
    assert main(["add_skip", "-d", "11", "-c", "2d", "-m", "nested"]) == 0
    capsys.readouterr()
    assert main(["add_skip", "-d", "11", "-c", "2d_nested", "-m", "attention"]) == 4
    assert "has modules in its skips already" in capsys.readouterr().err
