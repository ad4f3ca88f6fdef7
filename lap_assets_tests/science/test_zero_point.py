"""Zero points against reference magnitudes (LV-07, LV-11): mmag where there are stars, colour terms or none."""

import numpy as np
import pytest

from lap_assets.science.zero_point import fit_zero_point, transform_magnitudes


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


def test_a_colour_term_takes_the_bias_out_that_a_band_of_another_shape_puts_in():
    """LV-11: a camera whose g is bluer than the catalogue's, by 0.12 mag per mag of g − r."""
    rng = np.random.default_rng(3)
    r, colour = rng.uniform(15, 19, 300), rng.normal(0.7, 0.3, 300)
    magnitudes = {"g": r + colour, "r": r}
    natural = magnitudes["g"] + 0.12 * colour
    flux = 10 ** (0.4 * (29.0 - natural))
    err = np.sqrt(flux)
    with_term = fit_zero_point(flux, err, transform_magnitudes(magnitudes, "g", ("g", "r"), 0.12))
    without = fit_zero_point(flux, err, transform_magnitudes(magnitudes, "g", None, 0.0))
    assert with_term.mag == pytest.approx(29.0, abs=1e-6) and with_term.rms_mag < 1e-6
    assert abs(without.mag - 29.0) > 0.05 and without.rms_mag > 0.02


def test_stars_without_colour_or_of_strange_colour_are_left_out():
    magnitudes = {"g": np.array([18.0, 18.5, np.nan, 22.0]), "r": np.array([17.5, 17.9, 17.0, 18.0])}
    mag = transform_magnitudes(magnitudes, "r", ("g", "r"), -0.1)
    assert mag[:2] == pytest.approx([17.45, 17.84])
    assert np.isnan(mag[2:]).all()
    assert np.isnan(transform_magnitudes({"r": np.ones(2), "g": np.full(2, np.nan)}, "r", ("g", "r"), 0.1)).all()
