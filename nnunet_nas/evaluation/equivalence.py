"""Is a difference too small to matter, and how many cases does it take to show that?

Equivalence is shown by two one-sided paired t-tests of the mean difference against a margin (Schuirmann 1987). It is a
claim about the mean on purpose: ranks would not see a model that fails badly on a few cases. Such failures skew the
differences, and t is then too sure; a verdict therefore needs the one-sided 95 % bootstrap bound as well (ours). Of
several models compared with the same reference the tests of equivalence are corrected by Holm's procedure, and those of
a single side by their number (Bonferroni). With several runs of a model t has the error of cases and runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nnunet_nas.evaluation.intervals import RESAMPLES, Floats, Runs, bootstrap_interval, exact_mean

ALPHA = 0.05
POWER = 0.8
# What equal values may differ by after arithmetic, in parts of the largest one.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of the mean gain against a margin; a gain is positive where the second model is better.

    Attributes:
        margin: the largest mean difference that is taken not to matter, in the metric's unit.
        p_not_worse: p-value of "the gain is -margin or less": small if the second model is not worse.
        p_not_better: p-value of "the gain is margin or more": small if the second model is not better.
        low: lower end of the 90 % bootstrap interval of the mean gain.
        high: its upper end.
        models: compared with the same reference: `p_value` is corrected by Holm's procedure, the tests of a single side
            by this factor (Bonferroni).
        p_holm: the corrected `p_value`; None for one model, which needs no correction.
        withheld: why no verdict is given; empty if it is.
    """

    margin: float
    p_not_worse: float
    p_not_better: float
    low: float
    high: float
    models: int = 1
    p_holm: float | None = None
    withheld: str = ""

    @property
    def p_value(self) -> float:
        """The p-value of equivalence, the larger one of the two."""
        return max(self.p_not_worse, self.p_not_better)

    @property
    def claims(self) -> frozenset[str]:
        """What test and bootstrap agree on at the 5 % level, of `not worse`, `not better`, `better` and `worse`.

        `not worse`, `not better`: on the good (bad) side of one margin. `better`, `worse`: beyond the margin.
        """
        level = ALPHA / self.models
        shown = {
            "not worse": self.p_not_worse < level and self.low > -self.margin,
            "not better": self.p_not_better < level and self.high < self.margin,
            "better": 1 - self.p_not_better < level and self.low > self.margin,
            "worse": 1 - self.p_not_worse < level and self.high < -self.margin,
        }
        p_value = self.p_value if self.p_holm is None else self.p_holm
        if p_value < ALPHA and -self.margin < self.low and self.high < self.margin:
            shown["not worse"] = shown["not better"] = True
        return frozenset(claim for claim, is_shown in shown.items() if is_shown)

    @property
    def verdict(self) -> str:
        """The claims in words: `equivalent` if neither worse nor better, `unclear` if nothing was shown, `withheld`."""
        claims = self.claims
        if self.withheld and claims:
            return "withheld"
        if claims >= {"not worse", "not better"}:
            return "equivalent"
        return next((claim for claim in ("better", "worse", "not worse", "not better") if claim in claims), "unclear")


def equivalence(
    gains: Runs | Floats, margin: float, *, resamples: int = RESAMPLES, seed: int = 0
) -> Equivalence | None:
    """Two one-sided t-tests of the mean gain against `-margin` and `margin`, and its interval; None for a single case.

    Args:
        gains: of the second model, or both models' values, of which the higher one is better.
        margin: above 0, in the unit of the gains.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ValueError: margin of 0 or less.
    """
    if not margin > 0:
        raise ValueError(f"a margin of {margin} leaves nothing to be equivalent: give one above 0")
    # The ends of a 90 % interval are one-sided bounds at 95 %.
    interval = bootstrap_interval(gains, confidence=1 - 2 * ALPHA, resamples=resamples, seed=seed)
    if interval is None:
        return None
    return Equivalence(margin, *one_sided_tests(gains, margin), low=interval.low, high=interval.high)


def one_sided_tests(gains: Runs | Floats, margin: float) -> tuple[float, float]:
    """p-values of the two one-sided t-tests: of "the mean is -margin or less" and of "it is margin or more".

    Args:
        gains: of the second model, or both models' values; two cases or more.
        margin: in the unit of the gains.
    """
    return upper_p(gains, -margin), upper_p(-gains, -margin)


def upper_p(gains: Runs | Floats, bound: float) -> float:
    """p-value of "the true mean is `bound` or less", by t; without any spread the mean is the truth."""
    runs = gains if isinstance(gains, Runs) and gains.several else None
    values = gains.difference if isinstance(gains, Runs) else gains
    error, degrees = runs.error() if runs else (float(np.ptp(values)), len(values) - 1)
    distance = exact_mean(values) - bound
    if error <= _ROUNDING * max(1.0, float(np.abs(values).max())):
        return 0.5 - 0.5 * float(np.sign(round(distance, 12)))
    if runs:
        return float(stats.t.sf(distance / error, degrees))
    # Sorted, so that the order of the cases cannot change the last digit.
    return float(stats.ttest_1samp(np.sort(values), bound, alternative="greater").pvalue)


def equivalence_power(cases: int, deviation: float, margin: float, *, alpha: float = ALPHA) -> float:
    """How often the two one-sided tests find equivalence if the models do not differ, from below.

    Either test fails alike often (non-central t), and samples in which both fail are counted twice; where the power is
    worth having there are none.

    Args:
        cases: two or more.
        deviation: standard deviation of the differences, above 0.
        margin: in its unit.
        alpha: level of either test.
    """
    degrees = cases - 1
    fails = stats.nct.cdf(stats.t.ppf(1 - alpha, degrees), degrees, math.sqrt(cases) * margin / deviation)
    return max(0.0, 1 - 2 * float(fails))


def needed_cases(deviation: float, margin: float, *, power: float = POWER, alpha: float = ALPHA) -> int:
    """The smallest number of cases with that power of finding equivalence within the margin, two at least.

    Args:
        deviation: standard deviation of the differences.
        margin: in its unit.
        power: if the models do not differ.
        alpha: level of either test.
    """
    if deviation <= _ROUNDING:
        return 2
    # With a known deviation, normal instead of t: never more than are needed.
    quantiles = stats.norm.ppf(1 - alpha) + stats.norm.ppf((1 + power) / 2)
    cases = max(2, math.floor((quantiles * deviation / margin) ** 2))
    while equivalence_power(cases, deviation, margin, alpha=alpha) < power:
        cases += 1
    return cases
