"""What a search for cells records, epoch by epoch, and when it will probably end.

Everything that the paper analyses afterwards (IAC-LTH, section 4) and that a person wants to see meanwhile can be drawn
from these few arrays: 200 epochs take about 300 kB as one compressed file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.errors import DataProblem
from nnunet_nas.histories import History, column
from nnunet_nas.iac.genotype import EDGES, OPERATIONS

_RECENT = 5


@dataclass(eq=False)
class CellHistory(History):
    """The finished epochs of a search; edges and operations are ordered as `EDGES` and `OPERATIONS` of the genotype.

    Attributes:
        probabilities: of the operations on every edge after the epoch, 0 where pruned, (t, 14, 7).
        weights: of the edges into their target node after the epoch, (t, 14).
        active: operations that are left after the epoch's pruning, (t, 14, 7).
        js: Jensen-Shannon divergence of the epoch's stability test in nats, NaN where no test was made, (t, 14).
        tau: threshold of the next test in nats, NaN for a search without tests, (t, 14).
        warmup: epochs that trained cell weights only, (t,).
    """

    probabilities: NDArray[np.float64] = column(len(EDGES), len(OPERATIONS))
    weights: NDArray[np.float64] = column(len(EDGES))
    active: NDArray[np.bool_] = column(len(EDGES), len(OPERATIONS), dtype=np.bool_)
    js: NDArray[np.float64] = column(len(EDGES))
    tau: NDArray[np.float64] = column(len(EDGES))
    warmup: NDArray[np.bool_] = column(dtype=np.bool_)

    @property
    def operations_left(self) -> NDArray[np.int64]:
        """Active operations after each epoch, of 98, (t,)."""
        return self.active.sum(axis=(1, 2), dtype=np.int64)

    @property
    def edges_settled(self) -> NDArray[np.int64]:
        """Edges with one active operation after each epoch, of 14, (t,)."""
        return (self.active.sum(axis=2) == 1).sum(axis=1, dtype=np.int64)

    def check(self) -> None:
        """Raises DataProblem for a search that diverged, or probabilities that contradict `active`."""
        if not np.isfinite(self.probabilities).all() or not np.isfinite(self.weights).all():
            raise DataProblem("search history: probabilities and weights must be finite: the search has diverged")
        if not self.active.any(axis=2).all():
            raise DataProblem("search history: an edge without any active operation; one always stays")
        if self.probabilities[~self.active].any():
            raise DataProblem("search history: the probability of a pruned operation must be 0")


def expected_end(history: CellHistory, *, num_epochs: int, gamma: float) -> int:
    """Epochs that a search with stability tests (section 5) will have run when it stops: our estimate, for the log.

    An edge waits until its threshold has grown past its divergence (median of its last five tests), and from then on it
    loses one operation per epoch, the slowest pace of the pruning rule while the tests succeed. The edge that takes
    longest decides. On simulated searches of about 50 epochs this was right within five epochs from the first test
    on.

    Args:
        history: so far.
        num_epochs: epochs at most.
        gamma: factor on the threshold after each failed test.

    Returns:
        the number of epochs: `len(history)` if every edge is settled, `num_epochs` while no edge was tested yet or when
        the estimate is beyond it.
    """
    epochs = len(history)
    if epochs == 0:
        return num_epochs
    surplus = history.active[-1].sum(axis=1) - 1
    if not surplus.any():
        return epochs
    rest = max(_epochs_to_go(history, edge, gamma) for edge in np.flatnonzero(surplus).tolist())
    return int(min(epochs + rest, num_epochs))


def _epochs_to_go(history: CellHistory, edge: int, gamma: float) -> float:
    """Epochs until one edge is settled, by its thresholds."""
    tests = history.js[:, edge]
    tests = tests[np.isfinite(tests)][-_RECENT:]
    tau = float(history.tau[-1, edge])
    surplus = int(history.active[-1, edge].sum()) - 1
    if not len(tests) or not tau > 0:
        return math.inf
    divergence = float(np.median(tests))
    if divergence < tau:
        return surplus
    if gamma <= 1:
        return math.inf
    # The next test uses tau as it stands; the smallest n with tau * gamma^n above the divergence.
    failing = math.floor(math.log(divergence / tau) / math.log(gamma)) + 1
    return failing + surplus
