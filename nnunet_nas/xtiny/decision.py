"""From curves to the width that is recommended, with everything that a user should know about how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_nas.xtiny.selection import (
    MIN_SPREAD_SEEDS,
    Selection,
    fitted_spread,
    log_spread,
    noise_shares,
    resampled_shares,
    select,
    select_by_spread,
    selectable_positions,
    wins,
    within_budget,
)

RULES = ("paper", "spread")
# Below this share of resamplings that agree, the decision is called unstable.
_STABLE_SHARE = 0.9


@dataclass(frozen=True)
class Decision:
    """A recommended width.

    Attributes:
        position: the recommended candidate, after budgets.
        chosen: the candidate that the rule chose, before budgets.
        rule: `paper` or `spread`.
        paper: what the paper's rule sees on the mean curve.
        seed_wins: seeds by position, each seed's curve on its own.
        shares: bootstrap shares by position of the paper's rule on the mean curve; empty for one seed.
        spread: fitted standard deviation of log S by candidate; None with few seeds or scores that are not positive.
        by_chance: how often noise of that spread alone would make the paper's rule select what it did; None likewise.
    """

    position: int
    chosen: int
    rule: str
    paper: Selection
    seed_wins: dict[int, int]
    shares: dict[int, float]
    spread: np.ndarray | None
    by_chance: float | None


def decide(
    curves: np.ndarray,
    features: Sequence[Sequence[int]],
    costs: Sequence[dict[str, float]],
    *,
    rule: str = "paper",
    budgets: dict[str, float] | None = None,
) -> Decision:
    """Applies a rule to the curves of all seeds, then the budgets.

    Args:
        curves: (seeds, candidates), widest candidate first.
        features: channels per stage of each candidate.
        costs: of each candidate, by name.
        rule: `paper`: the paper's rule on the mean curve; `spread`: `select_by_spread`.
        budgets: upper limits on `costs`.

    Raises:
        DataProblem: the curve is unusable.
        UsageError: too few seeds for the rule.
        BudgetProblem: nothing is affordable.
    """
    paper = select(curves.mean(axis=0))
    chosen = paper.position if rule == "paper" else select_by_spread(curves, features)
    estimable = len(curves) >= MIN_SPREAD_SEEDS and bool((curves > 0).all())
    spread = fitted_spread(log_spread(curves), features, len(curves)) if estimable else None
    return Decision(
        position=within_budget(chosen, costs, budgets or {}),
        chosen=chosen,
        rule=rule,
        paper=paper,
        seed_wins=wins(curves),
        shares=resampled_shares(curves) if len(curves) > 1 else {},
        spread=spread,
        by_chance=None if spread is None else noise_shares(spread).get(paper.position, 0.0),
    )


def explain(decision: Decision, caps: Sequence[int]) -> list[str]:
    """The stability of a decision in words, one sentence per line."""
    lines = []
    if decision.position != decision.chosen:
        lines.append(
            f"The rule chose cap {caps[decision.chosen]}; cap {caps[decision.position]} is the widest in the budget."
        )
    lines += _seed_sentences(decision, caps)
    selectable = [caps[position] for position in selectable_positions(len(caps))]
    impossible = [str(cap) for cap in caps if cap not in selectable]
    lines.append(
        f"The paper's rule can select caps {selectable[0]} to {selectable[-1]} only, never {', '.join(impossible)}."
    )
    if decision.rule == "paper" and decision.chosen == selectable_positions(len(caps))[-1]:
        lines.append("It selected the narrowest width that it is able to select: a limit of the rule, not a minimum.")
    if decision.spread is not None:
        lines += _spread_sentences(decision.spread, decision, caps)
    return lines


def _seed_sentences(decision: Decision, caps: Sequence[int]) -> list[str]:
    seeds = sum(decision.seed_wins.values())
    if seeds == 1:
        return [
            "One seed cannot show how stable this is, and narrow widths depend on the draw of the weights: "
            "add -seed 0 1 2 3 4 5 6 7 8 9 to see it."
        ]
    counts = ", ".join(f"cap {caps[position]}: {count}" for position, count in decision.seed_wins.items())
    share = decision.shares.get(decision.paper.position, 0.0)
    verdict = "stable" if share >= _STABLE_SHARE else "unstable"
    return [
        f"Each of {seeds} seeds alone would select {counts}.",
        f"The paper's rule on their mean selects cap {caps[decision.paper.position]}, in {share:.0%} of resamplings "
        f"of the seeds: {verdict}.",
    ]


def _spread_sentences(spread: np.ndarray, decision: Decision, caps: Sequence[int]) -> list[str]:
    factors = ", ".join(f"{cap}: x{np.exp(1.96 * value):.1f}" for cap, value in zip(caps, spread, strict=True))
    return [
        f"95 % of random initialisations change the sensitivity by up to this factor either way: {factors}.",
        f"On curves of such noise alone, without any trend, the paper's rule would select cap "
        f"{caps[decision.paper.position]} for {decision.by_chance:.0%} of the seeds.",
    ]
