"""How operations look in all pictures: their families keep their colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnunet_nas.figures import BLUE, DARK_GREEN, GREY, LIGHT_GREY, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "identity": GREY,
    "max_pool_3": RED,
    "avg_pool_3": RED,
    "sep_conv_3": BLUE,
    "sep_conv_5": BLUE,
    "dil_conv_3": DARK_GREEN,
    "dil_conv_5": DARK_GREEN,
}


def spelt(operation: str) -> str:
    """An operation's name in pictures."""
    return operation.replace("_", " ")


def name_operation(axes: Axes, row: int, operation: str | None, *, bold: bool, size: float) -> None:
    """Writes an operation to the right of an edge's row; None for a tie, which is never bold."""
    axes.annotate(
        "tie" if operation is None else spelt(operation),
        (1, row),
        (4, 0),
        ("axes fraction", "data"),
        "offset points",
        fontsize=size,
        va="center",
        color=LIGHT_GREY if operation is None else COLOURS[operation],
        fontweight="bold" if bold and operation is not None else "normal",
    )
