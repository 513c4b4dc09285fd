"""Prints what was trained and how it fared: Dice from nnU-Net's summary.json, parameters from `nnunet_nas info`."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from nnunet_nas.cli.common import format_table


def class_names(dataset_json: dict[str, Any]) -> dict[str, str]:
    """Names of what nnU-Net evaluates by its key in summary.json: `1` or, for regions, `(1, 2)`."""
    names = {}
    for name, value in dataset_json["labels"].items():
        key = str(tuple(value)) if isinstance(value, list) and len(value) > 1 else str(value).strip("[]")
        names[key] = name
    return names


def training_report(model: Path) -> dict[str, Any]:
    """What the trainer of the quickstart left: iterations and seconds."""
    report: dict[str, Any] = json.loads((model / "fold_0" / "quickstart.json").read_text())
    return report


def deadline(models: dict[str, Path]) -> str:
    """What the deadline made of the trainings."""
    reports = {name: training_report(model) for name, model in models.items()}
    allowed = {report["allowed_seconds"] for report in reports.values()}
    done = ", ".join(f"{report['iterations']:,} of {name}" for name, report in reports.items())
    seconds = " or ".join(str(value) for value in sorted(allowed))
    return f"Each training was given {seconds} s: iterations {done}; nnU-Net's default is 250,000."


def row(configuration: str, *, work: Path, model: Path, parameters: dict[str, int], names: dict[str, str]) -> list[str]:
    """One line of the table, in the order of `header`."""
    summary = json.loads((work / "predictions" / configuration / "summary.json").read_text())
    training = training_report(model)
    cells = [configuration, f"{parameters[configuration]:,}", str(training["iterations"])]
    cells.append(_dice(summary["foreground_mean"]))
    cells += [_dice(summary["mean"][key]) for key in summary["mean"] if key in names]
    cells.append(f"{training['iteration_seconds']:.0f}")
    cells += [(work / "steps" / f"{step}_{configuration}").read_text().strip() for step in ("train", "predict")]
    return cells


def header(summary: dict[str, Any], names: dict[str, str]) -> list[str]:
    """Column names."""
    classes = [names[key] for key in summary["mean"] if key in names]
    times = ["iterations s", "train s", "predict s"]
    return ["configuration", "parameters", "iterations", "Dice mean", *classes, *times]


def _dice(metrics: dict[str, Any]) -> str:
    value = metrics["Dice"]
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of this data set: predictions, steps, info.json, unseen.txt")
    parser.add_argument("results", type=Path, help="the data set's folder in nnUNet_results")
    parser.add_argument("configurations", nargs="+", help="the base first")
    args = parser.parse_args()
    models = {name: args.results / f"nnUNetTrainerQuickstart__nnUNetPlans__{name}" for name in args.configurations}
    base = args.configurations[0]
    names = class_names(json.loads((models[base] / "dataset.json").read_text()))
    counted = json.loads((args.work / "info.json").read_text())["configurations"]
    parameters = {entry["configuration"]: entry["parameters"] for entry in counted}
    summary = json.loads((args.work / "predictions" / base / "summary.json").read_text())
    rows = [
        row(name, work=args.work, model=models[name], parameters=parameters, names=names)
        for name in args.configurations
    ]
    print(format_table(header(summary, names), rows))
    print()
    for name in args.configurations[1:]:
        print(f"{name} has {parameters[base] / parameters[name]:,.0f} times fewer parameters than {base}.")
    print(deadline(models))
    print(f"Dice: mean over {(args.work / 'unseen.txt').read_text().strip()}, predicted without mirroring.")
    print("iterations s: the training iterations alone. train s, predict s: the whole commands, start-up included.")


if __name__ == "__main__":
    main()
