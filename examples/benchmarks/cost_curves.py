"""How selection, the searches and decoding grow: CPU seconds of one step and counted MACs, and a log-log slope of each.

    OMP_NUM_THREADS=1 python examples/benchmarks/cost_curves.py -csv examples/evidence/cost_curves.csv

One size is varied at a time from small 2-D networks of nnU-Net's shape: images (of a selection) or samples of a batch
(of a search), patch (pixels along an axis), width (cap of the channels), levels (stages of the U-Net) and layers (of
DiNTS). A slope of 2 says: twice as much of it, four times the cost. Of seconds there are two, through all sizes and
between the two largest ones: small networks cost mostly what does not depend on their size. Seconds are the least of a
few repetitions in CPU seconds of all threads, so that what else the machine does counts little; weights are random and
data are noise. Rows that are in the file are not measured again.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_nas.architecture import NetworkSpec, build_network
from nnunet_nas.dints.cost import mixture_macs
from nnunet_nas.dints.selection import select_topology
from nnunet_nas.dints.settings import DiNTSSettings
from nnunet_nas.dints.space import Space
from nnunet_nas.dints.supernet import build_supernet
from nnunet_nas.iac.settings import IACLTHSettings, IACSettings
from nnunet_nas.iac.supernet import IACSupernet
from nnunet_nas.search_cost import search_cost
from nnunet_nas.training_cost import plain_step
from nnunet_nas.xtiny.sensitivity import input_gradient_norms
from nnunet_nas.xtiny.widths import capped_features, caps_of

COLUMNS = ("what", "varied", "size", "cpu_seconds", "macs")


@dataclass(frozen=True)
class Sizes:
    """Of one measurement; layers are those of DiNTS."""

    samples: int = 2
    patch: int = 64
    width: int = 16
    levels: int = 4
    layers: int = 4


VARIED = {
    "samples": (1, 2, 4, 8, 16),
    "patch": (32, 64, 128, 256),
    "width": (8, 16, 32, 64, 128),
    "levels": (3, 4, 5),
    "layers": (2, 4, 8, 16),
}


def spec_of(sizes: Sizes) -> NetworkSpec:
    """A 2-D network as nnU-Net plans it, from `width` channels doubling to four times as many."""
    stages = sizes.levels
    return NetworkSpec(
        architecture={
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [min(4, 2**stage) * sizes.width for stage in range(stages)],
                "conv_op": "torch.nn.modules.conv.Conv2d",
                "kernel_sizes": [[3, 3]] * stages,
                "strides": [[1, 1]] + [[2, 2]] * (stages - 1),
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        input_channels=1,
        output_channels=3,
        patch_size=(sizes.patch, sizes.patch),
        batch_size=sizes.samples,
    )


def _images(sizes: Sizes) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sizes.samples, 1, sizes.patch, sizes.patch, generator=generator)


def _step(network: Any, images: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        network.zero_grad(set_to_none=True)
        outputs = network(images)
        sum(output.square().mean() for output in outputs).backward()

    return run


def selection(sizes: Sizes) -> tuple[Callable[[], object], float]:
    """The score of all widths of one base, one seed."""
    spec, images = spec_of(sizes), _images(sizes)
    features = spec.architecture["arch_kwargs"]["features_per_stage"]
    narrow = [spec.with_features(capped_features(features, cap)) for cap in caps_of(features)]
    networks = [build_network(candidate, seed=0) for candidate in narrow]
    macs = sizes.samples * sum(plain_step(candidate) for candidate in narrow)
    return lambda: [input_gradient_norms(network, images) for network in networks], macs


def plain(sizes: Sizes) -> tuple[Callable[[], object], float]:
    """A step of plain training, to compare with."""
    spec = spec_of(sizes)
    network = build_network(spec, seed=0, deep_supervision=True)
    return _step(network, _images(sizes)), spec.batch_size * plain_step(spec)


def iac_lth(sizes: Sizes) -> tuple[Callable[[], object], float]:
    """A step of IAC-LTH after warm-up, nothing pruned."""
    return _cells(sizes, IACLTHSettings(trial_iterations=0), "iac_lth")


def iac(sizes: Sizes) -> tuple[Callable[[], object], float]:
    """An iteration of IAC after warm-up: a pass for the cells and one for the architecture."""
    once, macs = _cells(sizes, IACSettings(trial_iterations=0), "iac")

    def twice() -> None:
        once()
        once()

    return twice, macs


def _cells(sizes: Sizes, settings: Any, method: str) -> tuple[Callable[[], object], float]:
    spec = spec_of(sizes)
    network = IACSupernet(build_network(spec, seed=0, deep_supervision=True), settings).train()
    return _step(network, _images(sizes)), search_cost(method, spec, settings).phases[1].macs


def dints(sizes: Sizes) -> tuple[Callable[[], object], float]:
    """An iteration of DiNTS after warm-up: a step of the weights and one of the architecture."""
    spec, settings = spec_of(sizes), DiNTSSettings(num_layers=sizes.layers)
    space = Space(spec.architecture, settings)
    torch.manual_seed(0)
    network = build_supernet(space, settings, 1, 3)
    network.draw_architecture(torch.Generator().manual_seed(0))
    step = _step(network, _images(sizes))

    def both() -> None:
        for weights in (True, False):
            network.train_only(weights=weights)
            step()

    return both, sizes.samples * sum(mixture_macs(spec, space, settings))


def decoding(sizes: Sizes) -> tuple[Callable[[], object], float]:
    """The most probable topology within 0.7 of the memory that it has without a budget; nothing to multiply."""
    spec, settings = spec_of(sizes), DiNTSSettings(num_layers=sizes.layers)
    space = Space(spec.architecture, settings)
    memory = space.memory(spec)
    rng = np.random.default_rng(0)
    shape = (sizes.layers, *memory.edges.shape)
    logits, operations = rng.normal(size=shape[:2]), rng.dirichlet(np.ones(shape[2]), size=shape[:2])
    budget = 0.7 * select_topology(logits, operations, space.names, memory).mib
    return lambda: select_topology(logits, operations, space.names, memory, budget_mib=budget), float("nan")


KINDS = {
    "selection": (selection, ("samples", "patch", "width", "levels")),
    "plain": (plain, ("samples", "patch", "width", "levels")),
    "iac_lth": (iac_lth, ("samples", "patch", "width", "levels")),
    "iac": (iac, ("samples", "patch", "width", "levels")),
    "dints": (dints, ("samples", "patch", "width", "levels", "layers")),
    "decoding": (decoding, ("levels", "layers")),
}


def least_cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    """Of a few repetitions, after one that warms up."""
    run()
    found = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return min(found)


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Of a straight line through logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def measure(path: Path, repeats: int) -> list[dict[str, Any]]:
    """Everything that is not in the file yet."""
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    known = {(row["what"], row["varied"], int(row["size"])) for row in rows}
    for what, (build, varied) in KINDS.items():
        for name in varied:
            for size in VARIED[name]:
                if (what, name, size) in known:
                    continue
                run, macs = build(replace(Sizes(), **{name: size}))
                seconds = least_cpu_seconds(run, repeats)
                rows.append(dict(zip(COLUMNS, (what, name, size, f"{seconds:.5f}", f"{macs:.6g}"), strict=True)))
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
    return rows


def slopes(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Of CPU seconds, all and at the upper end, and of MACs, by what is done and what is varied."""
    found = {}
    for what, (_, varied) in KINDS.items():
        for name in varied:
            own = [row for row in rows if (row["what"], row["varied"]) == (what, name)]
            own.sort(key=lambda row: int(row["size"]))
            sizes, seconds, macs = ([float(row[key]) for row in own] for key in ("size", "cpu_seconds", "macs"))
            found[what, name] = (slope(sizes, seconds), slope(sizes[-2:], seconds[-2:]), slope(sizes, macs))
    return found


def main() -> None:
    """Measures and prints a table of slopes: of seconds, at their upper end, and (of MACs)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-csv", type=Path, required=True, help="file of the measurements; goes on where it was")
    parser.add_argument("-repeats", type=int, default=3, help="of which the least counts (default: %(default)s)")
    args = parser.parse_args()
    found = slopes(measure(args.csv, args.repeats))
    print("| | " + " | ".join(VARIED) + " |")
    print("|---|" + "---|" * len(VARIED))
    for what in KINDS:
        cells = []
        for name in VARIED:
            if (what, name) not in found:
                cells.append("")
                continue
            everywhere, above, macs = found[what, name]
            counted = "" if np.isnan(macs) else f" ({macs:.1f})"
            cells.append(f"{everywhere:.1f}, {above:.1f}{counted}")
        print(f"| {what} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
