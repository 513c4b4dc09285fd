"""The widest network in proportion within a limit: by hand, by properties, and as nnU-Net builds it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_nas import widths
from nnunet_nas.architecture import NetworkSpec
from nnunet_nas.errors import BudgetProblem

FEATURES = st.lists(st.integers(1, 64), min_size=1, max_size=6)


def spec(features):
    return NetworkSpec({"arch_kwargs": {"features_per_stage": list(features)}}, 1, 2, (32, 32), 2)


def features_of(network):
    return network.architecture["arch_kwargs"]["features_per_stage"]


def channels(network):
    return sum(features_of(network))


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
    found = widths.widest_within(spec([2, 4, 4]), 27, channels)
    assert features_of(found) == [5, 10, 10]
    assert features_of(widths.widest_within(spec([2, 4, 4]), 25, channels)) == [5, 10, 10]
    with pytest.raises(BudgetProblem, match="costs 5, more than 4"):
        widths.widest_within(spec([2, 4, 4]), 4, channels)


@given(FEATURES, st.integers(1, 3000))
def test_the_widest_fits_and_one_wider_does_not(features, limit):
    if limit < channels(widths.with_width(spec(features), 1)):
        with pytest.raises(BudgetProblem):
            widths.widest_within(spec(features), limit, channels)
        return
    found = widths.widest_within(spec(features), limit, channels)
    width = features_of(found)[0]
    assert found == widths.with_width(spec(features), width)
    assert channels(found) <= limit < channels(widths.with_width(spec(features), width + 1))


@given(FEATURES, st.integers(1, 200))
def test_wider_is_wider_at_every_stage(features, width):
    narrow, wide = (widths.proportional_features(features, w) for w in (width, width + 1))
    assert all(a <= b for a, b in zip(narrow, wide, strict=True))
    assert (narrow[0], wide[0]) == (width, width + 1)
    assert widths.proportional_features(features, features[0]) == features
