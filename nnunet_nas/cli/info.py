"""Show what the configurations of a data set cost: parameters, MACs, activation memory, checkpoint size.

MACs are multiply-accumulates of one forward pass on one patch, FLOPs are twice that. Memory is of activations for one
patch in float32: alive at once in inference, kept for the backward pass in training. "MiB to train" is what a training
step holds at the planned batch with deep supervision in float32: activations, weights, gradients and momentum; behind
it, how many times that of nnU-Net's own network, from which the configuration was derived. Nothing is trained or
measured; everything is counted from the network that nnU-Net would build. Modules in the skips of a backbone stand
beside it: how many times its parameters, its MACs, and the MACs of its training step, where theirs is one with the
backbone frozen.

A second table says what searches and trainings will cost at most, before they start: those that the configurations have
settings for (nas_settings), or those of -m with their default settings. Counted are iterations, their MACs (forward and
backward passes of whole batches), and how many iterations of plain training, and default trainings, cost as much; what
is found for a frozen backbone is trained there, and the last column has both. Seconds are more than MACs say where
networks are narrow.

examples:
  nnunet_nas info -d 4
  nnunet_nas info -d 4 -c 2d 2d_xtiny8 --json
  nnunet_nas info -d 4 -c 3d_fullres -m dints
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from nnunet_nas import commands
from nnunet_nas.cli.common import add_dataset_arguments, format_table, quiet_output
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.errors import DataProblem, printable
from nnunet_nas.methods import (
    METHODS,
    has_control,
    result_trainer,
    retrofit_trainer,
    retrofitted,
    settings_class,
    with_cost,
)
from nnunet_nas.plans import Plans
from nnunet_nas.settings import read_settings

if TYPE_CHECKING:
    from nnunet_nas.architecture import NetworkSpec
    from nnunet_nas.complexity import Complexity

SUMMARY = "parameters, MACs and memory of configurations"
# Heading and cell of each column.
_COLUMNS = {
    "configuration": "{configuration}",
    "patch size": "{patch}",
    "parameters": "{parameters:,}",
    "MACs": "{giga_macs:.3f} G",
    "FLOPs": "{giga_flops:.3f} G",
    "inference MiB": "{inference_mib:.1f}",
    "training MiB": "{training_mib:.1f}",
    "MiB to train": "{to_train_mib}",
    "checkpoint MiB": "{checkpoint_mib:.2f}",
}
_PREDICTED = (
    "configuration", "method", "iterations", "MACs", "plain iterations", "default trainings", "with its retrofit",
)  # fmt: skip
_BESIDE = "parameters, MACs, training step beside the backbone"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options, in nnU-Net's spelling."""
    add_dataset_arguments(parser)
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="configurations (default: all of the plans)")
    parser.add_argument(
        "-m", nargs="+", default=[], choices=with_cost(), metavar="METHOD", help=f"predict: {', '.join(with_cost())}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Counts and prints."""
    plans = Plans.of(find_preprocessed_dataset(args.d), args.p)
    names = args.c or list(plans.configurations)
    for name in args.c or []:
        plans.resolve(name)
    with quiet_output():
        rows, problems = _count(plans, names, args.m, every_one_asked_for=args.c is not None)
    if args.json:
        print(json.dumps({"dataset": plans.path.parent.name, "plans": args.p, "configurations": rows}, indent=4))
    else:
        header = [*_COLUMNS, *([_BESIDE] if any("backbone" in row for row in rows) else [])]
        print(format_table(header, [_cells(row)[: len(header)] for row in rows]))
        predicted = [_predicted_cells(row["configuration"], cost) for row in rows for cost in row.get("searches", [])]
        if predicted:
            print(f"\n{format_table(_PREDICTED, predicted, left=2)}")
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    if rows and not args.json:
        last = rows[-1]["configuration"]
        trainer = result_trainer(plans.method(last))
        for name in (row["configuration"] for row in rows):
            if has_control(plans.method(name)) and not plans.staleness(name):
                base = plans.configurations[name]["inherits_from"]
                print(f"control: {commands.control(plans.number, base, name, plans=args.p)}", file=sys.stderr)
        train = commands.train(plans.number, last, plans=args.p, trainer=trainer)
        print(f"next: {train}", file=sys.stderr)
    return 0


def _count(
    plans: Plans, names: list[str], methods: list[str], *, every_one_asked_for: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Costs of each configuration; one that cannot be built is an error only if it was asked for by name."""
    from nnunet_nas.architecture import network_spec
    from nnunet_nas.complexity import complexity_of

    dataset_json = plans.dataset_json  # before the loop: its absence is no fault of one configuration
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for name in names:
        try:
            spec = network_spec(plans, name, dataset_json)
            cost = complexity_of(spec)
            beside = _beside_backbone(plans, name, spec, cost)
            more = {"to_train": _to_train(plans, name, spec), **beside}
            more |= _predictions(plans, name, spec, methods, problems)
            rows.append({"configuration": name, "patch_size": list(spec.patch_size), **cost.to_json(), **more})
            stale = plans.staleness(name)
        except DataProblem as error:
            if every_one_asked_for:
                raise
            problems.append(f"{name} is left out: {error}")
            continue
        if stale:
            problems.append(f"{name} is stale: {stale}; {plans.remedy(name)}")
    return rows, problems


def _predictions(
    plans: Plans, name: str, spec: NetworkSpec, methods: list[str], problems: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """A further entry of the row: what searches on a configuration, or trainings of it, will cost at most."""
    from nnunet_nas.search_cost import cost_in_plans, retrofit_cost

    configuration, found = plans.resolve(name), []
    given = configuration.get("nas_settings", {})
    for method in methods or [key for key in with_cost() if key in given]:
        if not _applies(method, plans.method(name)):
            continue
        try:
            settings: Any = read_settings(settings_class(method), configuration)
            cost = cost_in_plans(method, plans, name, spec, settings)
            afterwards = retrofit_cost(method, spec, settings, configuration)
        except DataProblem as error:
            problems.append(f"{name}: the cost of {method} cannot be told: {error}")
            continue
        both: dict[str, Any] = {}
        if afterwards is not None:
            both["retrofit"] = afterwards.to_json()
            both["default_trainings_with_retrofit"] = cost.default_trainings + afterwards.default_trainings
        found.append({**cost.to_json(), **both})
    return {"searches": found} if found else {}


def _applies(method: str, found_by: str | None) -> bool:
    """The retrofit trains modules in a backbone; nothing is searched on networks with modules, or on what was found."""
    if METHODS[method].trainer_name == retrofit_trainer():
        return found_by in retrofitted()
    searched = found_by in retrofitted() or (found_by in METHODS and METHODS[str(found_by)].searches)
    return not (METHODS[method].searches and searched)


def _predicted_cells(configuration: str, cost: dict[str, Any]) -> list[str]:
    return [
        configuration,
        cost["method"],
        f"{cost['iterations']:,}",
        f"{cost['macs'] / 1e12:,.4g} T",
        f"{cost['plain_iterations']:,.0f}",
        f"{cost['default_trainings']:.3f}",
        f"{cost['default_trainings_with_retrofit']:.3f}" if "retrofit" in cost else "-",
    ]


def _beside_backbone(plans: Plans, name: str, spec: NetworkSpec, cost: Complexity) -> dict[str, Any]:
    """A further entry of the row of a network with modules in its skips."""
    from nnunet_nas.architecture import network_spec
    from nnunet_nas.complexity import complexity_of
    from nnunet_nas.skips.cost import beside_backbone

    base = plans.configurations[name].get("inherits_from")
    if plans.method(name) not in retrofitted() or base not in plans.configurations:
        return {}
    backbone = network_spec(plans, base)
    found = beside_backbone(base, (spec, backbone), (cost, complexity_of(backbone)))
    return {"backbone": found.to_json()}


def _to_train(plans: Plans, name: str, spec: NetworkSpec) -> dict[str, Any]:
    """What a training step holds, part by part, and beside it that of nnU-Net's own network."""
    from nnunet_nas.architecture import network_spec
    from nnunet_nas.training_cost import training_memory

    searched_in_backbone = result_trainer(plans.method(name)) is not None
    memory = training_memory(spec, frozen=searched_in_backbone)
    found: dict[str, Any] = {"batch_size": spec.batch_size, **memory.to_json()}
    own = next(link for link in plans.ancestry(name) if plans.method(link) is None)
    if own != name:
        total = training_memory(network_spec(plans, own)).total
        found["nnunet"] = {"configuration": own, "total_mib": total, "times": memory.total / total}
    return found


def _cells(row: dict[str, Any]) -> list[str]:
    beside = row.get("backbone")
    giga = {f"giga_{name}": row[name] / 1e9 for name in ("macs", "flops")}
    patch = "x".join(map(str, row["patch_size"]))
    memory = f"{row['to_train']['total_mib']:.0f}"
    if "nnunet" in row["to_train"]:
        memory += f" ({row['to_train']['nnunet']['times']:.2f}x)"
    return [
        *(cell.format(**row, **giga, patch=patch, to_train_mib=memory) for cell in _COLUMNS.values()),
        "-" if beside is None else " ".join(f"{beside[key]:.2f}x" for key in ("parameters", "macs", "step_macs")),
    ]
