"""Which width, by learning curves: the narrowest that no wider one will beat by more than a margin (our own rule).

Widths are trained for a while and their Dice is measured on the same cases at growing numbers of iterations. Each width
is compared with one four times as wide, because neighbours look alike, from the narrowest pair on. What counts is the
difference at the horizon, the number of iterations that the user will train: early in a training wide networks have not
yet shown what they can do, so that measured differences favour narrow ones. It is extrapolated by a power law of the
error, 1 - Dice = a + b * iterations^-c, with one exponent for both widths, as scaling laws have it (Hoffmann et al.,
Training Compute-Optimal Large Language Models, 2022, Eq. 2: size and length of the training add up), fitted to the part
of the curves where both networks have left the ground.

Error: a width is taken only if the upper confidence limit of the difference is within the margin, measured as well as
at the horizon, there for every exponent that fits about as well. The standard error is that of a paired bootstrap over
the cases, and of the scatter of the curves around their law. From narrow to wide the first success ends the race, so
the level alpha is divided by the number of pairs; a pair is looked at after each doubling, and look k of them spends
alpha / 2^k. Where a wider width is better by more than the margin, the narrower one is thus taken with probability
alpha at most, if curves follow the law. What is still open when the budget ends is not taken, nor is a network that has
learnt nothing. There is one training per width: what another one would give is not in this.

Pure functions on arrays. Positions count candidates from the widest (0), as elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

EQUAL, WORSE, OPEN = "equal", "worse", "open"
# Iterations before the first measurement, points on the curve that a fit needs, and exponents that it tries.
_FIRST = 32
_LEAST_POINTS = 4
# Dice below which a network has found nothing.
_LEARNT = 0.05
_EXPONENTS = np.geomspace(0.1, 2, 48)


@dataclass(frozen=True)
class Curve:
    """What one width reached.

    Attributes:
        iterations: ascending, (k,).
        dice: of each case, (k, cases).
    """

    iterations: np.ndarray
    dice: np.ndarray

    def until(self, iterations: int) -> Curve:
        """The part up to a number of iterations."""
        there = self.iterations <= iterations
        return Curve(self.iterations[there], self.dice[there])

    @property
    def length(self) -> int:
        """Iterations so far."""
        return int(self.iterations[-1]) if len(self.iterations) else 0


@dataclass(frozen=True)
class Rules:
    """What a race is about.

    Attributes:
        margin: Dice that a wider width may be better by.
        horizon: iterations that the user will train.
        budget: what the race may cost, in iterations of the base.
        alpha: how often a width may be taken that is worse by more than the margin.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    margin: float = 0.01
    horizon: int = 250_000
    budget: float = 5000
    alpha: float = 0.1
    resamples: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """A width beside one that is four times as wide.

    Attributes:
        narrow: position.
        wide: position.
        iterations: that both have trained.
        look: number of times that the pair was looked at, from 1; 0: not yet.
        measured: mean difference of the Dice now, wide - narrow; NaN if not yet.
        expected: at the horizon; NaN where it could not be extrapolated.
        low: lower confidence limit of `expected`, or of `measured` where there is no more.
        high: upper limit of `expected`; infinite where there is none.
        verdict: `equal` within the margin, `worse` by more than that, or `open`.
    """

    narrow: int
    wide: int
    iterations: int = 0
    look: int = 0
    measured: float = np.nan
    expected: float = np.nan
    low: float = -np.inf
    high: float = np.inf
    verdict: str = OPEN


@dataclass(frozen=True)
class Train:
    """The next thing to do: train a candidate until so many iterations, and measure on the way."""

    position: int
    iterations: int


@dataclass(frozen=True)
class Outcome:
    """A race that is over.

    Attributes:
        position: of the width that is taken; the base where none was shown to suffice.
        comparisons: of all pairs that were looked at, narrowest first.
        spent: iterations of the base.
    """

    position: int
    comparisons: Sequence[Comparison]
    spent: float


def checkpoints(horizon: int) -> list[int]:
    """When the Dice is measured: half-octaves from 32 iterations on, and the horizon."""
    steps = int(np.ceil(2 * np.log2(max(horizon / _FIRST, 1))))
    return [*(round(_FIRST * 2 ** (step / 2)) for step in range(steps)), horizon]


def next_move(curves: Mapping[int, Curve], costs: Sequence[float], rules: Rules) -> Train | Outcome:
    """What a race does next. It depends on what was measured alone, so that an interrupted race goes on alike.

    Args:
        curves: what was measured so far, by position.
        costs: of one iteration of each candidate, widest first; that of the base is 1.
        rules: of the race.
    """
    pairs = pairs_of(len(costs))
    spent = sum(costs[position] * curve.length for position, curve in curves.items())
    empty = Curve(np.zeros(0, dtype=int), np.zeros((0, 0)))
    comparisons: list[Comparison] = []
    # What no pair could use of its allowance goes to those that are open, the narrowest first.
    for allowances in (_allowances([costs[i] + costs[j] for i, j in pairs], rules.budget), [rules.budget] * len(pairs)):
        comparisons = []
        for (narrow, wide), allowance in zip(pairs, allowances, strict=True):
            both = {position: curves.get(position, empty) for position in (narrow, wide)}
            comparison = judge(both[narrow], both[wide], (narrow, wide), rules, level=rules.alpha / len(pairs))
            target = _next_look(comparison, rules.horizon)
            if comparison.verdict == OPEN and target is not None:
                short = {position: target - curve.length for position, curve in both.items() if curve.length < target}
                if spent + sum(costs[position] * more for position, more in short.items()) <= allowance:
                    return Train(max(short), target)  # the narrower one first: it costs less
            comparisons.append(comparison)
            if comparison.verdict == EQUAL:
                return Outcome(narrow, comparisons, spent)
    return Outcome(0, comparisons, spent)


def pairs_of(candidates: int) -> list[tuple[int, int]]:
    """Positions of a width and of the one four times as wide, or of the base, narrowest first."""
    return [(position, max(position - 2, 0)) for position in range(candidates - 1, 0, -1)]


def judge(narrow: Curve, wide: Curve, pair: tuple[int, int], rules: Rules, *, level: float) -> Comparison:
    """What is known of a pair: the first look that decided, or else the last one.

    Args:
        narrow: its curve.
        wide: that of the other one, on the same cases.
        pair: their positions.
        rules: of the race.
        level: of all looks together.
    """
    comparison = Comparison(*pair)
    common = min(narrow.length, wide.length)
    for number, iterations in enumerate((look for look in looks(rules.horizon) if look <= common), start=1):
        both = (narrow.until(iterations), wide.until(iterations))
        comparison = _look(*both, pair, rules, look=number, level=level / 2**number)
        if comparison.verdict == EQUAL and not has_learnt(both[0]):
            comparison = replace(comparison, verdict=OPEN)  # level with another network that knows nothing either
        if comparison.verdict != OPEN:
            break
    return comparison


def looks(horizon: int) -> list[int]:
    """Iterations at which a pair is looked at: each doubling from 128 on, and the horizon."""
    grid = checkpoints(horizon)
    return [*grid[4:-1:2], horizon]


def _next_look(comparison: Comparison, horizon: int) -> int | None:
    return next((look for look in looks(horizon) if look > comparison.iterations), None)


def _look(narrow: Curve, wide: Curve, pair: tuple[int, int], rules: Rules, *, look: int, level: float) -> Comparison:
    gaps = wide.dice - narrow.dice
    shares = _resampling(gaps.shape[1], rules, look)
    measured, reach = float(gaps[-1].mean()), _reach(gaps[-1:], shares, np.zeros(1), level)[0]
    now = Comparison(*pair, narrow.length, look, measured, low=measured - reach)
    if narrow.length >= rules.horizon:
        return _with_verdict(replace(now, expected=measured, high=measured + reach), rules.margin)
    law = _law(narrow, wide, rules)
    if law is None:
        # A narrow network may only start later: it is given up where, an octave on, the difference has not shrunk.
        hopeless = look > 1 and measured >= float(gaps[-3].mean())
        return _with_verdict(now, rules.margin) if hopeless else now
    weights = law.weights(rules.horizon)
    at_horizon = weights @ gaps[law.points]
    ends, reaches = (
        at_horizon.mean(1),
        _reach(at_horizon, shares, law.scatter * np.sqrt(2 * (weights**2).sum(1)), level),
    )
    high = max(float((ends + reaches).max()), measured + reach)  # no credit for a difference that will go away
    return _with_verdict(
        replace(now, expected=float(ends[0]), low=float((ends - reaches).min()), high=high), rules.margin
    )


def _resampling(cases: int, rules: Rules, look: int) -> np.ndarray:
    """The share of each case in each resample, (resamples, cases)."""
    draws = np.random.default_rng((rules.seed, look)).multinomial(cases, np.full(cases, 1 / cases), rules.resamples)
    return np.asarray(draws / cases)


def _reach(differences: np.ndarray, shares: np.ndarray, scatter: np.ndarray, level: float) -> np.ndarray:
    """From mean differences to their one-sided confidence limits, (laws,).

    That is the bootstrap's error and the scatter of the curves, stretched for few cases, times Student's t. Source of
    the stretching: Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 2015.

    Args:
        differences: of the cases, (laws, cases).
        shares: of the bootstrap, (resamples, cases).
        scatter: standard deviation of what the curves add to the mean, (laws,).
        level: of the limit.
    """
    cases = shares.shape[1]
    if cases < 2:
        return np.full(len(differences), np.inf)
    error = (shares @ differences.T).std(axis=0, ddof=1) * np.sqrt(cases / (cases - 1))
    return np.asarray(np.hypot(error, scatter) * stats.t.ppf(1 - level, cases - 1))


def _with_verdict(comparison: Comparison, margin: float) -> Comparison:
    verdict = EQUAL if comparison.high <= margin else WORSE if comparison.low > margin else OPEN
    return replace(comparison, verdict=verdict)


def _law(narrow: Curve, wide: Curve, rules: Rules) -> Law | None:
    """The law of both curves; None where none is seen.

    It takes four points at which both networks have left the ground, and it must have foretold the last difference from
    those before it, within the margin or what the scatter allows.
    """
    errors = np.stack([1 - narrow.dice.mean(1), 1 - wide.dice.mean(1)])
    points = off_the_ground(errors[0]) & off_the_ground(errors[1])
    if points.sum() < _LEAST_POINTS:
        return None
    x, y = narrow.iterations[points].astype(float), errors[:, points]
    law = Law.fitted(points, x, y)
    if points.sum() > _LEAST_POINTS:
        gaps = y[0] - y[1]
        foretold = Law.fitted(points, x[:-1], y[:, :-1]).weights(x[-1]) @ gaps[:-1]
        reach = max(rules.margin, 3 * law.scatter)
        if not foretold.min() - reach <= gaps[-1] <= foretold.max() + reach:
            return None
    return law


def has_learnt(curve: Curve) -> bool:
    """Whether a network finds anything, and no less than at its first measurement."""
    dice = curve.dice.mean(1)
    return bool(dice[-1] >= max(_LEARNT, dice[0]))


def off_the_ground(errors: np.ndarray) -> np.ndarray:
    """Which points of an error curve come after half of all it has fallen so far, (k,); none if it has not fallen."""
    fallen = errors[0] - errors.min() if len(errors) else 0.0
    if fallen <= 0:
        return np.zeros(len(errors), dtype=bool)
    half = errors <= errors[0] - fallen / 2
    after = np.arange(len(errors)) >= int(np.argmax(half))
    return np.asarray(after)


@dataclass(frozen=True)
class Law:
    """error = a + b * iterations^-c of two curves, for the exponents c that the points do not rule out.

    Attributes:
        points: which measurements it was fitted to, (k of all,).
        iterations: of those, (k,).
        exponents: the best one first.
        scatter: standard deviation of the points around the best law.
    """

    points: np.ndarray
    iterations: np.ndarray
    exponents: np.ndarray
    scatter: float

    @staticmethod
    def fitted(points: np.ndarray, iterations: np.ndarray, errors: np.ndarray) -> Law:
        """By least squares with one exponent for both curves; those stay that an F test at 10 % does not refuse.

        Args:
            points: kept.
            iterations: (k,), k >= 3.
            errors: (2, k).
        """
        squares = _squares(iterations ** -_EXPONENTS[:, None], errors)
        freedom = errors.size - 2 * len(errors) - 1
        limit = squares.min() * (1 + stats.f.ppf(0.9, 1, freedom) / freedom)
        order = np.argsort(squares, kind="stable")
        scatter = float(np.sqrt(squares.min() / freedom))
        return Law(points, iterations, _EXPONENTS[order[squares[order] <= limit]], scatter)

    def weights(self, horizon: float) -> np.ndarray:
        """For each exponent, what to multiply the values of a curve with to get the one at the horizon, (laws, k)."""
        return _line_weights(self.iterations ** -self.exponents[:, None], horizon**-self.exponents)


def _squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums of squared residuals of straight lines, all curves of a law together; `x` (laws, k), `y` (curves, k)."""
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    explained = ((x @ y.T) ** 2).sum(1) / (x**2).sum(1)
    return np.asarray(np.maximum((y**2).sum() - explained, 0))


def _line_weights(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The value of a least-squares line at a point is the sum of these weights times its values at `x`, (laws, k).

    Args:
        x: (laws, k).
        at: (laws,).
    """
    centred = x - x.mean(1, keepdims=True)
    slope = (at - x.mean(1)) / (centred**2).sum(1)
    return np.asarray(1 / x.shape[1] + centred * slope[:, None])


def _allowances(costs: Sequence[float], budget: float) -> list[float]:
    """What may have been spent once each pair is through, in proportion to the roots of their costs (our choice).

    What a pair leaves goes to the next ones. In proportion to the costs themselves all pairs would train equally long,
    although the narrow ones cost next to nothing.
    """
    weights = np.cumsum(np.sqrt(costs))
    return [float(budget * weight / weights[-1]) for weight in weights]
