"""A width on other plans: its cap, on the target's channels (our choice)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from nnunet_nas.architecture import NetworkSpec
from nnunet_nas.errors import DataProblem
from nnunet_nas.transfer import Found, planned_features
from nnunet_nas.xtiny.widths import capped_features


def refit(found: Found, base: dict[str, Any], spec: NetworkSpec) -> tuple[dict[str, Any], list[str]]:
    """The cap, on the target's channels."""
    del spec
    cap = int(found.record["settings"]["cap"])
    planned = planned_features(base)
    if not isinstance(planned, list) or max(planned) <= cap:
        raise DataProblem(f"the cap {cap} changes nothing in features_per_stage={planned}: the target is as narrow")
    architecture = deepcopy(base)
    architecture["arch_kwargs"]["features_per_stage"] = capped_features(planned, cap)
    return architecture, []
