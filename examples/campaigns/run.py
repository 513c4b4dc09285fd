"""What must not go wrong, tried by the hundred and the thousand: broken files, kills, many writers, full disks.

    python examples/campaigns/run.py plans -n 500 -seed 1
    python examples/campaigns/run.py kills-iac_lth -n 50 -seed 1
    python examples/campaigns/run.py files -n 100 -seed 1

Each kind tries seeds S, S+1, ... S+N-1 and is described in its module. Printed is a table of what was tried and what
failed; every failure is repeated with the seed that is printed beside it and -n 1. `files`, `kills` and `all` are
several kinds after each other. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

# Before NumPy and torch start threads, which forks would not have.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import broken_files
import kills
import replans
import writers
from campaign import Campaign

# What forks comes first: its processes must find nothing computed here.
KINDS = {**kills.KINDS, **writers.KINDS, **replans.KINDS, **broken_files.KINDS}
GROUPS = {"kills": list(kills.KINDS), "files": list(broken_files.KINDS), "all": list(KINDS)}


def run(kind: str, seed: int, count: int) -> Campaign:
    """Tries a kind in a folder of its own, which vanishes afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (Path(folder) / variable).mkdir()
            os.environ[variable] = str(Path(folder) / variable)
        campaign = Campaign(Path(folder))
        for number in range(count):
            KINDS[kind](campaign, seed + number)
    return campaign


def main() -> int:
    """Runs campaigns and prints their table; the exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*KINDS, *GROUPS], help="what is tried")
    parser.add_argument("-n", type=int, default=100, help="seeds of each kind (default: %(default)s)")
    parser.add_argument("-seed", "-S", type=int, default=0, help="the first (default: %(default)s)")
    args = parser.parse_args()
    failed = 0
    print(f"{'kind':<20}  tried  refused  failed", flush=True)
    for kind in GROUPS.get(args.kind, [args.kind]):
        campaign = run(kind, args.seed, args.n)
        print(f"{kind:<20}  {campaign.tried:>5}  {campaign.refused:>7}  {len(campaign.failed):>6}", flush=True)
        for line in campaign.failed:
            print(f"  {line}", flush=True)
        failed += len(campaign.failed)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
