"""Whitening of differences, and what resampling and convolution do to noise."""

import numpy as np
import pytest
from scipy.signal import fftconvolve

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import MaskedImage
from lap_assets.science.block_transform import lay_blocks, transfer_functions
from lap_assets.science.decorrelation import (
    describe_noise,
    lay_noise_blocks,
    mean_over_frequencies,
    measure_mix,
    noise_gain,
    warp_correlation,
    warp_power,
    whiten_difference,
    whiten_psf,
    whitening_filter,
)
from lap_assets.science.warp_kernels import noise_correlation
from lap_assets_tests.science.difference_fields import DrawnPsf


def gaussian(sigma, radius=9):
    u = np.arange(-radius, radius + 1.0)
    kernel = np.exp(-0.5 * (u[:, None] ** 2 + u[None, :] ** 2) / sigma**2)
    return kernel / kernel.sum()


def correlate_lags(image, lags):
    ny, nx = image.shape
    return np.array([np.mean(image[: ny - dy, : nx - dx] * image[dy:, dx:]) for dx, dy in lags]) / np.mean(image**2)


def draw_difference(kernel, variances, n=700, seed=2):
    """White noise of the first variance minus white noise of the second, convolved; both variance planes."""
    rng = np.random.default_rng(seed)
    broad = rng.normal(0, np.sqrt(variances[0]), (n, n))
    sharp = fftconvolve(rng.normal(0, np.sqrt(variances[1]), (n, n)), kernel, mode="same")
    planes = np.full((n, n), variances[0], np.float32), np.full((n // 2, n // 2), variances[1], np.float32)
    gain = noise_gain(kernel, 1.0)
    image = MaskedImage((broad - sharp).astype(np.float32), np.zeros((n, n), np.int16), np.zeros((n, n), np.float32))
    image.var[:] = variances[0] + gain * variances[1]
    return image, planes


LAGS = [(1, 0), (0, 1), (1, 1), (2, 0), (3, 0), (2, 2)]


@pytest.mark.parametrize("variances", [(1.0, 1.0), (1.0, 4.0), (1.0, 10.0)])
def test_whitened_noise_is_white_with_the_variance_stated(variances):
    """LAP-30 (DMTN-021): a first lag over 0.02 before, all below 0.01 after; variance true to 1.5 %."""
    kernel = gaussian(1.5)
    image, planes = draw_difference(kernel, variances)
    before = correlate_lags(image.sci, LAGS)
    grid = lay_noise_blocks(image.shape)
    mix = measure_mix(grid, planes[0][::4, ::4], planes[1][::2, ::2], (1.0, 1.0))
    told, _ = describe_noise(mix, kernel, (1.0, 1.0), whitened=False)
    middle = told.shape[0] // 2
    assert before == pytest.approx([told[middle + dy, middle + dx] for dx, dy in LAGS], abs=0.01)
    whiten_difference(image, planes, kernel, grid, mix, (1.0, 1.0))
    inner = np.s_[30:-30, 30:-30]
    assert np.abs(before[0]) > 0.02
    assert np.abs(correlate_lags(image.sci[inner], LAGS)).max() < 0.01
    assert np.var(image.sci[inner]) == pytest.approx(np.median(image.var), rel=0.015)
    white, factor = describe_noise(mix, kernel, (1.0, 1.0), whitened=True)
    assert factor == pytest.approx(1.0, abs=1e-3)
    white[white.shape[0] // 2, white.shape[0] // 2] = 0
    assert np.abs(white).max() < 1e-3


def test_the_filter_follows_the_noise_from_block_to_block():
    """LAP-30: a template four times noisier in one half is white in both."""
    kernel = gaussian(1.5)
    left, planes = draw_difference(kernel, (1.0, 0.5), seed=3)
    right, noisy = draw_difference(kernel, (1.0, 4.0), seed=4)
    image = MaskedImage(*(np.hstack([getattr(one, name) for one in (left, right)]) for name in ("sci", "mask", "var")))
    both = tuple(np.hstack(pair) for pair in zip(planes, noisy, strict=True))
    grid = lay_noise_blocks(image.shape)
    mix = measure_mix(grid, both[0][::4, ::4], both[1][::2, ::2], (1.0, 1.0))
    whiten_difference(image, both, kernel, grid, mix, (1.0, 1.0))
    for part in (np.s_[50:-50, 50:350], np.s_[50:-50, 1050:-50]):
        assert np.abs(correlate_lags(image.sci[part], LAGS)).max() < 0.02
        assert np.var(image.sci[part]) == pytest.approx(np.median(image.var[part]), rel=0.03)


def test_the_psf_goes_through_the_filter_and_keeps_the_flux():
    """LAP-30: sharper than before, sum 1, and what a source on the whitened image looks like to 1 % of its peak."""
    kernel, psf = gaussian(1.5), DrawnPsf(4.2)
    n = 320
    image, planes = draw_difference(kernel, (1.0, 2.0), n=n)
    image.sci[:] = 0
    stamp = psf.evaluate(0, 0)
    image.sci[160 - 22 : 160 + 23, 160 - 22 : 160 + 23] = stamp
    grid = lay_noise_blocks(image.shape)
    mix = measure_mix(grid, planes[0][::4, ::4], planes[1][::2, ::2], (1.0, 1.0))
    whiten_difference(image, planes, kernel, grid, mix, (1.0, 1.0))
    seen = whiten_psf(psf, grid, mix, kernel).evaluate(160, 160)
    half = seen.shape[0] // 2
    shown = image.sci[160 - half : 160 + half + 1, 160 - half : 160 + half + 1]
    assert seen.max() > 1.05 * stamp.max()
    assert np.abs(shown / shown.sum() - seen).max() < 0.01 * seen.max()
    assert image.sci.sum() == pytest.approx(stamp.sum(), rel=0.002)


def test_filter_is_one_where_the_kernel_smooths_nothing():
    power = np.abs(transfer_functions(np.ones((1, 1, 1)), 96)[0]) ** 2
    assert whitening_filter(power, 3.0) == pytest.approx(1.0, abs=1e-6)
    wide = np.abs(transfer_functions(gaussian(2.0)[None], 96)[0]) ** 2
    # far from zero frequency only the unconvolved image has noise
    assert whitening_filter(wide, 3.0)[0, -1] == pytest.approx(2.0, rel=1e-3)
    assert whitening_filter(wide, 3.0)[0, 0] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("noisecov", [1.0, 1.15, 1.3])
def test_correlation_of_resampled_noise_has_the_sum_told(noisecov):
    """NOISECOV is the sum of the correlation over all lags; 1 is white."""
    correlation = warp_correlation(11, noisecov)
    assert correlation.sum() == pytest.approx(noisecov, rel=1e-6)
    assert correlation[5, 5] == 1.0
    assert warp_power(96, noisecov)[0, 0] == pytest.approx(noisecov, rel=1e-6)
    assert mean_over_frequencies(warp_power(96, noisecov), 96) == pytest.approx(1.0, rel=1e-6)
    usual = noise_correlation()
    assert warp_correlation(11, usual.sum() ** 2)[5] == pytest.approx(usual, rel=1e-6)


def test_gain_of_a_wide_kernel_is_that_of_noise_at_low_frequencies():
    kernel = gaussian(4.0, radius=20)
    assert noise_gain(kernel, 1.0) == pytest.approx(np.sum(kernel**2), rel=1e-9)
    assert noise_gain(kernel, 1.3) == pytest.approx(1.3 * np.sum(kernel**2), rel=0.01)


def test_no_common_pixel_is_said():
    with pytest.raises(UnprocessableData, match="no usable pixel in common"):
        measure_mix(lay_blocks((400, 400), 20), np.ones((100, 100)), np.zeros((100, 100)), (1.0, 1.0))
