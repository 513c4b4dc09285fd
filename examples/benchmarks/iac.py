"""What the supernet's shared arithmetic saves, and what the stability test saves.

    python examples/benchmarks/iac.py cells             forward and backward of the cells of all levels, 2-D and 3-D
    python examples/benchmarks/iac.py cells -levels 256:8x8x8 320:4x5x4 -batch 2       levels of your own
    python examples/benchmarks/iac.py search FOLDER...  finished searches: epochs, seconds, what pruning saves
    python examples/benchmarks/iac.py checkpoint FOLDER...   and what their checkpoint of every epoch costs

`cells` compares with `tests/plain_pc_darts.py`, one module per edge and operation, with the same weights; it ends with
an error where outputs or any gradient differ in double precision. Seconds are minimum and median of alternating
repetitions. CPU seconds are those of all threads together: their ratio stands where other work shares the machine (set
OMP_WAIT_POLICY=PASSIVE, so that waiting threads do not count). MiB are what autograd keeps for the backward pass, each
storage once, weights not counted; on CUDA the peak of a step above what was allocated before stands beside it.
`checkpoint` writes a search's own state again, serialised, flushed and renamed as the search does it, beside the old
file. Seconds of an epoch come from the run; those of the default number of iterations are extrapolated from it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from timing import alternate, gpu_peak_mib
from torch import Tensor, nn

from nnunet_nas.cli.common import format_table
from nnunet_nas.complexity import kept_mib
from nnunet_nas.files import replace_file
from nnunet_nas.iac.genotype import EDGES, OPERATIONS
from nnunet_nas.iac.history import CellHistory
from nnunet_nas.iac.operations import CONVOLUTIONS
from nnunet_nas.iac.settings import IACSettings
from nnunet_nas.iac.supernet import Mixture, SuperCell

# The plain form is the tests' own: one home for what defines the right answer.
sys.path.append(str(Path(__file__).parents[2] / "tests"))
from plain_pc_darts import PlainCell

Shapes = list[tuple[int, tuple[int, ...]]]
# Skip channels and spatial shape per level, and the batch: what nnU-Net plans for patches of 128x128 and 32x40x32.
GEOMETRY = {
    "2d": (4, [(32, (128, 128)), (64, (64, 64)), (128, (32, 32)), (256, (16, 16))]),
    "3d": (2, [(32, (32, 40, 32)), (64, (16, 20, 16)), (128, (8, 10, 8))]),
}
PARTIAL = 4
TOLERANCE = 1e-9
VERSIONS = ("plain", "ours")


class Level:
    """One level's cell in both versions, with inputs."""

    def __init__(self, batch: int, channels: int, shape: tuple[int, ...], device: torch.device) -> None:
        conv = nn.Conv2d if len(shape) == 2 else nn.Conv3d
        width = max(16, channels // 4)
        self.fast = SuperCell(
            skip_channels=channels,
            width=width,
            partial=PARTIAL,
            conv_op=conv,
            norm="instance",
            kernel=(3,) * len(shape),
        ).to(device)
        self.plain = PlainCell(self.fast).to(device)
        self.skip = torch.randn(batch, channels, *shape, device=device)
        self.up = torch.randn(batch, channels, *shape, device=device, requires_grad=True)

    def to(self, dtype: torch.dtype) -> None:
        """Weights and inputs in another precision."""
        self.fast.to(dtype)
        self.plain.to(dtype)
        self.skip, self.up = self.skip.to(dtype), self.up.detach().to(dtype).requires_grad_()


def step(level: Level, version: str, p: Tensor, w: Tensor, active: np.ndarray) -> Tensor:
    """Forward and backward of one level."""
    if version == "plain":
        output = level.plain(level.skip, level.up, p, w, active)
    else:
        output = level.fast(level.skip, level.up, Mixture(p * w[:, None], w, active))
    output.square().mean().backward()
    return output.detach()


def measure(
    name: str, batch: int, shapes: Shapes, *, share_left: float, repeats: int, device: torch.device
) -> dict[str, object]:
    """Both versions on all levels of a geometry."""
    torch.manual_seed(0)
    levels = [Level(batch, channels, shape, device) for channels, shape in shapes]
    active = np.random.default_rng(0).random((len(EDGES), len(OPERATIONS))) < share_left
    active[:, 3] = True
    p = torch.softmax(torch.randn(active.shape).masked_fill(~torch.from_numpy(active), -torch.inf), 1).to(device)
    p, w = p.requires_grad_(), torch.rand(len(EDGES)).to(device).requires_grad_()
    error = max(difference(level, p, w, active) for level in levels)
    if not error < TOLERANCE:
        sys.exit(f"{name}: outputs or gradients differ by {error:.1e}: the timings would compare different things")

    def steps(version: str) -> None:
        forget_gradients(levels)
        for level in levels:
            step(level, version, p, w, active)

    times = alternate({version: partial(steps, version) for version in VERSIONS}, repeats, device)
    result = {"geometry": name, "operations": int(active.sum()), "largest_relative_difference": error}
    for version in VERSIONS:
        runs = [partial(step, level, version, p, w, active) for level in levels]
        result |= times[version].columns(version)
        kept = [kept_mib(run, parameters(level)) for run, level in zip(runs, levels, strict=True)]
        result[f"{version}_mib"] = sum(kept)
        if device.type == "cuda":
            result[f"{version}_peak_mib"] = max(gpu_peak_mib(run, device) for run in runs)
    result["ratio"] = result["plain_seconds"] / result["ours_seconds"]
    result["cpu_ratio"] = result["plain_cpu_seconds"] / result["ours_cpu_seconds"]
    return result


def parameters(level: Level) -> list[Tensor]:
    return [*level.fast.parameters(), *level.plain.parameters()]


def forget_gradients(levels: list[Level]) -> None:
    for level in levels:
        level.up.grad = None
        for parameter in parameters(level):
            parameter.grad = None


def difference(level: Level, p: Tensor, w: Tensor, active: np.ndarray) -> float:
    """Largest relative difference of the output and of the gradients of p, w, the upsampled input and every weight."""
    results = []
    forget_gradients([level])
    level.to(torch.float64)
    # In single precision rounding decides the side of some ReLUs and maxima, which shows in a gradient as 1e-3.
    p, w = (tensor.detach().double().requires_grad_() for tensor in (p, w))
    for version in VERSIONS:
        p.grad = w.grad = level.up.grad = None
        results.append([step(level, version, p, w, active), p.grad, w.grad, level.up.grad])
    pairs = [*zip(*results, strict=True), *weight_gradients(level, active)]
    largest = max(float((plain - ours).norm() / plain.norm()) for plain, ours in pairs)
    level.to(torch.float32)
    return largest


def weight_gradients(level: Level, active: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Gradients of the same weights, plain and ours."""
    fast, plain = level.fast, level.plain
    yield plain.weights["skip"].grad, fast.project_skip.weight.grad
    yield plain.weights["up"].grad, fast.project_up.weight.grad
    yield plain.weights["output"].grad, fast.output.weight.grad
    yield plain.weights["bias"].grad, fast.output.bias.grad
    for (operation, shape), kind in product(CONVOLUTIONS.items(), ("depthwise", "pointwise")):
        column = OPERATIONS.index(operation)
        for repeat, row in product(range(shape.repeats), np.flatnonzero(active[:, column])):
            theirs = getattr(plain.edges[int(row)].operations[column], kind)[repeat].grad
            ours = getattr(fast, kind)[f"{operation}_{repeat}"].grad[row]
            yield theirs, ours[tuple(slice(length) for length in theirs.shape)]


def geometries(args: argparse.Namespace) -> dict[str, tuple[int, Shapes]]:
    """What to measure: the levels of the call, or those of nnU-Net."""
    if not args.levels:
        return {name: (args.batch or batch, shapes) for name, (batch, shapes) in GEOMETRY.items()}
    return {" ".join(f"{c}@{'x'.join(map(str, s))}" for c, s in args.levels): (args.batch or 2, args.levels)}


def one_level(text: str) -> tuple[int, tuple[int, ...]]:
    """`CHANNELS:SHAPE`, for example 64:64x64."""
    channels, shape = text.split(":")
    spatial = tuple(int(length) for length in shape.split("x"))
    if len(spatial) not in (2, 3):
        raise ValueError(text)
    return int(channels), spatial


def cells(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    rows = [
        measure(name, batch, shapes, share_left=share, repeats=args.repeats, device=device)
        for name, (batch, shapes) in geometries(args).items()
        for share in (1.0, 0.5)
    ]
    if args.json:
        print(json.dumps(rows, indent=4))
        return
    columns = {
        "operations": ("operations", "d"),
        "plain s": ("plain_seconds", ".3f"),
        "median": ("plain_median_seconds", ".3f"),
        "ours s": ("ours_seconds", ".3f"),
        "median ": ("ours_median_seconds", ".3f"),
        "ratio": ("ratio", ".1f"),
        "ratio CPU s": ("cpu_ratio", ".1f"),
        "plain MiB": ("plain_mib", ".0f"),
        "ours MiB": ("ours_mib", ".0f"),
        "difference": ("largest_relative_difference", ".0e"),
    }
    if device.type == "cuda":
        columns |= {"plain peak": ("plain_peak_mib", ".0f"), "ours peak": ("ours_peak_mib", ".0f")}
        del columns["ratio CPU s"]
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, K = {PARTIAL}, float32")
    table = [[row["geometry"], *(f"{row[key]:{form}}" for key, form in columns.values())] for row in rows]
    print(format_table(["cells", *columns], table))


def computed_operations(history: CellHistory) -> np.ndarray:
    """Operations that each epoch computed: what was left after the one before."""
    return np.concatenate([[len(EDGES) * len(OPERATIONS)], history.operations_left[:-1]])


def name_of(folder: Path) -> str:
    """Trainer and configuration, or whatever a folder outside nnU-Net's results is called."""
    parts = folder.parent.name.split("__")
    return f"{parts[0]} {parts[-1]}" if len(parts) == 3 else folder.parent.name


def search(args: argparse.Namespace) -> None:
    everything = len(EDGES) * len(OPERATIONS)
    rows = []
    for folder in args.folders:
        history = CellHistory.load(folder / "search_history.npz")
        computed = computed_operations(history)[~history.warmup]
        full = np.median(history.seconds[~history.warmup][computed == everything])
        rows.append(
            [
                name_of(folder),
                f"{len(history)}",
                f"{history.seconds.sum():.0f}",
                f"{full:.2f}",
                f"{history.seconds[-1]:.2f}",
                f"{computed.mean() / everything:.0%}",
                f"{history.operations_left[-1]}",
            ]
        )
    header = ["search", "epochs", "seconds", "full epoch s", "last epoch s", "operations computed", "operations left"]
    print(format_table(header, rows))
    print("Full epoch: median while nothing was pruned. Operations computed: mean share of 98 after warm-up.")


def checkpoint(args: argparse.Namespace) -> None:
    rows = []
    for folder in args.folders:
        state = torch.load(folder / "checkpoint_final.pth", map_location="cpu", weights_only=True)
        history = CellHistory.load(folder / "search_history.npz")
        iterations = json.loads(state["settings"])["num_iterations_per_epoch"]
        full = ~history.warmup & (computed_operations(history) == len(EDGES) * len(OPERATIONS))
        epoch = float(np.median(history.seconds[full]))
        default = epoch / iterations * IACSettings.num_iterations_per_epoch
        seconds = []
        # The same disk as the search's.
        with tempfile.TemporaryDirectory(dir=folder) as other:
            for _ in range(args.repeats):
                start = time.perf_counter()
                content = io.BytesIO()
                torch.save(state, content)
                replace_file(Path(other) / "checkpoint_latest.pth", content.getvalue())
                seconds.append(time.perf_counter() - start)
        median = float(np.median(seconds))
        rows.append(
            [
                name_of(folder),
                f"{len(content.getvalue()) / 2**20:.1f}",
                f"{1000 * median:.0f}",
                f"{1000 * max(seconds):.0f}",
                f"{iterations}",
                f"{epoch:.2f}",
                f"{median / epoch:.2%}",
                f"{median / default:.3%}",
            ]
        )
    header = ["search", "MiB", "median ms", "most ms", "iterations", "epoch s", "share"]
    print(format_table([*header, f"at {IACSettings.num_iterations_per_epoch}"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("cells", help="time of forward and backward of the cells")
    one.add_argument("-device", default="cpu")
    one.add_argument("-levels", nargs="+", type=one_level, metavar="CHANNELS:SHAPE", help="such as 64:64x64 128:32x32")
    one.add_argument("-batch", type=int, help="images (default: 4 in 2-D, 2 in 3-D and for -levels)")
    one.add_argument("-repeats", type=int, default=5)
    one.add_argument("--json", action="store_true")
    one.set_defaults(run=cells)
    two = commands.add_parser("search", help="cost of finished searches, from their histories")
    two.add_argument("folders", nargs="+", type=Path, help="fold folders with search_history.npz")
    two.set_defaults(run=search)
    three = commands.add_parser("checkpoint", help="what the checkpoint of every epoch costs")
    three.add_argument("folders", nargs="+", type=Path, help="fold folders of finished searches")
    three.add_argument("-repeats", type=int, default=9)
    three.set_defaults(run=checkpoint)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
