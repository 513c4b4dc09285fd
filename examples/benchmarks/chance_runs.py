"""Searches, trainings and predictions in this process, small enough for a minute each; see `chance.py`.

The project's trainers search, nnU-Net's trains what they find, and hold-out images (`imagesTs`, `labelsTs`) judge it.
Plans are changed in memory only, nothing is added to them, and nothing is kept of a run but what it returns.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from trainings import keep_stages

from nnunet_nas.data import centre_patch
from nnunet_nas.dints.history import TopologyHistory
from nnunet_nas.dints.judge import Judge
from nnunet_nas.dints.sampling import RelaxedTopology
from nnunet_nas.dints.topology import Topology
from nnunet_nas.dints.trainers import nnUNetTrainerDiNTSSearch
from nnunet_nas.iac.trainers import nnUNetTrainerIACLTHSearch
from nnunet_nas.randomness import seed_everything

CONFIGURATION = "small"
# The same for all seeds: only data and weights differ.
START_OF_ALPHA = 20261124


@dataclass(frozen=True)
class Problem:
    """A data set with a configuration of a few thousand weights.

    Attributes:
        plans: content, with `CONFIGURATION` in it.
        dataset_json: content.
    """

    plans: dict[str, Any]
    dataset_json: dict[str, Any]

    @staticmethod
    def load(dataset: int, configuration: str, *, patch: int, batch: int, features: int, stages: int) -> Problem:
        """From preprocessed data: a smaller configuration, of so many levels."""
        folder = Path(os.environ["nnUNet_preprocessed"]) / convert_id_to_dataset_name(dataset)
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        small = deepcopy(plans["configurations"][configuration])
        kwargs = small["architecture"]["arch_kwargs"]
        keep_stages(kwargs, stages)
        kwargs["features_per_stage"] = [features * 2**stage for stage in range(stages)]
        small |= {"batch_size": batch, "patch_size": [min(patch, size) for size in small["patch_size"]]}
        plans["configurations"][CONFIGURATION] = small
        return Problem(plans, json.loads((folder / "dataset.json").read_text()))

    def trainer(self, cls: type[Any], settings: dict[str, Any] | None = None, method: str = "") -> Any:
        """As `nnUNetv2_train` constructs it, on fold 0."""
        plans = deepcopy(self.plans)
        plans["continue_training"] = False
        if settings is not None:
            plans["configurations"][CONFIGURATION]["nas_settings"] = {method: settings}
        return cls(plans, CONFIGURATION, 0, self.dataset_json, torch.device("cpu"))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """nnU-Net talks on standard output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class Probe:
    """Keeps nothing on the disk and adds nothing to the plans."""

    def initialize(self) -> None:
        """Without checkpoints."""
        super().initialize()
        self.disable_checkpointing = True

    def on_train_end(self) -> None:
        """The answer is asked for instead."""

    def draw_progress(self) -> None:
        """No picture."""


class DiNTSProbe(Probe, nnUNetTrainerDiNTSSearch):
    """Starts at one alpha and x whatever the seed, and records how strongly each part of the loss pulls."""

    without_segmentation = False
    without_terms = False
    sparse_start = False

    def initialize(self) -> None:
        """With an alpha of its own."""
        super().initialize()
        self.network.draw_architecture(torch.Generator().manual_seed(START_OF_ALPHA))
        if self.settings.weights_on == "samples" and not self.sparse_start:
            self.network.level_topologies()
        self.pulls: list[dict[str, float]] = []

    def architecture_loss(self) -> torch.Tensor:
        """What is added to L_seg, or nothing."""
        return super().architecture_loss() * (not self.without_terms)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of a search; gradient norms of L_seg and of the other terms beside it."""
        if self.warming_up:
            return self._skipped_step() if self.without_segmentation else super().train_step(batch)
        if self.settings.terms_share is not None:
            return super().train_step(batch)  # their share is what the settings say
        parameters = self.network.architecture_parameters()
        self.train_only(weights=False)
        others = torch.autograd.grad(self.architecture_loss(), parameters)
        if self.without_segmentation:
            self.descend(self.architecture_loss(), [self.architecture_optimizer], [])
            result = self._skipped_step()
        else:
            result = super().train_step(batch)
        row = {}
        for name, parameter, other in zip(("alpha", "x"), parameters, others, strict=True):
            row[f"{name}_others"] = float(other.norm())
            row[f"{name}_segmentation"] = float((parameter.grad - other).norm())
        self.pulls.append(row)
        return result

    def _skipped_step(self) -> dict[str, Any]:
        """Without L_seg the weights have no part in the answer and are not trained."""
        self._step += 1
        return {"loss": np.zeros(())}


def search_dints(problem: Problem, seed: int, settings: dict[str, Any], **switches: bool) -> dict[str, Any]:
    """One search; what is recorded of it. Switches are attributes of `DiNTSProbe`."""
    started, cpu = time.time(), time.process_time()
    with quietly():
        trainer = problem.trainer(DiNTSProbe, {**settings, "seed": seed}, "dints")
        for name, value in switches.items():
            setattr(trainer, name, value)
        trainer.run_training()
        found = trainer.delivered()
    history = trainer.history
    pulls = {
        f"pull_{name}": " ".join(f"{pull[name]:.3g}" for pull in trainer.pulls)
        for name in ("x_segmentation", "x_others", "alpha_segmentation", "alpha_others")
    }
    return {
        "topology": json.dumps(found.topology.to_json(), separators=(",", ":")),
        "mib": round(found.mib, 2),
        "budget_mib": round(trainer.budget_mib, 2),
        "price": found.price,
        "gap": int(history.gap[-1]),
        "log_feasible": round(float(history.log_feasible[-1]), 3),
        "pattern_entropy": round(float(history.pattern_entropy[-1]), 3),
        "operation_entropy": round(float(history.operation_entropy[-1]), 3),
        "train_loss": round(float(history.train_loss[-1]), 4),
        "seconds": round(time.time() - started),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        **pulls,
        **_moves(history),
        "evidence": json.dumps(_scores(trainer), separators=(",", ":")),
    }


def gradients_dints(
    problem: Problem, seed: int, settings: dict[str, Any], *, points: Sequence[int], batches: int, schedule: int
) -> Iterator[dict[str, Any]]:
    """Mean gradients of L_seg on x and alpha at their start, for weights that were trained for so many steps.

    Args:
        problem: data and configuration.
        seed: of weights and data.
        settings: of the search.
        points: steps of the weights, rising.
        batches: of the architecture's half, half of which make up each of two means.
        schedule: steps that the learning rate of the weights is for.
    """
    started = time.process_time()
    each = settings["num_iterations_per_epoch"]
    with quietly():
        trainer = problem.trainer(
            DiNTSProbe, {**settings, "seed": seed, "num_epochs": max(2, -(-schedule // each))}, "dints"
        )
        trainer.initialize()
        trainer.on_train_start()
        seed_everything(seed)
        trainer.network.train()
        trainer._step, trainer._drawn = 0, []
    for point in points:
        while trainer._step < point:
            trainer.train_step(next(trainer.dataloader_train))
        trainer.train_only(weights=False)
        found = []
        for _ in range(batches):
            loss = trainer.loss_of(next(trainer.dataloader_architecture))
            gradients = torch.autograd.grad(loss, trainer.network.architecture_parameters())
            found.append([gradient.flatten().numpy() for gradient in gradients])
        row: dict[str, Any] = {"steps": point, "batches": batches}
        for name, drawn in zip(("alpha", "x"), zip(*found, strict=True), strict=True):
            all_of_them = np.stack(drawn)
            row[f"{name}_noise"] = float(f"{np.sqrt(all_of_them.var(0, ddof=1).mean()):.4g}")
            for half, part in (("first", all_of_them[::2]), ("second", all_of_them[1::2])):
                row[f"{name}_{half}"] = " ".join(f"{value:.4g}" for value in part.mean(0))
        yield row | {"cpu_seconds": round(time.process_time() - started, 1)}


def judged(
    problem: Problem, seed: int, settings: dict[str, Any], *, kind: str, number: int, batches: int
) -> Callable[[Topology], float]:
    """How a search would score topologies: with shared weights after so many steps, or after so long a race.

    Args:
        problem: data and configuration.
        seed: of weights and data.
        settings: of the search.
        kind: `samples` and `mixture`, what weights are trained on, or `race`.
        number: steps of the weights, or iterations of the race.
        batches: of the architecture's half, that losses are means over.
    """
    each = settings["num_iterations_per_epoch"]
    own = {"seed": seed, "scoring_batches": batches, "selection": "evidence", "num_epochs": max(2, -(-number // each))}
    own |= {"race_iterations": number} if kind == "race" else {"weights_on": kind}
    with quietly():
        trainer = problem.trainer(DiNTSProbe, settings | own, "dints")
        trainer.initialize()
        trainer.on_train_start()
        seed_everything(seed)
        trainer.network.train()
        trainer._step = 0
        for step in range(0 if kind == "race" else number):
            if step % each == 0:
                trainer._drawn = trainer.draw_topologies(step // each)
            trainer.train_step(next(trainer.dataloader_train))
        judge = Judge(trainer)
        judge.training, judge.judging = trainer.judging_loaders()
        judge._seed("batches")
        judge.batches = [next(judge.judging) for _ in range(batches)]
    return judge.trained_loss if kind == "race" else judge.shared_loss


class CellsProbe(Probe, nnUNetTrainerIACLTHSearch):
    """Alpha and beta start at constants in every search."""


def backbone_checkpoint(problem: Problem, folder: Path, *, iterations: int) -> Path:
    """One trained backbone, the same for all searches."""
    path = folder / "backbone.pth"
    trainer, _ = train(problem, None, seed=0, iterations=iterations)
    trainer.disable_checkpointing = False
    with quietly():
        trainer.save_checkpoint(str(path))
    return path


def search_cells(problem: Problem, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One search for cells; what is recorded of it."""
    started = time.process_time()
    with quietly():
        trainer = problem.trainer(CellsProbe, {**settings, "seed": seed}, "iac_lth")
        trainer.run_training()
    history = trainer.history
    before = history.probabilities[np.flatnonzero(history.operations_left == history.operations_left[0])[-1]]
    return {
        "genotype": json.dumps(trainer.genotype().to_json(), separators=(",", ":")),
        "epochs": len(history),
        "largest_p_before_pruning": round(float(before.max()), 5),
        "smallest_p_before_pruning": round(float(before.min()), 5),
        "train_loss": round(float(history.train_loss[-1]), 4),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def _moves(history: TopologyHistory) -> dict[str, str]:
    """x, and log softmax(alpha) less its mean over operations, after each quarter of the architecture's epochs.

    Both less what they were before the first of them.
    """
    first = int(history.warmup.sum())
    # A search without an epoch of its own for the weights has no record of its start.
    if first == 0 or first == len(history):
        return {"x_moves": "", "alpha_moves": ""}
    alpha = np.log(np.maximum(history.operations, 1e-12))
    alpha -= alpha.mean(-1, keepdims=True)
    ends = [first - 1 + (quarter + 1) * (len(history) - first) // 4 for quarter in range(4)]
    return {
        f"{name}_moves": json.dumps(
            [[round(float(value), 3) for value in (values[end] - values[first - 1]).ravel()] for end in ends],
            separators=(",", ":"),
        )
        for name, values in (("x", history.edge_logits), ("alpha", alpha))
    }


def _scores(trainer: DiNTSProbe) -> dict[str, Any]:
    """Losses of the candidates by number, with shared weights and after a short training; nothing without evidence."""
    if trainer.settings.selection == "argmax":
        return {}
    evidence = trainer.judge.evidence
    return {
        name: {str(number): round(loss, 4) for number, loss in losses.items()}
        for name, losses in (("shared", evidence.shared), ("trained", evidence.trained))
    }


def prepared(problem: Problem, settings: dict[str, Any]) -> tuple[DiNTSProbe, RelaxedTopology]:
    """A search before its first step, and the uniform distribution of its topologies."""
    with quietly():
        trainer = problem.trainer(DiNTSProbe, settings, "dints")
        trainer.initialize()
    return trainer, RelaxedTopology.uniform(settings["num_layers"], trainer.space.names, trainer.memory)


class ShortTrainer(nnUNetTrainerNoDA):
    """nnU-Net's trainer without augmentation; nothing is kept on the disk."""

    def initialize(self) -> None:
        """Without checkpoints."""
        self.disable_checkpointing = True
        super().initialize()

    def plot_network_architecture(self) -> None:
        """No picture."""


def train(
    problem: Problem, architecture: dict[str, Any] | None, *, seed: int, iterations: int
) -> tuple[nnUNetTrainer, list[float]]:
    """nnU-Net's training of an architecture, or of the configuration's own; batches depend on the seed alone.

    With the mean training loss of each of its epochs.
    """
    own = deepcopy(problem)
    if architecture is not None:
        own.plans["configurations"][CONFIGURATION]["architecture"] = architecture
    with quietly():
        trainer = own.trainer(ShortTrainer)
        # nnU-Net lowers the learning rate once per epoch.
        trainer.num_epochs = min(iterations, 50)
        seed_everything(seed)
        trainer.initialize()
        trainer.on_train_start()
        seed_everything(seed)
        done, losses = 0, []
        for epoch in range(trainer.num_epochs):
            trainer.current_epoch = epoch
            trainer.network.train()
            trainer.lr_scheduler.step(epoch)
            until = round((epoch + 1) * iterations / trainer.num_epochs)
            steps = [trainer.train_step(next(trainer.dataloader_train))["loss"] for _ in range(until - done)]
            losses.append(float(np.mean(steps)))
            done = until
    return trainer, losses


def trained_dice(
    problem: Problem, architecture: dict[str, Any] | None, hold_out: HoldOut, *, seed: int, iterations: int
) -> dict[str, Any]:
    """What a training came to: mean Dice of the hold-out cases and of each, and training losses."""
    started = time.process_time()
    trainer, losses = train(problem, architecture, seed=seed, iterations=iterations)
    dice = hold_out.dice(trainer.network)
    return {
        "dice": round(float(np.nanmean(dice)), 5),
        "cpu_seconds": round(time.process_time() - started, 1),
        "cases": " ".join(f"{score:.4f}" for score in dice),
        "losses": " ".join(f"{loss:.4f}" for loss in losses),
    }


class HoldOut:
    """Parts of the images that no search and no training sees: the centre of each, as patches."""

    def __init__(self, problem: Problem) -> None:
        raw = Path(os.environ["nnUNet_raw"]) / problem.plans["dataset_name"]
        plans = PlansManager(problem.plans)
        configuration = plans.get_configuration(CONFIGURATION)
        preprocessor = configuration.preprocessor_class(verbose=False)
        self.patch, ending = tuple(configuration.patch_size), problem.dataset_json["file_ending"]
        self.images, self.labels = [], []
        for label in sorted((raw / "labelsTs").glob(f"*{ending}")):
            pattern = f"{label.name.removesuffix(ending)}_[0-9][0-9][0-9][0-9]{ending}"
            files = [str(path) for path in sorted((raw / "imagesTs").glob(pattern))]
            with quietly():
                image, target, _ = preprocessor.run_case(files, str(label), plans, configuration, problem.dataset_json)
            self.images.append(torch.from_numpy(self._patches(image)))
            self.labels.append(self._patches(target)[:, 0])

    def _patches(self, image: np.ndarray) -> np.ndarray:
        """Of a volume its centre, or in 2-D that of every third slice, of a picture four patches around its centre.

        Args:
            image: (c, z, y, x).

        Returns:
            (b, c, *patch).
        """
        if len(self.patch) == 3:
            return centre_patch(image, self.patch)[None]
        if image.shape[1] > 1:
            slices = range(image.shape[1] // 6, image.shape[1], 3)
            return np.stack([centre_patch(image[:, number], self.patch) for number in slices])
        height, width = self.patch
        whole = centre_patch(image[:, 0], (2 * height, 2 * width))
        parts = whole.reshape(len(whole), 2, height, 2, width).transpose(1, 3, 0, 2, 4)
        return np.ascontiguousarray(parts.reshape(4, len(whole), height, width))

    @torch.inference_mode()
    def dice(self, network: torch.nn.Module) -> list[float]:
        """Mean foreground Dice of every case."""
        network.decoder.deep_supervision = False
        network.eval()
        cases = zip(self.images, self.labels, strict=True)
        return [_dice(network(image).argmax(1).numpy(), label) for image, label in cases]


def _dice(predicted: np.ndarray, label: np.ndarray) -> float:
    pairs = [(predicted == number, label == number) for number in range(1, int(label.max()) + 1)]
    scores = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs if b.any()]
    return float(np.mean(scores)) if scores else float("nan")
