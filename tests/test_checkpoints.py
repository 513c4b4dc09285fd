"""Checkpoints are read without running what is in them."""

import os
import pickle

import numpy as np
import pytest
import torch

from nnunet_nas.checkpoints import read_checkpoint
from nnunet_nas.errors import DataProblem


class Program:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Note:
    """What a package of the user's might keep in a checkpoint."""

    def __init__(self, text):
        self.text = text


def test_what_nnunet_writes_is_read(tmp_path):
    numbers = [kind(1) for kind in (np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_)]
    state = {
        "network_weights": {"a.weight": torch.arange(3)},
        "logging": {"dice": numbers, "ema_fg_dice": [np.float64(0.25)]},
        "init_args": {"plans": {"configurations": {}}, "fold": 0, "device": torch.device("cpu")},
        "grad_scaler_state": None,
    }
    torch.save(state, tmp_path / "checkpoint.pth")
    read = read_checkpoint(tmp_path / "checkpoint.pth", "train again", ["network_weights"])
    assert read["network_weights"]["a.weight"].tolist() == [0, 1, 2]
    assert [(type(value), value) for value in read["logging"]["dice"]] == [(type(value), value) for value in numbers]
    assert read["init_args"] == state["init_args"]


@pytest.mark.parametrize("new_format", [True, False])
def test_what_is_in_it_does_not_run(tmp_path, new_format):
    proof, path = tmp_path / "ran", tmp_path / "stranger.pth"
    torch.save({"network_weights": Program(f"touch {proof}")}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(DataProblem, match=r"was not opened, because that would run code of \w+\.system"):
        read_checkpoint(path, "train again")
    assert not proof.exists()


def test_a_package_that_the_user_trusts_is_read(tmp_path, monkeypatch):
    torch.save({"note": Note("mine")}, tmp_path / "a.pth")
    with pytest.raises(DataProblem, match=f"export NNUNET_NAS_TRUST={__name__.partition('.')[0]};"):
        read_checkpoint(tmp_path / "a.pth", "train again")
    monkeypatch.setenv("NNUNET_NAS_TRUST", f"another, {__name__}")
    assert read_checkpoint(tmp_path / "a.pth", "train again")["note"].text == "mine"


@pytest.mark.parametrize("content", [b"", b"\0", b"foreign", b"PK\x03\x04", b"\x80\x02]q\x00.", b"{}", b"\x80\x05N."])
def test_files_of_another_kind_are_one_line_with_the_mend(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)
    with pytest.raises(DataProblem, match=f"^{path} .*: train again$"):
        read_checkpoint(path, "train again")


def test_a_cut_file_is_one_line_wherever_it_is_cut(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"weights": torch.zeros(100)}, path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(DataProblem, match="is damaged or no file of torch"):
            read_checkpoint(path, "train again")


@pytest.mark.parametrize("code", [pickle.BINFLOAT, pickle.BININT, pickle.SETITEM])
def test_a_pickle_changed_in_one_byte_is_read_or_one_line(tmp_path, code):
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 1, "loss": 0.5, "weights": [torch.zeros(4)]}, path)
    whole = path.read_bytes()
    first = whole.index(pickle.PROTO + b"\x02")
    refused = []
    for place in range(first, whole.index(b"PK", first)):
        path.write_bytes(whole[:place] + code + whole[place + 1 :])
        try:
            read_checkpoint(path, "train again")
        except DataProblem as problem:
            refused.append(str(problem))
    assert len(refused) > 50
    assert all(message.endswith("train again") for message in refused)


def test_what_is_missing_is_named(tmp_path):
    path = tmp_path / "checkpoint.pth"
    with pytest.raises(DataProblem, match="does not exist: train again"):
        read_checkpoint(path, "train again")
    torch.save({"weights": 1}, path)
    with pytest.raises(DataProblem, match="has no init_args, plans: train again"):
        read_checkpoint(path, "train again", ["init_args", "weights", "plans"])
    torch.save([1, 2], path)
    with pytest.raises(DataProblem, match="holds a list and no dictionary"):
        read_checkpoint(path, "train again")
