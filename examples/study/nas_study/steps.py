"""One step of a study, as a job runs it: nnU-Net's and our commands, gone on with where they were interrupted.

    python -m nas_study.steps plan --study study.json 101
    python -m nas_study.steps train --study study.json 101/2d/base/s0 0

Every step leaves a record when it is done, and a line that says why when it failed. A step that finds its work done
only writes the record, so that an interruption at any instant costs no finished training. Two steps that need the same
training (two rules that select the same width) wait for each other, and the second finds it done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nas_study import records
from nas_study.grid import BASE, CELL_SEARCHES, TRAINER, Cell, Study, derived, predicted, prepared, trained
from nnunet_nas.cli.ext_path import external_trainers_folder
from nnunet_nas.environment import find_dataset, find_preprocessed_dataset, folder_from_environment
from nnunet_nas.errors import DataProblem, EnvironmentProblem, NasError
from nnunet_nas.methods import METHODS, retrofit_trainer
from nnunet_nas.plans import Plans, Provenance

FINAL, LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"
_LOCKS = "locks"


class StepFailed(NasError):
    """A command of the step ended with an error."""


def run(words: Sequence[Any], log: Path, *, without: Sequence[str] = ()) -> str:
    """Runs a command to its end, with its output in a log; until then what it prints is in a file beside it.

    Args:
        words: of the command.
        log: file; what is in it stays.
        without: environment variables that the command is not to see.

    Returns:
        its standard output.

    Raises:
        StepFailed: it ended with an error; the last line that it said of it is in the message.
    """
    words = [str(word) for word in words]
    log.parent.mkdir(parents=True, exist_ok=True)
    own, others = str(external_trainers_folder()), os.environ.get("nnUNet_extTrainer")
    environment = {
        **{key: value for key, value in os.environ.items() if key not in without},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        "nnUNet_extTrainer": own if not others or own in others.split(os.pathsep) else f"{own}{os.pathsep}{others}",
    }
    printed = log.with_suffix(".out")
    with log.open("a") as file, printed.open("w") as output:
        file.write(f"$ {' '.join(words)}\n")
        file.flush()
        done = subprocess.run(words, stdout=output, stderr=file, env=environment, check=False)
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        answer = printed.read_text(errors="replace")
        file.write(answer)
    printed.unlink()
    if done.returncode:
        raise StepFailed(f"{words[0]} ended with {done.returncode}: {said[-1].strip()[:300]} (log: {log})")
    return answer


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Waits until no other step of the study works on the same thing."""
    folder = Path(_LOCKS)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name.replace('/', '_')}.lock"):
        yield


@contextlib.contextmanager
def one_gpu(study: Study) -> Iterator[None]:
    """Takes one of several GPUs of this machine for as long as the step runs; a cluster's scheduler has done so."""
    gpus = visible_gpus() if study.content["device"] == "cuda" and "SLURM_JOB_ID" not in os.environ else []
    if len(gpus) < 2:
        yield
        return
    Path(_LOCKS).mkdir(parents=True, exist_ok=True)
    while True:
        for gpu in gpus:
            lock = FileLock(Path(_LOCKS) / f"gpu_{gpu}.lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            before = os.environ.get("CUDA_VISIBLE_DEVICES")
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            try:
                yield
            finally:
                lock.release()
                os.environ.pop("CUDA_VISIBLE_DEVICES")
                if before is not None:
                    os.environ["CUDA_VISIBLE_DEVICES"] = before
            return
        time.sleep(5)


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them; all of the machine where it is unset."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    # The parts of a card that is divided (MIG) are listed below it.
    return [str(number) for number, _ in enumerate(re.findall(r"^GPU ", listed, re.MULTILINE))]


def plan(study: Study, dataset: int) -> dict[str, Any]:
    """Draws a phantom if the study asks for one, plans and preprocesses what is not there yet; asks for a hold-out."""
    log = Path(f"{dataset}/plan.log")
    phantom = (study.content["datasets"][str(dataset)] or {}).get("phantom")
    raw_root = folder_from_environment("nnUNet_raw")
    if phantom is not None and not list(raw_root.glob(f"Dataset{dataset:03d}_*")):
        options = [word for key, value in phantom.items() for word in (f"-{key}", value)]
        run(["nnunet_nas", "phantom", "-d", dataset, *options], log)
    raw = find_dataset("nnUNet_raw", str(dataset), "put the raw data there, in nnU-Net's format")
    _require_holdout(raw)
    wanted = study.configurations(dataset)
    processes = ["-np", os.environ.get("nnUNet_def_n_proc", "4")]
    plans_file = folder_from_environment("nnUNet_preprocessed") / raw.name / f"{study.content['plans']}.json"
    if not plans_file.exists() and study.content["plans"] == "nnUNetPlans":
        words = ["nnUNetv2_plan_and_preprocess", "-d", dataset, "-c", *wanted, *processes, "-npfp", processes[1]]
        # nnU-Net's planning cannot do without a process for augmentation.
        run(words, log, without=["nnUNet_n_proc_DA"])
    plans = Plans.read(plans_file)
    training_cases = int(plans.dataset_json["numTraining"])
    for name in wanted:
        folder = plans_file.parent / str(plans.resolve(name)["data_identifier"])
        if not folder.is_dir() or len(list(folder.glob("*.pkl"))) < training_cases:
            chosen = ["-plans_name", study.content["plans"], "-c", name]
            run(["nnUNetv2_preprocess", "-d", dataset, *chosen, *processes], log)
    return {"dataset": raw.name}


def _require_holdout(raw: Path) -> None:
    for name in ("imagesTs", "labelsTs"):
        if not (raw / name).is_dir() or not any((raw / name).iterdir()):
            raise DataProblem(
                f"{raw} has no {name}: a study judges on images that neither training nor selection has seen; move "
                f"some of imagesTr and labelsTr to imagesTs and labelsTs, then plan the data set again"
            )


def prepare(study: Study, cell: Cell) -> dict[str, Any]:
    """Puts the base's configuration of one seed into the study's own plans file."""
    from nnunet_nas.xtiny.widths import capped_features

    base = study.content["bases"][cell.base]
    dataset = find_preprocessed_dataset(str(cell.dataset))
    source = dataset / f"{study.content['plans']}.json"
    with Plans.edited(dataset / f"{study.plans}.json", source) as plans:
        entry = {"inherits_from": base["configuration"]}
        entry |= {key: base[key] for key in ("batch_size", "patch_size") if key in base}
        if "cap" in base:
            architecture = plans.resolve(base["configuration"])["architecture"]
            arguments = architecture["arch_kwargs"]
            arguments["features_per_stage"] = capped_features(arguments["features_per_stage"], base["cap"])
            entry["architecture"] = architecture
        _put(plans, cell.configuration, entry, "schedule", study.schedule(cell))
    return {"configuration": cell.configuration, "plans": study.plans}


def _put(plans: Plans, name: str, entry: dict[str, Any], method: str, settings: dict[str, Any]) -> None:
    """A configuration with settings; one that was trained otherwise is refused.

    Raises:
        DataProblem: it was trained with other settings.
    """
    present = plans.configurations.get(name)
    if present is None:
        plans.configurations[name] = entry
        plans.set(name, method, settings)
        return
    same = all(present.get(key) == value for key, value in entry.items())
    if same and present.get("nas_settings", {}).get(method) == settings:
        return
    results = folder_from_environment("nnUNet_results") / plans.path.parent.name
    trained_folders = sorted(results.glob(f"*__{plans.path.stem}__{name}")) if results.is_dir() else []
    if trained_folders:
        raise DataProblem(
            f"configuration {name} of {plans.path} was trained as the study's file said before: give the study another "
            f"name, or move {trained_folders[0]} away"
        )
    plans.configurations[name] = {**present, **entry}
    plans.set(name, method, settings)


def derive(study: Study, cell: Cell) -> dict[str, Any]:
    """Finds or makes a cell's configuration."""
    kind = study.kind(cell.method)
    found = _DERIVE[kind](study, cell)
    method = study.method(cell)
    if "distill" in method:
        found["configuration"] = _distilled(study, cell, found["configuration"])
    elif method.get("schedule") and study.trainer(cell) == TRAINER and kind != "control_of":
        schedule = {**study.schedule(cell), **method["schedule"]}
        found["configuration"] = _trained_otherwise(study, cell, found["configuration"], "schedule", schedule)
    # What only writes a configuration takes no time worth comparing; selections and searches know their own, of all
    # their attempts.
    return {"seconds": 0.0, "iterations": 0, **found, "trainer": study.trainer(cell)}


def _trained_otherwise(study: Study, cell: Cell, base: str, method: str, settings: dict[str, Any]) -> str:
    """A configuration of its own for a training of another length, or by another trainer."""
    name = f"{base}_{cell.method}"
    with _edited(study, cell) as plans:
        _put(plans, name, {"inherits_from": base}, method, settings)
    return name


def _distilled(study: Study, cell: Cell, base: str) -> str:
    """Trained beside the logits of the plain training of the cell's base, as long as without them."""
    method = study.method(cell)
    schedule = {**study.schedule(cell), **method.get("schedule", {})}
    teacher = {"teacher_configuration": cell.configuration, "teacher_trainer": TRAINER}
    return _trained_otherwise(study, cell, base, "distill", {**schedule, **teacher, **method["distill"]})


def _edited(study: Study, cell: Cell) -> Any:
    return Plans.edited(find_preprocessed_dataset(str(cell.dataset)) / f"{study.plans}.json")


def _plans(study: Study, cell: Cell) -> Plans:
    return Plans.of(find_preprocessed_dataset(str(cell.dataset)), study.plans)


def _done(path: str) -> dict[str, Any]:
    """The record of an earlier step.

    Raises:
        DataProblem: it is not there.
    """
    content = records.read(path)
    if content is None:
        raise DataProblem(f"{path} is missing: run the workflow, which makes it first")
    return content


def _base(study: Study, cell: Cell) -> dict[str, Any]:
    del study
    return {"configuration": cell.configuration}


def _width(study: Study, cell: Cell) -> dict[str, Any]:
    return {"configuration": _narrowed(study, cell, study.method(cell)["width"])}


def _narrowed(study: Study, cell: Cell, cap: int) -> str:
    """A base under a cap, by the name and with the content that a selection gives it."""
    from nnunet_nas.architecture import derive as derived_configuration
    from nnunet_nas.architecture import network_spec
    from nnunet_nas.xtiny.widths import candidate_name, capped_features

    plans, base = _plans(study, cell), cell.configuration
    spec = network_spec(plans, base)
    features = spec.architecture["arch_kwargs"]["features_per_stage"]
    if cap >= max(features):
        return base
    provenance = Provenance("xtiny", plans.digest(base), {"cap": cap, "rule": "given"})
    narrow = spec.with_features(capped_features(features, cap))
    plans.add([derived_configuration(candidate_name(base, cap), base, narrow, provenance)])
    return candidate_name(base, cap)


def _select(study: Study, cell: Cell) -> dict[str, Any]:
    wanted = study.method(cell)["select"]
    count = wanted.get("seeds", 5 if wanted.get("rule") == "spread" else 1)
    seeds = [cell.seed * count + number for number in range(count)]
    words = ["nnunet_nas", "select_tiny", "-d", cell.dataset, "-c", cell.configuration, "-p", study.plans]
    words += ["-device", study.content["device"], "-seed", *seeds, "--json"]
    wanted = {"rule": "paper", **wanted}
    options = {"rule": "-rule", "metric": "-metric", "images": "-n", "horizon": "-horizon", "budget": "-race_budget"}
    words += [word for key, option in options.items() if key in wanted for word in (option, wanted[key])]
    with alone(f"select_{cell.dataset}_{cell.configuration}"), one_gpu(study):
        report = json.loads(run(words, Path(cell.folder) / "derive.log"))
    # Only a race trains.
    iterations = sum(candidate.get("iterations", 0) for candidate in report["candidates"])
    spent = {"seconds": report["seconds"], "iterations": iterations}
    return {"configuration": report["selected"]["configuration"], "cap": report["selected"]["cap"], **spent}


def _search(study: Study, cell: Cell) -> dict[str, Any]:
    method = study.method(cell)
    name, fold = method["search"], study.folds[0]
    in_backbone = name in CELL_SEARCHES
    settings = {**method.get("settings", {}), "seed": cell.seed}
    with _edited(study, cell) as plans:
        if in_backbone:
            retrofit = {**method.get("retrofit", {}), "seed": cell.seed}
            plans.set(cell.configuration, name, {**settings, "backbone_trainer": TRAINER})
            plans.set(cell.configuration, "iac_retrofit", retrofit)
        else:
            _put(plans, cell.own_configuration, {"inherits_from": cell.configuration}, name, settings)
    searched = cell.configuration if in_backbone else cell.own_configuration
    trainer = str(METHODS[name].trainer_name)
    tag = "" if fold == 0 else f"_f{fold}"
    result = f"{searched}{METHODS[name].suffix}{settings.get('suffix', '')}{tag}"
    with alone(f"train_{cell.dataset}_{trainer}_{searched}_{fold}"), one_gpu(study):
        model = _model(study, cell, trainer, searched)
        folder = _train(study, cell, model, fold, lambda: result in _plans(study, cell).configurations)
    start = "_residual" if in_backbone and method.get("start", "residual") == "residual" else ""
    return {"configuration": result + start, "search_folder": str(folder), **_searched(folder, study, cell, searched)}


def _searched(folder: Path, study: Study, cell: Cell, searched: str) -> dict[str, Any]:
    """What a search took, by its own history, with the trial or the race that follows its epochs."""
    import numpy as np

    from nnunet_nas.methods import settings_class
    from nnunet_nas.settings import read_settings

    with np.load(folder / "search_history.npz") as history:
        seconds = history["seconds"]
    settings: Any = read_settings(settings_class(study.method(cell)["search"]), _plans(study, cell).resolve(searched))
    iterations = len(seconds) * settings.num_iterations_per_epoch + _iterations_after_epochs(settings)
    return {"seconds": float(np.nansum(seconds)) + _seconds_after_epochs(folder), "iterations": iterations}


def _iterations_after_epochs(settings: Any) -> int:
    """Of trainings by which a search judges what it has found, at most."""
    if getattr(settings, "selection", None) == "evidence":
        return int(settings.most_finalists * settings.race_iterations)
    return int(getattr(settings, "trial_iterations", 0))


def _seconds_after_epochs(folder: Path) -> float:
    """From a search's final checkpoint to the last line of its log."""
    ended = max((path.stat().st_mtime for path in folder.glob("training_log*.txt")), default=0.0)
    return max(0.0, ended - (folder / FINAL).stat().st_mtime)


def _skip(study: Study, cell: Cell) -> dict[str, Any]:
    module = study.method(cell)["skip"]
    words = ["nnunet_nas", "add_skip", "-d", cell.dataset, "-c", cell.configuration, "-p", study.plans, "-m", module]
    run(words, Path(cell.folder) / "derive.log")
    return {"configuration": f"{cell.configuration}_{module}"}


def _narrowed_to(study: Study, cell: Cell) -> dict[str, Any]:
    """The widest base that trains in no more memory than what another method found."""
    from nnunet_nas.architecture import network_spec
    from nnunet_nas.training_cost import training_memory
    from nnunet_nas.widths import largest
    from nnunet_nas.xtiny.widths import capped_features

    plans = _plans(study, cell)
    other = _done(derived(cell.of(study.method(cell)["narrowed_to"])))
    limit = training_memory(network_spec(plans, other["configuration"])).total
    spec = network_spec(plans, cell.configuration)
    features = spec.architecture["arch_kwargs"]["features_per_stage"]
    cap = largest(
        max(features), lambda cap: training_memory(spec.with_features(capped_features(features, cap))).total <= limit
    )
    return {"configuration": _narrowed(study, cell, cap), "cap": cap, "limit_mib": limit}


def _as_wide_as(study: Study, cell: Cell) -> dict[str, Any]:
    """The base, wider or narrower at all stages: as wide as the training memory of what another method found allows."""
    other = _done(derived(cell.of(study.method(cell)["as_wide_as"])))["configuration"]
    words = ["nnunet_nas", "add_width", "-d", cell.dataset, "-c", cell.configuration, "-p", study.plans, "-as", other]
    return {"configuration": json.loads(run([*words, "--json"], Path(cell.folder) / "derive.log"))["configuration"]}


def _random_of(study: Study, cell: Cell) -> dict[str, Any]:
    """A random answer in place of what another method found, by the cell's seed; trained as that is."""
    other = _done(derived(cell.of(study.method(cell)["random_of"])))["configuration"]
    words = ["nnunet_nas", "add_random", "-d", cell.dataset, "-c", other, "-p", study.plans, "-seed", cell.seed]
    return {"configuration": json.loads(run([*words, "--json"], Path(cell.folder) / "derive.log"))["configuration"]}


def _control(study: Study, cell: Cell) -> dict[str, Any]:
    """The base, trained on for as long as what it is the control of."""
    from nnunet_nas.schedule.settings import ScheduleSettings

    method = study.method(cell)
    own = study.schedule(cell) | method.get("schedule", {})
    per_epoch = own.get("num_iterations_per_epoch", ScheduleSettings.num_iterations_per_epoch)
    iterations = _further_iterations(study, cell)
    folder = _model(study, cell, TRAINER, cell.configuration)
    settings = {
        **own,
        "num_epochs": max(1, -(-iterations // per_epoch)),
        "initial_checkpoint": str(folder / "fold_{fold}" / FINAL),
    }
    with _edited(study, cell) as plans:
        _put(plans, cell.own_configuration, {"inherits_from": cell.configuration}, "schedule", settings)
    return {"configuration": cell.own_configuration}


def _further_iterations(study: Study, cell: Cell) -> int:
    """As many as the retrofit makes, or it and the search; or as many as the base makes in the time of both."""
    from nnunet_nas.methods import settings_class
    from nnunet_nas.settings import checked_values

    method = study.method(cell)
    other = cell.of(method["control_of"])
    theirs, wanted = study.method(other), method.get("as_long_as", "retrofit")

    def length(name: str, given: dict[str, Any]) -> int:
        settings = settings_class(name)(**checked_values(settings_class(name), given))
        return int(settings.num_epochs * settings.num_iterations_per_epoch) + _iterations_after_epochs(settings)

    retrofit = length("iac_retrofit", theirs.get("retrofit", {}))
    if wanted == "retrofit":
        return retrofit
    if wanted == "search_and_retrofit":
        return retrofit + length(theirs["search"], theirs.get("settings", {}))
    search, training, own = (
        _done(path) for path in (derived(other), trained(other, study.folds[0]), trained(cell.of(BASE), study.folds[0]))
    )
    per_iteration = own["seconds"] / own["iterations"]
    return max(1, round((search["seconds"] + training["seconds"]) / per_iteration))


def _transfer(study: Study, cell: Cell) -> dict[str, Any]:
    source = study.source(cell)
    found = _done(derived(source))
    words = ["nnunet_nas", "transfer", "-d", cell.dataset, "-c", cell.configuration, "-p", study.plans]
    words += ["-from", f"{source.dataset}:{found['configuration']}", "-from_plans", study.plans, "--json"]
    return {"configuration": json.loads(run(words, Path(cell.folder) / "derive.log"))["configuration"]}


_DERIVE: dict[str, Callable[[Study, Cell], dict[str, Any]]] = {
    BASE: _base,
    "width": _width,
    "select": _select,
    "search": _search,
    "skip": _skip,
    "narrowed_to": _narrowed_to,
    "as_wide_as": _as_wide_as,
    "random_of": _random_of,
    "control_of": _control,
    "transfer": _transfer,
}


def _model(study: Study, cell: Cell, trainer: str, configuration: str) -> Path:
    dataset = find_preprocessed_dataset(str(cell.dataset)).name
    return folder_from_environment("nnUNet_results") / dataset / f"{trainer}__{study.plans}__{configuration}"


def train(study: Study, cell: Cell, fold: int | str) -> dict[str, Any]:
    """Trains a cell's configuration on a fold."""
    from nnunet_nas.checkpoints import read_checkpoint

    found = _done(derived(cell))
    configuration, trainer = found["configuration"], found["trainer"]
    with alone(f"train_{cell.dataset}_{trainer}_{configuration}_{fold}"), one_gpu(study):
        model = _model(study, cell, trainer, configuration)
        summary = model / f"fold_{fold}" / "validation" / "summary.json"
        folder = _train(study, cell, model, fold, lambda: is_whole(summary))
    past = read_checkpoint(folder / FINAL, "train again", ["logging"])["logging"]
    times = zip(past["epoch_start_timestamps"], past["epoch_end_timestamps"], strict=False)
    iterations = len(past["epoch_end_timestamps"]) * _iterations_per_epoch(study, cell, configuration, trainer)
    return {"folder": str(folder), "seconds": float(sum(end - start for start, end in times)), "iterations": iterations}


def _iterations_per_epoch(study: Study, cell: Cell, configuration: str, trainer: str) -> int:
    from nnunet_nas.methods import settings_class
    from nnunet_nas.settings import read_settings

    name = next(name for name, method in METHODS.items() if trainer == method.trainer_name)
    settings: Any = read_settings(settings_class(name), _plans(study, cell).resolve(configuration))
    return int(settings.num_iterations_per_epoch)


def _train(study: Study, cell: Cell, model: Path, fold: int | str, is_complete: Callable[[], bool]) -> Path:
    """nnU-Net's training, from the start or from where it was; nothing if it is done.

    Args:
        study: that it belongs to.
        cell: likewise, where the log goes.
        model: folder of the results, `TRAINER__PLANS__CONFIGURATION`.
        fold: to train.
        is_complete: whether nothing is left to do beside the final checkpoint.
    """
    folder = model / f"fold_{fold}"
    if not ((folder / FINAL).exists() and is_complete()):
        trainer, plans, configuration = model.name.split("__")
        begun = any((folder / name).exists() for name in (FINAL, LATEST))
        words = ["nnUNetv2_train", cell.dataset, configuration, fold, "-p", plans, "-tr", trainer]
        words += ["-device", study.content["device"], *(["--c"] if begun else [])]
        run(words, Path(cell.folder) / f"{trainer}_{fold}.log")
    return folder


def predict(study: Study, cell: Cell) -> dict[str, Any]:
    """Predicts the hold-out with the cell's folds, evaluates it, and counts what the network costs."""
    from nnunet_nas.architecture import network_spec
    from nnunet_nas.complexity import complexity_of
    from nnunet_nas.training_cost import training_memory

    found = _done(derived(cell))
    raw = find_dataset("nnUNet_raw", str(cell.dataset), "put the raw data there")
    configuration, log = found["configuration"], Path(cell.folder) / "predict.log"
    output = Path(cell.folder) / "predictions" / configuration
    summary = output / "summary.json"
    started = time.time()
    if not is_whole(summary):
        drop_newest(output)
        words = ["nnUNetv2_predict", "-i", raw / "imagesTs", "-o", output, "-d", cell.dataset, "-c", configuration]
        words += ["-f", *study.folds, "-p", study.plans, "-tr", found["trainer"], "-device", study.content["device"]]
        words += ["-npp", "1", "-nps", "1", "--continue_prediction"]
        with one_gpu(study):
            run(words + ([] if study.content["mirroring"] else ["--disable_tta"]), log)
        files = ["-djfile", output / "dataset.json", "-pfile", output / "plans.json"]
        run(["nnUNetv2_evaluate_folder", raw / "labelsTs", output, *files, "-np", "1"], log)
    spec = network_spec(_plans(study, cell), configuration)
    return {
        "configuration": configuration,
        "summary": str(summary),
        "seconds": time.time() - started,
        **complexity_of(spec).to_json(),
        "to_train_mib": training_memory(spec, frozen=found["trainer"] == retrofit_trainer()).total,
    }


def is_whole(summary: Path) -> bool:
    """Whether an evaluation was written to its end; nnU-Net writes in place."""
    try:
        json.loads(summary.read_text())
    except (OSError, ValueError):
        return False
    return True


def drop_newest(folder: Path) -> None:
    """Removes the prediction that an attempt before may have been killed in; one process writes them in turn."""
    written = [path for path in folder.glob("*") if path.suffix != ".json"]
    if written:
        max(written, key=lambda path: path.stat().st_mtime_ns).unlink()


def record_of(step: str, what: str, fold: str | None) -> str:
    """The file that says that a step is done."""
    if step == "plan":
        return f"{what}/planned.json"
    cell = cell_of(what)
    known = {"prepare": prepared(cell), "derive": derived(cell), "predict": predicted(cell)}
    return trained(cell, fold or "") if step == "train" else known[step]


def cell_of(folder: str) -> Cell:
    """The cell of a folder below the study's."""
    dataset, base, method, seed = folder.split("/")
    return Cell(int(dataset), base, method, int(seed.removeprefix("s")))


def main() -> int:
    """Runs a step; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("plan", "prepare", "derive", "train", "predict"))
    parser.add_argument("what", help="data set, or folder of a cell")
    parser.add_argument("fold", nargs="?")
    parser.add_argument("--study", type=Path, required=True, help="JSON file of the study, as the workflow writes it")
    args = parser.parse_args()
    path = record_of(args.step, args.what, args.fold)
    records.begin(path)
    try:
        study = Study(json.loads(args.study.read_text()))
        if args.step == "plan":
            content = plan(study, int(args.what))
        elif args.step == "train":
            fold = int(args.fold) if args.fold.isdecimal() else args.fold
            content = train(study, cell_of(args.what), fold)
        else:
            content = {"prepare": prepare, "derive": derive, "predict": predict}[args.step](study, cell_of(args.what))
    except (NasError, OSError, KeyError, ValueError) as error:
        message = str(error) if isinstance(error, NasError) else f"{type(error).__name__}: {error}"
        records.fail(path, message)
        print(f"{args.step} {args.what}: {message}", file=sys.stderr)
        return error.exit_code if isinstance(error, NasError) else EnvironmentProblem.exit_code
    records.finish(path, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
