"""What every search in nnU-Net's training loop shares, whatever it searches.

A search is an `nnUNetTrainer` that ends in plans configurations instead of a model. This module holds its life:
settings from the plans, seeds, one atomic checkpoint per epoch that holds everything, exact resume with `--c`, several
GPUs, refusals, and the write into the plans. What is searched, and when it is over, is a subclass's.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import random
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from torch import autocast, nn

from nnunet_nas import commands
from nnunet_nas.architecture import NetworkSpec, network_spec
from nnunet_nas.distributed import average_gradients
from nnunet_nas.environment import dataset_number
from nnunet_nas.errors import DataProblem, UsageError, exit_with_one_line
from nnunet_nas.files import read_json, replace_file
from nnunet_nas.histories import HISTORY, History
from nnunet_nas.methods import METHODS, result_trainer
from nnunet_nas.plans import DerivedConfiguration, Plans, Provenance
from nnunet_nas.settings import read_settings

_STATE_LAYOUT = 1
_MAXIMUM_NORM = 12.0


def to_bytes(state: dict[str, Any]) -> bytes:
    """What torch would write into a file."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


class ConfiguredTrainer(nnUNetTrainer):
    """Trains as long as settings in the plans say, and augments as the backbone's training did, or not at all.

    A backbone that never saw mirrored images (`nnUNetTrainer_..._NoMirroring`) must not be mirrored now: left and right
    may differ. A setting switches augmentation off the way nnU-Net's own `nnUNetTrainerNoDA` does.

    Attributes:
        settings: of the method.
    """

    settings: Any
    _inherits_mirroring = False

    def follow_settings(self) -> None:
        """Once nnU-Net's own constructor is through."""
        self.num_epochs = self.settings.num_epochs
        self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.settings.num_val_iterations_per_epoch
        # With two stages nnU-Net's weights of the deep supervision levels are 0/0.
        self.enable_deep_supervision = self.configuration_manager.network_arch_init_kwargs.get("n_stages", 3) > 2
        if not self.settings.augmentation:
            self.get_training_transforms = nnUNetTrainerNoDA.get_training_transforms

    def inherit_mirroring(self, axes: tuple[int, ...] | None) -> None:
        """Mirrors along the spatial axes that the backbone's training mirrored, and none beside them."""
        self._inherits_mirroring, self._inherited_axes = True, axes

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """nnU-Net's choice with the backbone's mirroring; without augmentation no mirroring and no margin."""
        rotation, dummy_2d, patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self._inherits_mirroring:
            mirror_axes = self._inherited_axes
        if not self.settings.augmentation:
            mirror_axes, patch_size = None, self.configuration_manager.patch_size
        self.inference_allowed_mirroring_axes = mirror_axes
        return rotation, dummy_2d, patch_size, mirror_axes

    @abstractmethod
    def checkpoint(self) -> dict[str, Any]:
        """What is kept."""

    def save_checkpoint(self, filename: str) -> None:
        """Writes atomically: a kill leaves the old file or the new one."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        replace_file(Path(filename), to_bytes(self.checkpoint()))


class SearchTrainer(ConfiguredTrainer):
    """The life of a search; see the module."""

    settings_class: ClassVar[type[Any]]
    is_ddp: bool
    plans: Plans
    base_digest: str
    history: History
    _drawn_epochs: int
    _added: bool
    _next_drawing: float
    _resumed_from: dict[str, Any] | None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        with exit_with_one_line():
            resolved = Plans(plans).resolve(configuration)
            self.settings = read_settings(self.settings_class, resolved)
            if resolved.get("previous_stage"):
                raise UsageError(
                    f"{configuration} is the second stage of a cascade, whose input is another network's prediction: "
                    f"search on a configuration without previous_stage"
                )
            super().__init__(plans, configuration, fold, dataset_json, device)
        self.follow_settings()
        path = Path(self.preprocessed_dataset_folder_base) / f"{self.plans_manager.plans_name}.json"
        self.plans = Plans(self.plans_manager.plans, path)
        self.base_digest = self.plans.digest(configuration)
        self._resumed_from = None
        self._added = False
        self._drawn_epochs = 0
        self._next_drawing = 0.0

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether the search is over."""

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
    def search_state(self) -> dict[str, Any]:
        """The method's own part of a checkpoint beside its history: tensors, numbers, strings, lists, dictionaries."""

    @abstractmethod
    def load_search_state(self, state: dict[str, Any]) -> None:
        """Restores what `search_state` gave."""

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

    def next_steps(self) -> list[str]:
        """The commands that train the result and predict with it."""
        return commands.train_and_predict(
            self.dataset_number(),
            self.result_name(),
            self.fold,
            plans=self.plans_manager.plans_name,
            trainer=result_trainer(self.settings.method),
        )

    def set_search(self, *assignments: str) -> str:
        """The command that changes settings of this search."""
        return commands.set_search(
            self.settings.method,
            *assignments,
            dataset=self.dataset_number(),
            configuration=self.configuration_name,
            plans=self.plans_manager.plans_name,
        )

    def initialize(self) -> None:
        """nnU-Net's initialisation without its DistributedDataParallel; see `distributed`."""
        with exit_with_one_line():
            self._seed_everything(self.settings.seed)
            self._parallel = bool(self.is_ddp)
            self.is_ddp = False
            try:
                super().initialize()
            finally:
                self.is_ddp = self._parallel
            self.prepare()

    def _set_batch_size_and_oversample(self) -> None:
        self.is_ddp = self._parallel
        super()._set_batch_size_and_oversample()
        self.is_ddp = False

    def _build_loss(self) -> nn.Module:
        self.is_ddp = self._parallel
        loss: nn.Module = super()._build_loss()
        self.is_ddp = False
        return loss

    def _do_i_compile(self) -> bool:
        """Never: the graph changes during a search."""
        return False

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """As nnU-Net's, for a network that is never wrapped."""
        self.network.decoder.deep_supervision = enabled

    def plot_network_architecture(self) -> None:
        """Nothing: nnU-Net's plot needs a package that no longer works, and draws no supernet."""

    def run_training(self) -> None:
        """The search: epochs until it is over, then its result goes into the plans."""
        with exit_with_one_line():
            if self._resumed_from is None:
                self._require_untouched()
            if self._resumed_from is None or not self.finished:
                self._search()
            self.on_train_end()

    def _search(self) -> None:
        self.on_train_start()
        self._log_what_is_seen()
        if self._resumed_from is None:
            self._seed_everything(self.settings.seed + self.local_rank)
        else:
            self._restore_random_states(self._resumed_from["random"])
        while not self.finished:
            self.on_epoch_start()
            self.on_train_epoch_start()
            self.on_train_epoch_end([self.train_step(batch) for batch in self._training_batches()])
            with torch.no_grad():
                self.on_validation_epoch_start()
                steps = range(self.num_val_iterations_per_epoch)
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val)) for _ in steps])
            self.on_epoch_end()

    def _training_batches(self) -> Any:
        return (next(self.dataloader_train) for _ in range(self.num_iterations_per_epoch))

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """nnU-Net's record of loss and pseudo Dice, or none where validation is switched off."""
        if val_outputs:
            super().on_validation_epoch_end(val_outputs)
            return
        for key in ("mean_fg_dice", "val_losses"):
            self.logger.log(key, math.nan, self.current_epoch)
        self.logger.log("dice_per_class_or_region", [], self.current_epoch)

    def loss_of(self, batch: dict[str, Any]) -> torch.Tensor:
        """nnU-Net's loss of one batch.

        Raises:
            DataProblem: it is not a number; the checkpoint of the last epoch stays.
        """
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"]
        if isinstance(target, list):
            target = [part.to(self.device, non_blocking=True) for part in target]
        else:
            target = target.to(self.device, non_blocking=True)
        with autocast(self.device.type, enabled=self.device.type == "cuda"):
            loss: torch.Tensor = self.loss(self.network(data), target)
        if not torch.isfinite(loss):
            raise DataProblem(
                f"the loss became {loss.item()} in epoch {self.current_epoch}: the search up to the epoch before is "
                f"kept; check the data for NaN, or lower the learning rates with {self.set_search()} and start again"
            )
        return loss

    def descend(
        self, loss: torch.Tensor, optimizers: Sequence[torch.optim.Optimizer], clipped: Sequence[nn.Parameter]
    ) -> None:
        """One step of several optimisers on one loss; gradients of `clipped` are limited as nnU-Net limits them."""
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        average_gradients([p for o in optimizers for group in o.param_groups for p in group["params"]])
        if self.grad_scaler is not None:
            for optimizer in optimizers:
                self.grad_scaler.unscale_(optimizer)
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
        added = self.plans.add(derived)
        self._added = True
        names = ", ".join(item.name for item in derived)
        self.print_to_log_file(f"{'Added to' if added else 'Already in'} {self.plans.path}: {names}")
        for command in self.next_steps():
            self.print_to_log_file("next:", command, add_timestamp=False)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing: a search has no model to validate."""
        del save_probabilities
        if self._added or self.local_rank != 0:  # right after the search, which ended with the same lines
            return
        self.print_to_log_file("A search has no model to validate; train its result:", add_timestamp=False)
        for command in self.next_steps():
            self.print_to_log_file("next:", command, add_timestamp=False)

    def checkpoint(self) -> dict[str, Any]:
        """Everything that a restart needs."""
        history = {name: torch.from_numpy(array) for name, array in self.history.arrays().items()}
        return {
            "layout": _STATE_LAYOUT,
            "trainer_name": type(self).__name__,
            "base_digest": self.base_digest,
            "settings": json.dumps(vars(self.settings)),
            "current_epoch": self.current_epoch,
            "logging": json.dumps(self.logger.get_checkpoint(), default=float),
            "grad_scaler": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "random": self._random_states(),
            "search": {**self.search_state(), "history": history},
        }

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Restores a search exactly (nnU-Net calls it for `--c` and `--val`)."""
        with exit_with_one_line():
            state = filename_or_checkpoint
            if isinstance(state, str):
                state = _read_state(Path(state))
            self._require_same_search(state)
            if not self.was_initialized:
                self.initialize()
            self.load_search_state(state["search"])
            arrays = {name: tensor.numpy() for name, tensor in state["search"]["history"].items()}
            self.history = type(self.history).from_arrays(arrays)
            self.current_epoch = state["current_epoch"]
            self.logger.load_checkpoint(json.loads(state["logging"]))
            if self.grad_scaler is not None and state["grad_scaler"] is not None:
                self.grad_scaler.load_state_dict(state["grad_scaler"])
            self._resumed_from = state

    def _require_same_search(self, state: dict[str, Any]) -> None:
        folder = self.output_folder
        if state.get("layout") != _STATE_LAYOUT or state.get("trainer_name") != type(self).__name__:
            raise DataProblem(f"the checkpoint in {folder} is not one of this search: move the folder away")
        if state["base_digest"] != self.base_digest:
            raise DataProblem(
                f"configuration {self.configuration_name} has changed since the search in {folder} began: restore the "
                f"plans, or move that folder away and search again"
            )
        before, now = json.loads(state["settings"]), json.loads(json.dumps(vars(self.settings)))
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        changed = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys]
        if changed:
            raise DataProblem(
                f"settings have changed since the search in {folder} began ({', '.join(changed)}): set them back with "
                f"{self.set_search()}, or move that folder away and search again"
            )

    def _require_untouched(self) -> None:
        """A new search must not cost the user an old one, nor end at a name that is taken."""
        for name in ("checkpoint_latest.pth", "checkpoint_final.pth"):
            if (Path(self.output_folder) / name).exists():
                raise DataProblem(
                    f"{self.output_folder} holds a search already: add --c to go on with it, or move that folder away "
                    f"to search anew"
                )
        name = self.result_name()
        if name in self.plans_manager.plans["configurations"]:
            raise DataProblem(
                f"configuration {name} is in the plans already: set another suffix ({self.set_search('suffix=_b')}), "
                f"or remove it there"
            )

    def dataset_number(self) -> int:
        """The data set's number, for commands that are printed."""
        return dataset_number(self.plans_manager.dataset_name)

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

    def _seed_everything(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def _random_states(self) -> dict[str, Any]:
        _, keys, position, has_gauss, gauss = np.random.get_state()
        version, internal, gauss_next = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": {
                "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
                "position": int(position),
                "has_gauss": int(has_gauss),
                "gauss": float(gauss),
            },
            "python": [version, list(internal), gauss_next],
        }

    def _restore_random_states(self, states: dict[str, Any]) -> None:
        if self.local_rank != 0:
            # Only the first process writes checkpoints; the others must not repeat its random numbers.
            self._seed_everything(self.settings.seed + self.local_rank + 1000 * self.current_epoch)
            return
        torch.set_rng_state(states["torch"])
        if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states["cuda"])
        numpy = states["numpy"]
        keys = numpy["keys"].numpy().astype(np.uint32)
        np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["gauss"]))
        version, internal, gauss_next = states["python"]
        random.setstate((version, tuple(internal), gauss_next))


class BilevelSearchTrainer(SearchTrainer):
    """Network weights on one seeded half of the fold's training cases, the architecture on the other."""

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders for the first half; those of the second half serve the architecture."""
        self._half: int | None = 1
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
        return [str(case) for case in sorted(order[half::2])], validation


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise DataProblem(
            f"{path} is not a checkpoint of a search ({type(error).__name__}): remove it to start the search anew"
        ) from error
    return state
