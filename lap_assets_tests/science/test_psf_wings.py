"""Wings of PSFs along rings: their noise, their true profile, what stays as it was."""

import numpy as np
import pytest

from lap_assets.science.moffat import MoffatPsf
from lap_assets.science.psf_grid import PsfGrid
from lap_assets.science.psf_wings import _lay_rings, smooth_wings
from lap_assets_tests.science.difference_fields import draw_moffat

HALF, FWHM = 14, 3.0


def draw_grid(e, noise=0.0, seed=1):
    """The same elliptical PSF at four nodes, each with noise of its own, and the one without it."""
    truth = draw_moffat(2 * HALF + 1, [HALF], [HALF], [1.0], FWHM, beta=3.2, e=e)
    truth /= truth.sum()
    stamps = truth + np.random.default_rng(seed).normal(0, noise, (2, 2, *truth.shape)) if noise else truth
    stamps = np.broadcast_to(stamps, (2, 2, *truth.shape)).astype(np.float32).copy()
    return PsfGrid(np.array([0.0, 100.0]), np.array([0.0, 100.0]), stamps), truth


def measure_radius():
    y, x = np.mgrid[-HALF : HALF + 1, -HALF : HALF + 1]
    return np.hypot(x, y)


@pytest.mark.parametrize("e", [0.0, 0.1, -0.2])
def test_wings_without_noise_keep_their_profile_and_ellipse(e):
    """Beyond 2 FWHM within 5 % of the true profile and 1e-5 of the flux, within that the same to 1e-3."""
    grid, truth = draw_grid(e)
    smooth, r = smooth_wings(grid).stamps[0, 0], measure_radius()
    wings = (r > 2 * FWHM) & (r <= HALF)
    assert np.abs(smooth - truth)[wings].max() < 1e-5
    assert np.abs(smooth / truth - 1.0)[wings & (r < 3 * FWHM)].max() < 0.05
    assert smooth[r < 1.5 * FWHM] == pytest.approx(truth[r < 1.5 * FWHM], rel=1e-3)
    assert smooth.sum() == pytest.approx(1.0, abs=1e-6)


def test_noise_of_pixels_in_the_wings_is_that_of_rings():
    """Noise of 1e-4 of the flux in each pixel falls to a quarter or less beyond 2.5 FWHM."""
    grid, truth = draw_grid(0.05, noise=1e-4)
    r = measure_radius()
    wings = (r > 2.5 * FWHM) & (r <= HALF)
    before, after = (np.sqrt(np.mean((one.stamps - truth)[:, :, wings] ** 2)) for one in (grid, smooth_wings(grid)))
    assert before == pytest.approx(1e-4, rel=0.1)
    assert after < 0.25 * before


def test_what_is_not_known_stays_unknown_and_profiles_stay_as_they_are():
    grid, _ = draw_grid(0.0)
    grid.stamps[1, 0] = 0.0
    smooth = smooth_wings(PsfGrid(grid.x, grid.y, grid.stamps))
    assert smooth.known.tolist() == [[True, True], [False, True]]
    assert (smooth.stamps[1, 0] == 0.0).all()
    profile = MoffatPsf(FWHM)
    assert smooth_wings(profile) is profile
    small = PsfGrid(grid.x, grid.y, grid.stamps[:, :, HALF - 5 : HALF + 6, HALF - 5 : HALF + 6])
    assert smooth_wings(small) is small


def test_a_ring_that_no_pixel_falls_into_is_left_out():
    """Of a round PSF of 0.89 px, between the diagonal neighbours and the second ones along the axes."""
    r = np.maximum(measure_radius().ravel(), 1.0)
    levels, profiles = _lay_rings(r, 1.6 * 0.89, HALF)
    assert np.isfinite(levels).all() and np.isfinite(profiles).all()
    law = r**-5.0
    assert levels @ law @ profiles == pytest.approx(law)
