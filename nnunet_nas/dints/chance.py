"""A random topology of the size of a searched one: what is left of a result without its search (our addition)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from nnunet_nas import commands
from nnunet_nas.architecture import NetworkSpec
from nnunet_nas.dints.sampling import RelaxedTopology, Size, sample_like, size_of
from nnunet_nas.dints.settings import DiNTSSettings
from nnunet_nas.dints.space import Space
from nnunet_nas.dints.topology import Topology
from nnunet_nas.errors import BudgetProblem
from nnunet_nas.training_cost import training_memory
from nnunet_nas.transfer import Found

# By which the random topology may need more or less training memory, of that of the searched one.
_WINDOW = 0.1
# A search may find what is rare.
_DRAWS = 40_000


def by_chance(found: Found, base: NetworkSpec, rng: np.random.Generator) -> tuple[dict[str, Any], list[str]]:
    """One of the feasible topologies with as many edges and skips and, within a tenth, the same training memory.

    Raises:
        BudgetProblem: there are hardly any.
    """
    kwargs = found.architecture["arch_kwargs"]
    topology = Topology.from_json(kwargs["topology"])
    space = _space_of(kwargs, topology.levels, base)
    uniform = _uniform(space, len(topology.layers), base)
    size = size_of(topology, uniform)
    words = f"{size.edges} edges, {size.skips} of them skips"
    try:
        window = Size(_WINDOW * size.mib, 0, 0)
        (drawn,) = sample_like(size, uniform, 1, rng, window=window, draws=_DRAWS)
    except BudgetProblem as error:
        plans = found.plans
        control = commands.control(
            plans.number, plans.configurations[found.name]["inherits_from"], found.name, plans=plans.name
        )
        raise BudgetProblem(
            f"no random topology was found of the size of {found.name}, {size.mib:.0f} MiB with {words}: give another "
            f"-seed, or compare with nnU-Net's own network by {control}"
        ) from error
    architecture = space.network(drawn.to_json())
    own, other = (
        training_memory(replace(base, architecture=content)).total for content in (architecture, found.architecture)
    )
    note = f"{words}, as in {found.name}; training needs {own:.0f} MiB, {own / other:.2f} times what that does"
    return architecture, [note]


def _space_of(kwargs: dict[str, Any], levels: int, base: NetworkSpec) -> Space:
    """That a topology is from, by its network and not by its search's settings: an imported one has none."""
    settings = DiNTSSettings(
        first_level=int(kwargs["first_level"]),
        num_levels=levels,
        final_conv=bool(kwargs.get("final_conv", False)),
        features=int(kwargs["features_per_stage"][0]),
    )
    return Space(base.architecture, settings)


def _uniform(space: Space, layers: int, base: NetworkSpec) -> RelaxedTopology:
    return RelaxedTopology.uniform(layers, space.names, space.memory(base))
