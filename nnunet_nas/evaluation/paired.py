"""Two models on the same cases: how large is the difference, how sure is it, and is it too small to matter?

Only arrays come in and numbers come out; nothing here knows nnU-Net. Differences are `second - first`, case by case.

- Interval of the mean difference: bootstrap over cases (see `intervals`).
- Test of a difference: Wilcoxon signed-rank, two-sided, as in the IAC-LTH paper (section 6.4). Cases without any
  difference take the lowest ranks, which are then left out (Pratt, JASA 1959); equal differences share their mean rank.
  Up to 50 cases the p-value is exact: of all 2^n patterns of signs, given these ranks, the share that is as extreme
  (SciPy is exact only without ties and zeros). Beyond, it is SciPy's normal approximation with its correction for ties.
  The signed ranks know nothing of training runs: with several of them p is that of a t-test with the error of both.
- Effect: matched-pairs rank-biserial correlation (Kerby 2014), the share of favourable ranks minus the share of
  unfavourable ones; zero differences belong to neither, as in the test.
- Equivalence: two one-sided tests of the mean difference against a margin (see `equivalence`).
- Several classes: Holm's correction (1979). Several comparisons at once: Fisher's combination, as in the IAC-LTH paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from nnunet_nas.evaluation.equivalence import Equivalence, equivalence, needed_cases, upper_p
from nnunet_nas.evaluation.intervals import Floats, Interval, Runs, bootstrap_interval, by_patient, exact_mean

# Up to here the numbers of patterns of signs are exact in double precision.
EXACT_CASES = 50


@dataclass(frozen=True)
class Comparison:
    """A metric of two models on the same cases.

    Attributes:
        cases: number of pairs.
        patients: that these cases are of; None if each case counts for itself.
        mean_first: mean of the first model.
        mean_second: mean of the second model.
        difference: mean of second - first.
        interval: of `difference`; None with a single case.
        p_value: of the Wilcoxon signed-rank test; 1 if no case differs. Of a t-test where a model has several runs.
        effect: rank-biserial correlation, -1 to 1, positive where the second model is better; 0 if no case differs.
        won: cases (patients) on which the second model is better.
        lost: on which it is worse.
        tied: without any difference.
        equivalence: None with a single case.
        deviation: standard deviation of the differences; None with a single case.
        cases_needed: or patients, for equivalence within the margin; None where more of them cannot be promised to be
            enough: with a single one, or with several runs.
    """

    cases: int
    patients: int | None
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
    deviation: float | None
    cases_needed: int | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, with the verdict."""
        content = asdict(self)
        if self.equivalence is not None:
            content["equivalence"].update(p_value=self.equivalence.p_value, verdict=self.equivalence.verdict)
        return content


def compare(
    first: ArrayLike,
    second: ArrayLike,
    *,
    margin: float,
    higher_is_better: bool = True,
    patients: Sequence[str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares two models case by case.

    With one run of each model the result does not depend on the order of the cases, and swapping the models mirrors it.

    Args:
        first: values of the first model, (cases,) or (runs, cases), finite.
        second: values of the second model on the same cases, (cases,) or (runs, cases), finite.
        margin: for the equivalence tests, in the metric's unit, above 0.
        higher_is_better: False for distances.
        patients: whose case each one is, (cases,); None if each case counts for itself.
        seed: of the bootstrap.

    Raises:
        ValueError: no cases, different numbers of cases, values that are not finite, or a margin of 0 or less.
    """
    a, b = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if a.ndim != 2 or a.shape[1:] != b.shape[1:] or not a.size:
        raise ValueError(f"one value per case and run is needed, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("values that are not finite cannot be compared: leave their cases out and say so")
    cases = a.shape[1]
    if patients is not None:
        a, b = by_patient(a, patients), by_patient(b, patients)
    values = Runs(a, b)
    runs = values if higher_is_better else -values
    gain = runs.difference
    won, lost = int((gain > 0).sum()), int((gain < 0).sum())
    deviation = float(np.std(gain, ddof=1)) if len(gain) > 1 else None
    return Comparison(
        cases=cases,
        patients=None if patients is None else len(gain),
        mean_first=exact_mean(a.mean(axis=0)),
        mean_second=exact_mean(b.mean(axis=0)),
        difference=exact_mean(values.difference),
        interval=bootstrap_interval(values, seed=seed),
        p_value=difference_p(runs),
        effect=rank_biserial(gain),
        won=won,
        lost=lost,
        tied=len(gain) - won - lost,
        equivalence=equivalence(runs, margin, seed=seed),
        deviation=deviation,
        cases_needed=None if deviation is None or runs.several else needed_cases(deviation, margin),
    )


def difference_p(models: Runs) -> float:
    """Two-sided p-value of "no difference": signed ranks, or t with the error of cases and of several runs."""
    if not models.several or models.first.shape[1] < 2:
        return signed_rank_p(models.difference)
    return min(1.0, 2 * min(upper_p(models, 0.0), upper_p(-models, 0.0)))


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
