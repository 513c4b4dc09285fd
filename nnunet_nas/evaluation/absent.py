"""Cases without a structure: does a model invent it?

Dice has no value where neither label nor prediction holds the class, so that a pair of values is missing as soon as one
model rightly predicts nothing. What the other model invents there must not go unseen:

- It is counted, and the models are compared by McNemar's exact test of the cases in which only one of them predicts
  the class (as the sign test that it is: with several runs or with patients, of the shares of runs and cases).
- A verdict that this contradicts at the 5 % level is withheld, and so is one that would not stand if the missing pairs
  were counted, an empty prediction of an absent class being as good as can be (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nnunet_nas.evaluation.equivalence import ALPHA, Equivalence
from nnunet_nas.evaluation.intervals import Floats, by_patient

# What cannot be claimed of the second model once it (the first one) invents more.
_GOOD, _BAD = frozenset({"not worse", "better"}), frozenset({"not better", "worse"})


@dataclass(frozen=True)
class Absent:
    """What two models predict where there is nothing.

    Attributes:
        cases: without the class in the label.
        first: of these, how many the first model predicts it in; a mean over its runs.
        second: the same of the second model.
        only_first: cases (patients) in which the first model does so more often.
        only_second: in which the second one does.
        p_value: McNemar's exact test, two-sided.
    """

    cases: int
    first: float
    second: float
    only_first: int
    only_second: int
    p_value: float

    @property
    def contradicts(self) -> frozenset[str]:
        """Claims about the second model that the test rules out."""
        if self.p_value >= ALPHA:
            return frozenset()
        return _GOOD if self.only_second > self.only_first else _BAD


def compare_absent(first: Floats, second: Floats, patients: Sequence[str] | None = None) -> Absent | None:
    """Counts and tests; None without such a case.

    Args:
        first: shares of runs in which the first model predicts the class, (cases,), only cases without it.
        second: of the second model, (cases,).
        patients: whose case each one is, (cases,); None if each case counts for itself.
    """
    if not len(first):
        return None
    shares = np.stack([first, second])
    one, other = shares if patients is None else by_patient(shares, patients)
    only_first, only_second = int((one > other).sum()), int((other > one).sum())
    return Absent(
        cases=len(first),
        first=float(first.sum()),
        second=float(second.sum()),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of "either model is as likely to be the only one"; 1 if neither ever is."""
    discordant = only_first + only_second
    return float(stats.binomtest(only_second, discordant).pvalue) if discordant else 1.0


def completed(first: Floats, second: Floats, *, best: float) -> tuple[Floats, Floats]:
    """The values with missing ones as good as can be, where any run of either model has one.

    Args:
        first: of the first model, NaN where missing, (runs, cases, classes).
        second: of the second model, (other runs, cases, classes).
        best: value of the metric that cannot be better.
    """
    missing_in_all = np.isnan(np.concatenate([first, second])).all(axis=0)
    one, other = (np.where(np.isnan(values) & ~missing_in_all, best, values) for values in (first, second))
    return one, other


def reason_to_withhold(
    found: Equivalence, absent: Absent | None, with_dropped: Equivalence | None, dropped: int
) -> str:
    """Why what was shown of the cases with the class is no verdict on the models; empty if it is one.

    Args:
        found: on the cases that both models have a value for.
        absent: on the cases without the class.
        with_dropped: as `found`, with the pairs that miss a value completed; None if there are none.
        dropped: number of these.
    """
    if absent is not None and found.claims & absent.contradicts:
        return (
            f"where it is absent ({absent.cases} case(s)), the first model predicts it in {absent.first:g} and the "
            f"second in {absent.second:g}, McNemar p = {absent.p_value:.2g}"
        )
    if with_dropped is not None and found.claims - with_dropped.claims:
        return (
            f"it rests on {dropped} dropped case(s), in which only one model predicts what is absent: with them it "
            f"would be {with_dropped.verdict}"
        )
    return ""
