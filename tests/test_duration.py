"""How long a search takes, by hand."""

import pytest

from nnunet_nas.duration import Pace, in_words, seconds_to_go
from nnunet_nas.search_cost import Phase

# 20 iterations of warm-up, 30 that cost twice as much, 5 of a trial at half.
PHASES = [Phase(20, 100), Phase(30, 200), Phase(5, 50)]


@pytest.mark.parametrize(
    ("done", "left"),
    [
        # 3 s per iteration at present: 9 of warm-up, 30 of 6 s, 5 of 1.5 s.
        (11, 9 * 3 + 30 * 6 + 5 * 1.5),
        (20, 30 * 6 + 5 * 1.5),
        # In the search itself: 19 of 3 s, 5 of 0.75 s.
        (31, 19 * 3 + 5 * 0.75),
        (50, 5 * 0.75),
        (55, 0),
    ],
)
def test_what_is_left_costs_time_as_it_costs_operations(done, left):
    assert seconds_to_go(3.0, PHASES, done) == pytest.approx(left)


def test_a_search_without_warm_up_begins_in_its_second_phase():
    assert seconds_to_go(2.0, [Phase(0, 100), Phase(10, 200)], 1) == 18


def test_the_first_iteration_is_not_timed():
    times = iter([100.0, 130.0])
    pace = Pace(250, lambda: next(times))
    assert [pace.iterated() for _ in range(12)] == [None] * 10 + [3.0, None]


def test_short_epochs_are_timed_by_what_they_have():
    times = iter([0.0, 8.0])
    assert [Pace(5, lambda: next(times)).timed, Pace(1, lambda: 0.0).timed] == [4, 0]
    pace = Pace(5, lambda: next(times))
    assert [pace.iterated() for _ in range(5)] == [None] * 4 + [2.0]
    lone = Pace(1, lambda: 0.0)
    assert lone.iterated() is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0 seconds"),
        (3.14, "3.1 seconds"),
        (90, "90 seconds"),
        (150, "2.5 minutes"),
        (9000, "2.5 hours"),
        (16 * 86400, "16 days"),
    ],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
