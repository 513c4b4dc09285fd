"""Intervals of a mean difference between two models, by the bootstrap over cases, patients and training runs.

- Of the cases: bias-corrected and accelerated (BCa, Efron, JASA 1987), by `scipy.stats.bootstrap`; the percentile
  interval where BCa is degenerate (all differences equal).
- Patients with several cases count once: values are means over a patient's cases, so that resampling them is the
  cluster bootstrap.
- Models trained several times: a case's value is its mean over the runs, and the runs are a second sample beside the
  cases. The bootstrap then draws both (hierarchical). A few values drawn with replacement vary too little: deviations
  are stretched by sqrt(r / (r - 1)), and by t over z with the degrees of freedom after Satterthwaite (Hesterberg, The
  American Statistician 2015, for one sample; for two crossed ones ours).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

RESAMPLES = 9999
# Doubles of one batch of resamples: 32 MiB, whatever the number of cases.
_BATCH = 2**22


@dataclass(frozen=True)
class Interval:
    """A confidence interval of the mean difference.

    Attributes:
        low: lower end.
        high: upper end.
        confidence: for example 0.95.
        method: `BCa`; `percentile` where BCa is degenerate; `hierarchical` for several runs of a model.
    """

    low: float
    high: float
    confidence: float
    method: str


@dataclass(frozen=True)
class Runs:
    """Two models, each trained once or more, on the same cases.

    Attributes:
        first: values of the first model, (runs, cases).
        second: of the second model, (other runs, cases).
    """

    first: Floats
    second: Floats

    @property
    def difference(self) -> Floats:
        """Of the means over runs, second - first, (cases,)."""
        return self.second.mean(axis=0) - self.first.mean(axis=0)

    @property
    def several(self) -> bool:
        """Whether there is a model whose runs can differ."""
        return max(len(self.first), len(self.second)) > 1

    def __neg__(self) -> Runs:
        """The same with gains and losses exchanged."""
        return Runs(-self.first, -self.second)

    def error(self) -> tuple[float, float]:
        """Standard error of the mean difference, from cases and runs, and its degrees of freedom (Satterthwaite).

        What a run adds to single cases is in both parts: a little too much, never too little. A model with one run says
        nothing about its runs.
        """
        samples = [self.difference, *(values.mean(axis=1) for values in (self.first, self.second) if len(values) > 1)]
        parts = [(float(np.var(sample, ddof=1)) / len(sample), len(sample) - 1) for sample in samples]
        total = sum(part for part, _ in parts)
        return math.sqrt(total), total**2 / sum(part**2 / n for part, n in parts) if total else math.inf


def by_patient(values: Floats, patients: Sequence[str]) -> Floats:
    """Means over the cases of each patient, in the order of their names.

    Args:
        values: (runs, cases).
        patients: whose case each one is, (cases,).

    Returns:
        (runs, patients).
    """
    _, index = np.unique(np.asarray(patients), return_inverse=True)
    return np.array([np.bincount(index, row) / np.bincount(index) for row in values])


def bootstrap_interval(
    models: Runs | Floats, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Bootstrap interval of the mean difference; None for a single case.

    Args:
        models: their values, or the differences of two models with one run each, (cases,).
        confidence: of the interval.
        resamples: number of bootstrap samples.
        seed: of the resampling.
    """
    if isinstance(models, Runs) and models.several and models.first.shape[1] > 1:
        return _hierarchical_interval(models, confidence, resamples, seed)
    differences = models.difference if isinstance(models, Runs) else models
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


def _hierarchical_interval(models: Runs, confidence: float, resamples: int, seed: int) -> Interval:
    """Cases and the runs of both models are drawn again; deviations are stretched as the module says."""
    random = np.random.default_rng(seed)
    cases = models.first.shape[1]
    mean = exact_mean(models.difference)
    deviations = []
    for start in range(0, resamples, size := max(1, _BATCH // cases)):
        drawn = min(size, resamples - start)
        case_weights, first, second = (
            _weights(random, count, drawn) for count in (cases, len(models.first), len(models.second))
        )
        values = second @ models.second - first @ models.first
        deviations.append((case_weights * values).sum(axis=1) - mean)
    _, degrees = models.error()
    tail = (1 - confidence) / 2
    stretch = float(stats.t.ppf(tail, degrees) / stats.norm.ppf(tail))
    low, high = np.quantile(np.concatenate(deviations), [tail, 1 - tail])
    return Interval(mean + stretch * float(low), mean + stretch * float(high), confidence, "hierarchical")


def _weights(random: np.random.Generator, count: int, draws: int) -> Floats:
    """Shares in which `count` things are drawn, (draws, count), as variable as an unbiased variance says."""
    even = 1 / count
    shares = random.multinomial(count, np.full(count, even), size=draws) / count
    return even + (shares - even) * (math.sqrt(count / (count - 1)) if count > 1 else 0.0)


def exact_mean(values: Floats) -> float:
    """Mean whose last digit does not depend on the order."""
    return math.fsum(values.tolist()) / len(values)
