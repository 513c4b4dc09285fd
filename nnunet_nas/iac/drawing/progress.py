"""How far a search for cells has come: losses, pruning, stability tests, leading operations, time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas import figures
from nnunet_nas.iac.drawing.style import name_operation
from nnunet_nas.iac.genotype import EDGES, INPUT_NODES, NODES, OPERATIONS, discretise, edges_into
from nnunet_nas.iac.history import CellHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Floats = NDArray[np.float64]

_NODE_COLOURS = {2: figures.BLUE, 3: figures.ORANGE, 4: figures.GREEN, 5: figures.PURPLE}


def draw_progress(history: CellHistory, path: Path, *, title: str) -> None:
    """Writes `progress_figure` at 100 dots per inch; raises what `write_figure` raises."""
    figures.write_figure(progress_figure(history, title=title), path, dpi=100)


def progress_figure(history: CellHistory, *, title: str) -> Figure:
    """Losses and pseudo Dice, pruning, stability tests, the leading operation of each edge, and time, over epochs.

    The panels of pruning and stability tests are left out for a search without tests. Divergences of exactly 0 have no
    place on a logarithmic axis and are not drawn.
    """
    epochs = len(history)
    with_tests = bool(np.isfinite(history.js).any() or np.isfinite(history.tau).any())
    of_tests = [(_draw_pruning, 1.6), (_draw_tests, 2.4)] if with_tests else []
    drawn = [(_draw_losses, 2.2), *of_tests, (_draw_leaders, 3.3), (_draw_seconds, 1.1)]
    heights = [height for _, height in drawn]
    figure = figures.new_figure(10, 1.15 * sum(heights) + 0.9)
    grid = figure.add_gridspec(
        len(heights),
        height_ratios=heights,
        left=0.085,
        right=0.745,
        top=1 - 0.45 / figure.get_figheight(),
        bottom=0.5 / figure.get_figheight(),
        hspace=0.12,
    )
    panels = [figure.add_subplot(grid[row]) for row in range(len(heights))]
    figure.suptitle(title, fontsize=12, x=0.085, y=1 - 0.12 / figure.get_figheight(), ha="left", va="top")
    warmup = int(history.warmup.sum())
    for axes, (draw, _) in zip(panels, drawn, strict=True):
        draw(axes, history)
        axes.set_xlim(-0.5, epochs - 0.5)
        figures.whole_epochs(axes)
        axes.tick_params(labelsize=8, labelbottom=axes is panels[-1])
        axes.yaxis.set_label_coords(-0.075, 0.5)
    # All but the heat map, whose cells would be hidden.
    for axes in panels[:-2] + panels[-1:]:
        axes.grid(alpha=0.3)
        axes.spines["top"].set_visible(False)
        figures.shade_warmup(axes, warmup)
    if warmup:
        panels[0].text(0.002, 1.01, "warm-up", fontsize=8, ha="left", va="bottom", transform=panels[0].transAxes)
    panels[-1].set_xlabel("epoch")
    return figure


def _draw_losses(axes: Axes, history: CellHistory) -> None:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linewidth": 1.3, "marker": "o" if len(history) <= 60 else "", "markersize": 2.5}
    lines, dice = figures.draw_losses(axes, history, **style)
    if not np.isfinite([history.train_loss, history.val_loss, history.dice]).any():
        axes.text(0.5, 0.5, "nothing was measured yet", fontsize=9, ha="center", transform=axes.transAxes)
    if dice is not None:
        lines[-1].set_label("pseudo Dice (right)")
        _style_right(dice, figures.DARK_GREEN)
    handles = [
        Line2D([], [], color=line.get_color(), linestyle=line.get_linestyle(), label=str(line.get_label()))
        for line in lines
    ]
    _legend(axes, handles)


def _style_right(axes: Axes, colour: str) -> None:
    """A second scale in the colour of what it measures."""
    axes.yaxis.label.set_color(colour)
    axes.tick_params(labelsize=8, colors=colour)
    axes.spines["top"].set_visible(False)


def _draw_pruning(axes: Axes, history: CellHistory) -> None:
    from matplotlib.lines import Line2D

    steps = np.arange(len(history) + 1) - 0.5
    axes.stairs(history.operations_left, steps, baseline=None, color=figures.BLUE, linewidth=1.6)
    axes.set_ylim(0, len(EDGES) * len(OPERATIONS) * 1.05)
    axes.set_yticks([14, 42, 70, 98])
    axes.set_ylabel("operations left")
    settled = axes.twinx()
    settled.stairs(history.edges_settled, steps, baseline=None, color=figures.RED, linewidth=1.6, linestyle="--")
    settled.set_ylim(0, len(EDGES) * 1.05)
    settled.set_yticks([0, 7, 14])
    settled.set_ylabel("edges settled")
    _style_right(settled, figures.RED)
    left, done = history.operations_left[-1], history.edges_settled[-1]
    handles = [
        Line2D([], [], color=figures.BLUE, label=f"operations left:\n{left} of {len(EDGES) * len(OPERATIONS)}"),
        Line2D([], [], color=figures.RED, linestyle="--", label=f"edges settled:\n{done} of {len(EDGES)} (right)"),
    ]
    _legend(axes, handles)


def _draw_tests(axes: Axes, history: CellHistory) -> None:
    from matplotlib.lines import Line2D

    epochs = np.arange(len(history))
    divergence = np.where(history.js > 0, history.js, np.nan)
    undecided = np.cumsum(history.active.sum(axis=2) == 1, axis=0) <= 1
    tau = np.where(undecided & (history.tau > 0), history.tau, np.nan)
    for row, (_, target) in enumerate(EDGES):
        style: dict[str, Any] = {"color": _NODE_COLOURS[target], "linewidth": 0.9}
        axes.plot(epochs, divergence[:, row], marker=".", markersize=3, alpha=0.85, **style)
        axes.plot(epochs, tau[:, row], linestyle="--", marker="_" if len(epochs) == 1 else "", alpha=0.6, **style)
    if np.isfinite(divergence).any() or np.isfinite(tau).any():
        axes.set_yscale("log")
        axes.minorticks_off()
    axes.set_ylabel("JS divergence (nats)")
    dashed: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 0.9}
    handles = [
        Line2D([], [], color="black", marker=".", linewidth=0.9, label="divergence,\none line per edge"),
        *([Line2D([], [], label="threshold, until\nthe edge is settled", **dashed)] if np.isfinite(tau).any() else []),
        *(
            Line2D([], [], color=colour, linewidth=3, label=f"into node {node}")
            for node, colour in _NODE_COLOURS.items()
        ),
    ]
    _legend(axes, handles)


def _draw_leaders(axes: Axes, history: CellHistory) -> None:
    from matplotlib.colors import FuncNorm

    leading = history.probabilities.max(axis=2).T
    picture = axes.imshow(
        leading,
        aspect="auto",
        interpolation="nearest",
        cmap="cividis",
        norm=FuncNorm((_contrast, _from_contrast), 1 / len(OPERATIONS), 1),
        extent=(-0.5, len(history) - 0.5, len(EDGES) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(EDGES)), [f"{source}\N{RIGHTWARDS ARROW}{target}" for source, target in EDGES])
    axes.set_ylabel("edge")
    for node in range(INPUT_NODES, NODES - 1):
        axes.axhline(edges_into(node).stop - 0.5, color="white", linewidth=1.5)
    last = history.probabilities[-1]
    kept = {edge.row for edge in discretise(last, history.weights[-1]).edges}
    for row, shares in enumerate(last):
        tied = (shares == shares.max()).sum() > 1
        name_operation(axes, row, None if tied else OPERATIONS[shares.argmax()], bold=row in kept, size=7.5)
    scale = axes.inset_axes((1.135, 0.12, 0.018, 0.76))
    bar = axes.figure.colorbar(picture, cax=scale, ticks=[])
    bar.minorticks_off()
    ticks = {1 / len(OPERATIONS): "1/7", 0.15: "0.15", 0.2: "0.2", 0.3: "0.3", 0.5: "0.5", 1: "1"}
    bar.set_ticks(list(ticks), labels=list(ticks.values()), fontsize=8)
    bar.set_label("probability of the leading operation\n(bold: would be kept now)", fontsize=8)


def _contrast(probability: Floats) -> Floats:
    """From 0 at 1/7 to 1 at 1; steep at first, where differences of a thousandth decide long before any pruning."""
    most = len(OPERATIONS)
    # Rounding puts equal probabilities below 1/7, and matplotlib asks for 0.
    return np.asarray(np.cbrt(np.log(np.maximum(probability * most, 1)) / np.log(most)))


def _from_contrast(colour: Floats) -> Floats:
    """The inverse of `_contrast`."""
    return np.asarray(np.exp(np.power(colour, 3) * np.log(len(OPERATIONS))) / len(OPERATIONS))


def _draw_seconds(axes: Axes, history: CellHistory) -> None:
    steps = np.arange(len(history) + 1) - 0.5
    axes.stairs(history.seconds, steps, fill=True, color=figures.SKY)
    total = float(np.nansum(history.seconds))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds")
    axes.annotate(
        f"in all {_duration(total)}", (1, 0.5), (8, 0), "axes fraction", "offset points", fontsize=8, va="center"
    )
    axes.spines["right"].set_visible(False)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _legend(axes: Axes, handles: list[Line2D]) -> None:
    """To the right of the panel, where no line can hide it."""
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.095, 0.5), fontsize=8, frameon=False)
