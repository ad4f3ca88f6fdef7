"""Forced photometry on images drawn by GalSim: fluxes to mmag, errors as large as the scatter, neighbours removed."""

import galsim
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.science.forced import (
    cut_stamps,
    measure_gauss_fluxes,
    measure_psf_fluxes,
    render_psfs,
    shift_stamps,
    solve_matched_weights,
    sum_ellipses,
)
from lap_assets_tests.science.lensing_fields import StampPsf

SCALE, PITCH = 0.4, 40
MMAG = 1e-3 * np.log(10) / 2.5


def draw_field(profile, psf, flux, n=64, noise=0.0, seed=1):
    """n copies of a profile seen through a PSF, on a grid with random sub-pixel places; image, variance, x, y."""
    rng = np.random.default_rng(seed)
    side = int(np.sqrt(n))
    image = rng.normal(0.0, 1.0, (side * PITCH, side * PITCH)) * noise
    seen = galsim.Convolve(profile, psf) if profile else psf
    xs, ys = [], []
    for k in range(side * side):
        dx, dy = rng.uniform(-0.5, 0.5, 2)
        j, i = (k // side) * PITCH, (k % side) * PITCH
        stamp = seen.drawImage(nx=PITCH, ny=PITCH, scale=SCALE, offset=(dx, dy)).array
        image[j : j + PITCH, i : i + PITCH] += flux * stamp
        xs.append(i + (PITCH - 1) / 2 + dx)
        ys.append(j + (PITCH - 1) / 2 + dy)
    return image.astype(np.float32), np.full(image.shape, noise**2, np.float32), np.array(xs), np.array(ys)


def nothing_else(image):
    return np.zeros(image.shape, bool), np.zeros(image.shape, np.int32)


def measure_stamps(image, var, x, y, psf, size=31):
    ids = np.zeros(len(x), np.int64)
    return cut_stamps(image, var, *nothing_else(image), ids, x, y, size), render_psfs(StampPsf(psf, SCALE, size), x, y)


@settings(deadline=None)
@given(a=st.floats(3, 8), ratio=st.floats(0.4, 1), theta=st.floats(-1.5, 1.5), x=st.floats(15, 17), y=st.floats(14, 16))
def test_area_of_an_ellipse_is_right_to_one_and_a_half_percent(a, ratio, theta, x, y):
    image = np.ones((32, 32), np.float32)
    one = [np.array([v]) for v in (x, y, a, max(a * ratio, 2.5), theta)]
    sums = sum_ellipses(image, image, *nothing_else(image), np.zeros(1, int), *one)
    assert sums.flux[0] == pytest.approx(np.pi * one[2][0] * one[3][0], rel=0.015)
    assert sums.flux[0] == pytest.approx(sums.area[0])


def test_neighbours_and_holes_are_filled_in_by_symmetry():
    """A neighbour five times as bright adds its wings, a tenth of the flux; unmasked, half; a hole adds nothing."""
    psf = galsim.Moffat(beta=3, fwhm=1.0)
    image, var, x, y = draw_field(None, psf, 100.0, n=1)
    clean = image.copy()
    other = psf.drawImage(nx=PITCH, ny=PITCH, scale=SCALE, offset=(7, 0)).array * 500
    image = image + other.astype(np.float32)
    segments = np.where(other > 0.3, 2, 0).astype(np.int32)
    empty = np.zeros(image.shape, bool)
    place = np.array([1]), x, y, np.array([6.0]), np.array([6.0]), np.zeros(1)
    truth = sum_ellipses(clean, var, empty, segments * 0, *place).flux[0]
    naive = sum_ellipses(image, var, empty, segments * 0, *place).flux[0]
    filled = sum_ellipses(image, var, empty, segments, *place)
    assert naive > 1.5 * truth
    assert truth < filled.flux[0] < 1.12 * truth
    assert 0.1 < filled.foreign_area[0] / filled.area[0] < 0.6
    hole = other > 3.0
    holed = sum_ellipses(np.where(hole, 0, clean), var, hole, segments * 0, *place)
    assert holed.flux[0] == pytest.approx(truth, rel=0.05)
    assert 0.05 < holed.empty_area[0] / holed.area[0] < 0.5


def test_objects_at_the_edge_of_the_image_do_not_read_beyond_it():
    image = np.ones((20, 20), np.float32)
    place = np.array([1]), np.array([0.0]), np.array([19.0]), np.array([5.0]), np.array([5.0]), np.zeros(1)
    sums = sum_ellipses(image, image, *nothing_else(image), *place)
    assert sums.empty_area[0] == pytest.approx(0.75 * sums.area[0], rel=0.15)
    _, _, kind = cut_stamps(image, image, *nothing_else(image), np.array([1]), np.array([0.0]), np.array([19.0]), 11)
    assert (kind[0][:, :5] == 2).sum() + (kind[0][6:, 5:] == 2).sum() == 50


def test_psf_fluxes_are_unbiased_to_a_mmag_and_errors_honest():
    """64 stars at S/N 40: mean pull within 3/8, scatter of pulls 1; noiseless stars to 1.5 mmag at any place."""
    psf = galsim.Moffat(beta=3, fwhm=1.0).shear(e1=0.05)
    image, var, x, y = draw_field(None, psf, 1000.0, noise=1e-3)
    stamps, psfs = measure_stamps(image, var, x, y, psf)
    flux, _ = measure_psf_fluxes(*stamps, psfs)
    assert flux == pytest.approx(np.full(64, 1000.0), rel=MMAG * 1.5)
    image, var, x, y = draw_field(None, psf, 1000.0, noise=5.0)
    stamps, psfs = measure_stamps(image, var, x, y, psf)
    flux, error = measure_psf_fluxes(*stamps, psfs)
    pulls = (flux - 1000.0) / error
    assert abs(pulls.mean()) < 3 / 8
    assert 0.8 < pulls.std() < 1.25


def test_gauss_fluxes_give_colours_that_do_not_depend_on_the_seeing():
    """A galaxy of 0.6" seen through 0.9" and 1.3": matched fluxes equal to 2 mmag; plain apertures differ by > 100."""
    galaxy = galsim.Exponential(half_light_radius=0.6).shear(g1=0.2)
    matched, plain = [], []
    for fwhm in (0.9, 1.3):
        psf = galsim.Moffat(beta=3, fwhm=fwhm).shear(e2=0.03)
        image, var, x, y = draw_field(galaxy, psf, 1000.0, n=16, noise=1e-3)
        stamps, psfs = measure_stamps(image, var, x, y, psf)
        matched.append(measure_gauss_fluxes(*stamps, psfs, 2.0 / SCALE)[0])
        ones = np.full(16, 2.5)
        segments = nothing_else(image)
        plain.append(sum_ellipses(image, var, *segments, np.zeros(16, int), x, y, ones, ones, ones * 0).flux)
    assert matched[0] == pytest.approx(matched[1], rel=2 * MMAG)
    assert np.all(plain[0] / plain[1] > 1 + 100 * MMAG)


def test_gauss_flux_of_a_star_is_its_total_flux_and_errors_are_honest():
    psf = galsim.Moffat(beta=3, fwhm=1.1)
    image, var, x, y = draw_field(None, psf, 1000.0, n=100, noise=4.0)
    stamps, psfs = measure_stamps(image, var, x, y, psf)
    flux, error = measure_gauss_fluxes(*stamps, psfs, 2.0 / SCALE)
    pulls = (flux - 1000.0) / error
    assert abs(pulls.mean()) < 3 / 10
    assert 0.8 < pulls.std() < 1.25


def test_matched_weights_solve_their_equation():
    """Correlated with the PSF they give the Gaussian: checked at whole pixels around the centre, to 1e-3."""
    stamp = StampPsf(galsim.Moffat(beta=3, fwhm=1.0).shear(e1=0.1), SCALE).stamp
    weights = solve_matched_weights(stamp[None], 5.0)[0]
    sigma = 5.0 / 2.3548
    for dx, dy in ((0, 0), (2, 0), (0, -3), (3, 3)):
        seen = np.roll(stamp, (dy, dx), (0, 1))
        assert np.sum(seen * weights) == pytest.approx(np.exp(-(dx**2 + dy**2) / (2 * sigma**2)), abs=2e-3)


@settings(deadline=None)
@given(dx=st.floats(-0.5, 0.5), dy=st.floats(-0.5, 0.5))
def test_shifted_stamps_are_where_they_should_be(dx, dy):
    stamp = StampPsf(galsim.Gaussian(fwhm=1.2), SCALE).stamp
    moved = shift_stamps(stamp[None], np.array([dx]), np.array([dy]))[0]
    yy, xx = np.mgrid[-15:16, -15:16]
    assert moved.sum() == pytest.approx(1.0, abs=1e-4)
    assert [(moved * xx).sum(), (moved * yy).sum()] == pytest.approx([dx, dy], abs=2e-3)


def test_fluxes_without_clean_pixels_are_nan():
    psf = galsim.Gaussian(fwhm=1.0)
    image, var, x, y = draw_field(None, psf, 100.0, n=1, noise=1.0)
    empty = np.ones(image.shape, bool)
    stamps = cut_stamps(image, var, empty, np.zeros(image.shape, np.int32), np.zeros(1, np.int64), x, y, 31)
    psfs = render_psfs(StampPsf(psf, SCALE), x, y)
    assert np.isnan(measure_psf_fluxes(*stamps, psfs)[0][0])
    assert np.isnan(measure_gauss_fluxes(*stamps, psfs, 5.0)[0][0])
