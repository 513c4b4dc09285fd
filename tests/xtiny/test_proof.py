"""The order of testing and the error that it keeps, by hand and by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nnunet_nas.evaluation.equivalence import ALPHA, Equivalence, equivalence, equivalence_power
from nnunet_nas.xtiny.proof import (
    NARROW,
    ORDERS,
    WIDE,
    claimed,
    corrected,
    finished,
    how_tested,
    in_order,
    independence,
    largest_deviation,
    passes,
    planned_tests,
    smallest,
)

MARGIN, CASES, SIMULATIONS = 0.01, 20, 20000
# Three standard errors of a simulated share of 5 %.
ERROR_OF_THE_SHARE = 3 * math.sqrt(ALPHA * (1 - ALPHA) / SIMULATIONS)


def passed_of(text):
    return [letter == "+" for letter in text]


# Words: results in the order of testing, + passes.
@pytest.mark.parametrize(
    ("order", "passed", "claims"),
    [
        (WIDE, "+++", "+++"),
        (WIDE, "++-", "++-"),
        (WIDE, "+-+", "+--"),
        (WIDE, "-++", "---"),
        (NARROW, "+++", "+--"),
        (NARROW, "-++", "-+-"),
        (NARROW, "--+", "--+"),
        (NARROW, "---", "---"),
    ],
)
def test_what_is_claimed(order, passed, claims):
    assert claimed(np.array(passed_of(passed)), order).tolist() == passed_of(claims)
    both = np.array([passed_of(passed), passed_of("---")])
    assert claimed(both, order).tolist() == [passed_of(claims), passed_of("---")]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("passed", list(itertools.product([True, False], repeat=3)))
def test_stopping_early_claims_what_all_results_would_claim(order, passed):
    caps, tested = in_order([4, 16, 8], order), []
    while not finished(tested, order, 3):
        tested.append(passed[len(tested)])
    everything = [cap for cap, claim in zip(caps, claimed(np.array(passed), order), strict=True) if claim]
    assert smallest(caps, tested, order) == min(everything, default=None)


def test_the_order_and_the_number_of_tests_that_share_the_level():
    assert in_order([4, 16, 8], WIDE) == [16, 8, 4]
    assert in_order([4, 16, 8], NARROW) == [4, 8, 16]
    assert planned_tests(WIDE, 3) == 1
    assert planned_tests(NARROW, 3) == 3


def simulated(random, means, *, correlation=0.0, deviation=0.01, tests=1, cases=CASES):
    """Whether each width passes two one-sided t-tests, (simulations, widths)."""
    shape = (SIMULATIONS, len(means), cases)
    shared = random.standard_normal((SIMULATIONS, 1, cases))
    noise = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * random.standard_normal(shape)
    gains = np.array(means)[:, None] + deviation * noise
    error = gains.std(axis=2, ddof=1) / math.sqrt(cases)
    mean = gains.mean(axis=2)
    worst = np.maximum(stats.t.sf((mean + MARGIN) / error, cases - 1), stats.t.sf((MARGIN - mean) / error, cases - 1))
    return worst < ALPHA / tests


def share_of_false_claims(passed, means, order):
    wrong = np.abs(means) >= MARGIN
    return (claimed(passed, order) & wrong).any(axis=1).mean()


# In the order of testing: the worst cases have a width that is not equivalent by nothing, after widths that all pass.
TRUTHS = [
    [-MARGIN],
    [0.0, -MARGIN, -MARGIN],
    [-MARGIN, -MARGIN, -MARGIN, -MARGIN],
    [-MARGIN, 0.0, MARGIN, -MARGIN],
    [-MARGIN] * 8,
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("means", TRUTHS, ids=len)
def test_the_family_wise_error_is_below_alpha(order, correlation, means):
    tests = planned_tests(order, len(means))
    passed = simulated(np.random.default_rng(0), means, correlation=correlation, tests=tests)
    assert share_of_false_claims(passed, np.array(means), order) < ALPHA + ERROR_OF_THE_SHARE


def test_both_orders_use_their_alpha_up_and_the_narrow_one_needs_its_correction():
    random, means = np.random.default_rng(1), np.array([-MARGIN] * 4)
    after_good_ones = np.array([0.0, 0.0, -MARGIN])
    wide = share_of_false_claims(simulated(random, after_good_ones, deviation=0.005), after_good_ones, WIDE)
    narrow = share_of_false_claims(simulated(random, means, tests=4), means, NARROW)
    uncorrected = share_of_false_claims(simulated(random, means), means, NARROW)
    assert ALPHA - 0.01 < wide < ALPHA + ERROR_OF_THE_SHARE
    assert ALPHA - 0.01 < narrow < ALPHA + ERROR_OF_THE_SHARE
    assert uncorrected == pytest.approx(1 - (1 - ALPHA) ** 4, abs=0.01)


def test_power_of_both_orders():
    """Three widths of which the narrowest is 0.03 worse: how often the middle one is found, the right answer."""
    random, deviation = np.random.default_rng(2), 0.014
    truth = {4: -0.03, 8: 0.0, 16: 0.0}
    found = {}
    for order in ORDERS:
        caps = in_order(list(truth), order)
        passed = simulated(random, [truth[cap] for cap in caps], deviation=deviation, tests=planned_tests(order, 3))
        claims = claimed(passed, order)
        found[order] = (claims[:, caps.index(8)] & ~claims[:, caps.index(4)]).mean()
    # The wide order passes two tests at 5 %, the narrow one a single test at 5 % / 3.
    single = equivalence_power(CASES, deviation, MARGIN)
    assert found[WIDE] == pytest.approx(single**2, abs=0.015)
    assert found[NARROW] == pytest.approx(equivalence_power(CASES, deviation, MARGIN, alpha=ALPHA / 3), abs=0.015)
    assert 0.6 < found[NARROW] < found[WIDE] < single


@pytest.mark.parametrize("tests", [1, 4])
@pytest.mark.parametrize("cases", [6, CASES, 40])
def test_the_deviation_that_is_told_beforehand_gives_the_power(cases, tests):
    deviation = largest_deviation(cases, MARGIN, tests)
    passed = simulated(np.random.default_rng(3), [0.0], deviation=deviation, tests=tests, cases=cases)
    assert passed.mean() == pytest.approx(0.8, abs=0.015)


def test_more_cases_allow_more_spread_and_more_tests_less():
    assert largest_deviation(80, MARGIN, 1) > largest_deviation(20, MARGIN, 1) > largest_deviation(20, MARGIN, 3)


def of(p_not_worse, p_not_better, low=-0.005, high=0.005, **more):
    return Equivalence(MARGIN, p_not_worse, p_not_better, low, high, **more)


def test_a_width_is_tested_at_its_share_of_alpha():
    found = of(0.02, 0.001)
    assert passes(corrected(found, 1), "equivalent")
    assert passes(corrected(found, 2), "equivalent")
    assert not passes(corrected(found, 3), "equivalent")
    assert corrected(found, 3).p_holm == pytest.approx(0.06)
    assert not passes(corrected(found, 3), "not_worse")


def test_the_bootstrap_has_a_say_and_a_withheld_verdict_is_none():
    assert not passes(of(0.001, 0.001, low=-0.02), "equivalent")
    assert not passes(of(0.001, 0.001, withheld="it hallucinates"), "equivalent")
    assert not passes(of(0.001, 0.001, withheld="it hallucinates"), "not_worse")


def test_a_better_width_is_not_worse_and_not_equivalent():
    better = equivalence(np.linspace(0.02, 0.03, 10), MARGIN)
    assert passes(better, "not_worse")
    assert not passes(better, "equivalent")


@pytest.mark.parametrize(
    ("case", "known", "word"),
    [
        ({"hold_out": True, "folds": ["0"], "raced_on": "0", "named": False}, True, "hold-out"),
        ({"hold_out": False, "folds": ["0"], "raced_on": "0", "named": False}, False, "judged on the same cases"),
        ({"hold_out": False, "folds": ["1", "0"], "raced_on": "0", "named": True}, False, "judged on the same cases"),
        ({"hold_out": False, "folds": ["1"], "raced_on": "0", "named": False}, True, "fold 0, judged on"),
        ({"hold_out": False, "folds": ["0"], "raced_on": None, "named": False}, True, "without labels"),
        ({"hold_out": False, "folds": ["0"], "raced_on": None, "named": True}, None, "if results"),
    ],
)
def test_who_selects_and_who_judges(case, known, word):
    found = independence(**case)
    assert found.known is known
    assert word in found.sentence


@pytest.mark.parametrize(("order", "words"), [(WIDE, "each at 5 %, up"), (NARROW, "each at 5 % / 3, up")])
def test_the_report_states_order_and_error(order, words):
    assert words in how_tested(order, 3)
    assert "any false claim is at most 5 %" in how_tested(order, 3)
    assert how_tested(order, 1) == "One width was planned and tested at 5 %."
