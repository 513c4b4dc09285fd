"""Derived configurations in nnU-Net plans: read with inheritance, add, check, record where they come from.

nnU-Net builds a network from `configurations[NAME].architecture` of a plans file and resolves `inherits_from` itself:
a found architecture is one more entry there and needs no code of ours to train. This module only handles JSON: it
imports neither torch nor nnU-Net, which keeps `nnunet_nas ls` fast.

Writes are additive, locked against a second writer and atomic; formatting and key order are nnU-Net's (`save_json`
with four spaces, keys unsorted), so that a plans file diffs by exactly what was added.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nnunet_nas import __version__
from nnunet_nas.environment import dataset_number
from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.files import locked, read_json, replace_file
from nnunet_nas.settings import overrides

# Keys that say where a configuration comes from or how to search on it, not what it is.
_NOT_CONTENT = ("inherits_from", "nas", "nas_settings")
# JSON files that nnU-Net itself keeps beside the plans; a plans file of that name would break the data set.
_RESERVED = ("dataset", "dataset_fingerprint", "splits_final")
_LOCK_SECONDS = 60.0
_VERSIONED = ("nnunetv2", "torch", "dynamic-network-architectures")


@dataclass(frozen=True)
class DerivedConfiguration:
    """A configuration to be added to plans.

    Attributes:
        name: its name, for example `2d_xtiny8`.
        base: the configuration that it inherits from.
        changes: the keys in which it differs from its base; `architecture` is given whole, because nnU-Net's
            inheritance replaces top-level keys and does not merge nested ones.
        provenance: what is recorded under `nas`, see `provenance`.
    """

    name: str
    base: str
    changes: dict[str, Any]
    provenance: dict[str, Any]

    def entry(self) -> dict[str, Any]:
        """The JSON that goes into the plans file."""
        return {"inherits_from": self.base, **copy.deepcopy(self.changes), "nas": copy.deepcopy(self.provenance)}


def plans_path(dataset_folder: Path, identifier: str) -> Path:
    """The plans file that nnU-Net's `-p identifier` means."""
    return dataset_folder / f"{identifier}.json"


def read_plans(path: Path) -> dict[str, Any]:
    """Reads a plans file.

    Raises:
        DataProblem: missing, not JSON, or not nnU-Net plans.
        EnvironmentProblem: not readable.
    """
    try:
        number = str(dataset_number(path.parent.name))
    except UsageError:
        number = "DATASET"
    mend = f"run nnUNetv2_plan_experiment -d {number} (or restore the file), or choose other plans with -p"
    plans = read_json(path, mend)
    if not isinstance(plans, dict) or not isinstance(plans.get("configurations"), dict) or "plans_name" not in plans:
        raise DataProblem(f"{path} is not an nnU-Net v2 plans file (no configurations or no plans_name): {mend}")
    return plans


def resolve_configuration(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration with everything that it inherits, by nnU-Net's rules (top-level keys, nearest wins).

    Args:
        plans: the content of a plans file.
        name: the configuration.

    Returns:
        a copy; changing it leaves the plans alone. `inherits_from` is the direct parent's name, if there is one.

    Raises:
        DataProblem: unknown configuration, one that inherits from itself, or no configuration at all.
    """
    configurations = plans["configurations"]
    chain: list[str] = []
    current: str | None = name
    while current is not None:
        if current not in configurations:
            wanted = f"configuration {current}" if not chain else f"{current}, the base of {chain[-1]},"
            raise DataProblem(f"{wanted} is not in the plans; choose one of: {', '.join(configurations)}")
        if current in chain:
            raise DataProblem(f"configuration {name} inherits from itself ({' -> '.join([*chain, current])})")
        if not isinstance(configurations[current], dict):
            raise DataProblem(
                f"configuration {current} is not one of nnU-Net v2, it is no JSON object: correct the plans"
            )
        chain.append(current)
        current = configurations[current].get("inherits_from")
    resolved: dict[str, Any] = {}
    for link in reversed(chain):
        resolved.update(copy.deepcopy(configurations[link]))
    return resolved


def configuration_digest(plans: dict[str, Any], name: str) -> str:
    """A digest of what a configuration is, to notice later that it changed.

    It covers the configuration with all that it inherits, independent of key order, and leaves out provenance and
    search settings (`nas`, `nas_settings`), which do not change what nnU-Net trains.
    """
    content = {key: value for key, value in resolve_configuration(plans, name).items() if key not in _NOT_CONTENT}
    return "sha256:" + hashlib.sha256(_canonical(content).encode()).hexdigest()


def staleness(plans: dict[str, Any], name: str) -> str | None:
    """Why a derived configuration no longer fits the base that it was made from; None if it does or is not ours."""
    record = plans["configurations"][name].get("nas")
    if record is None:
        return None
    base = plans["configurations"][name].get("inherits_from")
    if base not in plans["configurations"]:
        return f"its base {base} is no longer in the plans"
    if record.get("base_digest") != configuration_digest(plans, base):
        return f"its base {base} has changed since it was derived (planned again?)"
    return None


def package_versions() -> dict[str, str]:
    """Versions of what decides about a search's result, by distribution name."""
    return {"nnunet-nas": __version__, **{name: _version_of(name) for name in _VERSIONED}}


@cache
def _version_of(distribution: str) -> str:
    """Kept, because looking it up means parsing the metadata of the distribution."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def provenance(
    *,
    method: str,
    base_digest: str,
    settings: dict[str, Any],
    seeds: Sequence[int],
    fold: int | str | None = None,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """What a derived configuration records under `nas`.

    Args:
        method: `xtiny`, `iac`, `iac_lth`, `dints`.
        base_digest: `configuration_digest` of the base that the search saw.
        settings: everything that decides the result, as plain JSON.
        seeds: random seeds of the search.
        fold: the fold searched on; None where a method uses no labels and no split.
        checkpoint: the trained weights searched on, if any.
    """
    return {
        "method": method,
        "base_digest": base_digest,
        "settings": settings,
        "seeds": list(seeds),
        "fold": fold,
        "checkpoint": checkpoint,
        "versions": package_versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def add_configurations(
    path: Path,
    derived: Sequence[DerivedConfiguration],
    *,
    base_digests: dict[str, str],
    output: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Adds configurations to a plans file, or to a separate one, all of them or none.

    A configuration that is already there with the same content stays as it is, with its provenance and whatever keys
    its user added. One with other content is an error unless `overwrite`; one that was trained is never replaced,
    because nnU-Net's results folders are found by its name.

    Args:
        path: the plans file that the bases stand in.
        derived: what to add.
        base_digests: for each base, its digest at the time of the search; the write is refused if it changed since.
        output: identifier of a separate plans file beside `path` to write instead; it starts as a copy of `path`.
        overwrite: replace configurations of the same name with other content.

    Returns:
        names of the configurations that were written; empty if all were there already.

    Raises:
        DataProblem: a base changed, a name is taken, or a plans file is broken.
        EnvironmentProblem: no permission, no space, or another process keeps the lock. The file is as it was.
    """
    target = path if output is None else separate_plans_path(path, output)
    with _locked_plans(target):
        plans, written = _extended(path, target, derived, base_digests=base_digests, overwrite=overwrite)
        # A new separate file is written even if all it adds was copied with the rest: the user asked for the file.
        if written or not target.exists():
            replace_file(target, json.dumps(plans, indent=4).encode())
    return written


def write_settings(path: Path, name: str, method: str, values: dict[str, Any], removed: Sequence[str] = ()) -> None:
    """Sets search settings of a configuration: the only key that is ever written into an existing one.

    nnU-Net's inheritance replaces `nas_settings` as a whole. A configuration that inherits some and is given its own
    therefore starts with a copy of what it inherits. The file is not touched if nothing changes.

    Args:
        path: the plans file.
        name: the configuration.
        method: whose settings.
        values: to set, by key.
        removed: keys to take back; empty dictionaries vanish with the last of them.

    Raises:
        DataProblem: unknown configuration, a broken plans file, or settings in it that are none.
        EnvironmentProblem: no permission, no space, or another process keeps the lock. The file is as it was.
    """
    with _locked_plans(path):
        plans = read_plans(path)
        resolved = resolve_configuration(plans, name)
        ours = {**overrides(resolved, method), **values}
        settings = resolved.get("nas_settings", {})
        settings[method] = {key: value for key, value in ours.items() if key not in removed}
        entry = plans["configurations"][name]
        before = _canonical(entry)
        entry["nas_settings"] = {key: value for key, value in settings.items() if value}
        inherited = resolve_configuration(plans, entry["inherits_from"]) if "inherits_from" in entry else {}
        if _canonical(entry["nas_settings"]) == _canonical(inherited.get("nas_settings", {})):
            del entry["nas_settings"]
        if _canonical(entry) != before:
            replace_file(path, json.dumps(plans, indent=4).encode())


def _canonical(content: Any) -> str:
    """JSON to compare by: Python calls 1 and True equal, which are different settings."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


@contextlib.contextmanager
def _locked_plans(path: Path) -> Iterator[None]:
    busy = f"another process has been writing {path} for {_LOCK_SECONDS:.0f} s: run the same command again"
    # Where a link points to: whoever writes through the link and through the file must meet at the same lock.
    with locked(Path(os.path.realpath(path)), timeout=_LOCK_SECONDS, busy=busy):
        yield


def check_configurations(
    path: Path,
    derived: Sequence[DerivedConfiguration],
    *,
    base_digests: dict[str, str],
    output: str | None = None,
    overwrite: bool = False,
) -> None:
    """Raises what `add_configurations` would raise, before a search spends time; writes nothing."""
    target = path if output is None else separate_plans_path(path, output)
    _extended(path, target, derived, base_digests=base_digests, overwrite=overwrite)


def separate_plans_path(path: Path, output: str) -> Path:
    """The file of the separate plans `output` beside `path`.

    Raises:
        UsageError: a name that nnU-Net's `-p` could not find, or one of nnU-Net's own files.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", output) or "__" in output:
        raise UsageError(f"-o {output}: give a plans identifier of letters, digits, '.', '-' and single '_', no folder")
    if output in _RESERVED:
        raise UsageError(f"-o {output}: nnU-Net keeps its own {output}.json there; choose another name")
    return path.with_name(f"{output}.json")


def _extended(
    path: Path,
    target: Path,
    derived: Sequence[DerivedConfiguration],
    *,
    base_digests: dict[str, str],
    overwrite: bool,
) -> tuple[dict[str, Any], list[str]]:
    """The content of `target` with the configurations added, and the names of those that were not there."""
    plans = _plans_to_extend(path, target)
    for base, digest in base_digests.items():
        _require_same_base(plans, base, digest, target)
    return plans, [item.name for item in derived if _insert(plans, item, target=target, overwrite=overwrite)]


def _plans_to_extend(path: Path, target: Path) -> dict[str, Any]:
    """The content that additions go into: the target itself, or a copy of the source under the target's name."""
    if target == path or target.exists():
        plans = read_plans(target)
        if plans["plans_name"] != target.stem:
            # nnU-Net names the results folder by the inner name and reads -p by the file's: they must agree.
            raise DataProblem(
                f"{target} calls itself plans_name={plans['plans_name']}: set it to {target.stem}, or nnU-Net would "
                f"train and predict in different folders"
            )
        return plans
    plans = read_plans(path)
    plans["plans_name"] = target.stem
    return plans


def _require_same_base(plans: dict[str, Any], base: str, digest: str, target: Path) -> None:
    if configuration_digest(plans, base) != digest:
        raise DataProblem(
            f"configuration {base} in {target} is not the one that was searched on (planned again meanwhile?): "
            f"run the search again, or write a separate plans file with -o NAME"
        )


def _insert(plans: dict[str, Any], item: DerivedConfiguration, *, target: Path, overwrite: bool) -> bool:
    """Puts one configuration into `plans`; False if it is there already."""
    existing = plans["configurations"].get(item.name)
    if existing is not None:
        if _same_content(plans, item, existing):
            return False
        _require_replaceable(plans, item, target=target, overwrite=overwrite)
    entry = item.entry()
    if existing is not None and "nas_settings" in existing:
        entry["nas_settings"] = existing["nas_settings"]
    plans["configurations"][item.name] = entry
    return True


def _same_content(plans: dict[str, Any], item: DerivedConfiguration, existing: dict[str, Any]) -> bool:
    # Through JSON, so that tuples and integer-valued keys compare as they would after a round trip.
    changes = json.loads(json.dumps(item.changes))
    return (
        existing.get("inherits_from") == item.base
        and all(existing.get(key) == value for key, value in changes.items())
        and staleness(plans, item.name) is None
    )


def _require_replaceable(plans: dict[str, Any], item: DerivedConfiguration, *, target: Path, overwrite: bool) -> None:
    reason = staleness(plans, item.name) or "it has other content"
    if not overwrite:
        raise DataProblem(
            f"configuration {item.name} exists in {target} and is not what would be written ({reason}): "
            f"--overwrite replaces it, -o NAME writes a separate plans file"
        )
    trained = _trained_models(plans, item.name)
    if trained:
        raise DataProblem(
            f"configuration {item.name} is not replaced because it was trained ({trained[0]}): "
            f"move that folder away, or write a separate plans file with -o NAME"
        )


def _trained_models(plans: dict[str, Any], name: str) -> list[Path]:
    """nnU-Net's results folders of a configuration, `TRAINER__PLANS__CONFIGURATION`."""
    results = os.environ.get("nnUNet_results")
    if not results or "dataset_name" not in plans:
        return []
    suffix = f"__{plans['plans_name']}__{name}"
    folder = Path(results) / plans["dataset_name"]
    return sorted(entry for entry in folder.iterdir() if entry.name.endswith(suffix)) if folder.is_dir() else []
