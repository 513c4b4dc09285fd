"""What every search in nnU-Net's training loop shares, whatever it searches.

A search is an `nnUNetTrainer` that ends in plans configurations instead of a model. This module holds its life:
settings from the plans, seeds, one atomic checkpoint per epoch, several GPUs, refusals, and the write into the plans;
what a checkpoint holds is in `search_state`. What is searched, and when it is over, is a subclass's.
"""

from __future__ import annotations

import contextlib
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import time
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nnunet_nas import commands
from nnunet_nas.architecture import NetworkSpec, network_spec, spec_of
from nnunet_nas.description import PLAN_AGAIN, require_description
from nnunet_nas.distributed import average_gradients
from nnunet_nas.errors import DataProblem, UsageError, exit_with_one_line
from nnunet_nas.files import read_json
from nnunet_nas.histories import HISTORY
from nnunet_nas.methods import METHODS, has_control, result_trainer
from nnunet_nas.plans import DerivedConfiguration, Plans, Provenance
from nnunet_nas.precision import LossWatch, half_precision
from nnunet_nas.randomness import seed_everything
from nnunet_nas.search_state import ResumableTrainer
from nnunet_nas.settings import read_settings

_MAXIMUM_NORM = 12.0
# Iterations between two looks at the losses: several processes look together, which takes a message.
_LOOK_EVERY = 10


class SearchTrainer(ResumableTrainer):
    """The life of a search; see the module."""

    settings_class: ClassVar[type[Any]]
    is_ddp: bool
    loss: nn.Module
    _drawn_epochs: int
    _added: bool
    _next_drawing: float
    _watch: LossWatch

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        with exit_with_one_line():
            self.goes_on = bool(plans.get("continue_training"))
            resolved = Plans(plans).resolve(configuration)
            self.settings = read_settings(self.settings_class, resolved)
            if resolved.get("previous_stage"):
                raise UsageError(
                    f"{configuration} is the second stage of a cascade, whose input is another network's prediction: "
                    f"search on a configuration without previous_stage"
                )
            require_description(dataset_json, "dataset.json", PLAN_AGAIN, required=["labels"])
            super().__init__(plans, configuration, fold, dataset_json, device)
        self.follow_settings()
        self.base_digest = self.plans.digest(configuration)
        self._parallel = bool(self.is_ddp)
        self._added = False
        self._drawn_epochs = 0
        self._next_drawing = 0.0
        self._watch = LossWatch(self.grad_scaler)

    @property
    def finished(self) -> bool:
        """Whether the search is over: after all epochs, or before."""
        return bool(self.current_epoch >= self.num_epochs)

    @property
    @abstractmethod
    def warming_up(self) -> bool:
        """Whether the present epoch leaves the architecture alone."""

    @abstractmethod
    def prepare(self) -> None:
        """Completes the network that was just built, for example by the backbone's weights; begins the history."""

    @abstractmethod
    def decide(self) -> None:
        """What happens at the end of an epoch, before it is recorded: tests, pruning, history."""

    def record(self, **decided: Any) -> None:
        """Adds the finished epoch to the history: what was decided, and what nnU-Net measured."""
        self.history.append(
            **decided,
            warmup=self.warming_up,
            train_loss=self.logged("train_losses"),
            val_loss=self.logged("val_losses"),
            dice=self.logged("mean_fg_dice"),
            seconds=self.epoch_seconds(),
        )

    @abstractmethod
    def summary(self) -> str:
        """One line about the present state, for the log."""

    @abstractmethod
    def draw_progress(self) -> None:
        """The picture of the history."""

    @abstractmethod
    def results(self) -> list[DerivedConfiguration]:
        """The configurations that a finished search adds to the plans; other result files are written before."""

    def base_spec(self) -> NetworkSpec:
        """The network of the configuration that is searched on."""
        return network_spec(self.plans, self.configuration_name, self.dataset_json)

    def provenance(self, **known: Any) -> Provenance:
        """Where this search's results come from, with what only its method knows."""
        return Provenance(
            self.settings.method,
            self.base_digest,
            vars(self.settings),
            [self.settings.seed],
            fold=self.fold,
            search_folder=f"{Path(self.output_folder_base).name}/fold_{self.fold}",
            **known,
        )

    def result_name(self) -> str:
        """Name of the first of them, known before the search: the fold is in it where it is not 0."""
        fold = "" if self.fold == 0 else f"_f{self.fold}"
        suffix = METHODS[self.settings.method].suffix
        return f"{self.configuration_name}{suffix}{self.settings.suffix}{fold}"

    def result_names(self) -> list[str]:
        """Names of all of them."""
        return [self.result_name()]

    def next_steps(self) -> list[str]:
        """The commands that train the result and predict with it."""
        return commands.train_and_predict(
            self.plans.number,
            self.result_name(),
            self.fold,
            plans=self.plans.name,
            trainer=result_trainer(self.settings.method),
        )

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The supernet; nnU-Net looks for the name `plans_manager` to see that it is called in this way."""
        del plans_manager
        spec = spec_of(configuration_manager, num_input_channels, num_output_channels)
        network = cls.supernet(spec, read_settings(cls.settings_class, configuration_manager.configuration))
        network.decoder.deep_supervision = enable_deep_supervision
        return network

    @classmethod
    @abstractmethod
    def supernet(cls, spec: NetworkSpec, settings: Any) -> Any:
        """The network of all candidates, for a configuration that nnU-Net would build by `spec`."""

    def initialize(self) -> None:
        """nnU-Net's initialisation without its DistributedDataParallel; see `distributed`."""
        with exit_with_one_line():
            seed_everything(self.settings.seed)
            with self._pretend(is_ddp=False):
                super().initialize()
            self.prepare()

    @contextlib.contextmanager
    def _pretend(self, *, is_ddp: bool) -> Iterator[None]:
        """Parallel or not, whatever is true: nnU-Net asks `is_ddp` before it wraps, but also before it shares work."""
        before, self.is_ddp = self.is_ddp, is_ddp
        try:
            yield
        finally:
            self.is_ddp = before

    def _set_batch_size_and_oversample(self) -> None:
        with self._pretend(is_ddp=self._parallel):
            super()._set_batch_size_and_oversample()

    def _build_loss(self) -> nn.Module:
        with self._pretend(is_ddp=self._parallel):
            loss: nn.Module = super()._build_loss()
        return loss

    @contextlib.contextmanager
    def without_the_others(self) -> Iterator[None]:
        """What one process does by itself: a loss that waits for no other one, as that of nnU-Net's batch Dice does."""
        before, loss = self._parallel, self.loss
        self._parallel = False
        self.loss = self._build_loss()
        try:
            yield
        finally:
            self._parallel, self.loss = before, loss

    def _do_i_compile(self) -> bool:
        """Never by itself: most graphs change during a search; see `compiles_steps`."""
        return False

    def compiles_steps(self) -> bool:
        """Whether steps whose graph stands still are compiled: where nnU-Net would, and `nnUNet_compile` asks for it.

        nnU-Net compiles unless it is told not to. A search is thousands of operations, of which the first step would
        wait for minutes.
        """
        return "nnUNet_compile" in os.environ and bool(super()._do_i_compile())

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """As nnU-Net's, for a network that is never wrapped."""
        self.network.decoder.deep_supervision = enabled

    def plot_network_architecture(self) -> None:
        """Nothing: nnU-Net's plot needs a package that no longer works, and draws no supernet."""

    def run_training(self) -> None:
        """The search: epochs until it is over, then its result goes into the plans."""
        with exit_with_one_line(), self.alone():
            if self.resumed_from is None:
                self._require_untouched()
            if self.resumed_from is None or not self.finished:
                self._search()
            else:
                self.resume_random_numbers(self.resumed_from["random"])
            self.on_train_end()

    def _search(self) -> None:
        self.on_train_start()
        self._log_what_is_seen()
        self._log_unsynchronised_norms()
        self._start_random_numbers()
        while not self.finished:
            self.on_epoch_start()
            self.on_train_epoch_start()
            self.on_train_epoch_end(self._train_epoch())
            with torch.no_grad():
                self.on_validation_epoch_start()
                steps = range(self.num_val_iterations_per_epoch)
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val)) for _ in steps])
            self.on_epoch_end()

    def _start_random_numbers(self) -> None:
        """Different ones in every process."""
        if self.resumed_from is None:
            seed_everything(self.settings.seed + self.local_rank)
        else:
            self.resume_random_numbers(self.resumed_from["random"])

    def _train_epoch(self) -> list[dict[str, Any]]:
        outputs = []
        for iteration in range(1, self.num_iterations_per_epoch + 1):
            outputs.append(self.train_step(next(self.dataloader_train)))
            self.on_iteration_end(iteration)
            if iteration % _LOOK_EVERY == 0 or iteration == self.num_iterations_per_epoch:
                self._require_finite_losses()
        return outputs

    def on_iteration_end(self, iteration: int) -> None:
        """Is called after each of an epoch's training steps, which are counted from 1; does nothing here."""

    def _require_finite_losses(self) -> None:
        """Stops all processes at once, before the epoch is kept.

        Raises:
            DataProblem: a loss was not finite, or stayed so where steps are skipped.
        """
        found = self._watch.fault()
        if found is None:
            return
        stayed = f" and stayed so for {self._watch.patience} iterations" if self._watch.patience > 1 else ""
        raise DataProblem(
            f"the loss became {found} in epoch {self.current_epoch}{stayed}: the search up to the epoch before is "
            f"kept; check the data for NaN, or lower the learning rates with {self.set_search()} and start again"
        )

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """nnU-Net's record of the mean loss, over the steps that were not skipped."""
        losses = np.array([output["loss"] for output in train_outputs], float)
        finite = np.isfinite(losses)
        if finite.any():
            train_outputs = [{"loss": loss} for loss in np.where(finite, losses, losses[finite].mean())]
        super().on_train_epoch_end(train_outputs)

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """nnU-Net's record of loss and pseudo Dice, or none where validation is switched off."""
        if val_outputs:
            super().on_validation_epoch_end(val_outputs)
            return
        for key in ("mean_fg_dice", "val_losses"):
            self.logger.log(key, math.nan, self.current_epoch)
        self.logger.log("dice_per_class_or_region", [], self.current_epoch)

    def loss_of(self, batch: dict[str, Any], network: nn.Module | None = None) -> torch.Tensor:
        """nnU-Net's loss of one batch, of the network that is searched or another one."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"]
        if isinstance(target, list):
            target = [part.to(self.device, non_blocking=True) for part in target]
        else:
            target = target.to(self.device, non_blocking=True)
        with half_precision(self.device):
            loss: torch.Tensor = self.loss((self.network if network is None else network)(data), target)
        return loss

    def descend(
        self,
        loss: torch.Tensor,
        optimizers: Sequence[torch.optim.Optimizer],
        clipped: Sequence[nn.Parameter],
        *,
        adjust: Callable[[], None] | None = None,
    ) -> None:
        """One step of several optimisers on one loss.

        Args:
            loss: scalar.
            optimizers: of which each makes one step.
            clipped: parameters whose gradients are limited as nnU-Net limits them.
            adjust: is called when all gradients are there, averaged and not scaled, and may change them.
        """
        self._watch.add(loss, id(optimizers[0]))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        average_gradients([p for o in optimizers for group in o.param_groups for p in group["params"]])
        if self.grad_scaler is not None:
            for optimizer in optimizers:
                self.grad_scaler.unscale_(optimizer)
        if adjust is not None:
            adjust()
        if clipped:
            nn.utils.clip_grad_norm_(clipped, _MAXIMUM_NORM)
        for optimizer in optimizers:
            if self.grad_scaler is None:
                optimizer.step()
            else:
                self.grad_scaler.step(optimizer)
        if self.grad_scaler is not None:
            self.grad_scaler.update()

    def on_epoch_end(self) -> None:
        """Decides, saves everything, and tells about it."""
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        self.decide()
        self.keep_plain_log()
        self.current_epoch += 1
        self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        if self.local_rank == 0 and not self.disable_checkpointing:
            self.history.save(Path(self.output_folder) / HISTORY)
            self._draw_if_cheap()
        self.print_to_log_file(
            f"train_loss {self.logged('train_losses'):.4f}, val_loss {self.logged('val_losses'):.4f}, "
            f"pseudo Dice {self.logged('mean_fg_dice'):.4f}, epoch time {self.epoch_seconds():.2f} s"
        )
        self.print_to_log_file(self.summary())

    def _draw_if_cheap(self) -> None:
        """Draws unless it would take more than a twentieth of the search's time: short epochs are not all drawn."""
        started = time()
        if started < self._next_drawing:
            return
        self.draw_progress()
        self._drawn_epochs = self.current_epoch
        self._next_drawing = time() + 19 * (time() - started)

    def logged(self, key: str) -> float:
        """nnU-Net's record of the last epoch."""
        return float(self.logger.get_value(key, -1))

    def epoch_seconds(self) -> float:
        """Duration of the last epoch, s."""
        return self.logged("epoch_end_timestamps") - self.logged("epoch_start_timestamps")

    def on_train_end(self) -> None:
        """Keeps the final state, adds the result to the plans and stops the data loaders."""
        final = Path(self.output_folder) / "checkpoint_final.pth"
        self.save_checkpoint(str(final))
        if self.local_rank == 0:
            if not self.disable_checkpointing:
                # A kill between the last checkpoint and the history's file leaves that one epoch short.
                self.history.save(Path(self.output_folder) / HISTORY)
            self._add_results()
            if not self.disable_checkpointing:
                if self._drawn_epochs < self.current_epoch:
                    self.draw_progress()
                final.with_name("checkpoint_latest.pth").unlink(missing_ok=True)
        for loader in self.loaders():
            if hasattr(loader, "_finish"):
                loader._finish()

    def loaders(self) -> list[Any]:
        """Data loaders, which may have processes of their own."""
        return [self.dataloader_train, self.dataloader_val]

    def _add_results(self) -> None:
        derived = self.results()
        added = self.plans.add(derived, otherwise=self._otherwise())
        self._added = True
        names = ", ".join(item.name for item in derived)
        self.print_to_log_file(f"{'Added to' if added else 'Already in'} {self.plans.path}: {names}")
        self._print_next_steps()

    def _print_next_steps(self) -> None:
        for command in self.next_steps():
            self.print_to_log_file("next:", command, add_timestamp=False)
        if has_control(self.settings.method):
            found, plans = self.result_name(), self.plans
            control = commands.control(plans.number, self.configuration_name, found, plans=plans.name)
            self.print_to_log_file("control:", control, add_timestamp=False)

    def _otherwise(self) -> str:
        """What to do if the result cannot be added; the finished search is kept."""
        again = commands.train(
            self.plans.number,
            self.configuration_name,
            self.fold,
            plans=self.plans.name,
            trainer=type(self).__name__,
            switch="--c",
        )
        return f"the search is kept; rename what is in the way in the plans, or restore them, then run {again}"

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing: a search has no model to validate."""
        del save_probabilities
        if self._added or self.local_rank != 0:  # right after the search, which ended with the same lines
            return
        self.print_to_log_file("A search has no model to validate; train its result:", add_timestamp=False)
        self._print_next_steps()

    def _require_untouched(self) -> None:
        """A new search must not cost the user an old one, nor end at a name that is taken."""
        for name in ("checkpoint_latest.pth", "checkpoint_final.pth"):
            if (Path(self.output_folder) / name).exists():
                raise DataProblem(
                    f"{self.output_folder} holds a search already: add --c to go on with it, or move that folder away "
                    f"to search anew"
                )
        # The plans as they are by now: nnU-Net read them when the trainer was made.
        taken = [name for name in self.result_names() if name in Plans.read(self.plans.path).configurations]
        if taken:
            raise DataProblem(
                f"configuration {taken[0]} is in the plans already: set another suffix "
                f"({self.set_search('suffix=_b')}), or remove it there"
            )

    def has_batch_norms(self) -> bool:
        """Whether norms that are trained take the statistics of a whole batch."""
        return any(isinstance(module, _BatchNorm) for module in self.network.modules())

    def _log_unsynchronised_norms(self) -> None:
        if self._parallel and self.has_batch_norms():
            self.print_to_log_file(
                "Batch norms of the search take the statistics of each GPU's own patches; those of the result are "
                "synchronised when several GPUs train it. Search on one GPU where the batch is small."
            )

    def _log_what_is_seen(self) -> None:
        """Says whose validation cases the search trains on, because folds share the network that it finds."""
        path = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold == "all" or not path.exists():
            self.print_to_log_file("This search sees all cases: no fold's validation cases are unseen by its result.")
            return
        splits = read_json(path, "restore it, or remove it so that nnU-Net makes a new one")
        seen, _ = self.do_split()
        shared = [str(fold) for fold, split in enumerate(splits) if set(split["val"]) & set(seen)]
        self.print_to_log_file(
            f"This search sees the training cases of fold {self.fold} only. Among them are validation cases of folds "
            f"{', '.join(shared) or 'none'}: there the result was chosen with knowledge of what it is validated on."
        )


class BilevelSearchTrainer(SearchTrainer):
    """Network weights on one seeded half of the fold's training cases, the architecture on the other."""

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders for the first half; those of the second half serve the architecture."""
        self._half: int | str | None = 1
        self.dataloader_architecture, unused = super().get_dataloaders()
        if hasattr(unused, "_finish"):
            unused._finish()
        self._half = 0
        loaders: tuple[Any, Any] = super().get_dataloaders()
        self._half = None
        return loaders

    def loaders(self) -> list[Any]:
        """Both training loaders and the validation loader."""
        return [*super().loaders(), getattr(self, "dataloader_architecture", None)]

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split; while loaders are made, one half of its training cases.

        Raises:
            DataProblem: fewer than two training cases.
        """
        training, validation = super().do_split()
        half = getattr(self, "_half", None)
        if half is None:
            return training, validation
        if len(training) < 2:
            raise DataProblem(
                f"{self.settings.method} searches on two halves of the training cases, fold {self.fold} has "
                f"{len(training)}: use a fold with more, or a method that searches on all of them (iac_lth)"
            )
        order = np.random.RandomState(self.settings.seed).permutation(sorted(training))
        first, second = ([str(case) for case in sorted(order[start::2])] for start in range(2))
        return {0: (first, validation), 1: (second, validation), "both": (first, second)}[half]

    def judging_loaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders of the first half for training and of the second, as it is, for validation."""
        self._half = "both"
        loaders: tuple[Any, Any] = super().get_dataloaders()
        self._half = None
        return loaders
