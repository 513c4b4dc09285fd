"""Which of many topologies to deliver, by what the data say of each (our choice; the paper takes the likeliest).

Candidates are the decoded topology and samples of P(topology | feasible, within the budget). All are scored by the loss
of the weights that they share in the supernet, on cases that those weights were not trained on; the best few are
trained for a short while from the same start on the same batches, and scored again. The lowest loss wins. Scores are
kept as they come, so that an interruption costs one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nnunet_nas.dints.topology import Topology

Score = Callable[[Topology], float]


@dataclass
class Evidence:
    """The scores so far.

    Attributes:
        candidates: in the order in which they were proposed; the first is the decoded one.
        shared: loss with the supernet's weights, by number of the candidate.
        trained: loss after the short training, likewise; infinite where it diverged.
    """

    candidates: list[Topology]
    shared: dict[int, float] = field(default_factory=dict)
    trained: dict[int, float] = field(default_factory=dict)

    def gather(
        self,
        *,
        shared: Score,
        trained: Score,
        fits: Callable[[Topology], bool],
        finalists: int,
        keep: Callable[[], None],
    ) -> int:
        """Scores what has no score yet.

        Args:
            shared: loss of a topology with the supernet's weights.
            trained: loss after a short training.
            fits: whether a topology meets the budget when it is built.
            finalists: how many are trained: the decoded one, which is what there is without evidence, and the best of
                those that fit.
            keep: is called after each score.

        Returns:
            number of the winner; ties go to the one proposed first.
        """
        for number, candidate in enumerate(self.candidates):
            if number not in self.shared:
                self.shared[number] = shared(candidate)
                keep()
        chosen = self._finalists(fits, finalists)
        for number in chosen:
            if number not in self.trained and len(chosen) > 1:
                self.trained[number] = trained(self.candidates[number])
                keep()
        return min(chosen, key=lambda number: (self.trained.get(number, 0.0), number))

    def _finalists(self, fits: Callable[[Topology], bool], count: int) -> list[int]:
        chosen = [0]
        for number in sorted(range(1, len(self.candidates)), key=lambda number: (self.shared[number], number)):
            if len(chosen) >= count:
                break
            if fits(self.candidates[number]):
                chosen.append(number)
        return chosen

    def to_json(self) -> dict[str, Any]:
        """One entry per candidate; a loss that is infinite is null, one that is not known is missing."""
        entries = []
        for number, candidate in enumerate(self.candidates):
            entry: dict[str, Any] = {"topology": candidate.to_json()}
            for name, losses in (("shared_loss", self.shared), ("trained_loss", self.trained)):
                if number in losses:
                    entry[name] = losses[number] if math.isfinite(losses[number]) else None
            entries.append(entry)
        return {"candidates": entries}

    def recall(self, content: Any) -> None:
        """Takes over scores that `to_json` gave of the same candidates; of others nothing."""
        entries = content.get("candidates", []) if isinstance(content, dict) else []
        if [entry.get("topology") for entry in entries] != [candidate.to_json() for candidate in self.candidates]:
            return
        for name, losses in (("shared_loss", self.shared), ("trained_loss", self.trained)):
            known = {number: entry[name] for number, entry in enumerate(entries) if name in entry}
            losses.update({number: math.inf if loss is None else float(loss) for number, loss in known.items()})


def distinct(topologies: list[Topology], count: int) -> list[Topology]:
    """The first `count` different ones."""
    found: list[Topology] = []
    for topology in topologies:
        if topology not in found and len(found) < count:
            found.append(topology)
    return found
