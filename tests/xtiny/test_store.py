"""Scores survive a kill, a full disk and a damaged file; what is lost is computed again."""

import errno
import json
import os

import pytest

from nnunet_nas.errors import EnvironmentProblem
from nnunet_nas.xtiny.store import ScoreStore

KEY = {"dataset": "Dataset011_Fake", "cases": ["a", "b"], "metric": "jacobian"}


@pytest.fixture
def store(tmp_path):
    """Holds cap 8 and cap 4 of seed 0, in that order."""
    store = ScoreStore(tmp_path, KEY)
    store.add(0, 8, {"a": 1.5}, 0.5)
    store.add(0, 4, {"a": 0.1, "b": 2.5e-300}, 0.5)
    return store


def opened_again(store):
    return ScoreStore(store.path.parent, KEY)


def test_values_come_back_exactly(store):
    again = opened_again(store)
    assert again.known(0, 8) == {"a": 1.5}
    assert again.known(0, 4) == {"a": 0.1, "b": 2.5e-300}


def test_what_was_not_stored_is_not_known(store):
    assert opened_again(store).known(1, 8) == {}
    assert opened_again(store).known(0, 2) == {}


def test_values_of_later_batches_are_added(store):
    store.add(0, 8, {"b": 2.5}, 0.5)
    assert store.known(0, 8) == opened_again(store).known(0, 8) == {"a": 1.5, "b": 2.5}


def test_seconds_of_all_attempts_are_added(store):
    again = opened_again(store)
    again.add(0, 8, {"b": 2.5}, 1.25)
    assert again.seconds(0, 8) == opened_again(store).seconds(0, 8) == 0.5 + 1.25
    assert opened_again(store).seconds(1, 8) == 0


def test_a_line_without_seconds_counts_with_its_values(store):
    with store.path.open("a") as file:
        file.write(json.dumps({"seed": 0, "cap": 8, "values": {"b": 2.5}}) + "\n")
    assert opened_again(store).known(0, 8) == {"a": 1.5, "b": 2.5}
    assert opened_again(store).seconds(0, 8) == 0.5


def test_what_is_known_is_a_copy(store):
    store.known(0, 8)["a"] = 9.0
    assert store.known(0, 8) == {"a": 1.5}


def test_the_key_is_in_the_first_line(store):
    assert json.loads(store.path.read_text().splitlines()[0]) == {"key": KEY}


def test_another_key_is_another_file(store):
    other = ScoreStore(store.path.parent, {**KEY, "cases": ["a", "c"]})
    assert other.path != store.path
    assert other.known(0, 8) == {}


def test_the_order_of_keys_does_not_matter(store):
    turned = ScoreStore(store.path.parent, dict(reversed(KEY.items())))
    assert turned.known(0, 8) == {"a": 1.5}


@pytest.mark.parametrize("lost", [1, 2, 10, 30])
def test_a_line_that_a_kill_cut_short_is_lost_and_no_other(store, lost):
    store.path.write_bytes(store.path.read_bytes()[:-lost])
    again = opened_again(store)
    assert again.known(0, 8) == {"a": 1.5}
    # Without its newline the last line is whole; with less it is gone.
    assert again.known(0, 4) == ({"a": 0.1, "b": 2.5e-300} if lost == 1 else {})


@pytest.mark.parametrize("lost", [1, 10, 10**6])
def test_writing_goes_on_after_a_cut_line(store, lost):
    store.path.write_bytes(store.path.read_bytes()[:-lost])
    again = opened_again(store)
    again.add(0, 2, {"a": 7.0}, 0.5)
    again.add(0, 1, {"a": 8.0}, 0.5)
    final = opened_again(store)
    assert (final.known(0, 2), final.known(0, 1)) == ({"a": 7.0}, {"a": 8.0})


@pytest.mark.parametrize(
    "garbage",
    [
        b"no json",
        b"\x00" * 40,
        b"\xff\xfe\x80",
        b"null",
        b"7",
        b"[]",
        b'"values"',
        b"{}",
        b'{"values": {"a": 1}}',
        b'{"seed": 0, "cap": 8, "values": 3}',
        b'{"seed": [], "cap": 8, "values": {}}',
    ],
)
def test_a_line_of_anything_else_is_passed_over(store, garbage):
    first, *rest = store.path.read_bytes().splitlines(keepends=True)
    store.path.write_bytes(b"".join([first, garbage + b"\n", *rest]))
    assert opened_again(store).known(0, 8) == {"a": 1.5}
    assert opened_again(store).known(0, 4) == {"a": 0.1, "b": 2.5e-300}


def test_a_reader_sees_what_a_writer_has_added_so_far(store):
    reader = ScoreStore(store.path.parent, KEY, read_only=True)
    store.add(0, 2, {"a": 7.0}, 0.5)
    assert reader.known(0, 2) == {}
    assert ScoreStore(store.path.parent, KEY, read_only=True).known(0, 2) == {"a": 7.0}


def test_read_only_uses_what_is_known_and_writes_nothing(store):
    before = store.path.read_bytes()
    reader = ScoreStore(store.path.parent, KEY, read_only=True)
    reader.add(0, 2, {"a": 7.0}, 0.5)
    assert (reader.known(0, 8), reader.known(0, 2)) == ({"a": 1.5}, {"a": 7.0})
    assert store.path.read_bytes() == before


def test_read_only_makes_no_file(tmp_path):
    ScoreStore(tmp_path / "nowhere", KEY, read_only=True).add(0, 8, {"a": 1.0}, 0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_what_was_written_stays(store, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EnvironmentProblem, match=r"cannot write .*No space left.*scores so far are kept"):
            store.add(0, 2, {"a": 7.0}, 0.5)
    assert opened_again(store).known(0, 8) == {"a": 1.5}
    store.add(0, 1, {"a": 8.0}, 0.5)
    assert opened_again(store).known(0, 1) == {"a": 8.0}


def test_a_line_that_a_full_disk_cut_short_does_not_spoil_the_next(store, monkeypatch):
    whole = store.path.read_bytes()

    def cut(descriptor):
        os.truncate(store.path, len(whole) + 10)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", cut)
        with pytest.raises(EnvironmentProblem):
            store.add(0, 2, {"a": 7.0}, 0.5)
    store.add(0, 1, {"a": 8.0}, 0.5)
    again = opened_again(store)
    assert (again.known(0, 8), again.known(0, 2), again.known(0, 1)) == ({"a": 1.5}, {}, {"a": 8.0})


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        ScoreStore(tmp_path / "nowhere", KEY).add(0, 8, {"a": 1.0}, 0.5)


def test_a_store_that_cannot_be_read_is_said(store):
    store.path.unlink()
    store.path.mkdir()
    with pytest.raises(EnvironmentProblem, match="cannot read"):
        opened_again(store)


def test_what_is_no_number_is_no_score(store):
    values = {"a": True, "b": "abc", "c": None, "d": 0.5, "e": [1.0]}
    lines = [{"seed": 0, "cap": 16, "values": values}, {"seed": 0, "cap": "16", "values": {"a": 1.0}},
             {"seed": 0, "cap": 16, "values": [1.0]}]  # fmt: skip
    with store.path.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    assert opened_again(store).known(0, 16) == {"d": 0.5}
