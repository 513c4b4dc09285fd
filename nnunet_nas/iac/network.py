"""`IACUNet`: an nnU-Net U-Net with a searched cell in every skip connection, as plans name it.

Plans give the backbone's own `arch_kwargs` and beside them `backbone` (the dotted class that they belong to) and
`cells` (genotype, widths, norm, residual). The network imports nothing of the search: stock nnU-Net trains and predicts
with it wherever `nnunet_nas` is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from dynamic_network_architectures.initialization.weight_init import InitWeights_He, init_last_bn_before_add_to_0
from torch import Tensor, nn

from nnunet_nas.errors import DataProblem
from nnunet_nas.iac.cell import Cell
from nnunet_nas.iac.genotype import Genotype, checked_widths, is_residual
from nnunet_nas.iac.operations import convolution_weights, norm_class, norm_kind
from nnunet_nas.skips.unet import SKIP_PREFIX, SkipUNet, build_backbone


class IACUNet(SkipUNet):
    """A U-Net with the same discrete cell, with own weights, in every skip connection."""

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        backbone: str,
        cells: dict[str, Any],
        deep_supervision: bool = False,
        **backbone_kwargs: Any,
    ) -> None:
        """Builds the network from plans.

        Args:
            input_channels: of the images.
            num_classes: segmentation heads.
            backbone: dotted name of the U-Net, for example that of `PlainConvUNet`.
            cells: `{"genotype": {...}, "widths": [...], "norm": ..., "residual": ...}`; widths are channels per
                level, highest resolution first, as `features_per_stage`; see `Genotype` and `Cell`.
            deep_supervision: whether `forward` returns a list of logits.
            backbone_kwargs: the U-Net's own arguments, which it checks.

        Raises:
            DataProblem: an impossible genotype, or widths or `residual` that cannot be.
        """
        genotype = Genotype.from_json(cells.get("genotype"))
        unet = build_backbone(
            backbone, input_channels, num_classes, deep_supervision=deep_supervision, **backbone_kwargs
        )
        widths, residual = checked_widths(cells, len(unet.decoder.stages)), is_residual(cells)
        encoder = unet.encoder
        norm = norm_class(
            norm_kind(cells.get("norm", "backbone"), encoder.norm_op), convert_conv_op_to_dim(encoder.conv_op)
        )

        def cell(level: int, channels: int, kernel: Sequence[int]) -> Cell:
            return Cell(
                genotype,
                skip_channels=channels,
                width=widths[-(level + 1)],
                conv_op=encoder.conv_op,
                norm=norm,
                norm_kwargs={"eps": 1e-5, "affine": True},
                level_kernel=kernel,
                residual=residual,
            )

        super().__init__(unet, cell)
        self.genotype = genotype

    def load_theta_0(self, state: dict[str, Tensor]) -> None:
        """Sets the cells to the weights that their search began with; norms, which it has not, stay as they are.

        Args:
            state: of the supernet's cells.

        Raises:
            DataProblem: they are those of other cells.
        """
        own, cells = self.state_dict(), self.decoder.skip_modules
        try:
            weights = discrete_state(state, self.genotype)
            fits = f"{SKIP_PREFIX}{len(cells) - 1}.output.weight" in weights
            fits = fits and all(own[key].shape == value.shape for key, value in weights.items())
        except KeyError:
            fits = False
        if not fits:
            raise DataProblem("these weights do not fit the cells of this configuration: was it searched again since?")
        self.load_state_dict(weights, strict=False)
        for cell in cells:
            if cell.residual:
                cell.zero_output()

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's initialisation (He, residual blocks start as identity); residual cells start at zero."""
        InitWeights_He(1e-2)(module)
        init_last_bn_before_add_to_0(module)
        if isinstance(module, Cell) and module.residual:
            module.zero_output()


def discrete_state(state: dict[str, Tensor], genotype: Genotype) -> dict[str, Tensor]:
    """Weights of the discrete cells out of a supernet's, at full width.

    Args:
        state: `IACSupernet.cell_state()` of the beginning (theta_0) or of any other epoch.
        genotype: the operations to take.

    Returns:
        entries for `IACUNet.load_state_dict`, without norms, which start affine at one and zero.
    """
    result = {}
    levels = sorted({int(key[len(SKIP_PREFIX) :].split(".")[0]) for key in state})
    for level in levels:
        prefix = f"{SKIP_PREFIX}{level}."
        for part in ("project_skip", "project_up"):
            result[f"{prefix}{part}.0.weight"] = state[f"{prefix}{part}.weight"]
        for index, edge in enumerate(genotype.edges):
            for kind, repeat, key in convolution_weights(edge.operation):
                all_edges = state[f"{prefix}{kind}.{edge.operation}_{repeat}"]
                result[f"{prefix}operations.{index}.{key}"] = all_edges[edge.row]
        for part in ("weight", "bias"):
            result[f"{prefix}output.{part}"] = state[f"{prefix}output.{part}"]
    return result
