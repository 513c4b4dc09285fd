"""A genotype on other plans: its cell, as wide as the target's skips ask for (our choice)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from nnunet_nas.architecture import NetworkSpec, build_without_weights
from nnunet_nas.errors import DataProblem
from nnunet_nas.iac.cell import cell_width
from nnunet_nas.iac.genotype import Genotype
from nnunet_nas.skips.unet import require_skips
from nnunet_nas.transfer import Found


def refit(found: Found, base: dict[str, Any], spec: NetworkSpec) -> tuple[dict[str, Any], list[str]]:
    """The genotype, with widths by the rule of the search for the target's skips."""
    cells, settings = found.architecture["arch_kwargs"]["cells"], found.record["settings"]
    network: Any = build_without_weights(spec)
    name = base["network_class_name"]
    if "cells" in base["arch_kwargs"]:
        raise DataProblem(f"{name} has cells in its skips already: choose the configuration below it")
    require_skips(network, name)
    widths = [
        cell_width(
            int(channels),
            minimum=settings["minimum_width"],
            divisor=settings["width_divisor"],
            multiple=settings["partial_channels"],
        )
        for channels in network.encoder.output_channels[: len(network.decoder.stages)]
    ]
    architecture = deepcopy(base)
    genotype = Genotype.from_json(cells["genotype"]).to_json()
    architecture["arch_kwargs"] |= {"backbone": name, "cells": {**cells, "genotype": genotype, "widths": widths}}
    architecture["network_class_name"] = "nnunet_nas.iac.network.IACUNet"
    return architecture, [f"cells are {', '.join(map(str, widths))} channels wide"]
