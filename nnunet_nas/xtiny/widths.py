"""Candidate widths: a base network whose channel numbers are capped ever lower.

Source: XTinyU-Net, width-capped variants. cap = the base's largest channel number, then halved (floor) down to 1;
features_i = min(cap, base_i); everything else stays.
"""

from __future__ import annotations

from collections.abc import Sequence


def caps_of(features_per_stage: Sequence[int]) -> list[int]:
    """Caps from the base's own width down to 1, widest first: (32, 64, 320) -> 320, 160, 80, 40, 20, 10, 5, 2, 1."""
    caps = [max(features_per_stage)]
    while caps[-1] > 1:
        caps.append(caps[-1] // 2)
    return caps


def capped_features(features_per_stage: Sequence[int], cap: int) -> list[int]:
    """Channels per stage under a cap."""
    return [min(cap, features) for features in features_per_stage]


def candidate_name(base: str, cap: int) -> str:
    """Name of the candidate's configuration: `2d`, 8 -> `2d_xtiny8`."""
    return f"{base}_xtiny{cap}"
