"""The pictures: names that never meet, whatever the cell; written whole; nobody else's figures touched."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from figures import drawn_texts, with_boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from matplotlib.patches import Circle, FancyBboxPatch

from nnunet_nas.iac import drawing
from nnunet_nas.iac.drawing import (
    cell_figure,
    draw_cell,
    draw_dynamics,
    draw_progress,
    dynamics_figure,
    progress_figure,
)
from nnunet_nas.iac.dynamics import analyse
from nnunet_nas.iac.genotype import NODES, OPERATIONS, Edge, Genotype
from nnunet_nas.iac.history import CellHistory

ROOT = Path(__file__).resolve().parents[2]
# Pictures take most of a second each; the fast layers draw one or two of each kind.
SLOW = pytest.mark.integration
TOPOLOGIES = list(itertools.product(*(itertools.combinations(range(node), 2) for node in range(2, NODES))))


def genotype(sources, operations=("sep_conv_5",) * 8):
    names = iter(operations)
    edges = ((source, node) for node, pair in enumerate(sources, start=2) for source in pair)
    return Genotype(tuple(Edge(source, target, next(names)) for source, target in edges))


genotypes = st.builds(
    genotype, st.sampled_from(TOPOLOGIES), st.lists(st.sampled_from(OPERATIONS), min_size=8, max_size=8)
)


def search(epochs, *, tests=True, measured=True):
    """Random shares that are pruned in the last epochs, with every value of a real search."""
    random = np.random.default_rng(0)
    history = CellHistory()
    for epoch in range(epochs):
        warmup = epoch < 4
        left = max(1, 7 - max(0, epoch - 8)) if tests else 7
        active = np.arange(7) < np.full((14, 1), left)
        shares = active * (1.0 if warmup else random.random((14, 7)) + 0.1)
        measurements = random.random(3) if measured else np.full(3, np.nan)
        history.append(
            probabilities=shares / shares.sum(axis=1, keepdims=True),
            weights=random.random(14),
            active=active,
            js=np.full(14, np.nan) if warmup or not tests else random.random(14) * 1e-5,
            tau=np.full(14, 1e-10 * 1.5**epoch if tests else np.nan),
            warmup=warmup,
            train_loss=-measurements[0],
            val_loss=-measurements[1],
            dice=measurements[2],
            seconds=measurements[0] * 9,
        )
    return history


def overlap(one, other):
    return min(one.x1, other.x1) - max(one.x0, other.x0) > 0 and min(one.y1, other.y1) - max(one.y0, other.y0) > 0


def inside(one, other):
    return one.x0 >= other.x0 and one.x1 <= other.x1 and one.y0 >= other.y0 and one.y1 <= other.y1


@given(genotypes, st.sampled_from([None, "2d_iaclth", "3d_fullres_iaclth_f3"]))
@settings(max_examples=15, deadline=None)
def test_names_in_a_cell_never_overlap(cell, title):
    figure = cell_figure(cell, title)
    texts = drawn_texts(figure)
    for (one, one_box), (other, other_box) in itertools.combinations(texts, 2):
        assert not overlap(one_box, other_box), (one.get_text(), other.get_text())
    assert all(inside(box, figure.bbox) for _, box in texts)
    shapes = with_boxes(figure, figure.findobj(FancyBboxPatch) + figure.findobj(Circle))
    for (one, one_box), (other, other_box) in itertools.combinations(shapes, 2):
        assert not overlap(one_box, other_box), (one.get_gid(), other.get_gid())
    # A name is inside its own box or node, or meets none.
    for text, box in texts:
        met = [shape for _, shape in shapes if overlap(box, shape)]
        assert not met or (len(met) == 1 and inside(box, met[0])), text.get_text()


@given(genotypes)
@settings(max_examples=15, deadline=None)
def test_a_cell_shows_every_operation_and_node(cell):
    names = [text.get_text() for text, _ in drawn_texts(cell_figure(cell))]
    for operation in OPERATIONS:
        shown = names.count(operation.replace("_", " "))
        assert shown == sum(edge.operation == operation for edge in cell.edges)
    assert [name for name in names if name.isdecimal()] == ["0", "1", "2", "3", "4", "5"]
    assert {"encoder skip", "decoder, upsampled", "concatenation"} <= set(names)


@SLOW
def test_no_wire_of_any_topology_runs_through_a_box_or_a_node():
    # All 1 * 3 * 6 * 10 = 180 ways to choose two inputs for each of the four nodes.
    assert len(TOPOLOGIES) == 180
    places = drawing._places(4.0)
    half = np.array(drawing._BOX) / 2
    for topology in TOPOLOGIES:
        wires = drawing._route(genotype(topology), places)
        assert sorted((wire.edge.source, wire.edge.target) for wire in wires) == sorted(
            (source, node) for node, pair in enumerate(topology, start=2) for source in pair
        )
        centres = [drawing._box_centre(wire, places) for wire in wires]
        assert len(set(centres)) == 8
        for wire in wires:
            line = drawing._sampled(drawing._paths(wire, places)[0], 40)
            for other, centre in zip(wires, centres, strict=True):
                outside = np.maximum(np.abs(line - centre) - half, 0)
                assert other is wire or np.hypot(*outside.T).min() > 0.05, topology  # inches
            for node, place in enumerate(places):
                distance = np.hypot(*(line - place).T).min() - drawing._RADIUS
                assert node == wire.edge.source or distance > 0.05, topology
            assert line[:, 0].min() > 0.1
            assert line[:, 0].max() < drawing._BAR_LEFT - 0.1


def test_wires_end_at_their_box_and_node():
    places = drawing._places(4.0)
    for wire in drawing._route(genotype(TOPOLOGIES[100]), places):
        before, after = drawing._paths(wire, places)
        x, y = drawing._box_centre(wire, places)
        assert before[0] == pytest.approx(np.array(places[wire.edge.source]) - [0, drawing._RADIUS])
        assert before[-1] == pytest.approx([x, y + drawing._BOX[1] / 2])
        assert np.hypot(*(after[-1] - places[wire.edge.target])) == pytest.approx(drawing._RADIUS)


def test_wires_that_nothing_forces_to_cross_do_not_cross():
    def crossings(sources):
        places = drawing._places(4.0)
        lines = [drawing._sampled(drawing._paths(w, places)[0]) for w in drawing._route(genotype(sources), places)]
        return sum(drawing._crossings(*pair) for pair in itertools.combinations(lines, 2))

    assert crossings([(0, 1), (0, 1), (0, 1), (0, 1)]) == 0  # two fans
    assert crossings([(0, 1), (0, 2), (0, 3), (0, 4)]) == 0  # a chain with a skip at every node


@pytest.mark.parametrize("title", [None, "2d_iaclth"])
def test_a_cell_is_as_wide_as_a_column_at_300_dots_per_inch(tmp_path, title):
    draw_cell(genotype(TOPOLOGIES[0]), tmp_path / "genotype.png", title=title)
    picture = imread(tmp_path / "genotype.png")
    assert picture.shape[1] == 1050
    assert 1200 < picture.shape[0] < 1600
    assert 0.02 < (picture[..., :3].min(axis=-1) < 0.5).mean() < 0.5


@pytest.mark.parametrize(
    "epochs", [pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW), pytest.param(5, marks=SLOW), 40]
)
@pytest.mark.parametrize("tests", [True, False])
@pytest.mark.parametrize("measured", [True, False])
def test_progress_is_drawn_after_every_epoch(tmp_path, epochs, tests, measured):
    draw_progress(search(epochs, tests=tests, measured=measured), tmp_path / "search_progress.png", title="a search")
    picture = imread(tmp_path / "search_progress.png")
    assert picture.shape[1] == 1000
    assert (picture[..., :3].min(axis=-1) < 0.5).mean() > 0.02


def ylabels(figure):
    return [axes.get_ylabel() for axes in figure.axes]


def test_panels_of_tests_are_left_out_where_there_are_none():
    panels = {"operations left", "edges settled", "JS divergence (nats)"}
    assert panels <= set(ylabels(progress_figure(search(9), title="")))
    assert not panels & set(ylabels(progress_figure(search(9, tests=False), title="")))
    # The thresholds are there from the first epoch of warm-up on, so that the picture keeps its panels.
    assert panels <= set(ylabels(progress_figure(search(1), title="")))


def test_the_progress_names_the_leading_operations_and_the_counts():
    texts = [text.get_text() for text, _ in drawn_texts(progress_figure(search(40), title="the title"))]
    assert texts.count("identity") == 14  # the only one left
    assert "the title" in texts
    assert "operations left:\n14 of 98" in texts
    assert "edges settled:\n14 of 14 (right)" in texts


def test_during_warmup_nothing_leads():
    texts = [text.get_text() for text, _ in drawn_texts(progress_figure(search(3), title=""))]
    assert texts.count("tie") == 14


def test_a_lead_of_a_thousandth_can_be_seen():
    probabilities = np.array([1 / 7, 1 / 7 + 0.001, 0.2, 1.0])
    colours = drawing._contrast(probabilities)
    # ln(7 * 0.2) / ln 7 = 0.33647 / 1.94591 = 0.17291, whose cube root is 0.557
    assert colours == pytest.approx([0, 0.1529, 0.557, 1], abs=1e-3)
    assert drawing._from_contrast(colours) == pytest.approx(probabilities)


@pytest.mark.parametrize("draw", [progress_figure, dynamics_figure])
@pytest.mark.parametrize("epochs", [pytest.param(1, marks=SLOW), pytest.param(40, marks=SLOW), 200])
@pytest.mark.parametrize("tests", [True, False])
def test_names_in_the_other_pictures_are_inside_and_apart(draw, epochs, tests):
    history = search(epochs, tests=tests)
    title = "nnUNetTrainerIACLTHSearch, 3d_fullres, fold 0"
    figure = draw(history, title=title) if draw is progress_figure else draw(analyse(history), title)
    texts = drawn_texts(figure)
    for text, box in texts:
        assert inside(box, figure.bbox), text.get_text()
    for (one, one_box), (other, other_box) in itertools.combinations(texts, 2):
        assert not overlap(one_box, other_box), (one.get_text(), other.get_text())


def test_dynamics_are_drawn(tmp_path):
    draw_dynamics(analyse(search(40)), tmp_path / "dynamics.png", "a search")
    picture = imread(tmp_path / "dynamics.png")
    assert picture.shape[1] == 1350
    assert (picture[..., :3].min(axis=-1) < 0.5).mean() > 0.02


@pytest.mark.parametrize("name", ["cell", "progress", "dynamics"])
def test_pictures_are_put_in_place_whole(tmp_path, monkeypatch, name):
    path = tmp_path / "picture.png"
    path.write_bytes(b"the picture before")
    written = []
    monkeypatch.setattr("nnunet_nas.figures.replace_file", lambda *arguments: written.append(arguments))
    draws = {
        "cell": lambda: draw_cell(genotype(TOPOLOGIES[0]), path),
        "progress": lambda: draw_progress(search(2), path, title=""),
        "dynamics": lambda: draw_dynamics(analyse(search(2)), path, ""),
    }
    draws[name]()
    assert path.read_bytes() == b"the picture before"
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
    ((target, content),) = written
    assert target == path
    assert content.startswith(b"\x89PNG\r\n")


def test_neither_pyplot_nor_torch_is_imported(tmp_path):
    code = """
import sys
from pathlib import Path
from nnunet_nas.iac.drawing import draw_cell
from nnunet_nas.iac.genotype import Genotype
inputs = {str(node): {"0": "identity", "1": "sep_conv_3"} for node in range(2, 6)}
draw_cell(Genotype.from_json(inputs), Path(sys.argv[1]))
print(sorted({"matplotlib.pyplot", "torch"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "genotype.png")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
