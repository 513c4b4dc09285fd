"""The pictures: names that never meet, whatever the cell; written whole; nobody else's figures touched."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from figures import assert_inside_and_apart, drawn_texts, ink, inside, overlap, with_boxes, written_whole
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from nnunet_nas.iac.drawing import cell as drawing
from nnunet_nas.iac.drawing.cell import cell_figure, draw_cell
from nnunet_nas.iac.drawing.dynamics import draw_dynamics, dynamics_figure
from nnunet_nas.iac.drawing.progress import _contrast, _duration, _from_contrast, draw_progress, progress_figure
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


@given(genotypes, st.sampled_from([None, "2d_iaclth", "3d_fullres_iaclth_f3"]), st.booleans())
@settings(max_examples=15, deadline=None)
def test_a_cell_shows_every_operation_and_node_and_names_never_overlap(cell, title, residual):
    figure = cell_figure(cell, title, residual=residual)
    texts = assert_inside_and_apart(figure)
    shapes = with_boxes(figure, figure.findobj(FancyBboxPatch) + figure.findobj(Circle))
    for (one, one_box), (other, other_box) in itertools.combinations(shapes, 2):
        assert not overlap(one_box, other_box), (one.get_gid(), other.get_gid())
    # A name is inside its own box or node, or meets none.
    for text, box in texts:
        met = [shape for _, shape in shapes if overlap(box, shape)]
        assert not met or (len(met) == 1 and inside(box, met[0])), text.get_text()
    names = [text.get_text() for text, _ in texts]
    for operation in OPERATIONS:
        shown = names.count(operation.replace("_", " "))
        assert shown == sum(edge.operation == operation for edge in cell.edges)
    assert [name for name in names if name.isdecimal()] == ["0", "1", "2", "3", "4", "5"]
    assert {"encoder skip", "decoder, upsampled", "concatenation", "output"} <= set(names)
    # Both inputs and the output pass a 1x1 convolution; the skip is added to a residual cell.
    assert names.count("conv 1\N{MULTIPLICATION SIGN}1") == 3
    assert names.count("+") == residual
    ways = [shape.get_gid() for shape in figure.findobj(FancyArrowPatch)]
    assert ways.count("wire skip") == residual
    assert title is None or title in names


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


@pytest.mark.parametrize(
    ("draw", "width"),
    [
        (lambda path: draw_cell(genotype(TOPOLOGIES[0]), path, title="2d_iaclth"), 3.5 * 300),
        (lambda path: draw_progress(search(40), path, title="a search"), 10 * 100),
        (lambda path: draw_dynamics(analyse(search(40)), path, "a search"), 9 * 150),
    ],
    ids=["cell", "progress", "dynamics"],
)
def test_pictures_have_their_width_and_are_put_in_place_whole(tmp_path, draw, width):
    picture = written_whole(draw, tmp_path)
    assert picture.shape[1] == width
    assert 0.02 < ink(picture) < 0.5


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
    colours = _contrast(probabilities)
    # ln(7 * 0.2) / ln 7 = 0.33647 / 1.94591 = 0.17291, whose cube root is 0.557
    assert colours == pytest.approx([0, 0.1529, 0.557, 1], abs=1e-3)
    assert _from_contrast(colours) == pytest.approx(probabilities)


def test_durations_are_rounded_to_what_matters():
    assert [_duration(seconds) for seconds in (8.6, 100, 3570, 5400)] == ["9 s", "2 min", "1 h 00 min", "1 h 30 min"]


@pytest.mark.parametrize(
    ("epochs", "tests", "measured"),
    [
        pytest.param(1, True, False, id="first epoch, nothing measured"),
        pytest.param(2, False, True, id="no tests, so two panels less", marks=SLOW),
        pytest.param(5, True, True, id="end of warm-up", marks=SLOW),
        pytest.param(40, True, True, id="everything settled"),
        pytest.param(200, False, True, id="long, lines without markers", marks=SLOW),
        pytest.param(200, True, False, id="long, all panels", marks=SLOW),
    ],
)
def test_names_in_the_progress_are_inside_and_apart(epochs, tests, measured):
    history = search(epochs, tests=tests, measured=measured)
    assert_inside_and_apart(progress_figure(history, title="nnUNetTrainerIACLTHSearch, 3d_fullres, fold 0"))


@pytest.mark.parametrize(
    ("epochs", "tests"),
    [
        pytest.param(1, False, id="first epoch, all tied"),
        pytest.param(40, True, id="everything settled"),
        pytest.param(200, False, id="long, nothing pruned", marks=SLOW),
    ],
)
def test_names_in_the_dynamics_are_inside_and_apart(epochs, tests):
    analysis = analyse(search(epochs, tests=tests))
    assert_inside_and_apart(dynamics_figure(analysis, "nnUNetTrainerIACLTHSearch, 3d_fullres, fold 0"))


def test_neither_pyplot_nor_torch_is_imported(tmp_path):
    code = """
import sys
from pathlib import Path
from nnunet_nas.iac.drawing.cell import draw_cell
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


def test_the_dynamics_show_every_trajectory_and_the_five_matrices():
    figure = dynamics_figure(analyse(search(40)), "")
    assert sum(line.get_gid() == "path" for axes in figure.axes for line in axes.get_lines()) == 98
    assert sum(bool(axes.images) for axes in figure.axes) == 5
