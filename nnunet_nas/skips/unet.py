"""A U-Net of nnU-Net with a module of its own in every skip connection, whatever the module is.

A built backbone is taken apart and put together again around the modules. Names of the backbone's weights stay the
backbone's own, so that a trained one can be loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.abstract_arch import AbstractDynamicNetworkArchitectures
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_nas.blocks import conv_feature_map_size
from nnunet_nas.errors import DataProblem
from nnunet_nas.trust import locate_class

SKIP_PREFIX = "decoder.skip_modules."
# The decoder of dynamic_network_architectures registers the encoder a second time.
_DUPLICATES = "decoder.encoder."


class SkipDecoder(nn.Module):
    """A U-Net decoder that reads every skip through a module of its own; built from a backbone's decoder."""

    # Foreign modules whose attributes torch's types do not know.
    transpconvs: Any
    stages: Any
    seg_layers: Any
    skip_modules: Any

    def __init__(self, decoder: Any, skip_modules: Sequence[nn.Module]) -> None:
        """`decoder` lends its parts; `skip_modules` are ordered as they are computed, lowest resolution first."""
        super().__init__()
        self.deep_supervision = decoder.deep_supervision
        self.transpconvs, self.stages, self.seg_layers = decoder.transpconvs, decoder.stages, decoder.seg_layers
        self.skip_modules = nn.ModuleList(skip_modules)
        # Whether skip modules are computed again in the backward pass, instead of kept: less memory, more time.
        self.recompute = False

    def forward(self, skips: Sequence[Tensor], *context: Any) -> Tensor | list[Tensor]:
        """Logits from the encoder's features.

        Args:
            skips: per stage (b, C, *spatial), highest resolution first, bottleneck last.
            context: handed on to the skip modules.

        Returns:
            logits (b, classes, *spatial); with deep supervision a list from the highest resolution down.
        """
        x, outputs = skips[-1], []
        last = len(self.stages) - 1
        for level, (upsample, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            up = upsample(x)
            skip = self._skip(level, skips[-(level + 2)], up, *context)
            x = stage(torch.cat((up, skip), 1))
            if self.deep_supervision or level == last:
                outputs.append(self.seg_layers[level](x))
        return outputs[::-1] if self.deep_supervision else outputs[-1]

    def _skip(self, level: int, *given: Any) -> Any:
        module = self.skip_modules[level]
        if not (self.recompute and torch.is_grad_enabled()):
            return module(*given)
        # Nothing random is in a skip module.
        return checkpoint(module, *given, use_reentrant=False, preserve_rng_state=False)


class SkipUNet(AbstractDynamicNetworkArchitectures):
    """A U-Net of nnU-Net with another module in every skip connection."""

    encoder: Any
    decoder: Any

    def __init__(self, backbone: Any, skip_module: Callable[[int, int, Sequence[int]], nn.Module]) -> None:
        """Takes a built backbone apart.

        Args:
            backbone: a U-Net of `dynamic_network_architectures`.
            skip_module: makes the module of one level from its number (0 is the lowest resolution), its channels
                and the encoder's kernel there.
        """
        super().__init__()
        encoder = backbone.encoder
        self.dimensions = convert_conv_op_to_dim(encoder.conv_op)
        # nnU-Net's U-Nets do not keep the number; their first convolution reads the images.
        self.input_channels = next(
            int(layer.in_channels) for layer in encoder.modules() if isinstance(layer, (nn.Conv2d, nn.Conv3d))
        )
        levels = len(backbone.decoder.stages)
        modules = [
            skip_module(level, encoder.output_channels[-(level + 2)], level_kernel(encoder, -(level + 2)))
            for level in range(levels)
        ]
        self.encoder = encoder
        self.decoder = SkipDecoder(backbone.decoder, modules)
        self.key_to_encoder, self.key_to_stem = backbone.key_to_encoder, backbone.key_to_stem
        self.keys_to_in_proj = backbone.keys_to_in_proj
        self.backbone_is_frozen = False

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of images (b, c, *spatial); see `SkipDecoder.forward`."""
        return self.decoder(self.encoder(x))

    def freeze_backbone(self) -> None:
        """Stops training of everything but the skip modules; norms of the backbone stay in evaluation mode."""
        self.backbone_is_frozen = True
        for name, parameter in self.named_parameters():
            if is_backbone(name):
                parameter.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> SkipUNet:
        """As torch's; a frozen backbone stays in evaluation mode, so that no running statistics drift."""
        super().train(mode)
        if self.backbone_is_frozen:
            for module in (self.encoder, self.decoder.transpconvs, self.decoder.stages, self.decoder.seg_layers):
                module.eval()
        return self

    def load_theta_0(self, state: dict[str, Tensor]) -> None:
        """Sets the skip modules to the weights that their search began with.

        Raises:
            DataProblem: these modules were not searched.
        """
        raise DataProblem(f"modules of {type(self).__name__} were not searched and have no theta_0: set init=random")

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Elements of all convolutions' outputs, as nnU-Net counts them, for a patch of spatial shape `input_size`."""
        return conv_feature_map_size(self, self.input_channels, input_size, self.dimensions)


def build_backbone(backbone: str, input_channels: int, num_classes: int, **kwargs: Any) -> Any:
    """The U-Net that a dotted name and nnU-Net's `arch_kwargs` describe.

    Raises:
        DataProblem: no such class, or a network without skip connections between an encoder and a decoder.
    """
    network_class: Any = locate_class(backbone, "arch_kwargs.backbone")
    network = network_class(input_channels=input_channels, num_classes=num_classes, **kwargs)
    require_skips(network, backbone)
    return network


def require_skips(network: nn.Module, name: str) -> None:
    """Refuses networks in whose skip connections nothing can be put.

    Raises:
        DataProblem: no encoder and decoder as nnU-Net's U-Nets have them, or a single stage.
    """
    decoder: Any = getattr(network, "decoder", None)
    encoder = getattr(network, "encoder", None)
    parts = all(hasattr(decoder, part) for part in ("transpconvs", "stages", "seg_layers"))
    if encoder is None or not hasattr(encoder, "output_channels") or not parts or not len(decoder.stages):
        raise DataProblem(
            f"{name} has no skip connections between encoder and decoder stages: choose a configuration with a "
            f"PlainConvUNet or ResidualEncoderUNet of at least two stages"
        )


def is_backbone(name: str) -> bool:
    """Whether a parameter or buffer of a network with skip modules is its backbone's."""
    return name.startswith(("encoder.", "decoder.")) and not name.startswith(SKIP_PREFIX)


def backbone_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's weights without those that its decoder repeats."""
    return {key: value for key, value in state.items() if not key.startswith(_DUPLICATES)}


def load_backbone(network: SkipUNet, state: dict[str, Tensor]) -> None:
    """Copies a trained backbone's weights into a network with skip modules.

    Raises:
        DataProblem: they belong to another architecture.
    """
    weights = backbone_weights(state)
    wanted = {key: value for key, value in network.state_dict().items() if is_backbone(key)}
    misfit = [
        key for key in {**wanted, **weights}
        if key not in wanted or key not in weights or wanted[key].shape != weights[key].shape
    ]  # fmt: skip
    if misfit:
        raise DataProblem(
            f"the backbone's checkpoint belongs to another architecture ({len(misfit)} tensors differ, first "
            f"{misfit[0]}): train the backbone again with the present plans"
        )
    network.load_state_dict(weights, strict=False)


def level_kernel(encoder: Any, stage: int) -> tuple[int, ...]:
    """The encoder's kernel at a stage, per axis."""
    kernel = encoder.kernel_sizes[stage]
    dimensions = convert_conv_op_to_dim(encoder.conv_op)
    return (kernel,) * dimensions if isinstance(kernel, int) else tuple(kernel)
