"""A random answer where a search's stands: the control that says what the search itself is worth.

What is trained, and how, is as for the result of the search; only the answer is drawn instead of found. How it is drawn
is each method's own: see the `by_chance` of its room.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from nnunet_nas.architecture import NETWORK_ERRORS, derive, network_spec, one_line
from nnunet_nas.errors import DataProblem
from nnunet_nas.methods import METHODS, part
from nnunet_nas.plans import DerivedConfiguration, Provenance
from nnunet_nas.transfer import Found

_KEPT = ("fold", "checkpoint", "backbone_trainer", "backbone_digest", "search_folder")


def random_like(found: Found, seed: int) -> tuple[DerivedConfiguration, list[str]]:
    """The configuration to add to the plans beside a search's result, and what is to be said of it, in words.

    Args:
        found: the result.
        seed: of the draw.

    Raises:
        DataProblem: nothing can be drawn for it, with the reason.
        BudgetProblem: there is hardly another answer of its size.
    """
    draw = METHODS[found.record["method"]].chance
    if draw is None:
        known = ", ".join(name for name, method in METHODS.items() if method.chance)
        raise DataProblem(
            f"{found.name} was found by {found.record['method']}, whose answers are not drawn at random: choose the "
            f"result of {known}"
        )
    plans = found.plans
    plans.require_fresh(found.name)
    base = str(plans.configurations[found.name]["inherits_from"])
    spec = network_spec(plans, base)
    try:
        architecture, notes = part(draw)(found, spec, np.random.default_rng(seed))
    except NETWORK_ERRORS as error:
        raise DataProblem(
            f"configuration {found.name} of {plans.dataset_name} is not as a search left it ({one_line(error)}): "
            f"restore the plans"
        ) from error
    # Cells of a search begin with its weights and in its backbone, and so do these.
    kept: dict[str, Any] = {key: found.record.get(key) for key in _KEPT}
    provenance = Provenance(
        found.record["method"],
        plans.digest(base),
        found.record["settings"],
        [seed],
        random_like=found.name,
        **kept,
    )
    name = f"{found.name}_random{seed}"
    return derive(name, base, replace(spec, architecture=architecture), provenance), notes
