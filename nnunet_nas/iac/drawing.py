"""Pictures of a search for cells: the cell that it found, its progress, and its dynamics (IAC-LTH, Figures 3 to 7).

Families of operations keep their colours in all pictures.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.figures import new_figure, write_figure
from nnunet_nas.iac.dynamics import CRITERIA, Analysis
from nnunet_nas.iac.genotype import EDGES, INPUT_NODES, NODES, OPERATIONS, Edge, Genotype, discretise
from nnunet_nas.iac.history import CellHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Floats = NDArray[np.float64]

_NAMES = {
    "identity": "identity",
    "max_pool_3": "max pool 3",
    "avg_pool_3": "avg pool 3",
    "sep_conv_3": "sep conv 3",
    "sep_conv_5": "sep conv 5",
    "dil_conv_3": "dil conv 3",
    "dil_conv_5": "dil conv 5",
}
_COLOURS = {
    "identity": "#5F5F5F",
    "max_pool_3": "#D55E00",
    "avg_pool_3": "#D55E00",
    "sep_conv_3": "#0072B2",
    "sep_conv_5": "#0072B2",
    "dil_conv_3": "#00815E",
    "dil_conv_5": "#00815E",
}
_NODE_COLOURS = {2: "#0072B2", 3: "#E69F00", 4: "#009E73", 5: "#CC79A7"}
_TIE = "#8C8C8C"


def draw_cell(genotype: Genotype, path: FilePath, title: str | None = None) -> None:
    """Draws a discrete cell as a graph, 3.5 inches wide (a column of a paper) at 300 dots per inch.

    Args:
        genotype: the cell.
        path: of the PNG file.
        title: above the graph.

    Raises:
        EnvironmentProblem: no permission or no space.
    """
    write_figure(cell_figure(genotype, title), path, dpi=300)


def draw_progress(history: CellHistory, path: FilePath, *, title: str) -> None:
    """Draws how far a search has come, see `progress_figure`, at 100 dots per inch.

    Args:
        history: of one epoch or more.
        path: of the PNG file.
        title: above all panels.

    Raises:
        EnvironmentProblem: no permission or no space.
    """
    write_figure(progress_figure(history, title=title), path, dpi=100)


def draw_dynamics(analysis: Analysis, path: FilePath, title: str) -> None:
    """Draws how the final cell emerged, see `dynamics_figure`, at 150 dots per inch.

    Args:
        analysis: of a search.
        path: of the PNG file.
        title: above all panels.

    Raises:
        EnvironmentProblem: no permission or no space.
    """
    write_figure(dynamics_figure(analysis, title), path, dpi=150)


# All lengths of the cell's drawing are inches, y grows upwards.
_WIDTH = 3.5
_CENTRE = 1.5
_RADIUS = 0.12
_BOX = (0.62, 0.17)
_SLOT = 0.36
_BOX_ABOVE_NODE = 0.31
_PITCH = 0.88
_FIRST_LANE = 0.80
_LANE = 0.13
_BAR_LEFT = 3.02
_BAR_WIDTH = 0.24


@dataclass(frozen=True)
class _Wire:
    """The way of one edge: from its source to the box with its operation, and on to its target.

    Attributes:
        edge: kept edge.
        slot: horizontal position of the box from the centre, -1 or 1.
        lane: signed number of the vertical lane beside the nodes that it passes, 0 if it passes none.
    """

    edge: Edge
    slot: int
    lane: int


def cell_figure(genotype: Genotype, title: str | None = None) -> Figure:
    """The cell from top to bottom: inputs, one row per computed node, and the concatenation at the side.

    The two operations into a node stand right above it, so that names cannot meet whatever the cell is. An edge that
    passes other nodes does so in a lane of its own beside them, on the side that gives short wires and few crossings.
    """
    from matplotlib.patches import Circle, FancyBboxPatch

    top = 0.30 if title else 0.08
    height = top + 0.45 + _PITCH * (NODES - INPUT_NODES) + 0.62
    figure = new_figure(_WIDTH, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, _WIDTH), ylim=(0, height))
    if title:
        axes.text(_WIDTH / 2, height - 0.17, title, ha="center", va="center", fontsize=8, gid="title")
    places = _places(height - top - 0.30)
    for wire in _route(genotype, places):
        colour = _COLOURS[wire.edge.operation]
        before, after = _paths(wire, places)
        name = f"{wire.edge.source}->{wire.edge.target}"
        _draw_arrow(axes, before, colour, gid=f"wire {name}")
        _draw_arrow(axes, after, colour, gid=f"wire {name}", curved=False)
        x, y = _box_centre(wire, places)
        axes.add_patch(
            FancyBboxPatch(
                (x - _BOX[0] / 2, y - _BOX[1] / 2),
                *_BOX,
                boxstyle="round,pad=0,rounding_size=0.05",
                facecolor=colour,
                edgecolor="none",
                zorder=4,
                gid=f"box {name}",
            )
        )
        axes.text(
            x, y - 0.005, _NAMES[wire.edge.operation], color="white", fontsize=7, ha="center", va="center", zorder=5
        )
    for node, (x, y) in enumerate(places):
        face = "#FFF3C4" if node < INPUT_NODES else "white"
        axes.add_patch(
            Circle((x, y), _RADIUS, facecolor=face, edgecolor="black", linewidth=0.9, zorder=4, gid=f"node {node}")
        )
        axes.text(x, y - 0.005, str(node), fontsize=8, ha="center", va="center", zorder=5)
    for node, name in enumerate(("encoder skip", "decoder, upsampled")):
        x, y = places[node]
        axes.text(x, y + _RADIUS + 0.05, name, fontsize=7, ha="center", va="bottom")
    _draw_output(axes, places)
    return figure


def _places(first: float) -> list[tuple[float, float]]:
    """Centres of the nodes, (x, y)."""
    inputs = [(_CENTRE - 0.85, first), (_CENTRE + 0.85, first)]
    return inputs + [(_CENTRE, first - _PITCH * row - 0.02) for row in range(1, NODES - INPUT_NODES + 1)]


def _draw_output(axes: Axes, places: list[tuple[float, float]]) -> None:
    """The concatenation of the computed nodes, its 1x1 convolution and the output."""
    from matplotlib.patches import FancyBboxPatch

    grey = "#8C8C8C"
    last = places[-1][1]
    bottom, top = last - 0.16, places[INPUT_NODES][1] + 0.16
    middle = _BAR_LEFT + _BAR_WIDTH / 2
    for x, y in places[INPUT_NODES:]:
        _draw_arrow(axes, np.array([[x + _RADIUS, y], [_BAR_LEFT, y]]), grey, gid="wire concat", curved=False)
    boxes = [
        (middle, (bottom + top) / 2, _BAR_WIDTH, top - bottom, "concatenation", 90),
        (middle - 0.1, bottom - 0.27, 0.62, 0.17, "conv 1\N{MULTIPLICATION SIGN}1", 0),
    ]
    for x, y, width, height, name, rotation in boxes:
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.05",
                facecolor="#EDEDED",
                edgecolor=grey,
                linewidth=0.8,
                zorder=4,
                gid=f"box {name}",
            )
        )
        axes.text(x, y, name, fontsize=7, rotation=rotation, ha="center", va="center", zorder=5)
    below = bottom - 0.27
    _draw_arrow(axes, np.array([[middle, bottom], [middle, below + 0.085]]), grey, gid="wire concat", curved=False)
    _draw_arrow(axes, np.array([[middle - 0.41, below], [middle - 0.80, below]]), grey, gid="wire concat", curved=False)
    axes.text(middle - 0.85, below, "output", fontsize=7, ha="right", va="center")


def _draw_arrow(axes: Axes, points: Floats, colour: str, *, gid: str, curved: bool = True) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    codes = [Path.MOVETO] + [Path.CURVE4 if curved else Path.LINETO] * (len(points) - 1)
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points, codes),
            arrowstyle="-|>,head_length=2.6,head_width=1.5",
            mutation_scale=1,
            color=colour,
            linewidth=1.1,
            joinstyle="round",
            capstyle="round",
            zorder=1 if gid == "wire concat" else 2,
            gid=gid,
        )
    )


def _box_centre(wire: _Wire, places: list[tuple[float, float]]) -> tuple[float, float]:
    x, y = places[wire.edge.target]
    return x + wire.slot * _SLOT, y + _BOX_ABOVE_NODE


def _paths(wire: _Wire, places: list[tuple[float, float]]) -> tuple[Floats, Floats]:
    """The way to the box, cubic Bezier curves, (1 + 3 n, 2), and the straight line on to the target, (2, 2)."""
    x, y = _box_centre(wire, places)
    source, target = places[wire.edge.source], places[wire.edge.target]
    way = [(source[0], source[1] - _RADIUS)]
    if wire.lane:
        lane = _CENTRE + np.sign(wire.lane) * (_FIRST_LANE + _LANE * (abs(wire.lane) - 1))
        passed = [places[node][1] for node in range(max(wire.edge.source + 1, INPUT_NODES), wire.edge.target)]
        way += [(lane, passed[0] + _BOX_ABOVE_NODE + 0.02), (lane, passed[-1] - _RADIUS - 0.02)]
    before = _smooth([*way, (x, y + _BOX[1] / 2)])
    start = (x - wire.slot * 0.12, y - _BOX[1] / 2)
    angle = np.pi / 2 + wire.slot * -0.75
    end = (target[0] + _RADIUS * np.cos(angle), target[1] + _RADIUS * np.sin(angle))
    return before, np.array([start, end])


def _smooth(way: list[tuple[float, float]]) -> Floats:
    """A chain of cubic Bezier curves through points, vertical at each of them, (1 + 3 n, 2)."""
    points = [way[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(way):
        middle = (y0 + y1) / 2
        points += [(x0, middle), (x1, middle), (x1, y1)]
    return np.array(points)


def _route(genotype: Genotype, places: list[tuple[float, float]]) -> list[_Wire]:
    """The wires of lowest cost among all choices of sides, at most 2^6.

    The cost is their length in inches; a crossing is as bad as a detour of an inch.
    """

    @functools.cache
    def line(wire: _Wire) -> Floats:
        return _sampled(_paths(wire, places)[0])

    @functools.cache
    def length(wire: _Wire) -> float:
        return float(np.hypot(*np.diff(line(wire), axis=0).T).sum())

    @functools.cache
    def crossings(one: _Wire, other: _Wire) -> int:
        return _crossings(line(one), line(other))

    def cost(wires: list[_Wire]) -> float:
        crossed = sum(crossings(one, other) for one, other in itertools.combinations(wires, 2))
        # Rounded, so that equal choices are equal on every machine and the first one wins.
        return round(crossed + sum(map(length, wires)), 6)

    free = [edge for edge in genotype.edges if _passes(edge)]
    choices = itertools.product((-1, 1), repeat=len(free))
    return min((_wires(genotype, dict(zip(free, sides, strict=True))) for sides in choices), key=cost)


def _passes(edge: Edge) -> range:
    """The computed nodes between the ends of an edge."""
    return range(max(edge.source + 1, INPUT_NODES), edge.target)


def _wires(genotype: Genotype, sides: dict[Edge, int]) -> list[_Wire]:
    """Lanes and boxes for one choice of sides: longer edges outside, shorter ones inside."""
    lanes: dict[Edge, int] = {}
    for edge in sorted(sides, key=lambda edge: (len(_passes(edge)), edge.source)):
        taken = [
            abs(lane)
            for other, lane in lanes.items()
            if sides[other] == sides[edge] and {*_passes(other)} & {*_passes(edge)}
        ]
        lanes[edge] = sides[edge] * (max(taken, default=0) + 1)
    wires = []
    for node in range(INPUT_NODES, NODES):
        first, second = genotype.inputs_of(node)
        if _arrival(first, lanes) > _arrival(second, lanes):
            first, second = second, first
        wires += [_Wire(first, -1, lanes.get(first, 0)), _Wire(second, 1, lanes.get(second, 0))]
    return wires


def _arrival(edge: Edge, lanes: dict[Edge, int]) -> float:
    """From how far left or right an edge comes to its target."""
    if edge in lanes:
        return lanes[edge]
    return (-0.5, 0.5)[edge.source] if edge.source < INPUT_NODES else 0.0


def _sampled(points: Floats, steps: int = 8) -> Floats:
    """Points along a chain of cubic Bezier curves, (n, 2)."""
    t = np.linspace(0, 1, steps + 1)[:, np.newaxis]
    parts = [
        (1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * p3
        for p0, p1, p2, p3 in (points[start : start + 4] for start in range(0, len(points) - 1, 3))
    ]
    return np.concatenate([parts[0], *(part[1:] for part in parts[1:])])


def _crossings(one: Floats, other: Floats) -> int:
    """Proper crossings of two polylines; a common start does not count."""
    if (one.max(axis=0) < other.min(axis=0)).any() or (other.max(axis=0) < one.min(axis=0)).any():
        return 0
    a, b = one[:-1, np.newaxis], one[1:, np.newaxis]
    c, d = other[np.newaxis, :-1], other[np.newaxis, 1:]

    def side(p: Floats, q: Floats, r: Floats) -> Floats:
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])

    return int(((side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)).sum())


def progress_figure(history: CellHistory, *, title: str) -> Figure:
    """Losses and pseudo Dice, pruning, stability tests, the leading operation of each edge, and time, over epochs.

    The panels of pruning and stability tests are left out for a search without tests. Divergences of exactly 0 have no
    place on a logarithmic axis and are not drawn.
    """
    epochs = len(history)
    with_tests = bool(np.isfinite(history.js).any() or np.isfinite(history.tau).any())
    heights = [2.2, *([1.6, 2.4] if with_tests else []), 3.3, 1.1]
    figure = new_figure(10, 1.15 * sum(heights) + 0.9)
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
    remaining = iter(panels)
    _draw_losses(next(remaining), history)
    if with_tests:
        _draw_pruning(next(remaining), history)
        _draw_tests(next(remaining), history)
    _draw_leaders(next(remaining), history)
    _draw_seconds(next(remaining), history)
    warmup = int(history.warmup.sum())
    for axes in panels:
        axes.set_xlim(-0.5, epochs - 0.5)
        _whole_epochs(axes)
        axes.tick_params(labelsize=8, labelbottom=axes is panels[-1])
        axes.yaxis.set_label_coords(-0.075, 0.5)
    # All but the heat map, whose cells would be hidden.
    for axes in panels[:-2] + panels[-1:]:
        axes.grid(alpha=0.3)
        axes.spines["top"].set_visible(False)
        _shade_warmup(axes, warmup)
    if warmup:
        panels[0].text(0.002, 1.01, "warm-up", fontsize=8, ha="left", va="bottom", transform=panels[0].transAxes)
    panels[-1].set_xlabel("epoch")
    return figure


def _draw_losses(axes: Axes, history: CellHistory) -> None:
    from matplotlib.lines import Line2D

    epochs = np.arange(len(history))
    style: dict[str, Any] = {"linewidth": 1.3, "marker": "o" if len(history) <= 60 else "", "markersize": 2.5}
    handles = [Line2D([], [], color="#0072B2", label="training loss")]
    axes.plot(epochs, history.train_loss, color="#0072B2", **style)
    axes.set_ylabel("loss")
    if not np.isfinite([history.train_loss, history.val_loss, history.dice]).any():
        axes.text(0.5, 0.5, "nothing was measured yet", fontsize=9, ha="center", transform=axes.transAxes)
    if np.isfinite([history.val_loss, history.dice]).any():
        handles += _draw_validation(axes, history, style)
    _legend(axes, handles)


def _draw_validation(axes: Axes, history: CellHistory, style: dict[str, Any]) -> list[Line2D]:
    """Adds what validation measured; returns the entries of the legend."""
    from matplotlib.lines import Line2D

    epochs = np.arange(len(history))
    axes.plot(epochs, history.val_loss, color="#D55E00", linestyle="--", **style)
    dice = axes.twinx()
    dice.plot(epochs, history.dice, color="#009E73", linestyle=":", **style)
    dice.set_ylabel("pseudo Dice", color="#00815E")
    dice.tick_params(labelsize=8, colors="#00815E")
    dice.spines["top"].set_visible(False)
    return [
        Line2D([], [], color="#D55E00", linestyle="--", label="validation loss"),
        Line2D([], [], color="#009E73", linestyle=":", label="pseudo Dice (right)"),
    ]


def _draw_pruning(axes: Axes, history: CellHistory) -> None:
    from matplotlib.lines import Line2D

    steps = np.arange(len(history) + 1) - 0.5
    axes.stairs(history.operations_left, steps, baseline=None, color="#0072B2", linewidth=1.6)
    axes.set_ylim(0, len(EDGES) * len(OPERATIONS) * 1.05)
    axes.set_yticks([14, 42, 70, 98])
    axes.set_ylabel("operations left")
    settled = axes.twinx()
    settled.stairs(history.edges_settled, steps, baseline=None, color="#D55E00", linewidth=1.6, linestyle="--")
    settled.set_ylim(0, len(EDGES) * 1.05)
    settled.set_yticks([0, 7, 14])
    settled.set_ylabel("edges settled", color="#D55E00")
    settled.tick_params(labelsize=8, colors="#D55E00")
    settled.spines["top"].set_visible(False)
    left, done = history.operations_left[-1], history.edges_settled[-1]
    handles = [
        Line2D([], [], color="#0072B2", label=f"operations left:\n{left} of {len(EDGES) * len(OPERATIONS)}"),
        Line2D([], [], color="#D55E00", linestyle="--", label=f"edges settled:\n{done} of {len(EDGES)} (right)"),
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
    handles = [
        Line2D([], [], color="black", marker=".", linewidth=0.9, label="divergence,\none line per edge"),
        Line2D([], [], color="black", linestyle="--", linewidth=0.9, label="threshold, until\nthe edge is settled"),
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
    for row in _last_rows():
        axes.axhline(row + 0.5, color="white", linewidth=1.5)
    kept = {edge.row for edge in discretise(history.probabilities[-1], history.weights[-1]).edges}
    for row, operation in enumerate(history.probabilities[-1].argmax(axis=1)):
        name = OPERATIONS[operation]
        tied = (history.probabilities[-1, row] == history.probabilities[-1, row].max()).sum() > 1
        axes.annotate(
            "tie" if tied else _NAMES[name],
            (1, row),
            (4, 0),
            ("axes fraction", "data"),
            "offset points",
            fontsize=7.5,
            va="center",
            color=_TIE if tied else _COLOURS[name],
            fontweight="bold" if row in kept and not tied else "normal",
        )
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
    axes.stairs(history.seconds, steps, fill=True, color="#56B4E9")
    total = float(np.nansum(history.seconds))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds")
    axes.annotate(
        f"in all {_duration(total)}", (1, 0.5), (8, 0), "axes fraction", "offset points", fontsize=8, va="center"
    )
    axes.spines["right"].set_visible(False)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )


def _whole_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def _shade_warmup(axes: Axes, epochs: int) -> None:
    if epochs:
        axes.axvspan(-0.5, epochs - 0.5, color="tab:gray", alpha=0.12, linewidth=0, zorder=0)


def _last_rows() -> list[int]:
    """The last edge into each computed node but the last."""
    return [row for row in range(len(EDGES) - 1) if EDGES[row][1] != EDGES[row + 1][1]]


def _legend(axes: Axes, handles: list[Line2D]) -> None:
    """To the right of the panel, where no line can hide it."""
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.095, 0.5), fontsize=8, frameon=False)


def dynamics_figure(analysis: Analysis, title: str) -> Figure:
    """Similarity to the final cell, cosine similarity between epochs, and when each edge found its operation."""
    figure = new_figure(9, 9.8)
    grid = figure.add_gridspec(
        2, 2, left=0.08, right=0.9, top=0.925, bottom=0.06, height_ratios=[1, 1.35], hspace=0.55, wspace=0.24
    )
    figure.suptitle(title, fontsize=12, y=0.985, va="top")
    _draw_similarity(figure.add_subplot(grid[0, 0]), analysis)
    _draw_matrix(figure.add_subplot(grid[0, 1]), analysis)
    _draw_entries(figure.add_subplot(grid[1, :]), analysis)
    return figure


_CURVES = {
    "cosine": ("continuous (cosine)", "black", "-"),
    "top_3": ("top-3 (Hamming)", "#0072B2", ":"),
    "top_2": ("top-2 (Hamming)", "#009E73", "-."),
    "top_1": ("top-1 (Hamming)", "#D55E00", "--"),
    "cell": ("discrete cell (Hamming)", "#CC79A7", (0, (6, 1, 1, 1, 1, 1))),
}
_MARKS = {
    "top_3": ("in the top-3 of its edge", "#0072B2", "o"),
    "top_2": ("in the top-2", "#009E73", "s"),
    "top_1": ("top-1", "#D55E00", "D"),
    "inputs": ("edge among the two inputs of its node", "#CC79A7", "^"),
}


def _draw_similarity(axes: Axes, analysis: Analysis) -> None:
    for name, values in analysis.to_final().items():
        label, colour, style = _CURVES[name]
        axes.plot(
            values, label=label, color=colour, linestyle=style, linewidth=1.4, marker="." if len(analysis) < 2 else ""
        )
    _shade_warmup(axes, analysis.warmup_epochs)
    axes.set_xlim(-0.5, len(analysis) - 0.5)
    axes.set_title("similarity to the last epoch", fontsize=10)
    axes.set_xlabel("epoch")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.48, -0.13), ncols=2, frameon=False)
    _plain(axes)


def _draw_matrix(axes: Axes, analysis: Analysis) -> None:
    picture = axes.imshow(
        analysis.cosine,
        cmap="cividis",
        interpolation="nearest",
        origin="lower",
        vmax=1,
        vmin=min(float(analysis.cosine.min()), 0.999),
    )
    axes.set_title("cosine similarity between epochs", fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_ylabel("epoch")
    axes.tick_params(labelsize=8)
    bar = axes.figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03)
    bar.ax.tick_params(labelsize=8)
    _whole_epochs(axes)
    axes.set_yticks([tick for tick in axes.get_xticks() if -0.5 <= tick <= len(analysis) - 0.5])


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
        axes.annotate(
            "tie" if edge.difficulty is None else _NAMES[edge.operation],
            (1, row),
            (4, 0),
            ("axes fraction", "data"),
            "offset points",
            fontsize=8,
            va="center",
            color=_TIE if edge.difficulty is None else _COLOURS[edge.operation],
            fontweight="bold" if edge.kept and edge.difficulty is not None else "normal",
        )
    for row in range(len(EDGES) - 1):
        axes.axhline(row + 0.5, color="black" if row in _last_rows() else "0.85", linewidth=0.8, zorder=1)
    _shade_warmup(axes, analysis.warmup_epochs)
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
    _whole_epochs(axes)
