"""A race of widths on learning curves whose end is known."""

import numpy as np
import pytest

from nnunet_nas.xtiny.race import (
    EQUAL,
    OPEN,
    WORSE,
    Curve,
    Law,
    Outcome,
    Rules,
    Train,
    checkpoints,
    judge,
    looks,
    next_move,
    off_the_ground,
    pairs_of,
)

CASES = 60
WIDTHS = 7
COSTS = [4.0**-position for position in range(WIDTHS)]


def test_measurements_are_half_octaves_and_the_horizon():
    assert checkpoints(200) == [32, 45, 64, 91, 128, 181, 200]
    assert checkpoints(20) == [20]
    assert looks(1000) == [128, 256, 512, 1000]
    assert looks(20) == [20]


def test_each_width_meets_the_one_four_times_as_wide_or_the_base():
    assert pairs_of(5) == [(4, 2), (3, 1), (2, 0), (1, 0)]


def test_the_part_of_a_curve_before_anything_is_learnt_is_left_out():
    assert off_the_ground(np.array([1, 1, 0.9, 0.4, 0.3])).tolist() == [False, False, False, True, True]
    assert not off_the_ground(np.ones(4)).any()
    assert not off_the_ground(np.zeros(0)).any()


def test_a_law_without_scatter_is_found_and_continued():
    iterations = np.array(checkpoints(2048), dtype=float)
    exponent = 0.5
    errors = np.stack([0.12 + 2 * iterations**-exponent, 0.10 + 3 * iterations**-exponent])
    law = Law.fitted(np.ones(len(iterations), dtype=bool), iterations, errors)
    assert law.exponents[0] == pytest.approx(exponent, rel=0.04)
    narrow, wide = errors @ law.weights(250_000)[0]
    assert narrow - wide == pytest.approx(0.02 - 250_000**-exponent, abs=2e-3)


def curve(ends, speed, until, exponent=0.5, cases=CASES):
    """1 - a - b * iterations^-c in every case, without any scatter."""
    iterations = np.array([step for step in checkpoints(250_000) if step <= until])
    dice = np.array([np.full(cases, ends - speed * step**-exponent) for step in iterations])
    return Curve(iterations, dice)


def test_a_wide_network_that_is_level_now_and_better_later_is_seen():
    """At 2048 iterations both have 0.846; at 250 000 the wide one is 0.02 ahead."""
    slow = 2 + 0.02 * 2048**0.5
    narrow, wide = curve(0.89, 2, 2048), curve(0.91, slow, 2048)
    assert narrow.dice[-1, 0] == pytest.approx(wide.dice[-1, 0])
    found = judge(narrow, wide, (2, 0), Rules(), level=0.1)
    assert found.verdict == WORSE
    assert found.expected == pytest.approx(0.02, abs=0.005)


def test_a_difference_counts_as_it_was_measured_even_if_the_law_says_that_it_will_go_away():
    found = judge(curve(0.9, 1.5, 1024), curve(0.9, 1.0, 1024), (2, 0), Rules(), level=0.1)
    assert found.measured == pytest.approx(0.5 * 1024**-0.5)
    assert found.expected == pytest.approx(0, abs=0.005)
    assert found.verdict == OPEN


def test_a_network_that_starts_late_is_given_time_and_one_that_never_starts_is_given_up():
    steps = np.array(checkpoints(250_000)[:9])
    started = Curve(steps, np.repeat(np.linspace(0.5, 0.8, 9)[:, None], CASES, axis=1))
    late = Curve(steps, np.repeat(np.where(steps > 100, 0.6 * (1 - 64 / steps), 0.0)[:, None], CASES, axis=1))
    never = Curve(steps, np.zeros((9, CASES)))
    verdicts = [
        [judge(narrow.until(look), started.until(look), (2, 0), Rules(), level=0.1).verdict for look in (128, 256)]
        for narrow in (late, never)
    ]
    assert verdicts == [[OPEN, OPEN], [OPEN, WORSE]]


def test_networks_that_learn_nothing_are_trained_longer():
    nothing = Curve(np.array(checkpoints(250_000)[:9]), np.zeros((9, CASES)))
    assert judge(nothing, nothing, (2, 0), Rules(), level=0.1).verdict == OPEN


def test_networks_that_have_learnt_nothing_by_the_end_are_not_taken():
    steps = np.array(checkpoints(256))
    nothing = Curve(steps, np.zeros((len(steps), CASES)))
    found = judge(nothing, nothing, (2, 0), Rules(horizon=256), level=0.1)
    assert (found.measured, found.high, found.verdict) == (0, 0, OPEN)
    curves = dict.fromkeys(range(WIDTHS), nothing)
    assert next_move(curves, COSTS, Rules(horizon=256)).position == 0


def test_at_the_horizon_nothing_is_extrapolated():
    rng = np.random.default_rng(0)
    shared = rng.normal(0.8, 0.05, CASES)
    steps = np.array(checkpoints(256))
    narrow = Curve(steps, shared * np.linspace(0.5, 1, len(steps))[:, None])
    found = judge(narrow, Curve(steps, narrow.dice + 0.004), (2, 0), Rules(horizon=256), level=0.1)
    assert (found.verdict, found.iterations) == (EQUAL, 256)
    assert found.expected == found.measured == pytest.approx(0.004)
    found = judge(narrow, Curve(steps, narrow.dice + 0.014), (2, 0), Rules(horizon=256), level=0.1)
    assert found.verdict == WORSE


def test_a_single_case_decides_nothing():
    steps = np.array(checkpoints(128))
    flat = Curve(steps, np.full((len(steps), 1), 0.8))
    assert judge(flat, flat, (1, 0), Rules(horizon=128), level=0.1).verdict == OPEN


def test_a_race_begins_with_the_narrowest_pair_and_the_narrower_of_it():
    assert next_move({}, COSTS, Rules()) == Train(6, 128)
    assert next_move({6: curve(0.9, 1, 128)}, COSTS, Rules()) == Train(4, 128)


def test_a_race_that_may_cost_nothing_takes_the_base():
    outcome = next_move({}, COSTS, Rules(budget=0))
    assert (outcome.position, outcome.spent) == (0, 0)
    assert {comparison.verdict for comparison in outcome.comparisons} == {OPEN}


def run(ends, rng, rules, *, scatter=0.002, single=0.01):
    """A whole race. Cases differ, and each width by itself in each; mean curves scatter from point to point."""
    cases = rng.normal(0, 0.05, CASES) + rng.normal(0, single, (len(ends), CASES))
    curves = {}
    while not isinstance(move := next_move(curves, COSTS, rules), Outcome):
        known = curves.get(move.position, Curve(np.zeros(0, dtype=int), np.zeros((0, CASES))))
        steps = [step for step in checkpoints(rules.horizon) if known.length < step <= move.iterations]
        means = ends[move.position] - np.array(steps) ** -0.5 + rng.normal(0, scatter, len(steps))
        dice = means[:, None] + cases[move.position]
        curves[move.position] = Curve(np.append(known.iterations, steps), np.concatenate([known.dice, dice]))
    assert move.spent <= rules.budget
    return move.position


def picks(ends, horizon, races, budget=20_000):
    rules = Rules(horizon=horizon, budget=budget, resamples=60)
    found = [run(ends, np.random.default_rng((7, seed)), rules) for seed in range(races)]
    return np.bincount(found, minlength=WIDTHS)


@pytest.mark.parametrize("horizon", [4096, 250_000])
def test_where_all_widths_are_equal_the_narrowest_is_taken(horizon):
    """Not always: what is still open when the budget ends is not taken."""
    counts = picks([0.9] * WIDTHS, horizon, races=20)
    assert counts[6] >= 10
    assert counts[5] + counts[6] >= 16


@pytest.mark.integration
@pytest.mark.parametrize("horizon", [4096, 250_000])
def test_widths_that_are_worse_by_more_than_the_margin_are_hardly_ever_taken(horizon):
    """0.0105 where 0.01 is allowed, and alpha is 0.1: of 40 races 4, and two standard deviations more."""
    ends = [0.9, 0.9, 0.9, 0.9, 0.9, 0.8895, 0.8895]
    counts = picks(ends, horizon, races=40)
    assert counts[5] + counts[6] <= 8
    assert counts[:5].sum() >= 32


def test_where_every_width_is_needed_the_base_stays():
    assert picks([0.9 - 0.02 * position for position in range(WIDTHS)], 250_000, races=10)[0] == 10


def test_a_race_that_was_interrupted_goes_on_alike():
    """What it does next depends on what was measured alone: once more from the curves on the disk."""
    curves = {6: curve(0.9, 1, 256), 4: curve(0.9, 1.2, 128)}
    again = {position: Curve(known.iterations.copy(), known.dice.copy()) for position, known in curves.items()}
    assert next_move(curves, COSTS, Rules()) == next_move(again, COSTS, Rules()) == Train(4, 256)
