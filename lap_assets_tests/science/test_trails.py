"""Satellite trails on single frames (LV-11): found among stars and galaxies; spikes and edge-on galaxies are none."""

import numpy as np
import pytest

from lap_assets.model.image import Mask
from lap_assets.science.trails import TrailLimits, find_trails, flag_trails
from lap_assets_tests.science.star_fields import add_star, observe

SHAPE, SKY = (768, 768), 400.0
STREAK = int(Mask.STREAK)


def make_light(seed, n_stars=250):
    """Stars anywhere (a grid has lines of its own), and galaxies of all sizes and directions."""
    rng = np.random.default_rng(seed)
    light = np.zeros(SHAPE)
    for _ in range(n_stars):
        add_star(light, *rng.uniform(0, 768, 2), 10 ** rng.uniform(3.0, 5.5), 3.5)
    for _ in range(60):
        x, y = rng.uniform(20, 748, 2)
        add_galaxy(
            light, x, y, 10 ** rng.uniform(1.5, 3.0), rng.uniform(2, 9), rng.uniform(0.2, 1), rng.uniform(0, 3.1)
        )
    return rng, light


def add_galaxy(light, x, y, peak, scale, ratio, angle):
    """Exponential disc with its axis ratio, out to twelve scale lengths."""
    reach = int(12 * scale)
    y0, x0 = max(int(y) - reach, 0), max(int(x) - reach, 0)
    part = light[y0 : int(y) + reach, x0 : int(x) + reach]
    v, u = np.mgrid[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]]
    along = (u - x) * np.cos(angle) + (v - y) * np.sin(angle)
    across = (v - y) * np.cos(angle) - (u - x) * np.sin(angle)
    part += peak * np.exp(-np.hypot(along, across / ratio) / scale)


def add_trail(light, x0, y0, x1, y1, peak, sigma=2.2):
    v, u = np.mgrid[: SHAPE[0], : SHAPE[1]]
    across = ((v - y0) * (x1 - x0) - (u - x0) * (y1 - y0)) / np.hypot(x1 - x0, y1 - y0)
    light += peak * np.exp(-0.5 * (across / sigma) ** 2)
    return np.abs(across) < 2.0 * sigma


def expose(rng, light):
    """Frame, mask and variance; pixels beyond 60,000 electrons are saturated."""
    image = observe(rng, light, SKY)
    mask = np.where(image > 60000.0, np.int16(Mask.SATURATED), np.int16(0))
    return np.minimum(image, 60000.0), mask, np.maximum(image, SKY).astype(np.float32) + np.float32(25.0)


@pytest.mark.parametrize("peak", [25.0, 60.0, 1000.0])
@pytest.mark.parametrize("ends", [(-10, 100, 780, 460), (150, -10, 330, 780), (-10, 700, 780, 690)])
def test_a_trail_is_masked_from_border_to_border(ends, peak):
    """From 1.2 sigma of a pixel: nine tenths of what it lights up is flagged, and not much more."""
    rng, light = make_light(1)
    lit = add_trail(light, *ends, peak)
    image, mask, variance = expose(rng, light)
    found = find_trails(image, mask, variance)
    flagged = (flag_trails(mask, found, 3.0) & STREAK) != 0
    assert len(found) == 1
    assert (flagged & lit).sum() > 0.9 * lit.sum()
    assert flagged.sum() < 6.0 * lit.sum()


@pytest.mark.parametrize("seed", range(4))
def test_crowded_fields_without_a_trail_have_none(seed):
    rng, light = make_light(10 + seed, n_stars=400)
    image, mask, variance = expose(rng, light)
    assert len(find_trails(image, mask, variance)) == 0
    assert np.array_equal(flag_trails(mask, find_trails(image, mask, variance), 3.0), mask)


@pytest.mark.parametrize("angle", [0.0, 0.4, np.pi / 4])
def test_spikes_of_a_bright_star_are_no_trail(angle):
    """Four arms that fade with the distance from a saturated star."""
    rng, light = make_light(20)
    v, u = np.mgrid[: SHAPE[0], : SHAPE[1]]
    x, y = u - 380.0, v - 400.0
    light += 3e5 * np.exp(-0.5 * (x**2 + y**2) / 9.0)
    for turn in (angle, angle + np.pi / 2):
        along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        light += 4e6 / (np.abs(along) + 15.0) ** 2 * np.exp(-0.5 * (across / 1.5) ** 2) * (np.abs(along) < 330.0)
    image, mask, variance = expose(rng, light)
    assert (mask != 0).sum() > 20
    assert len(find_trails(image, mask, variance)) == 0


@pytest.mark.parametrize("angle", [0.1, 0.9, 2.0])
def test_a_galaxy_seen_edge_on_is_no_trail(angle):
    rng, light = make_light(30)
    add_galaxy(light, 380.0, 390.0, 800.0, 60.0, 0.06, angle)
    image, mask, variance = expose(rng, light)
    assert len(find_trails(image, mask, variance)) == 0


def test_a_row_of_stars_and_a_bleed_trail_are_no_trail():
    rng, light = make_light(40)
    for x in range(100, 700, 40):
        v, u = np.mgrid[: SHAPE[0], : SHAPE[1]]
        light += 3e3 * np.exp(-0.5 * ((u - x) ** 2 + (v - 200 - 0.3 * x) ** 2) / 4.0)
    image, mask, variance = expose(rng, light)
    image[100:600, 300:303] = 60000.0
    mask[100:600, 299:304] |= int(Mask.SATURATED | Mask.BLEED)
    assert len(find_trails(image, mask, variance)) == 0


def test_a_trail_that_begins_inside_the_frame_is_found_and_one_shorter_than_asked_for_is_left():
    rng, light = make_light(50, n_stars=60)
    v, u = np.mgrid[: SHAPE[0], : SHAPE[1]]
    light += 60.0 * np.exp(-0.5 * ((v - 0.5 * u - 200.0) / 2.5) ** 2) * (u > 300)
    image, mask, variance = expose(rng, light)
    found = find_trails(image, mask, variance)
    assert len(found) == 1
    row = found.iloc[0]
    assert min(np.hypot(row.x0 - 300, row.y0 - 350), np.hypot(row.x1 - 300, row.y1 - 350)) < 60.0
    assert len(find_trails(image, mask, variance, TrailLimits(min_length_px=750.0))) == 0


def test_frames_too_small_or_without_data_have_none():
    tiny = np.ones((6, 6), np.float32)
    assert len(find_trails(tiny, np.zeros((6, 6), np.int16), tiny)) == 0
    blank = np.ones((200, 200), np.float32)
    assert len(find_trails(blank, np.full((200, 200), int(Mask.NO_DATA), np.int16), blank)) == 0
