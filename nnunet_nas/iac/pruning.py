"""When an edge has settled and what it may forget: the stability test and pruning of IAC-LTH (sections 5.2 to 5.5).

NumPy in float64 throughout: the rounding of float32 (6e-8) lies above the thresholds of the test. The thresholds and
`outlier_k` are our choice, calibrated so that the search ends where the paper's does (its own values are lost). With
them the paper's test is a clock: any drift of alpha up to 0.25 per epoch, and none, ends the search at about the same
epoch. So ours is another one (`evidence`), which prunes what the data say is worse.

Whole edges are pruned once, when every edge has one operation (section 5.5): that is `discretise`. The paper's
contributions also speak of edges that "repeatedly fail to reach non-zero importance" during the search. A softmax gives
no importance of zero, and how often is repeatedly is not said: nothing of that is here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.iac.evidence import Slopes, epochs_needed
from nnunet_nas.iac.genotype import EDGES, OPERATIONS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_EPSILON = 1e-12


def distributions(importance: Floats, active: Mask) -> Floats:
    """Importances as one distribution over the active operations per edge (Eq. 19).

    Args:
        importance: I = p w, not negative, (14, 7).
        active: operations that are considered, (14, 7).

    Returns:
        P, (14, 7), rows sum to 1; uniform over the active operations where their importances sum to 0.
    """
    kept = np.where(active, importance, 0.0)
    total = kept.sum(axis=1, keepdims=True)
    uniform = active / active.sum(axis=1, keepdims=True)
    return np.where(total > 0, kept / np.where(total > 0, total, 1.0), uniform)


def jensen_shannon(first: Floats, second: Floats) -> Floats:
    """Jensen-Shannon divergence in nats along the last axis (Eq. 20): symmetric, 0 for equal, at most ln 2."""
    middle = (first + second) / 2

    def divergence(distribution: Floats) -> Floats:
        return (distribution * np.log((distribution + _EPSILON) / (middle + _EPSILON))).sum(axis=-1)

    return np.maximum((divergence(first) + divergence(second)) / 2, 0.0)


def operations_to_prune(importance: Floats, active: Mask, k: float) -> Mask:
    """What a stable edge drops (section 5.4): everything below mean - k std, or else the smallest.

    Args:
        importance: of one edge's operations, (7,).
        active: those still there, (7,).
        k: standard deviations (population) below the mean.

    Returns:
        the operations to drop, (7,); never all: the largest always stays. Ties go to the operation listed first.
    """
    drop = np.zeros_like(active)
    if active.sum() < 2:
        return drop
    left = np.flatnonzero(active)
    values = importance[left]
    # The slack keeps equal values, whose mean is rounded, from being outliers.
    drop[left] = values < (values.mean() - k * values.std()) * (1 - _EPSILON)
    if not drop.any():
        drop[left[np.argmin(values)]] = True
    drop[left[np.argmax(values)]] = False
    if not drop.any():  # all equal: the smallest is the largest too
        drop[left[-1]] = True
    return drop


@dataclass
class StabilityPruning:
    """The state of the stability test between epochs.

    Attributes:
        active: operations that are left, (14, 7).
        tau: threshold per edge in nats, (14,); only ever relaxed.
        previous: distributions at the last epoch, (14, 7); uniform at first, as constant alpha make them.
        gamma: factor on tau after a failed test.
        k: see `operations_to_prune`.
        gradual_epochs: None: the paper's rule alone. Otherwise the operations of an edge also fall evenly to one over
            this many tests, the smallest first (our addition): the paper's thresholds keep nearly everything until
            shortly before the end, so that steps become cheaper late.
        tests: epochs tested so far.
        threshold: None: the paper's test. Otherwise probability by chance below which an operation is worse than the
            leader of its edge, and is pruned; see `evidence`.
        slopes: on which that rests.
    """

    active: Mask
    tau: Floats
    previous: Floats
    gamma: float
    k: float
    gradual_epochs: int | None = None
    tests: int = 0
    threshold: float | None = None
    slopes: Slopes = field(default_factory=Slopes.none)

    @classmethod
    def start(
        cls, *, tau0: float, gamma: float, k: float, gradual_epochs: int | None = None, threshold: float | None = None
    ) -> StabilityPruning:
        """Before the first test: everything active."""
        shape = (len(EDGES), len(OPERATIONS))
        tau, uniform = np.full(len(EDGES), float(tau0)), np.full(shape, 1 / len(OPERATIONS))
        return cls(np.ones(shape, bool), tau, uniform, gamma, k, gradual_epochs, threshold=threshold)

    @property
    def settled(self) -> bool:
        """Whether every edge has one operation left, which ends the search."""
        return bool((self.active.sum(axis=1) == 1).all())

    def update(self, probabilities: Floats, weights: Floats, slopes: Floats | None = None) -> Floats:
        """Tests and prunes every undecided edge at the end of an epoch.

        Args:
            probabilities: p, softmax over the active operations, (14, 7).
            weights: w, of the edges into their node, (14,).
            slopes: mean slopes of the epoch, (14, 7), which a test by evidence needs.

        Returns:
            the divergences since the last epoch, in nats, (14,); NaN for edges that were decided already.
        """
        importance = probabilities * weights[:, None]
        current = distributions(importance, self.active)
        divergence = jensen_shannon(current, distributions(self.previous, self.active))
        undecided = self.active.sum(axis=1) > 1
        if self.threshold is None:
            self._prune_stable(importance, divergence, undecided)
        else:
            assert slopes is not None
            self._prune_worse(current, slopes, self.threshold)
        self.tests += 1
        self._prune_to_ceiling(importance)
        self.previous = current
        return np.where(undecided, divergence, np.nan)

    def epochs_to_go(self, limit: int) -> int:
        """Tests until evidence is expected for the last operation that it can be expected for within `limit` tests.

        0 where none can: more epochs would tell no more, and a search may stop. The first two tests have no noise to
        compare with, and expect all.
        """
        assert self.threshold is not None
        if self.settled:
            return 0
        if self.tests < 2:
            return limit - self.tests
        needed = epochs_needed(self._chance(), self.threshold, self.slopes.epochs)[self.active]
        within = needed[needed <= limit]
        return max(1, int(np.ceil(within.max())) - self.tests) if len(within) else 0

    def _chance(self) -> Floats:
        leaders = np.argmax(distributions(self.previous, self.active), axis=1)
        return self.slopes.chance(leaders)

    def _prune_worse(self, current: Floats, slopes: Floats, threshold: float) -> None:
        self.slopes.add(slopes)
        self.active &= ~(self.slopes.chance(np.argmax(current, axis=1)) < threshold)

    def _prune_stable(self, importance: Floats, divergence: Floats, undecided: Mask) -> None:
        stable = undecided & (divergence < self.tau)
        for row in np.flatnonzero(stable):
            self.active[row] &= ~operations_to_prune(importance[row], self.active[row], self.k)
        self.tau[undecided & ~stable] *= self.gamma

    def _prune_to_ceiling(self, importance: Floats) -> None:
        """Drops the smallest operations of edges that have more than the gradual rule allows by now."""
        if self.gradual_epochs is None:
            return
        most = len(OPERATIONS)
        ceiling = max(1, most - (most - 1) * self.tests // self.gradual_epochs)
        for row in range(len(EDGES)):
            left = np.flatnonzero(self.active[row])
            surplus = max(0, len(left) - ceiling)
            self.active[row, left[np.argsort(importance[row, left], kind="stable")[:surplus]]] = False

    def to_json(self) -> dict[str, Any]:
        """Everything that a restart needs, exact to the last bit."""
        return {
            "active": self.active.tolist(),
            "tau": self.tau.tolist(),
            "previous": self.previous.tolist(),
            "gamma": self.gamma,
            "k": self.k,
            "gradual_epochs": self.gradual_epochs,
            "tests": self.tests,
            "threshold": self.threshold,
            "slopes": self.slopes.to_json(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> StabilityPruning:
        """Reads what `to_json` writes."""
        return cls(
            np.array(content["active"], bool),
            np.array(content["tau"], np.float64),
            np.array(content["previous"], np.float64),
            content["gamma"],
            content["k"],
            content["gradual_epochs"],
            content["tests"],
            content["threshold"],
            Slopes.from_json(content["slopes"]),
        )
