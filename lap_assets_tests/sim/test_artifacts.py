"""Cosmic rays, the trail and bleeding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.sim.artifacts import Trail, draw_cosmic_rays, spread_bleed


def test_bleed_runs_along_the_column_and_keeps_the_charge():
    light = np.full((200, 30), 100.0, np.float32)
    light[100:103, 10] = 500_000.0
    bled = spread_bleed(light, 86_000.0)
    assert bled.max() == 86_000.0
    assert bled.sum(dtype=float) == pytest.approx(light.sum(dtype=float), rel=1e-6)
    touched = np.argwhere(bled != light)
    assert set(touched[:, 1]) == {10}
    low, high = touched[:, 0].min(), touched[:, 0].max()
    # each side takes half the excess, 621,000 electrons, in pixels that hold 85,900 more: 7 full ones and a part
    assert (low, high) == (92, 110)
    assert np.count_nonzero(bled[:, 10] == 86_000.0) == 17


def test_unsaturated_light_does_not_bleed():
    light = np.random.default_rng(0).uniform(0, 80_000, (50, 40)).astype(np.float32)
    np.testing.assert_array_equal(spread_bleed(light, 86_000.0), light)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_bleed_never_makes_charge(seed):
    rng = np.random.default_rng(seed)
    light = rng.exponential(30_000.0, (40, 3)).astype(np.float32)
    bled = spread_bleed(light, 60_000.0)
    assert bled.max() <= 60_000.0
    assert bled.sum(dtype=float) <= light.sum(dtype=float) * (1 + 1e-6)


def test_cosmic_rays_are_sharp_and_as_many_as_asked():
    hits = draw_cosmic_rays((512, 512), 40, np.random.default_rng(1))
    hit = hits > 200
    assert 100 < hit.sum() < 800
    assert 500 < np.median(hits[hit]) < 3000
    assert not draw_cosmic_rays((64, 64), 0, np.random.default_rng(1)).any()


def test_trail_is_drawn_where_truth_says_it_crosses():
    trail = Trail(10.0, -20.0, np.radians(35.0), 500.0)
    image = trail.draw((60.0, 80.0), (150, 200), 2.5, 3.3)
    x0, y0, x1, y1 = trail.cross((60.0, 80.0), (150, 200))
    assert x0 == pytest.approx(-0.5) or y0 == pytest.approx(-0.5)
    assert x1 == pytest.approx(199.5) or y1 == pytest.approx(149.5)
    for part in (0.2, 0.5, 0.8):
        x, y = x0 + part * (x1 - x0), y0 + part * (y1 - y0)
        row = image[:, round(x)]
        assert abs(np.argmax(row) - y) < 1.0
        assert row.max() > 0.85 * 500.0
    assert image[0, 199] < 1.0  # far from it: nothing


def test_trail_that_misses_a_chip_has_no_ends():
    assert Trail(0.0, 500.0, 0.0, 500.0).cross((50.0, 50.0), (100, 100)) is None
    assert Trail(0.0, 10.0, 0.0, 500.0).cross((50.0, 50.0), (100, 100)) == pytest.approx((-0.5, 60.0, 99.5, 60.0))
