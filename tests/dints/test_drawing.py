"""The pictures of a DiNTS search hold what they should, and nothing is cut off."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from figures import assert_inside_and_apart, drawn_texts, ink, written_whole
from matplotlib.text import Annotation

from nnunet_nas.dints import drawing
from nnunet_nas.dints.decoding import decode
from nnunet_nas.dints.drawing import draw_progress, draw_topology, progress_figure, topology_figure
from nnunet_nas.dints.history import TopologyHistory
from nnunet_nas.dints.operations import OPERATIONS
from nnunet_nas.dints.topology import Topology, edges

ROOT = Path(__file__).resolve().parents[2]
SMALL = Topology(3, ({(0, 0): "conv", (2, 1): "skip"}, {(0, 1): "y_x", (1, 1): "dilated", (1, 2): "skip"}))


def random_topology(seed, levels, layers, dimensions=3):
    rng = np.random.default_rng(seed)
    selected = decode(rng.normal(0, 2, (layers, 3 * levels - 2)), levels).selected
    return Topology.from_arrays(selected, rng.choice(OPERATIONS[dimensions], selected.shape).tolist(), levels)


def search(epochs, *, levels=3, layers=4, measured=True, validated=True):
    """A history with every value of a real search; the first half trains weights only."""
    rng, history = np.random.default_rng(0), TopologyHistory()
    for epoch in range(epochs):
        logits = rng.normal(0, 1 + epoch, (layers, 3 * levels - 2))
        decoded = decode(logits, levels)
        history.append(
            edge_logits=logits,
            operations=rng.dirichlet(np.ones(4), logits.shape),
            selected=decoded.selected,
            warmup=epoch < epochs // 2,
            gap=rng.integers(9),
            log_feasible=-rng.random(),
            nll=decoded.nll,
            pattern_entropy=rng.random(),
            operation_entropy=rng.random(),
            expected_mib=rng.uniform(50, 90),
            selected_mib=rng.uniform(50, 90),
            budget_mib=70,
            train_loss=rng.random(),
            val_loss=rng.random() if validated else np.nan,
            dice=rng.random() if measured else np.nan,
            seconds=9,
        )
    return history


def arrows(axes):
    """Start and end of every arrow, (x, y) in layers and stages."""
    found = [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch is not None]
    return [(text.xyann, text.xy) for text in found]


def labels(figure):
    return {axes.get_ylabel(): axes for axes in figure.axes}


@pytest.mark.parametrize("first_level", [0, 2])
def test_a_topology_shows_its_edges_nodes_stems_and_chain(first_level):
    figure = topology_figure(SMALL, first_level=first_level, title="2d_dints")
    (axes,) = figure.axes
    drawn = {
        (round(start[0]), round(start[1]) - first_level, round(end[1]) - first_level)
        for start, end in arrows(axes)
        if start[0] in (0.06, 1.06)
    }
    assert drawn == {(0, 0, 0), (0, 2, 1), (1, 0, 1), (1, 1, 1), (1, 1, 2)}
    texts = [text.get_text() for text, _ in drawn_texts(figure)]
    # Stems at levels 0 and 2; the chain from the coarsest node up.
    assert texts.count("image") == 2
    assert texts.count("labels") == 1
    assert ((2.8, first_level + 2), (2.8, 0)) in arrows(axes)
    assert [label for label in texts if label.startswith("stage")] == [f"stage {n}" for n in range(3 + first_level)]
    assert "2d_dints" in texts
    nodes = {
        tuple(dots.get_offsets().tolist()[0]) for dots in axes.collections if dots.get_facecolor()[0, :3].sum() == 0
    }
    active = {(0, 0), (0, 2), (1, 0), (1, 1), (2, 1), (2, 2)}
    assert nodes == {(layer, level + first_level) for layer, level in active}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "skip", "conv", "conv y, then x", "dilated conv",
    ]  # fmt: skip


def test_every_operation_has_a_line_of_its_own():
    names = {name for known in OPERATIONS.values() for name in known}
    assert names == set(drawing._STYLES)
    for known in OPERATIONS.values():
        assert len({drawing._STYLES[name][0] for name in known}) == len(known)
        assert len({str(drawing._STYLES[name][2]) for name in known}) == len(known)


@pytest.mark.parametrize(
    ("levels", "layers", "first_level", "title"),
    [
        pytest.param(2, 2, 1, None, id="smallest"),
        pytest.param(3, 12, 0, "3d_fullres_dints_f3", id="the paper's layers, full resolution"),
        pytest.param(4, 12, 1, None, id="the paper's size"),
        pytest.param(8, 6, 0, "3d_fullres_dints_f3", id="most stages"),
    ],
)
def test_names_in_a_topology_are_inside_and_apart(levels, layers, first_level, title):
    topology = random_topology(levels, levels, layers)
    assert_inside_and_apart(topology_figure(topology, first_level=first_level, title=title))


@pytest.mark.parametrize(
    ("draw", "width", "least"),
    [
        (lambda path: draw_topology(SMALL, path, first_level=1, title="a topology"), 7 * 200, 0.005),
        (lambda path: draw_progress(search(3, measured=False, validated=False), path, title="a search"), 1100, 0.02),
    ],
    ids=["topology", "progress"],
)
def test_pictures_have_their_width_and_are_put_in_place_whole(tmp_path, draw, width, least):
    picture = written_whole(draw, tmp_path)
    assert picture.shape[1] == width
    assert ink(picture) > least


def test_the_panels_hold_the_history():
    history = search(6)
    figure = progress_figure(history, title="the title")
    panels = labels(figure)
    expected = {
        ("loss", 0): history.train_loss, ("loss", 1): history.val_loss, ("pseudo Dice", 0): history.dice,
        ("G, edges", 0): history.gap, ("log P(feasible), nats", 0): history.log_feasible,
        ("training memory, MiB", 0): history.expected_mib, ("training memory, MiB", 1): history.selected_mib,
        ("training memory, MiB", 2): history.budget_mib, ("patterns, nats per layer", 0): history.pattern_entropy,
        ("operations, nats per edge", 0): history.operation_entropy,
    }  # fmt: skip
    for (label, line), values in expected.items():
        np.testing.assert_array_equal(panels[label].get_lines()[line].get_ydata(), values, err_msg=label)
    (image,) = panels["layer"].get_images()
    probability = 1 / (1 + np.exp(-history.edge_logits))
    np.testing.assert_allclose(image.get_array(), probability.reshape(6, -1).T)
    (marks,) = panels["layer"].collections
    # One row per edge, all layers below each other: 4 layers of 7 edges.
    assert marks.get_offsets()[:, 1].tolist() == np.flatnonzero(history.selected[-1]).tolist()
    assert panels["layer"].get_ylim() == (27.5, -0.5)
    assert all(f"{source}→{end}" in panels["layer"].get_title() for source, end in edges(3))
    assert "the title" in [text.get_text() for text in figure.texts]


def test_the_epochs_of_weights_only_are_grey():
    for epochs, grey in ((6, 3), (1, 0)):
        axes = labels(progress_figure(search(epochs), title=""))["loss"]
        assert [round(patch.get_x() + patch.get_width(), 6) for patch in axes.patches] == ([grey - 0.5] if grey else [])


def test_what_was_not_measured_is_not_drawn():
    panels = labels(progress_figure(search(4, measured=False, validated=False), title=""))
    assert [line.get_label() for line in panels["loss"].get_lines()] == ["training loss"]
    assert "pseudo Dice" not in panels


@pytest.mark.parametrize(
    ("epochs", "levels", "layers"),
    [
        pytest.param(1, 2, 2, id="first epoch, smallest"),
        pytest.param(2, 4, 12, id="the paper's size"),
        pytest.param(40, 6, 12, id="long, most edges"),
    ],
)
def test_names_in_the_progress_are_inside_and_apart(epochs, levels, layers):
    history = search(epochs, levels=levels, layers=layers)
    assert_inside_and_apart(progress_figure(history, title="DiNTS, 3d_fullres, fold 0"))


def test_neither_pyplot_nor_torch_is_imported(tmp_path):
    code = """
import sys
from pathlib import Path
from nnunet_nas.dints.drawing import draw_topology
from nnunet_nas.dints.topology import Topology
draw_topology(Topology.from_json({"levels": 2, "layers": [{"0->1": "conv"}]}), Path(sys.argv[1]))
print(sorted({"matplotlib.pyplot", "torch"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "topology.png")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
