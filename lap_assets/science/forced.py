"""Fluxes of known objects on the image of one band: aperture, PSF and PSF-matched, with errors.

Here: measuring where an object is already known to be. Finding objects is `catalog.py`'s; the model of the PSF comes
from `psf.py` (or `stack_psf.py` where stars are few).

Neighbours: a pixel of another object's segment, or without data, is replaced by its mirror image through the object's
centre, or by 0 (the sky) where that is no better.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numba import njit
from scipy import fft

_SUBPIXELS = 8  # a pixel cut by an aperture's edge is divided into this many squared


class PsfAt(Protocol):
    """What a PSF model must do: give (s, s) stamps, sum 1, centred on their middle pixel, for places in the image."""

    def evaluate(self, x: float, y: float) -> np.ndarray: ...

    def evaluate_many(self, x: np.ndarray, y: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class EllipseSums:
    """Sums over ellipses, each (n,): flux, its variance (white noise), and areas in pixels."""

    flux: np.ndarray
    variance: np.ndarray
    area: np.ndarray
    foreign_area: np.ndarray  # of other objects' segments
    empty_area: np.ndarray  # without data


def sum_ellipses(
    sci: np.ndarray,
    var: np.ndarray,
    empty: np.ndarray,
    segments: np.ndarray,
    ids: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    a_px: np.ndarray,
    b_px: np.ndarray,
    theta_rad: np.ndarray,
) -> EllipseSums:
    """Sum an image over ellipses of semi-axes a, b (pixels), theta from +x towards +y, around (x, y)."""
    columns = [np.ascontiguousarray(v, dtype=np.float64) for v in (x, y, a_px, b_px, theta_rad)]
    sums = _sum_all(sci, var, empty, segments, np.asarray(ids, np.int64), *columns)
    return EllipseSums(*(sums[:, k] for k in range(5)))


@njit(cache=True, nogil=True)
def _sum_all(sci, var, empty, segments, ids, x, y, a, b, theta):
    sums = np.zeros((x.size, 5))
    for n in range(x.size):
        _sum_one(sci, var, empty, segments, ids[n], x[n], y[n], a[n], b[n], theta[n], sums[n])
    return sums


@njit(cache=True, nogil=True)
def _sum_one(sci, var, empty, segments, own, x, y, a, b, theta, out):
    ny, nx = sci.shape
    cos, sin = np.cos(theta), np.sin(theta)
    wide, high = np.hypot(a * cos, b * sin), np.hypot(a * sin, b * cos)
    for j in range(int(np.floor(y - high)), int(np.ceil(y + high)) + 1):
        for i in range(int(np.floor(x - wide)), int(np.ceil(x + wide)) + 1):
            part = _covered_part(i - x, j - y, a, b, cos, sin)
            if part <= 0.0:
                continue
            out[2] += part
            if _is_clean(empty, segments, own, j, i):
                out[0] += part * sci[j, i]
                out[1] += part * part * var[j, i]
                continue
            lost = not (0 <= i < nx and 0 <= j < ny) or empty[j, i]
            out[4 if lost else 3] += part
            jm, im = int(np.round(2 * y - j)), int(np.round(2 * x - i))
            if _is_clean(empty, segments, own, jm, im):
                out[0] += part * sci[jm, im]
                out[1] += part * part * var[jm, im]


@njit(cache=True, nogil=True)
def _is_clean(empty, segments, own, j, i):
    if not (0 <= j < empty.shape[0] and 0 <= i < empty.shape[1]):
        return False
    return not empty[j, i] and (segments[j, i] == 0 or segments[j, i] == own)


@njit(cache=True, nogil=True)
def _covered_part(dx, dy, a, b, cos, sin):
    """Part of the pixel at (dx, dy) from the centre inside the ellipse."""
    reach = 0.7072 / min(a, b)
    u, v = (dx * cos + dy * sin) / a, (-dx * sin + dy * cos) / b
    r = np.hypot(u, v)
    if r + reach <= 1.0:
        return 1.0
    if r - reach >= 1.0:
        return 0.0
    count = 0
    for k in range(_SUBPIXELS):
        sy = dy + (k + 0.5) / _SUBPIXELS - 0.5
        for m in range(_SUBPIXELS):
            sx = dx + (m + 0.5) / _SUBPIXELS - 0.5
            u, v = (sx * cos + sy * sin) / a, (-sx * sin + sy * cos) / b
            count += u * u + v * v <= 1.0
    return count / (_SUBPIXELS * _SUBPIXELS)


@njit(cache=True, nogil=True)
def cut_stamps(sci, var, empty, segments, ids, x, y, size):
    """Stamps (n, size, size) of flux, variance and what each pixel is, around the pixel nearest to each (x, y).

    Kinds: 0 clean, 1 filled in from the mirror image, 2 unknown (flux 0, variance 0).
    """
    n, half = x.size, size // 2
    flux = np.zeros((n, size, size), np.float32)
    variance = np.zeros((n, size, size), np.float32)
    kind = np.zeros((n, size, size), np.uint8)
    for k in range(n):
        i0, j0 = int(np.round(x[k])) - half, int(np.round(y[k])) - half
        for j in range(size):
            for i in range(size):
                jj, ii = j0 + j, i0 + i
                if not _is_clean(empty, segments, ids[k], jj, ii):
                    kind[k, j, i] = 1
                    jj, ii = int(np.round(2 * y[k] - jj)), int(np.round(2 * x[k] - ii))
                    if not _is_clean(empty, segments, ids[k], jj, ii):
                        kind[k, j, i] = 2
                        continue
                flux[k, j, i] = sci[jj, ii]
                variance[k, j, i] = var[jj, ii]
    return flux, variance, kind


def render_psfs(psf: PsfAt, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, s, s) float64 PSF stamps at each (x, y), sum 1, centred where the object lies in its pixel.

    The fraction of a pixel is shifted by the Fourier shift theorem, on a stamp padded against wrapping.
    """
    return shift_stamps(psf.evaluate_many(x, y), x - np.round(x), y - np.round(y))


def shift_stamps(stamps: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Move the content of (n, s, s) stamps by (dx, dy) pixels, |.| <= 0.5 (Fourier shift theorem)."""
    size = stamps.shape[1]
    padded = fft.next_fast_len(size + 8, real=True)
    ky, kx = fft.fftfreq(padded)[:, None], fft.rfftfreq(padded)[None, :]
    phase = np.exp(-2j * np.pi * (ky * dy[:, None, None] + kx * dx[:, None, None]))
    moved = fft.irfft2(fft.rfft2(stamps, (padded, padded)) * phase, (padded, padded))
    return moved[:, :size, :size]


def measure_psf_fluxes(
    flux: np.ndarray, variance: np.ndarray, kind: np.ndarray, psfs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares flux of a point source at a known place, and its error for white noise: sum(p f) / sum(p^2).

    Uniform weights: a bright star's own photon noise would otherwise let errors of the PSF model bias its flux. Only
    clean pixels enter; where none is, both are NaN.
    """
    profile = np.where(kind == 0, psfs, 0.0)
    norm = np.einsum("nij,nij->n", profile, profile)
    known = norm > 0.05 * np.einsum("nij,nij->n", psfs, psfs)
    norm = np.where(known, norm, np.nan)
    total = np.einsum("nij,nij->n", profile, flux) / norm
    error = np.sqrt(np.einsum("nij,nij->n", profile**2, variance)) / norm
    return total, error


def measure_gauss_fluxes(
    flux: np.ndarray, variance: np.ndarray, kind: np.ndarray, psfs: np.ndarray, fwhm_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian-aperture flux whose aperture, seen before the PSF, is the same Gaussian whatever the PSF.

    The weight w solves psf * w = Gaussian (correlation), so colours from it do not depend on the seeing of either band
    (GAaP; Kuijken 2008). Scaled to the total flux of a point source. `fwhm_px`, of that Gaussian, must be at
    least about 1.3 times the widest PSF's. NaN where a tenth or more of the weight is unknown.
    """
    weights = solve_matched_weights(psfs, fwhm_px)
    known = np.where(kind == 2, 0.0, weights)
    lost = 1.0 - known.sum(axis=(1, 2)) / weights.sum(axis=(1, 2))
    total = np.einsum("nij,nij->n", known, flux)
    error = np.sqrt(np.einsum("nij,nij->n", known**2, variance))
    good = np.abs(lost) < 0.1
    return np.where(good, total, np.nan), np.where(good, error, np.nan)


def solve_matched_weights(psfs: np.ndarray, fwhm_px: float) -> np.ndarray:
    """Weights (n, s, s) whose correlation with each PSF is a centred Gaussian of this FWHM and peak 1.

    The PSF stamps carry the object's fraction of a pixel, so that the weights do too.
    """
    size = psfs.shape[1]
    padded = fft.next_fast_len(2 * size, real=True)
    ky, kx = fft.fftfreq(padded)[:, None], fft.rfftfreq(padded)[None, :]
    sigma = fwhm_px / 2.3548
    gaussian = 2.0 * np.pi * sigma**2 * np.exp(-2.0 * np.pi**2 * sigma**2 * (kx**2 + ky**2))
    spectrum = fft.rfft2(psfs, (padded, padded))
    # beyond where the PSF has power the Gaussian has none either
    power = np.maximum(np.abs(spectrum) ** 2, 1e-6)
    # psf centred at the object: weight spectrum G / conj(P) carries the position with the right sign
    weights = fft.irfft2(gaussian * spectrum / power, (padded, padded))
    return weights[:, :size, :size]
