"""Levels of warps in blocks: medians of good pixels, and none where there is nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.model.image import Mask
from lap_assets.science.block_levels import block_centres, measure_levels


def test_a_tilted_sky_with_stars_is_followed():
    """Blocks of 64 px: the plane to 0.1 of the noise per pixel (256 looked at: 0.08 sigma)."""
    rng = np.random.default_rng(1)
    v, u = np.mgrid[0:320, 0:400]
    sci = (3.0 + 0.01 * u - 0.02 * v + rng.normal(0, 1, u.shape)).astype(np.float32)
    sci[100:110, 200:210] = 1e5
    level, count = measure_levels(sci, np.zeros(sci.shape, np.int16))
    x, y = block_centres(sci.shape)
    assert level.shape == (5, 7) == x.shape
    assert count[:, :6] == pytest.approx(256) and count[0, 6] == 64
    whole = np.s_[:, :6]  # the last block ends early: its middle is elsewhere
    assert np.std((level - (3.0 + 0.01 * x - 0.02 * y))[whole]) < 0.15
    assert np.abs((level - (3.0 + 0.01 * x - 0.02 * y))[whole]).max() < 0.4


def test_flagged_pixels_do_not_count():
    sci, mask = np.ones((128, 128), np.float32), np.zeros((128, 128), np.int16)
    sci[:, :64], mask[:, :64] = np.nan, int(Mask.NO_DATA)
    sci[:64, 64:96], mask[:64, 64:96] = 500.0, int(Mask.SATURATED)
    level, count = measure_levels(sci, mask)
    assert level.tolist() == [[0, 1], [0, 1]]
    assert count.tolist() == [[0, 128], [0, 256]]


@settings(max_examples=20, deadline=None)
@given(ny=st.integers(1, 150), nx=st.integers(1, 150), value=st.floats(-1e6, 1e6, width=32))
def test_a_constant_is_its_own_level_whatever_the_size(ny, nx, value):
    level, count = measure_levels(np.full((ny, nx), value, np.float32), np.zeros((ny, nx), np.int16))
    assert (level[count > 0] == np.float32(value)).all()
    assert count.sum() == -(-ny // 4) * -(-nx // 4)
