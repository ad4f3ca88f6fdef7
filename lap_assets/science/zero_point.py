"""Zero point of one exposure against reference magnitudes, brought to the camera's own band by a colour term.

Zero points of several exposures relative to each other, and their structure over the focal plane, are
`science/jointcal.py`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lap_assets.science.photometry import clip_mean

_MAX_ERR_MAG = 0.1
_COLOUR_RANGE_MAG = 1.5  # about the median: a linear colour term holds no further


@dataclass(frozen=True)
class ZeroPoint:
    """Magnitude (AB) of one unit of flux, its error, the scatter of the stars about it, and how many there were."""

    mag: float
    err_mag: float
    rms_mag: float
    n_stars: int


def transform_magnitudes(
    magnitudes: Mapping[str, np.ndarray], band: str, colour_bands: tuple[str, str] | None, coefficient: float
) -> np.ndarray:
    """Reference magnitudes in the camera's own band: m + coefficient · (m_blue − m_red), (n,) float64.

    NaN where a star lacks the band or the colour, or its colour is more than 1.5 mag from the median, where a linear
    term no longer holds (cool dwarfs, quasars).

    Parameters
    ----------
    magnitudes : mapping of band to (n,) array
        AB magnitudes of the reference stars; NaN where unknown.
    band : str
        The reference catalogue's band that comes nearest.
    colour_bands : (blue, red) or None
        None: no colour term, the magnitudes as they are.
    coefficient : float
        mag per mag of colour.
    """
    mag = np.asarray(magnitudes[band], float)
    if colour_bands is None:
        return mag
    colour = np.asarray(magnitudes[colour_bands[0]], float) - np.asarray(magnitudes[colour_bands[1]], float)
    known = np.isfinite(colour)
    if not known.any():
        return np.full(len(mag), np.nan)
    usual = known & (np.abs(colour - np.median(colour[known])) <= _COLOUR_RANGE_MAG)
    return np.where(usual, mag + coefficient * np.where(usual, colour, 0.0), np.nan)


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
    centre, error, rms, used = clip_mean(value, weight)
    return ZeroPoint(centre, error, rms, used)
