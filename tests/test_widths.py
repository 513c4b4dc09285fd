"""The widest network in proportion within a limit: by hand, by properties, and as nnU-Net builds it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_nas import widths
from nnunet_nas.architecture import NetworkSpec
from nnunet_nas.errors import BudgetProblem, UsageError

FEATURES = st.lists(st.integers(1, 64), min_size=1, max_size=6)


def spec(features):
    return NetworkSpec({"arch_kwargs": {"features_per_stage": list(features)}}, 1, 2, (32, 32), 2)


def features_of(network):
    return network.architecture["arch_kwargs"]["features_per_stage"]


CHANNELS = widths.Measure("channels", lambda network: sum(features_of(network)))


def channels(network):
    return CHANNELS.of(network)


@pytest.mark.parametrize(
    ("width", "features"),
    [
        (32, [32, 64, 128, 320, 320]),
        (48, [48, 96, 192, 480, 480]),
        (22, [22, 44, 88, 220, 220]),
        (1, [1, 2, 4, 10, 10]),
    ],
)
def test_all_stages_keep_their_proportions(width, features):
    assert widths.proportional_features([32, 64, 128, 320, 320], width) == features


def test_no_stage_is_without_channels():
    # 3 of 7 is less than one half channel at width 1.
    assert widths.proportional_features([7, 3], 1) == [1, 1]
    assert widths.proportional_features([7, 3], 5) == [5, 2]


@pytest.mark.parametrize(("limit", "found"), [(0, 1), (1, 1), (7, 7), (99, 64)])
def test_the_largest_that_fits(limit, found):
    assert widths.largest(64, lambda number: number <= limit) == found


def test_the_widest_by_hand():
    # Of (2, 4, 4) at width w there are 5 w channels: 27 allow 5 of them, 25, and not 6.
    found = widths.widest_within(spec([2, 4, 4]), 27, CHANNELS)
    assert features_of(found) == [5, 10, 10]
    assert features_of(widths.widest_within(spec([2, 4, 4]), 25, CHANNELS)) == [5, 10, 10]
    with pytest.raises(BudgetProblem, match="1 at the finest stage, needs 5 channels: a limit of 4 must"):
        widths.widest_within(spec([2, 4, 4]), 4, CHANNELS)


def test_in_steps_of_groups_by_hand():
    # Multiples of 4: (4, 8, 8) is 20, (8, 16, 16) is 40.
    assert features_of(widths.widest_within(spec([2, 4, 4]), 59, CHANNELS, step=4)) == [8, 16, 16]
    with pytest.raises(BudgetProblem, match="4 at the finest stage, needs 20 channels"):
        widths.widest_within(spec([2, 4, 4]), 19, CHANNELS, step=4)


@pytest.mark.parametrize(
    ("width", "step", "rounded"),
    [
        (1, 1, 1), (11, 1, 11), (15, 1, 15), (16, 1, 16), (22, 1, 16), (35, 1, 32), (43, 1, 40), (320, 1, 320),
        (36, 4, 32), (36, 12, 24), (12, 12, 12), (20, 20, 20), (60, 20, 40),
    ],
)  # fmt: skip
def test_widths_of_16_and_more_are_whole_eights(width, step, rounded):
    assert widths.aligned(width, step) == rounded


def test_only_who_asks_for_it_has_the_widest_rounded_by_hand():
    # Of (2, 4, 4) at width w there are 5 w channels: 215 allow 43 of them.
    exact = widths.widest_within(spec([2, 4, 4]), 215, CHANNELS)
    rounded = widths.widest_within(spec([2, 4, 4]), 215, CHANNELS, align=True)
    assert (features_of(exact), features_of(rounded)) == ([43, 86, 86], [40, 80, 80])


def test_a_limit_beyond_any_machine_is_refused():
    assert widths.width_of(widths.widest_within(spec([1]), 8191, CHANNELS)) == 8191
    with pytest.raises(UsageError, match=r"8192 channels at the finest stage need less than 1e\+10 channels"):
        widths.widest_within(spec([1]), 1e10, CHANNELS)


@given(FEATURES, st.integers(1, 3000))
def test_the_widest_fits_and_one_wider_does_not(features, limit):
    if limit < channels(widths.with_width(spec(features), 1)):
        with pytest.raises(BudgetProblem):
            widths.widest_within(spec(features), limit, CHANNELS)
        return
    found = widths.widest_within(spec(features), limit, CHANNELS)
    width = widths.width_of(found)
    assert found == widths.with_width(spec(features), width)
    assert channels(found) <= limit < channels(widths.with_width(spec(features), width + 1))


@given(FEATURES, st.integers(1, 200))
def test_wider_is_wider_at_every_stage(features, width):
    narrow, wide = (widths.proportional_features(features, w) for w in (width, width + 1))
    assert all(a <= b for a, b in zip(narrow, wide, strict=True))
    assert (narrow[0], wide[0]) == (width, width + 1)
    assert widths.proportional_features(features, features[0]) == features
