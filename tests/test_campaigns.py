"""A small, fixed share of the campaigns; `examples/campaigns/run.py` runs any number of each kind."""

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[1] / "examples/campaigns/run.py"
SHARES = {"plans": 12, "settings": 100, "genotypes": 100, "topologies": 100, "summaries": 40, "histories": 60,
          "checkpoints": 60}  # fmt: skip
# What forks, in a process of its own that has computed nothing yet.
FORKS = {"kills-iac": 1, "kills-iac_lth": 1, "kills-dints": 1, "kills-retrofit": 1, "kills-schedule": 1,
         "kills-distill": 1, "writers": 1, "replans": 1, "disk": 3}  # fmt: skip
# Longer ways through the same code.
BY_HAND = {"kills-dints_evidence", "disk-search"}


@pytest.fixture
def campaigns(monkeypatch):
    monkeypatch.syspath_prepend(RUN.parent)
    import broken_files
    import campaign

    return campaign.Campaign, broken_files.KINDS


@pytest.mark.parametrize(("kind", "count"), SHARES.items())
def test_nothing_ends_unforeseen_and_no_refusal_changes_a_file(campaigns, nnunet_folders, kind, count):
    make, kinds = campaigns
    campaign = make(nnunet_folders)
    for seed in range(1000, 1000 + count):
        kinds[kind](campaign, seed)
    assert campaign.tried >= count
    assert campaign.failed == []


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="forks of so much are safe on Linux")
def test_kills_races_and_full_disks_leave_what_they_should():
    words = [f"{kind}:{count}" for kind, count in FORKS.items()]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", RUN, *words, "-seed", "1000"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()[1:]}
    assert set(table) == set(FORKS)
    assert min(table.values()) > 0, table


def test_every_kind_has_its_share(campaigns):
    shown = subprocess.run([sys.executable, RUN, "--help"], capture_output=True, text=True, check=True).stdout
    kinds = shown[shown.index("kinds: ") :].split("\n\n")[0].removeprefix("kinds: ").replace(",", " ").split()
    assert set(kinds) == {*SHARES, *FORKS, *BY_HAND}
