"""What must not go wrong, tried by the hundred and the thousand: broken files, kills, many writers, full disks.

    python examples/campaigns/run.py plans -n 500 -seed 1
    python examples/campaigns/run.py kills-iac_lth writers:5 -n 50 -seed 1
    python examples/campaigns/run.py files -n 100 -seed 1 -o campaigns.csv

Each kind tries seeds S, S+1, ... S+N-1 and is described in its module. Printed is a table of what was tried, how much
of it was refused, and what failed; every failure is repeated with the seed that is printed beside it and -n 1. The
exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
import tempfile
from datetime import date
from pathlib import Path

# Before NumPy and torch start threads, which forks would not have.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import broken_files
import full_disk
import kills
import replans
import writers
from campaign import Campaign

# What forks comes first: its processes must find nothing computed here.
KINDS = {**kills.KINDS, **writers.KINDS, **replans.KINDS, **full_disk.KINDS, **broken_files.KINDS}
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


def chosen(words: list[str], count: int) -> dict[str, int]:
    """Seeds of each kind: groups are taken apart, `KIND:N` has a number of its own.

    Raises:
        ValueError: there is no such kind.
    """
    found: dict[str, int] = {}
    for word in words:
        name, _, own = word.partition(":")
        for kind in GROUPS.get(name, [name]):
            if kind not in KINDS:
                raise ValueError(f"there is no kind {kind}")
            found[kind] = int(own or count)
    return {kind: found[kind] for kind in KINDS if kind in found}


def append(path: Path, kind: str, seed: int, count: int, campaign: Campaign) -> None:
    """Adds a row to a table of campaigns, as it stands in `examples/evidence/campaigns.csv`."""
    with path.open("a", newline="") as file:
        rows = csv.writer(file)
        if not file.tell():
            rows.writerow(["kind", "first seed", "seeds", "tried", "refused", "failed", "date", "machine"])
        counts = [campaign.tried, campaign.refused, len(campaign.failed)]
        rows.writerow([kind, seed, count, *counts, f"{date.today()}", f"{platform.machine()}, {os.cpu_count()} cores"])


def main() -> int:
    """Runs campaigns and prints their table; the exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"kinds: {', '.join(KINDS)}\n\ngroups of them: {', '.join(GROUPS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kinds", nargs="+", metavar="KIND[:N]", help="what is tried; see below")
    parser.add_argument("-n", type=int, default=100, help="seeds of each kind (default: %(default)s)")
    parser.add_argument("-seed", "-S", type=int, default=0, help="the first (default: %(default)s)")
    parser.add_argument("-o", type=Path, metavar="FILE.csv", help="append the table there, with date and machine")
    args = parser.parse_args()
    try:
        counts = chosen(args.kinds, args.n)
    except ValueError as error:
        parser.error(str(error))
    failed = 0
    print(f"{'kind':<20}  tried  refused  failed", flush=True)
    for kind, count in counts.items():
        campaign = run(kind, args.seed, count)
        print(f"{kind:<20}  {campaign.tried:>5}  {campaign.refused:>7}  {len(campaign.failed):>6}", flush=True)
        for line in campaign.failed:
            print(f"  {line}", flush=True)
        if args.o:
            append(args.o, kind, args.seed, count, campaign)
        failed += len(campaign.failed)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
