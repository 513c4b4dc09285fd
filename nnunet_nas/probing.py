"""What is installed here and what torch can compute on, found out in a process of its own.

An import that raises, hangs or ends the interpreter (mismatched binaries do all three) is then a finding like any
other, and the process that asks stays free of torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy",
    "scipy",
    "SimpleITK",
    "blosc2",
    "batchgenerators",
    "dynamic_network_architectures",
    "torch",
    "torchvision",
    "nnunetv2",
)

_PROBE_SECONDS = 300.0


@dataclass(frozen=True)
class Package:
    """An installed package: its version if it is there, the error if importing it failed."""

    version: str | None
    error: str | None = None


@dataclass
class Findings:
    """What the probing process reported.

    Attributes:
        packages: by import name.
        torch: builds and devices, see `_torch_facts`; None if torch cannot be imported.
        trainers: for each external folder the trainers visible in it, or the error that importing its modules raised.
        error: why the process ended early, if it did.
    """

    packages: dict[str, Package] = field(default_factory=dict)
    torch: dict[str, Any] | None = None
    trainers: dict[str, list[str] | str] = field(default_factory=dict)
    error: str | None = None


def probe(folders: Sequence[str], packages: Sequence[str] = PACKAGES) -> Findings:
    """Imports packages and the modules of external trainer folders in another process and collects what it reports."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from nnunet_nas import probing; "
        f"probing.report({list(packages)!r}, {list(folders)!r})"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=_PROBE_SECONDS, check=False)
        output = done.stdout
        end = f"ended the interpreter (exit code {done.returncode})" if done.returncode else ""
    except subprocess.TimeoutExpired as expired:
        output, end = expired.stdout or b"", f"took longer than {_PROBE_SECONDS:.0f} s"
    findings = _read_report(output.decode(errors="replace"), end)
    for name in packages:
        if name not in findings.packages:
            findings.packages[name] = Package(_installed_version(name), findings.error or "not reached")
    return findings


def _read_report(output: str, end: str) -> Findings:
    """The lines that `report` printed; what it was busy with when it ended is what ended it."""
    findings = Findings()
    busy = "starting Python"
    for line in output.splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break  # the process ended in the middle of a line
        if entry["kind"] == "busy":
            busy = entry["with"]
        elif entry["kind"] == "package":
            findings.packages[entry["name"]] = Package(entry["version"], entry["error"])
        elif entry["kind"] == "torch":
            findings.torch = entry["facts"]
        elif entry["kind"] == "trainers":
            findings.trainers[entry["folder"]] = entry["trainers"]
    findings.error = f"{busy} {end}" if end else None
    return findings


def report(packages: Sequence[str], folders: Sequence[str]) -> None:
    """The other process's part of `probe`: one line of JSON per finding, flushed at once in case the next one kills."""
    # Packages print while they are imported (nnU-Net does): our lines get the real standard output for themselves.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(kind: str, **entry: Any) -> None:
        print(json.dumps({"kind": kind, **entry}), file=channel, flush=True)

    failed = set()
    for name in packages:
        tell("busy", **{"with": f"importing {name}"})
        package = _import(name)
        tell("package", name=name, version=package.version, error=package.error)
        failed |= {name} if package.error else set()
    if "torch" in packages and "torch" not in failed:
        tell("busy", **{"with": "asking torch for its devices"})
        tell("torch", facts=_torch_facts())
    if "nnunetv2" in packages and "nnunetv2" not in failed:
        for folder in folders:
            tell("busy", **{"with": f"importing the modules in {folder}"})
            tell("trainers", folder=folder, trainers=_trainers_in(folder))


def _import(name: str) -> Package:
    try:
        module = importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001 - an import may also call sys.exit
        return Package(_installed_version(name), one_line(error))
    # The module's own version shows the build (`+cu121`), which the index's does not.
    version = getattr(module, "__version__", None) or _installed_version(name)
    return Package(str(version) if version else None)


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def one_line(error: BaseException) -> str:
    """Kind and message of an error in one line of bearable length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _torch_facts() -> dict[str, Any]:
    """Builds and devices of torch: `cuda_build`, `mps`, `threads`, `gpus`, and the `reason` if CUDA is unusable."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    return {
        "cuda_build": torch.version.cuda or getattr(torch.version, "hip", None),
        "mps": bool(torch.backends.mps.is_available()),
        "threads": torch.get_num_threads(),
        "gpus": [_gpu_facts(index) for index in range(torch.cuda.device_count())] if usable else [],
        "reason": " ".join(str(caught[0].message).split())[:300] if caught else "",
    }


def _gpu_facts(index: int) -> dict[str, Any]:
    """Name and bytes of memory of a GPU, and the error of a small convolution on it."""
    import torch

    facts: dict[str, Any] = {"name": "unknown GPU", "free": 0, "total": 0, "error": None}
    try:
        facts["name"] = torch.cuda.get_device_name(index)
        facts["free"], facts["total"] = torch.cuda.mem_get_info(index)
        image = torch.ones(1, 1, 8, 8, device=f"cuda:{index}")
        torch.nn.functional.conv2d(image, image[..., :3, :3]).sum().item()
    except Exception as error:  # noqa: BLE001 - a finding, whatever it is
        facts["error"] = one_line(error)
    return facts


def _trainers_in(folder: str) -> list[str] | str:
    """Names of the trainers that nnU-Net would find in a folder, by its own way of importing, or the error it meets."""
    try:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    except BaseException as error:  # noqa: BLE001 - a finding, whatever it is
        return f"not searched, nnU-Net's own trainer cannot be imported ({one_line(error)})"
    place = str(Path(folder).absolute())
    sys.path.insert(0, place)
    try:
        modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages([place]) if not found.ispkg]
    except BaseException as error:  # noqa: BLE001 - a finding, whatever it is
        return f"a module in it cannot be imported ({one_line(error)})"
    finally:
        sys.path.remove(place)
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    trainers = [item for item in classes if issubclass(item, nnUNetTrainer)]
    # nnU-Net's own are visible without the folder; a module has them in it as base classes.
    return sorted({item.__name__ for item in trainers if not item.__module__.startswith("nnunetv2.")})
