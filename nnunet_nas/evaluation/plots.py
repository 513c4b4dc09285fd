"""A picture of paired differences, as wide as a column of a paper for one pair of models.

A panel per class: each case is a dot, sorted by its difference; the band is the margin of equivalence; the line through
the diamond at the right is the mean difference with its bootstrap interval. Where a few cases differ by far more than
the margin, the axis is linear within ten margins and logarithmic beyond, and says so. Won and lost cases differ in
shape, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_nas.evaluation.intervals import Floats
from nnunet_nas.evaluation.paired import Comparison
from nnunet_nas.evaluation.report import PairTable
from nnunet_nas.evaluation.rows import FOREGROUND, Row
from nnunet_nas.figures import BLUE, LIGHT_GREY, RED, YELLOW, new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 8
_COLUMN = 3.5  # inches
_LINEAR_MARGINS = 10


def draw_differences(tables: Sequence[PairTable], path: Path) -> None:
    """Draws the tables side by side, 300 dots per inch.

    Args:
        tables: of one metric and the same cases, each for another second model.
        path: of the PNG file.

    Raises:
        EnvironmentProblem: no permission or no space.
    """
    write_figure(differences_figure(tables), path, dpi=300)


def differences_figure(tables: Sequence[PairTable]) -> Figure:
    """The picture: a column per table, a row per class.

    Of more than eight classes, the foreground mean and those with the largest mean differences are shown.
    """
    keys = _shown(tables)
    figure = new_figure(_COLUMN * len(tables), 0.85 + 1.45 * len(keys))
    figure.set_layout_engine("constrained")
    group, one = tables[0].group, tables[0].letters[0]
    figure.suptitle(f"{group.title}\n{one}: {_shortened(group.models[0].name)}", fontsize=6.5)
    grid = figure.subplots(len(keys), len(tables), squeeze=False, sharey="row")
    for line, key in enumerate(keys):
        for axes, table in zip(grid[line], tables, strict=True):
            row = _row_of(table, key)
            _draw_row(axes, row, table)
            second = f"{table.letters[1]}: {_shortened(table.group.models[table.position].name)}"
            title = [_outcome(row, table)] if line else [second, _outcome(row, table)]
            axes.set_title("\n".join(title), fontsize=6, loc="left", pad=3)
        grid[line, 0].set_ylabel(f"{tables[0].metric.title}, difference to {one}", fontsize=6.5)
        _scale(grid[line, 0], [_row_of(table, key) for table in tables], tables[0].metric.margin)
    for axes in grid[-1]:
        axes.set_xlabel(f"{'patients' if group.patients else 'cases'}, sorted by difference", fontsize=6.5)
    return figure


def _shown(tables: Sequence[PairTable]) -> list[str]:
    """Keys of the rows that get a panel."""
    keys = [row.key for row in tables[0].rows]
    if len(keys) <= MOST_PANELS:
        return keys

    def largest(key: str) -> float:
        found = [_row_of(table, key).comparison for table in tables]
        return max((abs(comparison.difference) for comparison in found if comparison), default=0.0)

    classes = sorted((key for key in keys if key != FOREGROUND), key=largest, reverse=True)
    chosen = {FOREGROUND, *classes[: MOST_PANELS - 1]}
    return [key for key in keys if key in chosen]


def _row_of(table: PairTable, key: str) -> Row:
    return next(row for row in table.rows if row.key == key)


def _outcome(row: Row, table: PairTable) -> str:
    found = row.comparison
    if found is None:
        return f"{row.name}: no case"
    letter = table.letters[1]
    return f"{row.name}: {letter} better in {found.won}, worse in {found.lost}, equal in {found.tied}"


def _shortened(name: str, most: int = 58) -> str:
    """The end of a name tells models apart better than its start."""
    return name if len(name) <= most else "…" + name[-most + 1 :]


def _draw_row(axes: Axes, row: Row, table: PairTable) -> None:
    margin = table.metric.margin
    axes.axhspan(-margin, margin, color=YELLOW, alpha=0.35, linewidth=0, zorder=0)
    axes.axhline(0, color="black", linewidth=0.6, zorder=1)
    axes.tick_params(labelsize=6, length=2, pad=1.5)
    axes.spines[["top", "right"]].set_visible(False)
    if row.comparison is None:
        axes.set_xticks([])
        return
    differences = np.sort(row.differences)
    gains = differences if table.metric.higher_is_better else -differences
    positions = np.arange(1, len(differences) + 1)
    for wanted, colour, marker in ((gains > 0, BLUE, "^"), (gains < 0, RED, "v"), (gains == 0, LIGHT_GREY, "o")):
        axes.scatter(positions[wanted], differences[wanted], s=9, color=colour, marker=marker, linewidth=0, zorder=3)
    _draw_mean(axes, row.comparison, len(differences))


def _draw_mean(axes: Axes, found: Comparison, cases: int) -> None:
    """The mean and its interval, in a lane of its own to the right of the cases."""
    lane = cases + max(1.0, 0.1 * cases)
    axes.axvline((cases + 0.5 + lane) / 2, color="#CCCCCC", linewidth=0.5, zorder=1)
    if found.interval is not None:
        axes.plot([lane, lane], [found.interval.low, found.interval.high], color="black", linewidth=1.6, zorder=4)
    axes.plot([lane], [found.difference], color="black", marker="D", markersize=3.2, zorder=5)
    axes.set_xlim(0, lane + (lane - cases))
    ticks = sorted({1, cases, *_ticks(cases)})
    axes.set_xticks([*ticks, lane], [*map(str, ticks), "mean"])


def _ticks(cases: int) -> list[int]:
    """Round numbers of cases, six at most, none so close to the last case that their names would meet."""
    step = next((step for step in (5, 10, 20, 50, 100, 200, 500, 1000) if cases / step <= 6), 5000)
    return [tick for tick in range(step, cases, step) if cases - tick > step / 2]


def _scale(axes: Axes, rows: Sequence[Row], margin: float) -> None:
    """Both the margin and the largest difference must be visible."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    differences: Floats = np.concatenate([row.differences for row in rows])
    low, high = min(differences.min(initial=0.0), -1.3 * margin), max(differences.max(initial=0.0), 1.3 * margin)
    linear = _LINEAR_MARGINS * margin
    if max(high, -low) <= 2 * linear:
        pad = 0.06 * (high - low)
        axes.set_ylim(low - pad, high + pad)
        return
    axes.set_yscale("symlog", linthresh=linear, linscale=1.2)
    low, high = (end * 1.4 if abs(end) > linear else np.sign(end) * (abs(end) + 0.1 * linear) for end in (low, high))
    axes.set_ylim(low, high)
    steps = [0.5, 1, *(factor * 10.0**power for power in range(8) for factor in (3, 10))]
    ticks = [sign * step * linear for step in steps for sign in (-1, 1)]
    axes.yaxis.set_major_locator(FixedLocator([0.0, *(tick for tick in ticks if low <= tick <= high)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel(f"{axes.get_ylabel()}\n(logarithmic beyond ±{linear:g})", fontsize=6.5)
