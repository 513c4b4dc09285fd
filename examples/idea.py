"""Draws the picture at the top of the README: a U-Net and the three things that a search may change in it.

Command: python examples/idea.py [FILE], by default docs/idea.png in this checkout.
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_nas.figures import BLUE, GREEN, GREY, ORANGE, new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The U as a path over (layer, level); levels are resolutions, the finest is 0.
ENCODER = [(0, 0), (1, 1), (2, 2), (3, 3)]
DECODER = [(4, 2), (5, 1), (6, 0)]
# What a searched topology may use beside the U: nodes and edges of the grid outside of it.
OTHER_NODES = [(0, 1), (0, 2), (1, 2), (1, 3), (5, 2), (6, 1), (5, 3), (6, 2)]
OTHER_EDGES = [
    ((0, 0), (0, 1)),
    ((0, 1), (0, 2)),
    ((0, 1), (1, 1)),
    ((0, 2), (1, 2)),
    ((0, 1), (1, 2)),
    ((1, 2), (2, 2)),
    ((0, 2), (1, 3)),
    ((1, 3), (3, 3)),
    ((3, 3), (5, 3)),
    ((4, 2), (5, 2)),
    ((5, 3), (6, 2)),
    ((5, 2), (6, 1)),
    ((5, 2), (6, 2)),
    ((5, 1), (6, 1)),
]
# Share of nnU-Net's width that was found, radius of a node, colours that are dark enough for words.
FOUND, RADIUS = 0.34, 0.15
TEXT, DARK_ORANGE = "#222222", "#A66F00"


def place(node: tuple[int, int]) -> tuple[float, float]:
    """Where a node of the grid is drawn, (x, y)."""
    layer, level = node
    return 1.6 * layer, -1.25 * level


def block_size(level: int) -> tuple[float, float]:
    """Width and height of nnU-Net's block: channels grow with the level, the image shrinks."""
    return 0.36 + 0.17 * level, 0.84 - 0.11 * level


def draw_blocks(axes: Axes) -> None:
    """nnU-Net's blocks as outlines, the narrower ones that were found inside."""
    from matplotlib.patches import Rectangle

    for node in ENCODER + DECODER:
        x, y = place(node)
        width, height = block_size(node[1])
        axes.add_patch(
            Rectangle(
                (x - width / 2, y - height / 2), width, height, facecolor="white", edgecolor=GREY, lw=1.3, zorder=3
            )
        )
        narrow = FOUND * width
        axes.add_patch(Rectangle((x - narrow / 2, y - height / 2), narrow, height, facecolor=BLUE, lw=0, zorder=4))


def draw_path(axes: Axes) -> None:
    """The way of the features through the U, from corner to corner of the blocks."""
    path = ENCODER + DECODER
    for start, end in itertools.pairwise(path):
        (x0, y0), (x1, y1) = place(start), place(end)
        (width0, height0), (width1, height1) = block_size(start[1]), block_size(end[1])
        if end in ENCODER:
            tail, tip = (x0 + width0 / 2, y0 - height0 / 2), (x1 - width1 / 4, y1 + height1 / 2)
        else:
            tail, tip = (x0 + width0 / 4, y0 + height0 / 2), (x1 - width1 / 2, y1 - height1 / 2)
        arrow = {"arrowstyle": "-|>", "color": GREY, "lw": 1.6, "shrinkA": 0, "shrinkB": 1}
        axes.annotate("", tip, tail, arrowprops=arrow, zorder=2)


def draw_skips(axes: Axes) -> None:
    """Skip connections, each with a cell in its middle."""
    from matplotlib.patches import FancyBboxPatch

    for start, end in zip(ENCODER[:3], reversed(DECODER), strict=True):
        (x0, y), (x1, _) = place(start), place(end)
        axes.plot([x0, x1], [y, y], color=GREY, lw=1.6, zorder=1)
        middle = (x0 + x1) / 2
        box = FancyBboxPatch(
            (middle - 0.42, y - 0.2), 0.84, 0.4, boxstyle="round,pad=0.05", facecolor="#FDF3DC", edgecolor=ORANGE, lw=2
        )
        axes.add_patch(box)
        points = [(middle - 0.3, y), (middle - 0.05, y + 0.12), (middle - 0.05, y - 0.12), (middle + 0.3, y)]
        for a, b in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)):
            axes.plot(*zip(points[a], points[b], strict=True), color=TEXT, lw=1, zorder=4)
        axes.scatter(*zip(*points, strict=True), s=16, color=TEXT, zorder=5)


def draw_grid(axes: Axes) -> None:
    """Other ways through the resolutions."""
    for start, end in OTHER_EDGES:
        tail, tip = rim(start, towards=end), rim(end, towards=start)
        arrow = {"arrowstyle": "-|>", "color": GREEN, "lw": 1.4, "linestyle": (0, (4, 2)), "shrinkA": 1, "shrinkB": 1}
        axes.annotate("", tip, tail, arrowprops=arrow, zorder=1)
    axes.scatter(
        *zip(*map(place, OTHER_NODES), strict=True), s=95, facecolor="white", edgecolor=GREEN, lw=1.8, zorder=3
    )


def rim(node: tuple[int, int], *, towards: tuple[int, int]) -> tuple[float, float]:
    """Where an edge touches a node: the side of a block, the circle of another node."""
    (x, y), (x1, y1) = place(node), place(towards)
    if node in OTHER_NODES:
        distance = math.dist((x, y), (x1, y1))
        return x + RADIUS * (x1 - x) / distance, y + RADIUS * (y1 - y) / distance
    width, height = block_size(node[1])
    if x == x1:
        return x, y + math.copysign(height / 2, y1 - y)
    return x + math.copysign(width / 2, x1 - x), y


def label(axes: Axes, *, at: tuple[float, float], colour: str, head: str, lines: str, align: str) -> None:
    """A handle's name in its colour, its methods below."""
    x, y = at
    axes.text(x, y, head, color=colour, fontsize=17, fontweight="bold", ha=align, va="bottom")
    axes.text(x, y - 0.08, lines, color=TEXT, fontsize=11.5, ha=align, va="top", linespacing=1.35)


def draw(path: Path) -> None:
    """Writes the picture."""
    figure = new_figure(10, 5.15)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(-3.1, 13.9)
    axes.set_ylim(-6.05, 2.7)
    axes.set_axis_off()
    draw_grid(axes)
    draw_path(axes)
    draw_skips(axes)
    draw_blocks(axes)
    write_labels(axes)
    write_figure(figure, path, dpi=130)


def write_labels(axes: Axes) -> None:
    """Names of the handles, and what becomes of an answer."""
    x, _ = place((0, 0))
    axes.annotate("", (x - 0.28, 0.62), (x + 0.28, 0.62), arrowprops={"arrowstyle": "<->", "color": BLUE, "lw": 2})
    label(axes, at=(x, 1.75), colour=BLUE, head="width", lines="XTinyU-Net\nadds 2d_xtiny8", align="center")
    middle, _ = place((3, 0))
    label(
        axes, at=(middle, 1.75), colour=DARK_ORANGE, head="skips", lines="IAC, IAC-LTH\nadds 2d_iaclth", align="center"
    )
    right, _ = place((6, 1))
    label(
        axes,
        at=(right + 0.65, -1.75),
        colour=GREEN,
        head="topology",
        lines="DiNTS\nadds 3d_fullres_dints",
        align="left",
    )
    axes.text(
        middle,
        -5.25,
        "Every answer is one more configuration in the plans file:",
        color=TEXT,
        fontsize=12,
        ha="center",
    )
    axes.text(
        middle,
        -5.75,
        "planning, preprocessing, training and prediction stay nnU-Net's own.",
        color=TEXT,
        fontsize=12,
        ha="center",
    )


if __name__ == "__main__":
    checkout = Path(__file__).resolve().parent.parent
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else checkout / "docs" / "idea.png")
