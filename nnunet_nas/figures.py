"""Figures without pyplot, whose global state belongs to nnU-Net's own `progress.png`.

Every picture is drawn in memory and then put in place whole. Colours are those of Okabe and Ito, which colour-blind
people can tell apart; no meaning rests on colour alone.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_nas.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#5F5F5F"


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
