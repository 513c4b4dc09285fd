"""Pictures of a DiNTS search: the topology as a grid of resolutions and layers, and the progress of the search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas import figures
from nnunet_nas.dints.history import TopologyHistory
from nnunet_nas.dints.topology import Topology, edges

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Name, colour, and dashes of the line, so that no meaning rests on colour alone.
_STYLES: dict[str, tuple[str, str, Any]] = {
    "skip": ("skip", figures.GREY, (0, (1, 1.5))),
    "conv": ("conv", figures.BLUE, "-"),
    "yx_z": ("conv yx, then z", figures.GREEN, (0, (5, 1.5))),
    "zx_y": ("conv zx, then y", figures.ORANGE, (0, (5, 1.5, 1, 1.5))),
    "zy_x": ("conv zy, then x", figures.PURPLE, (0, (3, 1.5, 1, 1.5, 1, 1.5))),
    "y_x": ("conv y, then x", figures.ORANGE, (0, (5, 1.5, 1, 1.5))),
    "dilated": ("dilated conv", figures.GREEN, (0, (5, 1.5))),
}


def draw_answer(arguments: dict[str, Any], path: Path, title: str) -> None:
    """The topology of a network's `arch_kwargs`; see `draw_topology`."""
    topology = Topology.from_json(arguments["topology"])
    draw_topology(topology, path, first_level=int(arguments.get("first_level", 0)), title=title)


def draw_topology(topology: Topology, path: Path, *, first_level: int = 0, title: str | None = None) -> None:
    """Writes `topology_figure`, as wide as a page, at 200 dots per inch; raises what `write_figure` raises."""
    figures.write_figure(topology_figure(topology, first_level=first_level, title=title), path, dpi=200)


def draw_progress(history: TopologyHistory, path: Path, title: str) -> None:
    """Writes `progress_figure` at 100 dots per inch; raises what `write_figure` raises."""
    figures.write_figure(progress_figure(history, title), path, dpi=100)


def topology_figure(topology: Topology, *, first_level: int, title: str | None) -> Figure:
    """A grid: layers from left to right, stages from the finest at the top down; stems at the left, the chain right.

    Args:
        topology: what was found.
        first_level: stages finer than this have no cells.
        title: above the graph.
    """
    layers, stages = len(topology.layers), first_level + topology.levels
    height = 0.9 + 0.55 * stages
    figure = figures.new_figure(7.0, height)
    axes = figure.add_axes((0.07, 0.2 / height + 0.06, 0.92, 0.98 - 0.85 / height))
    _draw_edges(axes, topology, first_level)
    ends = [topology.inputs(), *({end for _, end in content} for content in topology.layers)]
    active = [sorted(level + first_level for level in reached) for reached in ends]
    for layer, reached in enumerate(active):
        for stage in range(first_level, stages):
            size, colour = (42, "black") if stage in reached else (8, "#C8C8C8")
            axes.scatter(layer, stage, s=size, color=colour, zorder=3, linewidths=0)
    for stage in active[0]:
        axes.annotate("", (-0.08, stage), (-0.75, stage), arrowprops={"arrowstyle": "->", "lw": 0.9})
        axes.text(-0.8, stage, "image", fontsize=6, ha="right", va="center")
    _draw_chain(axes, layers, active[-1])
    axes.set_xlim(-1.5, layers + 1.7)
    axes.set_ylim(stages - 0.5, -0.6)
    axes.set_yticks(range(stages), [f"stage {stage}" for stage in range(stages)], fontsize=7)
    axes.set_xticks(range(layers + 1), [str(layer) for layer in range(layers + 1)], fontsize=7)
    axes.set_xlabel("layer", fontsize=7, labelpad=1)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if title:
        axes.set_title(title, fontsize=8, pad=14)
    used = sorted({name for layer in topology.layers for name in layer.values()}, key=list(_STYLES).index)
    handles = [
        axes.plot([], [], color=colour, linestyle=dashes, lw=1.4, label=label)[0]
        for label, colour, dashes in map(_STYLES.__getitem__, used)
    ]
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.985), ncols=5, frameon=False, fontsize=6.5)
    return figure


def _draw_edges(axes: Axes, topology: Topology, first_level: int) -> None:
    arrow = {"arrowstyle": "-|>,head_width=0.12,head_length=0.22", "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    for layer, content in enumerate(topology.layers):
        for (source, end), name in content.items():
            _, colour, dashes = _STYLES[name]
            start, tip = (layer + 0.06, source + first_level), (layer + 0.94, end + first_level)
            axes.annotate("", tip, start, arrowprops={**arrow, "color": colour, "linestyle": dashes})


def _draw_chain(axes: Axes, layers: int, ends: list[int]) -> None:
    """From the coarsest node upwards to the image's resolution."""
    x = layers + 0.8
    for stage in ends:
        axes.plot([layers + 0.08, x], [stage, stage], color="black", lw=0.8)
    if ends[-1]:
        axes.annotate("", (x, 0), (x, ends[-1]), arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 0.8})
    axes.plot([x, x + 0.15], [0, 0], color="black", lw=0.8)
    axes.text(x + 0.2, 0, "labels", fontsize=6, ha="left", va="center")


def progress_figure(history: TopologyHistory, title: str) -> Figure:
    """Panels: losses and pseudo Dice; gap and log P(feasible); memory; entropies; probabilities of all edges."""
    figure = figures.new_figure(11, 11)
    grid = figure.add_gridspec(
        3, 2, height_ratios=(1, 1, 1.5), hspace=0.34, wspace=0.28, left=0.07, right=0.915, top=0.93, bottom=0.06
    )
    figure.suptitle(title, fontsize=12)
    for position, draw in enumerate((_draw_losses, _draw_feasibility, _draw_memory, _draw_entropies)):
        axes = figure.add_subplot(grid[divmod(position, 2)])
        draw(axes, history)
        figures.whole_epochs(axes)
        axes.set_xlabel("epoch")
        axes.set_xlim(-0.5, max(len(history), 2) - 0.5)
        axes.grid(alpha=0.25)
        figures.shade_warmup(axes, int(history.warmup.sum()))
    _draw_probabilities(figure.add_subplot(grid[2, :]), history)
    return figure


def _join(axes: Axes, other: Axes | None, place: Any = "upper right") -> None:
    """One legend for two scales."""
    lines = [*axes.get_lines(), *([] if other is None else other.get_lines())]
    axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc=place, framealpha=0.85)


def _draw_losses(axes: Axes, history: TopologyHistory) -> None:
    _, dice = figures.draw_losses(axes, history, marker=".")
    axes.set_title("segmentation; grey: network weights only", fontsize=10)
    if dice is not None:
        dice.set_ylim(0, 1)
    _join(axes, dice)


def _curve(axes: Axes, values: NDArray[np.float64], label: str, **looks: Any) -> None:
    axes.plot(np.arange(len(values)), values, label=label, **looks)
    axes.set_ylabel(label)


def _draw_feasibility(axes: Axes, history: TopologyHistory) -> None:
    _curve(axes, history.gap, "gap G, edges", color=figures.RED, marker=".")
    axes.set_ylabel("G, edges")
    axes.set_ylim(bottom=0)
    axes.set_title("distance from a feasible topology", fontsize=10)
    right = axes.twinx()
    _curve(right, history.log_feasible, "log P(feasible), nats", color=figures.BLUE, linestyle="--", marker=".")
    _join(axes, right, "center left")


def _draw_memory(axes: Axes, history: TopologyHistory) -> None:
    _curve(axes, history.expected_mib, "expected", color=figures.BLUE, marker=".")
    _curve(axes, history.selected_mib, "most probable topology", color=figures.GREEN, linestyle="--", marker=".")
    _curve(axes, history.budget_mib, "budget", color="black", linestyle=":")
    axes.set_ylabel("training memory, MiB")
    axes.set_ylim(bottom=0)
    axes.set_title("memory of the result", fontsize=10)
    axes.legend(fontsize=8, framealpha=0.85)


def _draw_entropies(axes: Axes, history: TopologyHistory) -> None:
    _curve(axes, history.pattern_entropy, "patterns, nats per layer", color=figures.BLUE, marker=".")
    axes.set_ylim(0, 1.3 * float(history.pattern_entropy.max()) + 1e-3)
    axes.set_title("entropies", fontsize=10)
    right = axes.twinx()
    _curve(
        right, history.operation_entropy, "operations, nats per edge", color=figures.ORANGE, linestyle="--", marker="."
    )
    right.set_ylim(0, 1.1 * float(history.operation_entropy.max()) + 1e-3)
    _join(axes, right, "lower left")


def _draw_probabilities(axes: Axes, history: TopologyHistory) -> None:
    """One row per edge: probability over time; a bar at the right marks the edges that are selected now."""
    logits = history.edge_logits
    epochs, layers, count = logits.shape
    probability = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
    image = axes.imshow(
        probability.reshape(epochs, -1).T, aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest",
        extent=(-0.5, epochs - 0.5, layers * count - 0.5, -0.5),
    )  # fmt: skip
    for layer in range(1, layers):
        axes.axhline(layer * count - 0.5, color="white", lw=0.8)
    axes.set_yticks(count * np.arange(layers) + (count - 1) / 2, [str(layer) for layer in range(layers)])
    axes.set_ylabel("layer")
    figures.whole_epochs(axes)
    axes.set_xlabel("epoch")
    pairs = ", ".join(f"{source}→{end}" for source, end in edges(history.levels))
    axes.set_title(f"probability of every edge (per layer from above: {pairs}); red marks: selected", fontsize=9)
    selected = np.flatnonzero(history.selected[-1].reshape(-1))
    # Beside the axes, whatever the number of epochs.
    axes.scatter(
        np.full(len(selected), 1.008), selected, marker="s", s=7, color=figures.RED, clip_on=False,
        transform=axes.get_yaxis_transform(), linewidths=0,
    )  # fmt: skip
    bar = axes.figure.colorbar(image, ax=axes, pad=0.03, fraction=0.03)
    bar.set_label("probability")
