"""Aperture corrections and depth of an exposure, and the clipped mean that photometry rests on.

Zero points are `science/zero_point.py`'s.
"""

import numpy as np

_CLIP_SIGMA = 3.5


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
    centre, error, _, used = clip_mean(ratio, weight)
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


def measure_depth(zero_point_mag: float, sky_rms: float, fwhm_px: float, n_sigma: float = 5.0) -> float:
    """Magnitude at which a star has S/N `n_sigma` in optimal (PSF) photometry against the sky noise.

    The noise area of a Gaussian PSF is 4π σ² pixels (King 1983, PASP 95, 163).
    """
    noise_pixels = 4.0 * np.pi * (fwhm_px / 2.3548) ** 2
    return float(zero_point_mag - 2.5 * np.log10(n_sigma * sky_rms * np.sqrt(noise_pixels)))


def clip_mean(value: np.ndarray, weight: np.ndarray) -> tuple[float, float, float, int]:
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
