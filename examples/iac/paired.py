"""Dice of two models on the same cases, paired: mean difference, cases won and lost, Wilcoxon signed-rank test.

python examples/iac/paired.py BACKBONE/summary.json RETROFIT/summary.json
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

from nnunet_nas.cli.common import format_table


def dice(path: Path) -> dict[str, dict[str, float]]:
    """Dice per class and case from nnU-Net's summary.json; NaN where neither label nor prediction has the class."""
    scores: dict[str, dict[str, float]] = {}
    for case in json.loads(path.read_text())["metric_per_case"]:
        for label, metrics in case["metrics"].items():
            value = metrics["Dice"]
            scores.setdefault(label, {})[Path(case["reference_file"]).name] = np.nan if value is None else value
    return scores


def row(name: str, first: dict[str, float], second: dict[str, float]) -> list[str]:
    """One line of the table; cases without a value in either model are counted, not used."""
    if first.keys() != second.keys():
        raise SystemExit(f"not the same cases: {', '.join(sorted(first.keys() ^ second.keys()))}")
    pairs = np.array([(first[case], second[case]) for case in sorted(first)])
    used = pairs[np.isfinite(pairs).all(axis=1)]
    difference = used[:, 1] - used[:, 0]
    p = wilcoxon(difference).pvalue if np.any(difference) else 1.0
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    cases = f"{len(used)}" + (f" (+{len(pairs) - len(used)} empty)" if len(used) < len(pairs) else "")
    means = [f"{value:.4f}" for value in used.mean(axis=0)]
    return [name, cases, *means, f"{difference.mean():+.4f}", f"{won}/{lost}/{len(used) - won - lost}", f"{p:.2g}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="summary.json of the reference model")
    parser.add_argument("second", type=Path, help="summary.json of the other model")
    args = parser.parse_args()
    first, second = dice(args.first), dice(args.second)
    header = ["class", "cases", args.first.parent.name, args.second.parent.name, "difference", "won/lost/tied", "p"]
    print(format_table(header, [row(label, first[label], second[label]) for label in first]))


if __name__ == "__main__":
    main()
