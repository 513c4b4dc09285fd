"""How nnU-Net's commands and our own are spelt: what a user is told to run next, word by word as a shell reads it.

An option at nnU-Net's default is left out, as its users leave it out.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from nnunet_nas.errors import printable

DEFAULT_PLANS = "nnUNetPlans"
STOCK_TRAINER = "nnUNetTrainer"


def plan(dataset: int | str) -> str:
    """The nnU-Net call that plans a data set and preprocesses it."""
    return _spelt("nnUNetv2_plan_and_preprocess", "-d", dataset)


def train(
    dataset: int | str,
    configuration: str,
    fold: int | str = 0,
    *,
    plans: str = DEFAULT_PLANS,
    trainer: str | None = None,
    switch: str = "",
) -> str:
    """The nnU-Net call that trains.

    Args:
        dataset: number or name.
        configuration: to train.
        fold: 0 to 4, or `all`.
        plans: plans identifier.
        trainer: class name; None for nnU-Net's own.
        switch: `--c` to go on, `--val` to validate only, or nothing.
    """
    switches = [switch] if switch else []
    return _spelt("nnUNetv2_train", dataset, configuration, fold, *_options(plans, trainer), *switches)


def predict(
    dataset: int | str,
    configuration: str,
    folds: str = "0",
    *,
    plans: str = DEFAULT_PLANS,
    trainer: str | None = None,
) -> str:
    """The nnU-Net call that predicts a folder of images; arguments as in `train`, `folds` separated by spaces."""
    words = ["-i", "INPUT_FOLDER", "-o", "OUTPUT_FOLDER", "-d", dataset, "-c", configuration, "-f", *folds.split()]
    return _spelt("nnUNetv2_predict", *words, *_options(plans, trainer))


def train_and_predict(
    dataset: int | str,
    configuration: str,
    fold: int | str = 0,
    *,
    plans: str = DEFAULT_PLANS,
    trainer: str | None = None,
) -> list[str]:
    """The two calls that train a configuration and predict with it; arguments as in `train`."""
    return [
        train(dataset, configuration, fold, plans=plans, trainer=trainer),
        predict(dataset, configuration, str(fold), plans=plans, trainer=trainer),
    ]


def evaluate(predictions: Path) -> str:
    """The nnU-Net call that evaluates a folder of predictions, with the files that nnU-Net puts there."""
    description, plans = predictions / "dataset.json", predictions / "plans.json"
    return _spelt("nnUNetv2_evaluate_folder", "LABELS_FOLDER", predictions, "-djfile", description, "-pfile", plans)


def compare(models: Sequence[str], *, labels: Path | None = None) -> str:
    """The call that compares folders of predictions, with all metrics and pictures."""
    reference = [] if labels is None else ["-ref", str(labels)]
    return _spelt("nnunet_nas", "compare", "-m", *models, *reference, "-metrics", "hd95", "nsd", "-o", "comparison")


def ours(
    command: str, dataset: int | str, configuration: str | None = None, *words: str, plans: str = DEFAULT_PLANS
) -> str:
    """A call of our own.

    Args:
        command: for example `select_tiny`.
        dataset: number or name.
        configuration: to work on; None where the command takes none.
        words: further options and values.
        plans: plans identifier.
    """
    chosen = [] if configuration is None else ["-c", configuration]
    return _spelt("nnunet_nas", command, "-d", dataset, *chosen, *_options(plans, None), *words)


def control(dataset: int | str, base: str, found: str, *, plans: str = DEFAULT_PLANS) -> str:
    """The call that adds what a found configuration has to beat: the base's network, as wide as its memory allows."""
    return ours("add_width", dataset, base, "-as", found, plans=plans)


def set_search(
    method: str,
    *assignments: str,
    dataset: int | str | None = None,
    configuration: str | None = None,
    plans: str = DEFAULT_PLANS,
) -> str:
    """The call that changes settings of a search; `...` stands for a data set and configuration that are not known."""
    if dataset is None or configuration is None:
        return " ".join(["nnunet_nas set_search ... -m", method, *assignments])
    return ours("set_search", dataset, configuration, "-m", method, *assignments, plans=plans)


def _options(plans: str, trainer: str | None) -> list[str]:
    chosen_plans = [] if plans == DEFAULT_PLANS else ["-p", plans]
    return chosen_plans + ([] if trainer in (None, STOCK_TRAINER) else ["-tr", str(trainer)])


def _spelt(*words: int | str | Path) -> str:
    return shlex.join(printable(str(word)) for word in words)
