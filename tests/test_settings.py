"""Settings of the searches: defaults, overrides in plans, words of a command line, and what is refused."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_nas.errors import DataProblem, UsageError
from nnunet_nas.settings import (
    METHODS,
    checked_values,
    parse_assignments,
    read_settings,
    setting,
    settings_class,
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
    settings = read_settings(Example, configuration(epochs=3, rate=1, widths=[8, 16], trainer="nnUNetTrainer"))
    assert settings == Example(epochs=3, rate=1.0, widths=(8, 16), trainer="nnUNetTrainer")
    assert type(settings.rate) is float


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
    assert "set_search" in str(problem.value)


def test_an_unknown_key_lists_the_known_ones_and_the_nearest():
    with pytest.raises(DataProblem, match="did you mean epochs") as problem:
        read_settings(Example, configuration(epoch=3))
    assert "epochs, rate, augment, trainer, norm, widths" in str(problem.value)


@pytest.mark.parametrize("content", [[], {"iak": {}}, {"iac": 3}])
def test_settings_of_another_shape_are_refused(content):
    with pytest.raises(DataProblem, match="nas_settings"):
        read_settings(Example, {"nas_settings": content})


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
    with pytest.raises(UsageError):
        parse_assignments(Example, [word])


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


def test_the_table_says_where_values_come_from():
    rows = {row.key: row for row in settings_table(Example, configuration(epochs=3), "2d")}
    assert (rows["epochs"].value, rows["epochs"].default, rows["epochs"].origin) == (3, 200, "2d")
    assert (rows["rate"].origin, rows["rate"].source) == ("default", "paper")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_settings_whose_defaults_are_allowed(method):
    cls = settings_class(method)
    assert cls.method == method
    defaults = {row.key: row.default for row in settings_table(cls, {}, "2d")}
    assert checked_values(cls, defaults) == defaults


def test_the_papers_values_are_the_defaults():
    lth = settings_class("iac_lth")()
    assert (lth.num_epochs, lth.warmup_epochs, lth.partial_channels) == (200, 15, 4)
    assert (lth.weights_lr, lth.architecture_lr) == (0.01, 0.001)
