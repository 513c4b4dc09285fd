"""The state of a search on the disk: everything that `--c` needs to end as an uninterrupted search would.

A checkpoint holds tensors, numbers and text only, so that torch reads it without running code of the file's.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch

from nnunet_nas import commands
from nnunet_nas.checkpoints import read_checkpoint
from nnunet_nas.errors import DataProblem, exit_with_one_line
from nnunet_nas.histories import History
from nnunet_nas.randomness import random_states
from nnunet_nas.settings import as_text
from nnunet_nas.trainer import ConfiguredTrainer

_LAYOUT = 1
_KEYS = (
    "layout", "trainer_name", "base_digest", "settings", "current_epoch", "logging", "grad_scaler", "random", "search",
)  # fmt: skip


class ResumableTrainer(ConfiguredTrainer):
    """Keeps everything in each checkpoint, and goes on only with what it began with.

    Attributes:
        base_digest: of the configuration that is searched on.
        history: of the finished epochs.
        architecture_optimizer: beside nnU-Net's `optimizer`.
        resumed_from: the checkpoint that the search goes on from, if any.
    """

    states: ClassVar[tuple[str, ...]] = ("resumed_from", "history")
    base_digest: str
    history: History
    architecture_optimizer: torch.optim.Optimizer
    resumed_from: dict[str, Any] | None = None

    @abstractmethod
    def search_state(self) -> dict[str, Any]:
        """The method's own part of a checkpoint: tensors, numbers, strings, lists and dictionaries."""

    @abstractmethod
    def load_search_state(self, state: dict[str, Any]) -> None:
        """Restores what `search_state` gave."""

    def checkpoint(self) -> dict[str, Any]:
        """Everything that a restart needs."""
        shared = {
            "optimizer": self.optimizer.state_dict(),
            "architecture_optimizer": self.architecture_optimizer.state_dict(),
            "history": {name: torch.from_numpy(array) for name, array in self.history.arrays().items()},
        }
        return {
            "layout": _LAYOUT,
            "trainer_name": type(self).__name__,
            "base_digest": self.base_digest,
            "settings": json.dumps(vars(self.settings)),
            "current_epoch": self.current_epoch,
            "logging": self._log_as_text(),
            "grad_scaler": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "random": random_states(),
            "search": {**self.search_state(), **shared},
        }

    def _log_as_text(self) -> str:
        return json.dumps(self.logger.get_checkpoint(), default=float)

    def keep_plain_log(self) -> None:
        """Turns nnU-Net's records into what a restart finds: NumPy's numbers round the running mean of the Dice."""
        self.logger.load_checkpoint(json.loads(self._log_as_text()))

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Restores a search exactly (nnU-Net calls it for `--c` and `--val`)."""
        with exit_with_one_line(), self.going_on():
            state = filename_or_checkpoint
            if isinstance(state, str):
                state = read_checkpoint(Path(state), "move it away to start the search anew", _KEYS)
            self._require_same_search(state)
            if not self.was_initialized:
                self.initialize()
            search = state["search"]
            self.load_search_state(search)
            self.optimizer.load_state_dict(search["optimizer"])
            self.architecture_optimizer.load_state_dict(search["architecture_optimizer"])
            arrays = {name: tensor.numpy() for name, tensor in search["history"].items()}
            self.history = type(self.history).from_arrays(arrays)
            self.current_epoch = state["current_epoch"]
            self.logger.load_checkpoint(json.loads(state["logging"]))
            if self.grad_scaler is not None and state["grad_scaler"] is not None:
                self.grad_scaler.load_state_dict(state["grad_scaler"])
            self.resumed_from = state

    def _require_same_search(self, state: dict[str, Any]) -> None:
        folder = self.output_folder
        if state.get("layout") != _LAYOUT or state.get("trainer_name") != type(self).__name__:
            raise DataProblem(f"the checkpoint in {folder} is not one of this search: move the folder away")
        if not self.plans.matches(self.configuration_name, state["base_digest"]):
            raise DataProblem(
                f"configuration {self.configuration_name} has changed since the search in {folder} began: restore the "
                f"plans, or move that folder away and search again"
            )
        # A setting that the version at the time did not have stood at what is its default now.
        defaults = vars(type(self.settings)())
        before = {**json.loads(json.dumps(defaults)), **json.loads(state["settings"])}
        now = json.loads(json.dumps(vars(self.settings)))
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        changed = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys]
        if changed:
            texts = {key: as_text(before[key]) for key in keys if key in defaults}
            back = [f"{key}={'default' if before[key] == defaults[key] else text}" for key, text in texts.items()]
            raise DataProblem(
                f"settings have changed since the search in {folder} began ({', '.join(changed)}): set them back with "
                f"{self.set_search(*back)}, or move that folder away and search again"
            )

    def set_search(self, *assignments: str) -> str:
        """The command that changes settings of this search."""
        return commands.set_search(
            self.settings.method,
            *assignments,
            dataset=self.plans.number,
            configuration=self.configuration_name,
            plans=self.plans.name,
        )
