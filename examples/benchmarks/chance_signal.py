"""Whether alpha and x hear L_seg, and whether seeds hear the same.

    python examples/benchmarks/chance.py search -d 107 -o searches.csv -arm lseg_alone --without_terms
    python examples/benchmarks/chance_signal.py moves searches.csv
    python examples/benchmarks/chance_signal.py gradients -d 107 -o gradients.csv
    python examples/benchmarks/chance_signal.py agree gradients.csv

`moves` says how alike seeds of a search have moved x and alpha from their common start, which tells more than what was
selected in the end. `gradients` asks what they would do if they saw any number of batches: it trains the supernet's
weights alone for so many steps, and averages the gradient of L_seg on x and alpha, at their start, over many batches
of the architecture's half. `agree` compares two halves of these batches within a seed, which says how many of them it
takes to hear anything, and the means of seeds with one another and with those of other data: what other data say as
well is the shape of the network, and no answer to these data. Both say as well what is left of it in means over layers,
because parallel cells may exchange their parts. All by rank correlation.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from chance import SETTINGS, append, assigned, missing, problem_of, rows_of, tell
from scipy.stats import spearmanr

from nnunet_nas.cli.common import format_table

SHUFFLES = 400


def moves(args: argparse.Namespace) -> None:
    """Rank correlation between seeds of how far x and alpha have moved from their common start."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows_of(args.table):
        if row.get("x_moves"):
            groups.setdefault((row["dataset"], row["arm"]), []).append(row)
    rng, table = np.random.default_rng(0), []
    for (dataset, arm), rows in groups.items():
        others = [row for (data, name), own in groups.items() if name == arm and data != dataset for row in own]
        for quarter in range(4):
            cells = [dataset, arm, str(len(rows)), f"{quarter + 1}/4"]
            for name in ("x", "alpha"):
                own = [np.array(json.loads(row[f"{name}_moves"])[quarter]) for row in rows]
                foreign = [np.array(json.loads(row[f"{name}_moves"])[quarter]) for row in others]
                cells += _correlations(own, foreign, rng) + _over_layers(own, rng)
            table.append(cells)
    names = ["size", "between seeds", "by chance", "beside other data", "mean over layers", "by chance"]
    header = [*(f"x: {name}" for name in names), *(f"alpha: {name}" for name in names)]
    print(format_table(["data", "arm", "seeds", "steps", *header], table))


def _correlations(own: list[np.ndarray], others: list[np.ndarray], rng: np.random.Generator) -> list[str]:
    """Root mean square of moves; mean correlation over pairs, 95 % of it where entries are shuffled, and elsewhere."""
    size = f"{np.sqrt(np.mean(np.square(own))):.3f}"
    between = "" if not others else f"{np.mean([_rank_correlation(a, b) for a in own for b in others]):+.2f}"
    return [size, *_between_seeds(own, rng), between]


def _over_layers(own: list[np.ndarray], rng: np.random.Generator) -> list[str]:
    """What is left of the correlation where layers may exchange their parts: that of means over layers."""
    return _between_seeds(own, rng, lambda values: values.reshape(SETTINGS["num_layers"], -1).mean(0))


def _between_seeds(
    own: list[np.ndarray], rng: np.random.Generator, summary: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> list[str]:
    """Mean rank correlation of summaries over pairs, and 95 % of it where entries are shuffled before."""
    if len(own) < 2:
        return ["", ""]

    def mean(vectors: list[np.ndarray]) -> float:
        pairs = itertools.combinations([summary(values) for values in vectors], 2)
        return float(np.mean([_rank_correlation(*pair) for pair in pairs]))

    low, high = np.quantile(
        [mean([rng.permutation(values) for values in own]) for _ in range(SHUFFLES)], (0.025, 0.975)
    )
    return [f"{mean(own):+.2f}", f"[{low:+.2f}, {high:+.2f}]"]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic)


def gradients(args: argparse.Namespace) -> None:
    from chance_runs import gradients_dints

    problem, settings = problem_of(args.dataset), SETTINGS | assigned(args.settings)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        keys = [{"dataset": args.dataset, "seed": seed, "steps": steps} for steps in args.steps]
        if not list(missing(args.output, iter(keys))):
            continue
        for row in gradients_dints(problem, seed, settings, points=args.steps, batches=args.batches,
                                   schedule=args.schedule or args.steps[-1]):  # fmt: skip
            key = {"dataset": args.dataset, "seed": seed, "steps": row["steps"]}
            if list(missing(args.output, iter([key]))):
                append(args.output, {**key, **row})
            tell(key, f"{row['cpu_seconds']} CPU seconds")


def agree(args: argparse.Namespace) -> None:
    """Whether seeds would agree if alpha saw all batches there are, and how many it takes to hear L_seg at all."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows_of(args.table):
        groups.setdefault((row["dataset"], row["steps"]), []).append(row)
    rng, table = np.random.default_rng(0), []
    for (dataset, steps), rows in groups.items():
        others = [row for (data, number), own in groups.items() if number == steps and data != dataset for row in own]
        for name in ("x", "alpha"):
            halves = [[np.array(row[f"{name}_{half}"].split(), float) for half in ("first", "second")] for row in rows]
            means = [np.mean(pair, 0) for pair in halves]
            foreign = [
                np.mean([np.array(row[f"{name}_{half}"].split(), float) for half in ("first", "second")], 0)
                for row in others
            ]
            within = np.mean([_rank_correlation(*pair) for pair in halves])
            # What the two halves share is signal, whatever its size.
            signal = np.sqrt(max(np.mean([np.mean(first * second) for first, second in halves]), 0))
            noise = np.sqrt(np.mean([float(row[f"{name}_noise"]) ** 2 for row in rows]))
            needed = f"{(noise / signal) ** 2:.0f}" if signal else "-"
            table.append([dataset, steps, name, str(len(rows)), rows[0]["batches"], f"{within:+.2f}", needed,
                          *_correlations(means, foreign, rng)[1:], *_over_layers(means, rng)])  # fmt: skip
    names = ["data", "steps of weights", "of", "seeds", "batches", "halves of batches", "batches for noise = signal"]
    names += ["between seeds", "by chance", "beside other data", "mean over layers", "by chance"]
    print(format_table(names, table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("moves")
    command.add_argument("table", type=Path)
    command.set_defaults(run=moves)
    command = commands.add_parser("gradients")
    command.add_argument("-d", dest="dataset", type=int, required=True)
    command.add_argument("-o", dest="output", type=Path, required=True)
    command.add_argument("-seeds", type=int, default=4)
    command.add_argument("-first_seed", type=int, default=0)
    command.add_argument("-steps", type=int, nargs="+", default=[90, 360, 1080], help="of the weights, rising")
    command.add_argument("-schedule", type=int, help="steps that their learning rate is for; none: the last of -steps")
    command.add_argument("-batches", type=int, default=120, help="that gradients are averaged over")
    command.add_argument("settings", nargs="*", metavar="key=value")
    command.set_defaults(run=gradients)
    command = commands.add_parser("agree")
    command.add_argument("table", type=Path)
    command.set_defaults(run=agree)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
