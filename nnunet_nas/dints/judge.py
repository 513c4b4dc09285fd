"""How the search's trainer scores topologies for `evidence`: data, shared weights and short trainings.

Both kinds of score are losses on the same batches of the half of the cases that the weights were not trained on,
without augmentation. Every score has random numbers of its own, so that it does not depend on those before it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from nnunet_nas.architecture import build_network
from nnunet_nas.dints.decoding import Decoded, negative_log_likelihood
from nnunet_nas.dints.evidence import Evidence, distinct
from nnunet_nas.dints.sampling import sample_within_budget
from nnunet_nas.dints.selection import Selection
from nnunet_nas.dints.topology import Topology
from nnunet_nas.errors import BudgetProblem, DataProblem
from nnunet_nas.files import replace_file
from nnunet_nas.randomness import seed_everything
from nnunet_nas.training_cost import training_memory

if TYPE_CHECKING:
    from nnunet_nas.dints.trainers import nnUNetTrainerDiNTSSearch

CANDIDATES = "candidates.json"
# nnU-Net's training, of which the race is a short one.
_LEARNING_RATE, _MOMENTUM, _WEIGHT_DECAY, _POWER, _MAXIMUM_NORM = 1e-2, 0.99, 3e-5, 0.9, 12.0
# Where the search has decided, many samples are alike.
_DRAWS_PER_SAMPLE = 4


class Judge:
    """Chooses among samples at the end of a search, in its first process alone.

    Attributes:
        evidence: what was found, once `choose` is through.
    """

    evidence: Evidence

    def __init__(self, trainer: nnUNetTrainerDiNTSSearch) -> None:
        self.trainer, self.settings = trainer, trainer.settings
        self.path = Path(trainer.output_folder) / CANDIDATES

    def choose(self, decoded: Selection) -> Selection:
        """The topology that the evidence is for; `decoded` is what is delivered without it."""
        self.evidence = Evidence(self._candidates(decoded))
        self._recall()
        self.training, self.judging = self.trainer.judging_loaders()
        try:
            with self.trainer.without_the_others():
                winner = self._gather()
        finally:
            for loader in (self.training, self.judging):
                if hasattr(loader, "_finish"):
                    loader._finish()
        self._tell(winner)
        topology, relaxed = self.evidence.candidates[winner], self.trainer.relaxed()
        selected = topology.selected()
        return Selection(
            topology,
            Decoded(selected, negative_log_likelihood(relaxed.edge_logits, selected)),
            relaxed.model.of(topology, relaxed.names),
            0.0 if winner else decoded.price,
        )

    def _gather(self) -> int:
        self._seed("batches")
        self.batches = [next(self.judging) for _ in range(self.settings.scoring_batches)]
        return self.evidence.gather(
            shared=self.shared_loss,
            trained=self.trained_loss,
            fits=self._fits,
            finalists=self.settings.finalists,
            keep=self._keep,
        )

    def _candidates(self, decoded: Selection) -> list[Topology]:
        trainer, count = self.trainer, self.settings.samples
        rng = np.random.default_rng([self.settings.seed, trainer.num_epochs])
        limit = trainer.hard_budget_mib
        try:
            drawn = sample_within_budget(trainer.relaxed(), _DRAWS_PER_SAMPLE * count, rng, budget_mib=limit)
        except BudgetProblem:
            # A budget that a single path barely meets leaves nothing to choose from, and no reason to lose the search.
            drawn = []
        return distinct([decoded.topology, *drawn], 1 + count)

    def _fits(self, topology: Topology) -> bool:
        """Counted, not predicted."""
        limit = self.trainer.hard_budget_mib
        return limit is None or training_memory(self.trainer.spec_of(topology)).total <= limit

    def _seed(self, purpose: str) -> None:
        """All random numbers, from the search's seed and what they are for."""
        key = np.random.SeedSequence([self.settings.seed, *purpose.encode()])
        seed_everything(int(key.generate_state(1)[0]))

    @torch.no_grad()
    def _loss(self, network: nn.Module) -> float:
        """Mean over the batches; infinite where one is not a number."""
        mean = float(np.mean([self.trainer.loss_of(batch, network).item() for batch in self.batches]))
        return mean if math.isfinite(mean) else math.inf

    def shared_loss(self, topology: Topology) -> float:
        """With the weights of the supernet."""
        self.trainer.network.eval()
        with self.trainer.network.computing(topology):
            return self._loss(self.trainer.network)

    def trained_loss(self, topology: Topology) -> float:
        """After a training as nnU-Net's, of a few iterations; all candidates see the same batches."""
        trainer, steps = self.trainer, self.settings.race_iterations
        self._seed("weights")
        network = build_network(trainer.spec_of(topology), deep_supervision=trainer.enable_deep_supervision)
        network.to(trainer.device).train()
        self._seed("training")
        optimizer = torch.optim.SGD(
            network.parameters(), _LEARNING_RATE, momentum=_MOMENTUM, nesterov=True, weight_decay=_WEIGHT_DECAY
        )
        scaler = torch.amp.GradScaler(trainer.device.type, enabled=trainer.grad_scaler is not None)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * (1 - step / steps) ** _POWER
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(trainer.loss_of(next(self.training), network)).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm_(network.parameters(), _MAXIMUM_NORM)
            scaler.step(optimizer)
            scaler.update()
        return self._loss(network.eval())

    def _recall(self) -> None:
        """Scores that an interrupted choice has left."""
        if not self.path.exists():
            return
        try:
            self.evidence.recall(json.loads(self.path.read_text()))
        except (ValueError, TypeError, AttributeError) as error:
            raise DataProblem(f"{self.path} is not what a search wrote: remove it and go on with --c") from error

    def _keep(self) -> None:
        if not self.trainer.disable_checkpointing:
            replace_file(self.path, json.dumps(self.evidence.to_json()).encode())

    def _tell(self, winner: int) -> None:
        evidence, log = self.evidence, self.trainer.print_to_log_file
        log(f"Evidence: {len(evidence.candidates)} candidates, {len(evidence.trained)} trained for a short while")
        losses = evidence.trained or evidence.shared
        decoded = f"; of the most probable topology {losses[0]:.4f}" if 0 in losses else ""
        log(f"Loss of number {winner}, delivered: {losses[winner]:.4f}, at most {max(losses.values()):.4f}{decoded}")
