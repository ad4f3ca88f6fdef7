"""Difference by a fitted, spatially varying matching kernel and background (Alard & Lupton 1998; Alard 2000).

The sharper image is convolved, whichever it is. Here: applying the kernel, background, variance and mask. Not here: the
fit (`matching_kernel`), whitening and the noise's correlation (`decorrelation`), the choice of method (`diff`).
"""

import numpy as np
from numba import njit
from scipy import fft

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage
from lap_assets.science.block_transform import lay_blocks, transfer_functions
from lap_assets.science.convolved_variance import smooth_variance
from lap_assets.science.decorrelation import (
    describe_noise,
    lay_noise_blocks,
    measure_mix,
    noise_gain,
    warp_correlation,
    whiten_difference,
    whiten_psf,
)
from lap_assets.science.difference import Difference, DiffLimits, Psf
from lap_assets.science.difference_masks import fill_masked, find_bad, merge_masks
from lap_assets.science.difference_sky import (
    THIN,
    choose_sky,
    fit_sky,
    measure_chi,
    subtract_sky,
    terms_along_row,
)
from lap_assets.science.matching_kernel import KernelLimits, choose_stamps, fit_kernel, make_basis
from lap_assets.science.star_comparison import explain_no_stars, judge_stars

_HARD = int(NO_WEIGHT)
_NO_DATA = int(Mask.NO_DATA)


def subtract_alard_lupton(
    science: MaskedImage, template: MaskedImage, psf_science: Psf, psf_template: Psf, limits: DiffLimits,
    noisecov: tuple[float, float],
) -> Difference:  # fmt: skip
    """Science minus template after matching the sharper one's PSF, flux scale and background to the other's.

    Parameters and errors as of `diff.subtract_images`.
    """
    widths = psf_science.fwhm_px, psf_template.fwhm_px
    convolve_template = limits.convolve == "template" or (limits.convolve == "auto" and widths[1] <= widths[0])
    sharp, broad = (template, science) if convolve_template else (science, template)
    psf, covariances = (psf_science, noisecov) if convolve_template else (psf_template, noisecov[::-1])
    sigma = np.sqrt(abs(widths[0] ** 2 - widths[1] ** 2)) / 2.3548
    basis = make_basis(sigma)
    half = int(np.clip(np.ceil(2.0 * max(widths)), 7, 15))
    x, y = choose_stamps(sharp, broad, half, basis.radius, limits.kernel)
    if x.size == 0:
        raise UnprocessableData(explain_no_stars(sharp, broad, half, limits.kernel))
    bad = find_bad(sharp.sci, sharp.mask, sharp.var, _HARD)
    filled = fill_masked(bad, sharp.sci)[0]
    # a Gaussian kernel's sum of squares
    gain = 1.0 / max(4.0 * np.pi * sigma**2, 1.0)
    correlation = warp_correlation(11, covariances[1])
    fit = fit_kernel(filled, bad, sharp, broad, x, y, half, basis, limits.kernel, correlation, gain)
    kernels, sky = fit.split_kernel(basis)
    total = float(kernels[0].sum())
    if not total > 0:
        raise UnprocessableData(f"kernel not fitted: its sum is {total:.3g}; are these two images of one field?")
    image, smooth = _apply_kernel(filled, bad, sharp, broad, kernels, sky, fit, limits.kernel, covariances[1])
    places = choose_sky(image, broad)
    # the stamps lie on stars; all the sky between them knows the level better by far
    subtract_sky(image.sci, image.var, fit_sky(image.sci[THIN], places, image.shape, fit.background_order))
    grid = lay_noise_blocks(image.shape)
    mix = measure_mix(grid, broad.var[::8, ::8], smooth[::4, ::4], covariances, 8)
    if limits.decorrelate:
        whiten_difference(image, (broad.var, smooth), kernels[0], grid, mix, covariances)
        psf = whiten_psf(psf, grid, mix, kernels[0])
    correlation, cov = describe_noise(mix, kernels[0], covariances, limits.decorrelate)
    chi = measure_chi(image, places)
    if not convolve_template:
        # in the flux of the science image
        image.sci *= np.float32(-1.0 / total)
        image.var *= np.float32(1.0 / total**2)
    dx, dy = _centroid(kernels[0]) if convolve_template else -_centroid(kernels[0])
    return Difference(
        image=image,
        method="alard_lupton",
        convolved="template" if convolve_template else "science",
        psf=psf,
        decorrelated=limits.decorrelate,
        kernel=kernels[0],
        kernel_sum=total,
        n_matched=int(x.size),
        n_stamps=int(fit.used.sum()),
        n_rejected=int((~fit.used & ~fit.left_out).sum()),
        stamp_chi2=judge_stars(image, science, x[fit.used], y[fit.used], half),
        left_out_chi2=judge_stars(image, science, x[fit.left_out], y[fit.left_out], half),
        sky_chi=chi,
        correlation=correlation,
        noisecov=cov,
        astrometric_offset_px=(float(dx), float(dy)),
    )


def _centroid(kernel: np.ndarray) -> np.ndarray:
    """(x, y) centroid of a kernel about its middle: by how much it moves a star."""
    u = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    return np.array([np.sum(kernel * u[None, :]), np.sum(kernel * u[:, None])]) / kernel.sum()


def _apply_kernel(filled, bad, sharp, broad, kernels, sky, fit, limits: KernelLimits, noisecov: float):
    """Broad − K⊗sharp − background, and the variance of the sharp one smoothed by K² (of sum 1), of 2×2 pixels each."""
    shape, radius = broad.shape, kernels.shape[1] // 2
    mask = merge_masks(sharp, broad, bad, kernels[0], limits.max_bad_weight)
    image = MaskedImage(np.zeros(shape, np.float32), mask, np.zeros(shape, np.float32))
    smooth = smooth_variance(sharp.var, bad, kernels[0])
    power = np.einsum("tij,uij->tu", kernels, kernels)
    power *= noise_gain(kernels[0], noisecov) / power[0, 0]
    grid = lay_blocks(shape, radius)
    transfers = transfer_functions(kernels, grid.side)
    across = [terms_along_row(shape, order) for order in (fit.kernel_order, fit.background_order)]
    convolved = np.empty((len(kernels), grid.inner, shape[1]), np.float32)
    block = np.empty((1, grid.side, grid.side), np.float32)
    for row in range(grid.n_rows):
        first, last = grid.bounds(row)
        rows = np.s_[first:last]
        for column in range(grid.n_columns):
            grid.cut((filled,), row, column, block)
            spectra = fft.rfft2(block, workers=1) * transfers
            blocks = fft.irfft2(spectra, (grid.side, grid.side), overwrite_x=True, workers=1)
            grid.paste(blocks, convolved, 0, column)
        _subtract_rows(
            broad.sci[rows], broad.var[rows], convolved, smooth, power, sky, *across, fit.kernel_order,
            fit.background_order, first, shape[0], image.sci[rows], image.mask[rows], image.var[rows],
        )  # fmt: skip
    return image, smooth


@njit(cache=True, nogil=True)
def _add_polynomial(across, coefficients, v, order, line):
    at = 0
    for total in range(order + 1):
        for j in range(total + 1):
            factor = np.float32(coefficients[at] * v**j)
            for x in range(line.size):
                line[x] += factor * across[at, x]
            at += 1


@njit(cache=True, nogil=True)
def _subtract_rows(
    broad, broad_var, convolved, smooth, power, sky, across, sky_across, kernel_order, background_order, first, ny, out,
    flags, variance,
):  # fmt: skip
    """out = broad − Σ P_t convolved_t − background, with variance; `first` is the row of the image, `smooth` of 2×2."""
    rows, nx = broad.shape
    n_terms = convolved.shape[0]
    model, gain, factors = np.empty(nx, np.float32), np.empty(nx, np.float32), np.empty(n_terms, np.float64)
    doubled = np.empty(2 * smooth.shape[1], np.float32)
    zero, big = np.float32(0), np.float32(np.inf)
    for y in range(rows):
        v = (first + y - 0.5 * (ny - 1)) / (0.5 * ny)
        model[:] = 0
        _add_polynomial(sky_across, sky, v, background_order, model)
        at = 0
        for total in range(kernel_order + 1):
            for j in range(total + 1):
                factors[at] = v**j
                factor, terms, part = np.float32(v**j), across[at], convolved[at, y]
                for x in range(nx):
                    model[x] += factor * terms[x] * part[x]
                at += 1
        gain[:] = 0
        for k in range(n_terms):
            for m in range(n_terms):
                factor, left, right = np.float32(power[k, m] * factors[k] * factors[m]), across[k], across[m]
                for x in range(nx):
                    gain[x] += factor * (left[x] * right[x])
        value_line, noise_line, flag_line = out[y], variance[y], flags[y]
        sci_line, var_line, coarse = broad[y], broad_var[y], smooth[(first + y) // 2]
        for x in range(coarse.size):
            doubled[2 * x] = coarse[x]
            doubled[2 * x + 1] = coarse[x]
        for x in range(nx):
            value, noise = sci_line[x] - model[x], var_line[x] + gain[x] * max(doubled[x], zero)
            known = (flag_line[x] & _NO_DATA == 0) & (abs(value) < big) & (noise < big)
            value_line[x] = value if known else zero
            noise_line[x] = noise if known else zero
            flag_line[x] |= np.int16(0) if known else np.int16(_NO_DATA)
