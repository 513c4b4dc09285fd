"""How a configuration is made again whose base has changed: by the command that made it, as its record tells.

Records stand in files that are edited by hand. What one does not say in the form in which our commands write it is not
guessed: the user is told to derive the configuration again, and no command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nnunet_nas import commands
from nnunet_nas.methods import METHODS

# What the limits of add_width are of: its options for a number and for another configuration's.
_LIMITS = {
    "MiB of training memory": ("-memory_limit_mib", "-as"),
    "multiply-accumulates": ("-macs", "-as_macs"),
}
# Those of select_tiny that are not its default; other widths were named, not selected.
_RULES = ("paper", "spread")
_UNTOLD = "derive it again"


@dataclass(frozen=True)
class Made:
    """A derived configuration.

    Attributes:
        name: of the configuration.
        base: that it was derived from.
        record: its provenance, as the plans hold it.
        dataset: number of the data set, or what stands for it.
        plans: identifier of the plans that it stands in.
    """

    name: str
    base: str
    record: dict[str, Any]
    dataset: int | str
    plans: str

    @property
    def settings(self) -> dict[str, Any]:
        """Of its record."""
        found = self.record.get("settings")
        return found if isinstance(found, dict) else {}

    def command(self, command: str, *words: str) -> str:
        """One of our commands, on the base, which replaces the configuration."""
        return commands.ours(command, self.dataset, self.base, *words, "--overwrite", plans=self.plans)


def renewal(made: Made) -> str:
    """What makes a configuration again, in words that end with the command where its record tells which."""
    method = METHODS.get(str(made.record.get("method")))
    if method is None:
        return _UNTOLD
    if "random_like" in made.record:
        return _by(_add_random(made))
    if "transferred_from" in made.record:
        return _by(_transfer(made))
    if method.searches and "code" not in made.settings:
        return _search(made, str(method.trainer_name))
    known = _COMMANDS.get(method.name)
    return _UNTOLD if known is None else _by(known(made))


def _by(command: str | None) -> str:
    return _UNTOLD if command is None else f"make it again with {command}"


def _search(made: Made, trainer: str) -> str:
    """Searches neither replace a configuration nor an earlier search."""
    fold, folder = made.record.get("fold"), made.record.get("search_folder")
    searched_on = fold if isinstance(fold, int) or fold == "all" else 0
    command = commands.train(made.dataset, made.base, searched_on, plans=made.plans, trainer=trainer)
    where = f" ({folder})" if isinstance(folder, str) else ""
    return f"remove it from the plans, move its search{where} away, and search again with {command}"


def _add_random(made: Made) -> str | None:
    """It is drawn beside a result, which is derived from the same base and is to be made again first."""
    found, seeds = made.record["random_like"], made.record.get("seeds")
    if not isinstance(found, str) or not isinstance(seeds, list) or len(seeds) != 1:
        return None
    return replace(made, base=found).command("add_random", "-seed", str(seeds[0]))


def _transfer(made: Made) -> str | None:
    source = made.record["transferred_from"]
    given = source if isinstance(source, dict) else {}
    dataset, plans, name = (given.get(key) for key in ("dataset", "plans", "configuration"))
    if not isinstance(dataset, str) or not isinstance(plans, str) or not isinstance(name, str):
        return None
    chosen = [] if plans == commands.DEFAULT_PLANS else ["-from_plans", plans]
    return made.command("transfer", "-from", f"{dataset}:{name}", *chosen)


def _import_dints(made: Made) -> str | None:
    code, first_level = made.settings.get("code"), made.settings.get("first_level")
    if not isinstance(code, str) or not made.name.startswith(made.base):
        return None
    level = [] if first_level is None else ["-first_level", str(first_level)]
    return made.command("import_dints", "-code", code, "-name", made.name[len(made.base) :], *level)


def _add_skip(made: Made) -> str | None:
    module = made.settings.get("skip_module")
    return made.command("add_skip", "-m", module) if isinstance(module, str) else None


def _add_encoder(made: Made) -> str | None:
    encoder, weights = made.settings.get("encoder"), made.settings.get("weights")
    if not isinstance(encoder, str):
        return None
    return made.command("add_encoder", "-m", encoder, *([] if weights is None else ["-weights", str(weights)]))


def _add_width(made: Made) -> str | None:
    settings = made.settings
    if "limit" not in settings:
        return made.command("add_width", "-width", str(settings["width"])) if "width" in settings else None
    options = _LIMITS.get(str(settings.get("unit")))
    if options is None:
        return None
    number, other = options
    if "as" in settings:
        return made.command("add_width", other, str(settings["as"]))
    return made.command(
        "add_width", number, _plain(settings["limit"]), *([] if "multiple_of" in settings else ["--exact"])
    )


def _plain(number: Any) -> str:
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def _select_tiny(made: Made) -> str:
    rule, metric = made.settings.get("rule"), made.settings.get("metric")
    if rule not in _RULES:
        return made.command("select_tiny")
    metrics = [] if metric in (None, "jacobian") else ["-metric", str(metric)]
    return made.command("select_tiny", "-rule", rule, *metrics)


_COMMANDS: dict[str, Callable[[Made], str | None]] = {
    "dints": _import_dints,
    "encoder": _add_encoder,
    "skip": _add_skip,
    "width": _add_width,
    "xtiny": _select_tiny,
}
