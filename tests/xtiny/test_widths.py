"""Candidate widths, against the method's own example."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nnunet_nas.xtiny.widths import candidate_name, capped_features, caps_of

features = st.lists(st.integers(1, 512), min_size=1, max_size=8)


def test_caps_halve_down_to_one():
    assert caps_of([32, 64, 128, 256, 512, 512, 512]) == [512, 256, 128, 64, 32, 16, 8, 4, 2, 1]


def test_odd_widths_are_floored():
    assert caps_of([32, 64, 128, 256, 320, 320]) == [320, 160, 80, 40, 20, 10, 5, 2, 1]


def test_a_cap_narrows_only_what_is_wider():
    assert capped_features([32, 64, 128, 256], 64) == [32, 64, 64, 64]
    assert capped_features([32, 64, 128, 256], 8) == [8, 8, 8, 8]


@given(features)
def test_the_widest_candidate_is_the_base(base):
    assert capped_features(base, caps_of(base)[0]) == base


@given(features)
def test_candidates_never_widen(base):
    narrower = [capped_features(base, cap) for cap in caps_of(base)]
    for wide, narrow in itertools.pairwise(narrower):
        assert all(n <= w for n, w in zip(narrow, wide, strict=True))
    assert narrower[-1] == [1] * len(base)


def test_name():
    assert candidate_name("3d_fullres", 16) == "3d_fullres_xtiny16"
