"""Which width is proven to do what its base does: the order in which widths are tested, and the error that it keeps.

A test claims that a width is equivalent to the base within a margin (two one-sided tests, see
`evaluation.equivalence`). Several widths are tested on the same cases; the error that counts is that of the family: any
false claim among them. Two orders keep it at alpha, whatever the widths have in common (both are our choice here):

- `wide`: from the widest candidate to the narrowest, each at alpha, up to the first that fails (fixed sequence, Maurer,
  Hothorn and Lehmacher 1995). A false claim needs the first width that is not equivalent to be claimed, and that one is
  tested once. Power: all wider candidates must pass before a width is reached.
- `narrow`: from the narrowest candidate to the widest, each at alpha over the number of planned candidates
  (Bonferroni), up to the first that passes. The wider ones are then never trained. Holm's procedure would claim the
  first one at the same level, so that nothing is lost by it. Power: that of a single test at that level.

A fixed sequence from the narrowest width on would keep the error as well and end at once, without any claim, where the
narrowest width fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.evaluation.equivalence import ALPHA, POWER, Equivalence, equivalence_power

WIDE, NARROW = ORDERS = ("wide", "narrow")
EQUIVALENT, NOT_WORSE = CLAIMS = ("equivalent", "not_worse")

# Halvings of an interval that begins at a hundred times the margin.
_HALVINGS = 40


def in_order(caps: Sequence[int], order: str) -> list[int]:
    """Caps as they are tested."""
    return sorted(caps, reverse=order == WIDE)


def planned_tests(order: str, planned: int) -> int:
    """How many tests share alpha.

    Args:
        order: one of `ORDERS`.
        planned: number of candidates, also of those that will not be trained.
    """
    return planned if order == NARROW else 1


def claimed(passed: NDArray[np.bool_], order: str) -> NDArray[np.bool_]:
    """Which widths are claimed, given whether each would pass its test.

    Args:
        passed: (..., candidates), in the order of testing; those that were not tested yet may be left out.
        order: one of `ORDERS`.

    Returns:
        of the same shape.
    """
    if order == WIDE:
        wide: NDArray[np.bool_] = np.logical_and.accumulate(passed, axis=-1)
        return wide
    first = np.cumsum(passed, axis=-1) == 1
    return passed & first


def finished(passed: Sequence[bool], order: str, planned: int) -> bool:
    """Whether no further width is to be tested.

    Args:
        passed: of the widths tested so far, in the order of testing.
        order: one of `ORDERS`.
        planned: number of candidates.
    """
    return len(passed) == planned or bool(passed and passed[-1] == (order == NARROW))


def smallest(caps: Sequence[int], passed: Sequence[bool], order: str) -> int | None:
    """The narrowest width that is claimed; None if none is.

    Args:
        caps: in the order of testing.
        passed: of those tested so far.
        order: one of `ORDERS`.
    """
    claims = claimed(np.array(passed, dtype=bool), order)
    return min((cap for cap, claim in zip(caps, claims, strict=False) if claim), default=None)


def corrected(found: Equivalence, tests: int) -> Equivalence:
    """The tests of one width at a share of alpha (Bonferroni)."""
    return replace(found, models=tests, p_holm=min(1.0, tests * found.p_value)) if tests > 1 else found


def passes(found: Equivalence, claim: str) -> bool:
    """Whether a width does what is claimed of it, given its corrected tests; a verdict that is withheld is none.

    Args:
        found: of the width, the base first.
        claim: one of `CLAIMS`; `not_worse` is content with one side of the margin.
    """
    if found.verdict == "withheld":
        return False
    return found.claims >= ({"not worse", "not better"} if claim == EQUIVALENT else {"not worse"})


def largest_deviation(cases: int, margin: float, tests: int, *, power: float = POWER) -> float:
    """The largest standard deviation of the differences at which equivalence is found that often if there is none.

    Args:
        cases: or patients, two or more.
        margin: in the unit of the differences.
        tests: that share alpha.
        power: of one test.

    Returns:
        in the unit of the margin, from below.
    """
    low, high = 0.0, 100 * margin
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = equivalence_power(cases, middle, margin, alpha=ALPHA / tests) >= power
        low, high = (middle, high) if enough else (low, middle)
    return low


def how_tested(order: str, planned: int) -> str:
    """The order and its error in a sentence, as a paper would put it."""
    level = f"{100 * ALPHA:g} %"
    if planned == 1:
        return f"One width was planned and tested at {level}."
    if order == WIDE:
        return (
            f"The {planned} planned widths were tested from the widest to the narrowest, each at {level}, up to the "
            f"first that failed (fixed sequence): the probability of any false claim is at most {level}."
        )
    return (
        f"The {planned} planned widths were tested from the narrowest to the widest, each at {level} / {planned}, up "
        f"to the first that passed (Bonferroni over the planned widths): the probability of any false claim is at most "
        f"{level}."
    )


@dataclass(frozen=True)
class Independence:
    """Whether the cases that judge are others than those that selected.

    Attributes:
        known: None where it cannot be told.
        sentence: what is known.
    """

    known: bool | None
    sentence: str


def independence(*, hold_out: bool, folds: Sequence[str], raced_on: str | None, named: bool) -> Independence:
    """What selected and what judges.

    Args:
        hold_out: judged on cases that no training has seen, not on validation cases.
        folds: whose validation cases judge otherwise.
        raced_on: fold on whose validation cases a race has looked at widths of this base; None without one.
        named: the widths were named by the user.
    """
    if hold_out:
        return Independence(True, "Judged on hold-out cases, which took no part in selection or training.")
    if raced_on in folds:
        return Independence(
            False,
            f"Selected and judged on the same cases: a race has looked at the validation cases of fold {raced_on}. "
            f"Judge on hold-out cases (imagesTs, labelsTs) or on other folds (-f).",
        )
    if named:
        return Independence(
            None,
            "The widths were named: if results on these validation cases have suggested them, they were selected and "
            "judged on the same cases.",
        )
    how = "without labels" if raced_on is None else f"on the validation cases of fold {raced_on}"
    return Independence(True, f"Selected {how}, judged on validation cases of fold {', '.join(folds)}.")
