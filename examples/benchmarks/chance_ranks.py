"""What tells, before a training, which topology will be good after it.

    python examples/benchmarks/chance_ranks.py score -d 107 -searches searches.csv -arms evidence -o ranks.csv
    python examples/benchmarks/chance_ranks.py correlate ranks.csv -trainings trainings.csv
    python examples/benchmarks/chance_ranks.py noise -trainings trainings.csv

`score` takes the topologies that `chance.py train` trains, found and random, and says of each what a search can know
of it: its loss with weights that it shares with the others in a supernet, which were trained as a mixture or on one
topology at a time, and its loss after a short training as `selection=evidence` races. `correlate` compares this, and
what the network costs, with the Dice after the whole training: rank correlation over networks with a 95 % interval
(networks resampled), and what would be gained if the predictor chose, beside the mean of the networks. `noise` says
what there is to be predicted: how much of the variance of Dice is the network's and how much the training's.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
from chance import (
    NETWORKS,
    RESAMPLES,
    SETTINGS,
    append,
    assigned,
    cost_of,
    missing,
    networks_of,
    problem_of,
    rows_of,
    tell,
)
from scipy.stats import spearmanr

from nnunet_nas.cli.common import format_table
from nnunet_nas.dints.topology import Topology

# Large is good of these, and small of losses.
SIZES = ("mib", "edges", "skips", "not skips", "parameters", "macs")
ARMS = ("default", "random as default", "evidence", "random as evidence", "random within nnU-Net's")
PREFIXES = (50, 150, 300)
# Of fewer networks there is no correlation worth the name.
FEWEST = 5


def score(args: argparse.Namespace) -> None:
    from chance_runs import judged, prepared

    problem, settings = problem_of(args.dataset), SETTINGS | assigned(args.settings)
    networks = networks_of(args, *prepared(problem, settings))
    topologies = {
        name: Topology.from_json(spec.architecture["arch_kwargs"]["topology"])
        for name, (spec, _) in networks.items()
        if "topology" in spec.architecture["arch_kwargs"]
    }
    for kind in args.kinds:
        name, _, number = kind.partition(":")
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            keys = {
                (arm, network): {"dataset": args.dataset, "arm": arm, "network": network, "kind": kind, "seed": seed}
                for arm, network in topologies
            }
            wanted = list(missing(args.output, iter(keys.values())))
            if not wanted:
                continue
            ask = judged(problem, seed, settings, kind=name, number=int(number), batches=args.batches)
            for key in wanted:
                which = (key["arm"], key["network"])
                spec, size = networks[which]
                append(args.output, {**key, "loss": round(ask(topologies[which]), 4), **size, **cost_of(spec)})
            tell({"kind": kind, "seed": seed}, f"{len(wanted)} networks")


def correlate(args: argparse.Namespace) -> None:
    trained = [row for row in rows_of(args.trainings) if row["dataset"] == str(args.dataset)]
    scored = [row for row in rows_of(args.table) if row["dataset"] == str(args.dataset)]
    networks = [
        name
        for name in dict.fromkeys((row["arm"], row["network"]) for row in scored)
        if name[0] in args.arms and _mean(trained, name, iterations=str(args.iterations)) is not None
    ]
    truth = np.array([_mean(trained, name, iterations=str(args.iterations)) for name in networks], float)
    seeds = [sum(_is(row, name, iterations=str(args.iterations)) for row in trained) for name in networks]
    print(f"{len(networks)} networks, {min(seeds)} to {max(seeds)} trainings of {args.iterations} iterations each")
    print(f"Dice: mean {truth.mean():.4f}, sd {truth.std(ddof=1):.4f}, best {truth.max():.4f}")
    rng, table = np.random.default_rng(0), []
    for name, values in _predictors(scored, trained, networks, args.iterations).items():
        table.append([name, *_beside_truth(values, truth, rng)])
    print(
        format_table(
            ["predictor", "networks", "rank correlation, 95 % interval", "Dice of its choice less mean"], table
        )
    )


def _is(row: dict[str, str], name: tuple[str, str], **columns: str) -> bool:
    return (row["arm"], row["network"]) == name and all(row.get(key) == value for key, value in columns.items())


def _mean(rows: list[dict[str, str]], name: tuple[str, str], column: str = "dice", **columns: str) -> float | None:
    values = [float(row[column]) for row in rows if _is(row, name, **columns) and row.get(column)]
    return float(np.mean(values)) if values else None


def _predictors(
    scored: list[dict[str, str]], trained: list[dict[str, str]], networks: list[tuple[str, str]], iterations: int
) -> dict[str, list[float | None]]:
    """By name, larger is better; None where a network has none."""
    found: dict[str, list[float | None]] = {}
    first = {name: next(row for row in scored if _is(row, name)) for name in networks}
    for size in SIZES:
        read = {name: float(row["edges"]) - float(row["skips"]) if size == "not skips" else float(row[size])
                for name, row in first.items()}  # fmt: skip
        found[size] = [read[name] for name in networks]
    for kind, seed in sorted({(row["kind"], row["seed"]) for row in scored}):
        losses = [_mean(scored, name, "loss", kind=kind, seed=seed) for name in networks]
        found[f"{kind}, seed {seed}"] = [None if loss is None else -loss for loss in losses]
    for shorter in sorted({int(row["iterations"]) for row in trained} - {iterations}):
        found[f"Dice after {shorter}"] = [_mean(trained, name, iterations=str(shorter)) for name in networks]
    for prefix in PREFIXES:
        found[f"loss at {prefix} of {iterations}"] = [_loss_at(trained, name, prefix, iterations) for name in networks]
    return {name: values for name, values in found.items() if any(value is not None for value in values)}


def _loss_at(trained: list[dict[str, str]], name: tuple[str, str], prefix: int, iterations: int) -> float | None:
    """Less the mean training loss over the fifth before an iteration of the whole training."""
    means = []
    for row in trained:
        if _is(row, name, iterations=str(iterations)) and row.get("losses"):
            losses = np.array(row["losses"].split(), float)
            end = round(prefix / iterations * len(losses))
            means.append(losses[max(0, end - max(1, end // 5)) : end].mean())
    return -float(np.mean(means)) if means else None


def _beside_truth(values: list[float | None], truth: np.ndarray, rng: np.random.Generator) -> list[str]:
    known = np.array([value is not None for value in values])
    own, true = np.array([value for value in values if value is not None]), truth[known]
    if len(own) < FEWEST or np.ptp(own) == 0:
        return [str(len(own)), "", ""]
    drawn = []
    for picked in rng.integers(len(own), size=(RESAMPLES, len(own))):
        if np.ptp(own[picked]) and np.ptp(true[picked]):
            drawn.append(spearmanr(own[picked], true[picked]).statistic)
    low, high = np.quantile(drawn, (0.025, 0.975))
    choice = true[own == own.max()].mean() - true.mean()
    return [str(len(own)), f"{spearmanr(own, true).statistic:+.2f} [{low:+.2f}, {high:+.2f}]", f"{choice:+.4f}"]


def noise(args: argparse.Namespace) -> None:
    rng, table = np.random.default_rng(0), []
    trained = [row for row in rows_of(args.trainings) if row["arm"] in args.arms]
    for dataset, iterations in dict.fromkeys((row["dataset"], row["iterations"]) for row in trained):
        rows = [row for row in trained if (row["dataset"], row["iterations"]) == (dataset, iterations)]
        names = dict.fromkeys((row["arm"], row["network"]) for row in rows)
        dice = [{row["seed"]: float(row["dice"]) for row in rows if _is(row, name)} for name in names]
        seeds = sorted({seed for own in dice for seed in own})
        for first, second in itertools.combinations(seeds, 2):
            pairs = np.array([[own[first], own[second]] for own in dice if first in own and second in own])
            if len(pairs) >= FEWEST:
                table.append([dataset, iterations, f"{first}, {second}", str(len(pairs)), *_components(pairs, rng)])
    names = ["data", "iterations", "seeds", "networks", "rank correlation, 95 % interval"]
    print(format_table([*names, "sd of the network, 95 % interval", "sd of the training"], table))


def _components(pairs: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Of Dice with two seeds, (networks, 2), less each seed's mean: what both share, and what a training adds."""
    own = pairs - pairs.mean(0)
    drawn = [own[picked] - own[picked].mean(0) for picked in rng.integers(len(own), size=(RESAMPLES, len(own)))]
    drawn = [sample for sample in drawn if np.ptp(sample, axis=0).all()]
    ranks = np.quantile([spearmanr(*sample.T).statistic for sample in drawn], (0.025, 0.975))
    # The covariance is the network's variance; where it is below zero there is none to be seen.
    shared = np.quantile([_shared(sample) for sample in drawn], (0.025, 0.975))
    trainings = np.sqrt(max(own.var(0, ddof=1).mean() - _shared(own) ** 2, 0))
    return [
        f"{spearmanr(*own.T).statistic:+.2f} [{ranks[0]:+.2f}, {ranks[1]:+.2f}]",
        f"{_shared(own):.4f} [{shared[0]:.4f}, {shared[1]:.4f}]",
        f"{trainings:.4f}",
    ]


def _shared(pairs: np.ndarray) -> float:
    return float(np.sqrt(max(np.cov(pairs.T)[0, 1], 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("score")
    command.add_argument("-d", dest="dataset", type=int, required=True)
    command.add_argument("-o", dest="output", type=Path, required=True)
    command.add_argument("-searches", type=Path, required=True, help="table of chance.py search")
    command.add_argument("-arms", nargs="+", default=["evidence"])
    command.add_argument("-networks", nargs="+", choices=NETWORKS, default=["found", "random"])
    command.add_argument("-random", type=int, default=2, help="as in chance.py train")
    command.add_argument("-within", type=int, default=8, help="likewise")
    command.add_argument("-seeds", type=int, default=1)
    command.add_argument("-first_seed", type=int, default=0)
    command.add_argument("-batches", type=int, default=16, help="that losses are means over")
    command.add_argument(
        "-kinds",
        nargs="+",
        default=["samples:250", "mixture:250", "race:50"],
        help="samples:N and mixture:N are weights of a supernet after N steps, race:N is a training of N iterations",
    )
    command.add_argument("settings", nargs="*", metavar="key=value")
    command.set_defaults(run=score)
    command = commands.add_parser("correlate")
    command.add_argument("table", type=Path)
    command.add_argument("-d", dest="dataset", type=int, default=107)
    command.add_argument("-trainings", type=Path, required=True, help="table of chance.py train")
    command.add_argument("-iterations", type=int, default=600)
    command.add_argument("-arms", nargs="+", default=ARMS)
    command.set_defaults(run=correlate)
    command = commands.add_parser("noise")
    command.add_argument("-trainings", type=Path, required=True, help="table of chance.py train")
    command.add_argument("-arms", nargs="+", default=ARMS)
    command.set_defaults(run=noise)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
