"""Cost curves: slopes worked out by hand, and a file of measurements that goes on where it was."""

import csv
import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent.parent / "examples" / "benchmarks" / "cost_curves.py"


@pytest.fixture
def curves(monkeypatch):
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, FILE.stem, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VARIED", {"patch": (32, 64), "layers": (2, 3)})
    monkeypatch.setattr(
        module, "KINDS", {"plain": (module.plain, ("patch",)), "decoding": (module.decoding, ("layers",))}
    )
    return module


def test_a_slope_of_two_is_four_times_the_cost_for_twice_the_size(curves):
    assert curves.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    rows = [
        {"what": "plain", "varied": "patch", "size": size, "cpu_seconds": seconds, "macs": size**2}
        for size, seconds in ((4, 8), (1, 1), (2, 1))
    ]
    curves.KINDS = {"plain": (curves.plain, ("patch",))}
    # Through all: half a step from 1 to 2 and three from 2 to 4, 1.5 on average; at the upper end three.
    assert curves.slopes(rows)["plain", "patch"] == pytest.approx((1.5, 3, 2))


def test_what_is_measured_is_not_measured_again(curves, tmp_path):
    path = tmp_path / "costs.csv"
    rows = curves.measure(path, repeats=1)
    assert [(row["what"], row["varied"], row["size"]) for row in rows] == [
        ("plain", "patch", 32), ("plain", "patch", 64), ("decoding", "layers", 2), ("decoding", "layers", 3),
    ]  # fmt: skip
    # Convolutions see four times as many pixels.
    assert float(rows[1]["macs"]) == pytest.approx(4 * float(rows[0]["macs"]), rel=1e-3)
    curves.KINDS = {name: (None, varied) for name, (_, varied) in curves.KINDS.items()}
    assert [dict(row) for row in curves.measure(path, repeats=1)] == list(csv.DictReader(path.open()))
