"""Aperture corrections and depth: mmag where there are stars, honest failure where there are none."""

import numpy as np
import pytest

from lap_assets.science.photometry import (
    combine_aperture_corrections,
    measure_aperture_correction,
    measure_depth,
)


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
