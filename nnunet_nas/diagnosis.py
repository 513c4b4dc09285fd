"""Checks whether a machine is ready for nnU-Net and this package: what was found, and how to mend what is wrong.

A check looks at plain findings and returns a row, so that it can be tested without the machine that has the fault.
The findings about installed packages and devices come from `probing`, which looks at them in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import shutil
import site
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nnunet_nas
from nnunet_nas.environment import VARIABLES, dataset_names, folder_from_environment
from nnunet_nas.errors import EnvironmentProblem
from nnunet_nas.files import require_writable
from nnunet_nas.probing import PACKAGES, Findings, Package, one_line, probe

_GIB = 1024**3
_LOW_DISK = 10 * _GIB
_LOW_GPU_MEMORY = 8 * _GIB  # what nnU-Net's default planner fills
_LOW_SHARED_MEMORY = _GIB
_EXTERNAL = "nnUNet_extTrainer"
_COMPILE = "nnUNet_compile"
_WORKERS = "nnUNet_n_proc_DA"
_TRUE_FOR_NNUNET = ("true", "1", "t")
_CPU_ONLY = "give nnU-Net -device cpu and small data; a full training takes days"
_REINSTALL_PAIR = (
    "install both anew, in one pip command and from the same index: pip install --force-reinstall torch torchvision"
)

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """One row of the report.

    Attributes:
        name: what was looked at.
        status: `problem` where something will fail, `warning` where it will be slow, tight or surprising.
        found: what was found.
        mend: what to do about it; empty if nothing.
    """

    name: str
    status: Status
    found: str
    mend: str = ""


def diagnose() -> list[Check]:
    """All checks, in the order in which one would set up a machine."""
    value = os.environ.get(_EXTERNAL, "")
    folders, complaints = external_folders(value)
    findings = probe(folders)
    checks = [check for variable in VARIABLES for check in _guarded(variable, check_folder, variable)]
    checks += [*complaints, *_guarded(_EXTERNAL, check_trainers, value, folders, findings)]
    checks.append(Check("python", "ok", f"{platform.python_version()} ({sys.executable})"))
    checks.append(Check("nnunet_nas", "ok", nnunet_nas.__version__))
    for name in PACKAGES:
        checks += _guarded(name, check_package, name, findings)
    checks += _guarded("torch and torchvision", check_pair, findings)
    checks += _guarded("device", check_device, findings, nvidia_driver_present())
    checks += _guarded("torch.compile", check_compile, findings, missing_compile_tools())
    checks += _guarded(_WORKERS, check_workers)
    checks += _guarded("shared memory", check_shared_memory)
    return checks


def _guarded(name: str, check: Callable[..., Check | list[Check]], *arguments: Any) -> list[Check]:
    """A check that fails itself is a row of the report: the doctor must not fall ill."""
    try:
        rows = check(*arguments)
    except Exception as error:
        return [Check(name, "problem", f"could not be checked: {one_line(error)}", "please report this")]
    return rows if isinstance(rows, list) else [rows]


def check_folder(variable: str) -> Check:
    """One of nnU-Net's three folders: set, there, writable, with space left."""
    try:
        folder = folder_from_environment(variable)
        found = f"{folder}, {_count(len(dataset_names(folder)), 'data set')}"
    except EnvironmentProblem as error:
        reason, _, mend = str(error).rpartition(": ")
        return Check(variable, "problem", reason, mend)
    # Raw data is only read once it is there, and is often shared and read-only for good reason.
    only_read = variable == "nnUNet_raw"
    try:
        require_writable(folder)
    except EnvironmentProblem as error:
        if only_read:
            return Check(variable, "ok", f"{found}, read-only")
        reason, _, mend = str(error).rpartition(": ")
        return Check(variable, "problem", f"{found}; {reason}", mend)
    free = shutil.disk_usage(folder).free
    found = f"{found}, {free / _GIB:.1f} GiB free"
    if free < _LOW_DISK and not only_read:
        return Check(variable, "warning", found, "free some space: data and checkpoints of one model take gigabytes")
    return Check(variable, "ok", found)


def external_folders(value: str) -> tuple[list[str], list[Check]]:
    """The folders of `nnUNet_extTrainer` that nnU-Net can safely search, and a row for each that it cannot."""
    usable, complaints = [], []
    for entry in value.split(os.pathsep):
        if entry.strip():
            complaint = _complaint_about(entry)
            if complaint is None:
                usable.append(entry)
            else:
                complaints.append(complaint)
    return usable, complaints


def _complaint_about(entry: str) -> Check | None:
    mend = f"export {_EXTERNAL}=$(nnunet_nas ext_path)"
    folder = Path(entry).resolve()
    package = Path(nnunet_nas.__file__).resolve().parent
    if not folder.is_dir():
        return Check(_EXTERNAL, "problem", f"{entry} is not a folder, nnU-Net passes over it silently", mend)
    if folder != package / "ext_trainers" and (folder == package or package in folder.parents):
        return Check(_EXTERNAL, "problem", f"{entry} is in the package: trainers found there cannot be pickled", mend)
    if folder == package.parent or folder in _site_packages():
        return Check(_EXTERNAL, "problem", f"{entry} holds installed packages: nnU-Net would import them all", mend)
    return None


def _site_packages() -> set[Path]:
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    return {Path(folder).resolve() for folder in [*folders, site.getusersitepackages()]}


def check_trainers(value: str, folders: Sequence[str], findings: Findings) -> list[Check]:
    """Which trainers nnU-Net sees in the external folders.

    Args:
        value: of the variable nnUNet_extTrainer.
        folders: those in it that can be searched.
        findings: of `probe`, which imported the modules in these folders.
    """
    if not value.strip(f" {os.pathsep}"):
        return [Check(_EXTERNAL, "ok", "not set; only the searches that are trainers need it ($(nnunet_nas ext_path))")]
    checks = []
    for folder in folders:
        trainers = findings.trainers.get(folder, findings.error or "not searched, nnunetv2 cannot be imported")
        if isinstance(trainers, str):
            mend = "mend the module, or take the folder out"
            checks.append(Check(_EXTERNAL, "problem", f"{folder}: {trainers}", mend))
        else:
            checks.append(Check(_EXTERNAL, "ok", f"{folder}: {', '.join(trainers) or 'no trainers'}"))
    return checks


def check_package(name: str, findings: Findings) -> Check:
    """A package: there, importable, of a version that nnU-Net (or, for nnunetv2, we) can work with."""
    package = findings.packages.get(name, Package(None, findings.error or "not reached"))
    wanted = "'nnunetv2>=2.8,<2.9'" if name == "nnunetv2" else name
    if package.version is None and package.error and "No module named" in package.error:
        return Check(name, "problem", "not installed", f"pip install {wanted}")
    if package.error is not None:
        found = f"{package.version or 'unknown version'}, cannot be imported: {package.error}"
        mend = _REINSTALL_PAIR if name in ("torch", "torchvision") else f"pip install --force-reinstall {wanted}"
        return Check(name, "problem", found, mend)
    version = package.version or "unknown version"
    requirement = ">=2.8,<2.9" if name == "nnunetv2" else _required_by_nnunet(name)
    if requirement and not _satisfies(version, requirement):
        return Check(name, "problem", f"{version}, but {requirement} is needed", f"pip install '{name}{requirement}'")
    return Check(name, "ok", version)


def _required_by_nnunet(name: str) -> str:
    """The version range that the installed nnU-Net declares for a package, '' if none."""
    try:
        declared = importlib.metadata.requires("nnunetv2") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for line in declared:
        match = re.match(r"([A-Za-z0-9_.-]+)\s*([^;]*)(;.*)?$", line)
        if match and not match[3] and _normal(match[1]) == _normal(name):
            return match[2].strip(" ()")
    return ""


def _satisfies(version: str, requirement: str) -> bool:
    """Whether a version is in a range; true if it cannot be told, an importable package gets the benefit of doubt."""
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
        from packaging.version import InvalidVersion
    except ImportError:
        return True
    try:
        return SpecifierSet(requirement).contains(version, prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return True


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_pair(findings: Findings) -> Check:
    """Whether torchvision, which nnU-Net imports on its way to any trainer, is built for the torch beside it."""
    name = "torch and torchvision"
    torch, vision = findings.packages.get("torch", Package(None)), findings.packages.get("torchvision", Package(None))
    found = f"torch {torch.version or 'missing'}, torchvision {vision.version or 'missing'}"
    error = vision.error or ""
    if torch.version is None or vision.version is None or torch.error:
        return Check(name, "problem", found, _REINSTALL_PAIR)
    if "torchvision::nms does not exist" in error:
        kind = "is CPU-only" if _build(torch.version) == "cpu" else "is of another build"
        found += f": torch {kind}, torchvision was built for another torch (operator torchvision::nms does not exist)"
        return Check(name, "problem", found, _REINSTALL_PAIR)
    if "different CUDA" in error:
        return Check(name, "problem", f"{found}: compiled with different CUDA versions", _REINSTALL_PAIR)
    if error:
        return Check(name, "problem", f"{found}: {error}", _REINSTALL_PAIR)
    builds = _build(torch.version), _build(vision.version)
    # Wheels without a tag say nothing about their build; that they could be imported together is evidence enough.
    if all(builds) and builds[0] != builds[1]:
        return Check(name, "problem", f"{found}: built for {builds[0]} and {builds[1]}", _REINSTALL_PAIR)
    return Check(name, "ok", f"{found}: match")


def _build(version: str) -> str:
    """`2.5.1+cu121` -> `cu121`, `2.5.1` -> ``."""
    return version.partition("+")[2]


def nvidia_driver_present() -> bool:
    """Whether the system has an NVIDIA driver, whatever torch makes of it."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def check_device(findings: Findings, driver: bool) -> Check | list[Check]:
    """The devices that torch can compute on, and why a GPU that is there cannot be used.

    Args:
        findings: of `probe`.
        driver: whether the system has an NVIDIA driver.
    """
    torch = findings.torch
    if torch is None:
        return Check("device", "problem", findings.error or "unknown, torch cannot be imported", _REINSTALL_PAIR)
    if torch["gpus"]:
        return [_check_gpu(index, gpu) for index, gpu in enumerate(torch["gpus"])]
    if torch["mps"]:
        return Check("device", "ok", "MPS (Apple GPU): give nnU-Net -device mps")
    found, mend = f"CPU only, {_count(torch['threads'], 'thread')}", _CPU_ONLY
    if driver:
        reason, mend = _why_no_gpu(torch)
        found = f"{found}: {reason}"
    return Check("device", "warning", found, mend)


def _why_no_gpu(torch: dict[str, Any]) -> tuple[str, str]:
    """Reason and mend where the system has an NVIDIA driver and torch sees no GPU."""
    if torch["cuda_build"] is None:
        mend = "install torch and torchvision built for CUDA, both from the same index"
        return "an NVIDIA driver is there, but torch is built for CPU only", mend
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        mend = f"unset CUDA_VISIBLE_DEVICES, unless you mean it; {_CPU_ONLY}"
        return f"CUDA_VISIBLE_DEVICES='{hidden}' shows torch no GPU", mend
    reason = torch["reason"] or "torch does not say why"
    mend = f"install a driver for CUDA {torch['cuda_build']} or newer, or a torch built for an older CUDA"
    return f"an NVIDIA driver is there, but CUDA is not usable ({reason})", mend


def _check_gpu(index: int, gpu: dict[str, Any]) -> Check:
    name = f"device cuda:{index}"
    if gpu["error"]:
        mend = "install a torch built for this GPU, choose another one with CUDA_VISIBLE_DEVICES, or see who uses it"
        return Check(name, "problem", f"{gpu['name']}: a convolution fails ({gpu['error']})", mend)
    found = f"{gpu['name']}, {gpu['free'] / _GIB:.1f} of {gpu['total'] / _GIB:.1f} GiB free"
    if gpu["free"] < _LOW_GPU_MEMORY:
        mend = "nnU-Net plans for 8 GiB: free the GPU, or plan with a smaller -gpu_memory_target"
        return Check(name, "warning", found, mend)
    return Check(name, "ok", found)


def missing_compile_tools() -> list[str]:
    """What torch.compile needs for a GPU and this machine lacks."""
    missing = []
    compilers = (os.environ.get("CC", "").split(" ")[0], "cc", "gcc", "clang")
    if not any(compiler and shutil.which(compiler) for compiler in compilers):
        missing.append("a C compiler")
    if importlib.util.find_spec("triton") is None:
        missing.append("triton")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("Python.h")
    return missing


def check_compile(findings: Findings, missing: Sequence[str]) -> Check:
    """What nnU-Net 2.8 does about torch.compile here: on for CUDA unless switched off, never elsewhere.

    Args:
        findings: of `probe`.
        missing: what torch.compile needs and this machine lacks.
    """
    torch = findings.torch
    name = "torch.compile"
    value = os.environ.get(_COMPILE)
    variable = "nnUNet_compile is not set" if value is None else f"nnUNet_compile={value}"
    if torch is None or not torch["gpus"] or platform.system() == "Windows":
        return Check(name, "ok", f"{variable}; nnU-Net does not compile on this device")
    if value is not None and value.lower() not in _TRUE_FOR_NNUNET:
        if value.lower() in ("yes", "y", "on"):
            return Check(name, "warning", f"{variable} means off to nnU-Net", "export nnUNet_compile=t to switch it on")
        return Check(name, "ok", f"{variable}; switched off")
    where = "training" if value is None else "training and prediction"
    if missing:
        mend = "install what is missing (a compiler and Python's headers from your system), or export nnUNet_compile=f"
        return Check(name, "problem", f"{variable}; on for {where}, but without {' and '.join(missing)}", mend)
    return Check(name, "ok", f"{variable}; on for {where}")


def check_workers() -> Check:
    """The processes that nnU-Net augments data with."""
    value = os.environ.get(_WORKERS)
    usable = _usable_cpus()
    if value is None:
        workers = min(12, os.cpu_count() or 1)
        found = f"not set; nnU-Net takes {_count(workers, 'worker')}, {_count(usable, 'CPU core')} usable"
        if workers > 2 * usable:
            return Check(_WORKERS, "warning", found, f"export {_WORKERS}={usable}")
        return Check(_WORKERS, "ok", found)
    if not re.fullmatch(r"\s*\d+\s*", value):
        found = f"'{value}' is not a number of workers: training would stop"
        return Check(_WORKERS, "problem", found, f"export {_WORKERS}={usable}")
    return Check(_WORKERS, "ok", f"{value}, {_count(usable, 'CPU core')} usable")


def _usable_cpus() -> int:
    """CPU cores that this process may use, which on a shared machine or in a container is fewer than there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        share, period = quota.read_text().split()
        if share != "max":
            cores = min(cores, math.ceil(int(share) / int(period)))
    return cores


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Where workers hand batches over; containers often get 64 MiB, and workers then die with a bus error."""
    if not folder.is_dir():
        return Check("shared memory", "ok", "not limited on this system")
    free = shutil.disk_usage(folder).free
    found = f"{free / _GIB:.1f} GiB free in {folder}"
    if free < _LOW_SHARED_MEMORY and os.environ.get(_WORKERS, "").strip() != "0":
        mend = "give the container more (--shm-size=8g), or export nnUNet_n_proc_DA=0"
        return Check("shared memory", "warning", found, mend)
    return Check("shared memory", "ok", found)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
