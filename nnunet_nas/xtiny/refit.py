"""A width on other plans: its cap, on the target's channels (our choice)."""

from __future__ import annotations

from typing import Any

from nnunet_nas.architecture import NetworkSpec
from nnunet_nas.errors import DataProblem
from nnunet_nas.transfer import Found, planned_features
from nnunet_nas.xtiny.widths import capped_features


def refit(found: Found, target: NetworkSpec) -> tuple[dict[str, Any], list[str]]:
    """The cap, on the target's channels."""
    cap = int(found.record["settings"]["cap"])
    planned = planned_features(target)
    if not isinstance(planned, list) or max(planned) <= cap:
        raise DataProblem(f"the cap {cap} changes nothing in features_per_stage={planned}: the target is as narrow")
    return target.with_features(capped_features(planned, cap)).architecture, []
