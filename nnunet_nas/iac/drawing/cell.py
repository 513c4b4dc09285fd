"""The cell that a search found, as a graph in which names never meet and no wire runs through a box."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_nas.figures import LIGHT_GREY, new_figure, write_figure
from nnunet_nas.iac.drawing.style import COLOURS, spelt
from nnunet_nas.iac.genotype import INPUT_NODES, NODES, Edge, Genotype

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

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
_INPUT = 0.32
_SUM_RADIUS = 0.09
_POINTWISE = "conv 1\N{MULTIPLICATION SIGN}1"
_GREY = "wire concat"
_IN_A_BOX: dict[str, Any] = {"fontsize": 7, "ha": "center", "va": "center", "zorder": 5}


def draw_answer(arguments: dict[str, Any], path: FilePath, title: str) -> None:
    """The cell of a network's `arch_kwargs`; see `draw_cell`."""
    cells = arguments["cells"]
    residual = bool(cells.get("residual", False))
    draw_cell(Genotype.from_json(cells.get("genotype")), path, title=title, residual=residual)


def draw_cell(genotype: Genotype, path: FilePath, *, title: str | None = None, residual: bool = False) -> None:
    """Writes `cell_figure`, as wide as a column of a paper, at 300 dots per inch; raises what `write_figure` raises."""
    write_figure(cell_figure(genotype, title, residual=residual), path, dpi=300)


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


def cell_figure(genotype: Genotype, title: str | None = None, *, residual: bool = False) -> Figure:
    """The cell from top to bottom: inputs, one row per computed node, and the concatenation at the side.

    A `residual` cell's output is added to the encoder's skip, which passes all of it at the left.

    The two operations into a node stand right above it, so that names cannot meet whatever the cell is. An edge that
    passes other nodes does so in a lane of its own beside them, on the side that gives short wires and few crossings.
    """
    from matplotlib.patches import Circle

    top = 0.30 if title else 0.08
    height = top + 0.45 + _INPUT + _PITCH * (NODES - INPUT_NODES) + 0.62
    figure = new_figure(_WIDTH, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, _WIDTH), ylim=(0, height))
    if title:
        axes.text(_WIDTH / 2, height - 0.17, title, ha="center", va="center", fontsize=8, gid="title")
    places = _places(height - top - 0.30 - _INPUT)
    for wire in _route(genotype, places):
        colour = COLOURS[wire.edge.operation]
        before, after = _paths(wire, places)
        name = f"{wire.edge.source}->{wire.edge.target}"
        _draw_arrow(axes, before, colour, gid=f"wire {name}")
        _draw_arrow(axes, after, colour, gid=f"wire {name}", curved=False)
        x, y = _box_centre(wire, places)
        _draw_box(axes, (x, y), _BOX, gid=f"box {name}", facecolor=colour, edgecolor="none")
        axes.text(x, y - 0.005, spelt(wire.edge.operation), color="white", **_IN_A_BOX)
    for node, (x, y) in enumerate(places):
        face = "#FFF3C4" if node < INPUT_NODES else "white"
        axes.add_patch(
            Circle((x, y), _RADIUS, facecolor=face, edgecolor="black", linewidth=0.9, zorder=4, gid=f"node {node}")
        )
        axes.text(x, y - 0.005, str(node), fontsize=8, ha="center", va="center", zorder=5)
    _draw_inputs(axes, places)
    _draw_output(axes, places, residual=residual)
    return figure


def _places(first: float) -> list[tuple[float, float]]:
    """Centres of the nodes, (x, y)."""
    inputs = [(_CENTRE - 0.85, first), (_CENTRE + 0.85, first)]
    return inputs + [(_CENTRE, first - _PITCH * row - 0.02) for row in range(1, NODES - INPUT_NODES + 1)]


def _draw_inputs(axes: Axes, places: list[tuple[float, float]]) -> None:
    """Names and 1x1 convolutions of the inputs."""
    for node, name in enumerate(("encoder skip", "decoder, upsampled")):
        x, y = places[node]
        centre = y + _RADIUS + _INPUT - 0.1
        _draw_plain_box(axes, (x, centre), _BOX, f"conv input {node}", _POINTWISE)
        _draw_arrow(axes, np.array([[x, centre - _BOX[1] / 2], [x, y + _RADIUS]]), LIGHT_GREY, gid=_GREY, curved=False)
        axes.text(x, centre + _BOX[1] / 2 + 0.05, name, fontsize=7, ha="center", va="bottom")


def _draw_sum(axes: Axes, places: list[tuple[float, float]], centre: tuple[float, float]) -> None:
    """The addition of the skip, whose way begins at its name."""
    from matplotlib.patches import Circle

    (x, y), top = centre, places[0][1] + _RADIUS + _INPUT + 0.09
    way = [(_CENTRE - 1.21, top), (0.06, top), (0.06, y - 0.2), (x, y - 0.2), (x, y - _SUM_RADIUS)]
    _draw_arrow(axes, np.array(way), LIGHT_GREY, gid="wire skip", curved=False)
    looks: dict[str, Any] = {"facecolor": "white", "edgecolor": "black", "linewidth": 0.9, "zorder": 4}
    axes.add_patch(Circle(centre, _SUM_RADIUS, gid="sum", **looks))
    axes.text(x, y, "+", fontsize=8, ha="center", va="center", zorder=5)


def _draw_plain_box(axes: Axes, centre: tuple[float, float], size: tuple[float, float], name: str, text: str) -> None:
    """A box of the cell's frame, which was not searched."""
    _draw_box(axes, centre, size, gid=f"box {name}", facecolor="#EDEDED", edgecolor=LIGHT_GREY, linewidth=0.8)
    axes.text(*centre, text, rotation=90 if size[1] > size[0] else 0, **_IN_A_BOX)


def _draw_output(axes: Axes, places: list[tuple[float, float]], *, residual: bool) -> None:
    """The concatenation of the computed nodes, its 1x1 convolution, the skip where it is added, and the output."""
    last = places[-1][1]
    bottom, top = last - 0.16, places[INPUT_NODES][1] + 0.16
    middle = _BAR_LEFT + _BAR_WIDTH / 2
    for x, y in places[INPUT_NODES:]:
        _draw_arrow(axes, np.array([[x + _RADIUS, y], [_BAR_LEFT, y]]), LIGHT_GREY, gid=_GREY, curved=False)
    bar = (_BAR_WIDTH, top - bottom)
    _draw_plain_box(axes, (middle, (bottom + top) / 2), bar, "concatenation", "concatenation")
    below, start = bottom - 0.27, middle - 0.41
    _draw_plain_box(axes, (middle - 0.1, below), _BOX, "conv output", _POINTWISE)
    lines = [[[middle, bottom], [middle, below + 0.085]]]
    if residual:
        centre = start - 0.22 - _SUM_RADIUS
        _draw_sum(axes, places, (centre, below))
        lines.append([[start, below], [centre + _SUM_RADIUS, below]])
        start = centre - _SUM_RADIUS
    lines.append([[start, below], [start - 0.39, below]])
    for line in lines:
        _draw_arrow(axes, np.array(line), LIGHT_GREY, gid=_GREY, curved=False)
    axes.text(start - 0.44, below, "output", fontsize=7, ha="right", va="center")


def _draw_box(axes: Axes, centre: tuple[float, float], size: tuple[float, float], **looks: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (centre[0] - size[0] / 2, centre[1] - size[1] / 2)
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.05", zorder=4, **looks))


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
            zorder=1 if gid in (_GREY, "wire skip") else 2,
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
        passed = [places[node][1] for node in _passes(wire.edge)]
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
