"""Two models on the same cases: how large is the difference, how sure is it, and is it too small to matter?

Only arrays come in and numbers come out; nothing here knows nnU-Net. Differences are `second - first`, case by case.

- Interval of the mean difference: bias-corrected and accelerated (BCa) bootstrap over cases (Efron, JASA 1987), by
  `scipy.stats.bootstrap`; the percentile interval where BCa is degenerate (all differences equal).
- Test of a difference: Wilcoxon signed-rank, two-sided, as in the IAC-LTH paper (section 6.4). Cases without any
  difference take the lowest ranks, which are then left out (Pratt, JASA 1959); equal differences share their mean rank.
  Up to 50 cases the p-value is exact: of all 2^n patterns of signs, given these ranks, the share that is as extreme
  (SciPy is exact only without ties and zeros). Beyond, it is SciPy's normal approximation with its correction for ties.
- Effect: matched-pairs rank-biserial correlation (Kerby 2014), the share of favourable ranks minus the share of
  unfavourable ones; zero differences belong to neither, as in the test.
- Equivalence: two one-sided paired t-tests of the mean difference against a margin (Schuirmann 1987). It is a claim
  about the mean on purpose: ranks would not see a model that fails badly on a few cases. Such failures skew the
  differences, and t is then too sure; a verdict therefore needs the one-sided 95 % BCa bound beside the test (ours).
- Several classes: Holm's correction (1979). Several comparisons at once: Fisher's combination, as in the IAC-LTH paper.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

ALPHA = 0.05
RESAMPLES = 9999
# Up to here the numbers of patterns of signs are exact in double precision.
EXACT_CASES = 50
# What equal values may differ by after arithmetic, in parts of the largest one.
_ROUNDING = 1e-12
# Doubles of one batch of resamples: 32 MiB, whatever the number of cases.
_BATCH = 2**22


@dataclass(frozen=True)
class Interval:
    """A confidence interval of the mean difference.

    Attributes:
        low: lower end.
        high: upper end.
        confidence: for example 0.95.
        method: `BCa`, or `percentile` where BCa is degenerate.
    """

    low: float
    high: float
    confidence: float
    method: str


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of the mean gain against a margin; a gain is positive where the second model is better.

    Attributes:
        margin: the largest mean difference that is taken not to matter, in the metric's unit.
        p_not_worse: p-value of "the gain is -margin or less": small if the second model is not worse.
        p_not_better: p-value of "the gain is margin or more": small if the second model is not better.
        low: lower end of the 90 % bootstrap interval of the mean gain.
        high: its upper end.
    """

    margin: float
    p_not_worse: float
    p_not_better: float
    low: float
    high: float

    @property
    def p_value(self) -> float:
        """The p-value of equivalence, the larger one of the two."""
        return max(self.p_not_worse, self.p_not_better)

    @property
    def verdict(self) -> str:
        """What test and bootstrap agree on at the 5 % level; `unclear` if it is nothing.

        `equivalent`: within the margin on both sides. `better`, `worse`: beyond the margin. `not worse`, `not better`:
        on the good (bad) side of one margin, while the other one stays open.
        """
        not_worse = self.p_not_worse < ALPHA and self.low > -self.margin
        not_better = self.p_not_better < ALPHA and self.high < self.margin
        if not_worse and not_better:
            return "equivalent"
        if not_worse:
            return "better" if 1 - self.p_not_better < ALPHA and self.low > self.margin else "not worse"
        if not_better:
            return "worse" if 1 - self.p_not_worse < ALPHA and self.high < -self.margin else "not better"
        return "unclear"


@dataclass(frozen=True)
class Comparison:
    """A metric of two models on the same cases.

    Attributes:
        cases: number of pairs.
        mean_first: mean of the first model.
        mean_second: mean of the second model.
        difference: mean of second - first.
        interval: of `difference`; None with a single case.
        p_value: of the Wilcoxon signed-rank test; 1 if no case differs.
        effect: rank-biserial correlation, -1 to 1, positive where the second model is better; 0 if no case differs.
        won: cases on which the second model is better.
        lost: cases on which it is worse.
        tied: cases without any difference.
        equivalence: None with a single case.
    """

    cases: int
    mean_first: float
    mean_second: float
    difference: float
    interval: Interval | None
    p_value: float
    effect: float
    won: int
    lost: int
    tied: int
    equivalence: Equivalence | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, with the verdict."""
        content = asdict(self)
        if self.equivalence is not None:
            content["equivalence"].update(p_value=self.equivalence.p_value, verdict=self.equivalence.verdict)
        return content


def compare(
    first: ArrayLike, second: ArrayLike, *, margin: float, higher_is_better: bool = True, seed: int = 0
) -> Comparison:
    """Compares two models case by case.

    The result does not depend on the order of the cases, and swapping the models mirrors it.

    Args:
        first: values of the first model, (cases,), finite.
        second: values of the second model on the same cases, (cases,), finite.
        margin: for the equivalence tests, in the metric's unit, above 0.
        higher_is_better: False for distances.
        seed: of the bootstrap.

    Raises:
        ValueError: no cases, different numbers of cases, values that are not finite, or a margin of 0 or less.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(f"one value per case and model is needed, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("values that are not finite cannot be compared: leave their cases out and say so")
    difference = b - a
    gain = difference if higher_is_better else -difference
    won, lost = int((gain > 0).sum()), int((gain < 0).sum())
    return Comparison(
        cases=len(gain),
        mean_first=_mean(a),
        mean_second=_mean(b),
        difference=_mean(difference),
        interval=bootstrap_interval(difference, seed=seed),
        p_value=signed_rank_p(difference),
        effect=rank_biserial(gain),
        won=won,
        lost=lost,
        tied=len(gain) - won - lost,
        equivalence=equivalence(gain, margin, seed=seed),
    )


def bootstrap_interval(
    differences: Floats, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Bootstrap interval of the mean; None for a single case.

    Args:
        differences: (cases,).
        confidence: of the interval.
        resamples: number of bootstrap samples.
        seed: of the resampling.
    """
    if len(differences) < 2:
        return None
    # Sorted, and of a pattern and its mirror image always the same one: neither the order of the cases nor that of the
    # models can then change which cases a seed draws.
    values, mirrored = np.sort(differences), np.sort(-differences)
    sign = 1.0
    if values.tolist() < mirrored.tolist():
        values, sign = mirrored, -1.0
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # SciPy warns of a degenerate distribution and returns NaN, which is what the second method is for.
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                (values,),
                np.mean,
                n_resamples=resamples,
                batch=max(1, _BATCH // len(values)),
                confidence_level=confidence,
                method=method,
                # The name that all versions of SciPy since 1.7 know.
                random_state=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            break
    low, high = sorted((sign * float(found.low), sign * float(found.high)))
    return Interval(low, high, confidence, method)


def signed_rank_p(differences: Floats) -> float:
    """Two-sided p-value of the Wilcoxon signed-rank test, zeros as Pratt treats them; 1 if all are zero.

    Args:
        differences: (cases,).
    """
    if not np.any(differences):
        return 1.0
    if len(differences) > EXACT_CASES:
        return float(stats.wilcoxon(differences, zero_method="pratt", method="approx").pvalue)
    # Shared ranks are halves: twice the ranks are whole numbers.
    ranks = np.rint(2 * stats.rankdata(np.abs(differences))).astype(int)
    patterns = _rank_sum_counts(ranks[differences != 0])
    observed = ranks[differences > 0].sum()
    tail = min(patterns[: observed + 1].sum(), patterns[observed:].sum())
    return min(1.0, 2 * float(tail) / 2.0 ** np.count_nonzero(differences))


def _rank_sum_counts(ranks: NDArray[np.int_]) -> Floats:
    """How many of the 2^n subsets of the ranks have which sum, (sum of the ranks + 1,); exact below 2^53."""
    counts = np.zeros(int(ranks.sum()) + 1)
    counts[0] = 1
    for rank in ranks:
        counts[rank:] += counts[:-rank].copy()
    return counts


def rank_biserial(differences: Floats) -> float:
    """Matched-pairs rank-biserial correlation: (favourable - unfavourable rank sum) / both; 0 if all are zero.

    Args:
        differences: (cases,), positive where favourable.
    """
    ranks = stats.rankdata(np.abs(differences))
    favourable, unfavourable = ranks[differences > 0].sum(), ranks[differences < 0].sum()
    total = favourable + unfavourable
    return float((favourable - unfavourable) / total) if total else 0.0


def equivalence(gains: Floats, margin: float, *, resamples: int = RESAMPLES, seed: int = 0) -> Equivalence | None:
    """Two one-sided t-tests of the mean gain against `-margin` and `margin`, and its interval; None for a single case.

    Args:
        gains: (cases,), positive where the second model is better.
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


def one_sided_tests(gains: Floats, margin: float) -> tuple[float, float]:
    """p-values of the two one-sided t-tests: of "the mean is -margin or less" and of "it is margin or more".

    Args:
        gains: two or more.
        margin: in the unit of the gains.
    """
    return _upper_p(gains, -margin), _upper_p(-gains, -margin)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down procedure, in the order given."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, (len(p_values) - rank) * p_values[position])
        corrected[position] = min(1.0, largest)
    return corrected


def fisher(p_values: Sequence[float]) -> float:
    """One p-value for several independent comparisons: Fisher's sum of logarithms, chi-squared with 2 k degrees.

    It asks whether there is a difference anywhere, whatever its direction. Comparisons that share cases or a model are
    not independent, and then the combined p-value is too small.
    """
    # The logarithm of 0, which SciPy warns of.
    return float(stats.combine_pvalues(p_values).pvalue) if all(p_values) else 0.0


def _upper_p(values: Floats, bound: float) -> float:
    """p-value of "the true mean is `bound` or less", by t; without any spread the mean is the truth."""
    if np.ptp(values) <= _ROUNDING * max(1.0, float(np.abs(values).max())):
        return 0.5 - 0.5 * float(np.sign(round(_mean(values) - bound, 12)))
    # Sorted, so that the order of the cases cannot change the last digit.
    return float(stats.ttest_1samp(np.sort(values), bound, alternative="greater").pvalue)


def _mean(values: Floats) -> float:
    # Exact, so that the order of the cases cannot change the last digit.
    return math.fsum(values.tolist()) / len(values)
