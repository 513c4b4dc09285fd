"""Decisions and what is said about them."""

import numpy as np
import pytest

from nnunet_nas.errors import BudgetProblem, UsageError
from nnunet_nas.xtiny.decision import _factor, decide, explain

CAPS = [64, 32, 16, 8, 4, 2, 1]
FEATURES = [[min(cap, 32), cap] for cap in CAPS]
COSTS = [{"parameters": float(cap * cap)} for cap in CAPS]
LATE = np.array([[1, 1, 1, 1, 1, 1, 2.0]])  # the paper's rule selects position 3, cap 8


def test_one_seed_is_said_to_show_no_stability():
    decision = decide(LATE, FEATURES, COSTS)
    assert decision.position == decision.chosen == 3
    assert decision.shares == {}
    assert decision.spread is None
    assert explain(decision, CAPS)[0].startswith("One seed cannot show how stable this is")


def test_the_narrowest_selectable_width_is_named_as_a_limit_of_the_rule():
    assert any("limit of the rule" in line for line in explain(decide(LATE, FEATURES, COSTS), CAPS))


def test_widths_that_cannot_win_are_named():
    sentence = next(line for line in explain(decide(LATE, FEATURES, COSTS), CAPS) if "never" in line)
    assert sentence == "The paper's rule can select caps 32 to 8 only, never 64, 4, 2, 1."


def test_agreeing_seeds_are_stable():
    lines = explain(decide(np.repeat(LATE, 3, axis=0), FEATURES, COSTS), CAPS)
    assert lines[0] == "Each of 3 seeds alone would select cap 8: 3."
    assert lines[1].endswith("in 100% of resamplings of the seeds: stable.")


def test_disagreeing_seeds_are_unstable():
    early = [1, 1, 2, 1, 2, 1, 2.0]
    lines = explain(decide(np.array([LATE[0], early]), FEATURES, COSTS), CAPS)
    assert lines[0] == "Each of 2 seeds alone would select cap 32: 1, cap 8: 1."
    assert lines[1].endswith(": unstable.")


def noisy(seeds=20):
    spread = np.sqrt(0.01 + 1.5 * np.array([np.mean(1 / np.array(stages)) for stages in FEATURES]))
    return np.exp(np.random.default_rng(0).normal(0, spread, (seeds, len(CAPS))))


def test_five_seeds_show_the_spread_and_what_chance_would_select():
    lines = explain(decide(noisy(), FEATURES, COSTS), CAPS)
    assert any(line.startswith("95 % of random initialisations") and "64: x" in line for line in lines)
    assert any(line.startswith("On curves of such noise alone") for line in lines)


def test_the_spread_rule_decides_when_asked():
    decision = decide(noisy(), FEATURES, COSTS, rule="spread")
    assert decision.spread is not None
    stable = np.flatnonzero(decision.spread <= np.log(2) / 1.96)
    assert decision.chosen == stable.max()
    assert decision.rule == "spread"


def test_the_spread_rule_refuses_few_seeds():
    with pytest.raises(UsageError, match="at least 5 seeds"):
        decide(LATE, FEATURES, COSTS, rule="spread")


def test_a_factor_that_is_rejected_does_not_look_like_the_limit():
    """exp(1.96 * 0.3556) = 2.0077: too much, and to one digit the limit itself."""
    assert [_factor(spread) for spread in (0.2, 0.3536, 0.3556, 0.5)] == ["x1.5", "x2.0", "x2.01", "x2.7"]


def test_the_spread_rule_says_why():
    decision = decide(noisy(), FEATURES, COSTS, rule="spread")
    reason = next(line for line in explain(decision, CAPS) if "at most 2" in line)
    narrower = CAPS[decision.chosen + 1]
    assert reason.startswith(f"Cap {CAPS[decision.chosen]} is the narrowest whose factor is at most 2; that of cap")
    assert f"cap {narrower} is {_factor(decision.spread[decision.chosen + 1])}." in reason


def test_a_budget_narrows_the_choice_and_says_so():
    decision = decide(LATE, FEATURES, COSTS, budgets={"parameters": 20})
    assert (CAPS[decision.chosen], CAPS[decision.position]) == (8, 4)
    assert explain(decision, CAPS)[0] == "The rule chose cap 8; cap 4 is the widest in the budget."


def test_an_impossible_budget_is_an_error():
    with pytest.raises(BudgetProblem):
        decide(LATE, FEATURES, COSTS, budgets={"parameters": 0.5})
