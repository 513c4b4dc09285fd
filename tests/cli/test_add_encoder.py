"""`nnunet_nas add_encoder`: encoders of timm in nnU-Net's U-Net, and what nnU-Net asks of a network."""

import copy
import json

import pytest
import torch

from nnunet_nas.architecture import build_network, network_spec
from nnunet_nas.cli.main import main
from nnunet_nas.encoders.network import ENCODERS, halvings
from nnunet_nas.plans import Plans


def plans(dataset):
    return json.loads((dataset / "nnUNetPlans.json").read_text())


def built(dataset, name, **options):
    spec = network_spec(Plans(plans(dataset)), name, json.loads((dataset / "dataset.json").read_text()))
    return build_network(spec, seed=0, **options), spec


def test_how_often_a_patch_can_be_halved():
    assert [halvings(patch) for patch in ((256, 256), (32, 24), (56, 40), (7, 8))] == [5, 3, 3, 0]


QUICK = "mobilenetv3_large"  # the others take seconds each


@pytest.mark.parametrize(
    "encoder", [name if name == QUICK else pytest.param(name, marks=pytest.mark.integration) for name in ENCODERS]
)
def test_it_adds_a_network_that_nnunet_can_train(dataset, capsys, encoder):
    assert main(["add_encoder", "-d", "11", "-c", "2d", "-m", encoder]) == 0
    assert capsys.readouterr().err.splitlines()[0] == f"next: nnUNetv2_train 11 2d_{encoder} 0"
    network, spec = built(dataset, f"2d_{encoder}", deep_supervision=True)
    strides = spec.architecture["arch_kwargs"]["strides"]
    images = torch.randn(2, spec.input_channels, *spec.patch_size)
    outputs = network(images)
    assert len(outputs) == len(strides) - 1
    for level, output in enumerate(outputs):
        assert output.shape == (2, spec.output_channels, *(size // 2**level for size in spec.patch_size))
    sum(output.square().mean() for output in outputs).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    other, _ = built(dataset, f"2d_{encoder}")
    other.load_state_dict(network.state_dict(), strict=True)
    network.decoder.deep_supervision = False
    network.eval()
    other.eval()
    assert network(images).equal(other(images))
    assert network.compute_conv_feature_map_size(spec.patch_size) > 0
    assert all(network.get_submodule(key) for key in network.keys_to_in_proj)


def test_weights_of_a_file_are_the_encoders_for_any_number_of_channels(dataset, tmp_path):
    import timm

    torch.manual_seed(3)
    trained = timm.create_model("mobilenetv3_large_100", pretrained=False)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    options = ["-m", "mobilenetv3_large", "-weights", str(tmp_path / "weights.pth")]
    assert main(["add_encoder", "-d", "11", "-c", "2d", *options]) == 0
    network, spec = built(dataset, "2d_mobilenetv3_large")
    assert spec.input_channels == 1
    first = network.encoder.body.conv_stem.weight
    assert torch.allclose(first, 3 * trained.conv_stem.weight.mean(1, keepdim=True))
    key = "blocks.1.0.conv_pw.weight"
    assert network.encoder.body.state_dict()[key].equal(trained.state_dict()[key])


def test_cells_and_skip_modules_go_into_it(dataset):
    assert main(["add_encoder", "-d", "11", "-c", "2d", "-m", "mobilenetv3_large"]) == 0
    assert main(["add_skip", "-d", "11", "-c", "2d_mobilenetv3_large", "-m", "attention"]) == 0
    network, spec = built(dataset, "2d_mobilenetv3_large_attention")
    network.freeze_backbone()
    network.train()
    statistics = copy.deepcopy(network.encoder.body.bn1.running_mean)
    network(torch.randn(2, 1, *spec.patch_size))
    assert network.encoder.body.bn1.running_mean.equal(statistics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "3d_fullres", "-m", "resnet50"], "these encoders are 2-D"),
        (["-c", "2d", "-m", "resnet50", "-weights", "nowhere.pth"], "-weights nowhere.pth is not a file"),
    ],
)
def test_what_cannot_be_is_refused(dataset, capsys, options, message):
    before = (dataset / "nnUNetPlans.json").read_bytes()
    assert main(["add_encoder", "-d", "11", *options]) == 4
    assert message in capsys.readouterr().err
    assert (dataset / "nnUNetPlans.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("patch_size"), "no network that nnU-Net could build"),
        (
            lambda entry: entry["architecture"].update(arch_kwargs="0"),
            "architecture.arch_kwargs of the configuration must",
        ),
        (lambda entry: entry["architecture"]["arch_kwargs"].pop("nonlin_kwargs"), "have no nonlin_kwargs: choose one"),
    ],
)
def test_a_broken_configuration_is_refused_in_one_line(dataset, capsys, change, message):
    content = plans(dataset)
    change(content["configurations"]["2d"])
    (dataset / "nnUNetPlans.json").write_text(json.dumps(content))
    before = (dataset / "nnUNetPlans.json").read_bytes()
    assert main(["add_encoder", "-d", "11", "-c", "2d", "-m", QUICK]) == 4
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (dataset / "nnUNetPlans.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"foreign"])
def test_a_file_that_holds_no_weights_is_one_line(dataset, tmp_path, content, capsys):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    before = (dataset / "nnUNetPlans.json").read_bytes()
    assert main(["add_encoder", "-d", "11", "-c", "2d", "-m", QUICK, "-weights", str(path)]) == 4
    error = capsys.readouterr().err
    assert f"{path} is damaged or no file of torch" in error
    assert error.count("\n") == 1
    assert (dataset / "nnUNetPlans.json").read_bytes() == before
