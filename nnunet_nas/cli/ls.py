"""Lists preprocessed data sets, their plans files and configurations.

Without -d, one line per configuration: the configuration that it was derived from, the search method that made it, and
whether it still fits its base. With -d, one data set with patch size, batch size, features per stage and whether its
images are preprocessed. A broken plans file is named in the list; with -d it is an error (exit code 4).

examples:
  nnunet_nas ls
  nnunet_nas ls -d 4
  nnunet_nas ls -d Dataset004_Hippocampus --json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from nnunet_nas import commands
from nnunet_nas.cli.common import format_table
from nnunet_nas.environment import dataset_names, dataset_number, find_preprocessed_dataset, folder_from_environment
from nnunet_nas.errors import DataProblem, NasError
from nnunet_nas.files import read_json
from nnunet_nas.methods import result_trainer
from nnunet_nas.plans import Plans

SUMMARY = "list preprocessed data sets, plans and configurations"

# What nnU-Net keeps beside the plans; the fingerprint can be large and is not worth parsing to find that out.
_NOT_PLANS = ("dataset.json", "dataset_fingerprint.json", "splits_final.json")
_FACTS = ("base", "method", "stale", "problem", "preprocessed", "patch_size", "batch_size", "features_per_stage")
_HEADER = ("data set", "plans", "configuration", "base", "method", "state")
_DETAILED_HEADER = (*_HEADER, "preprocessed", "patch size", "batch size", "features per stage")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ls`."""
    parser.add_argument("-d", metavar="DATASET", help="show one data set, by number or name, in detail")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the list; with -d raises the first problem that a plans file of the data set has."""
    if args.d is None:
        root = folder_from_environment("nnUNet_preprocessed")
        folders = [root / name for name in dataset_names(root)]
    else:
        folders = [find_preprocessed_dataset(args.d)]
    datasets = [_describe_dataset(folder) for folder in folders]
    if args.json:
        print(json.dumps({"datasets": datasets}, indent=4))
    elif datasets:
        header = _HEADER if args.d is None else _DETAILED_HEADER
        rows = [row[: len(header)] for dataset in datasets for row in _rows(dataset)]
        print(format_table(header, rows, left=len(header)))
    files = [plans for dataset in datasets for plans in dataset["plans"]]
    entries = [(plans, entry) for plans in files for entry in plans["configurations"]]
    problems = [item["problem"] for item in (*files, *(entry for _, entry in entries)) if item["problem"]]
    if args.d is not None and problems:
        raise DataProblem(problems[0])
    if not args.json:
        for problem in problems:
            print(f"problem: {problem}", file=sys.stderr)
        for plans, entry in entries:
            if entry["stale"]:
                reason = f"{plans['file']}: {entry['name']}: {entry['stale']}"
                print(f"stale: {reason}; do not train it, run its search again", file=sys.stderr)
        print(f"next: {_next_command(datasets, entries, in_detail=args.d is not None)}", file=sys.stderr)
    return 0


def _describe_dataset(folder: Path) -> dict[str, Any]:
    """One preprocessed data set as plain JSON: its plans files, each with its configurations or its problem."""
    paths = sorted(path for path in folder.glob("*.json") if path.name not in _NOT_PLANS)
    return {
        "name": folder.name,
        "number": dataset_number(folder.name),
        "folder": str(folder),
        "plans": [plans for path in paths if (plans := _describe_plans(path)) is not None],
    }


def _describe_plans(path: Path) -> dict[str, Any] | None:
    """A plans file, or None if it is JSON of another kind. What cannot be parsed may have been plans: it is shown."""
    description: dict[str, Any] = {"name": path.stem, "file": str(path), "problem": None, "configurations": []}
    try:
        content = read_json(path, "restore it, or plan again with nnUNetv2_plan_experiment")
        if not isinstance(content, dict) or "configurations" not in content:
            return None
        plans = Plans.checked(content, path)
    except NasError as error:
        return {**description, "problem": str(error)}
    return {**description, "configurations": [_describe_configuration(plans, name) for name in plans.configurations]}


def _describe_configuration(plans: Plans, name: str) -> dict[str, Any]:
    description: dict[str, Any] = {"name": name, **dict.fromkeys(_FACTS)}
    try:
        description["base"] = plans.configurations[name].get("inherits_from")
        description["method"] = plans.method(name)
        description["stale"] = plans.staleness(name)
        configuration = plans.resolve(name)
        description["preprocessed"] = (plans.path.parent / configuration["data_identifier"]).is_dir()
        description["patch_size"] = configuration["patch_size"]
        description["batch_size"] = configuration["batch_size"]
        # A network without this keyword is fine for nnU-Net, so it is no problem here.
        description["features_per_stage"] = configuration["architecture"]["arch_kwargs"].get("features_per_stage")
    except NasError as error:
        description["problem"] = f"{plans.path}: {error}"
    except (KeyError, TypeError, AttributeError) as error:
        detail = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        description["problem"] = f"{plans.path}: configuration {name} is not one of nnU-Net v2 ({detail}): plan again"
    return description


def _rows(dataset: dict[str, Any]) -> list[list[str]]:
    rows = []
    for plans in dataset["plans"]:
        broken = {"name": "-", **dict.fromkeys(_FACTS), "problem": plans["problem"]}
        entries = [broken] if plans["problem"] else plans["configurations"]
        rows += [[dataset["name"], plans["name"], *_cells(entry)] for entry in entries]
    return rows or [[dataset["name"], "none", *["-"] * 8]]


def _cells(entry: dict[str, Any]) -> list[str]:
    return [
        entry["name"],
        entry["base"] or "-",
        entry["method"] or "-",
        "broken" if entry["problem"] else "stale" if entry["stale"] else "ok",
        {True: "yes", False: "no", None: "-"}[entry["preprocessed"]],
        _series(entry["patch_size"], "x"),
        _series(entry["batch_size"], " "),
        _series(entry["features_per_stage"], " "),
    ]


def _series(value: Any, separator: str) -> str:
    if value is None:
        return "-"
    return separator.join(str(item) for item in value) if isinstance(value, list) else str(value)


def _next_command(
    datasets: list[dict[str, Any]], entries: list[tuple[dict[str, Any], dict[str, Any]]], *, in_detail: bool
) -> str:
    """What a user who has seen the list does next: look closer, search, or train what was found."""
    if not datasets:
        return commands.plan("DATASET")
    number = datasets[0]["number"]
    if not in_detail:
        return commands.ours("ls", number)
    if not entries:
        return commands.plan(number)
    for plans, entry in reversed(entries):
        if entry["method"] and not entry["stale"]:
            return commands.train(number, entry["name"], plans=plans["name"], trainer=result_trainer(entry["method"]))
    plans, entry = entries[0]
    return commands.ours("select_tiny", number, entry["name"], plans=plans["name"])
