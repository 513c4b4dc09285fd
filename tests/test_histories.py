"""The histories of all methods: their schemas, and one file that is whole or refused in one line."""

import io

import numpy as np
import pytest

from nnunet_nas.dints.history import TopologyHistory
from nnunet_nas.errors import DataProblem, EnvironmentProblem
from nnunet_nas.histories import load_history
from nnunet_nas.iac.history import CellHistory

# Type and shape per epoch of everything in the files of layout 1; three layers, two levels, two operations.
NUMBER = ("float64", ())
LAYOUT_1 = {
    CellHistory: {
        **dict.fromkeys(["train_loss", "val_loss", "dice", "seconds"], NUMBER),
        "probabilities": ("float64", (14, 7)),
        "weights": ("float64", (14,)),
        "active": ("bool", (14, 7)),
        "js": ("float64", (14,)),
        "tau": ("float64", (14,)),
        "warmup": ("bool", ()),
    },
    TopologyHistory: {
        **dict.fromkeys(["train_loss", "val_loss", "dice", "seconds", "warmup", "gap", "log_feasible", "nll"], NUMBER),
        **dict.fromkeys(["pattern_entropy", "operation_entropy"], NUMBER),
        **dict.fromkeys(["expected_mib", "selected_mib", "budget_mib"], NUMBER),
        "edge_logits": ("float64", (3, 4)),
        "operations": ("float64", (3, 4, 2)),
        "selected": ("float64", (3, 4)),
    },
}
SCHEMAS = pytest.mark.parametrize("schema", LAYOUT_1)


def arrays_of(schema, epochs):
    """Random arrays by name, as a file of layout 1 holds them."""
    random = np.random.default_rng(0)
    made = {name: random.random((epochs, *shape)).astype(dtype) for name, (dtype, shape) in LAYOUT_1[schema].items()}
    return {**made, "val_loss": np.full(epochs, np.nan)}


def epoch_of(schema, number=0):
    return {name: array[number] for name, array in arrays_of(schema, number + 1).items()}


def written(**arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def same(history, arrays):
    assert set(history.arrays()) == set(arrays)
    for name, array in arrays.items():
        found = getattr(history, name)
        assert found is history.arrays()[name]
        assert found.dtype == array.dtype, name
        np.testing.assert_array_equal(found, array, err_msg=name)


@SCHEMAS
def test_epochs_are_kept_by_name_from_the_first_on(schema):
    history, arrays = schema(), arrays_of(schema, 3)
    assert len(history) == 0
    for number in range(3):
        history.append(**{name: array[number] for name, array in arrays.items()})
        assert len(history) == number + 1
    same(history, arrays)


@SCHEMAS
def test_files_of_layout_1_are_read(schema, tmp_path):
    arrays = arrays_of(schema, 2)
    (tmp_path / "search_history.npz").write_bytes(written(layout=np.int64(1), **arrays))
    history = load_history(tmp_path / "search_history.npz", list(LAYOUT_1))
    assert type(history) is schema
    same(history, arrays)


def test_a_file_without_epochs_is_read_whatever_the_shapes(tmp_path):
    empty = {name: np.array([]) for name in LAYOUT_1[TopologyHistory]}
    (tmp_path / "search_history.npz").write_bytes(written(layout=np.int64(1), **empty))
    history = TopologyHistory.load(tmp_path / "search_history.npz")
    assert len(history) == 0
    history.append(**epoch_of(TopologyHistory))
    assert history.edge_logits.shape == (1, 3, 4)


@SCHEMAS
def test_save_and_load_keep_every_bit(schema, tmp_path):
    path = tmp_path / "search_history.npz"
    schema().save(path)
    assert len(schema.load(path)) == 0
    history = schema.from_arrays(arrays_of(schema, 2))
    history.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["search_history.npz"]
    assert set(np.load(path)) == {*LAYOUT_1[schema], "layout"}
    loaded = schema.load(path)
    same(loaded, history.arrays())
    loaded.append(**epoch_of(schema))
    assert (len(loaded), len(history)) == (3, 2)


def test_the_file_is_replaced_whole(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("nnunet_nas.histories.replace_file", lambda path, content: calls.append((path, content)))
    CellHistory.from_arrays(arrays_of(CellHistory, 1)).save(tmp_path / "search_history.npz")
    assert list(tmp_path.iterdir()) == []
    ((path, content),) = calls
    assert path == tmp_path / "search_history.npz"
    assert set(np.load(io.BytesIO(content))) == {*LAYOUT_1[CellHistory], "layout"}


def test_an_epoch_is_copied_and_takes_the_type_of_its_array():
    values, history = epoch_of(TopologyHistory), TopologyHistory()
    values["edge_logits"] = values["edge_logits"].astype(np.float32)
    history.append(**{**values, "selected": values["selected"] > 0.5})
    values["operations"][:] = 7
    assert not (history.operations == 7).any()
    assert history.edge_logits.dtype == history.selected.dtype == np.float64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gap": None}, "missing or unknown: gap; it must hold train_loss, "),
        ({"gaps": 0}, "missing or unknown: gaps; it must hold "),
        ({"dice": [0.5]}, r"dice must be float64 \(1,\), found float64 \(1, 1\)"),
        (
            {"operations": np.zeros((3, 5, 2))},
            r"operations must be float64 \(1, 3, 4, 2\), found float64 \(1, 3, 5, 2\)",
        ),
        ({"operations": np.zeros((3, 4, 3))}, r"operations of one epoch must be \(3, 4, 2\), found \(3, 4, 3\)"),
    ],
    ids=["missing", "unknown", "one number too deep", "sizes that differ among columns", "sizes of other epochs"],
)
def test_an_epoch_that_does_not_fit_is_refused_and_not_added(changes, message):
    history = TopologyHistory.from_arrays(arrays_of(TopologyHistory, 1))
    values = {name: value for name, value in {**epoch_of(TopologyHistory), **changes}.items() if value is not None}
    with pytest.raises(DataProblem, match=message):
        history.append(**values)
    assert {len(array) for array in history.arrays().values()} == {1}


def test_arrays_that_are_no_history_are_refused():
    arrays = arrays_of(CellHistory, 2)
    with pytest.raises(DataProblem, match="missing or unknown: js, tau;"):
        CellHistory.from_arrays({name: array for name, array in arrays.items() if name not in ("js", "tau")})
    with pytest.raises(DataProblem, match=r"tau must be float64 \(2, 14\), found float64 \(1, 14\)"):
        CellHistory.from_arrays({**arrays, "tau": arrays["tau"][:1]})
    with pytest.raises(DataProblem, match=r"active must be bool \(2, 14, 7\), found uint8"):
        CellHistory.from_arrays({**arrays, "active": arrays["active"].astype(np.uint8)})
    with pytest.raises(DataProblem, match=r"train_loss must be float64 \(0,\), found float64 \(2,\)"):
        CellHistory.from_arrays({**arrays, "seconds": np.zeros(0)})


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "single array", "pickle", "no layout"])
def test_a_broken_file_says_what_to_do_in_one_line(tmp_path, damage):
    path, arrays = tmp_path / "search_history.npz", arrays_of(CellHistory, 3)
    content, array = written(layout=np.int64(1), **arrays), io.BytesIO()
    middle = content.index(b"active.npy") + 80
    np.save(array, np.arange(3))
    damaged = {
        "cut": content[: len(content) // 2],
        "flipped": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        "empty": b"",
        "text": b"no history",
        "single array": array.getvalue(),
        "pickle": written(layout=1, probabilities=np.array([{}])),
        "no layout": written(**arrays),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(DataProblem, match="npz is not the history of a search .*: restore a copy of it, or") as error:
        CellHistory.load(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_this_history_says_so(tmp_path):
    path, arrays = tmp_path / "search_history.npz", arrays_of(CellHistory, 1)
    with pytest.raises(DataProblem, match="does not exist: give the fold_X folder of a search"):
        CellHistory.load(path)
    path.write_bytes(written(layout=2, **arrays))
    with pytest.raises(DataProblem, match="has layout 2, this version reads 1: use the version that wrote it"):
        CellHistory.load(path)
    path.write_bytes(written(layout=1, beta=np.zeros(3), alpha=np.zeros(3)))
    with pytest.raises(DataProblem, match=r"not the history of a search \(it holds alpha, beta\): restore a copy"):
        load_history(path, list(LAYOUT_1))
    path.write_bytes(written(layout=1, **{**arrays, "tau": arrays["tau"][0]}))
    with pytest.raises(DataProblem, match=r"npz: search history: tau must be float64 \(1, 14\), .*: restore a copy"):
        CellHistory.load(path)
    with pytest.raises(EnvironmentProblem, match="cannot read .*: make it readable for you"):
        CellHistory.load(tmp_path)


def test_a_layout_that_is_no_number_is_refused(tmp_path):
    path = tmp_path / "search_history.npz"
    np.savez_compressed(path, layout=np.float64(np.inf))
    with pytest.raises(DataProblem, match="is not the history of a search"):
        CellHistory.load(path)
