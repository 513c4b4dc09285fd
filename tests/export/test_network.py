"""Layers in the form in which they are exported: the same value."""

import pytest
import torch
from torch import nn

from nnunet_nas.errors import EnvironmentProblem
from nnunet_nas.export.network import AxiswiseInstanceNorm, ChannelsToVoxels, portable, write_network


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2), (2, 4, 3)])
def test_a_transposed_convolution_is_a_reordered_1x1_convolution(stride, bias):
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if len(stride) == 2 else nn.ConvTranspose3d
    transposed = kind(3, 5, stride, stride, bias=bias).double()
    x = torch.randn(2, 3, *(4, 3, 2)[: len(stride)]).double()
    torch.testing.assert_close(ChannelsToVoxels(transposed).double()(x), transposed(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [nn.InstanceNorm2d, nn.InstanceNorm3d])
def test_instance_norm_axis_by_axis_is_instance_norm(kind, affine):
    torch.manual_seed(0)
    norm = kind(3, eps=1e-3, affine=affine).double()
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = 7 + torch.randn(2, 3, *(4, 5, 6)[: 2 if kind is nn.InstanceNorm2d else 3]).double()
    torch.testing.assert_close(AxiswiseInstanceNorm(norm)(x), norm(x), rtol=0, atol=1e-12)


def test_what_has_no_other_form_stays():
    overlapping = nn.ConvTranspose2d(2, 2, 3, 2, padding=1)
    running = nn.InstanceNorm2d(2, track_running_stats=True)
    twin = portable(nn.Sequential(overlapping, running))
    assert [type(module) for module in twin] == [nn.ConvTranspose2d, nn.InstanceNorm2d]


def test_a_torch_that_cannot_export_is_named(monkeypatch, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the packages of nnunet-nas[export]")
    monkeypatch.setattr(torch.onnx, "export", lambda model, args, f=None: None)
    with pytest.raises(EnvironmentProblem, match=r"is too old to export networks: pip install 'torch>=2\.6'"):
        write_network(nn.Conv2d(1, 1, 1), tmp_path / "network.onnx", channels=1, patch_size=(4, 4))
