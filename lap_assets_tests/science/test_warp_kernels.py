"""Interpolation kernels: moments, formulas, what they do to white noise."""

import numpy as np
import pytest

from lap_assets.errors import BadInput
from lap_assets.science.warp_kernels import KERNELS, PHASES, TAPS, kernel_power, kernel_table, noise_correlation
from lap_assets_tests.science.warp_fields import chip_wcs, resample

OFFSET = np.arange(PHASES + 1)[:, None] / PHASES - np.arange(-2, 4)[None, :]


@pytest.mark.parametrize(("kernel", "highest"), [("lanczos3", 3), ("spline", 3), ("bilinear", 1), ("nearest", 0)])
def test_polynomials_up_to_their_degree_are_reproduced(kernel, highest):
    """Σw = 1 and Σw dᵏ = 0: a sky that is a polynomial of that degree stays exactly what it is."""
    weights = kernel_table(kernel)[:, :TAPS].astype(float)
    for power in range(highest + 1):
        assert np.sum(weights * OFFSET**power, axis=1) == pytest.approx(float(power == 0), abs=2e-6)
    assert not kernel_table(kernel)[:, TAPS:].any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_on_a_pixel_the_pixel_itself(kernel):
    table = kernel_table(kernel)
    assert table[0, :TAPS] == pytest.approx([0, 0, 1, 0, 0, 0], abs=1e-6)
    assert table[PHASES, :TAPS] == pytest.approx([0, 0, 0, 1, 0, 0], abs=1e-6)
    assert table[1:-1][::-1, :TAPS] == pytest.approx(table[1:-1, TAPS - 1 :: -1], abs=1e-6) or kernel == "nearest"


def test_spline_is_that_of_keys():
    """Values of Keys (1981), eq. 25, at half a pixel."""
    half = kernel_table("spline")[PHASES // 2, :TAPS]
    assert half == pytest.approx([0.0234375 / 2.25, -0.09375, 0.5833333, 0.5833333, -0.09375, 0.0104167], abs=2e-6)


def test_unknown_kernel_is_named():
    with pytest.raises(BadInput, match="unknown kernel 'sinc'; there are: lanczos3, spline"):
        kernel_table("sinc")


@pytest.mark.parametrize("kernel", KERNELS)
def test_correlation_and_power_are_those_of_resampled_noise(kernel):
    rng = np.random.default_rng(4)
    sci = rng.normal(0, 1, (700, 700)).astype(np.float32)
    out, _ = resample(sci, chip_wcs(700), n_out=700, kernel=kernel)
    inner = out.sci[60:640, 60:640]
    rho = noise_correlation(kernel)
    assert rho[5] == 1.0 and len(rho) == 11
    assert np.mean(inner**2) == pytest.approx(kernel_power(kernel)[:-1].mean() ** 2, rel=0.02)
    for lag in (1, 2, 3):
        measured = np.mean(inner[:, lag:] * inner[:, :-lag]) / np.mean(inner**2)
        assert measured == pytest.approx(rho[5 + lag], abs=0.012)
