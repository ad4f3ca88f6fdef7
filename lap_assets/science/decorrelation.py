"""Noise of a difference: its correlation, and the filter that makes it white again.

A difference I − K⊗T of two white images has the power v_I + v_T |K̂|²: the kernel smooths the template's noise. The
filter φ̂ = √[(v_I + v_T κ²) / (v_I + v_T |K̂|²)], κ = K̂(0), makes it flat and leaves the fluxes (Reiss & Lupton 2016,
LSST DMTN-021). Warps are not white: resampling leaves all of them one correlation, which stays in and which NOISECOV
accounts for. Here: these filters, and gains of variance. Not here: fitting K (`matching_kernel`), applying it
(`alard_lupton`).
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import fft

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import UNUSABLE, MaskedImage
from lap_assets.science.block_transform import BlockGrid, lay_blocks, transfer_functions
from lap_assets.science.psf_grid import PsfGrid, lay_nodes
from lap_assets.science.warp_kernels import noise_correlation

_REACH_PX = 20  # beyond which the filter has no weight to speak of
_GRID = 96  # px of the transform on which gains are summed


@dataclass(frozen=True)
class NoiseMix:
    """Noise of the two images over the difference, on the blocks of a grid.

    Attributes
    ----------
    broad, sharp : (n_rows, n_columns) float64
        Noise power at low frequencies (median variance times NOISECOV) of the image left alone and the one convolved.
    typical : (float, float)
        Median variances of the two over all pixels that both have.
    """

    broad: np.ndarray
    sharp: np.ndarray
    typical: tuple[float, float]


def autocorrelate(kernel: np.ndarray) -> np.ndarray:
    """Full autocorrelation of a square kernel, centred."""
    size = 2 * kernel.shape[0] - 1
    return np.fft.fftshift(np.fft.irfft2(np.abs(np.fft.rfft2(kernel, (size, size))) ** 2, (size, size)))


def warp_correlation(size: int, noisecov: float) -> np.ndarray:
    """(size, size) correlation of the noise of a resampled image, centred; size odd.

    That of the resampling kernel, averaged over phases, with its lags scaled so that their sum is NOISECOV: phases are
    seldom evenly spread. 1 stands for white noise.
    """
    line = np.zeros(size)
    rho = noise_correlation()
    lags = rho.copy()
    lags[rho.size // 2] = 0.0
    lags *= np.clip((np.sqrt(max(noisecov, 0.0)) - 1.0) / lags.sum(), 0.0, 1.5)
    lags[rho.size // 2] = 1.0
    reach = min(size // 2, rho.size // 2)
    line[size // 2 - reach : size // 2 + reach + 1] = lags[rho.size // 2 - reach : rho.size // 2 + reach + 1]
    return line[:, None] * line[None, :]


def noise_gain(kernel: np.ndarray, noisecov: float) -> float:
    """Σ KᵢKⱼ ρ(i−j): variance of a convolved pixel of resampled noise of unit variance."""
    auto = autocorrelate(kernel)
    return float(np.sum(auto * warp_correlation(auto.shape[0], noisecov)))


def warp_power(side: int, noisecov: float) -> np.ndarray:
    """(side, side // 2 + 1) power spectrum of resampled noise of unit variance, on a transform of `side` px."""
    size = min(noise_correlation().size, side - 1 + side % 2)
    padded = np.zeros((side, side))
    padded[:size, :size] = warp_correlation(size, noisecov)
    return np.maximum(np.fft.rfft2(np.roll(padded, (-(size // 2), -(size // 2)), axis=(0, 1))).real, 0.0)


def mean_over_frequencies(half: np.ndarray, side: int) -> np.ndarray:
    """Mean over all frequencies of real quantities (…, side, side // 2 + 1) given on the half plane."""
    weight = np.full(half.shape[-1], 2.0)
    weight[0] = 1.0
    if side % 2 == 0:
        weight[-1] = 1.0
    return (half * weight).sum(axis=(-2, -1)) / side**2


def whitening_filter(power: np.ndarray, mix: float | np.ndarray) -> np.ndarray:
    """φ̂ at frequencies where |K̂|² is `power` (its first element that at frequency 0), for `mix` = v_sharp / v_broad."""
    total = power.ravel()[0]
    return np.sqrt((1.0 + mix * total) / (1.0 + mix * power))


def whiten_difference(
    image: MaskedImage, variances: tuple[np.ndarray, np.ndarray], kernel: np.ndarray, grid: BlockGrid, mix: NoiseMix,
    noisecov: tuple[float, float],
) -> None:  # fmt: skip
    """Whiten `image` in place; masked pixels, set to zero, spread nothing.

    The filter follows the noise of the two images from block to block, with the kernel of the middle of the image:
    where the kernel is wider or narrower than that by 5 %, the noise keeps a correlation of about 0.01.

    Parameters
    ----------
    image : MaskedImage
        Difference; `sci` and `var` are replaced.
    variances : (ny, nx) float32 and (ny / 2, nx / 2) float32
        Of the image left alone, and of the convolved one, of `smooth_variance`.
    kernel : (s, s) float64
    grid, mix
        Of `lay_noise_blocks` and `measure_mix`.
    noisecov : (float, float)
        Covariance factors of the two.
    """
    power = np.abs(transfer_functions(kernel[None], grid.side)[0]) ** 2
    coarse = np.abs(transfer_functions(kernel[None], _GRID)[0]) ** 2
    shapes = [warp_power(_GRID, factor) for factor in noisecov]
    source = np.where(image.mask & np.int16(UNUSABLE) == 0, image.sci, np.float32(0))
    image.sci = np.empty_like(source)
    block = np.empty((1, grid.side, grid.side), np.float32)
    for row in range(grid.n_rows):
        ratio = (mix.sharp[row] / mix.broad[row]).astype(np.float32)
        for column in range(grid.n_columns):
            grid.cut((source,), row, column, block)
            spectrum = fft.rfft2(block, workers=1)
            _whiten_spectra(spectrum, power, ratio[column : column + 1], power[0, 0])
            blocks = fft.irfft2(spectrum, (grid.side, grid.side), overwrite_x=True, workers=1)
            grid.paste(blocks, (image.sci,), row, column)
        first, last = grid.bounds(row)
        gains = _gains(coarse, ratio, shapes).astype(np.float32)
        _mix_variance(variances[0][first:last], variances[1], gains, grid.inner, first, image.var[first:last])
    image.sci[image.var <= 0] = 0


def lay_noise_blocks(shape: tuple[int, int]) -> BlockGrid:
    """Blocks of some 300 px for `whiten_difference`."""
    return lay_blocks(shape, _REACH_PX)


def measure_mix(
    grid: BlockGrid, broad: np.ndarray, sharp: np.ndarray, noisecov: tuple[float, float], step: int = 4
) -> NoiseMix:
    """Noise of both images in each block; that of the whole image where a block has none.

    Parameters
    ----------
    grid : BlockGrid
    broad, sharp : (ny / step, nx / step)
        Variances of the image left alone and of the one convolved, of some rows and columns: medians to 1 %.
    noisecov : (float, float)
    step : int
        From one row and column to the next.

    Raises
    ------
    UnprocessableData
        If the two have no pixel in common.
    """
    both = (broad > 0) & (sharp > 0) & np.isfinite(broad) & np.isfinite(sharp)
    if not both.any():
        raise UnprocessableData("science image and template have no usable pixel in common")
    typical = float(np.median(broad[both])), float(np.median(sharp[both]))
    levels = np.empty((2, grid.n_rows, grid.n_columns))
    for row, column in np.ndindex(grid.n_rows, grid.n_columns):
        (top, bottom), (left, right) = grid.bounds(row), grid.columns(column)
        part = np.s_[top // step : -(-bottom // step), left // step : -(-right // step)]
        here = both[part]
        for plane, variance, usual in zip(levels, (broad, sharp), typical, strict=True):
            plane[row, column] = np.median(variance[part][here]) if here.any() else usual
    return NoiseMix(levels[0] * noisecov[0], levels[1] * noisecov[1], typical)


def _gains(power: np.ndarray, ratio: np.ndarray, shapes) -> np.ndarray:
    """(n, 2) gains of variance per pixel of resampled noise: of the broad image (by φ), of the sharp one (by φK)."""
    squares = whitening_filter(power, ratio[:, None, None].astype(np.float64)) ** 2
    parts = [squares * shapes[0], squares * power * shapes[1]]
    return np.stack([mean_over_frequencies(part, _GRID) for part in parts], axis=1)


def whiten_psf(psf, grid: BlockGrid, mix: NoiseMix, kernel: np.ndarray) -> PsfGrid:
    """PSF of the whitened difference at nodes: that of the image left alone, through the filter of its block."""
    nodes_x, nodes_y = lay_nodes(grid.shape)
    x, y = (plane.ravel() for plane in np.meshgrid(nodes_x, nodes_y))
    stamps = psf.evaluate_many(x, y)
    size = max(stamps.shape[-1], 2 * int(np.ceil(3.5 * psf.fwhm_px)) + 1)
    side = fft.next_fast_len(max(size, stamps.shape[-1]) + 2 * _REACH_PX, real=True)
    power = np.abs(transfer_functions(kernel[None], side)[0].astype(np.complex128)) ** 2
    row = np.minimum((y / grid.inner).astype(int), grid.n_rows - 1)
    column = np.minimum((x / grid.inner).astype(int), grid.n_columns - 1)
    ratio = (mix.sharp / mix.broad)[row, column]
    padded = np.zeros((len(stamps), side, side))
    wing = (size - stamps.shape[-1]) // 2
    padded[:, wing : wing + stamps.shape[1], wing : wing + stamps.shape[2]] = stamps
    spectrum = fft.rfft2(padded, workers=1) * whitening_filter(power, ratio[:, None, None])
    white = fft.irfft2(spectrum, (side, side), workers=1)[:, :size, :size]
    return PsfGrid(nodes_x, nodes_y, white.reshape(len(nodes_y), len(nodes_x), size, size).astype(np.float32))


def describe_noise(
    mix: NoiseMix, kernel: np.ndarray, noisecov: tuple[float, float], whitened: bool
) -> tuple[np.ndarray, float]:
    """Noise autocorrelation (m, m) of a difference, 1 at the centre, and its covariance factor.

    Parameters
    ----------
    mix : NoiseMix
    kernel : (s, s) float64
    noisecov : (float, float)
    whitened : bool
    """
    broad, sharp = mix.typical
    side = fft.next_fast_len(2 * kernel.shape[0] + 2 * _REACH_PX + 24, real=True)
    power = np.abs(transfer_functions(kernel[None], side)[0].astype(np.complex128)) ** 2
    large = broad * noisecov[0] + sharp * noisecov[1] * power[0, 0]
    # the spectrum of each image is that of resampled noise; at frequency 0 it is the variance times NOISECOV
    spectrum = broad * warp_power(side, noisecov[0]) + sharp * power * warp_power(side, noisecov[1])
    if whitened:
        mix = sharp * noisecov[1] / max(broad * noisecov[0], 1e-30)
        spectrum *= whitening_filter(power, mix) ** 2
    correlation = np.fft.fftshift(np.fft.irfft2(spectrum, (side, side)))
    middle = correlation[side // 2, side // 2]
    reach = min(side // 2 - 1, kernel.shape[0] + noise_correlation().size // 2)
    near = np.s_[side // 2 - reach : side // 2 + reach + 1]
    return correlation[near, near] / middle, float(large / middle)


@njit(cache=True, nogil=True)
def _whiten_spectra(spectra, power, ratios, total):
    """Multiply spectra (n, side, half) by the filters of their ratios, in place."""
    for k in range(spectra.shape[0]):
        mix = ratios[k]
        top = np.float32(1) + mix * total
        for v in range(spectra.shape[1]):
            line, strength = spectra[k, v], power[v]
            for u in range(spectra.shape[2]):
                line[u] *= np.sqrt(top / (np.float32(1) + mix * strength[u]))


@njit(cache=True, nogil=True)
def _mix_variance(broad, sharp, gains, inner, first, out):
    """Variance of the whitened difference, rows of one row of blocks from `first` on; zero where `out` is."""
    ny, nx = out.shape
    doubled = np.empty(2 * sharp.shape[1], np.float32)
    for y in range(ny):
        coarse, line, target = sharp[(first + y) // 2], broad[y], out[y]
        for x in range(coarse.size):
            doubled[2 * x] = coarse[x]
            doubled[2 * x + 1] = coarse[x]
        for block in range(gains.shape[0]):
            one, two = gains[block, 0], gains[block, 1]
            for x in range(block * inner, min((block + 1) * inner, nx)):
                value = one * line[x] + two * doubled[x]
                target[x] = value if target[x] > 0 else np.float32(0)
