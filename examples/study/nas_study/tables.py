"""The study's tables, of what is there: text, CSV, LaTeX; what failed or was not run is named below them.

A row is a method on a base of a data set. Its Dice is the mean over the foreground classes of the hold-out, over cases
and seeds, with a bootstrap interval over both; the difference is that to what it is compared with, by `nnunet_nas
compare` on the same cases. Costs are means over seeds.

    python -m nas_study.tables --study study.json
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from nas_study import records
from nas_study.grid import BASE, Cell, Study, derived, predicted, prepared, trained
from nnunet_nas.cli.common import format_table
from nnunet_nas.errors import NasError
from nnunet_nas.files import replace_file

FOLDER = Path("tables")


@dataclass
class Line:
    """One row; None where nothing is known."""

    dataset: int
    base: str
    method: str
    seeds: int
    seeds_wanted: int
    configurations: str
    parameters: float | None = None
    macs: float | None = None
    to_train_mib: float | None = None
    iterations: float | None = None
    seconds: float | None = None
    dice: float | None = None
    dice_low: float | None = None
    dice_high: float | None = None
    against: str = ""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = ""


def dice_of(summary: Path) -> dict[str, float]:
    """Mean foreground Dice of each case, by name; cases in which no class has a value are left out."""
    found = {}
    for case in json.loads(summary.read_text())["metric_per_case"]:
        values = np.array([metrics["Dice"] for metrics in case["metrics"].values()], float)
        if np.isfinite(values).any():
            found[Path(case["reference_file"]).name] = float(np.nanmean(values))
    return found


def mean_with_interval(runs: Sequence[dict[str, float]]) -> tuple[float, float | None, float | None]:
    """Mean over runs and their common cases, and its 95 % bootstrap interval over both."""
    from nnunet_nas.evaluation.intervals import Runs, bootstrap_interval

    cases = sorted(set.intersection(*(set(run) for run in runs)))
    values = np.array([[run[case] for case in cases] for run in runs])
    interval = bootstrap_interval(Runs(np.zeros((1, len(cases))), values))
    mean = float(values.mean())
    return (mean, None, None) if interval is None else (mean, interval.low, interval.high)


def line_of(study: Study, dataset: int, base: str, method: str) -> Line:
    """A row without its comparison."""
    cells = [Cell(dataset, base, method, seed) for seed in study.content["seeds"]]
    done = [(cell, content) for cell in cells if (content := records.read(predicted(cell))) is not None]
    names = sorted({content["configuration"] for _, content in done})
    line = Line(dataset, base, method, len(done), len(cells), " ".join(names))
    if not done:
        return line
    for cost in ("parameters", "macs", "to_train_mib"):
        setattr(line, cost, statistics.mean(content[cost] for _, content in done))
    spent = [_spent(study, cell) for cell, _ in done]
    line.iterations, line.seconds = (statistics.mean(values) for values in zip(*spent, strict=True))
    line.dice, line.dice_low, line.dice_high = mean_with_interval([dice_of(Path(c["summary"])) for _, c in done])
    return line


def _spent(study: Study, cell: Cell) -> tuple[float, float]:
    """Iterations and seconds of search and training, all folds; of the backbone, where the method needs one."""
    found = [records.read(derived(cell)), *(records.read(trained(cell, fold)) for fold in study.folds)]
    needs_backbone = cell.method != BASE and trained(cell.of(BASE), study.folds[0]) in (
        *study.train_needs(cell, study.folds[0]),
        *study.derive_needs(cell),
    )
    if needs_backbone:
        found += [records.read(trained(cell.of(BASE), fold)) for fold in study.folds]
    known = [content for content in found if content is not None]
    return sum(content["iterations"] for content in known), sum(content["seconds"] for content in known)


def compare(study: Study, dataset: int, base: str, lines: Sequence[Line]) -> list[str]:
    """Adds differences to the rows of a base; returns what could not be compared."""
    from nnunet_nas.evaluation import job
    from nnunet_nas.evaluation.job import CompareSettings

    problems = []
    present = {line.method: line for line in lines if line.seeds}
    references: dict[str, list[str]] = {}
    for method in present:
        if method != BASE:
            references.setdefault(study.reference(method), []).append(method)
    for reference, others in references.items():
        if reference not in present:
            problems.append(f"data set {dataset}, base {base}: nothing to compare {', '.join(others)} with")
            continue
        models = [_runs(study, dataset, base, method) for method in (reference, *others)]
        folder = FOLDER / "compare" / f"{dataset}_{base}_{reference}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            report = job.run(CompareSettings(models=models, margin=study.content["margin"], common=True, searched=True))
            job.write(report, folder)
        except NasError as error:
            problems.append(f"data set {dataset}, base {base}: {', '.join(others)} cannot be compared ({error})")
            continue
        for method, comparison in zip(others, report.to_json()["comparisons"], strict=True):
            overall, line = comparison["rows"][0], present[method]
            line.against, line.difference = reference, overall["difference"]
            if overall.get("interval"):
                line.low, line.high = overall["interval"]["low"], overall["interval"]["high"]
            line.verdict = (overall.get("equivalence") or {}).get("verdict") or ""
    return problems


def _runs(study: Study, dataset: int, base: str, method: str) -> str:
    found = (records.read(predicted(Cell(dataset, base, method, seed))) for seed in study.content["seeds"])
    return ",".join(str(Path(content["summary"]).parent) for content in found if content is not None)


def unfinished(study: Study) -> list[str]:
    """What failed, was interrupted, or waits for something that did, by name."""
    lines = []
    for dataset in study.datasets:
        said = records.state(f"{dataset}/planned.json")
        if said not in ("done", "not begun"):
            lines.append(f"data set {dataset}: plan {said}")
    for cell in study.cells():
        if records.state(predicted(cell)) == "done":
            continue
        steps = {"prepare": prepared(cell), "derive": derived(cell)}
        steps |= {f"train on fold {fold}": trained(cell, fold) for fold in study.folds}
        steps["predict"] = predicted(cell)
        states = {step: records.state(path) for step, path in steps.items()}
        begun = [f"{step} {said}" for step, said in states.items() if said not in ("done", "not begun")]
        first = next(step for step, said in states.items() if said != "done")
        lines.append(f"{cell.name}: {'; '.join(begun) or first + _waits_for(study, cell, first)}")
    return lines


def _waits_for(study: Study, cell: Cell, step: str) -> str:
    trainings = {f"train on fold {fold}": study.train_needs(cell, fold) for fold in study.folds}
    needs = trainings.get(step, [f"{cell.dataset}/planned.json", prepared(cell), *study.derive_needs(cell)])
    missing = [path for path in needs if records.state(path) != "done"]
    return f" waits for {missing[-1]}" if missing else " not begun"


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)


def _interval(low: float | None, high: float | None, pattern: str) -> str:
    return "-" if low is None or high is None else f"[{low:{pattern}}, {high:{pattern}}]"


HEADER = (
    "data set", "base", "method", "seeds", "parameters", "MACs", "MiB to train", "iterations", "seconds", "Dice",
    "95 % interval", "against", "difference", "95 % interval", "verdict",
)  # fmt: skip


def cells_of(line: Line) -> list[str]:
    """As text."""
    return [
        str(line.dataset),
        line.base,
        line.method,
        f"{line.seeds}/{line.seeds_wanted}",
        _number(line.parameters, ",.0f"),
        "-" if line.macs is None else f"{line.macs / 1e9:.3f} G",
        _number(line.to_train_mib, ".0f"),
        _number(line.iterations, ",.0f"),
        _number(line.seconds, ",.0f"),
        _number(line.dice, ".4f"),
        _interval(line.dice_low, line.dice_high, ".4f"),
        line.against or "-",
        _number(line.difference, "+.4f"),
        _interval(line.low, line.high, "+.4f"),
        line.verdict or "-",
    ]


def as_csv(lines: Sequence[Line]) -> str:
    """All digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Line)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in asdict(line).items()} for line in lines)
    return text.getvalue()


def as_latex(lines: Sequence[Line]) -> str:
    """With booktabs."""
    escaped = str.maketrans({"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#"})
    rows = [" & ".join(cell.translate(escaped) for cell in cells) + r" \\" for cells in (HEADER, *map(cells_of, lines))]
    columns = "rlll" + "r" * (len(HEADER) - 5) + "l"
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
    return "\n".join([*body, r"\end{tabular}", ""])


def write(study: Study) -> str:
    """Writes tables and pictures of what is there; returns the table in text."""
    from nas_study.pictures import draw

    lines, problems = [], []
    groups = sorted({(cell.dataset, cell.base) for cell in study.cells()})
    for dataset, base in groups:
        own = [line_of(study, dataset, base, method) for method in study.methods_of(dataset, base)]
        problems += compare(study, dataset, base, own)
        lines += own
    text = format_table(HEADER, [cells_of(line) for line in lines], left=3)
    missing = [*unfinished(study), *problems]
    named = ["", "Not in the table:", *(f"  {line}" for line in missing)] if missing else []
    text = "\n".join([text, *named, ""])
    FOLDER.mkdir(exist_ok=True)
    replace_file(FOLDER / "study.csv", as_csv(lines).encode())
    replace_file(FOLDER / "study.tex", as_latex(lines).encode())
    for dataset in study.datasets:
        draw(
            [line for line in lines if line.dataset == dataset and line.dice is not None],
            FOLDER / f"dice_{dataset}.png",
        )
    replace_file(FOLDER / "study.txt", text.encode())
    return text


def main() -> int:
    """Writes them and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True, help="JSON file of the study, as the workflow writes it")
    args = parser.parse_args()
    print(write(Study(json.loads(args.study.read_text()))), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
