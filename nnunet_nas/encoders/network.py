"""`TimmUNet`: a U-Net of nnU-Net whose encoder is one of timm's, as plans name it; 2-D.

The encoder grid of the papers on IAC: VGG-16, ResNet-50, MobileNetV3-Large, EfficientNetV2-S and -M. Where the
encoder's first features have half the resolution, two convolutions of the plan's kind come before it, so that labels
are predicted at full resolution (our choice). The decoder is nnU-Net's own. Searched cells and skip modules fit in.

Some of timm's encoders have batch norms that activate, too. On several GPUs nnU-Net puts synchronised norms in their
place, which do not; so norm and activation are parted here, under the names that timm's weights have.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from dynamic_network_architectures.architectures.abstract_arch import AbstractDynamicNetworkArchitectures
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from nnunet_nas.blocks import conv_feature_map_size
from nnunet_nas.checkpoints import read_checkpoint
from nnunet_nas.errors import DataProblem

# Name in plans and on the command line: timm's name.
ENCODERS = {
    "vgg16": "vgg16_bn",
    "resnet50": "resnet50",
    "mobilenetv3_large": "mobilenetv3_large_100",
    "efficientnetv2_s": "tf_efficientnetv2_s",
    "efficientnetv2_m": "tf_efficientnetv2_m",
}
_STEM_FEATURES = 32


def halvings(patch_size: Sequence[int]) -> int:
    """How often a patch can be halved along every axis; timm's encoders do so five times at most."""
    count = 0
    while count < 5 and all(size % 2 ** (count + 1) == 0 for size in patch_size):
        count += 1
    return count


@cache
def _starts_at_full(name: str) -> bool:
    """Whether the first features of an encoder have the resolution of its images."""
    # Without weights: timm initialises classifiers, too, of VGG-16 120 million weights.
    with torch.device("meta"):
        body: Any = timm.create_model(ENCODERS[name], pretrained=False, features_only=True)
    return bool(body.feature_info.reduction()[0] == 1)


class NormThenActivation(nn.Module):
    """timm's `BatchNormAct2d` as two modules, of which one is torch's own norm; its state has the names of timm's."""

    norm: nn.Module

    def __init__(self, joint: BatchNormAct2d) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(
            joint.num_features,
            joint.eps,
            joint.momentum,
            affine=joint.affine,
            track_running_stats=joint.track_running_stats,
        )
        self.norm.load_state_dict(joint.state_dict())
        self.activation = nn.Sequential(joint.drop, joint.act)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised and activated features, (b, c, y, x)."""
        activated: Tensor = self.activation(self.norm(x))
        return activated

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The norm's, as if this were it."""
        return self.norm.state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}norm.{key.removeprefix(prefix)}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _part_norms_from_activations(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, BatchNormAct2d):
            setattr(module, name, NormThenActivation(child))
        else:
            _part_norms_from_activations(child)


class TimmEncoder(nn.Module):
    """Features of every stage, with what a decoder asks of an encoder."""

    body: Any

    def __init__(
        self,
        name: str,
        input_channels: int,
        n_stages: int,
        *,
        norm_op: type[nn.Module],
        norm_op_kwargs: dict[str, Any],
        nonlin: type[nn.Module],
        nonlin_kwargs: dict[str, Any],
        conv_bias: bool,
    ) -> None:
        """`name` is a key of `ENCODERS`; `n_stages` counts the full resolution."""
        super().__init__()
        self.starts_at_full = _starts_at_full(name)
        count = n_stages if self.starts_at_full else n_stages - 1
        self.body = timm.create_model(
            ENCODERS[name], pretrained=False, features_only=True, in_chans=input_channels, out_indices=range(count)
        )
        self._leave_out_what_comes_after()
        _part_norms_from_activations(self.body)
        channels = [int(features) for features in self.body.feature_info.channels()]
        self.output_channels = channels if self.starts_at_full else [_STEM_FEATURES, *channels]
        self.strides = [[1, 1], *[[2, 2]] * (n_stages - 1)]
        self.kernel_sizes = [[3, 3]] * n_stages
        self.conv_op, self.conv_bias = nn.Conv2d, conv_bias
        self.norm_op, self.norm_op_kwargs = norm_op, norm_op_kwargs
        self.nonlin, self.nonlin_kwargs = nonlin, nonlin_kwargs
        self.dropout_op, self.dropout_op_kwargs = None, None
        self.stem: Any = None
        if not self.starts_at_full:
            self.stem = StackedConvBlocks(
                2, nn.Conv2d, input_channels, _STEM_FEATURES, 3, 1, conv_bias, norm_op, norm_op_kwargs,
                nonlin=nonlin, nonlin_kwargs=nonlin_kwargs,
            )  # fmt: skip

    def _leave_out_what_comes_after(self) -> None:
        """Blocks below the last stage that is read, which timm keeps and runs in its EfficientNets and MobileNets."""
        module, *position = self.body.feature_info.module_name()[-1].split(".")
        if module == "blocks":
            self.body.blocks = self.body.blocks[: int(position[0]) + 1]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features (b, C, y, x) of images (b, c, y, x), highest resolution first."""
        features: list[Tensor] = self.body(x)
        return list(features) if self.starts_at_full else [self.stem(x), *features]


class TimmUNet(AbstractDynamicNetworkArchitectures):
    """A U-Net with an encoder of timm."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        encoder: str,
        n_stages: int,
        strides: Sequence[Any],
        n_conv_per_stage_decoder: Sequence[int],
        norm_op: type[nn.Module],
        norm_op_kwargs: dict[str, Any],
        nonlin: type[nn.Module],
        nonlin_kwargs: dict[str, Any],
        conv_bias: bool = True,
        weights: str | None = None,
        deep_supervision: bool = False,
    ) -> None:
        """Builds the network from plans.

        Args:
            input_channels: of the images, any number.
            num_classes: segmentation heads.
            encoder: a key of `ENCODERS`.
            n_stages: stages, that at full resolution included.
            strides: per stage; they are the encoder's, and stand in plans because nnU-Net reads them.
            n_conv_per_stage_decoder: convolutions per stage of the decoder.
            norm_op: normalisation of the decoder; the encoder keeps its own.
            norm_op_kwargs: its arguments.
            nonlin: activation of the decoder.
            nonlin_kwargs: its arguments.
            conv_bias: of the decoder's convolutions.
            weights: file with the encoder's weights (a state dictionary of timm), or None for random ones.
            deep_supervision: whether `forward` returns a list of logits.

        Raises:
            DataProblem: unknown encoder, strides that are not the encoder's, or no such file when training.
        """
        super().__init__()
        if encoder not in ENCODERS:
            raise DataProblem(f"encoder {encoder!r} is unknown: use one of {', '.join(ENCODERS)}")
        self.encoder: Any = TimmEncoder(
            encoder, input_channels, n_stages, norm_op=norm_op, norm_op_kwargs=norm_op_kwargs, nonlin=nonlin,
            nonlin_kwargs=nonlin_kwargs, conv_bias=conv_bias,
        )  # fmt: skip
        if [list(stride) for stride in strides] != self.encoder.strides:
            raise DataProblem(f"strides of {encoder} are {self.encoder.strides}, not {strides}: correct the plans")
        # Training has deep supervision; a model that is loaded for prediction brings its own weights.
        if weights is not None and deep_supervision and not Path(weights).is_file():
            raise DataProblem(f"{weights}, the encoder's weights, is not there: restore it, or add the encoder again")
        self.weights = weights
        self.decoder: Any = UNetDecoder(self.encoder, num_classes, list(n_conv_per_stage_decoder), deep_supervision)
        self.input_channels = input_channels
        self.key_to_encoder, self.key_to_stem = "encoder.body", "encoder.body"
        self.keys_to_in_proj = tuple(
            f"encoder.{name}"
            for name, module in self.encoder.named_modules()
            if isinstance(module, nn.Conv2d) and module.in_channels == input_channels
        )[:1]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of images (b, c, y, x); with deep supervision a list from the highest resolution down."""
        logits: Tensor | list[Tensor] = self.decoder(self.encoder(x))
        return logits

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all convolutions' outputs, as nnU-Net counts them, for a patch of spatial shape `input_size`."""
        return conv_feature_map_size(self, self.input_channels, input_size, 2)

    def load_encoder(self) -> None:
        """Puts the file's weights into the encoder; images of other than three channels get the mean of its filters.

        Raises:
            DataProblem: not this encoder's weights.
        """
        if self.weights is None or not Path(self.weights).is_file():
            return
        state = read_checkpoint(Path(self.weights), "give a state dictionary of timm's encoder")
        own = self.encoder.body.state_dict()
        fitting = {}
        for key, value in own.items():
            found = state.get(key, state.get(key.replace("features_", "features.", 1)))
            if not isinstance(found, torch.Tensor):
                raise DataProblem(f"{self.weights} has no {key}: give a state dictionary of timm's encoder")
            if found.shape != value.shape and found.dim() == 4 and found.shape[1] == 3:
                found = found.mean(1, keepdim=True).expand_as(value) * 3 / value.shape[1]
            if found.shape != value.shape:
                raise DataProblem(f"{self.weights}: {key} has shape {tuple(found.shape)}, not {tuple(value.shape)}")
            fitting[key] = found
        self.encoder.body.load_state_dict(fitting)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation; the encoder's file, if there is one, comes last, with the network itself."""
        InitWeights_He(1e-2)(module)
        if isinstance(module, TimmUNet):
            module.load_encoder()
