"""What our trainers have in common: plans say how long they train, and their checkpoints are written whole."""

from __future__ import annotations

import contextlib
import io
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from torch._dynamo import OptimizedModule

from nnunet_nas.architecture import require_trusted
from nnunet_nas.checkpoints import read_checkpoint
from nnunet_nas.commands import STOCK_TRAINER
from nnunet_nas.errors import DataProblem, exit_with_one_line
from nnunet_nas.files import locked, remove_leftovers, replace_file
from nnunet_nas.plans import Plans
from nnunet_nas.randomness import random_states, restore_random_states, seed_everything

# Beside what nnU-Net keeps, in the same file, so that no kill can part them; nnU-Net ignores it.
_RANDOM = "nnunet_nas_random"
# nnU-Net writes the split in place: how often and how long a training waits for another one that is at it.
_ATTEMPTS, _PAUSE_SECONDS = 10, 0.1


def to_bytes(state: dict[str, Any]) -> bytes:
    """What torch would write into a file."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


class ConfiguredTrainer(nnUNetTrainer, ABC):
    """Trains as long as settings in the plans say, and augments as the backbone's training did, or not at all.

    A backbone that never saw mirrored images (`nnUNetTrainer_..._NoMirroring`) must not be mirrored now: left and right
    may differ. A setting switches augmentation off the way nnU-Net's own `nnUNetTrainerNoDA` does.

    Attributes:
        settings: of the method.
        plans: that it was started with.
        goes_on: whether it was started with `--c`.
    """

    settings: Any
    plans: Plans
    goes_on: bool
    # Attributes whose text would fill nnU-Net's debug.json: they are in checkpoints.
    states: ClassVar[tuple[str, ...]] = ()
    _inherits_mirroring = False
    _claim: contextlib.ExitStack | None = None

    def claim_folder(self) -> None:
        """Keeps every other process out of the results folder, until `alone` or this process ends.

        Raises:
            EnvironmentProblem: another process works there.
        """
        if self.local_rank != 0 or self._claim is not None:
            return
        busy = (
            f"another process trains in {self.output_folder}: wait until it has ended, or end it and run the same "
            f"command with --c"
        )
        claim = contextlib.ExitStack()
        claim.enter_context(locked(Path(self.output_folder) / "training", timeout=0, busy=busy))
        remove_leftovers(Path(self.output_folder))
        self._claim = claim

    def resume_random_numbers(self, states: dict[str, Any]) -> None:
        """Goes on with the first process's random numbers, which are kept; the others must not repeat them."""
        if self.local_rank == 0:
            restore_random_states(states)
        else:
            seed_everything(self.settings.seed + self.local_rank + 1000 * self.current_epoch)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The only process that works in the results folder; raises as `claim_folder`."""
        self.claim_folder()
        try:
            yield
        finally:
            self._release_folder()

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Reads a state while no other process replaces it, and claims the folder for what `--c` does with it."""
        if self.goes_on:
            self.claim_folder()
        try:
            yield
        except BaseException:
            self._release_folder()
            raise

    def _release_folder(self) -> None:
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def follow_settings(self) -> None:
        """Once nnU-Net's own constructor is through."""
        path = Path(self.preprocessed_dataset_folder_base) / f"{self.plans_manager.plans_name}.json"
        self.plans = Plans(self.plans_manager.plans, path)
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

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's; a disk that is full while it writes the split leaves no half file, which would stop all others.

        Raises:
            DataProblem: the file of the split is no JSON.
        """
        path = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        known = path.exists()
        try:
            return self._split_when_whole()
        except OSError:
            if not known:
                path.unlink(missing_ok=True)
            raise
        except json.JSONDecodeError as error:
            raise DataProblem(
                f"{path} is not valid JSON: remove it, so that nnU-Net makes its own again, or restore yours"
            ) from error

    def _split_when_whole(self) -> tuple[list[str], list[str]]:
        """Two folds that begin at the same time: one reads what the other has not written to its end."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(json.JSONDecodeError):
                return cast("tuple[list[str], list[str]]", super().do_split())
            time.sleep(_PAUSE_SECONDS)
        return cast("tuple[list[str], list[str]]", super().do_split())

    def _save_debug_information(self) -> None:
        """nnU-Net's text of every attribute but the states."""
        own = cast("dict[str, Any]", vars(self))
        hidden = {name: own.pop(name) for name in self.states if name in own}
        try:
            super()._save_debug_information()
        finally:
            own.update(hidden)

    @abstractmethod
    def checkpoint(self) -> dict[str, Any]:
        """What is kept."""

    def save_checkpoint(self, filename: str) -> None:
        """Writes atomically: a kill leaves the old file or the new one."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        replace_file(Path(filename), to_bytes(self.checkpoint()))


class ModelTrainer(ConfiguredTrainer):
    """Leaves ordinary models: the checkpoints name nnU-Net's own trainer, which predicts with what the plans name.

    One is kept after every epoch, with the random states, so that `--c` ends as an uninterrupted training would.

    Attributes:
        resumed: whether a checkpoint was loaded; `--c` on a training that was killed before its first one begins anew.
    """

    states = ("_random_states",)
    resumed = False
    _random_states: dict[str, Any] | None = None

    def follow_settings(self) -> None:
        """As for all; nnU-Net keeps none on its own, for it does so before it knows whether the epoch was the best."""
        super().follow_settings()
        self.save_every = self.num_epochs + 1

    def initialize(self) -> None:
        """nnU-Net's, of networks that may be built; see `trust`."""
        require_trusted(self.configuration_manager.configuration["architecture"])
        super().initialize()

    def run_training(self) -> None:
        """nnU-Net's, by one process at a time."""
        with exit_with_one_line(), self.alone():
            super().run_training()

    def on_epoch_start(self) -> None:
        """nnU-Net's; a training that goes on has drawn random numbers for its preparations until here."""
        self._resume_kept_random_numbers()
        super().on_epoch_start()

    def on_train_end(self) -> None:
        """nnU-Net's; a training that was killed after its last epoch comes here at once."""
        self._resume_kept_random_numbers()
        super().on_train_end()

    def _resume_kept_random_numbers(self) -> None:
        if self._random_states is not None:
            self.resume_random_numbers(self._random_states)
            self._random_states = None

    def on_epoch_end(self) -> None:
        """nnU-Net's, then everything is kept."""
        super().on_epoch_end()
        self.current_epoch -= 1  # `checkpoint` counts as nnU-Net does, which keeps an epoch before it is counted
        self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        self.current_epoch += 1

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """nnU-Net's, of a file that is read with care first (nnU-Net does not)."""
        self.resumed = True
        with exit_with_one_line(), self.going_on():
            content = filename_or_checkpoint
            if isinstance(content, str):
                mend = "move it away, or train anew without --c"
                content = read_checkpoint(Path(content), mend, ["network_weights", "current_epoch", "logging"])
            self.go_on_as(content)
            self._require_fitting(content["network_weights"])
            self._random_states = content.get(_RANDOM)  # which checkpoints of older versions do not have
        super().load_checkpoint(filename_or_checkpoint)

    def go_on_as(self, checkpoint: dict[str, Any]) -> None:
        """What `--c` takes over before the network is built; nothing."""

    def _require_fitting(self, weights: dict[str, torch.Tensor]) -> None:
        """Refuses to go on where the configuration's modules are others by now, before torch lists every tensor."""
        if not self.was_initialized:
            self.initialize()
        own = {key: value.shape for key, value in self.unwrapped().state_dict().items()}
        theirs = {key.removeprefix("module."): value.shape for key, value in weights.items()}
        misfit = [key for key in {**own, **theirs} if own.get(key) != theirs.get(key)]
        if misfit:
            raise DataProblem(
                f"the checkpoint in {self.output_folder} belongs to other modules than {self.configuration_name} has "
                f"now ({len(misfit)} tensors differ, first {misfit[0]}): restore the configuration in the plans, or "
                f"move that folder away and train again"
            )

    def unwrapped(self) -> Any:
        """The network without the wrappers of compilation and of several GPUs."""
        network: Any = self.network
        if isinstance(network, torch.nn.parallel.DistributedDataParallel):
            network = network.module
        if isinstance(network, OptimizedModule):
            network = network._orig_mod
        return network

    def checkpoint(self) -> dict[str, Any]:
        """nnU-Net's, under the name of nnU-Net's trainer."""
        return {
            "network_weights": self.unwrapped().state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": STOCK_TRAINER,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            _RANDOM: random_states(),
        }
