"""More than one case per patient, more than one run per model, more than one model, and how many cases are enough."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from nnunet_nas.evaluation.equivalence import equivalence, equivalence_power, needed_cases, one_sided_tests
from nnunet_nas.evaluation.intervals import Runs, bootstrap_interval, by_patient
from nnunet_nas.evaluation.paired import compare, holm

# Patients


def test_a_patient_counts_once_whatever_its_cases():
    assert by_patient(np.array([[0.2, 0.4, 0.9]]), ["b", "b", "a"]).tolist() == [[0.9, pytest.approx(0.3)]]
    found = compare([0.5, 0.5, 0.5, 0.5], [0.6, 0.6, 0.6, 0.4], margin=0.01, patients=["x", "x", "x", "y"])
    alone = compare([0.5, 0.5], [0.6, 0.4], margin=0.01)
    assert (found.cases, found.patients, alone.patients) == (4, 2, None)
    assert found.difference == pytest.approx(0.0, abs=1e-12)
    assert (found.won, found.lost, found.p_value) == (1, 1, alone.p_value)
    assert found.interval.low == pytest.approx(alone.interval.low)
    assert found.deviation == pytest.approx(math.sqrt(0.02))


def test_patients_widen_the_interval_as_far_as_they_must():
    random, covered, by_case = np.random.default_rng(0), 0, 0
    patients = [f"p{patient}" for patient in range(20) for _ in range(4)]
    for run in range(200):
        differences = 0.01 + np.repeat(random.normal(0, 0.03, 20), 4) + random.normal(0, 0.01, 80)
        grouped = bootstrap_interval(by_patient(differences[None], patients)[0], resamples=499, seed=run)
        single = bootstrap_interval(differences, resamples=499, seed=run)
        covered += grouped.low <= 0.01 <= grouped.high
        by_case += single.low <= 0.01 <= single.high
    # 20 patients are few for a bootstrap: 93 % is what it gives. The 80 cases promise far too much.
    assert 0.88 <= covered / 200 <= 0.98
    assert by_case / 200 < 0.8


# Runs


def test_the_error_of_runs_and_cases_by_hand():
    models = Runs(np.array([[0.0, 0.0], [0.2, 0.2]]), np.array([[0.1, 0.3]]))
    assert models.difference == pytest.approx([0.0, 0.2])
    # Two cases with the variance 0.02, two runs with the variance 0.02, one degree of freedom each.
    error, degrees = models.error()
    assert error == pytest.approx(math.sqrt(0.01 + 0.01))
    assert degrees == pytest.approx(0.02**2 / (0.01**2 + 0.01**2))
    # Student's t with 2 degrees: P(T > t) = 1/2 - t / (2 sqrt(2 + t^2)); t = 0.2 / sqrt(0.02) and 0.
    assert one_sided_tests(models, 0.1) == pytest.approx((0.5 - math.sqrt(2) / 4, 0.5))
    found = compare(models.first, models.second, margin=0.1)
    # t = 0.1 / sqrt(0.02) = 1 / sqrt(2), both sides.
    assert found.p_value == pytest.approx(1 - math.sqrt(0.5) / math.sqrt(2.5))
    assert (found.mean_first, found.mean_second, found.interval.method) == (0.1, pytest.approx(0.2), "hierarchical")
    assert found.cases_needed is None


def test_two_runs_by_hand():
    # Cases alike, runs of 0 and 0.2: a draw is one of the runs alone in half of the draws, 0.1 from the mean, stretched
    # by sqrt(2 / (2 - 1)) and by the ratio of t with one degree of freedom, tan(0.475 pi), to z.
    found = bootstrap_interval(Runs(np.array([[0.0] * 3, [0.2] * 3]), np.zeros((1, 3))), seed=0)
    half = 0.1 * math.sqrt(2) * math.tan(0.475 * math.pi) / 1.959963985
    assert (found.low, found.high) == pytest.approx((-0.1 - half, -0.1 + half))


def test_runs_that_do_not_differ_leave_the_interval_of_the_cases():
    differences = np.random.default_rng(0).normal(0.01, 0.02, 40)
    models = Runs(np.zeros((3, 40)), np.tile(differences, (3, 1)))
    _, degrees = models.error()
    assert degrees == pytest.approx(39)
    found = bootstrap_interval(models, seed=0)
    half = stats.t.ppf(0.975, 39) * differences.std(ddof=1) / math.sqrt(40)
    assert (found.low, found.high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=7e-4)


def test_one_run_of_each_model_is_what_it_always_was():
    random = np.random.default_rng(1)
    first, second = random.random((2, 12))
    assert compare(first[None], second[None], margin=0.01) == compare(first, second, margin=0.01)


@pytest.mark.parametrize(("runs", "between", "cases_alone"), [(2, 0.01, 0.7), (3, 0.02, 0.5), (5, 0.01, 0.9)])
def test_the_interval_covers_what_other_runs_on_other_cases_would_give(runs, between, cases_alone):
    random, covered, by_case, equivalent = np.random.default_rng(runs), 0, 0, 0
    simulated = 250
    for run in range(simulated):
        gain = random.normal(0.01, 0.02, 20)
        first, second = (
            gains + random.normal(0, between, (runs, 1)) + random.normal(0, 0.01, (runs, 20)) for gains in (0.0, gain)
        )
        models = Runs(first, second)
        found, single = (bootstrap_interval(one, resamples=499, seed=run) for one in (models, models.difference))
        covered += found.low <= 0.01 <= found.high
        by_case += single.low <= 0.01 <= single.high
        equivalent += one_sided_tests(models, 0.01)[1] < 0.05
    error = 3 * math.sqrt(0.05 * 0.95 / simulated)
    assert covered / simulated >= 0.95 - error
    assert by_case / simulated < cases_alone
    # The true gain is the margin: "not better" must be rare, and is a little rarer than 5 %.
    assert equivalent / simulated <= 0.05 + error


# Several models


def test_equivalence_of_several_models_is_held_together():
    # Models on the margin: of three at once, at least one is called equivalent in more than 5 % of samples without
    # correction, in 5 % with it.
    random, single, corrected = np.random.default_rng(2), 0, 0
    for _ in range(400):
        p_values = [max(one_sided_tests(random.normal(0.01, 0.005, 20), 0.01)) for _ in range(3)]
        single += min(p_values) < 0.05
        corrected += min(holm(p_values)) < 0.05
    assert single / 400 > 0.1
    assert corrected / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


# How many cases are enough


def power_by_integration(cases, deviation, margin):
    """Both tests succeed where |mean| < margin - t s / sqrt(n): the normal mean, integrated over the chi of s."""
    degrees, critical = cases - 1, stats.t.ppf(0.95, cases - 1)

    def at(s):
        room = margin * math.sqrt(cases) / deviation - critical * s
        return max(0.0, 2 * stats.norm.cdf(room) - 1) * stats.chi.pdf(s * math.sqrt(degrees), degrees)

    return integrate.quad(at, 0, 4, limit=200)[0] * math.sqrt(degrees)


@pytest.mark.parametrize("deviation", [0.005, 0.012, 0.03])
def test_the_cases_needed_are_those_of_the_exact_power(deviation):
    cases = needed_cases(deviation, 0.01)
    assert power_by_integration(cases, deviation, 0.01) >= 0.8
    assert power_by_integration(cases - 1, deviation, 0.01) < 0.8
    # From below, and closely where there are more than a handful.
    missing = power_by_integration(cases, deviation, 0.01) - equivalence_power(cases, deviation, 0.01)
    assert -1e-6 < missing < (0.02 if cases < 5 else 5e-4)


def test_that_many_cases_find_equivalence_in_80_percent_of_samples():
    random = np.random.default_rng(3)
    cases = needed_cases(0.02, 0.01)
    hits = sum(max(one_sided_tests(random.normal(0, 0.02, cases), 0.01)) < 0.05 for _ in range(600))
    assert abs(hits / 600 - 0.8) <= 3 * math.sqrt(0.8 * 0.2 / 600) + 0.005


def test_models_that_never_differ_need_two_cases():
    assert needed_cases(0.0, 0.01) == 2
    assert equivalence(np.zeros(2), 0.01).verdict == "equivalent"
