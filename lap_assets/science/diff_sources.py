"""Sources of a difference image: the PSF, the matched filter, measurements and flags.

Here: what is measured on one difference. Not here: making it (`diff`), joining the detections of many (`association`).
"""

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import pandas as pd
from astropy.wcs import WCS
from numba import njit
from scipy import fft, ndimage, optimize

from lap_assets.model.image import UNUSABLE, Mask, MaskedImage
from lap_assets.science.diff import Difference
from lap_assets.science.matching_kernel import KernelLimits, choose_stamps

_SATURATED = int(Mask.SATURATED | Mask.BLEED)
_MISSING = int(Mask.EDGE | Mask.NO_DATA)
_UNUSABLE = int(UNUSABLE)


class SourceFlag(IntFlag):
    """Why a source of a difference is not to be believed."""

    DIPOLE = 1  # a residual of the other sign beside it
    NEAR_SATURATED = 2
    EDGE = 4  # part of the PSF lies where there is no data
    BRIGHT_CORE = 8  # a few per cent of what stands there on the template
    NOT_PSF = 16  # sharper, broader or otherwise unlike the PSF
    MASKED = 32  # unusable pixels in the core


# radius, in FWHM, that holds all of a star's light: that of the solutions' total apertures
_TOTAL_FWHM = 4.0


@dataclass(frozen=True)
class MoffatPsf:
    """Circular Moffat (1969) profile fitted to stars; `response` is the flux the matched filter gives a unit star.

    Attributes
    ----------
    fwhm_px, beta : float
    response : float
        Measured fluxes are divided by it: the real PSF is no exact Moffat.
    n_stars : int
        0 where none could be measured and the width is taken from elsewhere.
    """

    fwhm_px: float
    beta: float
    response: float = 1.0
    n_stars: int = 0

    @property
    def radius(self) -> int:
        """Half-width of its picture, px."""
        return int(np.clip(np.ceil(2.2 * self.fwhm_px), 5, 20))

    def draw(self, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
        """(2·radius + 1)² picture with unit total flux out to infinity, centre shifted by (dx, dy) px."""
        u = np.arange(-self.radius, self.radius + 1.0)
        alpha = 0.5 * self.fwhm_px / np.sqrt(2.0 ** (1.0 / self.beta) - 1.0)
        r2 = ((u[None, :] - dx) ** 2 + (u[:, None] - dy) ** 2) / alpha**2
        return (self.beta - 1.0) / (np.pi * alpha**2) * (1.0 + r2) ** -self.beta


@dataclass(frozen=True)
class SourceLimits:
    """When a residual is a source, and when it is flagged.

    Attributes
    ----------
    snr : float
    dipole_fraction : float
        A residual of the other sign within 2 FWHM of at least this fraction of the source's S/N makes it a dipole.
    bright_fraction : float
        Sources below this fraction of the template's flux at their place are flagged.
    saturated_radius_fwhm : float
        Radius around saturated pixels within which sources are flagged.
    min_sharpness, max_sharpness : float
        Peak over what the PSF would have there: cosmic rays are above, bad backgrounds below.
    max_chi2 : float
        Reduced χ² of the PSF in the core; (`psf_error`·S/N)² more is allowed.
    psf_error : float
        What the PSF model misses of a bright source, and the galaxy under it leaves, as a fraction of its S/N.
    """

    snr: float = 5.0
    dipole_fraction: float = 0.35
    bright_fraction: float = 0.1
    saturated_radius_fwhm: float = 3.0
    min_sharpness: float = 0.5
    max_sharpness: float = 1.6
    max_chi2: float = 2.5
    psf_error: float = 0.08


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
    width, beta = _fit_moffat(picture[core], r2[core], fwhm_px)
    # what the filter makes of the picture itself, over the picture's flux: the wings are no Moffat's
    model = MoffatPsf(width, beta).draw()
    reach = min(model.shape[0] // 2, wide)
    fitted = model[model.shape[0] // 2 - reach :, model.shape[1] // 2 - reach :][: 2 * reach + 1, : 2 * reach + 1]
    shown = picture[wide - reach : wide + reach + 1, wide - reach : wide + reach + 1]
    filtered = np.sum(shown * fitted) / np.sum(fitted**2)
    total = picture[r2 <= (_TOTAL_FWHM * fwhm_px) ** 2].sum()
    return MoffatPsf(width, beta, float(np.clip(filtered / total, 0.7, 1.25)), len(stars))


def _fit_moffat(picture: np.ndarray, r2: np.ndarray, fwhm_px: float) -> tuple[float, float]:
    """FWHM (px) and beta of the Moffat profile that fits the core of a star's picture best."""
    near = r2 <= (1.5 * fwhm_px) ** 2

    def residual(parameters):
        amplitude, width, beta, level = parameters
        alpha = 0.5 * width / np.sqrt(2.0 ** (1.0 / beta) - 1.0)
        return (amplitude * (1.0 + r2[near] / alpha**2) ** -beta + level - picture[near]) / picture.max()

    start = [picture.max(), fwhm_px, 3.5, 0.0]
    low, high = [0.0, 0.5 * fwhm_px, 1.5, -0.1 * picture.max()], [np.inf, 2.0 * fwhm_px, 8.0, 0.1 * picture.max()]
    _, width, beta, _ = optimize.least_squares(residual, start, bounds=(low, high)).x
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


def detect_sources(
    difference: Difference,
    template: MaskedImage,
    psf: MoffatPsf,
    wcs: WCS,
    limits: SourceLimits | None = None,
) -> pd.DataFrame:
    """Point-like residuals of both signs, by matched filter, with fluxes, shapes and flags.

    Parameters
    ----------
    difference : Difference
    template : MaskedImage
        (ny, nx); what stands at the place of a residual.
    psf : MoffatPsf
        Of the difference (the broader image's).
    wcs : WCS
        Of the pixel grid.

    Returns
    -------
    DataFrame
        One row per source, by y then x: x, y [px], ra, dec [deg], flux, flux_err [nJy, PSF-fitted; negative where the
        science image lacks light], snr, aperture_flux, aperture_flux_err [nJy, radius 1.5 FWHM, not corrected],
        template_flux [nJy, PSF-weighted], sharpness, chi2, a_px, b_px, theta_deg, flags (`SourceFlag` bits).
    """
    limits = limits or SourceLimits()
    image = difference.image
    flux, snr = filter_image(image, psf, difference.correlation)
    x, y = _find_extrema(snr, np.float32(limits.snr))
    standing = _weigh_places(template.sci, template.usable, psf.draw(), x, y)
    dx, dy = _refine_peaks(snr, x, y)
    peak = flux[y, x] * _peak_gain(snr, x, y, dx, dy)
    rows = _measure_sources(
        image.sci, image.var, image.mask, snr, x, y, dx, dy, peak * psf.response, psf.fwhm_px, psf.beta,
        limits.saturated_radius_fwhm,
    )  # fmt: skip
    aperture, aperture_var, sharpness, chi2, a, b, theta, opposite, bits = rows
    size = np.abs(snr[y, x])
    flags = bits.copy()
    flags[(opposite > 4.0) & (opposite > limits.dipole_fraction * size)] |= int(SourceFlag.DIPOLE)
    flags[np.abs(peak) < limits.bright_fraction * standing] |= int(SourceFlag.BRIGHT_CORE)
    unlike = (sharpness < limits.min_sharpness) | (sharpness > limits.max_sharpness)
    unlike |= chi2 > limits.max_chi2 + (limits.psf_error * size) ** 2
    flags[unlike] |= int(SourceFlag.NOT_PSF)
    sky = wcs.all_pix2world(x + dx, y + dy, 0) if x.size else (np.zeros(0), np.zeros(0))
    table = pd.DataFrame(
        {
            "x": x + dx, "y": y + dy, "ra": sky[0], "dec": sky[1],
            "flux": peak, "flux_err": np.abs(peak) / np.maximum(size, 1e-6), "snr": snr[y, x].astype(float),
            "aperture_flux": aperture, "aperture_flux_err": np.sqrt(aperture_var * difference.noisecov),
            "template_flux": standing, "sharpness": sharpness, "chi2": chi2,
            "a_px": a, "b_px": b, "theta_deg": theta, "flags": flags,
        }
    )  # fmt: skip
    table.attrs["units"] = SOURCE_UNITS
    return table


SOURCE_UNITS = {
    "x": "px", "y": "px", "ra": "deg", "dec": "deg", "flux": "nJy", "flux_err": "nJy", "aperture_flux": "nJy",
    "aperture_flux_err": "nJy", "template_flux": "nJy", "a_px": "px", "b_px": "px", "theta_deg": "deg",
}  # fmt: skip


def filter_image(image: MaskedImage, psf: MoffatPsf, correlation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PSF flux [nJy] and its signal to noise at every pixel, (ny, nx) float32 each; 0 where most of the PSF is masked.

    Flux = Σ P D / Σ P² over usable pixels; its variance is Σ P² V / (Σ P²)² times Σ PᵢPⱼρ(i−j) / Σ P² for correlated
    noise.
    """
    profile = psf.draw()
    good = image.usable
    size = [fft.next_fast_len(n + 2 * psf.radius, real=True) for n in image.shape]
    square = float(np.sum(profile**2))
    top = _correlate(np.where(good, image.sci, np.float32(0)), profile, size)
    noise = _correlate(np.where(good, image.var, np.float32(0)), profile**2, size)
    full = good.all()
    bottom = np.float32(square) if full else _correlate(good.astype(np.float32), profile**2, size)
    enough = np.ones(image.shape, bool) if full else good & (bottom > 0.6 * square)
    bottom = np.where(enough, bottom, np.float32(square))
    flux = np.where(enough, top / bottom, np.float32(0)) / np.float32(psf.response)
    # rounding of the transform can leave a hair below zero where the variance is all zero
    variance = np.maximum(noise, np.float32(1e-30)) * np.float32(correlated_gain(profile, correlation))
    snr = np.where(enough, top / np.sqrt(variance), np.float32(0))
    return flux, snr


def _correlate(image: np.ndarray, profile: np.ndarray, size) -> np.ndarray:
    """Correlation with a small centred picture symmetric about its centre, float32, zero beyond the edge."""
    radius = profile.shape[0] // 2
    padded = np.zeros(size, np.float32)
    padded[: profile.shape[0], : profile.shape[1]] = profile
    padded = np.roll(padded, (-radius, -radius), axis=(0, 1))
    return fft.irfft2(fft.rfft2(image, size) * fft.rfft2(padded), size)[: image.shape[0], : image.shape[1]]


def correlated_gain(profile: np.ndarray, correlation: np.ndarray) -> float:
    """Σ PᵢPⱼρ(i−j) / Σ P²: by how much correlated noise raises the variance of a PSF-weighted sum."""
    full = 2 * profile.shape[0] - 1
    auto = np.fft.fftshift(np.fft.irfft2(np.abs(np.fft.rfft2(profile, (full, full))) ** 2, (full, full)))
    reach = min(full // 2, correlation.shape[0] // 2)
    near = np.s_[full // 2 - reach : full // 2 + reach + 1]
    middle = correlation.shape[0] // 2
    there = np.s_[middle - reach : middle + reach + 1]
    return float(np.sum(auto[near, near] * correlation[there, there]) / np.sum(profile**2))


def _refine_peaks(snr: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of the extrema from the pixel, by parabolas along x and y; at most half a pixel."""

    def offset(before, here, after):
        curvature = before - 2.0 * here + after
        return np.clip(0.5 * (before - after) / np.where(curvature == 0, 1.0, curvature), -0.5, 0.5)

    here = snr[y, x].astype(float)
    return offset(snr[y, x - 1], here, snr[y, x + 1]), offset(snr[y - 1, x], here, snr[y + 1, x])


def _peak_gain(snr: np.ndarray, x: np.ndarray, y: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Height of the parabolas' extremum over the value at the pixel."""
    here = snr[y, x].astype(float)
    rise = 0.25 * (dx * (snr[y, x + 1] - snr[y, x - 1]) + dy * (snr[y + 1, x] - snr[y - 1, x]))
    return 1.0 + rise / np.where(here == 0, 1.0, here)


@njit(cache=True, nogil=True)
def _weigh_places(sci, good, profile, xs, ys):
    """PSF-weighted flux at some pixels; 0 where no pixel is good."""
    ny, nx = sci.shape
    radius = profile.shape[0] // 2
    fluxes = np.zeros(xs.size, np.float64)
    for s in range(xs.size):
        top, bottom = 0.0, 0.0
        for y in range(max(ys[s] - radius, 0), min(ys[s] + radius + 1, ny)):
            for x in range(max(xs[s] - radius, 0), min(xs[s] + radius + 1, nx)):
                if good[y, x]:
                    weight = profile[y - ys[s] + radius, x - xs[s] + radius]
                    top += weight * sci[y, x]
                    bottom += weight * weight
        if bottom > 0:
            fluxes[s] = top / bottom
    return fluxes


@njit(cache=True, nogil=True)
def _find_extrema(snr, limit):
    """Pixels with |snr| ≥ limit that are the largest (smallest) of their 5×5 neighbours; sorted by y, then x."""
    ny, nx = snr.shape
    xs, ys = [0][:0], [0][:0]
    for y in range(2, ny - 2):
        for x in range(2, nx - 2):
            value = abs(snr[y, x])
            if value < limit:
                continue
            sign = 1.0 if snr[y, x] > 0 else -1.0
            top = True
            for v in range(y - 2, y + 3):
                for u in range(x - 2, x + 3):
                    other = sign * snr[v, u]
                    if other > value or (other == value and (v < y or (v == y and u < x))):
                        top = False
            if top:
                xs.append(x)
                ys.append(y)
    return np.array(xs), np.array(ys)


@njit(cache=True, nogil=True)
def _measure_sources(sci, var, mask, snr, xs, ys, dxs, dys, fluxes, fwhm, beta, saturated_radius):
    """Aperture flux and variance, sharpness, χ², moments, opposite residual and flags of each source."""
    ny, nx = sci.shape
    n = xs.size
    out = np.zeros((8, n), np.float64)
    bits = np.zeros(n, np.int64)
    alpha2 = (0.5 * fwhm) ** 2 / (2.0 ** (1.0 / beta) - 1.0)
    top = (beta - 1.0) / (np.pi * alpha2)
    window = 2.0 * (fwhm / 2.3548) ** 2 * 2.0
    reach = int(max(2.0 * fwhm, saturated_radius * fwhm)) + 1
    for s in range(n):
        sign = 1.0 if fluxes[s] > 0 else -1.0
        chi2, count, opposite = 0.0, 0, 0.0
        m0, mxx, mxy, myy = 0.0, 0.0, 0.0, 0.0
        for y in range(max(ys[s] - reach, 0), min(ys[s] + reach + 1, ny)):
            for x in range(max(xs[s] - reach, 0), min(xs[s] + reach + 1, nx)):
                u, v = x - xs[s] - dxs[s], y - ys[s] - dys[s]
                r = np.sqrt(u * u + v * v)
                here = mask[y, x]
                if here & _SATURATED and r < saturated_radius * fwhm:
                    bits[s] |= 2
                if here & _MISSING and r < fwhm:
                    bits[s] |= 4
                if here & _UNUSABLE and r < 0.6 * fwhm:
                    bits[s] |= 32
                if here & _UNUSABLE or var[y, x] <= 0:
                    continue
                if r < 2.0 * fwhm:
                    opposite = max(opposite, -sign * snr[y, x])
                if r < 1.5 * fwhm:
                    out[0, s] += sci[y, x]
                    out[1, s] += var[y, x]
                    w = np.exp(-r * r / window) * sign * sci[y, x]
                    m0 += w
                    mxx += w * u * u
                    mxy += w * u * v
                    myy += w * v * v
                if r < fwhm:
                    model = fluxes[s] * top * (1.0 + r * r / alpha2) ** -beta
                    chi2 += (sci[y, x] - model) ** 2 / var[y, x]
                    count += 1
        offset2 = dxs[s] ** 2 + dys[s] ** 2
        out[2, s] = sci[ys[s], xs[s]] / (fluxes[s] * top * (1.0 + offset2 / alpha2) ** -beta)
        out[3, s] = chi2 / max(count, 1)
        if m0 > 0:
            half, spread = 0.5 * (mxx + myy) / m0, np.sqrt(0.25 * (mxx - myy) ** 2 + mxy**2) / m0
            out[4, s], out[5, s] = np.sqrt(max(half + spread, 0.0)), np.sqrt(max(half - spread, 0.0))
            out[6, s] = np.degrees(0.5 * np.arctan2(2.0 * mxy, mxx - myy))
        out[7, s] = opposite
    return out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7], bits
