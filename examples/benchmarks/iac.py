"""What the supernet's shared arithmetic saves, and what the stability test saves.

    python examples/benchmarks/iac.py cells             forward and backward of the cells of all levels, 2-D and 3-D
    python examples/benchmarks/iac.py search FOLDER...  finished searches: epochs, seconds, share saved by pruning

`cells` compares with `plain_pc_darts.py`, one module per edge and operation, with the same weights and the same outputs
and gradients in the same run. Seconds are the least of several alternating repetitions; MiB are what autograd keeps
for the backward pass, each storage once, weights not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from plain_pc_darts import PlainCell
from torch import Tensor, nn

from nnunet_nas.cli.common import format_table
from nnunet_nas.iac.genotype import EDGES, OPERATIONS
from nnunet_nas.iac.history import SearchHistory
from nnunet_nas.iac.supernet import Mixture, SuperCell

# Skip channels and spatial shape per level, and the batch: what nnU-Net plans for patches of 128x128 and 32x40x32.
GEOMETRY = {
    "2d": (4, [(32, (128, 128)), (64, (64, 64)), (128, (32, 32)), (256, (16, 16))]),
    "3d": (2, [(32, (32, 40, 32)), (64, (16, 20, 16)), (128, (8, 10, 8))]),
}
PARTIAL = 4


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


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step(level: Level, version: str, p: Tensor, w: Tensor, active: np.ndarray) -> Tensor:
    """Forward and backward of one level."""
    if version == "plain":
        output = level.plain(level.skip, level.up, p, w, active)
    else:
        output = level.fast(level.skip, level.up, Mixture(p * w[:, None], w, active))
    output.square().mean().backward()
    return output.detach()


def saved_mib(run: Callable[[], object], weights: list[Tensor]) -> float:
    """MiB that autograd keeps during `run`, each storage once, without the weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in weights}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values()) / 2**20


def measure(name: str, share_left: float, repeats: int, device: torch.device) -> dict[str, object]:
    """Both versions on all levels of a geometry."""
    torch.manual_seed(0)
    batch, shapes = GEOMETRY[name]
    levels = [Level(batch, channels, shape, device) for channels, shape in shapes]
    active = np.random.default_rng(0).random((len(EDGES), len(OPERATIONS))) < share_left
    active[:, 3] = True
    p = torch.softmax(torch.randn(active.shape).masked_fill(~torch.from_numpy(active), -torch.inf), 1).to(device)
    p, w = p.requires_grad_(), torch.rand(len(EDGES)).to(device).requires_grad_()
    error = max(difference(level, p, w, active) for level in levels)
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(repeats):
        for version, times in seconds.items():
            synchronise(device)
            start = time.perf_counter()
            for level in levels:
                step(level, version, p, w, active)
            synchronise(device)
            times.append(time.perf_counter() - start)
    memory = {
        version: sum(
            saved_mib(lambda level=level, version=version: step(level, version, p, w, active), parameters(level))
            for level in levels
        )
        for version in seconds
    }
    return {
        "geometry": name,
        "operations": int(active.sum()),
        "plain_seconds": min(seconds["plain"]),
        "ours_seconds": min(seconds["ours"]),
        "ratio": min(seconds["plain"]) / min(seconds["ours"]),
        "plain_mib": memory["plain"],
        "ours_mib": memory["ours"],
        "largest_relative_difference": error,
    }


def parameters(level: Level) -> list[Tensor]:
    return [*level.fast.parameters(), *level.plain.parameters()]


def difference(level: Level, p: Tensor, w: Tensor, active: np.ndarray) -> float:
    """Largest relative difference of outputs and of gradients with respect to p, w and the upsampled input."""
    results = []
    for version in ("plain", "ours"):
        for tensor in (p, w, level.up):
            tensor.grad = None
        results.append([step(level, version, p, w, active), p.grad, w.grad, level.up.grad])
    return max(float((a - b).norm() / a.norm()) for a, b in zip(*results, strict=True))


def cells(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    rows = [measure(name, share, args.repeats, device) for name in GEOMETRY for share in (1.0, 0.5)]
    if args.json:
        print(json.dumps(rows, indent=4))
        return
    header = ["cells", "operations", "plain s", "ours s", "ratio", "plain MiB", "ours MiB", "difference"]
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, K = {PARTIAL}, float32")
    print(
        format_table(
            header,
            [
                [
                    row["geometry"],
                    f"{row['operations']}",
                    f"{row['plain_seconds']:.3f}",
                    f"{row['ours_seconds']:.3f}",
                    f"{row['ratio']:.1f}",
                    f"{row['plain_mib']:.0f}",
                    f"{row['ours_mib']:.0f}",
                    f"{row['largest_relative_difference']:.0e}",
                ]
                for row in rows
            ],
        )
    )


def search(args: argparse.Namespace) -> None:
    rows = []
    for folder in args.folders:
        history = SearchHistory.load(folder / "search_history.npz")
        searching = history.seconds[~history.warmup]
        # An epoch in which nothing is pruned yet is what every epoch would cost without pruning.
        full = np.median(searching[history.operations_left[~history.warmup] == len(EDGES) * len(OPERATIONS)])
        saved = 1 - searching.sum() / (full * len(searching))
        rows.append(
            [
                folder.parent.name.split("__")[0],
                f"{len(history)}",
                f"{history.seconds.sum():.0f}",
                f"{full:.2f}",
                f"{searching[-1]:.2f}",
                f"{saved:.1%}",
                f"{history.operations_left[-1]}",
            ]
        )
    header = ["search", "epochs", "seconds", "full epoch s", "last epoch s", "saved by pruning", "operations left"]
    print(format_table(header, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("cells", help="time of forward and backward of the cells")
    one.add_argument("-device", default="cpu")
    one.add_argument("-repeats", type=int, default=5)
    one.add_argument("--json", action="store_true")
    one.set_defaults(run=cells)
    two = commands.add_parser("search", help="cost of finished searches, from their histories")
    two.add_argument("folders", nargs="+", type=Path, help="fold folders with search_history.npz")
    two.set_defaults(run=search)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
