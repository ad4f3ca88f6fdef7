"""A round profile fitted to the stars of one image: its PSF where the exposure's solution tells none.

Here: choosing stars among galaxies, aligning them, the Moffat fit. Not here: the profile itself (`moffat`), PSF models
of chips (`psf`) and grids of them (`psf_grid`).
"""

import numpy as np
from scipy import ndimage, optimize

from lap_assets.model.image import UNUSABLE, MaskedImage
from lap_assets.science.matching_kernel import KernelLimits, choose_stamps
from lap_assets.science.moffat import MoffatPsf

_UNUSABLE = int(UNUSABLE)
# radius, in FWHM, that holds all of a star's light: that of the solutions' total apertures
_TOTAL_FWHM = 4.0


def measure_psf(broad: MaskedImage, fwhm_px: float, max_stars: int = 40) -> MoffatPsf:
    """Moffat profile of an image from its bright compact objects; falls back on `fwhm_px` where there are none.

    Objects are aligned by their centroids and normalised; those of the most common size (half-sample mode, so that
    galaxies drop out) are combined by the median.
    """
    half = int(np.clip(np.ceil(2.2 * fwhm_px), 5, 20))
    wide = int(np.ceil(_TOTAL_FWHM * fwhm_px))
    fallback = MoffatPsf(float(fwhm_px), 3.5)
    if not broad.usable.any():
        return fallback
    stamps = _collect_stars(broad, wide, max_stars)
    if len(stamps) < 3:
        return fallback
    u = np.arange(-wide, wide + 1.0)
    r2 = u[:, None] ** 2 + u[None, :] ** 2
    core = np.s_[wide - half : wide + half + 1, wide - half : wide + half + 1]
    window = np.exp(-0.5 * r2[core] / (fwhm_px / 1.5) ** 2)
    sizes = np.array([np.sum(window * r2[core] * s[core]) / np.sum(window * s[core]) for s in stamps])
    centre = _half_sample_mode(np.sort(sizes))
    stars = [s for s, size in zip(stamps, sizes, strict=True) if abs(size - centre) < 0.1 * centre]
    if len(stars) < 3:
        return fallback
    picture = np.median(stars, axis=0)
    ring = (r2 > (0.875 * _TOTAL_FWHM * fwhm_px) ** 2) & (r2 <= (_TOTAL_FWHM * fwhm_px) ** 2)
    picture -= np.median(picture[ring])
    width, beta = _fit_moffat(picture[core], u[wide - half : wide + half + 1], fwhm_px)
    return MoffatPsf(width, beta, n_stars=len(stars))


def _fit_moffat(picture: np.ndarray, u: np.ndarray, fwhm_px: float) -> tuple[float, float]:
    """FWHM (px) and beta of the Moffat profile that fits the core of a star's picture best.

    `u` are the offsets of its columns and rows from its middle; pixels are averages of the profile, as
    `MoffatPsf.evaluate` has them.
    """
    rows, columns = np.nonzero(u[:, None] ** 2 + u[None, :] ** 2 <= (1.5 * fwhm_px) ** 2)
    shown = picture[rows, columns]
    fine = (np.arange(5) - 2.0) / 5.0
    r2 = (u[columns][:, None, None] + fine[None, :, None]) ** 2 + (u[rows][:, None, None] + fine[None, None, :]) ** 2

    def residual(parameters):
        amplitude, width, beta, level = parameters
        alpha = 0.5 * width / np.sqrt(2.0 ** (1.0 / beta) - 1.0)
        profile = ((1.0 + r2 / alpha**2) ** -beta).mean(axis=(1, 2))
        return (amplitude * profile + level - shown) / shown.max()

    top = picture.max()
    low, high = [0.0, 0.5 * fwhm_px, 1.5, -0.1 * top], [np.inf, 2.0 * fwhm_px, 8.0, 0.1 * top]
    _, width, beta, _ = optimize.least_squares(residual, [top, fwhm_px, 3.5, 0.0], bounds=(low, high)).x
    return float(width), float(beta)


def _collect_stars(image: MaskedImage, half: int, max_stars: int) -> list[np.ndarray]:
    """Normalised stamps of bright unsaturated objects, shifted to a common centre."""
    xs, ys = choose_stamps(image, image, half, 2, KernelLimits(max_stamps=max_stars, min_stamp_snr=15.0))
    stamps = []
    for x, y in zip(xs, ys, strict=True):
        cut = np.s_[y - half - 2 : y + half + 3, x - half - 2 : x + half + 3]
        sci = image.sci[cut].astype(float)
        if (image.mask[cut] & _UNUSABLE).any():
            continue
        v, u = np.mgrid[-half - 2 : half + 3, -half - 2 : half + 3]
        core = np.hypot(u, v) <= 2.5
        total = sci[core].sum()
        dx, dy = np.sum(sci[core] * u[core]) / total, np.sum(sci[core] * v[core]) / total
        if max(abs(dx), abs(dy)) > 1.0:
            continue
        moved = ndimage.shift(sci, (-dy, -dx), order=3, mode="nearest")[2:-2, 2:-2]
        flux = moved[np.hypot(u, v)[2:-2, 2:-2] <= 2.5].sum()
        stamps.append(moved / flux)
    return stamps


def _half_sample_mode(ordered: np.ndarray) -> float:
    """Mode of sorted values: keep the densest half until three are left (Bickel & Frühwirth 2006)."""
    while ordered.size > 3:
        n = (ordered.size + 1) // 2
        widths = ordered[n - 1 :] - ordered[: ordered.size - n + 1]
        first = int(np.argmin(widths))
        ordered = ordered[first : first + n]
    return float(np.median(ordered))
