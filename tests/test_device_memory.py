"""What steps need on a GPU, by hand and against each other, and what trainers do where it is not there."""

import copy

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_nas.device_memory import needed_mib, require_fit
from nnunet_nas.errors import DataProblem, EnvironmentProblem
from nnunet_nas.iac.settings import IACLTHSettings
from nnunet_nas.iac.supernet import IACSupernet
from nnunet_nas.skips import recompute as recompute_module
from nnunet_nas.skips.recompute import recomputes

MIB = 2**20


def two_layers():
    return nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))


def unet():
    torch.manual_seed(1)
    return PlainConvUNet(
        1, n_stages=3, features_per_stage=(8, 16, 32), conv_op=nn.Conv2d, kernel_sizes=3, strides=(1, 2, 2),
        n_conv_per_stage=1, n_conv_per_stage_decoder=1, num_classes=2, conv_bias=True, norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip


def supernet(*, recompute=False):
    network = IACSupernet(unet(), IACLTHSettings())
    network.decoder.recompute = recompute
    return network


def test_two_layers_by_hand():
    # Kept in half precision: the image (64x64), the map between (4 channels), and copies of both weights; the image
    # itself, and weights with gradient and momentum, in single precision.
    voxels, weights = 64 * 64, 4 + 8
    expected = 2 * (voxels + 4 * voxels) + 2 * weights + 4 * voxels + 3 * 4 * weights
    assert needed_mib(two_layers, (1, 1, 64, 64)) * MIB == expected
    assert needed_mib(two_layers, (1, 1, 64, 64), momentum=False) * MIB == expected - 4 * weights


def test_random_numbers_are_as_before():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    needed_mib(supernet, (1, 1, 32, 32))
    assert torch.get_rng_state().equal(before)


def test_cells_that_are_computed_again_need_less_and_give_the_same_numbers():
    kept, again = (needed_mib(lambda r=r: supernet(recompute=r), (2, 1, 128, 128)) for r in (False, True))
    assert again < 0.6 * kept
    results = []
    network, images = supernet(), torch.randn(2, 1, 32, 24)
    for recompute in (False, True):
        own = copy.deepcopy(network)
        own.decoder.recompute = recompute
        outputs = own(images)
        sum(output.square().mean() for output in outputs).backward()
        results.append([*outputs, *(p.grad for p in own.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    for kept_one, recomputed in zip(*results, strict=True):
        assert kept_one.equal(recomputed)


class Trainer:
    """As much of one as the decision reads."""

    def __init__(self, wanted):
        self.settings = IACLTHSettings(recompute=wanted)
        self.device, self.lines = torch.device("cuda"), []

    def print_to_log_file(self, line):
        self.lines.append(line)


def decide(wanted, available, monkeypatch, network=None):
    monkeypatch.setattr(recompute_module, "available_mib", lambda device: available)
    trainer = Trainer(wanted)
    own = supernet() if network is None else network
    decided = recomputes(
        trainer, own, supernet, (2, 1, 128, 128), what="the search", advice="set search_batch_size below 2"
    )
    return decided, trainer.lines


def test_a_gpu_that_is_too_small_has_its_cells_computed_again_or_is_refused(monkeypatch):
    kept, again = (needed_mib(lambda r=r: supernet(recompute=r), (2, 1, 128, 128)) for r in (False, True))
    assert decide("auto", kept + 1, monkeypatch)[0] is False
    decided, lines = decide("auto", (kept + again) / 2, monkeypatch)
    assert decided is True
    assert f"the search needs {again:.0f} MiB in mixed precision, cells computed again" in lines[0]
    for wanted, available in (("never", (kept + again) / 2), ("auto", again / 2), ("always", again / 2)):
        with pytest.raises(EnvironmentProblem, match=r"the search needs \d+ MiB, the GPU has \d+: set search_b"):
            decide(wanted, available, monkeypatch)


def test_elsewhere_nothing_is_computed_again_unless_it_is_asked_for(monkeypatch):
    assert decide("auto", None, monkeypatch) == (False, [])
    assert decide("always", None, monkeypatch) == (True, [])


def test_running_statistics_are_not_updated_twice(monkeypatch):
    network = supernet()
    network.decoder.skip_modules[0].norm_layer = nn.BatchNorm2d(4)
    with pytest.raises(DataProblem, match="recompute=never"):
        decide("always", None, monkeypatch, network)
    with pytest.raises(EnvironmentProblem):
        decide("auto", 1.0, monkeypatch, network)


def test_what_fits_is_let_through():
    require_fit("a step", 10.0, 10.0, "buy another")
    with pytest.raises(EnvironmentProblem, match="a step needs 11 MiB, the GPU has 10: buy another"):
        require_fit("a step", np.nextafter(10.6, 11), 10.0, "buy another")
