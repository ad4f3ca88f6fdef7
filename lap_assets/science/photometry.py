"""Photometric solution of an exposure: aperture corrections, zero point against reference magnitudes, depth.

Relative zero points of several exposures are `science/jointcal.py`'s; colour terms and spatial structure of the zero
point do not belong here.
"""

from dataclasses import dataclass

import numpy as np

_CLIP_SIGMA = 3.5
_MAX_ERR_MAG = 0.1


@dataclass(frozen=True)
class ZeroPoint:
    """Magnitude (AB) of one unit of flux, its error, the scatter of the stars about it, and how many there were."""

    mag: float
    err_mag: float
    rms_mag: float
    n_stars: int


def measure_aperture_correction(small: np.ndarray, total: np.ndarray, snr: np.ndarray) -> tuple[float, float]:
    """Ratio total / small of the fluxes of stars in a large and a small aperture, and its error.

    Clipped mean weighted by S/N² with a ceiling, so that a single bright star does not decide.

    Parameters
    ----------
    small, total, snr : (n,) arrays
        Of clean, isolated stars.

    Returns
    -------
    (1, 0) where no star can tell.
    """
    good = (small > 0) & (total > 0) & (snr > 0)
    if not good.any():
        return 1.0, 0.0
    ratio = total[good] / small[good]
    weight = np.minimum(snr[good], 300.0) ** 2
    centre, error, _, used = _clip_mean(ratio, weight)
    # a handful of stars cannot vouch for their own scatter
    return centre, max(error, 0.02 / used)


def combine_aperture_corrections(corrections: np.ndarray, errors: np.ndarray, scatter: float = 0.003) -> np.ndarray:
    """Corrections of the chips of one exposure, drawn towards their common mean by as much as they are uncertain.

    Apertures scale with each chip's FWHM, so that the corrections differ by the shape of the PSF alone.

    Parameters
    ----------
    corrections, errors : (n,) arrays
    scatter : float
        True scatter expected between chips.

    Returns
    -------
    (n,) float64
    """
    var = errors**2 + scatter**2
    mean = np.sum(corrections / var) / np.sum(1.0 / var)
    return (corrections * scatter**2 + mean * errors**2) / var


def fit_zero_point(flux: np.ndarray, flux_err: np.ndarray, mag: np.ndarray, mag_err: float = 0.01) -> ZeroPoint | None:
    """Zero point from stars of known magnitude: clipped, weighted mean of mag + 2.5 log10(flux).

    Parameters
    ----------
    flux, flux_err : (n,) arrays
        Total fluxes in the unit of the chips.
    mag : (n,) array
        AB; NaN where unknown.
    mag_err : float
        Scatter of the reference magnitudes, added to every star's error so that bright ones share the weight.

    Returns
    -------
    None where no star has both.
    """
    err_mag = 1.0857 * flux_err / np.maximum(flux, 1e-30)
    good = np.isfinite(mag) & (flux > 0) & np.isfinite(err_mag) & (err_mag < _MAX_ERR_MAG)
    if not good.any():
        return None
    value = mag[good] + 2.5 * np.log10(flux[good])
    weight = 1.0 / (err_mag[good] ** 2 + mag_err**2)
    centre, error, rms, used = _clip_mean(value, weight)
    return ZeroPoint(centre, error, rms, used)


def measure_depth(zero_point_mag: float, sky_rms: float, fwhm_px: float, n_sigma: float = 5.0) -> float:
    """Magnitude at which a star has S/N `n_sigma` in optimal (PSF) photometry against the sky noise.

    The noise area of a Gaussian PSF is 4π σ² pixels (King 1983, PASP 95, 163).
    """
    noise_pixels = 4.0 * np.pi * (fwhm_px / 2.3548) ** 2
    return float(zero_point_mag - 2.5 * np.log10(n_sigma * sky_rms * np.sqrt(noise_pixels)))


def _clip_mean(value: np.ndarray, weight: np.ndarray) -> tuple[float, float, float, int]:
    """Weighted mean, its error from the scatter, rms and number after rejection around the median."""
    keep = np.ones(len(value), bool)
    for _ in range(8):
        centre = float(np.median(value[keep]))
        spread = 1.4826 * float(np.median(np.abs(value[keep] - centre)))
        # with few stars the scatter itself is uncertain; never clip within 2 per mille
        fresh = np.abs(value - centre) <= _CLIP_SIGMA * max(spread, 0.002)
        if np.array_equal(fresh, keep):
            break
        keep = fresh
    mean = float(np.sum(weight[keep] * value[keep]) / np.sum(weight[keep]))
    rms = float(np.sqrt(np.mean((value[keep] - mean) ** 2)))
    return mean, rms / np.sqrt(max(int(keep.sum()) - 1, 1)), rms, int(keep.sum())
