"""Figures without pyplot, whose global state belongs to nnU-Net's own `progress.png`, and what searches draw alike.

Every picture is drawn in memory and then put in place whole. Colours are those of Okabe and Ito, which colour-blind
people can tell apart; no meaning rests on colour alone.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_nas.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from nnunet_nas.histories import History

BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
SKY, YELLOW, GREY, LIGHT_GREY = "#56B4E9", "#F0E442", "#5F5F5F", "#8C8C8C"
DARK_GREEN = "#00815E"  # for words, and behind white ones


def new_figure(width: float, height: float) -> Figure:
    """A white figure, inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path, *, dpi: int) -> None:
    """Writes a PNG file, whole or not at all.

    Raises:
        EnvironmentProblem: no permission or no space.
    """
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    replace_file(path, image.getvalue())


def draw_losses(axes: Axes, history: History, **style: Any) -> tuple[list[Line2D], Axes | None]:
    """Training and validation loss over epochs, and the pseudo Dice on a scale at the right; what exists of them.

    Args:
        axes: of the losses.
        history: of one epoch or more.
        style: of all lines.

    Returns:
        the lines, labelled, and the axes of the pseudo Dice.
    """
    epochs = np.arange(len(history))
    lines = axes.plot(epochs, history.train_loss, color=BLUE, label="training loss", **style)
    axes.set_ylabel("loss")
    if np.isfinite(history.val_loss).any():
        lines += axes.plot(epochs, history.val_loss, color=RED, linestyle="--", label="validation loss", **style)
    if not np.isfinite(history.dice).any():
        return lines, None
    dice = axes.twinx()
    lines += dice.plot(epochs, history.dice, color=GREEN, linestyle=":", label="pseudo Dice", **style)
    dice.set_ylabel("pseudo Dice")
    return lines, dice


def whole_epochs(axes: Axes) -> None:
    """Ticks at epochs, not between them."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def shade_warmup(axes: Axes, epochs: int) -> None:
    """Grey behind the first epochs, which left the architecture alone."""
    if epochs:
        axes.axvspan(-0.5, epochs - 0.5, color="tab:gray", alpha=0.12, linewidth=0, zorder=0)
