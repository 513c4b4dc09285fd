"""From curves to the width that is recommended, with everything that a user should know about how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_nas.xtiny import selection

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
    paper: selection.Selection
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
        curves: (seeds, candidates), widest candidate first; NaN where a candidate was not scored with a seed.
        features: channels per stage of each candidate.
        costs: of each candidate, by name.
        rule: `paper`: the paper's rule on the mean curve; `spread`: `select_by_spread`.
        budgets: upper limits on `costs`.

    Raises:
        DataProblem: the curve is unusable.
        UsageError: too few seeds for the rule.
        BudgetProblem: nothing is affordable.
    """
    paper = selection.select(np.nanmean(curves, axis=0))
    chosen = paper.position if rule == "paper" else selection.select_by_spread(curves, features)
    seeds = selection.numbers_of_seeds(curves)
    enough = seeds.min() > 1 and (seeds - 1).mean() >= selection.MIN_SPREAD_SEEDS - 1
    estimable = enough and bool(np.nanmin(curves) > 0)
    spread = selection.fitted_spread(selection.log_spread(curves), features, seeds) if estimable else None
    return Decision(
        position=selection.within_budget(chosen, costs, budgets or {}),
        chosen=chosen,
        rule=rule,
        paper=paper,
        seed_wins=selection.wins(curves),
        shares=selection.resampled_shares(curves) if len(curves) > 1 else {},
        spread=spread,
        by_chance=None if spread is None else selection.noise_shares(spread).get(paper.position, 0.0),
    )


def explain(decision: Decision, caps: Sequence[int], seeds: Sequence[int] = ()) -> list[str]:
    """The stability of a decision in words, one sentence per line.

    Args:
        decision: to explain.
        caps: of the candidates.
        seeds: that the curves were scored with, so that the advice to add more keeps them.
    """
    lines = []
    if decision.position != decision.chosen:
        lines.append(
            f"The rule chose cap {caps[decision.chosen]}; cap {caps[decision.position]} is the widest in the budget."
        )
    selectable = [caps[position] for position in selection.selectable_positions(len(caps))]
    if len(selectable) == 1:
        lines.append(
            f"This is no selection: of {len(caps)} widths the paper's rule can take cap {selectable[0]} only, whatever "
            f"the curve; train the widths and compare them, or let -rule spread decide."
        )
    else:
        lines += _seed_sentences(decision, caps, seeds)
        impossible = [str(cap) for cap in caps if cap not in selectable]
        lines.append(
            f"The paper's rule can select caps {selectable[0]} to {selectable[-1]} only, never {', '.join(impossible)}."
        )
        if decision.rule == "paper" and decision.chosen == selection.selectable_positions(len(caps))[-1]:
            lines.append(
                "It selected the narrowest width that it is able to select: a limit of the rule, not a minimum."
            )
    if decision.spread is not None:
        lines += _spread_sentences(decision.spread, decision, caps)
    return lines


def _seed_sentences(decision: Decision, caps: Sequence[int], seeds: Sequence[int]) -> list[str]:
    number = sum(decision.seed_wins.values())
    if number == 1:
        more = [*seeds, *(seed for seed in range(10) if seed not in seeds)][:10]
        return [
            "One seed cannot show how stable this is, and narrow widths depend on the draw of the weights: "
            f"add -seed {' '.join(map(str, more))} to see it."
        ]
    counts = ", ".join(f"cap {caps[position]}: {count}" for position, count in decision.seed_wins.items())
    share = decision.shares.get(decision.paper.position, 0.0)
    verdict = "stable" if share >= _STABLE_SHARE else "unstable"
    return [
        f"Each of {number} seeds alone would select {counts}.",
        f"The paper's rule on their mean selects cap {caps[decision.paper.position]}, in {share:.0%} of resamplings "
        f"of the seeds: {verdict}.",
    ]


def _spread_sentences(spread: np.ndarray, decision: Decision, caps: Sequence[int]) -> list[str]:
    factors = ", ".join(f"{cap}: {_factor(value)}" for cap, value in zip(caps, spread, strict=True))
    lines = [f"95 % of random initialisations change the sensitivity by up to this factor either way: {factors}."]
    if decision.rule == "spread":
        lines.append(_spread_reason(spread, decision.chosen, caps))
    if len(selection.selectable_positions(len(caps))) > 1:
        lines.append(
            f"On curves of such noise alone, without any trend, the paper's rule would select cap "
            f"{caps[decision.paper.position]} for {decision.by_chance:.0%} of the seeds."
        )
    return lines


def _spread_reason(spread: np.ndarray, chosen: int, caps: Sequence[int]) -> str:
    reason = f"Cap {caps[chosen]} is the narrowest whose factor is at most 2"
    if chosen + 1 == len(caps):
        return f"{reason}, and the narrowest there is."
    return f"{reason}; that of cap {caps[chosen + 1]} is {_factor(spread[chosen + 1])}."


def _factor(spread: float) -> str:
    """The factor of 95 % of the draws, with as many digits as show on which side of the limit it lies."""
    texts = (f"{np.exp(1.96 * spread):.{digits}f}" for digits in range(1, 16))
    return "x" + next((text for text in texts if (float(text) <= 2) == (spread <= selection.MAX_SPREAD)), "2")
