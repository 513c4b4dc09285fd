"""What a figure really shows."""

import io
import itertools

import pytest
from matplotlib.image import imread
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


def overlap(one, other):
    return min(one.x1, other.x1) - max(one.x0, other.x0) > 0 and min(one.y1, other.y1) - max(one.y0, other.y0) > 0


def inside(one, other):
    return one.x0 >= other.x0 and one.x1 <= other.x1 and one.y0 >= other.y0 and one.y1 <= other.y1


def assert_inside_and_apart(figure):
    """No text is cut off, none meets another; returns them with their boxes."""
    texts = drawn_texts(figure)
    for text, box in texts:
        assert inside(box, figure.bbox), (text.get_text(), box)
    for (one, one_box), (other, other_box) in itertools.combinations(texts, 2):
        assert not overlap(one_box, other_box), (one.get_text(), other.get_text())
    return texts


def written_whole(draw, folder):
    """The picture that `draw(path)` hands over in one piece, (y, x, rgba); the one before is not touched."""
    path, calls = folder / "picture.png", []
    path.write_bytes(b"the picture before")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunet_nas.figures.replace_file", lambda *arguments: calls.append(arguments))
        draw(path)
    assert path.read_bytes() == b"the picture before"
    assert [file.name for file in folder.iterdir()] == ["picture.png"]
    ((target, content),) = calls
    assert target == path
    return imread(io.BytesIO(content), format="png")


def ink(picture):
    """Share of the pixels that are dark in some colour."""
    return (picture[..., :3].min(axis=-1) < 0.5).mean()
