"""Trails: found, drawn and, where there is none, not invented."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science import streaks
from lap_assets.science.streaks import STREAK_COLUMNS, draw_streaks, find_streaks

N, NOISE = 500, 10.0


def trail(x0, y0, x1, y1, width):
    """(N, N) profile with peak 1 of a trail with Gaussian cross-section of sigma `width`."""
    v, u = np.mgrid[:N, :N]
    length = np.hypot(x1 - x0, y1 - y0)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    along, across = (u - x0) * ux + (v - y0) * uy, (v - y0) * ux - (u - x0) * uy
    return np.exp(-0.5 * (across / width) ** 2) * ((along > 0) & (along < length))


def make_difference(seed, trails=(), clutter=True):
    """Noise, residual dipoles, galaxies of both signs, short unmasked cosmic rays, a chip gap, and trails (…, peak in
    σ).
    """
    rng = np.random.default_rng(seed)
    sci = rng.normal(0, NOISE, (N, N))
    v, u = np.mgrid[:N, :N]
    if clutter:
        for _ in range(15):
            x, y = rng.uniform(0, N, 2)
            sci += (
                rng.choice([-1, 1])
                * NOISE
                * rng.uniform(3, 40)
                * np.exp(-0.5 * ((u - x) ** 2 + (v - y) ** 2) / rng.uniform(1, 5) ** 2)
            )
        for _ in range(15):
            x, y, length, angle = (
                rng.uniform(30, N - 30),
                rng.uniform(30, N - 30),
                rng.integers(2, 25),
                rng.uniform(0, 6.3),
            )
            for step in range(length):
                sci[int(y + step * np.sin(angle)), int(x + step * np.cos(angle))] += NOISE * rng.uniform(5, 200)
    mask = np.zeros((N, N), np.int16)
    for *ends, width, peak in trails:
        sci += NOISE * peak * trail(*ends, width)
    mask[:, 240:252] = int(Mask.NO_DATA)
    sci[:, 240:252] = 0
    return MaskedImage(sci.astype(np.float32), mask, np.full((N, N), NOISE**2, np.float32))


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_found_where_there_is_no_trail(seed):
    assert len(find_streaks(make_difference(seed))) == 0


@pytest.mark.parametrize("peak", [0.8, 2.0, 10.0, 200.0])
@pytest.mark.parametrize(
    "ends",
    [(-20, 60, 520, 330), (100, -10, 160, 520), (-5, 420, 505, 410), (480, 10, 20, 470)],
    ids=["slope", "steep", "flat", "back"],
)
def test_trails_are_found_and_covered(ends, peak):
    """From 0.8 σ per pixel on: at least 95 % of the light's area is drawn, at most 3.5 times of it."""
    found = find_streaks(make_difference(11, [(*ends, 1.3, peak)]))
    assert len(found) >= 1
    assert list(found.columns) == list(STREAK_COLUMNS)
    assert found["snr"].iloc[0] > 10
    light = trail(*ends, 1.3) > 0.13  # within 2 sigma of the axis
    drawn = draw_streaks((N, N), found, margin_px=2.0)
    assert (drawn & light).sum() / light.sum() > 0.95
    assert drawn.sum() / light.sum() < 3.5


def test_broad_and_partial_and_two_trails():
    broad = find_streaks(make_difference(12, [(-20, 100, 520, 300, 6.0, 3.0)]))
    assert len(broad) >= 1
    assert broad["width_px"].iloc[0] > 12
    # a trail that begins inside: its free end is found to 30 px
    part = find_streaks(make_difference(13, [(150, 150, 520, 400, 1.5, 5.0)]))
    assert len(part) == 1
    row = part.iloc[0]
    assert min(np.hypot(row.x0 - 150, row.y0 - 150), np.hypot(row.x1 - 150, row.y1 - 150)) < 30
    two = find_streaks(make_difference(14, [(-20, 100, 520, 200, 1.3, 5.0), (80, 520, 300, -20, 1.3, 5.0)]))
    assert len(two) == 2


def test_negative_trail_of_the_template_is_not_masked():
    """Light missing from the science image is no trail of its own."""
    assert len(find_streaks(make_difference(15, [(-20, 100, 520, 300, 1.5, -8.0)]))) == 0


def test_wings_of_a_bleed_trail_are_no_streak():
    """Light smeared to both sides of a masked bleed trail; without the mask's flag the same light is found."""
    image = make_difference(16)
    image.sci[100:300, 117:124] += 5 * NOISE
    image.mask[100:300, 118:123] |= int(Mask.BLEED)
    assert len(find_streaks(image)) == 0
    image.mask[100:300, 118:123] = 0
    assert len(find_streaks(image)) == 1


def test_correlated_noise_makes_no_streaks():
    """Noise smoothed as a convolved science image's: none with its covariance factor, whose sums it inflates
    fourfold.
    """
    false, naive = 0, 0
    for seed in range(6):
        sci = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(N, N)), 1.1)
        sci = (sci * NOISE / sci.std()).astype(np.float32)
        image = MaskedImage(sci, np.zeros((N, N), np.int16), np.full((N, N), NOISE**2, np.float32))
        false += len(find_streaks(image, noise_covariance=4 * np.pi * 1.1**2))
        naive += len(find_streaks(image))
    assert false == 0
    assert naive > 0


def test_all_masked():
    image = make_difference(1)
    image.mask[:] = int(Mask.NO_DATA)
    assert len(find_streaks(image)) == 0


def test_table_without_rows_draws_nothing():
    assert not draw_streaks((20, 30), find_streaks(make_difference(2))).any()


@settings(max_examples=30, deadline=None)
@given(
    x0=st.floats(60, 240), y0=st.floats(60, 240), x1=st.floats(60, 240), y1=st.floats(60, 240), width=st.floats(2, 15),
)  # fmt: skip
def test_drawn_pixels_are_those_near_the_axis(x0, y0, x1, y1, width):
    """Away from the border: exactly the pixels within half the width of the axis, no farther than that beyond the
    ends.
    """
    length = np.hypot(x1 - x0, y1 - y0)
    if length < 5:
        return
    table = pd.DataFrame([(x0, y0, x1, y1, width, 9.0)], columns=list(STREAK_COLUMNS))
    drawn = draw_streaks((300, 300), table)
    v, u = np.mgrid[:300, :300]
    along = ((u - x0) * (x1 - x0) + (v - y0) * (y1 - y0)) / length
    across = np.abs((v - y0) * (x1 - x0) - (u - x0) * (y1 - y0)) / length
    inside = (across <= width / 2 - 1e-6) & (along >= 0) & (along <= length)
    outside = (across > width / 2 + 1e-6) | (along < -width / 2 - 1) | (along > length + width / 2 + 1)
    assert drawn[inside].all()
    assert not drawn[outside].any()


@settings(max_examples=10, deadline=None)
@given(x=st.integers(0, 31), slope=st.integers(0, 31))
def test_fast_radon_sums_a_line(x, slope):
    """A digital line of ones gives its full sum in the element of its ends, and no element more."""
    plane = np.zeros((32, 64), np.float32)
    for row in range(32):
        plane[row, x + round(slope * row / 31)] = 1
    sums = streaks.sum_lines(plane)
    assert sums.shape == (32, 96)
    assert sums[slope, 32 + x] >= 26  # digital lines of the transform differ by a pixel from the rounded one
    assert sums.max() <= 32
    assert sums.sum(axis=1) == pytest.approx(np.full(32, 32.0))
