"""nnU-Net's trainer for a training of minutes: fewer iterations, no final validation, otherwise unchanged.

nnU-Net's own trainers run 250 iterations per epoch, hours on a CPU. This one reads its length from QUICKSTART_EPOCHS
and QUICKSTART_ITERATIONS (per epoch); the learning rate falls by nnU-Net's schedule over that shortened length.
nnU-Net finds the class through the environment variable nnUNet_extTrainer, which names this folder.
"""

import os
import time

import torch
from batchgenerators.utilities.file_and_folder_operations import join, save_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerQuickstart(nnUNetTrainer):
    """A demonstration, not a training that gives results."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = _positive("QUICKSTART_EPOCHS")
        self.num_iterations_per_epoch = _positive("QUICKSTART_ITERATIONS")
        self.num_val_iterations_per_epoch = 1
        self.training_seconds = 0.0
        self.print_to_log_file(
            f"Quickstart: {self.num_epochs} epochs of {self.num_iterations_per_epoch} iterations instead of 1000 of "
            "250. This shows how the commands work together; it is no training to draw conclusions from."
        )

    def on_train_epoch_start(self) -> None:
        """Starts the clock."""
        super().on_train_epoch_start()
        self._epoch_start = time.perf_counter()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Stops the clock before validation and checkpoints."""
        self.training_seconds += time.perf_counter() - self._epoch_start
        super().on_train_epoch_end(train_outputs)

    def on_train_end(self) -> None:
        """Leaves the number of iterations and their seconds beside the checkpoint."""
        super().on_train_end()
        iterations = self.num_epochs * self.num_iterations_per_epoch
        report = {"iterations": iterations, "seconds": self.training_seconds}
        save_json(report, join(self.output_folder, "quickstart.json"))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Only says what is left out."""
        self.print_to_log_file(
            "Quickstart: nnU-Net's final validation (sliding window with mirroring) is left out to save time."
        )


def _positive(variable: str) -> int:
    value = os.environ.get(variable, "")
    if not value.isdecimal() or int(value) < 1:
        raise RuntimeError(f"{variable}={value!r} is not a positive number: export {variable}=10, for example")
    return int(value)
