"""How the final cell emerged (IAC-LTH, Figures 3 to 7)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.figures import BLUE, GREEN, PURPLE, RED, new_figure, shade_warmup, whole_epochs, write_figure
from nnunet_nas.iac.drawing.style import COLOURS, name_operation
from nnunet_nas.iac.dynamics import CRITERIA, Analysis, Average
from nnunet_nas.iac.genotype import EDGES, OPERATIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

_CURVES = {
    "cosine": ("continuous (cosine)", "black", "-"),
    "top_3": ("top-3 (Hamming)", BLUE, ":"),
    "top_2": ("top-2 (Hamming)", GREEN, "-."),
    "top_1": ("top-1 (Hamming)", RED, "--"),
    "cell": ("discrete cell (Hamming)", PURPLE, (0, (6, 1, 1, 1, 1, 1))),
}
# Rows of Figure 4: how two epochs are compared.
_MATRICES = {"cosine": "full (cosine)", "top_1": "top-1", "top_2": "top-2", "top_3": "top-3", "cell": "discrete cell"}
_MARKS = {
    "top_3": ("in the top-3 of its edge", BLUE, "o"),
    "top_2": ("in the top-2", GREEN, "s"),
    "top_1": ("top-1", RED, "D"),
    "inputs": ("edge among the two inputs of its node", PURPLE, "^"),
}


def draw_dynamics(analysis: Analysis, path: Path, title: str) -> None:
    """Writes `dynamics_figure` at 150 dots per inch; raises what `write_figure` raises."""
    write_figure(dynamics_figure(analysis, title), path, dpi=150)


def dynamics_figure(analysis: Analysis, title: str) -> Figure:
    """Similarity to the final cell, importances, similarities between epochs, and when edges found their operations."""
    figure = new_figure(9, 13.0)
    outer = figure.add_gridspec(
        3, 1, left=0.08, right=0.9, top=0.945, bottom=0.045, height_ratios=[1, 0.55, 1.5], hspace=0.42
    )
    upper, middle = outer[0].subgridspec(1, 2, wspace=0.24), outer[1].subgridspec(1, len(_MATRICES), wspace=0.3)
    figure.suptitle(title, fontsize=12, y=0.99, va="top")
    _draw_similarity(figure.add_subplot(upper[0]), analysis)
    _draw_importances(figure.add_subplot(upper[1]), analysis)
    for column, (name, label) in enumerate(_MATRICES.items()):
        matrix = analysis.cosine if name == "cosine" else analysis.hamming[name]
        _draw_matrix(figure.add_subplot(middle[column]), matrix, label)
    _draw_entries(figure.add_subplot(outer[2]), analysis)
    return figure


def draw_averages(average: Average, path: Path, title: str) -> None:
    """Similarity to each search's last epoch, mean and standard deviation, at 150 dots per inch."""
    figure = new_figure(9, 4.6)
    axes = figure.add_axes((0.08, 0.24, 0.88, 0.64))
    figure.suptitle(title, fontsize=12, y=0.98, va="top")
    for name, (mean, spread) in average.to_final.items():
        label, colour, style = _CURVES[name]
        axes.plot(mean, label=label, color=colour, linestyle=style, linewidth=1.4)
        axes.fill_between(np.arange(len(mean)), mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
    _finish_similarity(axes, len(mean))
    axes.set_ylim(top=1.02)
    write_figure(figure, path, dpi=150)


def _draw_similarity(axes: Axes, analysis: Analysis) -> None:
    for name, values in analysis.to_final().items():
        label, colour, style = _CURVES[name]
        axes.plot(
            values, label=label, color=colour, linestyle=style, linewidth=1.4, marker="." if len(analysis) < 2 else ""
        )
    shade_warmup(axes, analysis.warmup_epochs)
    _finish_similarity(axes, len(analysis))


def _finish_similarity(axes: Axes, epochs: int) -> None:
    axes.set_xlim(-0.5, epochs - 0.5)
    axes.set_title("similarity to the last epoch", fontsize=10)
    axes.set_xlabel("epoch")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.48, -0.13), ncols=2, frameon=False)
    _plain(axes)


def _draw_importances(axes: Axes, analysis: Analysis) -> None:
    """Every operation of every edge (Figure 3); those of the final cell in the colours of their families."""
    final = {edge.row * len(OPERATIONS) + OPERATIONS.index(edge.operation) for edge in analysis.genotype.edges}
    marker = "." if len(analysis) < 2 else ""
    for column, values in enumerate(analysis.importance.T):
        chosen = column in final
        colour = COLOURS[OPERATIONS[column % len(OPERATIONS)]] if chosen else "0.8"
        axes.plot(
            values, color=colour, linewidth=1.4 if chosen else 0.5, marker=marker, zorder=3 if chosen else 2, gid="path"
        )
    shade_warmup(axes, analysis.warmup_epochs)
    axes.set_xlim(-0.5, len(analysis) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_title("importance of every operation (coloured: in the final cell)", fontsize=9)
    axes.set_xlabel("epoch")
    _plain(axes)


def _draw_matrix(axes: Axes, matrix: Floats, label: str) -> None:
    """Similarities between epochs (Figure 4)."""
    lowest = min(float(matrix.min()), 0.999)
    picture = axes.imshow(matrix, cmap="cividis", interpolation="nearest", origin="lower", vmax=1, vmin=lowest)
    axes.set_title(label, fontsize=8)
    axes.tick_params(labelsize=6)
    bar = axes.figure.colorbar(picture, ax=axes, orientation="horizontal", fraction=0.06, pad=0.16)
    bar.set_ticks([lowest, 1], labels=[f"{lowest:.3g}", "1"])
    bar.ax.tick_params(labelsize=6)
    last = len(matrix) - 1
    axes.set_xticks(sorted({0, last}))
    axes.set_yticks(sorted({0, last}))


def _draw_entries(axes: Axes, analysis: Analysis) -> None:
    """One row per edge with a lane per criterion: a mark where it is met first, a line until it is met for good."""
    from matplotlib.lines import Line2D

    for row, edge in enumerate(analysis.edges):
        for lane, name in enumerate(CRITERIA):
            first, last = edge.enters[name], edge.stays[name]
            if first is None:
                continue
            _, colour, marker = _MARKS[name]
            y = row + (lane - 1.5) * 0.2
            if last is not None and last > first:
                axes.plot([first, last], [y, y], color=colour, linewidth=1.2, alpha=0.7)
                axes.plot(last, y, color=colour, marker="|", markersize=5)
            axes.plot(first, y, color=colour, marker=marker, markersize=3.6, linestyle="none", zorder=3, clip_on=False)
        name_operation(axes, row, None if edge.difficulty is None else edge.operation, bold=edge.kept, size=8)
    for row in range(len(EDGES) - 1):
        ends = EDGES[row][1] != EDGES[row + 1][1]
        axes.axhline(row + 0.5, color="black" if ends else "0.85", linewidth=0.8, zorder=1)
    shade_warmup(axes, analysis.warmup_epochs)
    axes.set_yticks(range(len(EDGES)), [f"{edge.source}\N{RIGHTWARDS ARROW}{edge.target}" for edge in analysis.edges])
    axes.set_xlim(-0.5, len(analysis) - 0.5)
    axes.set_ylim(len(EDGES) - 0.5, -0.5)
    axes.set_ylabel("edge")
    axes.set_xlabel("epoch")
    axes.set_title("when the final operation of each edge got there (bold: edge kept)", fontsize=10, pad=24)
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=4, linestyle="none", label=label)
        for label, colour, marker in _MARKS.values()
    ]
    handles.append(Line2D([], [], color="0.4", marker="|", markevery=[1], label="until it stays"))
    axes.legend(handles=handles, ncols=5, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 0.995), frameon=False)
    _plain(axes)
    axes.grid(visible=False, axis="y")


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    whole_epochs(axes)
