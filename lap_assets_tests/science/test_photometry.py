"""Zero points, aperture corrections and depth: mmag where there are stars, honest failure where there are none."""

import numpy as np
import pytest

from lap_assets.science.photometry import (
    combine_aperture_corrections,
    fit_zero_point,
    measure_aperture_correction,
    measure_depth,
)


def test_zero_point_is_recovered_to_its_error_with_variables_among_the_stars():
    rng = np.random.default_rng(1)
    mag = rng.uniform(15, 20, 150)
    flux = 10 ** (0.4 * (29.5 - mag))
    err = np.sqrt(flux + 3e3)
    seen = mag + rng.normal(0, 0.01, 150)
    seen[:10] -= 0.4
    found = fit_zero_point(flux + rng.normal(0, err), err, seen)
    assert found.mag == pytest.approx(29.5, abs=3.5 * found.err_mag + 1e-4)
    assert found.err_mag < 0.002
    assert 135 <= found.n_stars <= 145
    assert abs(np.mean(seen + 2.5 * np.log10(flux)) - 29.5) > 0.02  # a plain mean is off


def test_no_star_no_zero_point():
    assert fit_zero_point(np.array([1e4]), np.array([10.0]), np.array([np.nan])) is None
    assert fit_zero_point(np.array([-5.0]), np.array([10.0]), np.array([18.0])) is None


def test_aperture_correction_is_the_ratio_and_few_stars_are_drawn_to_the_mean():
    rng = np.random.default_rng(2)
    small = 10 ** rng.uniform(4, 5, 40)
    ratio, error = measure_aperture_correction(small, 1.08 * small * rng.normal(1, 0.004, 40), np.sqrt(small))
    assert ratio == pytest.approx(1.08, abs=4 * error)
    assert error < 0.0015
    assert measure_aperture_correction(np.zeros(0), np.zeros(0), np.zeros(0)) == (1.0, 0.0)
    shared = combine_aperture_corrections(np.array([1.080, 1.082, 1.120]), np.array([0.001, 0.001, 0.02]))
    assert shared[0] == pytest.approx(1.080, abs=5e-4) and shared[2] < 1.083


def test_depth_is_where_optimal_photometry_of_a_gaussian_star_has_snr_5():
    fwhm, sky_rms, zero_point = 3.0, 20.0, 30.0
    y, x = np.mgrid[-20:21, -20:21]
    psf = np.exp(-0.5 * (x**2 + y**2) / (fwhm / 2.3548) ** 2)
    psf /= psf.sum()
    error = sky_rms / np.sqrt(np.sum(psf**2))
    assert measure_depth(zero_point, sky_rms, fwhm) == pytest.approx(zero_point - 2.5 * np.log10(5 * error), abs=0.005)
