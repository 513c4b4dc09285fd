"""What a DiNTS search records: one file, whole or refused in one line."""

import io

import numpy as np
import pytest

from nnunet_nas.dints.history import TopologyHistory
from nnunet_nas.errors import DataProblem

SHAPES = {"edge_logits": (3, 4), "operations": (3, 4, 2), "selected": (3, 4)}
NUMBERS = (
    "warmup", "gap", "log_feasible", "nll", "pattern_entropy", "operation_entropy", "expected_mib", "selected_mib",
    "budget_mib", "train_loss", "val_loss", "dice", "seconds",
)  # fmt: skip


def epoch(number=0):
    """Three layers, two levels, two operations."""
    rng = np.random.default_rng(number)
    values = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    values["selected"] = values["selected"] > 0
    return {**values, **{name: rng.normal() for name in NUMBERS}, "warmup": number < 2, "val_loss": np.nan}


def history_of(count):
    history = TopologyHistory()
    for number in range(count):
        history.append(**epoch(number))
    return history


def written(**arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def test_every_epoch_is_kept_by_name():
    history = history_of(3)
    assert len(history) == 3
    assert {name: array.shape for name, array in history.arrays().items()} == {
        **{name: (3, *shape) for name, shape in SHAPES.items()},
        **dict.fromkeys(NUMBERS, (3,)),
    }
    assert history.warmup.tolist() == [1, 1, 0]
    np.testing.assert_array_equal(history.edge_logits[1], epoch(1)["edge_logits"])
    np.testing.assert_array_equal(history.selected[2], epoch(2)["selected"])
    with pytest.raises(AttributeError, match="alpha"):
        history.alpha  # noqa: B018 (the look-up is what is tested)


def test_save_and_load_keep_every_bit(tmp_path):
    history, path = history_of(3), tmp_path / "search_history.npz"
    history.save(path)
    loaded = TopologyHistory.load(path)
    for name, array in history.arrays().items():
        assert loaded.arrays()[name].dtype == array.dtype == np.float64
        np.testing.assert_array_equal(loaded.arrays()[name], array)
    loaded.append(**epoch(3))
    assert (len(loaded), len(history)) == (4, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["search_history.npz"]


def test_arrays_and_back():
    history = history_of(2)
    again = TopologyHistory.from_arrays(history.arrays())
    for name, array in history.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    assert len(TopologyHistory.from_arrays(TopologyHistory().arrays())) == 0


def test_an_epoch_is_copied():
    values = epoch()
    history = TopologyHistory()
    history.append(**values)
    values["edge_logits"][:] = 7
    assert not (history.edge_logits == 7).any()


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_an_incomplete_epoch_is_refused_and_not_added(change):
    history, values = history_of(1), epoch(1)
    if change == "missing":
        del values["gap"]
    else:
        values["gaps"] = 0
    with pytest.raises(DataProblem, match="expected .*'gap'"):
        history.append(**values)
    assert {len(array) for array in history.arrays().values()} == {1}


def test_arrays_that_are_no_history_are_refused():
    arrays = history_of(2).arrays()
    with pytest.raises(DataProblem, match=r"missing: gap, nll\)"):
        TopologyHistory.from_arrays({name: array for name, array in arrays.items() if name not in ("gap", "nll")})
    with pytest.raises(DataProblem, match="missing: epochs"):
        TopologyHistory.from_arrays({**arrays, "gap": arrays["gap"][:1]})


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "flipped", "single array", "pickle"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "search_history.npz"
    history_of(3).save(path)
    content = path.read_bytes()
    array = io.BytesIO()
    np.save(array, np.arange(3))
    damaged = {
        "empty": b"",
        "text": b"no history",
        "truncated": content[: len(content) // 2],
        "flipped": content[:200] + bytes(255 - byte for byte in content[200:400]) + content[400:],
        "single array": array.getvalue(),
        "pickle": written(layout=1, gap=np.array([{}])),
    }
    path.unlink() if damage == "missing" else path.write_bytes(damaged[damage])
    with pytest.raises(DataProblem, match="search_history.npz is not the history of a search") as error:
        TopologyHistory.load(path)
    assert "\n" not in str(error.value)


def test_files_of_other_versions_are_refused(tmp_path):
    path, arrays = tmp_path / "search_history.npz", history_of(1).arrays()
    for layout in ({"layout": 2}, {}):
        path.write_bytes(written(**layout, **arrays))
        with pytest.raises(DataProblem, match="a layout that this version does not know"):
            TopologyHistory.load(path)
    path.write_bytes(written(layout=1, edge_logits=arrays["edge_logits"]))
    with pytest.raises(DataProblem, match="missing: budget_mib, dice"):
        TopologyHistory.load(path)
