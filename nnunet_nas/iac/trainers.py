"""The searches for cells as nnU-Net trainers: IAC (section 3.3) and IAC-LTH (section 5)."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from nnunet_nas import commands
from nnunet_nas.architecture import NetworkSpec, build_network, derive
from nnunet_nas.distributed import broadcast
from nnunet_nas.duration import Pace, in_words, seconds_to_go
from nnunet_nas.errors import DataProblem
from nnunet_nas.files import replace_file
from nnunet_nas.iac.drawing.cell import draw_cell
from nnunet_nas.iac.drawing.progress import draw_progress
from nnunet_nas.iac.evidence import level
from nnunet_nas.iac.genotype import (
    EDGES,
    OPERATIONS,
    Genotype,
    cells_architecture,
    discretise,
    leads,
)
from nnunet_nas.iac.history import CellHistory, expected_end
from nnunet_nas.iac.pruning import StabilityPruning
from nnunet_nas.iac.relaxation import cosine_power
from nnunet_nas.iac.settings import CellSettings, IACLTHSettings, IACSettings
from nnunet_nas.iac.supernet import IACSupernet
from nnunet_nas.iac.trial import Gain, gain_of, losses, train_briefly
from nnunet_nas.methods import RESIDUAL, result_trainer
from nnunet_nas.plans import DerivedConfiguration
from nnunet_nas.randomness import seed_everything
from nnunet_nas.search import BilevelSearchTrainer, SearchTrainer
from nnunet_nas.search_cost import Phase, retrofit_cost, search_cost
from nnunet_nas.settings import read_settings
from nnunet_nas.skips.backbone import start_from_backbone
from nnunet_nas.skips.recompute import has_batch_norms, recomputes
from nnunet_nas.skips.settings import IACRetrofitSettings
from nnunet_nas.skips.unet import SkipUNet, load_backbone, require_skips
from nnunet_nas.trainer import to_bytes

THETA_0 = "theta_0.pth"
GENOTYPE = "genotype.json"
# Above this share of copying and pooling edges a cell has little to learn with: the known collapse of such searches.
_COLLAPSED = 0.75


class CellSearchTrainer(SearchTrainer):
    """What IAC and IAC-LTH share: supernet, warm-up, annealing, records and result."""

    states: ClassVar[tuple[str, ...]] = (*SearchTrainer.states, "_theta_0", "backbone")
    network: IACSupernet
    history: CellHistory
    _phases: list[Phase]
    _pace: Pace | None = None

    @classmethod
    def supernet(cls, spec: NetworkSpec, settings: CellSettings) -> IACSupernet:
        """The configuration's own network with relaxed cells in its skips.

        Raises:
            DataProblem: there is something in its skips already, or it has none.
        """
        backbone = build_network(spec, deep_supervision=True)
        name = type(backbone).__name__
        if isinstance(backbone, SkipUNet):
            raise DataProblem(
                f"{name} has modules in its skip connections already: search on the configuration below it"
            )
        require_skips(backbone, name)
        return IACSupernet(backbone, settings)

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.settings.search_batch_size is not None:
            self.configuration_manager.configuration["batch_size"] = self.settings.search_batch_size

    def fit_the_device(self) -> None:
        """Cells are recomputed where that is asked for, or where the GPU is too small otherwise.

        Raises:
            EnvironmentProblem: it is too small in any case.
        """
        spec = replace(self.base_spec(), batch_size=self.batch_size)

        def build() -> IACSupernet:
            return self.supernet(spec, self.settings)

        self.network.decoder.recompute = recomputes(
            self,
            self.network,
            build,
            (spec.batch_size, spec.input_channels, *spec.patch_size),
            what="the search",
            advice=f"set search_batch_size below {spec.batch_size} with {self.set_search('search_batch_size=NUMBER')}",
        )

    def prepare(self) -> None:
        """Puts the fold's trained backbone into the supernet, freezes it, and keeps the initial cell weights."""
        settings = self.settings
        if settings.warmup_epochs >= settings.num_epochs:
            raise DataProblem(
                f"warmup_epochs={settings.warmup_epochs} leaves nothing of num_epochs={settings.num_epochs} for the "
                f"search: lower the former or raise the latter with {self.set_search('num_epochs=NUMBER')}"
            )
        self.backbone = start_from_backbone(
            self,
            self.network,
            self.configuration_name,
            trained_by=settings.backbone_trainer,
            checkpoint=settings.backbone_checkpoint,
        )
        self.network.freeze_backbone()
        self.fit_the_device()
        self.history = CellHistory()
        self._theta_0 = to_bytes(self.network.cell_state())

    def on_train_start(self) -> None:
        """nnU-Net's preparations; says what is ahead; theta_0 goes to the disk before the first step."""
        super().on_train_start()
        self._log_cost()
        if self.local_rank == 0:
            path = Path(self.output_folder) / THETA_0
            if not path.exists() or path.read_bytes() != self._theta_0:
                replace_file(path, self._theta_0)

    def has_batch_norms(self) -> bool:
        """Of the cells: the backbone's are frozen."""
        return any(cell.norm == "batch" for cell in self.network.decoder.skip_modules)

    def _log_cost(self) -> None:
        """What search and retrofit cost at most, as shares of what they compete with."""
        settings, spec, configuration = self.settings, self.base_spec(), self.plans.resolve(self.configuration_name)
        search = search_cost(settings.method, spec, settings)
        self._phases = list(search.phases)
        retrofit = retrofit_cost(settings.method, spec, settings, configuration)
        assert retrofit is not None
        theirs = read_settings(IACRetrofitSettings, configuration)
        length = f"{settings.num_epochs} epochs of {settings.num_iterations_per_epoch} iterations"
        training = f"{theirs.num_epochs} epochs of {theirs.num_iterations_per_epoch}"
        self.print_to_log_file(
            f"Cost, as a share of one default nnU-Net training of {self.configuration_name} and counted in "
            f"multiply-accumulates: this search {search.words(length)}, a retrofit {retrofit.words(training)}, both "
            f"{search.default_trainings + retrofit.default_trainings:.3f}. "
            f"Seconds are more, where cells are narrow several times more."
        )

    def on_iteration_end(self, iteration: int) -> None:
        """Says how long the search takes, as soon as a few iterations of a kind have been timed."""
        if iteration == 1 and self._begins_a_kind():
            self._pace = Pace(self.num_iterations_per_epoch)
        seconds = None if self._pace is None else self._pace.iterated()
        if self._pace is None or seconds is None:
            return
        done = self.current_epoch * self.num_iterations_per_epoch + iteration
        left = seconds_to_go(seconds, self._phases, done)
        self.print_to_log_file(
            f"Time: {seconds:.2g} s for an iteration, as {self._pace.timed} took now on {self.device.type}: about "
            f"{in_words(left)} to go at this speed, at most and without validation"
        )
        self._pace = None

    def _begins_a_kind(self) -> bool:
        """Whether the epoch is the first one of this process, or the first one after warm-up."""
        first = 0 if self.resumed_from is None else self.resumed_from["current_epoch"]
        return bool(self.current_epoch in (first, self.settings.warmup_epochs))

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        """SGD for the cell weights and Adam for alpha and beta; both annealed in `on_train_epoch_start`."""
        settings = self.settings
        self.architecture_optimizer = torch.optim.Adam(
            self.network.architecture_parameters(), settings.architecture_lr, betas=(0.9, 0.999)
        )
        return torch.optim.SGD(self.network.cell_parameters(), settings.weights_lr), None

    @property
    def warming_up(self) -> bool:
        """Whether the present epoch trains cell weights only."""
        return bool(self.current_epoch < self.settings.warmup_epochs)

    def on_train_epoch_start(self) -> None:
        """Sets the learning rates of the epoch: cosine power annealing over all epochs."""
        self.network.train()
        settings = self.settings
        share = cosine_power(
            self.current_epoch, self.num_epochs, start=1.0, end=settings.eta_min, power=settings.annealing_power
        )
        for optimizer, rate in (
            (self.optimizer, settings.weights_lr),
            (self.architecture_optimizer, settings.architecture_lr),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        self.logger.log("lrs", settings.weights_lr * share, self.current_epoch)
        self.print_to_log_file("", add_timestamp=False)
        phase = "warm-up" if self.warming_up else "search"
        self.print_to_log_file(
            f"Epoch {self.current_epoch} ({phase}), learning rates {settings.weights_lr * share:.3g} (cells) and "
            f"{settings.architecture_lr * share:.3g} (alpha, beta)"
        )

    def train_only(self, *, cells: bool, architecture: bool) -> None:
        """Says what the next step has gradients for; the rest costs none."""
        for parameter in self.network.cell_parameters():
            parameter.requires_grad_(cells)
        for parameter in self.network.architecture_parameters():
            parameter.requires_grad_(architecture)

    def decide(self) -> None:
        """Makes all processes agree on alpha and beta, tests and prunes, and records the epoch."""
        broadcast(parameter.data for parameter in self.network.architecture_parameters())
        probabilities, weights = self.network.continuous_cell()
        divergence, tau = self.prune(probabilities, weights)
        probabilities, weights = self.network.continuous_cell()
        self.record(probabilities=probabilities, weights=weights, active=self.network.active, js=divergence, tau=tau)

    def prune(self, probabilities: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Takes operations off edges that are stable; this search prunes none.

        Args:
            probabilities: p, (14, 7).
            weights: w, (14,).

        Returns:
            divergences and thresholds per edge in nats, (14,) each; NaN where there are none.
        """
        del probabilities, weights
        return np.full(len(EDGES), np.nan), np.full(len(EDGES), np.nan)

    def summary(self) -> str:
        """Operations left, edges settled and expected end."""
        left, settled = self.history.operations_left[-1], self.history.edges_settled[-1]
        return (
            f"operations left {left} of {len(EDGES) * len(OPERATIONS)}, edges settled {settled} of {len(EDGES)}, "
            f"expected end: epoch {self.expected_epochs() - 1}"
        )

    def expected_epochs(self) -> int:
        """Epochs that the search will probably have run when it stops."""
        return int(self.num_epochs)

    def draw_progress(self) -> None:
        """In the results folder."""
        title = f"{type(self).__name__}, {self.configuration_name}, fold {self.fold}"
        draw_progress(self.history, Path(self.output_folder) / "search_progress.png", title=title)

    def search_state(self) -> dict[str, Any]:
        """Cell weights, alpha, beta and active operations."""
        return {
            "cells": self.network.cell_state(),
            "alpha": self.network.alpha.detach(),
            "beta": self.network.beta.detach(),
            "active": self.network.active.tolist(),
            "theta_0": hashlib.sha256(self._theta_0).hexdigest(),
            "backbone": self.backbone.digest(),
        }

    def load_search_state(self, state: dict[str, Any]) -> None:
        """Restores the search.

        Raises:
            DataProblem: the backbone is another one by now, or theta_0 was lost.
        """
        if state["backbone"] != self.backbone.digest():
            raise DataProblem(
                f"the backbone {self.backbone.path} was trained again since this search began: put the old checkpoint "
                f"back, or move {self.output_folder} away and search again"
            )
        self._restore_theta_0(state["theta_0"])
        self.network.load_state_dict(state["cells"], strict=False)
        with torch.no_grad():
            self.network.alpha.copy_(state["alpha"])
            self.network.beta.copy_(state["beta"])
        self.network.active = np.array(state["active"], bool)

    def _restore_theta_0(self, digest: str) -> None:
        path = Path(self.output_folder) / THETA_0
        stored = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(stored).hexdigest() != digest:
            raise DataProblem(
                f"{path} is missing or was changed: restore it, or move {self.output_folder} away and search again"
            )
        self._theta_0 = stored

    def genotype(self) -> Genotype:
        """The discrete cell at present."""
        return discretise(*self.network.continuous_cell())

    def result_names(self) -> list[str]:
        """With the cell alone, and added to the skip."""
        return [self.result_name(), self.result_name() + RESIDUAL]

    def results(self) -> list[DerivedConfiguration]:
        """Writes the genotype and its drawing; two configurations: the paper's cell, and the cell added to the skip."""
        genotype = self.genotype()
        self._write_genotype(genotype)
        certainty = {**self.certainty(genotype), **self._tried(genotype)}
        provenance = self.provenance(
            checkpoint=self.backbone.address(),
            backbone_trainer=self.backbone.trainer,
            backbone_digest=self.backbone.digest(),
            epochs=len(self.history),
            certainty=certainty,
        )
        return [
            derive(
                self.result_name() + suffix,
                self.configuration_name,
                self._spec_of(genotype, residual=residual),
                provenance,
            )
            for suffix, residual in (("", False), (RESIDUAL, True))
        ]

    def _spec_of(self, genotype: Genotype, *, residual: bool) -> NetworkSpec:
        base = self.base_spec()
        architecture = cells_architecture(
            base.architecture, genotype, widths=self.network.widths(), norm=self.settings.norm, residual=residual
        )
        return replace(base, architecture=architecture)

    def trial_loaders(self) -> tuple[Any, Any]:
        """Batches to train the found cell on, and of other cases to judge it by: the fold's validation cases."""
        loaders: tuple[Any, Any] = self.get_dataloaders()
        return loaders

    def _tried(self, genotype: Genotype) -> dict[str, Any]:
        """The cell's trial against the plain skip, for the provenance; see `trial`."""
        steps = self.settings.trial_iterations
        if not steps:
            return {}
        try:
            with self.without_the_others():
                gain = self._gain_of_training(self._trial_network(genotype), steps)
        except DataProblem as error:
            self.print_to_log_file(f"WARNING: the trial of the residual cell diverged: {error}")
            self._advise_against_the_cell()
            return {"trial": {"iterations": steps, "answer": "identity"}}
        verdict = "beats the plain skip" if gain.beats_the_identity else "is no better than the plain skip (identity)"
        self.print_to_log_file(
            f"Trial: after {steps} iterations of training the residual cell {verdict} on {gain.batches} batches of "
            f"other cases: the loss is lower by {gain.mean:.4f} +- {gain.half_width:.4f} (95 %)."
        )
        answer = "cell" if gain.beats_the_identity else "identity"
        if answer == "identity":
            self._advise_against_the_cell()
        return {"trial": {"iterations": steps, "answer": answer, **vars(gain)}}

    def _advise_against_the_cell(self) -> None:
        self.print_to_log_file(
            f"The answer of this search is the identity: keep {self.backbone.path} as it is, or train it on. The cell "
            f"is added to the plans all the same."
        )

    def _trial_network(self, genotype: Genotype) -> Any:
        """The residual cells in the backbone, as the retrofit of IAC-LTH starts."""
        # Independent of what went before, so that a trial that was interrupted is repeated and not another one.
        seed_everything(self.settings.seed)
        spec = self._spec_of(genotype, residual=True)
        network: Any = build_network(spec, deep_supervision=self.enable_deep_supervision)
        load_backbone(network, self.backbone.weights)
        network.load_theta_0(torch.load(io.BytesIO(self._theta_0), weights_only=True))
        network.to(self.device).freeze_backbone()
        network.decoder.recompute = self.network.decoder.recompute and not has_batch_norms(network)
        return network

    def _gain_of_training(self, network: Any, steps: int) -> Gain:
        loaders = training, judging = self.trial_loaders()
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.grad_scaler is not None)
        try:
            batches = [next(judging) for _ in range(self.settings.trial_batches)]
            before = losses(network, batches, self.loss_of)
            train_briefly(network, training, steps, loss_of=self.loss_of, scaler=scaler)
            return gain_of(before, losses(network, batches, self.loss_of))
        finally:
            for loader in loaders:
                if hasattr(loader, "_finish"):
                    loader._finish()

    def next_steps(self) -> list[str]:
        """The commands for the residual cells, which start at the backbone's accuracy; then those for the paper's."""
        return [
            command
            for suffix in (RESIDUAL, "")
            for command in commands.train_and_predict(
                self.plans.number,
                self.result_name() + suffix,
                self.fold,
                plans=self.plans.name,
                trainer=result_trainer(self.settings.method),
            )
        ]

    def certainty(self, genotype: Genotype) -> dict[str, Any]:
        """How sure the search is of its cell, for the provenance; says so in the log."""
        rows = [edge.row for edge in genotype.edges]
        ahead = leads(self.network.continuous_cell()[0])[rows]
        left = self.network.active.sum(axis=1)
        known = {
            "operations_left": int(left.sum()),
            "edges_settled": int((left == 1).sum()),
            "kept_edges_settled": int((left[rows] == 1).sum()),
            "smallest_lead": float(ahead.min()),
            "median_lead": float(np.median(ahead)),
        }
        self.print_to_log_file(
            f"Operations of the {len(rows)} kept edges lead the next ones by {known['median_lead']:.4f} in probability "
            f"(median), by {known['smallest_lead']:.4f} at least; all alike would be {1 / len(OPERATIONS):.4f} each."
        )
        return known

    def _write_genotype(self, genotype: Genotype) -> None:
        folder = Path(self.output_folder)
        replace_file(folder / GENOTYPE, json.dumps(genotype.to_json(), indent=4).encode())
        draw_cell(genotype, folder / "genotype.png", title=self.result_name())
        share = genotype.parameter_free_share()
        self.print_to_log_file(f"Genotype: {json.dumps(genotype.to_json())}")
        if share >= _COLLAPSED:
            self.print_to_log_file(
                f"WARNING: {share:.0%} of the cell's edges only copy or pool, a known collapse of such searches: the "
                f"cell has little to learn with. Try another seed, or a longer warm-up (warmup_epochs)."
            )


class _MeanSlopes:
    """The mean slopes of the operations over the steps of an epoch; see `evidence`.

    Stays on the network's device until the epoch ends.
    """

    def __init__(self, network: IACSupernet) -> None:
        self._sum = torch.zeros_like(network.alpha, requires_grad=False)
        self._steps = self._sum.new_zeros(())

    def add(self, gradient: torch.Tensor, probabilities: torch.Tensor) -> None:
        """One step; one whose gradients overflowed in half precision is left out, as the optimiser leaves it out."""
        slopes = torch.where(probabilities > 0, gradient / probabilities.clamp(min=1e-20), 0.0)
        finite = torch.isfinite(slopes).all()
        self._sum += torch.where(finite, slopes, 0.0)
        self._steps += finite

    def take(self) -> np.ndarray:
        """The mean so far, (14, 7), which begins anew."""
        mean = (self._sum.cpu().double() / self._steps.cpu().clamp(min=1)).numpy()
        self._sum.zero_()
        self._steps.zero_()
        return mean


class nnUNetTrainerIACSearch(BilevelSearchTrainer, CellSearchTrainer):
    """IAC: cell weights on one half of the training cases, alpha and beta on the other; all epochs."""

    settings_class = IACSettings

    def trial_loaders(self) -> tuple[Any, Any]:
        """One half of the training cases, and the other."""
        return self.judging_loaders()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of the cell weights on the first half, one of alpha and beta on the second (Eqs. 10, 11)."""
        self.train_only(cells=True, architecture=False)
        loss = self.loss_of(batch)
        self.descend(loss, [self.optimizer], self.network.cell_parameters())
        if not self.warming_up:
            self.train_only(cells=False, architecture=True)
            architecture_loss = self.loss_of(next(self.dataloader_architecture))
            self.descend(architecture_loss, [self.architecture_optimizer], [])
        return {"loss": loss.detach().cpu().numpy()}


class nnUNetTrainerIACLTHSearch(CellSearchTrainer):
    """IAC-LTH: one level on all training cases; edges that settle lose operations, and the search stops by itself."""

    settings_class = IACLTHSettings

    def prepare(self) -> None:
        """As for both searches; all thresholds at their start."""
        super().prepare()
        settings = self.settings
        by_evidence = settings.stability == "evidence"
        self.pruning = StabilityPruning.start(
            tau0=settings.tau0,
            gamma=settings.gamma,
            k=settings.outlier_k,
            gradual_epochs=settings.gradual_epochs,
            threshold=level(settings.error_rate, self._most_tests()) if by_evidence else None,
        )
        self._slopes = _MeanSlopes(self.network)

    def _most_tests(self) -> int:
        return int(self.settings.num_epochs - self.settings.warmup_epochs)

    @property
    def finished(self) -> bool:
        """When every edge has one operation left, when no further evidence can be expected, or after all epochs."""
        return self.pruning.settled or self._gives_up() or super().finished

    def _gives_up(self) -> bool:
        waits = self.pruning.threshold is None or self.settings.gradual_epochs is not None
        return not waits and self.pruning.epochs_to_go(self._most_tests()) == 0

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of cell weights, alpha and beta on the same batch (Eq. 17)."""
        self.train_only(cells=True, architecture=not self.warming_up)
        probabilities = self.network.probabilities().detach()
        loss = self.loss_of(batch)
        optimizers = [self.optimizer] if self.warming_up else [self.optimizer, self.architecture_optimizer]
        self.descend(loss, optimizers, self.network.cell_parameters())
        if self.network.alpha.grad is not None and not self.warming_up:
            self._slopes.add(self.network.alpha.grad, probabilities)
        return {"loss": loss.detach().cpu().numpy()}

    def prune(self, probabilities: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Prunes what the stability test allows; see `StabilityPruning.update`."""
        divergence = np.full(len(EDGES), np.nan)
        if not self.warming_up:
            divergence = self.pruning.update(probabilities, weights, self._slopes.take())
            self.network.active = self.pruning.active.copy()
        by_evidence = self.pruning.threshold is not None
        return divergence, np.full(len(EDGES), np.nan) if by_evidence else self.pruning.tau.copy()

    def expected_epochs(self) -> int:
        """Extrapolated from divergences and thresholds, or from the evidence so far."""
        latest = self.num_epochs
        if self.settings.gradual_epochs is not None:
            latest = min(latest, self.settings.warmup_epochs + self.settings.gradual_epochs)
        if self.pruning.threshold is not None:
            return min(
                latest,
                max(len(self.history), self.settings.warmup_epochs) + self.pruning.epochs_to_go(self._most_tests()),
            )
        return expected_end(self.history, num_epochs=latest, gamma=self.settings.gamma)

    def certainty(self, genotype: Genotype) -> dict[str, Any]:
        """As for both searches; warns where this one ended undecided."""
        known = super().certainty(genotype)
        if not self.pruning.settled:
            self.print_to_log_file(
                f"WARNING: the search ended undecided: {known['edges_settled']} of {len(EDGES)} edges have settled "
                f"({known['kept_edges_settled']} of the {len(genotype.edges)} that are kept), "
                f"{known['operations_left']} of {len(EDGES) * len(OPERATIONS)} operations are left. Where an edge has "
                f"several, the cell has the most probable one, which other data or another seed may not confirm."
            )
        return known

    def search_state(self) -> dict[str, Any]:
        """Thresholds and previous distributions beside the rest."""
        return {**super().search_state(), "pruning": json.dumps(self.pruning.to_json())}

    def load_search_state(self, state: dict[str, Any]) -> None:
        """Restores the search with its thresholds."""
        super().load_search_state(state)
        self.pruning = StabilityPruning.from_json(json.loads(state["pruning"]))
