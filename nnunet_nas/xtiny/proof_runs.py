"""nnU-Net's own commands, run to their end however often they were cut off: training, prediction, evaluation.

What is finished is not done again; a training goes on with `--c`. nnU-Net writes its files in place, so that a kill
leaves parts of files, which are recognised and put aside. A command that outlives a kill of its parent holds the lock
of its folder until it ends, and whoever comes next waits for it.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nnunet_nas import commands
from nnunet_nas.cases import files_digest
from nnunet_nas.description import read_description
from nnunet_nas.environment import dataset_number, external_trainers_folder, folder_from_environment
from nnunet_nas.errors import DataProblem, EnvironmentProblem, NasError
from nnunet_nas.evaluation.summaries import SUMMARY, Model, read_evaluated_folder, read_summary, read_trained_model
from nnunet_nas.files import read_json, replace_file

FINAL = "checkpoint_final.pth"
# In the order in which nnU-Net's --c looks for them.
_CHECKPOINTS = (FINAL, "checkpoint_latest.pth", "checkpoint_best.pth")
_RECORD = "predicted_by.json"
_SCHEDULE = {
    "num_epochs": int,
    "num_iterations_per_epoch": int,
    "num_val_iterations_per_epoch": int,
    "initial_lr": float,
}
Schedule = dict[str, float]


@dataclass(frozen=True)
class Trained:
    """What nnU-Net trains for one configuration.

    Attributes:
        dataset: its full name.
        plans: identifier.
        configuration: of these plans.
        trainer: class name.
    """

    dataset: str
    plans: str
    configuration: str
    trainer: str

    @property
    def name(self) -> str:
        """Of its folder in the data set's results."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def folder(self) -> Path:
        """The results of all folds."""
        return folder_from_environment("nnUNet_results") / self.dataset / self.name

    def fold(self, fold: str) -> Path:
        """The results of one fold."""
        return self.folder / f"fold_{fold}"

    def is_trained(self, fold: str) -> bool:
        """Whether the training of a fold has ended."""
        return zipfile.is_zipfile(self.fold(fold) / FINAL)

    def is_validated(self, fold: str) -> bool:
        """Whether nnU-Net's validation of a fold has ended."""
        return _is_summary(self.fold(fold) / "validation" / SUMMARY)

    def train_command(self, fold: str, switch: str = "") -> str:
        """The call that trains a fold."""
        return commands.train(
            dataset_number(self.dataset),
            self.configuration,
            fold,
            plans=self.plans,
            trainer=self.trainer,
            switch=switch,
        )

    def predict_command(self, folds: Sequence[str]) -> str:
        """The call that predicts a folder of images with all these folds."""
        return commands.predict(
            dataset_number(self.dataset), self.configuration, " ".join(folds), plans=self.plans, trainer=self.trainer
        )

    def schedule(self, fold: str) -> Schedule | None:
        """Length and rate of a fold's training, as nnU-Net noted them when it began; None if it did not."""
        with contextlib.suppress(NasError, KeyError, TypeError, ValueError):
            noted = read_json(self.fold(fold) / "debug.json", "")
            return {name: kind(noted[name]) for name, kind in _SCHEDULE.items()}
        return None

    def validation(self, folds: Sequence[str]) -> Model:
        """The validation cases of these folds."""
        return read_trained_model(self.folder, self.name, folds)


@dataclass(frozen=True)
class HoldOut:
    """Labelled images that nothing was trained on.

    Attributes:
        images: folder of the images.
        labels: folder of their labels.
        cases: names.
        ending: of the files.
    """

    images: Path
    labels: Path
    cases: Sequence[str]
    ending: str


def find_hold_out(dataset: str, ending: str) -> HoldOut | None:
    """`imagesTs` and `labelsTs` of a data set in `nnUNet_raw`; None where there are no labelled images.

    Raises:
        DataProblem: only some of the images have labels, or some labels no image.
    """
    raw = os.environ.get("nnUNet_raw")
    if not raw:
        return None
    images, labels = (Path(raw) / dataset / name for name in ("imagesTs", "labelsTs"))
    if not (images.is_dir() and labels.is_dir()):
        return None
    # Images end with the number of their channel: _0000.
    channel = len("_0000" + ending)
    cases = {path.name[:-channel] for path in images.iterdir() if path.name.endswith(ending)}
    labelled = {path.name[: -len(ending)] for path in labels.iterdir() if path.name.endswith(ending)}
    if not cases or not labelled:
        return None
    if cases != labelled:
        odd = sorted(cases ^ labelled)
        raise DataProblem(
            f"{images} and {labels} hold different cases ({len(odd)}, first {odd[0]}): complete them, or judge on "
            f"validation cases with -judge validation"
        )
    return HoldOut(images, labels, sorted(cases), ending)


@dataclass(frozen=True)
class Bench:
    """Runs nnU-Net's commands.

    Attributes:
        folder: of predictions and of what the commands print.
        device: as `-device` names it.
        processes: that predict and evaluate; None for nnU-Net's defaults.
        say: tells what is going on, a line each time.
        lock: a file that is locked while this program or a command that it started runs; None without locks.
    """

    folder: Path
    device: str
    processes: int | None
    say: Callable[[str], object]
    lock: IO[bytes] | None = None

    def train(self, model: Trained, fold: str, *, validate: bool) -> None:
        """Trains one fold, or what is left of it.

        Args:
            model: what to train.
            fold: 0 to 4, or `all`.
            validate: whether a validation that is missing is made up for.

        Raises:
            EnvironmentProblem: nnU-Net's command failed.
        """
        if model.is_trained(fold):
            if not validate or model.is_validated(fold):
                return
            switch, what = "--val", "validates"
        else:
            _put_broken_aside(model.fold(fold))
            begun = any((model.fold(fold) / name).exists() for name in _CHECKPOINTS)
            switch, what = ("--c", "goes on with") if begun else ("", "trains")
        self.say(f"{what} {model.configuration}, fold {fold}")
        command = shlex.split(model.train_command(fold, switch))
        self.run([*command, "-device", self.device], f"train_{model.name}_fold_{fold}")
        if not model.is_trained(fold) or (validate and not model.is_validated(fold)):
            raise EnvironmentProblem(
                f"{shlex.join(command)} ended without a result in {model.fold(fold)}: see what it printed in "
                f"{self.folder / 'logs'}"
            )

    def predict(self, model: Trained, folds: Sequence[str], hold_out: HoldOut) -> Model:
        """Predicts hold-out cases with an ensemble of folds, and evaluates them.

        Raises:
            EnvironmentProblem: nnU-Net's command failed.
        """
        target = self.folder / "predictions" / f"folds_{'_'.join(folds)}" / model.name
        self._start_anew_if_changed(target, model, folds, hold_out)
        if not _is_summary(target / SUMMARY):
            missing = set(hold_out.cases) - _whole_predictions(target, hold_out)
            if missing:
                self.say(f"predicts {len(missing)} hold-out case(s) with {model.configuration}")
                self._predict_into(target, model, folds, hold_out)
            description, plans = target / "dataset.json", target / "plans.json"
            words = ["nnUNetv2_evaluate_folder", hold_out.labels, target, "-djfile", description, "-pfile", plans]
            self.run([*map(str, words), *self._processes("-np")], f"evaluate_{model.name}")
        return read_evaluated_folder(target, model.name)

    def _predict_into(self, target: Path, model: Trained, folds: Sequence[str], hold_out: HoldOut) -> None:
        command = shlex.split(model.predict_command(folds))
        for option, value in (("-i", hold_out.images), ("-o", target)):
            command[command.index(option) + 1] = str(value)
        processes = self._processes("-npp") + self._processes("-nps")
        words = ["-device", self.device, "--continue_prediction", "--disable_progress_bar"]
        self.run([*command, *processes, *words], f"predict_{model.name}")

    def _start_anew_if_changed(self, target: Path, model: Trained, folds: Sequence[str], hold_out: HoldOut) -> None:
        """Predictions of other weights or of other files are none of this model."""
        files = [path for folder in (hold_out.images, hold_out.labels) for path in sorted(folder.iterdir())]
        made_of = {
            "weights": files_digest(model.fold(fold) / FINAL for fold in folds),
            "hold_out": files_digest(files),
        }
        record = target / _RECORD
        with contextlib.suppress(NasError):
            if read_json(record, "") == made_of:
                return
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        replace_file(record, json.dumps(made_of).encode())

    def _processes(self, option: str) -> list[str]:
        return [] if self.processes is None else [option, str(self.processes)]

    def run(self, words: Sequence[str], log: str) -> None:
        """Runs a command of nnU-Net's to its end; what it prints goes to a file.

        Raises:
            EnvironmentProblem: it is not installed, or failed.
        """
        path = self.folder / "logs" / f"{log}.log"
        path.parent.mkdir(exist_ok=True)
        kept = [] if self.lock is None else [self.lock.fileno()]
        with path.open("ab") as output:
            process = subprocess.Popen(
                [_program(words[0]), *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                pass_fds=kept,
            )
            try:
                code = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if code:
            raise EnvironmentProblem(
                f"{words[0]} ended with {code} ({_last_line(path)}): see {path}, mend the cause and run the same "
                f"command again"
            )


@contextlib.contextmanager
def after_others(path: Path, say: Callable[[str], object]) -> Iterator[IO[bytes] | None]:
    """A locked file that commands inherit, once what an earlier run has started and left behind has ended.

    Args:
        path: of the file.
        say: told when there is something to wait for.
    """
    if os.name == "nt":  # there commands do not inherit locks
        yield None
        return
    import fcntl

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waits for a command of nnU-Net's that an earlier run has started and that still runs")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _program(name: str) -> str:
    """Where a command of nnU-Net's is: beside this Python first."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if found is None:
        raise EnvironmentProblem(f"{name} is not installed beside {sys.executable}: install nnunetv2 there")
    return found


def _environment() -> dict[str, str]:
    """The user's variables, with our trainers among the external ones."""
    ours = str(external_trainers_folder())
    folders = [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if folder]
    known = [*folders, *([] if ours in folders else [ours])]
    return {**os.environ, "nnUNet_extTrainer": os.pathsep.join(known)}


def _put_broken_aside(folder: Path) -> None:
    """Checkpoints of which a kill left a part: `--c` would stumble over them."""
    for name in _CHECKPOINTS:
        path = folder / name
        if path.exists() and not zipfile.is_zipfile(path):
            path.replace(path.with_suffix(".broken"))


def _is_summary(path: Path) -> bool:
    """Whether an evaluation was written to its end."""
    try:
        return bool(read_summary(path, ""))
    except NasError:
        return False


def _whole_predictions(folder: Path, hold_out: HoldOut) -> set[str]:
    """Cases whose prediction was written to its end; others are removed, so that they are made again."""
    paths = {case: folder / f"{case}{hold_out.ending}" for case in hold_out.cases}
    there = {case: path for case, path in paths.items() if path.exists()}
    if not there:
        return set()
    reader = _reader(folder, hold_out)
    broken = {case for case, path in there.items() if not _is_whole(path, reader)}
    for case in broken:
        there[case].unlink()
    return set(there) - broken


def _reader(folder: Path, hold_out: HoldOut) -> Any:
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    example = hold_out.labels / f"{hold_out.cases[0]}{hold_out.ending}"
    mend = f"remove {folder} and run the same command again"
    description = read_description(folder / "dataset.json", mend, required=["file_ending"])
    return determine_reader_writer_from_dataset_json(description, str(example), verbose=False)()


def _is_whole(path: Path, reader: Any) -> bool:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                while file.read(2**20):
                    pass
        reader.read_seg(str(path))
    except Exception:  # noqa: BLE001 (every reader has its own)
        return False
    return True


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"
