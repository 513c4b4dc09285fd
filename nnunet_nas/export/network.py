"""One network as an ONNX file: batch axis free, patch fixed, deep supervision off.

Two kinds of layers are written in another form, of the same value:

- A transposed convolution whose kernel is its stride, as all of nnU-Net's are, is a 1x1 convolution and a reordering of
  its channels into voxels: exactly the same sums. Web runtimes lack the other one in 3-D.
- Instance normalisation takes its means axis by axis. ONNX Runtime's own operator adds up all voxels one after the
  other in single precision: on real images its logits were 25 times as far from double precision as torch's.
"""

from __future__ import annotations

import copy
import inspect
import io
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_nas.errors import EnvironmentProblem
from nnunet_nas.files import replace_file

_OPSET = 18
_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


class ChannelsToVoxels(nn.Module):
    """A transposed convolution with kernel = stride, as a 1x1 convolution and a reordering."""

    def __init__(self, transposed: Any) -> None:
        super().__init__()
        self.stride = tuple(transposed.stride)
        dimensions = len(self.stride)
        self.channels = transposed.out_channels
        factor = int(torch.tensor(self.stride).prod())
        convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.conv = convolution(transposed.in_channels, self.channels * factor, 1, bias=transposed.bias is not None)
        with torch.no_grad():
            weight = transposed.weight.movedim(0, -1).reshape(self.channels * factor, transposed.in_channels)
            self.conv.weight.copy_(weight[(...,) + (None,) * dimensions])
            if transposed.bias is not None and self.conv.bias is not None:
                self.conv.bias.copy_(transposed.bias.repeat_interleave(factor))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, *spatial) to (b, channels, *(spatial * stride))."""
        spatial, dimensions = x.shape[2:], len(self.stride)
        y = self.conv(x).reshape(-1, self.channels, *self.stride, *spatial)
        order = [axis for d in range(dimensions) for axis in (2 + dimensions + d, 2 + d)]
        sizes = [size * step for size, step in zip(spatial, self.stride, strict=True)]
        return y.permute(0, 1, *order).reshape(-1, self.channels, *sizes)


class AxiswiseInstanceNorm(nn.Module):
    """Instance normalisation over the present image, by means along one axis after the other."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, *spatial), normalised per image and channel."""
        centred = x - _spatial_mean(x)
        scale = torch.rsqrt(_spatial_mean(centred * centred) + self.eps)
        if self.weight is None:
            return centred * scale
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return centred * (scale * self.weight.view(shape)) + self.bias.view(shape)


def _spatial_mean(x: Tensor) -> Tensor:
    for axis in range(x.ndim - 1, 1, -1):
        x = x.mean(axis, keepdim=True)
    return x


def portable(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode with layers of the other form where there is one; see the module."""
    twin = copy.deepcopy(network).eval()
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _TRANSPOSED) and _is_plain(child):
                setattr(module, name, ChannelsToVoxels(child))
            elif isinstance(child, _NORMS) and not child.track_running_stats:
                setattr(module, name, AxiswiseInstanceNorm(child))
    return twin


def _is_plain(transposed: Any) -> bool:
    return (
        tuple(transposed.kernel_size) == tuple(transposed.stride)
        and not any(transposed.padding)
        and not any(transposed.output_padding)
        and set(transposed.dilation) == {1}
        and transposed.groups == 1
    )


def write_network(network: nn.Module, path: Path, *, channels: int, patch_size: Sequence[int]) -> None:
    """Writes a network as ONNX, whole or not at all.

    Args:
        network: (b, channels, *patch_size) to logits, on the CPU.
        path: of the file.
        channels: of its input.
        patch_size: voxels.

    Raises:
        EnvironmentProblem: the packages that export are missing, torch is too old, or the file cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter imports it)
    except ImportError as error:
        raise EnvironmentProblem(f"{error.name} is not installed: pip install 'nnunet-nas[export]'") from error
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        raise EnvironmentProblem(f"torch {torch.__version__} is too old to export networks: pip install 'torch>=2.6'")
    # Two patches: a batch of one would be taken for a constant.
    example = torch.zeros(2, channels, *patch_size)
    with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            portable(network),
            (example,),
            dynamo=True,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    onnx.checker.check_model(model)
    replace_file(path, model.SerializeToString())


def _strip(model: Any) -> None:
    """Takes out what torch notes about its source code: three quarters of a small network's file."""
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
