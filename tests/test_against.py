"""The benchmark of arms beside their controls: what is paired with what."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
import against


def row(arm, cases, *, width=4, detail="on 4", seed=0):
    return {
        "dataset": "Dataset007_X",
        "arm": arm,
        "width": str(width),
        "detail": detail,
        "seed": str(seed),
        "hold_out_cases": cases,
    }


def test_random_cells_are_averaged_case_by_case_and_within_a_seed():
    rows = [row("random0", "0.2 0.4"), row("random1", "0.4 0.8"), row("random0", "0.9 0.9", seed=1)]
    cases = against.cases_of(rows)
    np.testing.assert_allclose(cases["Dataset007_X", 4, "random", 0], [0.3, 0.6])
    np.testing.assert_allclose(cases["Dataset007_X", 4, "random", 1], [0.9, 0.9])


def test_a_wider_control_belongs_to_the_backbone_that_it_controls():
    rows = [row("searched", "0.5 0.7"), row("wider", "0.6 0.9", width=5), row("plain", "0.3 0.3", detail="-")]
    lines = {(line[2], line[3]): line for line in against.table(rows)}
    assert set(lines) == {("searched", "plain"), ("searched", "wider")}
    assert lines["searched", "wider"][:2] == ["007", "4"]
    assert lines["searched", "wider"][-1].startswith("-0.1500 [")


def test_the_interval_is_that_of_the_cases_where_there_is_one_seed():
    differences = np.array([[0.1, 0.1, 0.1]])
    assert against.interval(differences) == pytest.approx((0.1, 0.1))
    low, high = against.interval(np.array([[0.0, 0.2]] * 3))
    assert (low, high) == pytest.approx((0.0, 0.2))
