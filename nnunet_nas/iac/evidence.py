"""What the data say of an edge's operations, against the noise of their saying it (our choice).

The paper's test asks whether alpha moves little (section 5.3). Adam moves alpha by about its learning rate whatever the
gradients are, so that such a test tells the time and not the data: alpha without any signal pass it as early. Here it
is asked whether the loss really prefers one operation to another. The slope of an operation is the derivative of the
loss by its coefficient in the mixture, up to what the operations of an edge have in common. Of two operations that one
is worse whose slope is larger. Its mean over an epoch is one observation; Student's t test of the paired differences
over epochs gives the probability of as large a difference by chance. A preference that wanders slowly, because the
cells' weights do, counts as one: the test knows the noise of the batches, not that of other seeds. NumPy in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from nnunet_nas.iac.genotype import EDGES, OPERATIONS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_SHAPE = (len(EDGES), len(OPERATIONS))
# Ordered pairs of operations on all edges: any of them may be compared at the end of an epoch.
PAIRS = len(EDGES) * len(OPERATIONS) * (len(OPERATIONS) - 1)


@dataclass
class Slopes:
    """The epochs' mean slopes, as far as their paired differences need them.

    Attributes:
        epochs: observed.
        sums: of the slopes, (14, 7).
        products: sums of the products of every two slopes of an edge, (14, 7, 7).
    """

    epochs: int
    sums: Floats
    products: Floats

    @classmethod
    def none(cls) -> Slopes:
        """Before the first epoch."""
        return cls(0, np.zeros(_SHAPE), np.zeros((*_SHAPE, len(OPERATIONS))))

    def add(self, slopes: Floats) -> None:
        """One more epoch; `slopes` (14, 7), of pruned operations any number."""
        self.epochs += 1
        self.sums += slopes
        self.products += slopes[:, :, None] * slopes[:, None, :]

    def chance(self, leaders: NDArray[np.int64]) -> Floats:
        """Probability that every operation looks as much worse than its edge's leader by chance.

        Args:
            leaders: an operation per edge, (14,).

        Returns:
            one-sided, (14, 7); 1/2 where there is no noise to compare with: two epochs are needed.
        """
        count, rows = self.epochs, np.arange(len(EDGES))
        if count < 2:
            return np.full(_SHAPE, 0.5)
        difference = (self.sums - self.sums[rows, leaders][:, None]) / count
        squares = np.diagonal(self.products, axis1=1, axis2=2)
        total = squares + squares[rows, leaders][:, None] - 2 * self.products[rows, leaders]
        variance = np.maximum(total - count * difference**2, 0.0) / (count - 1)
        # What rounding leaves of equal slopes is no noise.
        noisy = variance > 1e-12 * total / count
        error = np.sqrt(np.where(noisy, variance, 1.0) / count)
        return np.where(noisy, stats.t.sf(difference / error, count - 1), 0.5)

    def to_json(self) -> dict[str, Any]:
        """Everything, exact to the last bit."""
        return {"epochs": self.epochs, "sums": self.sums.tolist(), "products": self.products.tolist()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Slopes:
        """Reads what `to_json` writes."""
        return cls(content["epochs"], np.array(content["sums"]), np.array(content["products"]))


def level(error_rate: float, tests: int) -> float:
    """Probability below which one comparison counts (Bonferroni).

    Args:
        error_rate: wanted probability that noise alone makes any comparison of a whole search count.
        tests: epochs at whose end all pairs are compared.
    """
    return error_rate / (PAIRS * max(tests, 1))


def epochs_needed(chance: Floats, threshold: float, epochs: int) -> Floats:
    """Observed epochs at which differences will count if they stay as they are: the t of a mean grows as their root.

    Args:
        chance: as `Slopes.chance` gives it.
        threshold: see `level`.
        epochs: observed so far.

    Returns:
        of the same shape; infinite where the operation does not look worse.
    """
    distance = np.maximum(stats.norm.isf(np.maximum(chance, 1e-300)), 1e-9)
    ratio = float(stats.norm.isf(threshold)) / distance
    return np.where(chance < 0.5, epochs * ratio**2, np.inf)
