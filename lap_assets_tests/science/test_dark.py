"""Dark (LV-11): dark current scaled by the exposure time goes, its noise enters the variance."""

import numpy as np
import pytest

from lap_assets.errors import UnprocessableData
from lap_assets.science.dark import subtract_dark
from lap_assets_tests.science.star_fields import add_star
from lap_assets_tests.science.star_measures import sum_flux, to_mmag

SHAPE = (96, 96)


def glow():
    """Dark current with a bright corner and a warm column, electrons per second."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    current = 0.05 + 0.8 * np.exp(-np.hypot(x, y) / 25.0)
    current[:, 50] += 1.5
    return current.astype(np.float32)


@pytest.mark.parametrize("exptime_s", [30.0, 120.0])
def test_dark_current_is_removed_at_any_exposure_time(exptime_s):
    true = np.full(SHAPE, 400.0)
    add_star(true, 48.0, 40.0, 2e4, 3.0)
    image = (true + exptime_s * glow()).astype(np.float32)
    zero = np.zeros(SHAPE, np.float32)
    clean, _ = subtract_dark(image, zero, glow(), zero, exptime_s)
    flux = sum_flux(true, 48.0, 40.0, 400.0)
    assert abs(to_mmag(sum_flux(clean, 48.0, 40.0, 400.0), flux)) < 0.1
    assert np.abs(clean - true).max() < 0.01
    # without the step, sky taken around the star: the warm column alone is 25 pixels of 1.5 e/s
    assert to_mmag(sum_flux(image, 48.0, 40.0, float(np.median(image))), flux) < -50.0 * exptime_s / 30.0


def test_a_dark_of_the_wrong_scale_leaves_what_is_missing():
    image = (100.0 + 60.0 * glow()).astype(np.float32)
    zero = np.zeros(SHAPE, np.float32)
    clean, _ = subtract_dark(image, zero, glow(), zero, 30.0)
    assert np.allclose(clean, 100.0 + 30.0 * glow(), atol=0.01)


def test_the_noise_of_the_master_enters_the_variance():
    rng = np.random.default_rng(3)
    sigma, exptime_s = 0.02, 300.0  # electrons per second of a dark from a few frames
    dark = (glow() + rng.normal(0.0, sigma, SHAPE)).astype(np.float32)
    image = (400.0 + exptime_s * glow() + rng.normal(0.0, 5.0, SHAPE)).astype(np.float32)
    clean, variance = subtract_dark(
        image, np.full(SHAPE, 25.0, np.float32), dark, np.full(SHAPE, sigma**2, np.float32), exptime_s
    )
    assert clean.var() == pytest.approx(variance.mean(), rel=0.05)
    assert variance.mean() == pytest.approx(25.0 + 36.0, rel=1e-4)


@pytest.mark.parametrize("exptime_s", [-1.0, np.nan, np.inf])
def test_an_exposure_time_that_is_none_is_named(exptime_s):
    plane = np.zeros((4, 4), np.float32)
    with pytest.raises(UnprocessableData, match="exposure time"):
        subtract_dark(plane, plane, plane, plane, exptime_s)
