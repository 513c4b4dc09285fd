"""`SkipModuleUNet`: an nnU-Net U-Net with one of `modules` in every skip connection, as plans name it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamic_network_architectures.initialization.weight_init import InitWeights_He, init_last_bn_before_add_to_0
from torch import Tensor, nn

from nnunet_nas.blocks import Blocks
from nnunet_nas.errors import DataProblem
from nnunet_nas.skips.modules import AttentionGate, NestedSkip, ResidualAttention, ResidualConvolution
from nnunet_nas.skips.unet import SkipUNet, build_backbone

MODULES = ("attention", "residual_attention", "nested", "conv")


class SkipModuleUNet(SkipUNet):
    """A U-Net with a published module, or a convolution, in every skip connection."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        backbone: str,
        skip_module: str,
        deep_supervision: bool = False,
        **backbone_kwargs: Any,
    ) -> None:
        """Builds the network from plans.

        Args:
            input_channels: of the images.
            num_classes: segmentation heads.
            backbone: dotted name of the U-Net, for example that of `PlainConvUNet`.
            skip_module: one of `MODULES`.
            deep_supervision: whether `forward` returns a list of logits.
            backbone_kwargs: the U-Net's own arguments, which it checks.

        Raises:
            DataProblem: an unknown module, or a network without skip connections.
        """
        if skip_module not in MODULES:
            raise DataProblem(f"skip_module {skip_module!r} is unknown: use one of {', '.join(MODULES)}")
        unet = build_backbone(
            backbone, input_channels, num_classes, deep_supervision=deep_supervision, **backbone_kwargs
        )
        encoder = unet.encoder
        blocks = Blocks(
            conv_op=encoder.conv_op,
            conv_bias=encoder.conv_bias,
            norm_op=encoder.norm_op,
            norm_op_kwargs=encoder.norm_op_kwargs,
            nonlin=encoder.nonlin,
            nonlin_kwargs=encoder.nonlin_kwargs,
        )

        def module(level: int, channels: int, kernel: Sequence[int]) -> nn.Module:
            if skip_module == "conv":
                return ResidualConvolution(blocks, channels, kernel)
            if skip_module == "attention":
                return AttentionGate(blocks, channels)
            if skip_module == "residual_attention":
                return ResidualAttention(blocks, channels, kernel)
            return NestedSkip(blocks, channels, encoder.output_channels[-(level + 1)], level, kernel)

        super().__init__(unet, module)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits of images (b, c, *spatial); see `SkipDecoder.forward`."""
        return self.decoder(self.encoder(x), [])

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation (He, residual blocks start as identity); residual convolutions start at zero."""
        InitWeights_He(1e-2)(module)
        init_last_bn_before_add_to_0(module)
        if isinstance(module, ResidualConvolution):
            module.zero_output()
