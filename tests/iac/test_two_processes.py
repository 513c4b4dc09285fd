"""A search in two processes: same decisions on both, while the graph gets smaller."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from searches import read_plans, set_settings

pytestmark = pytest.mark.integration


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_both_processes_take_the_same_decisions(searchable, tmp_path):
    set_settings(searchable, "2d", "iac_lth", num_epochs=30, architecture_lr=0.05, gamma=4.0)
    script, port = Path(__file__).parent / "two_processes.py", str(free_port())
    outputs = [tmp_path / f"rank_{rank}.pt" for rank in (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), port, searchable, output],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, output in enumerate(outputs)
    ]
    for process in processes:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed[-4000:]
    first, second = (torch.load(output) for output in outputs)
    assert first["batch_size"] + second["batch_size"] == 2
    assert first["batches"] != second["batches"]
    assert first["alpha"].any()
    for key in ("alpha", "beta", "active", "operations_left"):
        assert first[key].equal(second[key]), key
    assert all(first["cells"][key].equal(value) for key, value in second["cells"].items())
    assert len(set(first["operations_left"].tolist())) > 2
    assert first["active"].sum(1).eq(1).all()
    assert "2d_iaclth" in read_plans(searchable)["configurations"]
