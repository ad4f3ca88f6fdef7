"""Brighter-fatter (LV-11): bright stars become as small as faint ones again, round ones round, and no light is lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve

from lap_assets.science.brighter_fatter import restore_charge
from lap_assets_tests.science.star_fields import add_star
from lap_assets_tests.science.star_measures import measure_shape, sum_flux, to_mmag

SKY = 500.0


def make_kernel(strength=4e-7, stretch=1.6, half=6):
    """Negative in its middle, wider along y: charge is pushed along rows more than along columns."""
    v, u = np.mgrid[-half : half + 1, -half : half + 1]
    return -strength * np.exp(-0.5 * (u**2 + (v / stretch) ** 2) / 1.5**2)


def repel(true, kernel):
    """The forward model: what is measured of `true`, by plain numpy (F − ½ ∇·(F ∇(K ⊗ F)), closed borders)."""
    field = convolve(true, kernel, mode="nearest")
    moved = np.zeros_like(true)
    for axis in (0, 1):
        low = tuple(slice(None, -1) if k == axis else slice(None) for k in (0, 1))
        high = tuple(slice(1, None) if k == axis else slice(None) for k in (0, 1))
        flux = 0.5 * (true[low] + true[high]) * (field[high] - field[low])
        moved[low] += flux
        moved[high] -= flux
    return true - 0.5 * moved


def draw(flux, shape=(96, 96)):
    image = np.full(shape, SKY)
    add_star(image, 48.3, 47.6, flux, 3.5)
    return image


@pytest.mark.parametrize("flux", [2e4, 1e6])
def test_size_and_ellipticity_of_a_star_come_back(flux):
    true = draw(flux)
    measured = repel(true, make_kernel())
    restored, iterations = restore_charge(measured.astype(np.float32), make_kernel(), tolerance_e=0.1)
    size, shape = measure_shape(true, 48.3, 47.6, SKY)
    before, after = (measure_shape(image, 48.3, 47.6, SKY) for image in (measured, restored))
    assert abs(after[0] / size - 1.0) < 2e-4 and abs(after[1] - shape) < 2e-4
    assert iterations < 10
    if flux > 5e5:  # not switched on, a star just below full well is 1 % too large and pulled along x
        assert before[0] / size - 1.0 > 0.01 and before[1] - shape > 1e-3
    assert abs(to_mmag(sum_flux(restored, 48.3, 47.6, SKY), sum_flux(true, 48.3, 47.6, SKY))) < 0.5


def test_a_kernel_of_zeros_changes_nothing():
    measured = draw(1e6).astype(np.float32)
    restored, iterations = restore_charge(measured, np.zeros((5, 5)))
    assert np.array_equal(restored, measured) and iterations == 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), strength=st.floats(-5e-7, 5e-7))
def test_no_charge_is_lost_or_made(seed, strength):
    rng = np.random.default_rng(seed)
    measured = rng.uniform(0.0, 60000.0, (40, 56)).astype(np.float32)
    ignore = rng.uniform(size=measured.shape) < 0.02
    restored, _ = restore_charge(measured, make_kernel(strength), ignore)
    assert restored.sum(dtype=np.float64) == pytest.approx(measured.sum(dtype=np.float64), rel=1e-7)
    assert np.array_equal(restored[ignore], measured[ignore])


def test_a_hot_pixel_that_is_ignored_moves_no_charge_around_it():
    image = np.random.default_rng(5).normal(SKY, 20.0, (64, 64)).astype(np.float32)
    hot = image.copy()
    hot[30, 30] = 5e5
    ignore = np.zeros(image.shape, bool)
    ignore[30, 30] = True
    restored, _ = restore_charge(hot, make_kernel(), ignore)
    plain, _ = restore_charge(image, make_kernel())
    away = ~ignore
    assert np.abs(restored - plain)[away].max() < 0.1
    unguarded, _ = restore_charge(hot, make_kernel())
    assert np.abs(unguarded - plain)[away].max() > 10.0


def test_bands_of_rows_have_no_seams():
    """An image taller than a band: everywhere what the plain convolution of the whole image gives."""
    rng = np.random.default_rng(6)
    true = rng.uniform(100.0, 20000.0, (1100, 40))
    measured = repel(true, make_kernel(1e-7))
    restored, _ = restore_charge(measured.astype(np.float32), make_kernel(1e-7), tolerance_e=0.01)
    away = slice(8, -8)  # `repel` goes on beyond the border, the image does not
    assert np.abs(restored - true)[away, away].max() < 0.5
    assert np.abs(measured - true)[away, away].max() > 20.0
