"""What an export changes in the labels, and what it costs beside `nnUNetv2_predict`.

    python examples/benchmarks/export.py fidelity         one row per model and data set: logits, voxels, Dice
    python examples/benchmarks/export.py cost -light PYTHON    start-up, seconds per case, memory, installed size
    python examples/benchmarks/export.py memory -light PYTHON  peak memory of a case with many classes

Weights are random: the hardest case, because logits of all classes lie close together. Synthetic cases are smooth
noise, drawn here. Where nnUNet_raw and nnUNet_preprocessed hold the data sets 101, 106 and 107, planned, their test
images take part with their own plans. Networks are the plans' own U-Net with at most 32 channels ("base"; of `cost`
with all of them) or 8 ("tiny"), and what this package puts in its place.

PYTHON is that of an environment with numpy, scipy, onnxruntime, SimpleITK and imageio only. `cost` runs both programs
in turns, each in its own process, with one thread, nnU-Net without worker processes. CPU seconds are the processes'
own, whatever else the machine does; the least of the repetitions is shown. Seconds per case are the difference between
a run of all cases and a run of one, start-up is the rest of the latter; peak memory is that of the process.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_nas.architecture import network_spec
from nnunet_nas.cli.add_encoder import _architecture as encoder_architecture
from nnunet_nas.cli.common import format_table
from nnunet_nas.environment import find_preprocessed_dataset
from nnunet_nas.errors import NasError
from nnunet_nas.export.folder import ExportSettings, export
from nnunet_nas.iac.genotype import cells_architecture
from nnunet_nas.iac.sampling import random_genotype
from nnunet_nas.plans import Plans, wrapped

# Results folders on paper are the tests' own; this file's name would hide their package.
sys.path[0] = str(Path(__file__).parents[2] / "tests")
from export import paper  # noqa: E402

Architecture = dict[str, Any]
# Anisotropic, as nnU-Net plans it: no pooling along z at first.
STRIDES = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2]]
KERNELS = [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]]
PATCH = (8, 64, 64)
SHAPE = (13, 90, 84)
REPETITIONS = 2
CASES = 8
MANY = 60


def capped(architecture: Architecture, cap: int) -> Architecture:
    """The same network with at most `cap` channels."""
    narrow = copy.deepcopy(architecture)
    kwargs = narrow["arch_kwargs"]
    kwargs["features_per_stage"] = [min(features, cap) for features in kwargs["features_per_stage"]]
    return narrow


def with_cells(architecture: Architecture) -> Architecture:
    """A random cell in every skip of the base, as a retrofit has it."""
    base = capped(architecture, 32)
    widths = [16] * (base["arch_kwargs"]["n_stages"] - 1)
    cell = random_genotype(np.random.default_rng(1))
    return cells_architecture(base, cell, widths=widths, norm="backbone", residual=True)


def with_topology(architecture: Architecture) -> Architecture:
    """A topology that goes down and up again, with every kind of edge and operation."""
    base = capped(architecture, 16)
    kwargs = {key: value for key, value in base["arch_kwargs"].items() if not key.startswith("n_conv_per_stage")}
    levels, split = kwargs["n_stages"], "y_x" if len(kwargs["strides"][0]) == 2 else "zx_y"
    down = [
        {**{f"{level}->{level}": "skip" for level in range(deep + 1)}, f"{deep}->{deep + 1}": "conv"}
        for deep in range(levels - 1)
    ]
    stay = {f"{level}->{level}": split if level == 1 else "skip" for level in range(levels)}
    up = [{**stay, f"{deep + 1}->{deep}": "conv"} for deep in reversed(range(levels - 1))]
    kwargs |= {"topology": {"levels": levels, "layers": [*down, *up]}, "first_level": 0}
    return {**base, "network_class_name": "nnunet_nas.dints.network.DiNTSNet", "arch_kwargs": kwargs}


def with_attention(architecture: Architecture) -> Architecture:
    """Attention gates in the skips."""
    return wrapped(capped(architecture, 32), "nnunet_nas.skips.network.SkipModuleUNet", skip_module="attention")


def with_encoder(architecture: Architecture) -> Architecture:
    """An encoder of image classification."""
    configuration = {"patch_size": [256, 256], "architecture": architecture}
    return encoder_architecture(configuration, "mobilenetv3_large", None, 5)


NETWORKS: dict[str, Callable[[Architecture], Architecture]] = {
    "base": lambda architecture: capped(architecture, 32),
    "tiny": lambda architecture: capped(architecture, 8),
    "IAC": with_cells,
    "DiNTS": with_topology,
    "attention": with_attention,
    "encoder": with_encoder,
    "full": lambda architecture: architecture,
}
REAL = {
    "107 RGB, 2-D": ("107", "2d", ("base", "tiny", "IAC", "DiNTS", "attention", "encoder")),
    "106 grey, 2-D": ("106", "2d", ("tiny", "IAC")),
    "101 MR, 3-D": ("101", "3d_fullres", ("base", "tiny", "IAC", "DiNTS", "attention")),
    "101 MR, 2-D slices, 5 folds": ("101", "2d", ("tiny",)),
}
ANISOTROPIC = {"spacing": (5.0, 0.8, 0.8), "patch_size": PATCH}
SYNTHETIC: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "phantom, separate z, CT": ({"schemes": ("CTNormalization",)}, ("base", "tiny", "IAC", "DiNTS", "attention")),
    "phantom, CT beside MR": ({"schemes": ("CTNormalization", "ZScoreNormalization")}, ("tiny",)),
    "phantom, regions": (
        {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": (1, 2)},
        ("tiny",),
    ),
    "phantom, ignore label": ({"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}}, ("tiny",)),
    "phantom, 5 folds": ({"folds": tuple("01234")}, ("tiny",)),
}


def planned(root: Path, dataset: str, configuration: str, network: str, folds: tuple[str, ...] = ("0",)) -> Path:
    """A results folder of a planned data set with another network."""
    plans = Plans.of(find_preprocessed_dataset(dataset), "nnUNetPlans")
    content = copy.deepcopy(plans.content)
    architecture = NETWORKS[network](plans.resolve(configuration)["architecture"])
    content["configurations"][network] = {"inherits_from": configuration, "architecture": architecture}
    spec = replace(network_spec(plans, configuration), architecture=architecture)
    folder = root / plans.path.parent.name / f"nnUNetTrainer__nnUNetPlans__{network}"
    return paper.write(folder, content, plans.dataset_json, spec, folds=folds)


def phantom(root: Path, network: str, model: dict[str, Any]) -> Path:
    """A results folder of an anisotropic 3-D model."""
    base = paper.architecture(3, (32, 64, 128, 256))
    base["arch_kwargs"] |= {"strides": STRIDES, "kernel_sizes": KERNELS}
    return paper.trained(root / "Dataset001_Phantom", network=NETWORKS[network](base), **ANISOTROPIC, **model)


def draw(folder: Path, *, channels: int, shape: tuple[int, ...] = SHAPE, cases: int = 2) -> Path:
    """Smooth noise with an empty border, voxels of 4.0 x 0.7 x 0.7 mm."""
    folder.mkdir(parents=True)
    for case in range(cases):
        for channel in range(channels):
            noise = np.random.default_rng([case, channel]).normal(100, 120, shape).astype(np.float32)
            noise[:, :7] = 0
            image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), 1.5)
            image = sitk.Mask(image, sitk.GetImageFromArray((noise != 0).astype(np.uint8)))
            image.SetSpacing((0.7, 0.7, 4.0))
            sitk.WriteImage(image, str(folder / f"case_{case}_{channel:04d}.nii.gz"))
    return folder


def models(root: Path) -> Iterator[tuple[str, str, Path, Path]]:
    """Name of the data, of the network, results folder, images."""
    for name, (model, networks) in SYNTHETIC.items():
        for network in networks:
            folder = root / f"{name} {network}"
            images = draw(folder / "images", channels=len(model.get("schemes", ("one",))))
            yield name, network, phantom(folder, network, model), images
    for name, (dataset, configuration, networks) in REAL.items():
        for network in networks:
            try:
                source = find_preprocessed_dataset(dataset)
            except NasError as problem:
                print(f"{name}: left out ({problem})", file=sys.stderr)
                break
            folds = tuple("01234") if "5 folds" in name else ("0",)
            images = Path(os.environ["nnUNet_raw"]) / source.name / "imagesTs"
            yield name, network, planned(root / f"{name} {network}", dataset, configuration, network, folds), images


def fidelity(args: argparse.Namespace) -> None:
    """Exports every model and prints what its verification found."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, network, model, images in models(Path(scratch)):
            if args.only not in f"{name} {network}":
                continue
            settings = ExportSettings(
                model=model,
                folds=(),
                checkpoint="checkpoint_final.pth",
                output=model.parent / "export",
                images=images,
                cases=args.n,
                unverified=True,
            )
            found = export(settings)
            assert found is not None
            dice = [value for case in found.cases for value in case.dice.values()]
            differing, voxels = (sum(getattr(case, what) for case in found.cases) for what in ("differing", "voxels"))
            worst = f"{min(dice):.5f}" if dice else "no foreground"
            largest = max(case.largest_logit for case in found.cases)
            counted = f"{differing} of {voxels:,}"
            apart = (f"{found.logits:.1e}", f"{found.allowed:.1e}", f"{largest:.0f}")
            rows.append((name, network, *apart, counted, worst, "yes" if found.agrees else "NO"))
            print(*rows[-1], sep="; ", file=sys.stderr, flush=True)
    print(
        markdown(
            [
                "data",
                "network",
                "logits apart",
                "allowed",
                "largest logit",
                "voxels that differ",
                "lowest Dice",
                "agrees",
            ],
            rows,
        )
    )


def markdown(header: list[str], rows: list[tuple[str, ...]]) -> str:
    """A table for a document."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


# A child counts the memory of the process that starts it, which therefore must be small.
LAUNCHER = """
import os, sys, time
start = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Run:
    """What one process took: seconds on the wall and of the CPU, MiB at its peak."""

    wall: float
    cpu: float
    mib: float


def measure(command: list[str | Path], **variables: str) -> Run:
    """Runs a command to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **variables}
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, *map(str, command)]
    done = subprocess.run(launcher, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return Run(*map(float, done.stdout.splitlines()[-1].split()))


def least(runs: list[Run], what: str) -> float:
    """The least of the repetitions."""
    return min(getattr(run, what) for run in runs)


class Pair:
    """A model, its export, and both ways to predict with it."""

    def __init__(self, model: Path, light: Path) -> None:
        self.model, self.light, self.folder = model, light, model.parent / "export"
        with contextlib.redirect_stdout(io.StringIO()):
            export(
                ExportSettings(
                    model=model, folds=(), checkpoint="checkpoint_final.pth", output=self.folder, unverified=True
                )
            )

    def nnunet(self, images: Path, output: Path) -> Run:
        """nnU-Net's own program, in one process."""
        program = Path(sys.executable).with_name("nnUNetv2_predict")
        dataset, configuration = self.model.parent, self.model.name.rpartition("__")[2]
        options = ("-f", "0", "-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar")
        command = [program, "-i", images, "-o", output, "-d", dataset.name, "-c", configuration, *options]
        return measure(command, nnUNet_results=str(dataset.parent))

    def ours(self, images: Path, output: Path) -> Run:
        """The exported one, without this package in the path."""
        program = [self.light, self.folder / "predict.pyz", "-i", images, "-o", output, "-threads", "1"]
        return measure(program, PYTHONPATH="")


def cost(args: argparse.Namespace) -> None:
    """Prints start-up, seconds per case and peak memory of both, and what is installed for them."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for dataset, configuration, network in (
            ("107", "2d", "full"),
            ("107", "2d", "tiny"),
            ("101", "3d_fullres", "tiny"),
        ):
            root = Path(scratch) / f"{dataset} {network}"
            model = planned(root, dataset, configuration, network)
            pair = Pair(model, args.light)
            found = beside(pair, Path(os.environ["nnUNet_raw"]) / model.parent.name / "imagesTs", root)
            for name, values in found.items():
                rows.append((f"{dataset} {configuration} {network}", name, *values))
            print(json.dumps(found), file=sys.stderr, flush=True)
    print(markdown(["model", "program", "start-up, CPU s (wall)", "per case, CPU s (wall)", "peak MiB"], rows))
    sizes = {"nnU-Net": Path(sys.prefix), "export": args.light.parent.parent}
    for name, prefix in sizes.items():
        print(f"installed, {name}: {installed(prefix):,.0f} MiB")


def beside(pair: Pair, images: Path, root: Path) -> dict[str, tuple[str, str, str]]:
    """Both programs in turns, on one case and on all."""
    sets = {}
    files = sorted(images.iterdir())[:CASES]
    for count in (1, len(files)):
        sets[count] = root / f"images{count}"
        sets[count].mkdir()
        for file in files[:count]:
            (sets[count] / file.name).symlink_to(file)
    programs = {"nnU-Net": pair.nnunet, "export": pair.ours}
    runs: dict[tuple[str, int], list[Run]] = {(name, count): [] for name in programs for count in sets}
    for turn in range(REPETITIONS):
        for (name, count), taken in runs.items():
            taken.append(programs[name](sets[count], root / f"{name} {count} {turn}"))
    table = {}
    for name in programs:
        parts = []
        for what in ("cpu", "wall"):
            one, all_of_them = least(runs[name, 1], what), least(runs[name, len(files)], what)
            each = (all_of_them - one) / (len(files) - 1)
            parts.append((one - each, each))
        (start_cpu, each_cpu), (start_wall, each_wall) = parts
        mib = least(runs[name, len(files)], "mib")
        table[name] = (f"{start_cpu:.2f} ({start_wall:.2f})", f"{each_cpu:.3f} ({each_wall:.3f})", f"{mib:.0f}")
    return table


def installed(prefix: Path) -> float:
    """MiB of an environment's packages."""
    packages = next((prefix / "lib").glob("python3*")) / "site-packages"
    return sum(path.lstat().st_size for path in packages.rglob("*") if path.is_file()) / 2**20


def memory(args: argparse.Namespace) -> None:
    """Prints the peak of one case with many classes, resampled from a coarse grid."""
    labels = {"background": 0, **{f"class {value}": value for value in range(1, MANY)}}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        images = draw(root / "images", channels=1, shape=(60, 200, 200), cases=1)
        model = paper.trained(
            root / "Dataset001_Many", spacing=(4.0, 1.5, 1.5), patch_size=(16, 32, 32), labels=labels, mirrored=False
        )
        pair = Pair(model, args.light)
        runs = {"nnU-Net": pair.nnunet(images, root / "theirs"), "export": pair.ours(images, root / "ours")}
    rows = [[name, f"{run.mib:.0f}", f"{run.cpu:.1f}"] for name, run in runs.items()]
    print(format_table(["program", f"peak MiB, {MANY} classes of 60x200x200", "CPU s"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("fidelity")
    command.add_argument("-n", type=int, default=2, metavar="N", help="cases each (default: %(default)s)")
    command.add_argument("-only", default="", metavar="TEXT", help="rows whose name holds it")
    command.set_defaults(run=fidelity)
    for run in (cost, memory):
        command = commands.add_parser(run.__name__)
        command.add_argument("-light", required=True, type=Path, metavar="PYTHON", help="of the small environment")
        command.set_defaults(run=run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
