"""nnU-Net's trainer for a training of minutes: it ends at a deadline, without final validation, otherwise unchanged.

nnU-Net's own trainers run 1000 epochs of 250 iterations, days on a CPU. This one takes QUICKSTART_SECONDS, divided into
epochs of equal time, and looks at the clock between iterations: on a busy machine it does fewer of them, not longer.
The learning rate falls by nnU-Net's schedule over the epochs. nnU-Net finds the class through the environment variable
nnUNet_extTrainer, which names this folder.
"""

import os
import time
from collections.abc import Iterator

import torch
from batchgenerators.utilities.file_and_folder_operations import join, save_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

EPOCHS = 5


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
        self.allowed_seconds = _positive("QUICKSTART_SECONDS")
        self.num_epochs = EPOCHS
        self.num_val_iterations_per_epoch = 1
        self.iterations = 0
        self.iteration_seconds = self.last_iteration = 0.0
        self.seconds = 0.0
        self.print_to_log_file(
            f"Quickstart: {self.allowed_seconds} seconds instead of 1000 epochs of 250 iterations. This shows how the "
            "commands work together; it is no training to draw conclusions from."
        )

    def run_training(self) -> None:
        """nnU-Net's loop, with the clock in the place of the number of iterations."""
        self.on_train_start()
        begin = time.perf_counter()
        between_epochs = 0.0
        for epoch in range(self.num_epochs):
            self.on_epoch_start()
            self.on_train_epoch_start()
            share = self.allowed_seconds * (epoch + 1) / self.num_epochs
            self.on_train_epoch_end(list(self._iterate(until=begin + share - between_epochs)))
            iterated = time.perf_counter()
            self._validate()
            self.on_epoch_end()
            between_epochs = max(between_epochs, time.perf_counter() - iterated)
            if time.perf_counter() - begin + self.last_iteration + between_epochs > self.allowed_seconds:
                break
        self.seconds = time.perf_counter() - begin
        self.on_train_end()

    def _iterate(self, *, until: float) -> Iterator[dict]:
        """Iterations, at least one, of which none is begun that would end later."""
        first = True
        while first or time.perf_counter() + self.last_iteration <= until:
            start = time.perf_counter()
            yield self.train_step(next(self.dataloader_train))
            self.last_iteration = time.perf_counter() - start
            self.iterations += 1
            self.iteration_seconds += self.last_iteration
            first = False

    def _validate(self) -> None:
        with torch.no_grad():
            self.on_validation_epoch_start()
            outputs = [
                self.validation_step(next(self.dataloader_val)) for _ in range(self.num_val_iterations_per_epoch)
            ]
            self.on_validation_epoch_end(outputs)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predicts one validation case, to know how long one takes, and leaves a report beside the checkpoint."""
        self.print_to_log_file("Quickstart: of nnU-Net's final validation only one case is predicted, to save time.")
        report = {
            "allowed_seconds": self.allowed_seconds,
            "seconds": self.seconds,
            "iterations": self.iterations,
            "iteration_seconds": self.iteration_seconds,
            "seconds_per_case": self._time_prediction(),
        }
        save_json(report, join(self.output_folder, "quickstart.json"))

    def _time_prediction(self) -> float:
        """Seconds for one case, as nnUNetv2_predict does it without mirroring."""
        self.set_deep_supervision_enabled(False)
        self.network.eval()
        predictor = nnUNetPredictor(use_mirroring=False, device=self.device, allow_tqdm=False)
        predictor.manual_initialization(
            self.network,
            self.plans_manager,
            self.configuration_manager,
            None,
            self.dataset_json,
            type(self).__name__,
            (),
        )
        case = self.do_split()[1][0]
        data = self.dataset_class(self.preprocessed_dataset_folder, [case]).load_case(case)[0][:]
        start = time.perf_counter()
        predictor.predict_sliding_window_return_logits(torch.tensor(data))
        return time.perf_counter() - start


def _positive(variable: str) -> int:
    value = os.environ.get(variable, "")
    if not value.isdecimal() or int(value) < 1:
        raise RuntimeError(f"{variable}={value!r} is not a positive number: export {variable}=60, for example")
    return int(value)
