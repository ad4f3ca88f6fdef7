"""Variance smoothed by the square of a kernel."""

import numpy as np
import pytest
from scipy.signal import fftconvolve

from lap_assets.science.convolved_variance import smooth_variance


@pytest.mark.parametrize("shape", [(80, 120), (81, 121)])
def test_variance_is_smoothed_by_the_square_of_the_kernel(shape):
    """To 3 % of what the exact convolution gives on a smooth plane, bad pixels notwithstanding."""
    v, u = np.mgrid[: shape[0], : shape[1]]
    variance = (2.0 + np.sin(u / 9.0) + np.cos(v / 7.0) * 0.5).astype(np.float32)
    kernel = np.exp(-0.5 * (np.arange(-6, 7)[:, None] ** 2 / 4.0 + np.arange(-6, 7)[None, :] ** 2 / 2.0))
    exact = fftconvolve(variance, kernel**2 / np.sum(kernel**2), mode="same")
    bad = np.random.default_rng(1).random(shape) < 0.02
    variance[bad] = 1e6
    smooth = smooth_variance(variance, bad, kernel)
    assert smooth.shape == tuple((n + 1) // 2 for n in shape)
    rows, columns = shape[0] // 2, shape[1] // 2
    coarse = exact[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean(axis=(1, 3))
    near = np.s_[8:-8, 8:-8]
    assert np.abs(smooth[:rows, :columns][near] / coarse[near] - 1.0).max() < 0.03
