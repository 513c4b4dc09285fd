"""The picture of paired differences: every case is in it, nothing overlaps, far cases do not hide the margin."""

import numpy as np
import pytest
from figures import drawn_texts
from matplotlib.image import imread

from nnunet_nas.evaluation.plots import MOST_PANELS, differences_figure, draw_differences
from nnunet_nas.evaluation.report import compare_group
from nnunet_nas.evaluation.rows import FOREGROUND, Group, Metric
from nnunet_nas.evaluation.summaries import read_evaluated_folder

DICE = Metric("Dice", "", higher_is_better=True, margin=0.01, digits=4)


@pytest.fixture
def tables(tmp_path, write_summary):
    """Makes tables of random models."""

    def make(classes, cases, models=2, spread=0.01, metric=DICE):
        random = np.random.default_rng(0)
        read = []
        for position in range(models):
            values = np.clip(random.normal(0.8, spread, (cases, classes)), 0, 1)
            dice = {f"c{case}": {key + 1: values[case, key] for key in range(classes)} for case in range(cases)}
            name = f"nnUNetTrainer_with_a_long_name__nnUNetPlans__3d_fullres_configuration_{position}"
            folder = write_summary(tmp_path / name, dice)
            read.append(read_evaluated_folder(folder, name))
        return compare_group(Group("Dataset011_Fake", "", read, sorted(read[0].cases)), metric, seed=0)

    return make


def overlapping(boxes):
    return [
        (one, other)
        for position, (one, box) in enumerate(boxes)
        for other, another in boxes[position + 1 :]
        if box.overlaps(another)
    ]


def points_of(axes):
    """(rank, difference) of the cases."""
    return np.concatenate([np.asarray(collection.get_offsets()) for collection in axes.collections])


@pytest.mark.parametrize(("cases", "spread"), [(2, 0.01), (210, 0.3)])
def test_texts_do_not_overlap_and_stay_inside(tables, cases, spread):
    figure = differences_figure(tables(2, cases, spread=spread))
    texts = [(text.get_text(), box) for text, box in drawn_texts(figure)]
    assert overlapping(texts) == []
    width, height = figure.bbox.width, figure.bbox.height
    for _, box in texts:
        assert box.x0 >= 0
        assert box.x1 <= width + 1
        assert box.y0 >= 0
        assert box.y1 <= height + 1


def test_every_case_is_a_dot_in_order(tables):
    table = tables(1, 32, spread=0.2)
    (axes,) = differences_figure(table).axes
    points = points_of(axes)
    differences = np.sort(table[0].overall.second - table[0].overall.first)
    assert np.allclose(points[np.argsort(points[:, 0])], np.column_stack([np.arange(1, 33), differences]))
    low, high = axes.get_ylim()
    assert low < differences[0]
    assert high > differences[-1]


@pytest.mark.parametrize(("spread", "scale"), [(0.02, "linear"), (0.3, "symlog")])
def test_the_margin_is_visible_at_any_scale(tables, spread, scale):
    figure = differences_figure(tables(1, 32, spread=spread))
    (axes,) = figure.axes
    assert axes.get_yscale() == scale
    figure.canvas.draw()
    band = axes.transData.transform([(0, -0.01), (0, 0.01)])[:, 1]
    assert band[1] - band[0] > 0.03 * axes.bbox.height
    assert ("logarithmic" in axes.get_ylabel()) == (scale == "symlog")


def test_a_panel_per_class_and_a_column_per_model(tables):
    figure = differences_figure(tables(3, 8, models=3))
    assert len(figure.axes) == (3 + 1) * 2
    assert figure.get_size_inches()[0] == 7.0
    assert "class 1: B better in" in figure.axes[2].get_title(loc="left")


def test_of_many_classes_the_largest_differences_are_shown(tables):
    found = tables(20, 6)
    panels = [axes.get_title(loc="left").splitlines()[-1].split(":")[0] for axes in differences_figure(found).axes]
    assert len(panels) == MOST_PANELS
    assert panels[0] == FOREGROUND
    rows = sorted(found[0].rows[1:], key=lambda row: -abs(row.comparison.difference))
    assert set(panels[1:]) == {row.name for row in rows[: MOST_PANELS - 1]}


def test_where_lower_is_better_a_fall_is_drawn_as_a_gain(tables):
    higher, lower = (
        differences_figure(tables(1, 8, metric=Metric("Dice", "mm", better, 0.01, 2))).axes[0].get_title(loc="left")
        for better in (True, False)
    )
    words = [title.split("better in ")[1].split(", worse in ") for title in (higher, lower)]
    assert words[0][0] == words[1][1].split(",")[0]


def test_the_file_is_as_wide_as_a_column(tables, tmp_path):
    draw_differences(tables(1, 5), tmp_path / "picture.png")
    assert imread(tmp_path / "picture.png").shape[1] == 3.5 * 300


def test_a_class_without_a_case_has_an_empty_panel(tables):
    (table,) = tables(1, 3)
    (row,) = table.rows
    empty = type(row)(row.key, row.name, [], row.first[:0], row.second[:0], None)
    (axes,) = differences_figure([type(table)(table.group, table.metric, 1, [empty])]).axes
    assert axes.get_title(loc="left").endswith("class 1: no case")
