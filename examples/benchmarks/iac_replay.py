"""What gradual pruning (`gradual_epochs`) would have cost finished searches: kept operations lost, work saved.

    python examples/benchmarks/iac_replay.py FOLDER... -spans 25 35 60

Replays recorded probabilities: per epoch after warm-up the ceiling of operations per edge falls evenly from 7 to 1. A
finally kept operation is lost if more operations than the ceiling allows were ahead of it or level at some epoch. A
replay cannot know how the others would have gone on without those that were dropped: a bound on harm, no search.
"""

import argparse
from pathlib import Path

import numpy as np

from nnunet_nas.cli.common import format_table
from nnunet_nas.iac.genotype import OPERATIONS, discretise
from nnunet_nas.iac.history import CellHistory


def ceilings(tests: int, span: int) -> np.ndarray:
    """Operations allowed per edge after each test, as `StabilityPruning` counts."""
    most = len(OPERATIONS)
    return np.maximum(1, most - (most - 1) * np.arange(1, tests + 1) // span)


def survivors(history: CellHistory, span: int) -> int:
    """Finally kept operations that the ceiling would never have dropped, of 8."""
    probabilities = history.probabilities[~history.warmup]
    allowed = ceilings(len(probabilities), span)
    count = 0
    for edge in discretise(history.probabilities[-1], history.weights[-1]).edges:
        column = OPERATIONS.index(edge.operation)
        own = probabilities[:, edge.row]
        rank = (own > own[:, [column]]).sum(axis=1) + 1
        count += bool((rank <= allowed).all())
    return count


def computed(history: CellHistory, span: int) -> float:
    """Mean share of operations that the ceiling leaves to compute after warm-up."""
    tests = min(int((~history.warmup).sum()), span)
    before = np.concatenate([[len(OPERATIONS)], ceilings(tests, span)[:-1]])
    return float(before.mean() / len(OPERATIONS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="fold folders with search_history.npz")
    parser.add_argument("-spans", nargs="+", type=int, default=[25, 35, 60])
    args = parser.parse_args()
    rows = []
    for folder in args.folders:
        history = CellHistory.load(folder / "search_history.npz")
        for span in args.spans:
            cells = [f"{len(history)}", f"{span}", f"{survivors(history, span)} of 8", f"{computed(history, span):.0%}"]
            rows.append([folder.parent.name, *cells])
    print(format_table(["search", "epochs", "gradual_epochs", "kept operations that survive", "computed"], rows))


if __name__ == "__main__":
    main()
