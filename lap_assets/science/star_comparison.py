"""Stars that two images have in common: flux ratio, offset, scatter of both, and what a subtraction leaves of them.

Each image is convolved with the other's PSF, so that stars look alike in both and no shape enters. Here: fits on
patches about the stars. Not here: finding the stars (`matching_kernel.choose_stamps`), the subtraction (`zogy`).
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import UNUSABLE, MaskedImage
from lap_assets.science.block_transform import transfer_functions
from lap_assets.science.difference import Psf
from lap_assets.science.matching_kernel import KernelLimits, choose_stamps
from lap_assets.science.photometry import clip_mean

_UNUSABLE = int(UNUSABLE)
_PATCH = 72  # px
_FEW = 24  # stars below which all are needed for the ratio
_CLIP_SIGMA = 4.0
_MODEL_ERROR = 0.02  # of a star's flux in a pixel
_LEAST_SCATTER = 0.003  # px
_SMALL_PX = 0.05  # offsets that one linear step measures to 1e-3 px


@dataclass(frozen=True)
class StarComparison:
    """Matched stars of two images.

    Attributes
    ----------
    x, y : (n,) int64
        Peaks, px.
    used, left_out : (n,) bool
        Those that the ratio rests on, and those kept for judging it.
    ratio : float
        Flux in the first image / flux in the second.
    offset_px : (dx, dy)
        Position in the first image − that in the second.
    scatter_px : float
        Of the offsets about their mean, per axis, beyond what photon noise explains.
    half : int
        Half-width of the stamps on which a subtraction is judged.
    """

    x: np.ndarray
    y: np.ndarray
    used: np.ndarray
    left_out: np.ndarray
    ratio: float
    offset_px: tuple[float, float]
    scatter_px: float
    half: int


def compare_stars(
    first: MaskedImage, second: MaskedImage, planes: tuple[np.ndarray, np.ndarray], psfs: tuple[Psf, Psf],
    limits: KernelLimits,
) -> StarComparison:  # fmt: skip
    """Flux ratio and offset of the stars that both images show.

    Parameters
    ----------
    first, second : MaskedImage
    planes : two (ny, nx) float32
        Their `sci` with bad pixels filled.
    psfs : two Psf

    Raises
    ------
    UnprocessableData
        If they have no star in common.
    """
    widths = psfs[0].fwhm_px, psfs[1].fwhm_px
    sharp, broad = (second, first) if widths[1] <= widths[0] else (first, second)
    half = int(np.clip(np.ceil(2.0 * max(widths)), 7, 15))
    x, y = choose_stamps(sharp, broad, half, _PATCH // 2 - half, limits)
    if x.size == 0:
        raise UnprocessableData(explain_no_stars(sharp, broad, half, limits))
    spectra = [_convolve_patches(planes[k], x, y, psfs[1 - k]) for k in (0, 1)]
    fits, level = _fit_pairs(*spectra, 1.2 * max(widths))
    flux = np.maximum(fits[:, 0] * level, 0.0)
    variance = np.array([first.var[y, x], second.var[y, x] * fits[:, 0] ** 2]).sum(axis=0)
    snr = flux / np.sqrt(np.maximum(variance, 1e-30) * np.pi * max(widths) ** 2)
    left_out = np.zeros(x.size, bool)
    if x.size >= _FEW:
        left_out[5::6] = True
    good = ~left_out & (fits[:, 0] > 0) & (snr > 0) & np.isfinite(fits).all(axis=1)
    # a star that changed, or was matched with another, has an odd ratio
    good &= _within(np.log(np.where(good, fits[:, 0], 1.0)), good, 0.02)
    good &= _within(fits[:, 1], good, 0.05) & _within(fits[:, 2], good, 0.05)
    if not good.any():
        raise UnprocessableData(f"flux ratio not known: none of {x.size} stars common to both images is measurable")
    weight = 1.0 / (1.0 / snr[good] ** 2 + _MODEL_ERROR**2)
    ratio = clip_mean(fits[good, 0], weight)[0]
    offsets = [np.average(fits[good, axis], weights=weight) for axis in (1, 2)]
    spread = (fits[good, 1:3] - offsets) ** 2
    noise = (0.6 * max(widths) / snr[good]) ** 2
    excess = np.average(spread.mean(axis=1) - noise, weights=weight)
    scatter = float(np.sqrt(max(excess, _LEAST_SCATTER**2)))
    return StarComparison(x, y, good, left_out, ratio, (float(offsets[0]), float(offsets[1])), scatter, half)


def explain_no_stars(sharp: MaskedImage, broad: MaskedImage, half: int, limits: KernelLimits) -> str:
    """Which of the two has no stars, or that they have none in common."""
    lacking = [name for name, one in (("sharper", sharp), ("broader", broad)) if not _has_stars(one, half, limits)]
    what = f"unsaturated object with a peak over {limits.min_stamp_snr:g} sigma"
    if len(lacking) == 1:
        return f"no {what} in the {lacking[0]} image: nothing to match the two on"
    if lacking:
        return f"no {what} in both images: nothing to match them on"
    return f"no {what} at the same place in both images: do they overlap, is one WCS wrong?"


def _has_stars(image: MaskedImage, half: int, limits: KernelLimits) -> bool:
    return choose_stamps(image, image, half, 2, limits)[0].size > 0


def judge_stars(image: MaskedImage, brightness: MaskedImage, x: np.ndarray, y: np.ndarray, half: int) -> float:
    """Median over stars of the reduced χ² of a difference about them, a model error of 2 % allowed; NaN without any."""
    if len(x) == 0:
        return float("nan")
    at = np.arange(-half, half + 1)
    rows, columns = (y[:, None] + at)[:, :, None], (x[:, None] + at)[:, None, :]
    variance = image.var[rows, columns]
    good = (image.mask[rows, columns] & _UNUSABLE == 0) & (variance > 0) & np.isfinite(variance)
    # what is masked may hold anything: out before it is squared
    light, rest = (np.where(good, one.sci[rows, columns], 0.0).astype(float) for one in (brightness, image))
    good &= np.isfinite(light)
    total = np.where(good, variance + (_MODEL_ERROR * light) ** 2, 1.0)
    chi2 = np.where(good, rest**2 / total, 0.0)
    count = good.sum(axis=(1, 2))
    return float(np.median(chi2.sum(axis=(1, 2))[count > 0] / count[count > 0])) if count.any() else float("nan")


def _within(values: np.ndarray, good: np.ndarray, least: float) -> np.ndarray:
    """(n,) bool: within four robust sigmas of the median of the good ones."""
    if not good.any():
        return good
    middle = np.median(values[good])
    spread = max(1.4826 * np.median(np.abs(values[good] - middle)), least)
    return np.abs(values - middle) <= _CLIP_SIGMA * spread


def _convolve_patches(plane: np.ndarray, x: np.ndarray, y: np.ndarray, psf: Psf) -> np.ndarray:
    """(n, 72, 37) spectra of patches about stars, convolved with a PSF; the middle is free of what wraps around."""
    patches = np.empty((x.size, _PATCH, _PATCH), np.float32)
    for patch, row, column in zip(patches, y - _PATCH // 2, x - _PATCH // 2, strict=True):
        patch[:] = plane[row : row + _PATCH, column : column + _PATCH]
    transfer = transfer_functions(_crop(psf.evaluate_many(x.astype(float), y.astype(float)), _PATCH - 1), _PATCH)
    transfer *= fft.rfft2(patches, workers=1)
    return transfer


def _crop(stamps: np.ndarray, most: int) -> np.ndarray:
    """Stamps of at most so many pixels (odd) a side."""
    excess = max(0, (stamps.shape[-1] - most + 1) // 2)
    return stamps[:, excess : stamps.shape[-1] - excess, excess : stamps.shape[-1] - excess]


def _fit_pairs(first: np.ndarray, second: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Per star (ratio, dx, dy) of first = ratio · second moved by (dx, dy) + constant, and the flux of `second`.

    A linear step in the derivatives of `second`, from spectra, over the pixels within `radius` of the middle; two where
    the stars are far off.
    """
    u = np.arange(-_PATCH // 2, _PATCH // 2)
    distance = np.hypot(u[:, None], u[None, :])
    near = distance <= radius
    target = _invert(first)[:, near].astype(float)
    v, w = np.fft.rfftfreq(_PATCH)[None, :], np.fft.fftfreq(_PATCH)[:, None]
    turn_x, turn_y = ((-2j * np.pi * one).astype(np.complex64) for one in (v, w))
    plane, here = _invert(second), second
    moved = np.zeros((len(second), 2))
    for number in range(2):
        if number:
            here = second * np.exp(moved[:, :1, None] * turn_x + moved[:, 1:, None] * turn_y).astype(np.complex64)
        shifted = _invert(here) if number else plane
        parts = [one[:, near].astype(float) for one in (shifted, _invert(here * turn_x), _invert(here * turn_y))]
        # the constant in units of the star's peak, so that units do not matter
        level = np.broadcast_to(np.abs(parts[0]).max(axis=1, keepdims=True), target.shape)
        design = np.stack([*parts, level], axis=2)
        matrix = np.einsum("npi,npj->nij", design, design)
        matrix += 1e-12 * np.trace(matrix, axis1=1, axis2=2)[:, None, None] * np.eye(4)
        fits = np.linalg.solve(matrix, np.einsum("npi,np->ni", design, target)[:, :, None])[:, :, 0]
        positive = fits[:, :1] > 0
        moved = moved + np.where(positive, np.clip(fits[:, 1:3] / np.where(positive, fits[:, :1], 1.0), -2.0, 2.0), 0.0)
        if np.abs(np.median(moved, axis=0)).max() < _SMALL_PX:
            break
    ring = np.median(plane[:, ~near & (distance <= 2.0 * radius)], axis=1)
    flux = (plane[:, near] - ring[:, None]).sum(axis=1)
    return np.column_stack([fits[:, 0], moved]), flux


def _invert(spectra: np.ndarray) -> np.ndarray:
    return fft.irfft2(spectra, (_PATCH, _PATCH), workers=1)
