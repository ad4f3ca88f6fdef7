"""Difference imaging by a fitted, spatially varying matching kernel (Alard & Lupton 1998, Alard 2000).

Here: the subtraction with mask, variance and what is known of the noise's correlation. Not here: the fit of the kernel
(`matching_kernel`), finding sources on the difference (`diff_sources`), making the template (`stack`), which images are
compared (`pipeline/diffs`).
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import fft

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import NO_WEIGHT, UNUSABLE, Mask, MaskedImage
from lap_assets.science.matching_kernel import (
    KernelLimits,
    choose_stamps,
    count_terms,
    dilate_mask,
    fit_kernel,
    make_basis,
    polynomial_terms,
    scale_positions,
)
from lap_assets.science.warp import noise_correlation

_UNUSABLE = int(UNUSABLE)
_HARD = int(NO_WEIGHT)
_SATURATED = int(Mask.SATURATED | Mask.BLEED)
_CORE = int(Mask.SATURATED)
_NO_DATA = int(Mask.NO_DATA)
_EDGE = int(Mask.EDGE)


@dataclass(frozen=True)
class Difference:
    """A difference image and how good it is.

    Attributes
    ----------
    image : MaskedImage
        Science minus template, in nJy, in the PSF of the broader of the two.
    convolved : str
        `template` or `science`: which one was convolved with the kernel.
    fwhm_px : float
        Of the broader one, as given.
    kernel : (size, size) float64
        At the centre of the image.
    kernel_sum : float
        Flux ratio of the two images; both are calibrated, so far from 1 is a warning.
    n_stamps, n_rejected : int
    stamp_chi2 : float
        Median reduced χ² of the stamps used.
    sky_chi : float
        Robust scatter of image / √VAR over the pixels: 1 where VAR is right.
    correlation : (m, m) float64
        Noise autocorrelation of the difference, 1 at the centre.
    noisecov : float
        Variance of a sum over a large aperture / the sum of VAR (see `warp.covariance_factor`).
    """

    image: MaskedImage
    convolved: str
    fwhm_px: float
    kernel: np.ndarray
    kernel_sum: float
    n_stamps: int
    n_rejected: int
    stamp_chi2: float
    sky_chi: float
    correlation: np.ndarray
    noisecov: float


def subtract_images(
    science: MaskedImage,
    template: MaskedImage,
    fwhm_science_px: float,
    fwhm_template_px: float,
    limits: KernelLimits | None = None,
    noisecov: tuple[float, float] = (1.0, 1.0),
) -> Difference:
    """Science minus template after matching the sharper one's PSF, flux scale and background to the other's.

    Parameters
    ----------
    science, template : MaskedImage
        (ny, nx) of one pixel grid, nJy.
    fwhm_science_px, fwhm_template_px : float
        The smaller one is convolved.
    limits : KernelLimits
    noisecov : (float, float)
        Covariance factors of science and template.

    Returns
    -------
    Difference

    Raises
    ------
    UnprocessableData
        If there is no star in a common area to fit the kernel on.
    """
    limits = limits or KernelLimits()
    convolve_template = fwhm_template_px <= fwhm_science_px
    sharp, broad = (template, science) if convolve_template else (science, template)
    wide = max(fwhm_science_px, fwhm_template_px)
    narrow = min(fwhm_science_px, fwhm_template_px)
    basis = make_basis(np.sqrt(max(wide**2 - narrow**2, 0.0)) / 2.3548)
    half = int(np.clip(np.ceil(2.0 * wide), 7, 15))
    bad = ((sharp.mask & _HARD) != 0) | (sharp.var <= 0)
    filled = _fill_masked(sharp.sci, bad)
    x, y = choose_stamps(sharp, broad, half, basis.radius, limits)
    if x.size == 0:
        raise UnprocessableData(
            f"kernel not fitted: no unsaturated object with a peak over {limits.min_stamp_snr:g} sigma in both images"
        )
    fit = fit_kernel(filled, sharp, broad, x, y, half, basis, limits)
    sign = 1.0 if convolve_template else -1.0
    image, kernel, sky = _apply_kernel(filled, bad, sharp, broad, basis, fit, limits, sign)
    correlation, cov = _describe_noise(sharp, broad, kernel, noisecov if convolve_template else noisecov[::-1])
    return Difference(
        image=image,
        convolved="template" if convolve_template else "science",
        fwhm_px=wide,
        kernel=kernel,
        kernel_sum=float(kernel.sum()),
        n_stamps=int(fit.used.sum()),
        n_rejected=int((~fit.used).sum()),
        stamp_chi2=float(np.median(fit.chi2[fit.used])),
        sky_chi=_measure_chi(image, sky),
        correlation=correlation,
        noisecov=cov,
    )


def _thin_out(places: np.ndarray, most: int = 200_000) -> np.ndarray:
    """Every k-th of many: medians to 0.3 % of the noise need no more."""
    return places[:: max(places.size // most, 1)]


def _measure_chi(image: MaskedImage, sky: np.ndarray) -> float:
    """Robust scatter of the sky over √VAR, from the side with fewer sources."""
    places = _thin_out(np.flatnonzero(sky))
    chi = image.sci.ravel()[places] / np.sqrt(image.var.ravel()[places])
    if not chi.size:
        return float("nan")
    low, middle, high = np.percentile(chi, [15.87, 50.0, 84.13])
    return float(min(high - middle, middle - low))


def _apply_kernel(filled, bad, sharp, broad, basis, fit, limits, sign):
    """Difference image, kernel at the centre, and the pixels that are plain sky."""
    shape = broad.shape
    members = basis.images
    n_terms = count_terms(fit.kernel_order)
    varying = fit.coefficients[1 : 1 + (len(members) - 1) * n_terms].reshape(len(members) - 1, n_terms)
    kernels = np.einsum("bt,bij->tij", varying, members[1:])
    kernels[0] += fit.coefficients[0] * members[0]
    sky = fit.coefficients[1 + (len(members) - 1) * n_terms :]
    size = [fft.next_fast_len(n + 2 * basis.radius, real=True) for n in shape]
    transform = fft.rfft2(filled, size)
    convolved = np.empty((n_terms, *shape), np.float32)
    for term in range(n_terms):
        convolved[term] = _convolve(transform, kernels[term], size, shape)
    noise = fft.rfft2(np.where(bad, np.float32(0), sharp.var), size)
    noise = _convolve(noise, kernels[0] ** 2, size, shape)
    power = np.einsum("tij,uij->tu", kernels, kernels)
    power *= _correlated_gain(kernels[0]) / power[0, 0] ** 2  # times `noise`, whose kernel is kernels[0]²
    share = np.abs(kernels[0]) / np.abs(kernels[0]).sum()
    # float32 transforms leave 1e-7 of nothing where no pixel is bad
    bad_share = np.zeros(shape, np.float32)
    if bad.any():
        bad_share = _convolve(fft.rfft2(bad.astype(np.float32), size), share, size, shape)
    saturated = dilate_mask(sharp.mask & _SATURATED != 0, _spread_radius(kernels[0]))
    image = MaskedImage(np.zeros(shape, np.float32), np.zeros(shape, np.int16), np.zeros(shape, np.float32))
    _subtract_rows(
        broad.sci, broad.mask, broad.var, sharp.mask, saturated, convolved, noise, bad_share, power, sky,
        fit.kernel_order, fit.background_order, basis.radius, np.float32(sign), np.float32(limits.max_bad_weight),
        image.sci, image.mask, image.var,
    )  # fmt: skip
    usable = image.usable
    level = broad.sci.ravel()[_thin_out(np.flatnonzero(usable))]
    faint = (broad.sci < (np.median(level) if level.size else 0.0) + 3.0 * np.sqrt(broad.var)) & usable
    _flatten_sky(image, faint, fit.background_order)
    return image, kernels[0], faint


def _spread_radius(kernel: np.ndarray) -> int:
    """Distance (of columns or rows) beyond which lies less than 0.5 % of |kernel|: as far as a bleed trail smears."""
    radius = kernel.shape[0] // 2
    v, u = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    beyond = np.bincount(np.maximum(abs(u), abs(v)).ravel(), np.abs(kernel).ravel())[::-1].cumsum()[::-1]
    return int(np.sum(beyond > 0.005 * beyond[0])) - 1


def _flatten_sky(image: MaskedImage, sky: np.ndarray, order: int, block: int = 64) -> None:
    """Subtract a polynomial through the medians of blocks of sky pixels, in place.

    The stamps lie on stars; all the sky between them knows the level better by far.
    """
    ny, nx = image.shape
    block = min(block, ny, nx)
    rows, columns = ny // block, nx // block
    cut = np.s_[: rows * block, : columns * block]

    def tiled(plane):
        tiles = plane[cut].reshape(rows, block, columns, block).transpose(0, 2, 1, 3)
        return tiles.reshape(rows * columns, block * block)

    # every third pixel: neighbours share their noise
    use = tiled(sky)[:, ::3]
    enough = np.flatnonzero(use.mean(axis=1) >= 0.2)
    if enough.size == 0:
        return
    values = tiled(image.sci)[:, ::3]
    level = np.array([np.median(values[one][use[one]]) for one in enough], float)
    row, column = np.divmod(enough, columns)
    x, y = scale_positions((column + 0.5) * block - 0.5, (row + 0.5) * block - 0.5, image.shape)
    while 3 * count_terms(order) > enough.size and order > 0:
        order -= 1
    coefficients = np.linalg.lstsq(polynomial_terms(x, y, order).T, level, rcond=None)[0]
    across, down = scale_positions(np.arange(nx), np.arange(ny), image.shape)
    surface = np.zeros(image.shape, np.float32)
    at = 0
    for total in range(order + 1):
        for j in range(total + 1):
            surface += (coefficients[at] * down**j)[:, None].astype(np.float32) * (across ** (total - j)).astype(
                np.float32
            )
            at += 1
    image.sci -= np.where(image.var > 0, surface, np.float32(0))


def _convolve(transform: np.ndarray, kernel: np.ndarray, size, shape) -> np.ndarray:
    """Convolution of a transformed, zero-padded image with a small centred kernel, float32."""
    radius = kernel.shape[0] // 2
    padded = np.zeros(size, np.float32)
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    padded = np.roll(padded, (-radius, -radius), axis=(0, 1))
    return fft.irfft2(transform * fft.rfft2(padded), size)[: shape[0], : shape[1]]


def _autocorrelation(kernel: np.ndarray) -> np.ndarray:
    """Full autocorrelation of a square kernel, centred."""
    size = 2 * kernel.shape[0] - 1
    return np.fft.fftshift(np.fft.irfft2(np.abs(np.fft.rfft2(kernel, (size, size))) ** 2, (size, size)))


def _lanczos_correlation(size: int) -> np.ndarray:
    """(size, size) correlation of the noise of a warp, centred."""
    line = np.zeros(size)
    rho = noise_correlation()
    reach = min(size // 2, rho.size // 2)
    line[size // 2 - reach : size // 2 + reach + 1] = rho[rho.size // 2 - reach : rho.size // 2 + reach + 1]
    return line[:, None] * line[None, :]


def _correlated_gain(kernel: np.ndarray) -> float:
    """Σ KᵢKⱼ ρ(i−j): variance of a convolved pixel of resampled noise of unit variance."""
    auto = _autocorrelation(kernel)
    return float(np.sum(auto * _lanczos_correlation(auto.shape[0])))


def _describe_noise(sharp, broad, kernel, covariances) -> tuple[np.ndarray, float]:
    """Noise autocorrelation of the difference and its covariance factor; `covariances` of (broad, sharp) images."""
    both = (broad.mask & _UNUSABLE == 0) & (sharp.mask & _UNUSABLE == 0) & (broad.var > 0) & (sharp.var > 0)
    places = _thin_out(np.flatnonzero(both))
    v_broad, v_sharp = (float(np.median(one.var.ravel()[places])) for one in (broad, sharp))
    auto = _autocorrelation(kernel)
    rho = _lanczos_correlation(auto.shape[0] + 2 * (noise_correlation().size // 2))
    size = rho.shape[0]
    mixed = np.zeros((size, size))
    offset = (size - auto.shape[0]) // 2
    mixed[offset : offset + auto.shape[0], offset : offset + auto.shape[0]] = auto
    spectrum = np.fft.rfft2(np.fft.ifftshift(mixed)) * np.fft.rfft2(np.fft.ifftshift(rho))
    convolved = np.fft.fftshift(np.fft.irfft2(spectrum, (size, size)))
    total = v_broad * rho + v_sharp * convolved
    variance = total[size // 2, size // 2]
    large = v_broad * covariances[0] + v_sharp * covariances[1] * kernel.sum() ** 2
    return total / variance, float(large / variance)


@njit(cache=True, nogil=True)
def _fill_masked(sci, bad):
    """The image with bad pixels replaced by the mean of the nearest ring of good neighbours (0 if few within 5 px)."""
    ny, nx = sci.shape
    filled = sci.copy()
    # sums of good pixels above and left of each corner: the number in any window costs four look-ups
    sums = np.zeros((ny + 1, nx + 1), np.int32)
    for y in range(ny):
        run = 0
        for x in range(nx):
            run += not bad[y, x]
            sums[y + 1, x + 1] = sums[y, x + 1] + run
    for y in range(ny):
        for x in range(nx):
            if not bad[y, x]:
                continue
            filled[y, x] = 0
            for reach in range(1, 6):
                y0, y1, x0, x1 = max(y - reach, 0), min(y + reach + 1, ny), max(x - reach, 0), min(x + reach + 1, nx)
                count = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
                if count >= 2 * reach:
                    total = 0.0
                    for v in range(y0, y1):
                        for u in range(x0, x1):
                            if not bad[v, u]:
                                total += sci[v, u]
                    filled[y, x] = total / count
                    break
    return filled


@njit(cache=True, nogil=True)
def _powers(x, y, order, terms):
    at = 0
    for total in range(order + 1):
        for j in range(total + 1):
            terms[at] = x ** (total - j) * y**j
            at += 1


@njit(cache=True, nogil=True)
def _subtract_rows(
    broad, broad_mask, broad_var, sharp_mask, saturated, convolved, noise, bad_share, power, sky, kernel_order,
    background_order, radius, sign, max_bad, out, flags, variance,
):  # fmt: skip
    """out = sign · (broad − Σ P_t convolved_t − background), with variance and mask."""
    ny, nx = broad.shape
    n_terms = convolved.shape[0]
    # polynomials are evaluated at nodes every 16 px and held linear in between along x
    step = 16
    terms, next_terms = np.empty(n_terms), np.empty(n_terms)
    sky_terms, next_sky = np.empty(sky.size), np.empty(sky.size)
    for y in range(ny):
        v = (y - 0.5 * (ny - 1)) / (0.5 * ny)
        for first in range(0, nx, step):
            u0, u1 = (first - 0.5 * (nx - 1)) / (0.5 * nx), (first + step - 0.5 * (nx - 1)) / (0.5 * nx)
            _powers(u0, v, kernel_order, terms)
            _powers(u1, v, kernel_order, next_terms)
            _powers(u0, v, background_order, sky_terms)
            _powers(u1, v, background_order, next_sky)
            level, next_level = np.dot(sky_terms, sky), np.dot(next_sky, sky)
            gain, next_gain = np.dot(terms, power @ terms), np.dot(next_terms, power @ next_terms)
            for x in range(first, min(first + step, nx)):
                t = (x - first) / step
                here = broad_mask[y, x] | (sharp_mask[y, x] & ~(_HARD & ~_NO_DATA))
                if bad_share[y, x] > max_bad:
                    here |= (sharp_mask[y, x] & _HARD) | _EDGE
                if saturated[y, x]:
                    here |= _CORE
                if y < radius or x < radius or y >= ny - radius or x >= nx - radius:
                    here |= _EDGE
                flags[y, x] = here
                if here & _NO_DATA or broad_var[y, x] <= 0:
                    flags[y, x] = here | _NO_DATA
                    continue
                model = level + t * (next_level - level)
                for k in range(n_terms):
                    model += (terms[k] + t * (next_terms[k] - terms[k])) * convolved[k, y, x]
                out[y, x] = sign * (broad[y, x] - np.float32(model))
                variance[y, x] = broad_var[y, x] + np.float32(gain + t * (next_gain - gain)) * max(
                    noise[y, x], np.float32(0)
                )
