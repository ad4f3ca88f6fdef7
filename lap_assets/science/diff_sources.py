"""Sources of a difference image: which residuals are sources, what is measured of them, and why some are flagged.

Here: the table of one difference. Not here: making it (`diff`), the kernels that look at pixels (`source_search`,
`dipole`), joining the detections of many (`association`).
"""

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import pandas as pd
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from lap_assets.model.image import UNUSABLE, MaskedImage
from lap_assets.science.difference import Difference
from lap_assets.science.dipole import fit_dipoles
from lap_assets.science.source_search import (
    LocalPsf,
    correlated_gain,
    filter_coarsely,
    find_extrema,
    measure_peaks,
    measure_shapes,
    tabulate_psf,
    weigh_places,
)

_COARSE = 0.7  # of the limit that the coarse filter must show: it loses a few per cent, more beside masked pixels
_MIN_SHARE = 0.6  # of the PSF on usable pixels
_MIN_OWN = 0.5  # of a peak of the score, that the flux about it must have of signal to noise
_SAME_PX = 1.5  # within which two places are one
_RING_FWHM = 4.0  # as far from a star a kernel that ends too early leaves its ring
_MIN_OPPOSITE = 4.0  # signal to noise of a residual of the other sign that makes a dipole


class SourceFlag(IntFlag):
    """Why a source of a difference is not to be believed."""

    DIPOLE = 1  # a residual of the other sign beside it
    NEAR_SATURATED = 2
    EDGE = 4  # part of the PSF lies where there is no data
    BRIGHT_CORE = 8  # a few per cent of what stands there on the template
    NOT_PSF = 16  # sharper, broader or otherwise unlike the PSF
    MASKED = 32  # unusable pixels in the core
    BAD_SUBTRACTION = 64  # the whole difference failed its check


@dataclass(frozen=True)
class SourceLimits:
    """When a residual is a source, and when it is flagged.

    Attributes
    ----------
    snr : float
    dipole_fraction : float
        A residual of the other sign within 2 FWHM of at least this fraction of the source's S/N makes it a dipole.
    bright_fraction : float
        Sources below this fraction of the template's flux at their place, or half of it of that beside them, are
        flagged.
    saturated_radius_fwhm : float
        Radius around saturated pixels within which sources are flagged.
    min_sharpness, max_sharpness : float
        Peak over what the PSF would have there: cosmic rays are above, bad backgrounds below, both by 2 sigma.
    max_chi2 : float
        Reduced χ² of the PSF in the core; (`psf_error`·S/N)² more is allowed.
    psf_error : float
        What the PSF model misses of a bright source, and the galaxy under it leaves, as a fraction of its S/N.
    max_excess : float
        Of the aperture's flux over the PSF's, as a fraction of it and 4 sigma more.
    bright_star_snr : float
        Of the stars whose distance is told.
    """

    snr: float = 5.0
    dipole_fraction: float = 0.35
    bright_fraction: float = 0.1
    saturated_radius_fwhm: float = 3.0
    min_sharpness: float = 0.5
    max_sharpness: float = 1.6
    max_chi2: float = 2.5
    psf_error: float = 0.08
    max_excess: float = 0.5
    bright_star_snr: float = 300.0


def detect_sources(
    difference: Difference,
    template: MaskedImage,
    wcs: WCS,
    limits: SourceLimits | None = None,
    stars: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Point-like residuals of both signs, by matched filter, with fluxes, shapes, dipoles and flags.

    Parameters
    ----------
    difference : Difference
        Its own PSF is the filter's. Where it has a score (ZOGY), that decides what is found and its signal to noise.
    template : MaskedImage
        (ny, nx); what stands at the place of a residual.
    wcs : WCS
        Of the pixel grid.
    limits : SourceLimits
    stars : DataFrame
        Stars on this grid: x, y [px], flux_njy, snr; None: none is known.

    Returns
    -------
    DataFrame
        One row per source, by y then x: x, y [px], ra, dec [deg], flux, flux_err [nJy, PSF-fitted; negative where the
        science image lacks light], snr, aperture_flux, aperture_flux_err [nJy, radius 1.5 FWHM, not corrected],
        template_flux [nJy, PSF-weighted], sharpness, chi2, a_px, b_px, theta_deg, ellipticity,
        star_distance_px, star_flux [px, nJy; of the nearest bright star, NaN where there is none], the columns of
        `DIPOLE_COLUMNS` [NaN where no residual of the other sign is near], flags (`SourceFlag` bits).
    """
    limits = limits or SourceLimits()
    image, local = difference.image, tabulate_psf(difference.psf, difference.image.shape)
    snr, scatter, places = _find_places(difference, local, limits)
    x, y, flux, significance = places.T
    cells = local.locate(x, y)
    shapes, bits = measure_shapes(
        image.sci, image.var, image.mask, snr, local.flat, cells, x, y, flux, difference.psf.fwhm_px,
        limits.saturated_radius_fwhm,
    )  # fmt: skip
    shapes[:, 7] /= scatter
    aperture, aperture_var, sharpness, chi2, a, b, theta = shapes.T[:7]
    standing = _weigh_around(template, local, x, y, difference.psf.fwhm_px)
    flags = bits | _judge(significance, flux, np.maximum(standing[4], 0.5 * standing.max(axis=0)), shapes, limits)
    sky = wcs.all_pix2world(x, y, 0) if x.size else (np.zeros(0), np.zeros(0))
    near = _find_star(x, y, stars, limits.bright_star_snr)
    table = pd.DataFrame(
        {
            "x": x, "y": y, "ra": sky[0], "dec": sky[1], "flux": flux,
            "flux_err": flux / significance, "snr": significance,
            "aperture_flux": aperture, "aperture_flux_err": np.sqrt(aperture_var * difference.noisecov),
            "template_flux": standing[4], "sharpness": sharpness, "chi2": chi2, "a_px": a, "b_px": b,
            "theta_deg": theta, "ellipticity": 1.0 - b / np.where(a > 0, a, 1.0),
            "star_distance_px": near[0], "star_flux": near[1],
        }
        | _measure_dipoles(difference, template, local, x, y, flux, np.abs(significance), shapes, limits)
        | {"flags": flags}
    )  # fmt: skip
    table.attrs["units"] = SOURCE_UNITS
    return table


DIPOLE_COLUMNS = (
    "dipole_flux_pos", "dipole_flux_neg", "dipole_separation_px", "dipole_angle_deg", "dipole_chi2"
)  # fmt: skip
SOURCE_UNITS = {
    "x": "px", "y": "px", "ra": "deg", "dec": "deg", "flux": "nJy", "flux_err": "nJy", "aperture_flux": "nJy",
    "aperture_flux_err": "nJy", "template_flux": "nJy", "a_px": "px", "b_px": "px", "theta_deg": "deg",
    "star_distance_px": "px", "star_flux": "nJy", "dipole_flux_pos": "nJy", "dipole_flux_neg": "nJy",
    "dipole_separation_px": "px", "dipole_angle_deg": "deg",
}  # fmt: skip


def _pixel(z: np.ndarray) -> np.ndarray:
    return np.floor(z + 0.5).astype(np.int64)


def _find_places(difference: Difference, local: LocalPsf, limits: SourceLimits) -> tuple[np.ndarray, float, np.ndarray]:
    """Signal to noise at every pixel (the coarse one, or the score), its scatter, and the places that pass, by y, x.

    Of these x, y [px], flux [nJy] and signal to noise, (n, 4).
    """
    image, score = difference.image, difference.score
    snr = filter_coarsely(image, local, difference.correlation) if score is None else score
    scatter = _measure_scatter(snr, image)
    gain = correlated_gain(local.flat[len(local.flat) // 2], difference.correlation) * scatter**2
    x, y = find_extrema(snr, np.float32(scatter * limits.snr * (_COARSE if score is None else 1.0)))
    peaks = snr[y, x].astype(float) / scatter
    places = measure_peaks(
        image.sci, image.mask, image.var, local.flat, local.locate(x, y), x, y, np.sign(peaks), gain
    )  # fmt: skip
    usable, places[:, 3] = places[:, 4] > _MIN_SHARE, places[:, 2] / places[:, 3]
    passed = usable & (np.abs(places[:, 3]) >= limits.snr)
    if score is not None:
        # the score counts what misplaced stars leave, and beside gaps what is cut of bright ones: of its peaks, those
        # are sources that the flux bears out
        passed = usable & (places[:, 3] * np.sign(peaks) > _MIN_OWN * np.abs(peaks))
        places[:, 3] = peaks
    places = places[passed, :4]
    places = places[np.lexsort((places[:, 0], places[:, 1]))]
    # two candidates may have climbed to one peak
    again = np.zeros(len(places), bool)
    again[1:] = np.hypot(*np.diff(places[:, :2], axis=0).T) < _SAME_PX
    return snr, scatter, places[~again]


def _weigh_around(template: MaskedImage, local: LocalPsf, x, y, fwhm_px: float) -> np.ndarray:
    """(9, n) PSF-weighted fluxes of the template at each place (row 4) and 0.75 FWHM from it along both axes."""
    step, cells = round(0.75 * fwhm_px), local.locate(x, y)
    around = [
        _weigh(template, local, cells, _pixel(x) + i * step, _pixel(y) + j * step)
        for j in (-1, 0, 1)
        for i in (-1, 0, 1)
    ]
    return np.array(around)


def _weigh(image: MaskedImage, local: LocalPsf, cells, x, y) -> np.ndarray:
    return weigh_places(image.sci, image.mask, image.var, local.flat, cells, x, y)


def _measure_scatter(snr: np.ndarray, image: MaskedImage, most: int = 100_000) -> float:
    """Robust scatter of the signal to noise, at least 1: what VAR and the known correlations do not tell of the noise.

    Templates of convolved or twice resampled images have noise that is more correlated than a warp's.
    """
    step = max(snr.size // most, 1)
    values, mask, var = (plane.ravel()[::step] for plane in (snr, image.mask, image.var))
    values = values[((mask & int(UNUSABLE)) == 0) & (var > 0)]
    if values.size < 100:
        return 1.0
    low, high = np.percentile(values, [15.87, 84.13])
    return max(1.0, float(0.5 * (high - low)))


def _judge(significance, flux, standing, shapes, limits: SourceLimits) -> np.ndarray:
    """(n,) flags that follow from the measurements."""
    aperture, aperture_var, sharpness, chi2, opposite, error = shapes[:, [0, 1, 2, 3, 7, 10]].T
    size = np.abs(significance)
    flags = np.zeros(size.size, np.int64)
    flags[(opposite > _MIN_OPPOSITE) & (opposite > limits.dipole_fraction * size)] |= int(SourceFlag.DIPOLE)
    flags[np.abs(flux) < limits.bright_fraction * standing] |= int(SourceFlag.BRIGHT_CORE)
    # the peak pixel of a faint source is mostly noise
    unlike = (sharpness + 2.0 * error < limits.min_sharpness) | (sharpness - 2.0 * error > limits.max_sharpness)
    unlike |= chi2 > limits.max_chi2 + (limits.psf_error * size) ** 2
    # far more light in the aperture than in the PSF: a bad background
    unlike |= np.sign(flux) * aperture > (1.0 + limits.max_excess) * np.abs(flux) + 4.0 * np.sqrt(aperture_var)
    flags[unlike] |= int(SourceFlag.NOT_PSF)
    return flags


def _find_star(x, y, stars: pd.DataFrame | None, min_snr: float) -> tuple[np.ndarray, np.ndarray]:
    """Distance (px) and flux (nJy) of the nearest bright star; NaN where there is none."""
    bright = stars[stars["snr"] >= min_snr] if stars is not None else ()
    if not len(bright) or not x.size:
        return np.full(x.size, np.nan), np.full(x.size, np.nan)
    distance, index = cKDTree(bright[["x", "y"]].to_numpy(float)).query(np.column_stack([x, y]))
    return distance, bright["flux_njy"].to_numpy(float)[index]


def count_residual_stars(
    sources: pd.DataFrame, stars: pd.DataFrame, limits: SourceLimits, fwhm_px: float
) -> tuple[int, int]:
    """How many stars leave an unflagged source on a difference, on them or as a ring, and of how many.

    Looked at are those of which a part of `bright_fraction` would be found. Few stars vary; where many leave something,
    PSFs or fluxes of the two images do not fit, whatever the pixels of the stars that were matched say.

    Parameters
    ----------
    sources : DataFrame
        As `detect_sources` gives them.
    stars : DataFrame
        x, y [px], snr.
    fwhm_px : float
        Of the difference: within `_RING_FWHM` of these a source is a star's.
    """
    bright = stars[stars["snr"] * limits.bright_fraction >= limits.snr]
    clean = sources[sources["flags"] == 0]
    if not len(bright) or not len(clean):
        return 0, len(bright)
    distance, _ = cKDTree(clean[["x", "y"]].to_numpy(float)).query(bright[["x", "y"]].to_numpy(float))
    return int((distance < _RING_FWHM * fwhm_px).sum()), len(bright)


def _measure_dipoles(difference, template, local: LocalPsf, x, y, flux, size, shapes, limits) -> dict[str, np.ndarray]:
    """The columns of `DIPOLE_COLUMNS`, fitted where a residual of the other sign stands near."""
    columns = {name: np.full(x.size, np.nan) for name in DIPOLE_COLUMNS}
    opposite, other_x, other_y = shapes[:, 7:10].T
    tried = np.flatnonzero((opposite > _MIN_OPPOSITE) & (opposite > limits.dipole_fraction * size))
    if not tried.size:
        return columns
    image = difference.image
    own = np.column_stack([x[tried], y[tried], flux[tried]])
    other = np.column_stack([other_x[tried], other_y[tried], -flux[tried] * opposite[tried] / size[tried]])
    positive = (flux[tried] > 0)[:, None]
    starts = np.hstack([np.where(positive, own, other), np.where(positive, other, own)])
    cells = local.locate(x[tried], y[tried])
    # of a misplaced star the light stands between the two, of a moving one at the negative
    middle = 0.5 * (starts[:, :2] + starts[:, 3:5])
    standing = [
        _weigh(template, local, cells, _pixel(places[:, 0]), _pixel(places[:, 1]))
        for places in (middle, starts[:, 3:5])
    ]
    usable = image.mask & np.int16(UNUSABLE) == 0
    fits = fit_dipoles(
        image.sci, image.var, usable, local.flat, cells, starts, np.maximum(*standing).clip(min=0.0),
        difference.psf.fwhm_px,
    )  # fmt: skip
    found = (fits.positive[:, 2], fits.negative[:, 2], fits.separation_px, fits.angle_deg, fits.chi2)
    for name, values in zip(DIPOLE_COLUMNS, found, strict=True):
        columns[name][tried] = values
    return columns
