"""What a search's answer owes to the data, and what it is worth beside random answers of its size.

    python examples/benchmarks/chance.py search -d 107 -o searches.csv architecture_lr=0.1
    python examples/benchmarks/chance.py search -d 107 -o searches.csv -arm no_lseg --without_segmentation
    python examples/benchmarks/chance.py agree searches.csv
    python examples/benchmarks/chance.py train -d 107 -o trainings.csv -searches searches.csv
    python examples/benchmarks/chance.py compare trainings.csv
    python examples/benchmarks/chance.py cells -d 107 -o cells.csv
    python examples/benchmarks/chance.py agree_cells cells.csv

`search` runs the search with several seeds of data and weights from one start of alpha; `agree` says how much the
answers have in common, and how much random feasible topologies have that are matched to each of them in edges, skips
and, within a tenth, memory. `train` trains what was found, random topologies of its size and nnU-Net's own network with
equal iterations and the same seeds, also as wide as the memory or the multiply-accumulates of what was found allow;
`compare` says what the search was worth. `cells` and `agree_cells` do the same for IAC-LTH with one trained backbone,
whose random answers are random cells. Tables have one row per finished run; a run that is there already is not
repeated, so that a kill costs one run.

Needs nnUNet_raw, and nnUNet_preprocessed with the configuration `-c` of the data set, of which a small one is derived;
tables do not say which, so each configuration has its own.
Settings of the search are given as to `nnunet_nas set_search`.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from nnunet_nas.cli.common import format_table
from nnunet_nas.complexity import complexity_of
from nnunet_nas.dints.sampling import Size, edge_jaccard, same_operation, sample_like, sample_within_budget, size_of
from nnunet_nas.dints.topology import Topology
from nnunet_nas.files import replace_file
from nnunet_nas.iac import sampling
from nnunet_nas.iac.genotype import Genotype
from nnunet_nas.iac.sampling import random_genotype
from nnunet_nas.training_cost import training_memory
from nnunet_nas.widths import MACS, MEMORY, widest_within

# Before nnU-Net reads its folders: what trainers write beside their result goes away with the process.
_RESULTS = tempfile.TemporaryDirectory(prefix="chance_")
os.environ["nnUNet_results"] = _RESULTS.name
os.environ["nnUNet_n_proc_DA"] = "0"

# Of the network; patch: its longest edge, voxels.
SIZES = {
    "2d": {"patch": 48, "batch": 8, "features": 8, "stages": 3},
    "3d": {"patch": 32, "batch": 2, "features": 8, "stages": 3},
}
SETTINGS = {
    "num_epochs": 17,
    "num_iterations_per_epoch": 10,
    "num_val_iterations_per_epoch": 0,
    "num_layers": 6,
    "first_level": 0,
    "search_batch_size": 4,
    "architecture_lr": 0.1,
    "augmentation": False,
    "sigma": 0.8,
}
# The paper's test and length, and the least width of the tables so far, whatever the defaults are by now.
CELL_SETTINGS = {
    "num_epochs": 200,
    "num_iterations_per_epoch": 4,
    "num_val_iterations_per_epoch": 0,
    "augmentation": False,
    "stability": "paper",
    "minimum_width": 16,
}
NETWORKS = ("own", "equal", "equal_macs", "within", "found", "random")
NETWORKS_HELP = (
    "own: nnU-Net's; equal: the same at the memory of what an arm has found; equal_macs: at its multiply-accumulates; "
    "within: random, within nnU-Net's memory; found: by the searches; random: of the same size"
)
# nnU-Net's own network at what an arm has found costs, median: the name of the network, that of its arm, what it costs.
EQUAL = (("equal", "nnU-Net as {}", MEMORY), ("equal_macs", "nnU-Net at the MACs of {}", MACS))
RESAMPLES = 4000
# For each matched random topology, at most: within nnU-Net's own memory searches find what is rare.
DRAWS = 40_000
# Arms of searches within nnU-Net's own memory end with the first; the second is what they are compared with.
OWN_BUDGET, WITHIN = "_own", "random within nnU-Net's"
# Of fewer there is no interval worth the name.
FEWEST_SEARCHES = 3
NO_SIZE = dict.fromkeys(("mib", "edges", "skips"), "")


def rows_of(path: Path) -> list[dict[str, str]]:
    """Of a table; none where there is none yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, Any]) -> None:
    """One finished run, whole or not at all; several processes may fill one table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(Path(tempfile.gettempdir()) / f"{path.name}.lock"):
        rows = [*rows_of(path), row]
        content = io.StringIO()
        writer = csv.DictWriter(content, list(dict.fromkeys(itertools.chain(*rows))), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_file(path, content.getvalue().encode())


def missing(path: Path, keys: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Those runs that the table does not hold yet."""
    for key in keys:
        wanted = {name: str(value) for name, value in key.items()}
        if not any(wanted.items() <= row.items() for row in rows_of(path)):
            yield key


def problem_of(dataset: int, configuration: str = "2d") -> Any:
    from chance_runs import Problem

    return Problem.load(dataset, configuration, **SIZES["3d" if configuration.startswith("3d") else "2d"])


def search(args: argparse.Namespace) -> None:
    from chance_runs import search_dints

    settings = SETTINGS | assigned(args.settings)
    problem = problem_of(args.dataset, args.configuration)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    runs = ({"dataset": args.dataset, "arm": args.arm, "seed": seed} for seed in seeds)
    for key in missing(args.output, runs):
        row = search_dints(
            problem,
            key["seed"],
            settings,
            without_segmentation=args.without_segmentation,
            without_terms=args.without_terms,
            sparse_start=args.sparse_start,
        )
        append(args.output, {**key, **row})
        tell(key, f"{row['mib']} MiB, {row['seconds']} s")


def assigned(pairs: list[str]) -> dict[str, Any]:
    """Of key=value, where a value is JSON or text."""
    found = {}
    for key, text in (pair.split("=", 1) for pair in pairs):
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def tell(key: dict[str, Any], text: str) -> None:
    print(time.strftime("%H:%M:%S"), *key.values(), text, flush=True)


def agreement(topologies: Sequence[Topology], other: Topology | None = None) -> tuple[float, ...]:
    """Means over all pairs, or beside another one.

    Jaccard index of the edges, equal operations on shared edges, and, because parallel cells may exchange their parts,
    what two answers have in common that does not say which layer: overlaps of how edges are shared out over pairs of
    levels, and operations over levels.
    """
    pairs = list(itertools.combinations(topologies, 2))
    if other is not None:
        pairs = [(topology, other) for topology in topologies]
    operations = [same_operation(*pair) for pair in pairs]
    overlaps = [[_overlap(part(a), part(b)) for part in (_steps, _operations_of_levels)] for a, b in pairs]
    return float(np.mean([edge_jaccard(*pair) for pair in pairs])), float(np.nanmean(operations)), *np.mean(overlaps, 0)


def _steps(topology: Topology) -> Counter[Any]:
    return Counter(pair for layer in topology.layers for pair in layer)


def _operations_of_levels(topology: Topology) -> Counter[Any]:
    return Counter((end, name) for layer in topology.layers for (_, end), name in layer.items())


def _overlap(a: Counter[Any], b: Counter[Any]) -> float:
    """Of two distributions."""
    return sum(min(a[key] / a.total(), b[key] / b.total()) for key in a)


def matched(topology: Topology, uniform: Any, count: int, seed: int) -> list[Topology]:
    """Random topologies of a size: as many edges and skips, memory within a tenth."""
    size = size_of(topology, uniform)
    window = Size(0.1 * size.mib, 0, 0)
    return sample_like(size, uniform, count, np.random.default_rng(seed), window=window, draws=DRAWS)


def agree(args: argparse.Namespace) -> None:
    from chance_runs import prepared

    rows, table, pulls = rows_of(args.table), [], []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        answers = {arm: _answers(own, arm) for arm in dict.fromkeys(row["arm"] for row in own)}
        _, uniform = prepared(problem_of(int(dataset), args.configuration), SETTINGS)
        for arm, found in answers.items():
            sizes = " ".join(f"{size_of(topology, uniform).mib:.0f}" for topology in found)
            pulls.append([dataset, arm, *_pulls([row for row in own if row["arm"] == arm])])
            # What never saw L_seg is the same whatever the seed.
            others = [None, *answers.get("no_lseg", [])[:1]] if arm != "no_lseg" else []
            for other in others if len(found) > 1 else ():
                pools = [matched(topology, uniform, args.random, seed) for seed, topology in enumerate(found)]
                chance = np.array([agreement(draw, other) for draw in zip(*pools, strict=True)])
                beside = _beside(agreement(found, other), chance)
                table.append([dataset, arm, "one another" if other is None else "no_lseg", sizes, *beside])
    measures = ("edges", "operations", "edges per step", "operations per level")
    names = ["data", "arm", "beside", "MiB", *(name for measure in measures for name in (measure, "by chance", "p"))]
    print(format_table(names, table))
    print("\nGradient norm of the other terms over that of L_seg, quarters of the architecture's steps, medians")
    print(format_table(["data", "arm", "edges", "operations"], pulls))


def _answers(rows: list[dict[str, str]], arm: str) -> list[Topology]:
    return [Topology.from_json(json.loads(row["topology"])) for row in rows if row["arm"] == arm]


def _pulls(rows: list[dict[str, str]]) -> list[str]:
    """Gradient of the other terms over that of L_seg, medians of the four quarters of the architecture's steps."""
    cells = []
    for name in ("x", "alpha"):
        ratios = []
        for row in rows:
            segmentation, others = (
                np.array(row[f"pull_{name}_{part}"].split(), float) for part in ("segmentation", "others")
            )
            if others.size and segmentation.any():
                ratios.append(others / segmentation)
        if not ratios:
            cells.append("")
            continue
        quarters = np.array_split(np.array(ratios), 4, axis=1)
        cells.append(" ".join(f"{np.median(quarter):.2g}" for quarter in quarters))
    return cells


def cells(args: argparse.Namespace) -> None:
    from chance_runs import backbone_checkpoint, search_cells

    problem = problem_of(args.dataset, args.configuration)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = backbone_checkpoint(problem, Path(folder), iterations=args.iterations)
        settings = CELL_SETTINGS | assigned(args.settings) | {"backbone_checkpoint": str(checkpoint)}
        runs = ({"dataset": args.dataset, "arm": args.arm, "seed": seed} for seed in range(args.seeds))
        for key in missing(args.output, runs):
            row = search_cells(problem, key["seed"], settings)
            append(args.output, {**key, **row})
            tell(key, f"{row['epochs']} epochs, {row['cpu_seconds']} CPU seconds")


def agree_cells(args: argparse.Namespace) -> None:
    table, rows, rng = [], rows_of(args.table), np.random.default_rng(0)
    for dataset, arm in dict.fromkeys((row["dataset"], row["arm"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["arm"]) == (dataset, arm)]
        if len(own) < 2:
            continue
        observed = _agreement_of_cells([Genotype.from_json(json.loads(row["genotype"])) for row in own])
        chance = np.array(
            [_agreement_of_cells([random_genotype(rng) for _ in own]) for _ in range(RESAMPLES)]
        )  # fmt: skip
        epochs = " ".join(row["epochs"] for row in own)
        spread = max(float(row["largest_p_before_pruning"]) for row in own)
        least = min(float(row["smallest_p_before_pruning"]) for row in own)
        table.append([dataset, arm, str(len(own)), epochs, f"{least:.4f} to {spread:.4f}", *_beside(observed, chance)])
    names = ["data", "arm", "seeds", "epochs", "p before pruning", "edges", "by chance", "p"]
    print(format_table([*names, "operations", "by chance", "p"], table))


def _agreement_of_cells(cells: list[Genotype]) -> tuple[float, float]:
    pairs = list(itertools.combinations(cells, 2))
    edges = [sampling.edge_jaccard(*pair) for pair in pairs]
    return float(np.mean(edges)), float(np.mean([sampling.same_operation(*pair) for pair in pairs]))


def _beside(observed: tuple[float, ...], chance: np.ndarray) -> list[str]:
    """What was observed, the mean and 95 % of what chance gives, and how often that is as large; of all columns."""
    found = []
    for value, drawn in zip(observed, chance.T, strict=True):
        low, high = np.quantile(drawn, (0.025, 0.975))
        p = (1 + (drawn >= value).sum()) / (1 + len(drawn))
        found += [f"{value:.2f}", f"{drawn.mean():.2f} [{low:.2f}, {high:.2f}]", f"{p:.3f}"]
    return found


def train(args: argparse.Namespace) -> None:
    from chance_runs import HoldOut, prepared, trained_dice

    problem = problem_of(args.dataset, args.configuration)
    trainer, uniform = prepared(problem, SETTINGS)
    networks = networks_of(args, trainer, uniform)
    hold_out = HoldOut(problem)
    runs = (
        {"dataset": args.dataset, "arm": arm, "network": number, "seed": seed, "iterations": args.iterations}
        for seed in range(args.first_seed, args.first_seed + args.seeds)
        for arm, number in networks
    )
    for key in missing(args.output, runs):
        spec, size = networks[key["arm"], key["network"]]
        row = trained_dice(problem, spec.architecture, hold_out, seed=key["seed"], iterations=args.iterations)
        append(args.output, {**key, **size, **row, **cost_of(spec)})
        tell(key, f"Dice {row['dice']:.4f}, {row['cpu_seconds']} CPU seconds")


def networks_of(args: argparse.Namespace, trainer: Any, uniform: Any) -> dict[tuple[str, str], tuple[Any, Any]]:
    """What is to be trained, by arm and number: the network, and its size where it is a topology."""
    own = trainer.base_spec()
    networks = {("nnU-Net", "0"): (own, NO_SIZE)} if "own" in args.networks else {}
    for arm in args.arms if {"found", "random", "equal", "equal_macs"} & set(args.networks) else ():
        rows = [row for row in rows_of(args.searches) if (row["dataset"], row["arm"]) == (str(args.dataset), arm)]
        answers = {row["seed"]: Topology.from_json(json.loads(row["topology"])) for row in rows}
        for network, name, measure in EQUAL:
            if network in args.networks:
                limit = float(np.median([measure.of(trainer.spec_of(found)) for found in answers.values()]))
                networks[name.format(arm), "0"] = (widest_within(own, limit, measure), NO_SIZE)
        for seed, found in answers.items():
            topologies = {(arm, seed): found} if "found" in args.networks else {}
            if "random" in args.networks:
                for number, topology in enumerate(matched(found, uniform, args.random, int(seed))):
                    topologies[f"random as {arm}", f"{seed}.{number}"] = topology
            for name, topology in topologies.items():
                networks[name] = (trainer.spec_of(topology), vars(size_of(topology, uniform)))
    if "within" in args.networks:
        for number, topology in enumerate(random_within(trainer, uniform, args.within)):
            name = (WITHIN, str(number))
            networks[name] = (trainer.spec_of(topology), vars(size_of(topology, uniform)))
    return networks


def random_within(trainer: Any, uniform: Any, count: int) -> list[Topology]:
    """Random feasible topologies that need no more to be trained than nnU-Net's own network, counted."""
    limit, rng = training_memory(trainer.base_spec()).total, np.random.default_rng(0)
    drawn = sample_within_budget(uniform, 4 * count, rng, budget_mib=limit)
    fitting = [topology for topology in drawn if training_memory(trainer.spec_of(topology)).total <= limit]
    return fitting[:count]


def cost_of(spec: Any) -> dict[str, Any]:
    """Counted, with weights, gradients and momentum."""
    cost = complexity_of(spec)
    counted = round(training_memory(spec).total, 2)
    return {"training_mib": counted, "parameters": cost.parameters, "macs": cost.macs}


def means_of(rows: list[dict[str, str]]) -> dict[str, float]:
    """Dice of every network, mean over its trainings."""
    names = dict.fromkeys(row["network"] for row in rows)
    return {name: float(np.mean([float(row["dice"]) for row in rows if row["network"] == name])) for name in names}


def sd_between_trainings(rows: list[dict[str, str]]) -> str:
    """Of one network, pooled over those that were trained more than once: what one training cannot tell apart."""
    names = dict.fromkeys(row["network"] for row in rows)
    trained = [[float(row["dice"]) for row in rows if row["network"] == name] for name in names]
    variances = [np.var(dice, ddof=1) for dice in trained if len(dice) > 1]
    return f"{np.sqrt(np.mean(variances)):.4f}" if variances else ""


def compare(args: argparse.Namespace) -> None:
    """Networks are the sample: what is resampled are searches and random answers, not cases."""
    table, rows, rng = [], rows_of(args.table), np.random.default_rng(0)
    at_equal_macs = np.random.default_rng(0)  # its own, so that the other columns are the same with and without it
    for dataset, iterations in dict.fromkeys((row["dataset"], row["iterations"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["iterations"]) == (dataset, iterations)]
        arms = {
            arm: means_of([row for row in own if row["arm"] == arm]) for arm in dict.fromkeys(r["arm"] for r in own)
        }
        for arm, networks in arms.items():
            values = np.array(list(networks.values()))
            trainings = sum(row["arm"] == arm for row in own)
            cells = [dataset, iterations, arm, str(len(values)), str(trainings), f"{values.mean():.4f}"]
            cells.append(f"{values.std(ddof=1):.4f}" if len(values) > 1 else "")
            cells.append(sd_between_trainings([row for row in own if row["arm"] == arm]))
            random = arms.get(f"random as {arm}")
            cells.append("" if random is None else _difference(networks, random, rng))
            if random is None and arm.endswith(OWN_BUDGET) and WITHIN in arms:
                cells[-1] = unmatched_difference(list(networks.values()), list(arms[WITHIN].values()))
            equal, equal_macs = (name.format(arm.removeprefix("random as ")) for _, name, _ in EQUAL)
            cells += [_less(own, arm, reference, rng) for reference in ("nnU-Net", equal)]
            table.append([*cells, _less(own, arm, equal_macs, at_equal_macs)])
    names = [
        "data",
        "iterations",
        "arm",
        "networks",
        "trainings",
        "Dice",
        "sd",
        "sd of trainings",
        "less random, 95 % interval",
        "less nnU-Net's own, 95 % interval",
        "less nnU-Net's of equal memory, 95 % interval",
        "less nnU-Net's of equal MACs, 95 % interval",
    ]
    print(format_table(names, table))


def _less(rows: list[dict[str, str]], arm: str, reference: str, rng: np.random.Generator) -> str:
    """An arm less one with a single network, by seeds of training that both have.

    Networks are resampled, or trainings where there is one network.
    """
    own = {row["seed"]: float(row["dice"]) for row in rows if row["arm"] == reference}
    paired = [
        {**row, "dice": str(float(row["dice"]) - own[row["seed"]])}
        for row in rows
        if row["arm"] == arm and row["seed"] in own
    ]
    if arm == reference or not paired:
        return ""
    networks = means_of(paired)
    values = np.array(list(networks.values()) if len(networks) > 1 else [float(row["dice"]) for row in paired])
    difference = f"{values.mean():+.4f}"
    if len(values) < FEWEST_SEARCHES:
        return difference
    low, high = np.quantile(rng.choice(values, (RESAMPLES, len(values))).mean(1), (0.025, 0.975))
    return f"{difference} [{low:+.4f}, {high:+.4f}]"


def unmatched_difference(found: list[float], random: list[float]) -> str:
    """Found less random ones of the same budget, each resampled on its own."""
    rng = np.random.default_rng(0)
    drawn = [rng.choice(values, (RESAMPLES, len(values))).mean(1) for values in (found, random)]
    low, high = np.quantile(drawn[0] - drawn[1], (0.025, 0.975))
    difference = f"{np.mean(found) - np.mean(random):+.4f}"
    return difference if min(len(found), len(random)) < FEWEST_SEARCHES else f"{difference} [{low:+.4f}, {high:+.4f}]"


def _difference(found: dict[str, float], random: dict[str, float], rng: np.random.Generator) -> str:
    """Found less random, resampled over searches together with the random topologies that are matched to each."""
    groups = [[value for name, value in random.items() if name.split(".")[0] == search] for search in found]
    values = [(found[search], group) for search, group in zip(found, groups, strict=True) if group]
    if not values:
        return ""
    differences = [value - np.mean(group) for value, group in values]
    if len(values) < FEWEST_SEARCHES:
        return f"{np.mean(differences):+.4f}"
    drawn = [
        np.mean([values[i][0] - rng.choice(values[i][1], len(values[i][1])).mean() for i in picked])
        for picked in rng.integers(len(values), size=(RESAMPLES, len(values)))
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{np.mean(differences):+.4f} [{low:+.4f}, {high:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("search")
    command.add_argument("-d", dest="dataset", type=int, required=True)
    command.add_argument("-o", dest="output", type=Path, required=True)
    command.add_argument("-arm", default="default", help="name of these settings in the table")
    command.add_argument("-seeds", type=int, default=5)
    command.add_argument("-first_seed", type=int, default=0)
    command.add_argument("--without_segmentation", action="store_true", help="alpha never sees L_seg")
    command.add_argument("--without_terms", action="store_true", help="alpha sees L_seg alone")
    command.add_argument(
        "--sparse_start", action="store_true", help="samples from x at 0, as before 2026-12: fewer edges"
    )
    command.add_argument("settings", nargs="*", metavar="key=value")
    command.set_defaults(run=search)
    command = commands.add_parser("agree")
    command.add_argument("table", type=Path)
    command.add_argument("-random", type=int, default=300, help="random topologies per answer")
    command.set_defaults(run=agree)
    command = commands.add_parser("cells")
    command.add_argument("-d", dest="dataset", type=int, required=True)
    command.add_argument("-o", dest="output", type=Path, required=True)
    command.add_argument("-arm", default="default")
    command.add_argument("-seeds", type=int, default=4)
    command.add_argument("-iterations", type=int, default=300, help="of the backbone's training")
    command.add_argument("settings", nargs="*", metavar="key=value")
    command.set_defaults(run=cells)
    command = commands.add_parser("agree_cells")
    command.add_argument("table", type=Path)
    command.set_defaults(run=agree_cells)
    command = commands.add_parser("train")
    command.add_argument("-d", dest="dataset", type=int, required=True)
    command.add_argument("-o", dest="output", type=Path, required=True)
    command.add_argument("-searches", type=Path, required=True, help="table of search")
    command.add_argument("-arms", nargs="+", default=["default"])
    command.add_argument("-random", type=int, default=2, help="random topologies per search")
    command.add_argument("-within", type=int, default=8, help="random topologies within nnU-Net's memory")
    command.add_argument(
        "-networks", nargs="+", choices=NETWORKS, default=["own", "found", "random"], help=NETWORKS_HELP
    )
    command.add_argument("-iterations", type=int, default=150)
    command.add_argument("-seeds", type=int, default=2, help="trainings per network")
    command.add_argument("-first_seed", type=int, default=100)
    command.set_defaults(run=train)
    command = commands.add_parser("compare")
    command.add_argument("table", type=Path)
    command.set_defaults(run=compare)
    for name in ("search", "agree", "cells", "train"):
        commands.choices[name].add_argument("-c", dest="configuration", default="2d", help="default: %(default)s")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
