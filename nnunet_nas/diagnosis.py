"""Checks whether a machine is ready for nnU-Net and this package: what was found, and how to mend what is wrong.

Each check is a function that returns rows of the report. Those that import packages run in one process of their own,
which tells each row as soon as it has it: an import that raises, hangs or ends the interpreter (mismatched binaries do
all three) is then a finding like any other, and the process that asks stays free of torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import pkgutil
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import nnunet_nas
from nnunet_nas import nnunet_contract
from nnunet_nas.environment import VARIABLES, dataset_names, folder_from_environment
from nnunet_nas.errors import EnvironmentProblem
from nnunet_nas.files import require_writable

_PACKAGES = (
    *("numpy", "scipy", "SimpleITK", "blosc2", "batchgenerators", "dynamic_network_architectures"),
    *("torch", "torchvision", "nnunetv2"),
)
_GIB = 1024**3
_LOW_DISK = 10 * _GIB
_LOW_GPU_MEMORY = 8 * _GIB  # what nnU-Net's default planner fills
_LOW_SHARED_MEMORY = _GIB
_PROBE_SECONDS = 300.0
_UNKNOWN = "unknown version"
_EXTERNAL = "nnUNet_extTrainer"
_WORKERS = "nnUNet_n_proc_DA"
_PAIR = "torch and torchvision"
_TRUE_FOR_NNUNET = ("true", "1", "t")
_CPU_ONLY = "give nnU-Net -device cpu and small data; a full training takes days"
_REINSTALL_PAIR = (
    "install both anew, in one pip command and from the same index: pip install --force-reinstall torch torchvision"
)


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
    status: Literal["ok", "warning", "problem"]
    found: str
    mend: str = ""


Rows = Iterator[Check]


def diagnose() -> list[Check]:
    """All checks, in the order in which one would set up a machine."""
    return [*(row for name, check in _HERE.items() for row in _guarded(name, check)), *probe(tuple(_IMPORTING))]


def _guarded(name: str, check: Callable[[], Rows]) -> Rows:
    """A check that fails itself is a row of the report: the doctor must not fall ill."""
    try:
        yield from check()
    except Exception as error:
        yield Check(name, "problem", f"could not be checked: {_one_line(error)}", "please report this")


def probe(names: tuple[str, ...]) -> list[Check]:
    """Rows of checks that import packages, made by another process; what ended it early is a problem, like the rest."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from nnunet_nas import diagnosis; diagnosis.report({names!r})"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=_PROBE_SECONDS, check=False)
        output, end = done.stdout, f"ended the interpreter (exit code {done.returncode})" if done.returncode else ""
    except subprocess.TimeoutExpired as expired:
        output, end = expired.stdout or b"", f"took longer than {_PROBE_SECONDS:.0f} s"
    *lines, _ = output.decode(errors="replace").split("\n")  # the process may have ended in the middle of a line
    rows = [Check(**json.loads(line)) for line in lines if line]
    done_with = lines.count("")
    if end and done_with < len(names):  # a process that ends badly after its last check has told everything
        culprit, *unreached = names[done_with:]
        mend = _REINSTALL_PAIR if "torch" in culprit else f"mend or take out what {culprit} imports"
        rows.append(Check(culprit, "problem", f"checking it {end}", mend))
        rows += [Check(name, "problem", f"not reached: checking {culprit} {end}") for name in unreached]
    return rows


def report(names: tuple[str, ...]) -> None:
    """The other process's part of `probe`: a line for each row, told at once, and an empty one after each check."""
    # Packages print while they are imported (nnU-Net does): our lines get the real standard output for themselves.
    channel = os.fdopen(os.dup(1), "w", newline="\n")
    os.dup2(2, 1)
    for name in names:
        for row in _guarded(name, _IMPORTING[name]):
            print(json.dumps(asdict(row)), file=channel, flush=True)
        print(file=channel, flush=True)


def check_folder(variable: str) -> Rows:
    """One of nnU-Net's three folders: set, there, writable, with space left."""
    found = ""
    # Raw data is only read once it is there, and is often shared and read-only for good reason.
    only_read = variable == "nnUNet_raw"
    try:
        folder = folder_from_environment(variable)
        found = f"{folder}, {_count(len(dataset_names(folder)), 'data set')}"
        require_writable(folder)
    except EnvironmentProblem as error:
        if only_read and found:
            yield Check(variable, "ok", f"{found}, read-only")
        else:
            reason, _, mend = str(error).rpartition(": ")
            yield Check(variable, "problem", f"{found}; {reason}".removeprefix("; "), mend)
        return
    free = shutil.disk_usage(folder).free
    low = free < _LOW_DISK and not only_read
    mend = "free some space: data and checkpoints of one model take gigabytes" if low else ""
    yield Check(variable, "warning" if low else "ok", f"{found}, {free / _GIB:.1f} GiB free", mend)


def check_python() -> Rows:
    """Python's version and ours."""
    yield Check("python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield Check("nnunet_nas", "ok", nnunet_nas.__version__)


def check_workers() -> Rows:
    """The processes that nnU-Net augments data with."""
    value = os.environ.get(_WORKERS)
    usable = _usable_cpus()
    found, mend = f"{_count(usable, 'CPU core')} usable", f"export {_WORKERS}={usable}"
    if value is None:
        workers = min(12, os.cpu_count() or 1)
        found = f"not set; nnU-Net takes {_count(workers, 'worker')}, {found}"
        too_many = workers > 2 * usable
        yield Check(_WORKERS, "warning" if too_many else "ok", found, mend if too_many else "")
    elif re.fullmatch(r"\s*\d+\s*", value):
        # It takes its number of threads from there: RuntimeError: set_num_threads expects a positive integer.
        unplannable = not int(value)
        reason = "; trainings load in their own process, but nnU-Net's planning does not take 0" if unplannable else ""
        mend = f"plan with: env -u {_WORKERS} nnUNetv2_plan_and_preprocess ..." if unplannable else ""
        yield Check(_WORKERS, "warning" if unplannable else "ok", f"{value}, {found}{reason}", mend)
    else:
        yield Check(_WORKERS, "problem", f"'{value}' is not a number of workers: training would stop", mend)


def _usable_cpus() -> int:
    """CPU cores that this process may use, which on a shared machine or in a container is fewer than there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    share, period = quota.read_text().split() if quota.exists() else ("max", "")
    return cores if share == "max" else min(cores, math.ceil(int(share) / int(period)))


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Rows:
    """Where workers hand batches over; containers often get 64 MiB, and workers then die with a bus error."""
    if not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    low = free < _LOW_SHARED_MEMORY and os.environ.get(_WORKERS, "").strip() != "0"
    mend = "give the container more (--shm-size=8g), or export nnUNet_n_proc_DA=0" if low else ""
    yield Check("shared memory", "warning" if low else "ok", f"{free / _GIB:.1f} GiB free in {folder}", mend)


@cache
def load(name: str) -> tuple[str, str]:
    """Imports a package: its version, '' if it is not there, and the error, '' if there was none."""
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        installed = ""
    try:
        module = importlib.import_module(name)
    except BaseException as error:  # an import may also call sys.exit
        return installed, _one_line(error)
    # The module's own version shows the build (`+cu121`), which the index's does not.
    return str(getattr(module, "__version__", "")) or installed or _UNKNOWN, ""


def check_package(name: str) -> Rows:
    """A package: there, importable, of a version that nnU-Net (or, for nnunetv2, we) can work with."""
    version, error = load(name)
    needed = nnunet_contract.NNUNET_VERSIONS if name == "nnunetv2" else _required_by_nnunet(name)
    wanted = f"'{name}{needed}'" if needed else name
    if not version and "No module named" in error:
        yield Check(name, "problem", "not installed", f"pip install {wanted}")
    elif error:
        mend = _REINSTALL_PAIR if name in ("torch", "torchvision") else f"pip install --force-reinstall {wanted}"
        yield Check(name, "problem", f"{version or _UNKNOWN}, cannot be imported: {error}", mend)
    elif version != _UNKNOWN and not SpecifierSet(needed).contains(version, prereleases=True):
        yield Check(name, "problem", f"{version}, but {needed} is needed", f"pip install {wanted}")
    else:
        tried = nnunet_contract.RUN_WITH.get(name, ())
        known = not tried or version.partition("+")[0] in tried
        yield Check(name, "ok", version if known else f"{version} (nnunet_nas was run with {', '.join(tried)})")


def _required_by_nnunet(name: str) -> str:
    """The version range that the installed nnU-Net declares for a package, '' if none."""
    try:
        declared = [Requirement(line) for line in importlib.metadata.requires("nnunetv2") or []]
    except importlib.metadata.PackageNotFoundError:
        return ""
    wanted = canonicalize_name(name)
    return next((str(item.specifier) for item in declared if canonicalize_name(item.name) == wanted), "")


def check_pair() -> Rows:
    """Whether torchvision, which nnU-Net imports on its way to any trainer, is built for the torch beside it."""
    (torch, torch_error), (vision, error) = load("torch"), load("torchvision")
    found = f"torch {torch or 'missing'}, torchvision {vision or 'missing'}"
    # Wheels without a tag say nothing about their build; that they could be imported together is evidence enough.
    builds = [version.partition("+")[2] for version in (torch, vision)]
    if not torch or not vision or torch_error:
        yield Check(_PAIR, "problem", found, _REINSTALL_PAIR)
    elif "torchvision::nms does not exist" in error:
        kind = "is CPU-only" if builds[0] == "cpu" else "is of another build"
        reason = f"torch {kind}, torchvision was built for another torch (operator torchvision::nms does not exist)"
        yield Check(_PAIR, "problem", f"{found}: {reason}", _REINSTALL_PAIR)
    elif error:
        reason = "compiled with different CUDA versions" if "different CUDA" in error else error
        yield Check(_PAIR, "problem", f"{found}: {reason}", _REINSTALL_PAIR)
    elif all(builds) and builds[0] != builds[1]:
        yield Check(_PAIR, "problem", f"{found}: built for {builds[0]} and {builds[1]}", _REINSTALL_PAIR)
    else:
        yield Check(_PAIR, "ok", f"{found}: match")


def check_contract() -> Rows:
    """Whether the installed nnU-Net still has what this package uses of it."""
    name = "nnU-Net's interface"
    if load("nnunetv2")[1]:
        yield Check(name, "problem", "not checked, nnunetv2 cannot be imported", "mend nnunetv2 first")
        return
    mend = "update nnunet_nas, or install nnunetv2 " + " or ".join(nnunet_contract.RUN_WITH["nnunetv2"])
    changes = nnunet_contract.changes()
    yield from (Check(name, "problem", change, mend) for change in changes)
    if not changes:
        yield Check(name, "ok", f"all {len(nnunet_contract.CONTRACT)} things that nnunet_nas uses are as it knows them")


def check_trainers() -> Rows:
    """Which trainers nnU-Net sees in the external folders, and which folders it cannot search safely."""
    entries = [entry for entry in os.environ.get(_EXTERNAL, "").split(os.pathsep) if entry.strip()]
    if not entries:
        yield Check(_EXTERNAL, "ok", "not set; only the searches that are trainers need it ($(nnunet_nas ext_path))")
    for entry in entries:
        reason = _why_not_searched(entry)
        if reason:
            yield Check(_EXTERNAL, "problem", f"{entry} {reason}", f"export {_EXTERNAL}=$(nnunet_nas ext_path)")
            continue
        try:
            trainers = _trainers_in(entry)
        except BaseException as error:  # whatever a module does when it is imported
            found = f"{entry}: a module in it cannot be imported ({_one_line(error)})"
            yield Check(_EXTERNAL, "problem", found, "mend the module, or take the folder out")
        else:
            yield Check(_EXTERNAL, "ok", f"{entry}: {', '.join(trainers) or 'no trainers'}")


def _why_not_searched(entry: str) -> str:
    folder, package = Path(entry).resolve(), Path(nnunet_nas.__file__).resolve().parent
    installed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if not folder.is_dir():
        return "is not a folder, nnU-Net passes over it silently"
    if folder != package / "ext_trainers" and folder.is_relative_to(package):
        return "is in the package: trainers found there cannot be pickled"
    if folder in {package.parent, *(Path(path).resolve() for path in [*installed, site.getusersitepackages()])}:
        return "holds installed packages: nnU-Net would import them all"
    return ""


def _trainers_in(folder: str) -> list[str]:
    """Names of the trainers that nnU-Net would find in a folder, by its own way of importing."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    place = str(Path(folder).absolute())
    sys.path.insert(0, place)
    try:
        modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages([place]) if not found.ispkg]
    finally:
        sys.path.remove(place)
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    trainers = {item for item in classes if issubclass(item, nnUNetTrainer)}
    # nnU-Net's own are visible without the folder; a module has them in it as base classes.
    return sorted(item.__name__ for item in trainers if not item.__module__.startswith("nnunetv2."))


def check_device() -> Rows:
    """The devices that torch can compute on, and why a GPU that is there cannot be used."""
    if load("torch")[1]:
        yield Check("device", "problem", "unknown, torch cannot be imported", _REINSTALL_PAIR)
        return
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        for index in range(torch.cuda.device_count()):
            yield _check_gpu(index)
    elif torch.backends.mps.is_available():
        yield Check("device", "ok", "MPS (Apple GPU): give nnU-Net -device mps")
    else:
        found = f"CPU only, {_count(torch.get_num_threads(), 'thread')}"
        if not _driver_present():
            yield Check("device", "warning", found, _CPU_ONLY)
            return
        reason, mend = _why_no_gpu(" ".join(str(warning.message) for warning in caught[:1]))
        yield Check("device", "warning", f"{found}: {reason}", mend)


def _driver_present() -> bool:
    """Whether the system has an NVIDIA driver, whatever torch makes of it."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _why_no_gpu(warning: str) -> tuple[str, str]:
    """Reason and mend where the system has an NVIDIA driver and torch, which warned so, sees no GPU."""
    import torch

    build, hidden = torch.version.cuda or getattr(torch.version, "hip", None), os.environ.get("CUDA_VISIBLE_DEVICES")
    if build is None:
        reason = "an NVIDIA driver is there, but torch is built for CPU only"
        return reason, "install torch and torchvision built for CUDA, both from the same index"
    if hidden is not None:
        reason = f"CUDA_VISIBLE_DEVICES='{hidden}' shows torch no GPU"
        return reason, f"unset CUDA_VISIBLE_DEVICES, unless you mean it; {_CPU_ONLY}"
    reason = f"an NVIDIA driver is there, but CUDA is not usable ({_shortened(warning) or 'torch does not say why'})"
    return reason, f"install a driver for CUDA {build} or newer, or a torch built for an older CUDA"


def _check_gpu(index: int) -> Check:
    """A GPU's name, its memory, and whether a small convolution runs on it."""
    import torch

    label, name = f"device cuda:{index}", "unknown GPU"
    try:
        name = torch.cuda.get_device_name(index)
        free, total = torch.cuda.mem_get_info(index)
        image = torch.ones(1, 1, 8, 8, device=f"cuda:{index}")
        torch.nn.functional.conv2d(image, image[..., :3, :3]).sum().item()
    except Exception as error:
        mend = "install a torch built for this GPU, choose another one with CUDA_VISIBLE_DEVICES, or see who uses it"
        return Check(label, "problem", f"{name}: a convolution fails ({_one_line(error)})", mend)
    low = free < _LOW_GPU_MEMORY
    mend = "nnU-Net plans for 8 GiB: free the GPU, or plan with a smaller -gpu_memory_target" if low else ""
    found = f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    return Check(label, "warning" if low else "ok", found, mend)


def check_compile() -> Rows:
    """What nnU-Net does about torch.compile here: on for CUDA unless switched off, never elsewhere."""
    name, value = "torch.compile", os.environ.get("nnUNet_compile")
    variable = "nnUNet_compile is not set" if value is None else f"nnUNet_compile={value}"
    if platform.system() == "Windows" or not _cuda_usable():
        yield Check(name, "ok", f"{variable}; nnU-Net does not compile on this device")
    elif value is not None and value.lower() in ("yes", "y", "on"):
        yield Check(name, "warning", f"{variable} means off to nnU-Net", "export nnUNet_compile=t to switch it on")
    elif value is not None and value.lower() not in _TRUE_FOR_NNUNET:
        yield Check(name, "ok", f"{variable}; switched off")
    else:
        found = f"{variable}; on for {'training' if value is None else 'training and prediction'}"
        missing = _missing_for_compilation()
        mend = "install what is missing (a compiler and Python's headers from your system), or export nnUNet_compile=f"
        if missing:
            yield Check(name, "problem", f"{found}, but without {' and '.join(missing)}", mend)
        else:
            yield Check(name, "ok", found)


def _cuda_usable() -> bool:
    if load("torch")[1]:
        return False
    import torch

    return torch.cuda.is_available()


def _missing_for_compilation() -> list[str]:
    """What torch.compile needs for a GPU and this machine lacks."""
    compilers = (os.environ.get("CC", "").split(" ")[0], "cc", "gcc", "clang")
    there = {
        "a C compiler": any(compiler and shutil.which(compiler) for compiler in compilers),
        "triton": importlib.util.find_spec("triton") is not None,
        "Python.h": Path(sysconfig.get_path("include"), "Python.h").exists(),
    }
    return [name for name, found in there.items() if not found]


def _one_line(error: BaseException) -> str:
    """Kind and message of an error in one line of bearable length."""
    return f"{type(error).__name__}: {_shortened(str(error))}"


def _shortened(text: str) -> str:
    return " ".join(text.split())[:300]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


_HERE: dict[str, Callable[[], Rows]] = {
    **{variable: partial(check_folder, variable) for variable in VARIABLES},
    "python": check_python,
    _WORKERS: check_workers,
    "shared memory": check_shared_memory,
}
_IMPORTING: dict[str, Callable[[], Rows]] = {
    **{name: partial(check_package, name) for name in _PACKAGES},
    _PAIR: check_pair,
    "nnU-Net's interface": check_contract,
    _EXTERNAL: check_trainers,
    "device": check_device,
    "torch.compile": check_compile,
}
