"""Settings of the searches: one frozen dataclass per method, overridden in the plans.

Plans are where nnU-Net users change things: `configurations[C].nas_settings = {method: {key: value}}`. Every value is
checked against its field; an unknown or ill-typed key is an error that lists what there is. Neither torch nor nnU-Net
is imported here.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import types
import typing
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, Literal, TypeVar

from nnunet_nas import commands
from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.methods import settings_class

Source = Literal["paper", "predecessor", "our choice"]
Settings = TypeVar("Settings")
# What NumPy's generators take as a seed, and more than anything that is counted here.
_LARGEST_INTEGER = 2**32 - 1
# nnU-Net joins the parts of a results folder's name by two underscores.
_NAME_PART = re.compile(r"([_.-]?[A-Za-z0-9])*")


def setting(
    default: Any,
    source: Source,
    help_text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    part_of_name: bool = False,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: its value without an override.
        source: where the default comes from.
        help_text: what it is, with its unit.
        minimum: least value allowed, of numbers.
        maximum: largest value allowed, likewise.
        part_of_name: of text that goes into the name of a configuration, and so of folders.
    """
    allowed = {"minimum": minimum, "maximum": maximum, "part_of_name": part_of_name}
    return field(default=default, metadata={"source": source, "help": help_text, **allowed})


def read_settings(cls: type[Settings], configuration: dict[str, Any]) -> Settings:
    """The settings of a method for a configuration.

    Args:
        cls: the method's dataclass.
        configuration: resolved, with everything that it inherits.

    Raises:
        DataProblem: `nas_settings` holds an unknown method or key, or a value that its key does not allow.
    """
    return cls(**checked_values(cls, overrides(configuration, cls.method)))  # type: ignore[attr-defined]


def overrides(configuration: dict[str, Any], method: str) -> dict[str, Any]:
    """What a configuration sets for a method, as it stands in the plans.

    Raises:
        DataProblem: `nas_settings` is not made of methods and their settings.
    """
    content = configuration.get("nas_settings", {})
    if not isinstance(content, dict):
        raise DataProblem(f"nas_settings must be {{method: {{key: value}}}}, not {content!r}: correct the plans")
    for name, values in content.items():
        settings_class(name)
        if not isinstance(values, dict):
            raise DataProblem(f"nas_settings.{name} must be {{key: value}}, not {values!r}: correct the plans")
    found: dict[str, Any] = content.get(method, {})
    return found


def checked_values(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Values by key as they stand in plans, converted to the types of their fields.

    Raises:
        DataProblem: an unknown key or a value that is not allowed.
    """
    checked = {}
    for key, value in values.items():
        try:
            checked[key] = _checked(cls, key, value)
        except DataProblem as error:
            either = f"{key}=VALUE, or " if key in _fields(cls) else ""
            mend = commands.set_search(cls.method)
            raise DataProblem(f"{error}; mend it with {mend} {either}{key}=default") from error
    return checked


def parse_assignments(
    cls: type, assignments: Sequence[str], standing: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """`key=value` words of a command line.

    Args:
        cls: the method's dataclass.
        assignments: words; `key=default` takes an override back.
        standing: keys that are set now; one of them can be taken back even if it is no setting.

    Returns:
        values to set by key, and keys to take back.

    Raises:
        UsageError: no `=`, an unknown key, one that is given twice, or a value that is not allowed.
    """
    values: dict[str, Any] = {}
    removed: list[str] = []
    for word in assignments:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"{word}: write key=value; known keys: {', '.join(_fields(cls))}")
        if key in values or key in removed:
            raise UsageError(f"{word}: {key} is given twice, give it once")
        try:
            if text == "default":
                if key not in standing:
                    _field(cls, key)
                removed.append(key)
            else:
                values[key] = _checked(cls, key, _from_text(_type(cls, key), text))
        except DataProblem as error:
            raise UsageError(str(error)) from error
    return values, removed


def settings_table(cls: type, configuration: dict[str, Any], set_in: str) -> list[dict[str, Any]]:
    """All settings of a method for a configuration, as they are shown to a person.

    Args:
        cls: the method's dataclass.
        configuration: resolved.
        set_in: name of the configuration whose plans entry holds the overrides, itself or one it inherits from.

    Returns:
        by setting its `key`, the `value` in force, the `default` without an override, its `source`, the `origin` of the
        value (`default`, or the configuration that sets it), and `help`.
    """
    given = checked_values(cls, overrides(configuration, cls.method))  # type: ignore[attr-defined]
    return [
        {
            "key": key,
            "value": given.get(key, item.default),
            "default": item.default,
            "source": item.metadata["source"],
            "origin": set_in if key in given else "default",
            "help": item.metadata["help"],
        }
        for key, item in _fields(cls).items()
    ]


def as_text(value: Any) -> str:
    """A value as it would be given on the command line, with all its digits."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return ",".join(map(as_text, value))
    return value or '""' if isinstance(value, str) else str(value).removesuffix(".0")


def _fields(cls: type) -> dict[str, Field[Any]]:
    return {item.name: item for item in fields(cls)}


def _field(cls: Any, key: str) -> Field[Any]:
    known = _fields(cls)
    if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f", did you mean {near[0]}?" if near else ";"
        raise DataProblem(f"unknown setting {key!r} of {cls.method}{hint} known: {', '.join(known)}")
    assert known[key].default is not MISSING
    return known[key]


def _type(cls: type, key: str) -> Any:
    _field(cls, key)
    return typing.get_type_hints(cls)[key]


def _checked(cls: Any, key: str, value: Any) -> Any:
    item, kind = _field(cls, key), _type(cls, key)
    converted = _converted(kind, value)
    minimum, maximum = item.metadata["minimum"], item.metadata["maximum"]
    if maximum is None and kind in (int, int | None, tuple[int, ...]):
        maximum = _LARGEST_INTEGER
    limits = [f"{word} {limit}" for word, limit in (("least", minimum), ("most", maximum)) if limit is not None]
    wrong = converted is _WRONG
    if not wrong and converted is not None:
        numbers = converted if isinstance(converted, tuple) else (converted,)
        wrong = minimum is not None and any(number < minimum for number in numbers)
        wrong = wrong or (maximum is not None and any(number > maximum for number in numbers))
    if converted is not _WRONG and item.metadata["part_of_name"] and not _NAME_PART.fullmatch(converted):
        raise DataProblem(
            f"setting {cls.method}.{key} becomes part of a name: use letters and digits, with single '_', '-' or '.' "
            f"before them, not {value!r}"
        )
    if wrong:
        within = f" of at {' and at '.join(limits)}" if limits else ""
        raise DataProblem(f"setting {cls.method}.{key} must be {_describe(kind)}{within}, not {value!r}")
    return converted


def is_part_of_name(text: str) -> bool:
    """Whether text can be joined to the name of a configuration, of which nnU-Net makes folders."""
    return bool(text) and _NAME_PART.fullmatch(text) is not None


_WRONG = object()


def _converted(kind: Any, value: Any) -> Any:
    """The value as its field holds it, or `_WRONG`."""
    if isinstance(kind, types.UnionType):
        return None if value is None else _converted(_required(kind), value)
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in options else _WRONG
    if typing.get_origin(kind) is tuple:
        parts = tuple(_converted(options[0], part) for part in value) if isinstance(value, (list, tuple)) else ()
        return parts if parts and _WRONG not in parts else _WRONG
    return _converted_scalar(kind, value)


def _converted_scalar(kind: type, value: Any) -> Any:
    """A bool is no number; an integer may stand for a float; infinite and undefined numbers are wrong."""
    if kind is float and type(value) is int:
        # An integer beyond the largest float stays one, and is refused.
        with contextlib.suppress(OverflowError):
            value = float(value)
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if type(value) is kind and finite else _WRONG


def _from_text(kind: Any, text: str) -> Any:
    """What a word of a command line means for a field; words that mean nothing stay text, and are refused later."""
    if isinstance(kind, types.UnionType):
        return None if text.lower() == "none" else _from_text(_required(kind), text)
    if typing.get_origin(kind) is tuple:
        part_kind = typing.get_args(kind)[0]
        return [_from_text(part_kind, part) for part in text.strip("[]()").split(",") if part.strip()]
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _required(kind: Any) -> Any:
    """`T` of `T | None`."""
    return next(option for option in typing.get_args(kind) if option is not types.NoneType)


def _describe(kind: Any) -> str:
    options = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return f"{_describe(_required(kind))} or none"
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(options)}"
    if typing.get_origin(kind) is tuple:
        return f"a list (comma-separated) of {_describe(options[0])}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "text"}[kind]
