"""Dice against what it costs: parameters, multiply-accumulates, and seconds of search and training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_nas.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, new_figure, write_figure

if TYPE_CHECKING:
    from nas_study.tables import Line

_PANELS = (("parameters", "parameters"), ("macs", "MACs of a patch"), ("seconds", "seconds of search and training"))
_COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, GREY)
_MARKERS = "osD^vP*X<>"


def draw(lines: Sequence[Line], path: Path) -> None:
    """A panel per cost; a point per method and base, with the interval of its Dice.

    Args:
        lines: rows of one data set whose Dice is known.
        path: of the PNG file; nothing is drawn without rows.
    """
    if lines:
        write_figure(figure_of(lines), path, dpi=150)


def figure_of(lines: Sequence[Line]) -> Any:
    """The picture; markers are methods, and colours are bases, or methods where there is one base."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    bases = list(dict.fromkeys(line.base for line in lines))
    methods = list(dict.fromkeys(line.method for line in lines))
    figure = new_figure(11.0, 3.9)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, (cost, title) in zip(panels, _PANELS, strict=True):
        for line in lines:
            number = bases.index(line.base) if len(bases) > 1 else methods.index(line.method)
            colour = _COLOURS[number % len(_COLOURS)]
            marker = _MARKERS[methods.index(line.method) % len(_MARKERS)]
            axes.errorbar(
                getattr(line, cost), line.dice, yerr=_errors(line), color=colour, marker=marker, capsize=3, linestyle=""
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("Dice of the hold-out, 95 % interval")
    handles = [
        panels[0].plot(
            [],
            [],
            color=GREY if len(bases) > 1 else _COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            linestyle="",
            label=method,
        )[0]
        for i, method in enumerate(methods)
    ]
    if len(bases) > 1:
        handles += [
            panels[0].plot([], [], color=_COLOURS[i % len(_COLOURS)], linewidth=4, label=f"base {base}")[0]
            for i, base in enumerate(bases)
        ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(f"data set {lines[0].dataset}")
    return figure


def _errors(line: Line) -> list[list[float]] | None:
    if line.dice is None or line.dice_low is None or line.dice_high is None:
        return None
    return [[max(0.0, line.dice - line.dice_low)], [max(0.0, line.dice_high - line.dice)]]
