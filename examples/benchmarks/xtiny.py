"""Time of scoring all candidate widths, against the plain way of doing it, on the same machine in the same run.

The plain way: each candidate opens the data set anew, loads its images one by one and calls `backward()` on the sum of
the logits. Ours: `nnunet_nas select_tiny`'s own scorer on the same images, weights and seed. Both build the networks;
nothing is cached. Printed per width: seconds, their ratio, the relative difference of the scores, and the arithmetic
rate of ours beside that of one large matrix product, which is what bounds it.

    nnUNet_preprocessed=... python examples/benchmarks/xtiny.py -d 4 -c 2d -n 32
    nnUNet_preprocessed=... python examples/benchmarks/xtiny.py --start_up

Rounding decides a LeakyReLU's side now and then: scores agree to about 1e-4, as single and double precision do, and
`select_tiny -batch_size 1` gives exactly the plain values.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SEED = 369


def main() -> None:
    """Parses the call and runs one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", help="preprocessed data set: number or name")
    parser.add_argument("-c", default="2d", help="configuration (default: %(default)s)")
    parser.add_argument("-n", type=int, default=8, help="images (default: %(default)s)")
    parser.add_argument("--start_up", action="store_true", help="time --help, --version and ls instead")
    args = parser.parse_args()
    if args.start_up:
        time_start_up()
    elif args.d:
        time_scoring(args.d, args.c, args.n)
    else:
        parser.error("give -d DATASET or --start_up")


def time_start_up(runs: int = 7) -> None:
    """Median wall seconds of commands that must answer at once."""
    program = Path(sys.executable).with_name("nnunet_nas")
    for arguments in (["--help"], ["--version"], ["ls"]):
        seconds = []
        for _ in range(runs):
            started = time.perf_counter()
            subprocess.run([program, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        print(f"nnunet_nas {' '.join(arguments):10s} {sorted(seconds)[runs // 2]:.3f} s")


def time_scoring(dataset_name: str, configuration: str, images: int) -> None:
    """Both ways, candidate by candidate, and the totals."""
    import torch

    from nnunet_nas.cli.common import quiet_output
    from nnunet_nas.environment import find_preprocessed_dataset
    from nnunet_nas.xtiny.job import TinyJob
    from nnunet_nas.xtiny.request import TinySettings

    settings = TinySettings(configuration=configuration, images=images, dry_run=True)
    with quiet_output():
        job = TinyJob(find_preprocessed_dataset(dataset_name), settings, torch.device("cpu"))
    rate = matrix_product_rate()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{job.dataset.name} {configuration}: {images} images of {job.base.patch_size}, {len(job.candidates)} widths")
    print(f"one large matrix product: {rate:.0f} GFLOP/s\n")
    print("  cap   plain s    ours s   ratio   difference   GFLOP/s of ours")
    plain_total = ours_total = 0.0
    for candidate in job.candidates:
        plain_seconds, plain_score = timed(lambda c=candidate: plain_mean(job, c))
        our_seconds, our_score = timed(lambda c=candidate: our_mean(job, c))
        plain_total += plain_seconds
        ours_total += our_seconds
        print(
            f"{candidate.cap:5d} {plain_seconds:9.2f} {our_seconds:9.2f} {plain_seconds / our_seconds:7.2f}"
            f"   {abs(our_score / plain_score - 1):10.1e} {arithmetic(candidate, images) / our_seconds / 1e9:11.1f}"
        )
    print(f"  all {plain_total:9.2f} {ours_total:9.2f} {plain_total / ours_total:7.2f}")


def plain_mean(job, candidate) -> float:
    """The definition, written down: one image at a time, loaded for each candidate."""
    import torch

    from nnunet_nas.architecture import build_network
    from nnunet_nas.data import PatchSource

    network = build_network(candidate.spec, seed=SEED)
    source = PatchSource(job.dataset / job.configuration["data_identifier"], job.source.cases, job.base.patch_size)
    norms = []
    for case in source.cases:
        image = source.patch(case)[None].requires_grad_(True)
        network.zero_grad()
        network(image).sum().backward()
        norms.append(torch.linalg.vector_norm(image.grad).item())
    return sum(norms) / len(norms)


def our_mean(job, candidate) -> float:
    """What select_tiny does, with an empty store; images are loaded by the first candidate and kept."""
    import torch

    from nnunet_nas.xtiny.proxies import PROXIES
    from nnunet_nas.xtiny.scoring import Scorer
    from nnunet_nas.xtiny.store import ScoreStore

    with tempfile.TemporaryDirectory() as folder:
        store = ScoreStore(Path(folder), {})
        scorer = Scorer(PROXIES["jacobian"], job.source, store, torch.device("cpu"))
        return float(scorer.curves([candidate], [SEED])[0, 0])


def arithmetic(candidate, images: int) -> float:
    """FLOPs of forward pass and gradient to the input: twice the multiply-accumulates, twice over."""
    from nnunet_nas.complexity import complexity_of

    return 2.0 * complexity_of(candidate.spec).flops * images


def matrix_product_rate(size: int = 2048, runs: int = 5) -> float:
    """GFLOP/s of a float32 matrix product, the best of some runs."""
    import torch

    left, right = torch.randn(size, size), torch.randn(size, size)
    best = min(timed(lambda: left @ right)[0] for _ in range(runs))
    return 2 * size**3 / best / 1e9


def timed(function):
    """Seconds and result of one call."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
