"""Learning rates that more than one training follows."""

from __future__ import annotations

from collections.abc import Sequence


def warmed_and_halved(
    step: int, steps: int, *, start: float, peak: float, warmup: float, halved_at: Sequence[float]
) -> float:
    """A linear warm-up, then halved at given shares of what is left (DiNTS, section 4.1).

    Args:
        step: iterations done.
        steps: of the whole training.
        start: at the first step.
        peak: after warm-up.
        warmup: share of the steps.
        halved_at: shares of the steps after it.
    """
    warming = steps * warmup
    if step < warming:
        return start + (peak - start) * step / warming
    share = (step - warming) / (steps - warming)
    return peak * 0.5 ** sum(share >= bound for bound in halved_at)
