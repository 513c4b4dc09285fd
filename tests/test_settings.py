"""Settings of the searches: defaults, overrides in plans, words of a command line, and what is refused."""

import json
import tempfile
import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.methods import settings_class, with_settings
from nnunet_nas.plans import Plans
from nnunet_nas.settings import (
    checked_values,
    parse_assignments,
    read_settings,
    setting,
    settings_table,
)


@dataclass(frozen=True)
class Example:
    """One field of each type that settings have."""

    method: ClassVar[str] = "iac"

    epochs: int = setting(200, "paper", "epochs", minimum=1)
    rate: float = setting(0.01, "paper", "rate", minimum=0)
    augment: bool = setting(True, "our choice", "augment")
    trainer: str | None = setting(None, "our choice", "trainer")
    norm: Literal["instance", "batch"] = setting("instance", "predecessor", "norm")
    widths: tuple[int, ...] | None = setting(None, "our choice", "widths", minimum=1)


def configuration(**values):
    return {"nas_settings": {"iac": values}}


def test_without_overrides_the_defaults_hold():
    assert read_settings(Example, {}) == Example()
    assert read_settings(Example, {"nas_settings": {"iac_lth": {"gamma": 2}}}) == Example()


def test_overrides_are_read_and_converted():
    found = read_settings(Example, configuration(epochs=3, rate=1, widths=[8, 16], trainer="nnUNetTrainer"))
    assert found == Example(epochs=3, rate=1.0, widths=(8, 16), trainer="nnUNetTrainer")
    assert type(found.rate) is float


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("epochs", 2.0, "an integer of at least 1"),
        ("epochs", True, "an integer"),
        ("epochs", 0, "of at least 1"),
        ("epochs", None, "an integer"),
        ("rate", "0.1", "a number of at least 0"),
        ("rate", float("nan"), "a number"),
        ("rate", float("inf"), "a number"),
        ("rate", -0.1, "of at least 0"),
        ("rate", 10**400, "a number"),
        ("rate", False, "a number"),
        ("norm", None, "one of instance, batch"),
        ("trainer", False, "text or none"),
        ("widths", 8, "a list"),
        ("augment", 1, "true or false"),
        ("trainer", 3, "text or none"),
        ("norm", "group", "one of instance, batch"),
        ("widths", [], "a list (comma-separated) of an integer or none"),
        ("widths", [8, 0], "of at least 1"),
        ("widths", [8, "9"], "an integer"),
    ],
)
def test_values_that_a_key_does_not_allow_are_named(key, value, said):
    with pytest.raises(DataProblem, match=f"iac.{key} must be") as problem:
        read_settings(Example, configuration(**{key: value}))
    assert said in str(problem.value)
    assert repr(value) in str(problem.value)
    assert f"nnunet_nas set_search ... -m iac {key}=VALUE, or {key}=default" in str(problem.value)
    assert "\n" not in str(problem.value)


def test_an_unknown_key_lists_the_known_ones_and_the_nearest():
    with pytest.raises(DataProblem, match="did you mean epochs") as problem:
        read_settings(Example, configuration(epoch=3))
    assert "epochs, rate, augment, trainer, norm, widths" in str(problem.value)
    assert "nnunet_nas set_search ... -m iac epoch=default" in str(problem.value)
    with pytest.raises(DataProblem, match="unknown setting 'zzz' of iac; known: epochs, "):
        read_settings(Example, configuration(zzz=3))


@pytest.mark.parametrize("content", [[], {"iak": {}}, {"iac": 3}])
def test_settings_of_another_shape_are_refused(content):
    with pytest.raises(DataProblem, match="nas_settings"):
        read_settings(Example, {"nas_settings": content})


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(DataProblem, match="unknown method 'iak'; known: iac, iac_lth, iac_retrofit"):
        read_settings(Example, {"nas_settings": {"iak": {}}})


def test_words_of_a_command_line():
    words = ["epochs=5", "rate=1e-10", "augment=False", "trainer=none", "norm=batch", "widths=8,16"]
    values, removed = parse_assignments(Example, words)
    assert values == {
        "epochs": 5, "rate": 1e-10, "augment": False, "trainer": None, "norm": "batch", "widths": (8, 16)
    }  # fmt: skip
    assert removed == []
    assert parse_assignments(Example, ["epochs=default"]) == ({}, ["epochs"])


@pytest.mark.parametrize("word", ["epochs", "epoch=3", "epochs=3.5", "epoch=default", "augment=yes", "rate=nan"])
def test_words_that_mean_nothing_are_usage_errors(word):
    with pytest.raises(UsageError) as problem:
        parse_assignments(Example, [word])
    # The mend is to write the word differently, not another call of the command that is being called.
    assert "set_search" not in str(problem.value)


@pytest.mark.parametrize("words", [["epochs=3", "epochs=4"], ["epochs=default", "epochs=4"]])
def test_a_key_that_is_given_twice_is_refused_and_not_guessed(words):
    with pytest.raises(UsageError, match="epochs=4: epochs is given twice"):
        parse_assignments(Example, words)


def test_what_is_no_setting_can_be_taken_back_where_it_stands_in_the_plans():
    assert parse_assignments(Example, ["epoch=default"], standing={"epoch": 3}) == ({}, ["epoch"])
    with pytest.raises(UsageError, match="did you mean epochs"):
        parse_assignments(Example, ["epoch=4"], standing={"epoch": 3})


@given(
    st.fixed_dictionaries(
        {
            "epochs": st.integers(1, 10**6),
            "rate": st.floats(0, 1e6),
            "augment": st.booleans(),
            "norm": st.sampled_from(["instance", "batch"]),
            "widths": st.lists(st.integers(1, 512), min_size=1, max_size=5).map(tuple),
        }
    )
)
def test_what_is_written_as_words_is_read_back(values):
    words = [f"{key}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in values.items()]
    assert parse_assignments(Example, words) == (values, [])
    assert checked_values(Example, values) == values


def allowed(kind, minimum, maximum=None, *, part_of_name=False):
    """Values that a field of this type may have."""
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return st.sampled_from(options)
    if type(None) in options:
        return st.none() | allowed(options[0], minimum, maximum)
    if typing.get_origin(kind) is tuple:
        return st.lists(allowed(options[0], minimum, maximum), min_size=1, max_size=4).map(tuple)
    if kind is float:
        return st.floats(minimum, 1e300 if maximum is None else maximum)
    texts = st.from_regex(r"([_.-]?[A-Za-z0-9]){0,3}", fullmatch=True) if part_of_name else st.text(max_size=5)
    return {int: st.integers(minimum or 0, maximum or 10**9), bool: st.booleans(), str: texts}[kind]


def any_overrides(cls):
    kinds = typing.get_type_hints(cls)
    keys = ("minimum", "maximum", "part_of_name")
    limits = {item.name: {key: item.metadata[key] for key in keys} for item in fields(cls)}
    optional = {name: allowed(kinds[name], **given) for name, given in limits.items()}
    return st.fixed_dictionaries({}, optional=optional)


@pytest.mark.parametrize("cls", [Example, *map(settings_class, with_settings())])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_what_is_written_to_plans_is_read_back(cls, data):
    values = data.draw(any_overrides(cls))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.json"
        path.write_text(json.dumps({"plans_name": "p", "configurations": {"2d": {}}}))
        with Plans.edited(path) as plans:
            plans.set("2d", cls.method, values)
        found = read_settings(cls, Plans.read(path).resolve("2d"))
    assert found == cls(**values)
    assert all(type(getattr(found, key)) is type(value) for key, value in values.items())


NAMES = {"": True, "_b": True, "-x.2_y": True, "/../../esc": False, "__x": False, "x_": False, "a b": False, "é": False}


@pytest.mark.parametrize("method", ["iac", "iac_lth", "dints"])
@pytest.mark.parametrize(("suffix", "allowed_there"), NAMES.items())
def test_a_suffix_stays_part_of_a_name(method, suffix, allowed_there):
    configuration = {"nas_settings": {method: {"suffix": suffix}}}
    if allowed_there:
        assert read_settings(settings_class(method), configuration).suffix == suffix
    else:
        with pytest.raises(DataProblem, match="suffix becomes part of a name"):
            read_settings(settings_class(method), configuration)


@pytest.mark.parametrize("method", with_settings())
def test_a_seed_is_one_that_numpy_takes(method):
    cls = settings_class(method)
    assert read_settings(cls, {"nas_settings": {method: {"seed": 2**32 - 1}}}).seed == 2**32 - 1
    np.random.RandomState(2**32 - 1)
    for seed in (2**32, 10**20):
        with pytest.raises(DataProblem, match=r"seed must be an integer of at least 0"):
            read_settings(cls, {"nas_settings": {method: {"seed": seed}}})


def test_a_value_above_the_largest_is_refused():
    with pytest.raises(DataProblem, match="iac.eta_min must be a number of at least 0 and at most 1, not 5"):
        read_settings(settings_class("iac"), {"nas_settings": {"iac": {"eta_min": 5}}})


def test_the_table_says_where_values_come_from():
    rows = {row["key"]: row for row in settings_table(Example, configuration(epochs=3), "2d")}
    assert (rows["epochs"]["value"], rows["epochs"]["default"], rows["epochs"]["origin"]) == (3, 200, "2d")
    assert (rows["rate"]["origin"], rows["rate"]["source"]) == ("default", "paper")


@pytest.mark.parametrize("method", with_settings())
def test_every_method_has_settings_whose_defaults_are_allowed(method):
    cls = settings_class(method)
    assert cls.method == method
    defaults = {row["key"]: row["default"] for row in settings_table(cls, {}, "2d")}
    assert checked_values(cls, defaults) == defaults


@pytest.mark.parametrize(
    ("method", "key", "default", "source", "said"),
    [
        ("iac_retrofit", "initial_lr", None, "our choice", "The paper (6.3): Adam, 0.001"),
        ("iac_retrofit", "num_epochs", 100, "our choice", "the paper: 200"),
        ("iac_lth", "num_epochs", 100, "our choice", "the paper: 200"),
        ("iac", "num_epochs", 200, "paper", "epochs"),
        ("iac_lth", "norm", "backbone", "our choice", "the paper does not say"),
        ("iac_lth", "partial_channels", 4, "predecessor", "PC-DARTS"),
        ("iac_lth", "minimum_width", 4, "our choice", "least channels"),
        ("iac_lth", "backbone_checkpoint", "checkpoint_final.pth", "our choice", "the paper takes the best (6.3)"),
        ("iac_lth", "stability", "evidence", "our choice", "slopes of the loss"),
        ("iac_lth", "eta_min", 0.0, "our choice", "share of the initial"),
        ("dints", "sigma", None, "our choice", "the paper's: 0.8"),
        ("dints", "maximum_memory", "code", "our choice", "that of MONAI"),
        ("dints", "losses", "exact", "our choice", "Eqs. 5, 7 and 10"),
        ("dints", "architecture_lr", 0.008, "paper", "Adam"),
    ],
)
def test_sources_say_whose_a_default_is(method, key, default, source, said):
    row = next(row for row in settings_table(settings_class(method), {}, "2d") if row["key"] == key)
    assert (row["default"], row["source"]) == (default, source)
    assert said in row["help"]


def test_the_papers_values_are_the_defaults_but_for_what_they_cost():
    lth = settings_class("iac_lth")()
    assert (lth.num_epochs, lth.warmup_epochs, lth.partial_channels) == (100, 15, 4)
    assert (settings_class("iac")().num_epochs, settings_class("iac_retrofit")().num_epochs) == (200, 100)
    assert (lth.weights_lr, lth.architecture_lr) == (0.01, 0.001)
