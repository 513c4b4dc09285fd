"""A genotype on other plans: its cell, as wide as the target's skips ask for (our choice)."""

from __future__ import annotations

from typing import Any

from nnunet_nas.architecture import NetworkSpec, build_without_weights
from nnunet_nas.iac.cell import cell_width
from nnunet_nas.iac.genotype import Genotype, cells_architecture
from nnunet_nas.skips.unet import require_skips
from nnunet_nas.transfer import Found


def refit(found: Found, target: NetworkSpec) -> tuple[dict[str, Any], list[str]]:
    """The genotype, with widths by the rule of the search for the target's skips."""
    cells, settings = found.architecture["arch_kwargs"]["cells"], found.record["settings"]
    network: Any = build_without_weights(target)
    require_skips(network, target.architecture["network_class_name"])
    widths = [
        cell_width(
            int(channels),
            minimum=settings["minimum_width"],
            divisor=settings["width_divisor"],
            multiple=settings["partial_channels"],
        )
        for channels in network.encoder.output_channels[: len(network.decoder.stages)]
    ]
    architecture = cells_architecture(
        target.architecture,
        Genotype.from_json(cells["genotype"]),
        widths=widths,
        norm=cells.get("norm", "backbone"),
        residual=cells.get("residual", False),
    )
    return architecture, [f"cells are {', '.join(map(str, widths))} channels wide"]
