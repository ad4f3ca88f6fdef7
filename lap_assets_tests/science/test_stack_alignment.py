"""Star lists of inputs compared: a wrong WCS is found, a right one never, whatever the lists are like."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.science.stack_alignment import Misplaced, find_misplaced

SIDE, SCALE = 3000, 0.26
MAX_PX = 0.3 / SCALE


def make_lists(n, n_stars=200, seed=1, scatter_px=0.08, complete=0.9):
    """The same sky seen by n inputs: centroids scattered by 20 mas, a tenth of the stars missing, false ones added."""
    rng = np.random.default_rng(seed)
    sky = np.column_stack([rng.uniform(0, SIDE, (n_stars, 2)), 10 ** rng.uniform(3, 5, n_stars)])
    lists = []
    for _ in range(n):
        seen = sky[rng.random(n_stars) < complete].copy()
        seen[:, :2] += rng.normal(0, scatter_px, (len(seen), 2))
        false = np.column_stack([rng.uniform(0, SIDE, (n_stars // 20, 2)), 10 ** rng.uniform(3, 5, n_stars // 20)])
        lists.append(np.concatenate([seen, false]))
    return lists


@given(n=st.integers(2, 8), seed=st.integers(0, 1000), n_stars=st.sampled_from([0, 3, 12, 60, 400]))
@settings(max_examples=40, deadline=None)
def test_good_inputs_stay(n, seed, n_stars):
    assert find_misplaced(make_lists(n, n_stars, seed), np.full(n, 1 / n), MAX_PX) == {}


@given(
    shift=st.floats(0.45, 14.0), angle=st.floats(0, 6.28), seed=st.integers(0, 1000), n=st.integers(3, 8),
    n_stars=st.sampled_from([30, 200]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_the_one_that_is_off_is_found(shift, angle, seed, n, n_stars):
    """LAP-29: by 0.45″ and more, and by how much is said to 0.1″."""
    lists = make_lists(n, n_stars, seed)
    lists[1][:, :2] += shift / SCALE * np.array([np.cos(angle), np.sin(angle)])
    found = find_misplaced(lists, np.full(n, 1 / n), MAX_PX)
    assert list(found) == [1]
    assert found[1].offset_px * SCALE == pytest.approx(shift, abs=0.1)


def test_of_two_the_lighter_one_goes():
    """Two that disagree cannot be told apart: the one of more weight stays."""
    lists = make_lists(2)
    lists[0][:, 0] += 5.0 / SCALE
    assert list(find_misplaced(lists, np.array([0.6, 0.4]), MAX_PX)) == [1]
    assert list(find_misplaced(lists, np.array([0.4, 0.6]), MAX_PX)) == [0]


def test_chips_beside_each_other_are_no_disagreement():
    """Inputs that cover different halves of the skycell share no stars, and none is expected."""
    one, other = make_lists(2, 400)
    halves = [one[one[:, 0] < 1500], other[other[:, 0] >= 1500], None, np.zeros((0, 3))]
    assert find_misplaced(halves, np.full(4, 0.25), MAX_PX) == {}


def test_a_wcs_that_is_off_by_far_is_named_without_an_offset():
    lists = make_lists(4)
    lists[2][:, :2] = np.random.default_rng(9).uniform(0, SIDE, (len(lists[2]), 2))
    found = find_misplaced(lists, np.full(4, 0.25), MAX_PX)
    assert list(found) == [2]
    assert "where the other inputs have stars" in found[2].describe(SCALE)
    assert Misplaced(20.0, 31).describe(SCALE).startswith("its 31 stars are 5.2 arcsec off")


def test_an_input_without_weight_is_not_looked_at():
    lists = make_lists(4)
    lists[2][:, 0] += 5.0 / SCALE
    assert find_misplaced(lists, np.array([0.3, 0.3, 0.0, 0.4]), MAX_PX) == {}
