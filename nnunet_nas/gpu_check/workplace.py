"""A synthetic data set in a folder of its own, planned and preprocessed by nnU-Net, for trainings of seconds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_nas import methods
from nnunet_nas.architecture import derive, network_spec
from nnunet_nas.environment import VARIABLES
from nnunet_nas.errors import EnvironmentProblem
from nnunet_nas.gpu_check.networks import GENOTYPE, encoder
from nnunet_nas.iac.genotype import cells_architecture
from nnunet_nas.methods import METHODS, part
from nnunet_nas.phantom import write_dataset
from nnunet_nas.plans import Plans, Provenance

_NUMBER = 998
_CASES = 6
# Pixels, batch size and most channels: what a card has to work at, and what a CPU does in seconds.
_LARGE, _SMALL = (256, 8, 128), (64, 2, 4)
_LOADING = "nnUNet_n_proc_DA"
_TRAINERS = "nnUNet_extTrainer"
_SHORT = {"num_epochs": 3, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
CELLS, STUDENT, ENCODER = "2d_cells", "2d_student", "2d_encoder"


@dataclass(frozen=True)
class Workplace:
    """nnU-Net's folders, with one data set.

    Attributes:
        dataset: folder of the preprocessed data set.
        device: to train on.
    """

    dataset: Path
    device: torch.device

    def content(self) -> dict[str, Any]:
        """Of the plans."""
        content: dict[str, Any] = json.loads((self.dataset / "nnUNetPlans.json").read_text())
        return content

    def write(self, content: dict[str, Any]) -> None:
        """New plans."""
        (self.dataset / "nnUNetPlans.json").write_text(json.dumps(content, indent=4))

    def trainer(self, trainer_class: type[Any], configuration: str) -> Any:
        """A trainer as `nnUNetv2_train` makes it."""
        content = {**self.content(), "continue_training": False}
        dataset_json = json.loads((self.dataset / "dataset.json").read_text())
        return trainer_class(content, configuration, 0, dataset_json, self.device)

    def command(self, *words: str) -> subprocess.Popen[str]:
        """Starts one of nnU-Net's commands; what it prints goes into one pipe."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        program = shutil.which(words[0], path=path)
        if program is None:
            raise EnvironmentProblem(f"{words[0]} is not on the PATH: install nnunetv2 into this environment")
        command = [program, *words[1:]]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], seconds: float = 600) -> None:
    """Waits for a command.

    Raises:
        EnvironmentProblem: it failed, or took longer, and was ended.
    """
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        name = Path(error.cmd[0]).name
        raise EnvironmentProblem(f"{name} was not done after {seconds:.0f} s, and was ended") from error
    if process.returncode:
        lines = [line for line in printed.splitlines() if line.strip()]
        raise EnvironmentProblem(f"exit code {process.returncode}: {lines[-1] if lines else 'no word'}")


@contextlib.contextmanager
def workplace(device: torch.device) -> Iterator[Workplace]:
    """Makes it, and removes it in the end."""
    with tempfile.TemporaryDirectory(prefix="nnunet_nas_gpu_check_") as root:
        variables = {name: str(Path(root) / name) for name in VARIABLES}
        trainers = str(Path(__file__).parents[1] / "ext_trainers")
        pixels = _size(device)[0]
        with _environment({**variables, _LOADING: "1", _TRAINERS: trainers, "nnUNet_compile": "f"}):
            for folder in variables.values():
                Path(folder).mkdir()
            made = write_dataset(
                Path(variables["nnUNet_raw"]),
                number=_NUMBER,
                num_train=_CASES,
                num_test=1,
                shape=(pixels, pixels),
                seed=0,
            )
            place = Workplace(Path(variables["nnUNet_preprocessed"]) / made.name, device)
            finish(
                place.command("nnUNetv2_plan_and_preprocess", "-d", str(_NUMBER), "-c", "2d", "-npfp", "1", "-np", "1")
            )
            # One process, which cannot fail elsewhere; nnU-Net's planning does not take 0.
            os.environ[_LOADING] = "0"
            _furnish(place)
            yield place


def _size(device: torch.device) -> tuple[int, int, int]:
    return _SMALL if device.type == "cpu" else _LARGE


@contextlib.contextmanager
def _environment(changed: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _furnish(place: Workplace) -> None:
    """A small batch, short trainings, a backbone, and configurations of every method."""
    content = place.content()
    base = content["configurations"]["2d"]
    _, base["batch_size"], most = _size(place.device)
    kwargs = base["architecture"]["arch_kwargs"]
    kwargs["features_per_stage"] = [min(features, most) for features in kwargs["features_per_stage"]]
    base["nas_settings"] = _settings()
    place.write(content)
    backbone = place.trainer(nnUNetTrainer, "2d")
    backbone.initialize()
    for key in ("train_losses", "val_losses", "mean_fg_dice"):
        backbone.logger.log(key, 0.5, 0)
    backbone.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    backbone.save_checkpoint(str(Path(backbone.output_folder) / "checkpoint_final.pth"))
    shutil.copy(place.dataset / "nnUNetPlans.json", Path(backbone.output_folder).parent / "plans.json")
    content["configurations"] |= _derived(place)
    place.write(content)


def _settings() -> dict[str, Any]:
    """Of seconds, for every trainer."""
    settings: dict[str, dict[str, Any]] = {method.name: dict(_SHORT) for method in METHODS.values() if method.trainer}
    settings[methods.IAC] |= {"warmup_epochs": 1, "trial_iterations": 0}
    settings[methods.IAC_LTH] |= {"warmup_epochs": 1, "trial_iterations": 0}
    settings[methods.RETROFIT] |= {"init": "random"}
    settings[methods.DINTS] |= {"num_layers": 2, "features": 4, "search_features": 2}
    return settings


def _derived(place: Workplace) -> dict[str, Any]:
    plans = Plans(place.content(), place.dataset / "nnUNetPlans.json")
    spec = network_spec(plans, "2d", json.loads((place.dataset / "dataset.json").read_text()))
    kwargs = spec.architecture["arch_kwargs"]
    stages = len(kwargs["features_per_stage"])
    cells = cells_architecture(
        spec.architecture, GENOTYPE, widths=[8] * (stages - 1), norm="backbone", residual=True
    )  # fmt: skip
    origin = Provenance(methods.IAC_LTH, plans.digest("2d"), {}, [0], fold=0)
    narrow = spec.with_features([8] * stages).architecture
    found = {
        CELLS: (cells, origin),
        STUDENT: (narrow, replace(origin, method=methods.XTINY, fold=None)),
        ENCODER: (encoder(spec.architecture, "efficientnetv2_s"), replace(origin, method=methods.ENCODER, fold=None)),
    }
    return {
        name: derive(name, "2d", replace(spec, architecture=architecture), provenance).entry()
        for name, (architecture, provenance) in found.items()
    }


def trainers() -> dict[str, tuple[type[Any], str]]:
    """Every trainer of ours, and the configuration that it trains here."""
    configurations = {methods.RETROFIT: CELLS, methods.DISTILL: STUDENT, methods.SCHEDULE: STUDENT}
    return {
        name: (part(method.trainer), configurations.get(name, "2d"))
        for name, method in METHODS.items()
        if method.trainer
    }
