"""A random cell where a searched one stands: what is left of a result without its search (our addition)."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnunet_nas.architecture import NetworkSpec
from nnunet_nas.iac.genotype import cells_architecture
from nnunet_nas.iac.sampling import random_genotype
from nnunet_nas.transfer import Found


def by_chance(found: Found, base: NetworkSpec, rng: np.random.Generator) -> tuple[dict[str, Any], list[str]]:
    """A genotype out of all, as wide as the searched one, with its norms, and added to the skip if that is."""
    cells = found.architecture["arch_kwargs"]["cells"]
    genotype = random_genotype(rng)
    architecture = cells_architecture(
        base.architecture,
        genotype,
        widths=cells["widths"],
        norm=cells.get("norm", "backbone"),
        residual=cells.get("residual", False),
    )
    return architecture, [f"one of all cells, {genotype.parameter_free_share():.0%} of its edges copy or pool"]
