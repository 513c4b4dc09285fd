"""Which width: the paper's rule on a sensitivity curve, a rule for several seeds, stability, budgets.

Pure functions on arrays. Positions count candidates from the widest (0) to the narrowest (n - 1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from nnunet_nas.errors import BudgetProblem, DataProblem, UsageError

MIN_CANDIDATES = 5
MIN_SPREAD_SEEDS = 5
# 95 % of the initialisations of a width stay within a factor of two of its typical sensitivity.
MAX_SPREAD = float(np.log(2) / 1.96)
_RESAMPLES = 1000


@dataclass(frozen=True)
class Selection:
    """What a rule decided and why.

    Attributes:
        position: the selected candidate.
        normalised: the curve that the rule looked at, scaled to 0..1, one per candidate.
        differences: |difference| of neighbouring values of that curve, one fewer.
        split_scores: score of every split k that the rule could choose; the selected position is k - 1.
    """

    position: int
    normalised: np.ndarray
    differences: np.ndarray
    split_scores: dict[int, float]


def selectable_positions(candidates: int) -> range:
    """Positions that the paper's rule is able to select: k - 1 for k = 2 .. n - 3.

    With ten candidates, 512 to 1, these are the widths 256 to 8; 512, 4, 2 and 1 cannot win whatever the curve.
    """
    return range(1, candidates - 3)


def select(curve: Sequence[float] | np.ndarray) -> Selection:
    """The last width before the curve starts to vary.

    y = curve, min-max normalised; d_i = |y_{i+1} - y_i|; for k = 2 .. n - 3: score(k) = mean(d[k-1:]) - mean(d[:k]).
    The k of largest score wins, the first on ties; selected is position k - 1. Source: XTinyU-Net, selection by total
    variation.

    Args:
        curve: one value per candidate, widest first.

    Raises:
        DataProblem: fewer than five candidates, a flat curve, or one that is not finite.
    """
    values = np.asarray(curve, dtype=np.float64)
    _require_usable(values)
    normalised = (values - values.min()) / (values.max() - values.min())
    differences = np.abs(np.diff(normalised))
    splits = [position + 1 for position in selectable_positions(len(values))]
    scores = {k: float(differences[k - 1 :].mean() - differences[:k].mean()) for k in splits}
    best = max(splits, key=lambda k: scores[k])
    return Selection(best - 1, normalised, differences, scores)


def _require_usable(values: np.ndarray) -> None:
    if len(values) < MIN_CANDIDATES:
        raise DataProblem(
            f"the base has {len(values)} candidate widths and the rule needs {MIN_CANDIDATES}: a network of fewer than "
            f"16 channels is tiny already, train it as it is"
        )
    if not np.isfinite(values).all():
        raise DataProblem("the curve is not finite: look at scores.csv for the width that overflowed")
    if values.max() == values.min():
        raise DataProblem(
            "the curve is flat, no width differs from another: are the images empty, or is this the wrong -metric?"
        )


def numbers_of_seeds(curves: np.ndarray) -> np.ndarray:
    """How many seeds each candidate was scored with, (candidates,); NaN stands where it was not."""
    return np.asarray((~np.isnan(curves)).sum(axis=0))


def wins(curves: np.ndarray) -> dict[int, int]:
    """How often each position wins when the rule sees one seed's curve.

    Args:
        curves: (seeds, candidates).

    Returns:
        seeds by position, widest first; positions that never win are left out, and seeds without all candidates.
    """
    counts = Counter(select(curve).position for curve in curves[~np.isnan(curves).any(axis=1)])
    return {position: counts[position] for position in sorted(counts)}


def resampled_shares(curves: np.ndarray, seed: int = 0) -> dict[int, float]:
    """How stable the decision on the mean curve is: shares of the positions when the seeds are drawn again.

    Bootstrap over seeds: as many as there are, with replacement, their mean curve, the paper's rule; 1000 times. Where
    candidates have unequal numbers of seeds, each is resampled on its own: their weights have nothing in common.

    Args:
        curves: (seeds, candidates).
        seed: of the resampling.

    Returns:
        shares by position, widest first; they sum to 1.
    """
    rng = np.random.default_rng(seed)
    if np.isnan(curves).any():
        columns = [column[~np.isnan(column)] for column in curves.T]
        drawn = [column[rng.integers(len(column), size=(_RESAMPLES, len(column)))].mean(axis=1) for column in columns]
        return _shares(np.stack(drawn, axis=1))
    draws = rng.integers(len(curves), size=(_RESAMPLES, len(curves)))
    return _shares(curves[draws].mean(axis=1))


def noise_shares(spread: np.ndarray, seed: int = 0) -> dict[int, float]:
    """What the paper's rule selects where there is nothing to find.

    Simulates 1000 single-seed curves whose typical sensitivity is the same at every width and which vary around it as
    measured. A pick that this explains says nothing about the data (our choice of a null model).

    Args:
        spread: standard deviations of log S, (candidates,).
        seed: of the simulation.

    Returns:
        shares by position, widest first; they sum to 1.
    """
    curves = np.exp(np.random.default_rng(seed).normal(0, spread, (_RESAMPLES, len(spread))))
    return _shares(curves)


def _shares(curves: np.ndarray) -> dict[int, float]:
    return {position: count / len(curves) for position, count in wins(curves).items()}


def log_spread(curves: np.ndarray) -> np.ndarray:
    """Standard deviation over the seeds of log S at each width.

    Args:
        curves: positive, (seeds, candidates), two seeds or more of each.

    Returns:
        (candidates,), natural logarithm: 0.35 means that 95 % of the seeds lie within a factor of two.
    """
    if (curves <= 0).any():
        raise DataProblem("the spread over seeds needs positive scores: use -metric jacobian")
    return np.asarray(np.nanstd(np.log(curves), axis=0, ddof=1))


def fitted_spread(spread: np.ndarray, features: Sequence[Sequence[int]], seeds: int | np.ndarray) -> np.ndarray:
    """The spread of log S smoothed by how it must depend on the width.

    At initialisation the variance of the log gradient norm of a rectifier network grows with the sum over its layers
    of 1 / width (Hanin, Which Neural Net Architectures Give Rise to Exploding and Vanishing Gradients?, NeurIPS 2018;
    Hanin and Nica, Products of Many Large Random Matrices and Gradients in Deep Neural Networks, 2020). So
    sigma^2 = a + b * mean_i(1 / features_i), a, b >= 0, fitted by maximum likelihood: two numbers from all widths
    instead of one noisy estimate for each.

    Args:
        spread: standard deviations from `log_spread`.
        features: channels per stage of each candidate.
        seeds: how many seeds the standard deviations come from, of all candidates or of each.

    Returns:
        fitted standard deviations, (candidates,).
    """
    reciprocal = np.array([np.mean(1 / np.asarray(stages, dtype=np.float64)) for stages in features])
    observed = spread**2
    freedom = np.broadcast_to(np.asarray(seeds) - 1, observed.shape)
    most = float(freedom.max())

    def cost(parameters: np.ndarray) -> float:
        # freedom * observed / sigma^2 is chi-squared; constants are left out.
        sigma2 = np.exp(parameters[0]) + np.exp(parameters[1]) * reciprocal
        return float(most / 2 * np.sum(freedom / most * (np.log(sigma2) + observed / sigma2)))

    start = np.log([max(observed.min(), 1e-8), max(observed.max() / reciprocal.max(), 1e-8)])
    best = minimize(cost, start, method="Nelder-Mead", options={"maxiter": 2000})
    return np.sqrt(np.exp(best.x[0]) + np.exp(best.x[1]) * reciprocal)


def select_by_spread(curves: np.ndarray, features: Sequence[Sequence[int]]) -> int:
    """The narrowest width whose sensitivity does not hinge on the random weights.

    Our choice, for several seeds. What makes a single curve "vary" at its narrow end is mostly the draw of the
    weights; this rule measures that directly and keeps the narrowest width at which 95 % of the draws stay within a
    factor of two of the typical sensitivity (`fitted_spread` <= ln 2 / 1.96). Unlike the paper's rule it can select
    any width, and more seeds make it more certain.

    Args:
        curves: positive, (seeds, candidates).
        features: channels per stage of each candidate.

    Raises:
        UsageError: too few seeds to estimate a spread.
        DataProblem: not even the base is stable.
    """
    seeds = numbers_of_seeds(curves)
    if seeds.min() < MIN_SPREAD_SEEDS:
        raise UsageError(f"-rule spread needs at least {MIN_SPREAD_SEEDS} seeds: -seed 0 1 2 3 4 5 6 7 8 9")
    fitted = fitted_spread(log_spread(curves), features, seeds)
    stable = np.flatnonzero(fitted <= MAX_SPREAD)
    if len(stable) == 0:
        raise DataProblem(
            f"the sensitivity of even the base varies over seeds by exp(+-{1.96 * fitted[0]:.2f}): keep the base width"
        )
    return int(stable.max())


def within_budget(selected: int, costs: Sequence[dict[str, float]], budgets: dict[str, float]) -> int:
    """The selected position, or the widest one that is affordable if the selected one is not.

    Args:
        selected: the rule's choice.
        costs: of each candidate, by name.
        budgets: upper limits by name; the names are those of `costs`.

    Raises:
        BudgetProblem: not even the narrowest candidate is affordable.
    """

    def affordable(position: int) -> bool:
        return all(costs[position][name] <= limit for name, limit in budgets.items())

    for position in range(selected, len(costs)):
        if affordable(position):
            return position
    limits = ", ".join(f"{name} <= {limit:g}" for name, limit in budgets.items())
    narrowest = ", ".join(f"{name} {costs[-1][name]:g}" for name in budgets)
    raise BudgetProblem(f"no width satisfies {limits}; the narrowest has {narrowest}: raise the limit")
