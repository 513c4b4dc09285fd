"""What a figure really shows."""

import pytest
from matplotlib.text import Text


def drawn_texts(figure):
    """The texts that are really drawn (matplotlib keeps more, for ticks beyond an axis), with their boxes in pixels."""
    drawn = []
    draw = Text.draw

    def record(text, *arguments, **keywords):
        drawn.append(text)
        return draw(text, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        figure.canvas.draw()
    return with_boxes(figure, [text for text in dict.fromkeys(drawn) if text.get_visible() and text.get_text()])


def with_boxes(figure, artists):
    return [(artist, artist.get_window_extent(figure.canvas.get_renderer())) for artist in artists]
