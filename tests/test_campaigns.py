"""A small, fixed share of the campaigns with broken files; `examples/campaigns/run.py` runs any number."""

import runpy
from pathlib import Path

import pytest

CAMPAIGNS = runpy.run_path(str(Path(__file__).resolve().parents[1] / "examples/campaigns/run.py"))
SHARES = {"plans": 12, "settings": 100, "genotypes": 100, "topologies": 100, "summaries": 40, "histories": 60,
          "checkpoints": 60}  # fmt: skip


@pytest.mark.parametrize(("kind", "count"), SHARES.items())
def test_nothing_ends_unforeseen_and_no_refusal_changes_a_file(nnunet_folders, kind, count):
    campaign = CAMPAIGNS["Campaign"](nnunet_folders)
    for seed in range(1000, 1000 + count):
        CAMPAIGNS["KINDS"][kind](campaign, seed)
    assert campaign.tried >= count
    assert campaign.failed == []


def test_every_kind_has_its_share():
    assert set(SHARES) == set(CAMPAIGNS["KINDS"])
