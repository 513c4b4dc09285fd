"""Rules that pick a width by the learning curves of trainings which were stopped early, or of narrow widths alone.

What `rules.py report` compares beside the project's own selections; nothing is trained. A rule sees one training seed
at a time, of widths 4 and wider:

- loss: the narrowest width whose training loss after a share of the schedule is within a tolerance of the widest one's;
- mean loss: the same of the loss of all iterations until then, which is less noisy;
- foretold loss: the same of the loss at the end of the schedule, by a power law of the iterations, a + b * t^-c, with
  one exponent for all widths, which is fitted to what there is;
- law over widths: widths up to 16 are trained to the end, and the validation Dice of wider ones is foretold by
  a - b * width^-c; the narrowest width within the margin of what is foretold for the widest;
- gain: widths are trained to the end from the narrowest on, and a width is taken if one twice (or four times) as wide
  gains less than the margin in validation Dice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25)
NARROWEST = 4
# Up to this width trainings are cheap beside the widest one's.
_CHEAP = 16
_EXPONENTS = np.geomspace(0.05, 3, 60)


@dataclass(frozen=True)
class Trained:
    """One seed's trainings of one data set.

    Attributes:
        dataset: name.
        losses: of the training, mean of each epoch, by width, widest first.
        validation: Dice at the end, by width.
        cost: of a training, in trainings of the widest, by width.
        true: the width that suffices.
    """

    dataset: str
    losses: Mapping[int, np.ndarray]
    validation: Mapping[int, float]
    cost: Mapping[int, float]
    true: int

    @property
    def widths(self) -> list[int]:
        """Widest first."""
        return list(self.losses)

    def until(self, share: float) -> dict[int, np.ndarray]:
        """Losses of the first part of the schedule, an epoch at least."""
        return {width: loss[: max(1, round(share * len(loss)))] for width, loss in self.losses.items()}


Values = Callable[[Trained, float], dict[int, float]]


def last_loss(trained: Trained, share: float) -> dict[int, float]:
    """Of the last epoch, by width."""
    return {width: float(loss[-1]) for width, loss in trained.until(share).items()}


def mean_loss(trained: Trained, share: float) -> dict[int, float]:
    """Of all epochs, by width."""
    return {width: float(loss.mean()) for width, loss in trained.until(share).items()}


def foretold_loss(trained: Trained, share: float) -> dict[int, float]:
    """At the end of the schedule, by width; the last loss where an epoch or two are all there is."""
    curves = np.array(list(trained.until(share).values()))
    if curves.shape[1] < 3:
        return last_loss(trained, share)
    epochs = np.arange(curves.shape[1]) + 0.5
    total = len(next(iter(trained.losses.values())))
    found = _power_law(epochs, curves, float(total))
    return dict(zip(trained.widths, found.tolist(), strict=True))


def _power_law(x: np.ndarray, curves: np.ndarray, at: float) -> np.ndarray:
    """Value at `at` of a + b * x^-c, b >= 0, fitted by least squares with one exponent for all curves, (curves,)."""
    best, found = np.inf, curves[:, -1]
    for exponent in _EXPONENTS:
        power = x**-exponent
        centred = power - power.mean()
        slopes = np.maximum(curves @ centred / (centred**2).sum(), 0)
        residuals = curves - curves.mean(axis=1, keepdims=True) - slopes[:, None] * centred
        if (residuals**2).sum() < best:
            best = float((residuals**2).sum())
            found = curves.mean(axis=1) + slopes * (at**-exponent - power.mean())
    return np.asarray(found)


def within(values: Mapping[int, float], tolerance: float) -> int:
    """The narrowest width whose loss is within a tolerance of the widest one's."""
    return min(width for width, value in values.items() if value <= values[max(values)] + tolerance)


def tolerance_of(values: Values, share: float, others: Sequence[Trained]) -> float:
    """The tolerance with the least mean |log2(chosen / true)| on other data sets, the middle one of a grid."""
    grid = np.linspace(0, 0.3, 61)
    seen = [(values(trained, share), trained.true) for trained in others]
    errors = np.array([np.mean([abs(np.log2(within(loss, step) / true)) for loss, true in seen]) for step in grid])
    return float(np.median(grid[errors == errors.min()]))


def by_law_over_widths(trained: Trained, margin: float) -> int:
    """From the validation Dice of cheap widths to the narrowest that is within the margin of the widest."""
    cheap = [width for width in trained.widths if width <= _CHEAP]
    x = np.array(cheap, dtype=float)
    errors = np.array([[1 - trained.validation[width] for width in cheap]])
    foretold = {width: float(_power_law(x, errors, float(width))[0]) for width in trained.widths}
    return within(foretold, margin)


def by_gain(trained: Trained, margin: float, times: int) -> tuple[int, float]:
    """The width at which one so many times as wide gains less than the margin; what was trained to see it costs."""
    spent: set[int] = set()
    for width in reversed(trained.widths):
        wider = times * width
        if wider not in trained.validation:
            break
        spent |= {width, wider}
        if trained.validation[wider] - trained.validation[width] < margin:
            return width, sum(trained.cost[each] for each in spent)
    return max(trained.widths), sum(trained.cost[each] for each in {*spent, max(trained.widths)})


def picks(trained: Trained, others: Sequence[Trained], margin: float) -> list[tuple[str, int, float]]:
    """Every rule's name, pick and cost in trainings of the widest.

    Args:
        trained: to pick from.
        others: of other data sets; without any, what needs a tolerance is left out.
        margin: Dice.
    """
    found = []
    for name, values in (("loss", last_loss), ("mean loss", mean_loss), ("foretold loss", foretold_loss)):
        for share in SHARES if others else ():
            tolerance = tolerance_of(values, share, others)
            width = within(values(trained, share), tolerance)
            found.append((f"{name}, {share:.0%}", width, share * sum(trained.cost.values())))
    cheap = sum(cost for width, cost in trained.cost.items() if width <= _CHEAP)
    found.append(("law over widths", by_law_over_widths(trained, margin), cheap))
    for times in (2, 4):
        width, cost = by_gain(trained, margin, times)
        found.append((f"gain of {times}w", width, cost))
    return found
