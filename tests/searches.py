"""Searches in this process: settings in the plans, trainers as nnU-Net constructs them, kills, refusals."""

import json
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def read_plans(dataset, name="nnUNetPlans"):
    return json.loads((dataset / f"{name}.json").read_text())


def set_settings(dataset, configuration, method, plans="nnUNetPlans", **values):
    """Writes `nas_settings` as `set_search` does."""
    content = read_plans(dataset, plans)
    entry = content["configurations"][configuration].setdefault("nas_settings", {}).setdefault(method, {})
    entry.update(values)
    (dataset / f"{plans}.json").write_text(json.dumps(content, indent=4))


def make_trainer(cls, dataset, configuration="2d", fold=0, *, resume=False, plans="nnUNetPlans", device="cpu"):
    """A trainer as `nnUNetv2_train` constructs it."""
    content = read_plans(dataset, plans)
    content["continue_training"] = resume
    dataset_json = json.loads((dataset / "dataset.json").read_text())
    return cls(content, configuration, fold, dataset_json, torch.device(device))


def search(trainer_class, dataset, *, stop_before=None, **options):
    """Runs a search, or stops it before an epoch as a kill would: nothing more is written."""
    trainer = make_trainer(trainer_class, dataset, **options)
    if options.get("resume"):
        folder = Path(trainer.output_folder)
        final, latest = folder / "checkpoint_final.pth", folder / "checkpoint_latest.pth"
        trainer.load_checkpoint(str(final if final.exists() else latest))
    if stop_before is not None:
        start = trainer.on_epoch_start

        def on_epoch_start():
            if trainer.current_epoch == stop_before:
                raise KeyboardInterrupt
            start()

        trainer.on_epoch_start = on_epoch_start
        with pytest.raises(KeyboardInterrupt):
            trainer.run_training()
    else:
        trainer.run_training()
    return trainer


def kill_in(trainer, method):
    """Runs a search until it calls one of its methods, which never begins."""

    def die(self):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer), method, die)
        with pytest.raises(KeyboardInterrupt):
            trainer.run_training()


def poison(trainer, epoch):
    """Makes images of an epoch not a number, and with them the loss."""
    step = trainer.train_step

    def poisoned(batch):
        if trainer.current_epoch == epoch:
            batch["data"][:] = float("nan")
        return step(batch)

    trainer.train_step = poisoned


def leave_out_pictures(patch, module, *names):
    """Pictures take longer than these searches; the tests that look at the records draw them."""
    for name in names:
        patch.setattr(f"{module}.{name}", lambda *args, **kwargs: None)
    patch.setattr("nnunetv2.training.logging.nnunet_logger.LocalLogger.plot_progress_png", lambda *args: None)


def use_regions_and_an_ignore_label(dataset):
    """In the description of the data set, and where nnU-Net looks for annotated voxels of `2d`."""
    description = json.loads((dataset / "dataset.json").read_text())
    description["labels"] = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    description["regions_class_order"] = [1, 2]
    (dataset / "dataset.json").write_text(json.dumps(description))
    for file in (dataset / "nnUNetPlans_2d").glob("*.pkl"):
        properties = pickle.loads(file.read_bytes())
        properties["class_locations"][-1, 0, 1, 2] = properties["class_locations"][1]
        file.write_bytes(pickle.dumps(properties))


def start_two_processes(trainer_class, dataset, folder, *options):
    """Starts a search of `2d` in two processes that talk to each other; see `two_processes`."""
    # nnU-Net's processes write the split both, and one may read the other's half of it.
    make_trainer(nnUNetTrainer, dataset).do_split()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    script, outputs = Path(__file__).with_name("two_processes.py"), [folder / "rank_0.pt", folder / "rank_1.pt"]
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), port, trainer_class.__name__, dataset, output, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, output in enumerate(outputs)
    ]
    return processes, outputs


def search_in_two_processes(trainer_class, dataset, folder):
    """Runs a search in two processes; returns what each had in the end."""
    processes, outputs = start_two_processes(trainer_class, dataset, folder)
    for process in processes:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed[-4000:]
    first, second = (torch.load(output) for output in outputs)
    assert first["batch_size"] + second["batch_size"] == 2
    assert len(first["batches"]) == len(second["batches"])
    assert not set(first["batches"]) & set(second["batches"])
    for key, value in first["network"].items():
        assert value.equal(second["network"][key]), key
    return first, second


def message(capsys):
    """The one line that a user sees."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nnunet_nas: ")]
    assert len(lines) == 1, lines
    return lines[0]


def refused(code, call, capsys):
    with pytest.raises(SystemExit) as stop:
        call()
    assert stop.value.code == code
    return message(capsys)
