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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_nas import commands
from nnunet_nas.cli.common import format_table
from nnunet_nas.environment import dataset_names, dataset_number, find_preprocessed_dataset, folder_from_environment
from nnunet_nas.errors import DataProblem, NasError, printable
from nnunet_nas.files import read_json
from nnunet_nas.methods import METHODS, has_control, part, result_trainer
from nnunet_nas.plans import Plans

SUMMARY = "list preprocessed data sets, plans and configurations"

# What nnU-Net keeps beside the plans; the fingerprint can be large and is not worth parsing to find that out.
_NOT_PLANS = ("dataset.json", "dataset_fingerprint.json", "splits_final.json")
_HEADER = ("data set", "plans", "configuration", "base", "method", "state")
_DETAILED_HEADER = (*_HEADER, "preprocessed", "patch size", "batch size", "features per stage")


@dataclass
class Configuration:
    """What is listed of a configuration; None where it does not say or cannot be read."""

    name: str
    base: str | None = None
    method: str | None = None
    stale: str | None = None
    remedy: str | None = None
    problem: str | None = None
    preprocessed: bool | None = None
    patch_size: list[int] | None = None
    batch_size: int | None = None
    features_per_stage: list[int] | None = None

    @property
    def cells(self) -> list[str]:
        """Its part of a row."""
        state = "broken" if self.problem else "stale" if self.stale else "ok"
        preprocessed = {True: "yes", False: "no", None: "-"}[self.preprocessed]
        sizes = [_series(self.patch_size, "x"), _series(self.batch_size, ""), _series(self.features_per_stage, " ")]
        return [self.name, self.base or "-", self.method or "-", state, preprocessed, *sizes]


@dataclass
class PlansFile:
    """A plans file with its configurations or its problem."""

    name: str
    file: str
    problem: str | None = None
    configurations: list[Configuration] = field(default_factory=list)


@dataclass
class DataSet:
    """A preprocessed data set with its plans files."""

    name: str
    number: int
    folder: str
    plans: list[PlansFile]

    @property
    def rows(self) -> list[list[str]]:
        """Of the table: one for each configuration, and one for what has none."""
        rows = []
        for plans in self.plans:
            listed = [Configuration("-", problem=plans.problem)] if plans.problem else plans.configurations
            rows += [[self.name, plans.name, *item.cells] for item in listed]
        return rows or [[self.name, "none", *["-"] * 8]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ls`."""
    parser.add_argument("-d", metavar="DATASET", help="show one data set, by number or name, in detail")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the list; with -d raises the first problem that a plans file of the data set has."""
    if args.d is None:
        root = folder_from_environment("nnUNet_preprocessed")
        datasets = [describe(root / name) for name in dataset_names(root)]
    else:
        datasets = [describe(find_preprocessed_dataset(args.d))]
    files = [plans for dataset in datasets for plans in dataset.plans]
    listed = [(plans, item) for plans in files for item in plans.configurations]
    items: list[PlansFile | Configuration] = [*files, *(item for _, item in listed)]
    problems = [item.problem for item in items if item.problem]
    if args.json:
        print(json.dumps({"datasets": [asdict(dataset) for dataset in datasets]}, indent=4))
    elif datasets:
        header = _HEADER if args.d is None else _DETAILED_HEADER
        rows = [row[: len(header)] for dataset in datasets for row in dataset.rows]
        print(format_table(header, rows, left=len(header)))
    if args.d is not None and problems:
        raise DataProblem(problems[0])
    if not args.json:
        for problem in problems:
            print(f"problem: {printable(problem)}", file=sys.stderr)
        for plans, item in listed:
            if item.stale:
                advice = f"do not train it: {item.remedy}"
                print(printable(f"stale: {plans.file}: {item.name}: {item.stale}; {advice}"), file=sys.stderr)
        for plans, item in listed if args.d is not None else []:
            if has_control(item.method) and item.base and not item.stale:
                control = commands.control(datasets[0].number, item.base, item.name, plans=plans.name)
                print(f"control: {control}", file=sys.stderr)
        print(f"next: {_next_command(datasets, listed, in_detail=args.d is not None)}", file=sys.stderr)
    return 0


def describe(folder: Path) -> DataSet:
    """One preprocessed data set."""
    found = (_plans_file(path) for path in sorted(folder.glob("*.json")) if path.name not in _NOT_PLANS)
    return DataSet(folder.name, dataset_number(folder.name), str(folder), [plans for plans in found if plans])


def _plans_file(path: Path) -> PlansFile | None:
    """A plans file, or None if it is JSON of another kind. What cannot be parsed may have been plans: it is shown."""
    described = PlansFile(path.stem, str(path))
    try:
        content = read_json(path, "restore it, or plan again with nnUNetv2_plan_experiment")
        if not isinstance(content, dict) or "configurations" not in content:
            return None
        plans = Plans.checked(content, path)
        described.configurations = [_configuration(plans, name) for name in plans.configurations]
    except NasError as error:
        described.problem = str(error)
    return described


def _configuration(plans: Plans, name: str) -> Configuration:
    described = Configuration(name)
    try:
        plans.ancestry(name)
        described.base = plans.configurations[name].get("inherits_from")
        described.method = plans.method(name)
        if plans.record(name) is None and plans.configurations[name].get("nas") is not None:
            raise TypeError("nas is no record")
        described.stale = plans.staleness(name)
        described.remedy = plans.remedy(name) if described.stale else None
        resolved = plans.resolve(name)
        described.preprocessed = (plans.path.parent / resolved["data_identifier"]).is_dir()
        described.patch_size, described.batch_size = resolved["patch_size"], resolved["batch_size"]
        # A network without this keyword is fine for nnU-Net, so it is no problem here.
        arguments = resolved["architecture"]["arch_kwargs"]
        described.features_per_stage = arguments.get("features_per_stage")
        _check_answer(described.method, name, arguments)
    except NasError as error:
        described.problem = f"{plans.path}: {error}"
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        detail = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        described.problem = f"{plans.path}: configuration {name} is not one of nnU-Net v2 ({detail}): plan again"
    return described


def _check_answer(method: str | None, name: str, arguments: dict[str, Any]) -> None:
    """Raises DataProblem for an answer of a search that was edited into an impossible one."""
    check = METHODS[method].check if method in METHODS else None
    if check is not None:
        try:
            part(check)(arguments)
        except DataProblem as error:
            raise DataProblem(f"configuration {name}: {error}") from error


def _series(value: Any, separator: str) -> str:
    if value is None:
        return "-"
    return separator.join(str(item) for item in value) if isinstance(value, list) else str(value)


def _next_command(datasets: list[DataSet], listed: list[tuple[PlansFile, Configuration]], *, in_detail: bool) -> str:
    """What a user who has seen the list does next: look closer, search, or train what was found."""
    if not datasets:
        return commands.plan("DATASET")
    number = datasets[0].number
    if not in_detail:
        return commands.ours("ls", number)
    if not listed:
        return commands.plan(number)
    for plans, item in reversed(listed):
        if item.method and not item.stale:
            return commands.train(number, item.name, plans=plans.name, trainer=result_trainer(item.method))
    plans, item = listed[0]
    return commands.ours("select_tiny", number, item.name, plans=plans.name)
