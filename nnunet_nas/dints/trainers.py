"""The DiNTS search as an nnU-Net trainer (paper, sections 3.4 to 3.6 and 4.1)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_nas.architecture import NetworkSpec, derive
from nnunet_nas.complexity import kept_mib
from nnunet_nas.device_memory import available_mib, needed_mib, require_fit
from nnunet_nas.dints import outlook
from nnunet_nas.dints.cost import weights_only_epochs
from nnunet_nas.dints.decoding import discretisation_gap
from nnunet_nas.dints.drawing import draw_progress, draw_topology
from nnunet_nas.dints.history import TopologyHistory
from nnunet_nas.dints.judge import Judge
from nnunet_nas.dints.losses import ArchitectureTerms, exact_terms, paper_terms
from nnunet_nas.dints.memory import MemoryModel
from nnunet_nas.dints.probabilities import log_feasible, marginals, operation_entropy, pattern_entropy
from nnunet_nas.dints.sampling import RelaxedTopology, sample_within_budget
from nnunet_nas.dints.selection import Selection, require_budget, select_topology, within_counted
from nnunet_nas.dints.settings import DiNTSSettings
from nnunet_nas.dints.space import Space
from nnunet_nas.dints.supernet import DiNTSSupernet, build_supernet
from nnunet_nas.dints.topology import Topology
from nnunet_nas.distributed import broadcast
from nnunet_nas.errors import DataProblem
from nnunet_nas.files import replace_file
from nnunet_nas.histories import HISTORY
from nnunet_nas.plans import DerivedConfiguration
from nnunet_nas.rates import warmed_and_halved
from nnunet_nas.search import BilevelSearchTrainer
from nnunet_nas.training_cost import training_memory

TOPOLOGY = "topology.json"
# Of the paper's 21k iterations 1k are warm-up.
_WARMUP_SHARE = 1 / 21
_HALVED_AT = (8 / 20, 16 / 20)
_MOMENTUM = 0.9
_PAPER_TOPOLOGY_WEIGHT = 0.001
_PAPER_SIGMA = 0.8
_SMALLEST_NORM = 1e-30


def learning_rate(step: int, steps: int, *, start: float, peak: float) -> float:
    """SGD's learning rate: linear warm-up, then halved at 8/20 and 16/20 of the rest (paper, section 4.1).

    Args:
        step: iterations done.
        steps: of the whole search.
        start: at the first step.
        peak: after warm-up.
    """
    return warmed_and_halved(step, steps, start=start, peak=peak, warmup=_WARMUP_SHARE, halved_at=_HALVED_AT)


def add_scaled(gradients: Sequence[Any], others: Sequence[Any], share: float | None) -> None:
    """Adds to each gradient another one, in place; what is zero or None adds nothing.

    Args:
        gradients: which are changed.
        others: one for each.
        share: of the gradient's own norm, which the other one is brought to; None: it is added as it is.
    """
    for gradient, other in zip(gradients, others, strict=True):
        if other is not None:
            scale = 1.0 if share is None else share * gradient.norm() / other.norm().clamp(min=_SMALLEST_NORM)
            gradient.add_(other * scale)


class nnUNetTrainerDiNTSSearch(BilevelSearchTrainer):
    """Searches edges and operations, and adds `<base>_dints`, which stock nnU-Net trains."""

    settings_class = DiNTSSettings
    network: DiNTSSupernet
    history: TopologyHistory
    _copies: Sequence[torch.Tensor] | None = None
    _compiled: Any = None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.planned_batch_size = int(self.configuration_manager.batch_size)
        if self.settings.search_batch_size is not None:
            self.configuration_manager.configuration["batch_size"] = self.settings.search_batch_size

    @classmethod
    def supernet(cls, spec: NetworkSpec, settings: DiNTSSettings) -> DiNTSSupernet:
        """All candidates, with the architecture that the seed of the settings draws."""
        space = Space(spec.architecture, settings)
        network = build_supernet(space, settings, spec.input_channels, spec.output_channels)
        network.apply(network.initialize)
        network.draw_architecture(torch.Generator().manual_seed(settings.seed))
        if settings.weights_on == "samples":
            network.level_topologies()
        return network

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """nnU-Net's, for the stages that the search has."""
        if not self.enable_deep_supervision:
            return None
        space = Space(self.configuration_manager.configuration["architecture"], self.settings)
        strides = np.array([level.stride for level in space.levels])
        scales: list[list[float]] = (1 / np.cumprod(strides, axis=0))[:-1].tolist()
        return scales

    def prepare(self) -> None:
        """Measures the memory of all parts of the result and fixes the budget.

        Raises:
            BudgetProblem: below the smallest feasible network.
        """
        self.space = Space(self.configuration_manager.configuration["architecture"], self.settings)
        self.space.require_divisible(self.configuration_manager.patch_size)
        self._require_selection()
        self._require_device_memory()
        self.memory: MemoryModel = self.space.memory(replace(self.base_spec(), batch_size=self.planned_batch_size))
        self._fix_budget()
        self.history = TopologyHistory()

    def _fix_budget(self) -> None:
        """Sets the budget and says what it is beside nnU-Net's own network; raises as `prepare`."""
        settings, own = self.settings, training_memory(self.base_spec())
        full = self.memory.full(settings.num_layers)
        if settings.memory_limit_mib is not None:
            self.budget_mib, reason = settings.memory_limit_mib, "memory_limit_mib"
        elif settings.sigma is None and settings.losses == "exact":
            self.budget_mib, reason = own.total, "what nnU-Net's own network needs"
        else:
            self.budget_mib, reason = self.sigma() * full, f"sigma {self.sigma():g} of the full network"
        smallest = require_budget(
            settings.num_layers, self.space.names, self.memory, self.budget_mib if self.has_hard_budget else None
        )
        self.print_to_log_file(
            f"Training memory at batch {self.planned_batch_size} in float32: nnU-Net's own network {own}; full network "
            f"of this search {full:.0f} MiB, smallest {smallest:.0f} MiB; budget {self.budget_mib:.0f} MiB ({reason}), "
            f"{self.budget_mib / own.total:.2f} times nnU-Net's"
        )
        if self.budget_mib >= full:
            self.print_to_log_file("The budget is no limit: every network of this search is below it.")

    def sigma(self) -> float:
        """The paper's share of the full network, or the one that is set."""
        return _PAPER_SIGMA if self.settings.sigma is None else float(self.settings.sigma)

    def _require_selection(self) -> None:
        """x and alpha that are not trained have no most probable topology worth delivering.

        Raises:
            DataProblem: `weights_on=samples` without `selection=evidence`.
        """
        if self.settings.weights_on == "samples" and self.settings.selection != "evidence":
            raise DataProblem(
                f"weights_on=samples trains neither x nor alpha, whose most probable topology selection=argmax would "
                f"deliver: set both with {self.set_search('selection=evidence')}"
            )

    def _require_device_memory(self) -> None:
        """Says what the search itself needs, before it runs out of memory hours later.

        Raises:
            EnvironmentProblem: more than the GPU has, in mixed precision.
        """
        # All layers cost the same: two networks of one and two of them tell the rest.
        first, second = (self._search_mib(layers) for layers in (1, 2))
        needed = first + (self.settings.num_layers - 1) * (second - first)
        self.print_to_log_file(f"The search keeps {needed:.0f} MiB (float32) at batch {self.batch_size}")
        available = available_mib(self.device)
        if available is None:
            return
        first, second = (self._search_mib_in_half(layers) for layers in (1, 2))
        needed = first + (self.settings.num_layers - 1) * (second - first)
        self.print_to_log_file(f"In mixed precision it needs {needed:.0f} MiB, the GPU has {available:.0f}")
        advice = "set first_level=1, a lower search_features or search_batch_size, or supernet=fast, with"
        require_fit("the search", needed, available, f"{advice} {self.set_search()}")

    def _search_mib_in_half(self, num_layers: int) -> float:
        """MiB of a step of the weights, in nnU-Net's mixed precision; a step of the architecture needs less."""
        settings = replace(self.settings, num_layers=num_layers)
        heads = self.label_manager.num_segmentation_heads

        def build() -> DiNTSSupernet:
            network = build_supernet(self.space, settings, self.num_input_channels, heads)
            network.train_only(weights=True)
            return network

        return needed_mib(build, (self.batch_size, self.num_input_channels, *self.configuration_manager.patch_size))

    def _search_mib(self, num_layers: int) -> float:
        twin = self.meta_supernet(replace(self.settings, num_layers=num_layers))
        shape = (self.batch_size, self.num_input_channels, *self.configuration_manager.patch_size)
        image = torch.empty(shape, device="meta")
        return kept_mib(lambda: twin(image), list(twin.parameters()))

    def meta_supernet(self, settings: DiNTSSettings) -> DiNTSSupernet:
        """A supernet without weights, for counting."""
        with torch.device("meta"):
            return build_supernet(
                self.space, settings, self.num_input_channels, self.label_manager.num_segmentation_heads
            )

    def on_train_start(self) -> None:
        """nnU-Net's preparations; a new search says what is ahead."""
        super().on_train_start()
        if self.local_rank == 0 and self.resumed_from is None:
            outlook.tell(self)

    @property
    def has_hard_budget(self) -> bool:
        """In the paper's mode the budget is a wish; a limit in MiB is one in both."""
        return bool(self.settings.losses == "exact" or self.settings.memory_limit_mib is not None)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        """SGD for the weights, Adam for alpha and the edges."""
        settings = self.settings
        self.architecture_optimizer = torch.optim.Adam(
            self.network.architecture_parameters(), settings.architecture_lr, weight_decay=0
        )
        weights = torch.optim.SGD(
            self.network.network_parameters(),
            settings.weights_lr_start,
            momentum=_MOMENTUM,
            weight_decay=settings.weight_decay,
        )
        return weights, None

    @property
    def weights_only_epochs(self) -> int:
        """Epochs before the architecture is trained."""
        return weights_only_epochs(self.settings)

    @property
    def warming_up(self) -> bool:
        """Whether the present epoch trains network weights only."""
        return bool(self.current_epoch < self.weights_only_epochs)

    def on_train_epoch_start(self) -> None:
        """Says what the epoch trains; learning rates are set per step."""
        self.network.train()
        self._step = self.current_epoch * self.num_iterations_per_epoch
        self._drawn = self.draw_topologies(self.current_epoch)
        rate = self._set_learning_rate()
        self.logger.log("lrs", rate, self.current_epoch)
        self.print_to_log_file("", add_timestamp=False)
        phase = "weights" if self.warming_up else "weights and architecture"
        self.print_to_log_file(f"Epoch {self.current_epoch} ({phase}), learning rate {rate:.3g}")

    def _set_learning_rate(self) -> float:
        settings = self.settings
        steps = self.num_epochs * self.num_iterations_per_epoch
        rate = learning_rate(self._step, steps, start=settings.weights_lr_start, peak=settings.weights_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def relaxed(self) -> RelaxedTopology:
        """The distribution of topologies at present."""
        x, alpha = (tensor.detach() for tensor in self.logits())
        return RelaxedTopology(x.numpy(), torch.softmax(alpha, -1).numpy(), self.space.names, self.memory)

    def draw_topologies(self, epoch: int) -> list[Topology]:
        """Those of an epoch's steps, the same in all processes; none where the mixture is trained."""
        if self.settings.weights_on == "mixture":
            return []
        rng = np.random.default_rng([self.settings.seed, epoch])
        drawn = self.num_iterations_per_epoch
        return sample_within_budget(self.relaxed(), drawn, rng, budget_mib=self.hard_budget_mib)

    def train_only(self, *, weights: bool) -> None:
        """Says what the next step has gradients for; the rest costs none."""
        self.network.train_only(weights=weights)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of the weights on the first half; after their time alone, one of the architecture on the second."""
        self._set_learning_rate()
        # The card has nothing to do now; later, a copy would wait for all that it was asked for before.
        copies = None if self.warming_up else self._copied_logits()
        self.train_only(weights=True)
        with self.network.computing(self._drawn[self._step % len(self._drawn)] if self._drawn else None):
            loss = self.loss_of(batch)
        self.descend(loss, [self.optimizer], self.network.network_parameters())
        if copies is not None:
            self.train_only(weights=False)
            self._architecture_step(self.loss_of(next(self.dataloader_architecture)), copies)
        self._step += 1
        return {"loss": loss.detach().cpu().numpy()}

    def loss_of(self, batch: dict[str, Any], network: nn.Module | None = None) -> torch.Tensor:
        """nnU-Net's loss; of the mixture, whose graph stands still, compiled where that is asked for."""
        if network is None and self.network.encoder.topology is None and self.compiles_steps():
            if self._compiled is None:
                self._compiled = torch.compile(self.network)
                self.print_to_log_file("The mixture is compiled (nnUNet_compile); its first steps take minutes")
            network = self._compiled
        return super().loss_of(batch, network)

    def _architecture_step(self, segmentation: torch.Tensor, copies: Sequence[torch.Tensor]) -> None:
        """Descends on L_arch, whose other terms are added to the gradient of L_seg, as they are or at a given share.

        Args:
            segmentation: L_seg.
            copies: alpha and x on the CPU, as `_copied_logits` has them. There the terms are computed, in double
                precision, when the card has got everything to do for the gradient of L_seg.
        """
        parameters, share = self.network.architecture_parameters(), self.settings.terms_share

        def add() -> None:
            with self._reading(copies):
                loss = self.architecture_loss() if share is None else self.terms().total(self.topology_weight)
            found = torch.autograd.grad(loss, copies, allow_unused=True)
            gradients = [parameter.grad for parameter in parameters]
            at_once = self.device.type == "cuda"
            others = [None if own is None else own.to(self.device, non_blocking=at_once) for own in found]
            add_scaled(gradients, others, None if share is None else share * self.terms_weight())

        self.descend(segmentation, [self.architecture_optimizer], [], adjust=add)

    def _copied_logits(self) -> list[torch.Tensor]:
        """alpha and x at present, on the CPU; gradients end there."""
        return [parameter.detach().cpu().requires_grad_() for parameter in self.network.architecture_parameters()]

    @contextlib.contextmanager
    def _reading(self, copies: Sequence[torch.Tensor]) -> Iterator[None]:
        """Inside, terms are those of copies of alpha and x."""
        self._copies = copies
        try:
            yield
        finally:
            self._copies = None

    def architecture_loss(self) -> torch.Tensor:
        """What Eq. 11 adds to L_seg: the terms at their present weight."""
        return self.terms_weight() * self.terms().total(self.topology_weight)

    def terms_weight(self) -> float:
        """The share of the architecture's iterations done, of those from `terms_from` on."""
        first = self.weights_only_epochs * self.num_iterations_per_epoch
        steps = self.num_epochs * self.num_iterations_per_epoch
        done, begin = (self._step - first) / max(steps - first, 1), self.settings.terms_from
        return float(max(done - begin, 0) / (1 - begin)) if begin < 1 else 0.0

    @property
    def topology_weight(self) -> float:
        """lambda of Eq. 11, or 1 nat per nat."""
        given = self.settings.topology_weight
        if given is not None:
            return float(given)
        return _PAPER_TOPOLOGY_WEIGHT if self.settings.losses == "paper" else 1.0

    def terms(self) -> ArchitectureTerms:
        """The terms of the chosen mode at present."""
        x, alpha = self.logits()
        if self.settings.losses == "paper":
            return paper_terms(x, alpha, self.memory, self.sigma(), self.settings.maximum_memory)
        return exact_terms(x, alpha, self.memory, self.budget_mib)

    def logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """x (layers, E) and alpha (layers, E, N), on the CPU in double precision: a few hundred numbers."""
        alpha, x = self._copies or [parameter.cpu() for parameter in self.network.architecture_parameters()]
        return x.double(), self.network.encoder.operation_logits(alpha)

    def select(self, *, limit_mib: float | None) -> Selection:
        """The most probable topology at present whose predicted memory meets a limit; None for no limit."""
        at_present = self.relaxed()
        return select_topology(
            at_present.edge_logits, at_present.operations, at_present.names, at_present.model, budget_mib=limit_mib
        )

    @property
    def hard_budget_mib(self) -> float | None:
        """The budget where it is one that must be met."""
        return float(self.budget_mib) if self.has_hard_budget else None

    @torch.no_grad()
    def decide(self) -> None:
        """Makes all processes agree on the architecture, decodes it and records the epoch."""
        broadcast(parameter.data for parameter in self.network.architecture_parameters())
        x, alpha = self.logits()
        if not (x.isfinite().all() and alpha.isfinite().all()):
            raise DataProblem(
                f"the architecture became infinite in epoch {self.current_epoch}: the search up to the epoch before is "
                f"kept; lower architecture_lr with {self.set_search()} and start again"
            )
        found = self.select(limit_mib=self.hard_budget_mib)
        operations = torch.softmax(alpha, -1)
        weight = marginals(x)
        self.record(
            edge_logits=x.numpy(),
            operations=operations.numpy(),
            selected=found.decoded.selected,
            gap=discretisation_gap(x.numpy(), found.decoded),
            log_feasible=log_feasible(x, self.network.levels).item(),
            nll=found.decoded.nll,
            pattern_entropy=pattern_entropy(x).mean().item(),
            operation_entropy=((weight * operation_entropy(alpha)).sum() / weight.sum()).item(),
            expected_mib=self.memory.expected(x, operations).item(),
            selected_mib=found.mib,
            budget_mib=self.budget_mib,
        )

    def summary(self) -> str:
        """Gap, feasibility, memory and entropies."""
        past = self.history
        return (
            f"gap G {past.gap[-1]:.0f}, log P(feasible) {past.log_feasible[-1]:.2f}, expected memory "
            f"{past.expected_mib[-1]:.0f} MiB of {past.budget_mib[-1]:.0f}, entropies {past.pattern_entropy[-1]:.3f} "
            f"nats per layer and {past.operation_entropy[-1]:.3f} per edge, edges selected "
            f"{past.selected[-1].sum():.0f}"
        )

    def draw_progress(self) -> None:
        """In the results folder."""
        draw_progress(
            self.history,
            Path(self.output_folder) / "search_progress.png",
            title=f"DiNTS, {self.configuration_name}, fold {self.fold}",
        )

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's, of what the epoch trained."""
        with self.network.computing(self._drawn[0] if self._drawn else None):
            found: dict[str, Any] = super().validation_step(batch)
        return found

    def delivered(self) -> Selection:
        """What goes into the plans and, as what its last epoch has selected, into the history."""
        found = self._decoded()
        if self.settings.selection == "evidence":
            self.judge = Judge(self)
            found = self.judge.choose(found)
        history = self.history
        history.selected[-1], history.selected_mib[-1] = found.decoded.selected, found.mib
        history.nll[-1], history.gap[-1] = found.decoded.nll, discretisation_gap(history.edge_logits[-1], found.decoded)
        return found

    def _decoded(self) -> Selection:
        """The most probable topology that meets the budget, counted and not only predicted."""
        budget = self.hard_budget_mib
        if budget is None:
            return self.select(limit_mib=None)
        return within_counted(
            lambda limit: self.select(limit_mib=limit),
            lambda topology: training_memory(self.spec_of(topology)).total,
            budget,
        )

    def search_state(self) -> dict[str, Any]:
        """Weights and architecture."""
        return {
            "network": self.network.state_dict(),
        }

    def load_search_state(self, state: dict[str, Any]) -> None:
        """Restores the search.

        Raises:
            DataProblem: it is of another search space.
        """
        try:
            self.network.load_state_dict(state["network"])
        except RuntimeError as error:
            raise DataProblem(
                f"the checkpoint in {self.output_folder} is of another search space: move that folder away and search "
                f"again"
            ) from error

    def results(self) -> list[DerivedConfiguration]:
        """Writes topology and drawing; one configuration, trained by nnU-Net's own trainer."""
        found = self.delivered()
        content = found.topology.to_json()
        if not self.disable_checkpointing:
            self.history.save(Path(self.output_folder) / HISTORY)
            self._drawn_epochs = 0
        spec = self.spec_of(found.topology)
        folder, name = Path(self.output_folder), self.result_name()
        replace_file(folder / TOPOLOGY, json.dumps(content, indent=4).encode())
        draw_topology(found.topology, folder / "topology.png", first_level=self.space.first_level, title=name)
        counted = training_memory(spec)
        price = f", at {found.price:.3g} nats per MiB to meet the budget" if found.price else ""
        self.print_to_log_file(
            f"Topology: {int(found.decoded.selected.sum())} edges, predicted training memory {found.mib:.1f} MiB of "
            f"{self.budget_mib:.1f} MiB{price}; counted on the built network: {counted}"
        )
        if self.hard_budget_mib is not None and counted.total > self.hard_budget_mib:
            self.print_to_log_file(
                f"WARNING: no topology was found that needs less: {counted.total:.1f} MiB are more than the budget of "
                f"{self.hard_budget_mib:.1f}. Raise memory_limit_mib or sigma, or lower features, to have a choice."
            )
        mib = {"predicted": found.mib, "counted": counted.total, "budget": self.budget_mib}
        provenance = self.provenance(training_mib={name: round(value, 3) for name, value in mib.items()})
        return [derive(name, self.configuration_name, spec, provenance)]

    def spec_of(self, topology: Topology) -> NetworkSpec:
        """The network that the plans get with a topology."""
        return replace(self.base_spec(), architecture=self.space.network(topology.to_json()))
