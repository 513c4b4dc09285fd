"""Paired statistics: SciPy, numbers by hand and simulation agree; the models can be swapped and the cases shuffled."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nnunet_nas.evaluation.equivalence import Equivalence, equivalence, one_sided_tests
from nnunet_nas.evaluation.intervals import bootstrap_interval
from nnunet_nas.evaluation.paired import compare, fisher, holm, rank_biserial, signed_rank_p

# Dice of few voxels: ties and cases without any difference are common.
scores = st.integers(0, 20).map(lambda value: value / 20)
pairs = st.lists(st.tuples(scores, scores), min_size=2, max_size=25)
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=10)
quick = settings(deadline=None, max_examples=30)


def test_a_comparison_by_hand():
    found = compare([0.5, 0.7, 0.9, 0.4], [0.6, 0.7, 0.7, 0.8], margin=0.01)
    # Differences 0.1, 0, -0.2, 0.4. Ranks of their sizes: 2, 1 (the zero), 3, 4.
    assert (found.cases, found.won, found.lost, found.tied) == (4, 2, 1, 1)
    assert (found.mean_first, found.mean_second) == pytest.approx((0.625, 0.7))
    assert found.difference == pytest.approx(0.075)
    assert found.effect == pytest.approx((2 + 4 - 3) / (2 + 4 + 3))


def test_where_lower_is_better_the_difference_keeps_its_sign_and_the_judgement_turns():
    distances = [4.0, 6.0, 9.0], [3.0, 2.0, 8.0]
    found = compare(*distances, margin=0.1, higher_is_better=False)
    assert found.difference == pytest.approx(-2)
    assert (found.won, found.lost, found.effect) == (3, 0, 1.0)
    assert compare(*distances, margin=0.1).effect == -1.0


@pytest.mark.parametrize(
    ("first", "second"),
    [([], []), ([0.5], [0.5, 0.6]), ([[[0.5]]], [[[0.5]]]), ([math.nan], [0.5]), ([0.5], [math.inf])],
)
def test_what_cannot_be_compared_is_refused(first, second):
    with pytest.raises(ValueError, match="case"):
        compare(first, second, margin=0.01)


@pytest.mark.parametrize("margin", [0.0, math.nan])
def test_a_margin_without_room_is_refused(margin):
    with pytest.raises(ValueError, match="margin"):
        compare([0.5, 0.6], [0.5, 0.7], margin=margin)


def test_one_case_has_a_difference_and_no_interval():
    found = compare([0.5], [0.6], margin=0.01)
    assert (found.interval, found.equivalence, found.p_value) == (None, None, 1.0)
    assert found.difference == pytest.approx(0.1)


def test_all_equal_models():
    found = compare([0.5, 0.7], [0.5, 0.7], margin=0.01)
    assert (found.difference, found.effect, found.p_value, found.tied) == (0.0, 0.0, 1.0, 2)
    assert (found.interval.low, found.interval.high, found.interval.method) == (0.0, 0.0, "percentile")
    assert (found.equivalence.p_value, found.equivalence.verdict) == (0.0, "equivalent")


# Wilcoxon signed-rank


def test_the_exact_p_value_by_hand():
    # Of the 32 equally likely patterns of signs only one has no negative rank, and one no positive rank.
    assert signed_rank_p(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 32)
    # Rank sums of 1 or less: {} and {1}, on either side.
    assert signed_rank_p(np.array([-0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(4 / 32)


def test_zeros_by_hand():
    # Without zeros the negative rank is 4: {}, {1}, {2}, {3}, {4}, {1, 2}, {1, 3} are as extreme, on either side.
    differences = np.array([0.1, 0.2, 0.3, -0.4])
    assert signed_rank_p(differences) == pytest.approx(14 / 16)
    # Ten zeros take the ranks up to 10; among 11, 12, 13, 14 only {} and single ranks reach no further than 14.
    assert signed_rank_p(np.concatenate([differences, np.zeros(10)])) == pytest.approx(10 / 16)


def test_ties_by_hand():
    # Ranks 2, 2, 2, 4, the last one negative: {}, {2} x 3, {2, 2} x 3 and {4} are as extreme, on either side.
    assert signed_rank_p(np.array([0.25, 0.25, 0.25, -0.5])) == pytest.approx(16 / 16)
    assert signed_rank_p(np.array([-0.25, 0.25, 0.25, 0.5])) == pytest.approx(8 / 16)


@quick
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_the_p_value_counts_patterns_of_signs(values):
    differences = np.array(values, dtype=float)
    ranks = stats.rankdata(np.abs(differences)) * (differences != 0)
    signs = np.array(list(itertools.product([-1, 1], repeat=len(values))))
    statistic = np.abs(signs @ ranks)
    assert signed_rank_p(differences) == pytest.approx(np.mean(statistic >= abs(np.sign(differences) @ ranks)))


@pytest.mark.parametrize("cases", [8, 50])
def test_the_p_value_is_scipys_exact_one(cases):
    differences = np.random.default_rng(cases).normal(0.3, 1, cases)
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


def test_the_p_value_of_many_cases_is_scipys_approximation():
    random = np.random.default_rng(0)
    differences = random.normal(0.3, 1, 80).round(1)
    assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences, zero_method="pratt").pvalue)
    # Where both are possible, they differ little.
    fifty = random.normal(0.2, 1, 50).round(1)
    assert signed_rank_p(fifty) == pytest.approx(stats.wilcoxon(fifty, zero_method="pratt").pvalue, rel=0.05)


# Rank-biserial correlation


def test_the_effect_by_hand():
    assert rank_biserial(np.array([1.0, -2.0, 3.0])) == pytest.approx((1 + 3 - 2) / 6)
    assert rank_biserial(np.array([1.0, 1.0, -1.0])) == pytest.approx((2 + 2 - 2) / 6)
    assert rank_biserial(np.zeros(3)) == 0.0


def test_the_effect_is_the_signed_rank_statistic_on_a_scale_from_minus_1_to_1():
    differences = np.random.default_rng(1).normal(0.2, 1, 40)
    above = stats.wilcoxon(differences, alternative="greater").statistic
    assert rank_biserial(differences) == pytest.approx(2 * above / (40 * 41 / 2) - 1)


# Interval


def test_the_interval_is_scipys_of_the_sorted_differences():
    differences = np.random.default_rng(2).normal(0.5, 1, 30)
    found = bootstrap_interval(differences, seed=7)
    expected = stats.bootstrap((np.sort(differences),), np.mean, random_state=np.random.default_rng(7))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval))
    assert (found.method, found.confidence) == ("BCa", 0.95)


def test_the_interval_of_two_values_by_hand():
    # Resamples of 0 and 1 have the means 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4: the ends are 0 and 1.
    found = bootstrap_interval(np.array([0.0, 1.0]))
    assert (found.low, found.high) == (0.0, 1.0)


def test_the_seed_decides():
    differences = np.random.default_rng(3).normal(size=25)
    assert bootstrap_interval(differences, seed=1) == bootstrap_interval(differences, seed=1)
    assert bootstrap_interval(differences, seed=1) != bootstrap_interval(differences, seed=2)


# Equivalence


def test_equivalence_by_hand():
    # Mean 0.01, standard error 0.01, one degree of freedom, whose t is Cauchy's distribution.
    found = equivalence(np.array([0.0, 0.02]), 0.02)
    assert found.p_not_worse == pytest.approx(0.5 - math.atan(3) / math.pi)
    assert found.p_not_better == pytest.approx(0.5 - math.atan(1) / math.pi)
    assert found.p_value == found.p_not_better
    assert found.verdict == "unclear"


def test_equivalence_is_two_one_sided_tests_of_scipy():
    gains = np.random.default_rng(4).normal(0.002, 0.01, 20)
    found = equivalence(gains, 0.005)
    assert found.p_not_worse == pytest.approx(stats.ttest_1samp(gains, -0.005, alternative="greater").pvalue)
    assert found.p_not_better == pytest.approx(stats.ttest_1samp(gains, 0.005, alternative="less").pvalue)


def test_the_bounds_of_equivalence_are_one_sided_at_95_percent():
    gains = np.random.default_rng(5).normal(0.002, 0.01, 20)
    found = equivalence(gains, 0.005, seed=3)
    expected = stats.bootstrap((np.sort(gains),), np.mean, confidence_level=0.9, random_state=np.random.default_rng(3))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval))


@pytest.mark.parametrize(
    ("not_worse", "not_better", "low", "high", "verdict"),
    [
        (0.01, 0.02, -0.009, 0.009, "equivalent"),
        (0.001, 0.99, 0.02, 0.04, "better"),
        (0.001, 0.5, 0.0, 0.03, "not worse"),
        (0.99, 0.001, -0.04, -0.02, "worse"),
        (0.5, 0.001, -0.03, 0.0, "not better"),
        (0.3, 0.3, -0.03, 0.03, "unclear"),
        # Where the bootstrap disagrees, t was too sure.
        (0.01, 0.02, -0.012, 0.009, "not better"),
        (0.01, 0.02, -0.009, 0.012, "not worse"),
        (0.01, 0.02, -0.012, 0.012, "unclear"),
        (0.001, 0.99, 0.005, 0.04, "not worse"),
    ],
)
def test_verdicts(not_worse, not_better, low, high, verdict):
    assert Equivalence(0.01, not_worse, not_better, low, high).verdict == verdict


def test_one_failure_in_sixty_cases_is_not_equivalence():
    gains = np.random.default_rng(0).normal(0.001, 0.008, 60)
    assert equivalence(gains, 0.01).verdict == "equivalent"
    gains[7] = -0.2
    found = equivalence(gains, 0.01)
    assert found.p_value < 0.05
    assert found.low < -0.01
    assert found.verdict == "not better"


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.0, "equivalent"), (0.25, "not worse"), (0.5, "better"), (-0.5, "worse")]
)
def test_without_any_spread_the_difference_is_the_truth(gain, verdict):
    assert equivalence(np.full(4, gain), 0.25).verdict == verdict


@pytest.mark.filterwarnings("error")
def test_gains_that_differ_by_rounding_have_no_spread():
    # 0.6 - 0.5, 0.7 - 0.6 and 0.8 - 0.7 are not the same number, and their t is noise.
    gains = np.array([0.6 - 0.5, 0.7 - 0.6, 0.8 - 0.7])
    assert len(set(gains)) > 1
    assert one_sided_tests(gains, 0.1) == (0.0, 0.5)
    assert one_sided_tests(-gains, 0.1) == (0.5, 0.0)
    assert one_sided_tests(gains, 0.05) == (0.0, 1.0)


# Several p-values


def test_holm_by_hand():
    # Sorted: 0.01 x 3, 0.03 x 2, 0.04 x 1, which must not be below the one before it.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_fisher_by_hand():
    # For two p-values with the product q, the chi-squared tail with 4 degrees of freedom is q (1 - ln q).
    assert fisher([0.5, 0.5]) == pytest.approx(0.25 * (1 + math.log(4)))
    assert fisher([0.03]) == pytest.approx(0.03)
    p_values = [0.04, 0.2, 0.7]
    assert fisher(p_values) == pytest.approx(stats.combine_pvalues(p_values, "fisher").pvalue)


@pytest.mark.filterwarnings("error")
def test_a_p_value_of_zero_decides_alone_and_quietly():
    assert fisher([0.0, 0.5]) == fisher([1.0, 0.0]) == 0.0


# Properties


@quick
@given(pairs)
def test_swapping_the_models_mirrors_the_result(cases):
    first, second = zip(*cases, strict=True)
    one, other = compare(first, second, margin=0.1), compare(second, first, margin=0.1)
    assert (other.difference, other.effect) == (-one.difference, -one.effect)
    assert (other.interval.low, other.interval.high) == (-one.interval.high, -one.interval.low)
    assert other.p_value == pytest.approx(one.p_value)
    assert (other.won, other.lost, other.tied) == (one.lost, one.won, one.tied)
    assert other.equivalence.p_not_worse == pytest.approx(one.equivalence.p_not_better)
    assert other.equivalence.p_value == pytest.approx(one.equivalence.p_value)


@quick
@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_the_cases_means_nothing(cases, random):
    shuffled = random.sample(cases, len(cases))
    one, other = (compare(*zip(*order, strict=True), margin=0.1) for order in (cases, shuffled))
    assert (other.difference, other.interval, other.p_value) == (one.difference, one.interval, one.p_value)
    assert (other.won, other.lost, other.tied) == (one.won, one.lost, one.tied)
    assert other.effect == pytest.approx(one.effect)
    assert other.equivalence.p_value == pytest.approx(one.equivalence.p_value, rel=1e-6, abs=1e-12)


@quick
@given(pairs)
def test_every_number_is_in_its_range(cases):
    found = compare(*zip(*cases, strict=True), margin=0.1)
    assert 0 <= found.p_value <= 1
    assert 0 <= found.equivalence.p_value <= 1
    assert -1 <= found.effect <= 1
    differences = [second - first for first, second in cases]
    ends = found.interval.low, found.interval.high
    assert min(differences) - 1e-12 <= ends[0] <= ends[1] <= max(differences) + 1e-12


@quick
@given(p_lists)
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    corrected = holm(p_values)
    assert all(p <= new <= 1 for p, new in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)
    # Never more than Bonferroni.
    assert all(new <= min(1.0, len(p_values) * p) for p, new in zip(p_values, corrected, strict=True))


# Simulations: three standard errors of the Monte Carlo around what theory says


def within_three_errors(hits, runs, rate):
    return abs(hits / runs - rate) <= 3 * math.sqrt(rate * (1 - rate) / runs)


def test_the_interval_covers_the_true_mean_in_95_percent_of_samples():
    random = np.random.default_rng(5)
    runs = 300
    found = [bootstrap_interval(random.normal(0.01, 0.05, 60), resamples=799, seed=run) for run in range(runs)]
    assert within_three_errors(sum(interval.low <= 0.01 <= interval.high for interval in found), runs, 0.95)


def test_the_interval_of_skewed_differences_covers_nearly_as_often():
    # One model fails on some cases: exponential differences, for which 40 cases are few.
    random = np.random.default_rng(6)
    found = [bootstrap_interval(random.exponential(0.05, 40), resamples=799, seed=run) for run in range(300)]
    assert 0.90 <= np.mean([interval.low <= 0.05 <= interval.high for interval in found]) <= 0.97


def test_wilcoxon_is_wrong_in_5_percent_of_samples_without_a_difference():
    random = np.random.default_rng(7)
    runs = 1500
    hits = sum(signed_rank_p(random.standard_t(3, 20)) < 0.05 for _ in range(runs))
    # The exact test of 20 cases has the level 0.0484, the largest one below 0.05 that its rank sums allow.
    assert within_three_errors(hits, runs, 0.0484)


def test_the_tests_of_equivalence_are_wrong_in_5_percent_of_samples_at_the_margin():
    random = np.random.default_rng(8)
    runs = 800
    hits = sum(max(one_sided_tests(random.normal(0.01, 0.005, 20), 0.01)) < 0.05 for _ in range(runs))
    assert within_three_errors(hits, runs, 0.05)


def test_a_skewed_loss_at_the_margin_is_rarely_called_equivalent():
    # Exponential losses: what a sample misses of the tail makes its mean and its spread too small at once.
    random = np.random.default_rng(9)
    found = [equivalence(-random.exponential(0.01, 30), 0.01, resamples=499, seed=run) for run in range(300)]
    by_t = np.mean([result.p_value < 0.05 for result in found])
    with_bootstrap = np.mean([result.verdict == "equivalent" for result in found])
    assert with_bootstrap < by_t
    assert with_bootstrap < 0.09


def test_equivalence_is_found_where_it_is_and_not_where_cases_are_few():
    random = np.random.default_rng(10)
    many, few = (
        [equivalence(random.normal(0, 0.02, cases), 0.01, resamples=499).verdict for _ in range(50)]
        for cases in (100, 8)
    )
    assert many.count("equivalent") > 45
    assert few.count("equivalent") < 8
