"""Sums over pixels (LV-11): fluxes and centroids are SExtractor's, as good as their errors say."""

import numpy as np
import pytest
import sep

from lap_assets.model.image import Mask
from lap_assets.science.apertures import find_half_light, measure_centroids, sum_apertures
from lap_assets_tests.science.star_fields import moffat_stamp, observe, star_field

SKY, FWHM = 600.0, 3.0


@pytest.fixture(scope="module")
def field():
    rng = np.random.default_rng(8)
    stars, x, y, flux = star_field(rng, (512, 512), 120, FWHM, flux=(2e4, 5e5))
    image = observe(rng, stars, SKY) - np.float32(SKY)
    return image, (stars + SKY + 25.0).astype(np.float32), np.zeros(image.shape, np.int16), x, y, flux


def test_aperture_fluxes_are_those_of_sep(field):
    """LV-11: 0.3 mmag of stars of S/N > 50, and the same errors to 1 per cent."""
    image, var, mask, x, y, _ = field
    flux, error = sum_apertures(image, var, mask, x, y, 4.5)
    theirs, their_error, _ = sep.sum_circle(image, x, y, 4.5, var=var, subpix=0)
    assert np.median(np.abs(flux / theirs - 1.0)) < 3e-4
    assert error == pytest.approx(their_error, rel=0.01)


def test_half_light_radii_are_those_of_sep(field):
    """LV-11: to 1 per cent."""
    image, _, mask, x, y, _ = field
    radius = find_half_light(image, mask, x, y, 13.5)
    theirs, _ = sep.flux_radius(image, x, y, np.full(len(x), 13.5), 0.5, subpix=5)
    assert np.median(np.abs(radius / theirs - 1.0)) < 0.01
    assert find_half_light(-image, mask, x, y, 13.5).max() == 0.0


def test_centroids_are_those_of_sep_and_scatter_as_their_errors_say(field):
    """LV-12: within 3 mpx of XWIN; pulls against the truth of 0.85 to 1.2."""
    image, var, mask, x, y, _ = field
    start = np.rint(x), np.rint(y)
    xw, yw, error, converged = measure_centroids(image, var, mask, *start, FWHM / 2.355)
    theirs_x, theirs_y, _ = sep.winpos(image, *start, np.full(len(x), FWHM / 2.355))
    assert converged.all()
    assert np.median(np.hypot(xw - theirs_x, yw - theirs_y)) < 3e-3
    pulls = np.concatenate([(xw - x) / error, (yw - y) / error])
    assert 0.85 < np.sqrt(np.mean(pulls**2)) < 1.2


def test_a_lost_pixel_of_a_star_is_replaced_by_the_one_opposite():
    """LV-11: a hole beside the core costs a star 4 per cent of its flux if it counts as nothing, 2 mmag so."""
    star = 1e5 * moffat_stamp(0.0, 0.0, FWHM)
    image, var = star.astype(np.float32), np.full(star.shape, 100.0, np.float32)
    mask = np.zeros(star.shape, np.int16)
    mask[20, 22] = int(Mask.COSMIC_RAY)
    centre = np.array([20.0]), np.array([20.0])
    whole, _ = sum_apertures(image, var, np.zeros_like(mask), *centre, 4.5)
    image[20, 22] = 5e4
    assert sum_apertures(image, var, mask, *centre, 4.5)[0] == pytest.approx(whole, rel=2e-3)
    # unmasked, it spoils the flux; with both pixels lost, the mean of the others is a rough guess
    assert sum_apertures(image, var, np.zeros_like(mask), *centre, 4.5)[0] > 1.3 * whole
    mask[20, 18] = int(Mask.BAD)
    assert sum_apertures(image, var, mask, *centre, 4.5)[0] == pytest.approx(whole, rel=0.06)


def test_where_nothing_is_left_the_error_says_so():
    image = np.ones((32, 32), np.float32)
    mask = np.full(image.shape, int(Mask.NO_DATA), np.int16)
    places = np.array([16.0]), np.array([16.0])
    assert np.isinf(sum_apertures(image, image, mask, *places, 3.0)[1]).all()
    assert np.isinf(sum_apertures(image, image, np.zeros_like(mask), places[0] + 100, places[1], 3.0)[1]).all()
    assert not measure_centroids(image, image, mask, *places, 1.3)[3].any()


def test_a_centroid_that_runs_off_is_given_back_as_it_was():
    slope = np.repeat(np.arange(64.0, dtype=np.float32)[None] ** 2, 64, axis=0)
    places = np.array([20.0]), np.array([32.0])
    xw, _, error, converged = measure_centroids(
        slope, np.ones_like(slope), np.zeros(slope.shape, np.int16), *places, 1.3
    )
    assert not converged[0] and xw[0] == 20.0 and error[0] >= 10.0
