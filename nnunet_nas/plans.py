"""Plans of nnU-Net: read with inheritance, extended, never damaged.

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
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from nnunet_nas import __version__
from nnunet_nas.description import PLAN_AGAIN, read_description
from nnunet_nas.environment import dataset_number, folder_from_environment
from nnunet_nas.errors import DataProblem, EnvironmentProblem, UsageError
from nnunet_nas.files import locked, read_json, remove_leftovers, replace_file
from nnunet_nas.methods import METHODS
from nnunet_nas.renewal import Made, renewal
from nnunet_nas.settings import overrides

# Keys that say where a configuration comes from or how to search on it, not what it is.
_NOT_CONTENT = ("inherits_from", "nas", "nas_settings")
# What plans say above all configurations, and every one of them is preprocessed by.
_INTENSITIES = "foreground_intensity_properties_per_channel"
_ABOVE = ("transpose_forward", "transpose_backward", "image_reader_writer", _INTENSITIES)
# nnU-Net's normalisations that ask no other image.
_OF_THE_IMAGE_ALONE = ("ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")
# The first kind of digest did not cover what stands above; plans and checkpoints hold it.
_FIRST_DIGEST, _DIGEST = "sha256:", "sha256-2:"
# JSON files that nnU-Net itself keeps beside the plans; a plans file of that name would break the data set.
_RESERVED = ("dataset", "dataset_fingerprint", "splits_final")
_LOCK_SECONDS = 60.0
# nnU-Net rewrites plans in place and without a lock: how long its writing takes at most, how long after ours one that
# had read the file before may come unannounced, and how long after its announcement.
_PATIENCE_SECONDS = 0.5
_AFTERMATH_SECONDS = 0.2
_PLANNING_SECONDS = 30.0
_PAUSE_SECONDS = 0.05
_ATTEMPTS = 5
_VERSIONED = ("nnunetv2", "torch", "dynamic-network-architectures")


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


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Provenance:
    """Where a derived configuration comes from; stands in plans under `nas`.

    Attributes:
        method: a name of `METHODS`.
        base_digest: `Plans.digest` of the base at the time of the search.
        settings: everything that decides the result, as plain JSON.
        seeds: random seeds of the search.
        fold: the fold searched on; None where a method uses no labels and no split.
        checkpoint: the trained weights searched on, if any.
        versions: of the packages.
        created: time, UTC.
        transferred_from: data set, plans and configuration where it was found, if not here.
        random_like: the result that it was drawn at random in place of, if it was not found.
        backbone_trainer: of the frozen backbone; None: nnU-Net's own, or else the only one that is there.
        backbone_digest: of its weights.
        search_folder: the search's results below those of the data set.
        epochs: of the search, where it stops by itself.
        certainty: how sure the answer is, in the method's own terms.
        training_mib: memory of a training step in MiB, `predicted`, `counted` and the `budget`.
    """

    method: str
    base_digest: str
    settings: dict[str, Any]
    seeds: Sequence[int] = ()
    fold: int | str | None = None
    checkpoint: str | None = None
    versions: dict[str, str] = field(default_factory=package_versions)
    created: str = field(default_factory=_now)
    transferred_from: dict[str, str] | None = None
    random_like: str | None = None
    backbone_trainer: str | None = None
    backbone_digest: str | None = None
    search_folder: str | None = None
    epochs: int | None = None
    certainty: dict[str, Any] | None = None
    training_mib: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what only some methods know is left out elsewhere."""
        kept = {"fold", "checkpoint"} | ({"backbone_trainer"} if METHODS[self.method].in_backbone else set())
        return {key: value for key, value in asdict(self).items() if value is not None or key in kept}


@dataclass(frozen=True)
class DerivedConfiguration:
    """A configuration to be added to plans.

    Attributes:
        name: its name, for example `2d_xtiny8`.
        base: the configuration that it inherits from.
        architecture: in which it differs from its base; given whole, because nnU-Net's inheritance replaces top-level
            keys and does not merge nested ones.
        provenance: where it comes from.
    """

    name: str
    base: str
    architecture: dict[str, Any]
    provenance: Provenance

    def entry(self) -> dict[str, Any]:
        """The JSON that goes into the plans file, as it is read again: no tuples, no numbers as keys."""
        entry = {"inherits_from": self.base, "architecture": self.architecture, "nas": self.provenance.to_json()}
        plain: dict[str, Any] = json.loads(json.dumps(entry))
        return plain


def wrapped(architecture: dict[str, Any], network: str, **arguments: Any) -> dict[str, Any]:
    """The architecture of a network that puts something into the skips of another one, its `backbone`.

    Args:
        architecture: of the backbone, as plans hold it.
        network: dotted name of the class.
        arguments: its own arguments; those of the backbone stay.

    Raises:
        DataProblem: the backbone has something in its skips itself.
    """
    backbone, kwargs = architecture["network_class_name"], architecture["arch_kwargs"]
    if "backbone" in kwargs:
        raise DataProblem(f"{backbone} has modules in its skips already: choose the configuration below it")
    arguments = {**kwargs, "backbone": backbone, **arguments}
    return copy.deepcopy({**architecture, "network_class_name": network, "arch_kwargs": arguments})


@dataclass(frozen=True)
class Plans:
    """A plans file.

    Attributes:
        content: of the file.
        path: of the file; plans that a checkpoint holds have none, and nothing can be added to them.

    Raises:
        DataProblem: the plans or the data set are named by a path.
    """

    content: dict[str, Any]
    path: Path = Path()

    def __post_init__(self) -> None:
        # nnU-Net makes folders of these names below its results.
        for key in ("plans_name", "dataset_name"):
            name = self.content.get(key)
            if isinstance(name, str) and (name in (".", "..") or set(name) & {"/", "\\"}):
                raise DataProblem(f"{key} {name!r} in {self.path} leads out of a folder: correct the plans")

    @classmethod
    def read(cls, path: Path) -> Plans:
        """Reads a plans file.

        Raises:
            DataProblem: missing, not JSON, or not nnU-Net plans.
            EnvironmentProblem: not readable.
        """
        return cls.checked(read_json(path, _way_out(path), patience=_PATIENCE_SECONDS), path)

    @classmethod
    def checked(cls, content: Any, path: Path) -> Plans:
        """Plans of a file's content.

        Raises:
            DataProblem: it is not nnU-Net plans.
        """
        known = isinstance(content, dict) and isinstance(content.get("configurations"), dict)
        named = (
            known and isinstance(content.get("plans_name"), str) and isinstance(content.get("dataset_name", ""), str)
        )
        if not named:
            raise DataProblem(
                f"{path} is not an nnU-Net v2 plans file (no configurations or no plans_name): {_way_out(path)}"
            )
        return cls(content, path)

    @classmethod
    def of(cls, dataset: Path, identifier: str) -> Plans:
        """The plans that nnU-Net's `-p identifier` means, of a preprocessed data set; raises as `read`."""
        return cls.read(dataset / f"{identifier}.json")

    @classmethod
    @contextlib.contextmanager
    def edited(cls, path: Path, source: Path | None = None) -> Iterator[Plans]:
        """The present content of a file, locked; what the block changes in it is written, unless it raises.

        Args:
            path: the file.
            source: what a file that does not exist starts as a copy of; it is written even if nothing changes.

        Raises:
            DataProblem: not nnU-Net plans.
            EnvironmentProblem: no permission, no space, or another process keeps the lock. The file is as it was.
        """
        busy = f"another process has been writing {path} for {_LOCK_SECONDS:.0f} s: run the same command again"
        # Where a link points to: whoever writes through the link and through the file must meet at the same lock.
        target = Path(os.path.realpath(path))
        with locked(target, timeout=_LOCK_SECONDS, busy=busy):
            remove_leftovers(target.parent, target.name)
            plans = cls._starting_from(path, source)
            before = _canonical(plans.content) if path.exists() else None
            yield plans
            if _canonical(plans.content) != before:
                plans._write(before)

    def _write(self, before: str | None) -> None:
        """Replaces the file, and loses nothing to a program without our lock, nor anything of it.

        Args:
            before: the canonical content that was read; None: there was no file.

        Raises:
            Overtaken: such a program wrote the file meanwhile; what it wrote stands there.
        """
        with contextlib.closing(_Unlocked(self.path, before)) as rival:
            replace_file(self.path, json.dumps(self.content, indent=4).encode(), last_check=rival.require_absence)
            rival.await_writing()
            rival.give_back()
        known = {} if before is None else json.loads(before)["configurations"]
        now = Plans.read(self.path).configurations
        changed = [name for name in {**known, **self.configurations} if not _same(name, known, self.configurations)]
        if not all(_same(name, self.configurations, now) for name in changed):
            raise Overtaken(self.path)

    @classmethod
    def _starting_from(cls, path: Path, source: Path | None) -> Plans:
        if source is None or path.exists():
            return cls.read(path)
        return cls({**cls.read(source).content, "plans_name": path.stem}, path)

    @property
    def name(self) -> str:
        """The identifier by which nnU-Net knows the plans."""
        return str(self.content["plans_name"])

    @property
    def dataset_name(self) -> str:
        """Full name of the data set.

        Raises:
            DataProblem: the plans do not say.
        """
        if "dataset_name" not in self.content:
            raise DataProblem(f"{self.path} has no dataset_name: {_way_out(self.path)}")
        return str(self.content["dataset_name"])

    @property
    def configurations(self) -> dict[str, Any]:
        """All entries, by name."""
        found: dict[str, Any] = self.content["configurations"]
        return found

    @property
    def number(self) -> int:
        """The data set's number."""
        return dataset_number(self.path.parent.name)

    @cached_property
    def dataset_json(self) -> dict[str, Any]:
        """nnU-Net's description of the data set, beside the plans.

        Raises:
            DataProblem: missing, not JSON, or no description.
        """
        return read_description(self.path.with_name("dataset.json"), PLAN_AGAIN, patience=_PATIENCE_SECONDS)

    def method(self, name: str) -> str | None:
        """The method that a configuration was derived by; None if it is not ours."""
        found = (self.record(name) or {}).get("method")
        return found if isinstance(found, str) else None

    def record(self, name: str) -> dict[str, Any] | None:
        """Where a configuration comes from; None if it is not ours, or says so in no form that we know."""
        entry = self.configurations[name]
        found = entry.get("nas") if isinstance(entry, dict) else None
        return found if isinstance(found, dict) else None

    def resolve(self, name: str) -> dict[str, Any]:
        """A configuration with everything that it inherits, by nnU-Net's rules (top-level keys, nearest wins).

        Args:
            name: the configuration.

        Returns:
            a copy; changing it leaves the plans alone. `inherits_from` is the direct parent's name, if there is one.

        Raises:
            DataProblem: unknown configuration, one that inherits from itself, or no configuration at all.
        """
        resolved: dict[str, Any] = {}
        for link in reversed(self.ancestry(name)):
            resolved.update(copy.deepcopy(self.configurations[link]))
        return resolved

    def ancestry(self, name: str) -> list[str]:
        """A configuration and those that it inherits from, nearest first; raises as `resolve`."""
        chain: list[str] = []
        current: str | None = name
        while current is not None:
            if current not in self.configurations:
                wanted = f"configuration {current}" if not chain else f"{current}, the base of {chain[-1]},"
                raise DataProblem(f"{wanted} is not in the plans; choose one of: {', '.join(self.configurations)}")
            if current in chain:
                raise DataProblem(f"configuration {name} inherits from itself ({' -> '.join([*chain, current])})")
            if not isinstance(self.configurations[current], dict):
                raise DataProblem(
                    f"configuration {current} is not one of nnU-Net v2, it is no JSON object: correct the plans"
                )
            chain.append(current)
            current = self.configurations[current].get("inherits_from")
            if not isinstance(current, str | None):
                raise DataProblem(
                    f"inherits_from of configuration {chain[-1]} must be the name of one, not {current!r}: correct the "
                    f"plans"
                )
        return chain

    def digest(self, name: str) -> str:
        """A digest of what a configuration is, to notice later that it changed; `matches` compares.

        It covers the configuration with all that it inherits and what the plans say of all: axes, reader, and, where
        images are normalised by them, intensities; independent of key order. It leaves out provenance and search
        settings (`nas`, `nas_settings`), which do not change what nnU-Net trains.
        """
        configuration = {key: value for key, value in self.resolve(name).items() if key not in _NOT_CONTENT}
        above = {key: self.content.get(key) for key in _ABOVE if key in self.content}
        if not self._uses_intensities(configuration):
            above.pop(_INTENSITIES, None)
        return _DIGEST + _sha256({"configuration": configuration, "above": above})

    def matches(self, name: str, digest: Any) -> bool:
        """Whether a configuration is still what a digest was made of; of any version that ever made one."""
        if isinstance(digest, str) and digest.startswith(_FIRST_DIGEST):
            content = {key: value for key, value in self.resolve(name).items() if key not in _NOT_CONTENT}
            return digest == _FIRST_DIGEST + _sha256(content)
        return bool(digest == self.digest(name))

    @staticmethod
    def _uses_intensities(configuration: dict[str, Any]) -> bool:
        schemes = configuration.get("normalization_schemes")
        return not isinstance(schemes, list) or not all(scheme in _OF_THE_IMAGE_ALONE for scheme in schemes)

    def staleness(self, name: str) -> str | None:
        """Why a derived configuration no longer fits the base that it was made from; None if it does or is not ours."""
        record = self.record(name)
        if record is None:
            return None
        base = self.configurations[name].get("inherits_from")
        if not isinstance(base, str) or base not in self.configurations:
            return f"its base {base} is no longer in the plans"
        if not self.matches(base, record.get("base_digest")):
            return f"its base {base} has changed since it was derived (planned again?)"
        return None

    def remedy(self, name: str) -> str:
        """What a user does about a stale configuration."""
        base = self.configurations[name].get("inherits_from")
        if not isinstance(base, str) or base not in self.configurations:
            return "put its base back, or remove it from the plans"
        return renewal(Made(name, base, self.record(name) or {}, self._dataset, self.name))

    @property
    def _dataset(self) -> int | str:
        """As commands take it; plans that a checkpoint or a trainer holds know no folder."""
        for name in (self.path.parent.name, str(self.content.get("dataset_name"))):
            with contextlib.suppress(UsageError):
                return dataset_number(name)
        return "DATASET"

    def require_fresh(self, name: str) -> None:
        """Refuses a configuration that no longer fits its base.

        Raises:
            DataProblem: it is stale, or unknown.
        """
        self.resolve(name)
        stale = self.staleness(name)
        if stale:
            raise DataProblem(f"configuration {name} is stale, {stale}: restore the plans, or {self.remedy(name)}")

    def add(
        self,
        derived: Sequence[DerivedConfiguration],
        *,
        output: str | None = None,
        overwrite: bool = False,
        renew_records: bool = False,
        otherwise: str | None = None,
    ) -> list[str]:
        """Adds configurations to the file, or to a separate one, all of them or none.

        A configuration that is already there with the same content stays as it is, with its provenance and whatever
        keys its user added. One with other content is an error unless `overwrite`; one that was trained is never
        replaced, because nnU-Net's results folders are found by its name. The write is refused if a base is not what it
        was when its configuration was derived.

        Args:
            derived: what to add.
            output: identifier of a separate plans file beside this one to write instead; it starts as a copy.
            overwrite: replace configurations of the same name with other content.
            renew_records: a configuration of the same content that was not trained yet gets the new provenance if that
                says something else, beside its time.
            otherwise: what to do if this is refused; None: what the options of our commands offer.

        Returns:
            names of the configurations that were written; empty if all were there already.

        Raises:
            DataProblem: a base changed, a name is taken, or a plans file is broken.
            EnvironmentProblem: no permission, no space, or another process keeps the lock. The file is as it was.
        """
        attempts = 0
        while True:
            try:
                with Plans.edited(self.beside(output), self.path) as plans:
                    return plans._extend(derived, overwrite=overwrite, renew_records=renew_records, otherwise=otherwise)
            except Overtaken:
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise

    def check(
        self, derived: Sequence[DerivedConfiguration], *, output: str | None = None, overwrite: bool = False
    ) -> None:
        """Raises what `add` would raise, before a search spends time; writes nothing."""
        Plans._starting_from(self.beside(output), self.path)._extend(derived, overwrite=overwrite)

    def beside(self, output: str | None) -> Path:
        """The file of the separate plans `output`; None is this file.

        Raises:
            UsageError: a name that nnU-Net's `-p` could not find, or one of nnU-Net's own files.
        """
        if output is None:
            return self.path
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", output) or "__" in output:
            raise UsageError(
                f"-o {output}: give a plans identifier of letters, digits, '.', '-' and single '_', no folder"
            )
        if output in _RESERVED:
            raise UsageError(f"-o {output}: nnU-Net keeps its own {output}.json there; choose another name")
        return self.path.with_name(f"{output}.json")

    def set(self, name: str, method: str, values: dict[str, Any], removed: Sequence[str] = ()) -> None:
        """Sets search settings of a configuration: the only key that is ever written into an existing one.

        nnU-Net's inheritance replaces `nas_settings` as a whole. A configuration that inherits some and is given its
        own therefore starts with a copy of what it inherits.

        Args:
            name: the configuration.
            method: whose settings.
            values: to set, by key.
            removed: keys to take back; empty dictionaries vanish with the last of them.

        Raises:
            DataProblem: unknown configuration, or settings in it that are none.
        """
        resolved = self.resolve(name)
        ours = {**overrides(resolved, method), **values}
        settings = resolved.get("nas_settings", {})
        settings[method] = {key: value for key, value in ours.items() if key not in removed}
        entry = self.configurations[name]
        entry["nas_settings"] = {key: value for key, value in settings.items() if value}
        inherited = self.resolve(entry["inherits_from"]) if "inherits_from" in entry else {}
        if _canonical(entry["nas_settings"]) == _canonical(inherited.get("nas_settings", {})):
            del entry["nas_settings"]

    def _extend(
        self,
        derived: Sequence[DerivedConfiguration],
        *,
        overwrite: bool,
        renew_records: bool = False,
        otherwise: str | None = None,
    ) -> list[str]:
        """Adds to the content; names of the configurations that were not there."""
        if self.name != self.path.stem:
            # nnU-Net names the results folder by the inner name and reads -p by the file's: they must agree.
            raise DataProblem(
                f"{self.path} calls itself plans_name={self.name}: set it to {self.path.stem}, or "
                f"nnU-Net would train and predict in different folders"
            )
        for item in derived:
            if not self.matches(item.base, item.provenance.base_digest):
                raise DataProblem(
                    f"configuration {item.base} in {self.path} is not the one that was searched on (planned again "
                    f"meanwhile?): {otherwise or 'run the same command again, or write separate plans with -o NAME'}"
                )
        return [
            item.name
            for item in derived
            if self._insert(item, overwrite=overwrite, renew_records=renew_records, otherwise=otherwise)
        ]

    def _insert(
        self, item: DerivedConfiguration, *, overwrite: bool, renew_records: bool, otherwise: str | None
    ) -> bool:
        """Puts one configuration into the content; False if it is there already."""
        entry, existing = item.entry(), self.configurations.get(item.name)
        if existing is not None:
            same = all(existing.get(key) == entry[key] for key in ("inherits_from", "architecture"))
            if same and self.staleness(item.name) is None:
                if renew_records:
                    self._renew_record(item.name, entry["nas"])
                return False
            self._require_replaceable(item.name, overwrite=overwrite, otherwise=otherwise)
            if "nas_settings" in existing:
                entry["nas_settings"] = existing["nas_settings"]
        self.configurations[item.name] = entry
        return True

    def _renew_record(self, name: str, record: dict[str, Any]) -> None:
        """What was trained keeps the record that it was trained with; another time alone is no news."""
        known = self.record(name) or {}
        if {**known, "created": None} != {**record, "created": None} and not self._trained_models(name):
            self.configurations[name]["nas"] = record

    def _require_replaceable(self, name: str, *, overwrite: bool, otherwise: str | None) -> None:
        if not overwrite:
            raise DataProblem(
                f"configuration {name} exists in {self.path} and is not what would be written "
                f"({self.staleness(name) or 'it has other content'}): "
                f"{otherwise or '--overwrite replaces it, -o NAME writes a separate plans file'}"
            )
        trained = self._trained_models(name)
        if trained:
            raise DataProblem(
                f"configuration {name} is not replaced because it was trained ({trained[0]}): "
                f"move that folder away, or write a separate plans file with -o NAME"
            )

    def _trained_models(self, name: str) -> list[Path]:
        """nnU-Net's results folders of a configuration, `TRAINER__PLANS__CONFIGURATION`.

        Raises:
            EnvironmentProblem: it cannot be known whether there are any.
        """
        suffix = f"__{self.name}__{name}"
        dataset = str(self.content.get("dataset_name", self.path.parent.name))
        folder = folder_from_environment("nnUNet_results") / dataset
        try:
            return sorted(entry for entry in folder.iterdir() if entry.name.endswith(suffix))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot list {folder} ({error.strerror}), so {name} may have been trained and is not replaced: make "
                f"it readable for you"
            ) from error


class Overtaken(EnvironmentProblem):
    """A program without our lock wrote the plans while they were edited."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"another program has written {path} at the same moment (nnU-Net's planning?), and what was added is lost: "
            f"wait until it has ended, then run the same command again"
        )


class _Unlocked:
    """Notices programs that write a plans file in place without our lock, as nnU-Net's planning does.

    Such a program may have the file open while ours takes its name: it then writes into a file that nobody finds. That
    one is kept open here. Or it may have read the file before and write it afterwards: nnU-Net's planning copies
    `dataset.json` beside the plans before it reads them, so that one which began before ours took their name is known
    by a description that is newer than what was replaced.
    """

    def __init__(self, path: Path, before: str | None) -> None:
        self.path, self.before = path, before
        self._file: BinaryIO | None = None
        self._content = b""
        self._written = 0

    def require_absence(self) -> None:
        """Right before the file is replaced; raises Overtaken if it is not as it was read."""
        if self.path.exists():
            self._file = self.path.open("rb")
            self._content = self._file.read()
            self._written = os.fstat(self._file.fileno()).st_mtime_ns
        if _canonical_or_none(self._content) != self.before:
            raise Overtaken(self.path)

    def await_writing(self) -> None:
        """After the replacement, until whoever had read the old file has written."""
        ours = self._stamps()
        time.sleep(_AFTERMATH_SECONDS)
        remaining = self._announced(ours[0])
        if remaining <= 0 or self._stamps() != ours:
            return
        print(f"waiting for nnU-Net's planning, which may be about to write {self.path}", file=sys.stderr)
        deadline = time.monotonic() + remaining
        while time.monotonic() < deadline and self._stamps() == ours:
            time.sleep(_PAUSE_SECONDS)

    def _stamps(self) -> tuple[int, int]:
        """When the file and the one that it replaced were written, in ns."""
        return _written(self.path), os.fstat(self._file.fileno()).st_mtime_ns if self._file is not None else 0

    def _announced(self, ours: int) -> float:
        """Seconds that a planning which began before ours, in ns, may still take; all times are the file system's."""
        begun = _written(self.path.with_name("dataset.json"))
        if self._file is None or begun < self._written:
            return 0
        return min(_PLANNING_SECONDS, _PLANNING_SECONDS - (ours - begun) / 1e9)

    def give_back(self) -> None:
        """After the replacement; raises Overtaken if the replaced file was written, which takes its place again."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._file is not None and time.monotonic() < deadline:
            self._file.seek(0)
            content = self._file.read()
            if content == self._content:
                return
            if _canonical_or_none(content) is not None:
                replace_file(self.path, content)
                raise Overtaken(self.path)
            time.sleep(_PAUSE_SECONDS)

    def close(self) -> None:
        """Forgets the file."""
        if self._file is not None:
            self._file.close()


def _written(path: Path) -> int:
    """When a file was written, in ns; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _canonical_or_none(content: bytes) -> str | None:
    try:
        return _canonical(json.loads(content))
    except ValueError:  # not JSON: nothing yet, or a part
        return None


def _way_out(path: Path) -> str:
    """What to do about a plans file that cannot be read."""
    try:
        number = str(dataset_number(path.parent.name))
    except UsageError:
        number = "DATASET"
    return f"run nnUNetv2_plan_experiment -d {number} (or restore the file), or choose other plans with -p"


def _sha256(content: Any) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _same(key: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two dictionaries hold the same under a key, or both nothing."""
    return (key in one) == (key in other) and _canonical(one.get(key)) == _canonical(other.get(key))


def _canonical(content: Any) -> str:
    """JSON to compare by: Python calls 1 and True equal, which are different settings."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))
