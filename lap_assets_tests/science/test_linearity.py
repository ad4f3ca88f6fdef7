"""Linearity (LV-11): bright stars get back the light and the shape that a bent response took."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lap_assets.model.image import Mask
from lap_assets.science.linearity import linearize
from lap_assets_tests.science.star_fields import add_star, two_amplifier_chip
from lap_assets_tests.science.star_measures import measure_shape, sum_flux, to_mmag

C2, C3 = 1.5e-6, -5e-12


def bend(true, c2=C2, c3=C3):
    """Measured counts whose correction gives `true`: the cubic solved by Newton's method."""
    measured = np.array(true, float)
    for _ in range(50):
        value = measured * (1 + c2 * measured + c3 * measured**2)
        measured -= (value - true) / (1 + 2 * c2 * measured + 3 * c3 * measured**2)
    return measured


def bent_chip(limit=None, coefficients=(C2, C3)):
    chip = two_amplifier_chip(128)
    one = chip.amplifiers[0].model_copy(update={"linearity": coefficients, "linearity_max_adu": limit})
    return chip.model_copy(update={"amplifiers": (one, chip.amplifiers[1])})


def test_flux_and_size_of_a_bright_star_come_back_and_faint_ones_were_never_wrong():
    true = np.full((128, 128), 300.0)
    add_star(true, 30.0, 40.0, 5e5, 3.0)  # peak of 40,000 ADU
    add_star(true, 30.0, 90.0, 3e3, 3.0)
    measured = true.copy()
    measured[:, :64] = bend(true[:, :64])
    image, flags = linearize(measured.astype(np.float32), bent_chip().amplifiers)
    sky = float(bend(np.array([300.0]))[0])
    flux, (size, _) = sum_flux(true, 30.0, 40.0, 300.0), measure_shape(true, 30.0, 40.0, 300.0)
    assert to_mmag(sum_flux(measured, 30.0, 40.0, sky), flux) > 15.0
    assert measure_shape(measured, 30.0, 40.0, sky)[0] / size > 1.01
    assert abs(to_mmag(sum_flux(image, 30.0, 40.0, 300.0), flux)) < 0.1
    assert measure_shape(image, 30.0, 40.0, 300.0)[0] == pytest.approx(size, rel=1e-4)
    faint = sum_flux(true, 30.0, 90.0, 300.0)
    assert abs(to_mmag(sum_flux(measured, 30.0, 90.0, sky), faint)) < 3.0
    assert not flags.any()


def test_an_amplifier_without_coefficients_is_left_alone():
    measured = np.random.default_rng(1).uniform(0, 50000, (128, 128)).astype(np.float32)
    image, _ = linearize(measured, bent_chip().amplifiers)
    assert np.array_equal(image[:, 64:], measured[:, 64:]) and not np.array_equal(image[:, :64], measured[:, :64])


def test_beyond_the_limit_pixels_are_suspect_and_the_factor_stays_that_at_the_limit():
    measured = np.full((128, 128), 10000.0, np.float32)
    measured[5, 5], measured[5, 6] = 40000.0, 60000.0
    image, flags = linearize(measured, bent_chip(limit=40000.0).amplifiers)
    assert flags[5, 6] == int(Mask.SUSPECT) and np.count_nonzero(flags) == 1
    assert image[5, 6] / 60000.0 == pytest.approx(image[5, 5] / 40000.0, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(c2=st.floats(-2e-6, 2e-6), c3=st.floats(-5e-12, 5e-12), true=st.floats(0.0, 60000.0))
def test_correction_inverts_the_bent_response(c2, c3, true):
    measured = np.full((128, 128), bend(np.array([true]), c2, c3)[0], np.float32)
    image, _ = linearize(measured, bent_chip(coefficients=(c2, c3)).amplifiers)
    assert image[0, 0] == pytest.approx(true, rel=1e-6, abs=1e-3)
