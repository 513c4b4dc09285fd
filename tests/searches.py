"""Searches in this process: settings in the plans, trainers as nnU-Net constructs them, kills, refusals."""

import json
from pathlib import Path

import pytest
import torch


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
