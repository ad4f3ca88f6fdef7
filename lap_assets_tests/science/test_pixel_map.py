"""Pixel maps: within their stated error anywhere, refined where needed, none where chip and skycell do not meet."""

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.science.pixel_map import map_pixels
from lap_assets_tests.science.warp_fields import chip_wcs, skycell_wcs


def test_pixel_map_is_within_its_stated_error_and_refined_where_needed():
    target = skycell_wcs(600)
    wcs = chip_wcs(600, sip=3.0)
    coarse = map_pixels(wcs, (600, 600), target, (600, 600), step_px=128, tolerance_px=5e-4)
    assert coarse.step_px < 128
    assert coarse.error_px <= 5e-4
    # at random places, not only where it was checked
    rng = np.random.default_rng(1)
    px, py = rng.uniform(60, 540, (2, 500))
    true_x, true_y = wcs.all_world2pix(*target.all_pix2world(px, py, 0), 0)
    error = np.hypot(coarse.interpolate(coarse.x, px, py) - true_x, coarse.interpolate(coarse.y, px, py) - true_y)
    assert error.max() < 6e-4
    # without the refinement it would not be
    loose = map_pixels(wcs, (600, 600), target, (600, 600), step_px=128, tolerance_px=1.0)
    assert loose.error_px > 2e-3


def test_a_wcs_that_is_not_smooth_is_refused():
    wcs = chip_wcs(240, sip=25.0)
    with pytest.raises(UnprocessableData, match="pixel map wrong by"):
        map_pixels(wcs, (240, 240), skycell_wcs(), (240, 240))


def test_chip_elsewhere_gives_no_map():
    assert map_pixels(chip_wcs(ra=151.0), (240, 240), skycell_wcs(), (240, 240)) is None
    assert map_pixels(chip_wcs(ra=330.0, dec=-2.0), (240, 240), skycell_wcs(), (240, 240)) is None  # antipode


def test_places_on_the_chip_and_how_far_off_they_are():
    """On the chip 0; 30 px beyond its edge 30 px and the nearest place on it."""
    wcs, target = chip_wcs(240, angle_deg=0.0, sip=0.0), skycell_wcs(400)
    pixel_map = map_pixels(wcs, (240, 240), target, (400, 400))
    x, y, away = pixel_map.locate(np.array([200.0, 50.0, 0.0]), np.array([180.0, 200.0, 0.0]), (240, 240))
    true = wcs.all_world2pix(*target.all_pix2world([200.0], [180.0], 0), 0)
    assert (x[0], y[0]) == (pytest.approx(true[0][0], abs=1e-3), pytest.approx(true[1][0], abs=1e-3))
    assert away[0] == 0
    assert (x[1], away[1]) == (0, pytest.approx(30, abs=2))
    assert away[2] > 100


def test_derivatives_are_those_of_the_two_coordinate_systems():
    wcs, target = chip_wcs(600, angle_deg=20.0, scale=0.3, sip=2.0), skycell_wcs(300)
    pixel_map = map_pixels(wcs, (600, 600), target, (300, 300))
    at = np.array([150.0, 40.0]), np.array([150.0, 260.0])
    found = pixel_map.derivatives(*at)
    places = [wcs.all_world2pix(*target.all_pix2world(at[0] + dx, at[1] + dy, 0), 0) for dx, dy in
              ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))]  # fmt: skip
    along_x, along_y = np.subtract(places[1], places[0]), np.subtract(places[3], places[2])
    assert np.abs(found[:, :, 0] - along_x.T).max() < 2e-4
    assert np.abs(found[:, :, 1] - along_y.T).max() < 2e-4
    assert np.linalg.det(found) == pytest.approx(np.abs(pixel_map.interpolate(pixel_map.jacobian, *at)) * np.sign(
        np.linalg.det(found)), rel=1e-3)  # fmt: skip
