"""Proper motions of reference stars: positions at an epoch, and the epoch that measured positions speak for.

A catalogue whose stated epoch is wrong, or whose positions somebody has moved already, shows in residuals that grow
with the proper motion. Matching and fitting are `science/astrometry.py`'s.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

_MIN_STARS = 30
_CLIP_SIGMA = 4.0
_ROUNDS = 5
_SIGNIFICANT_SIGMA = 5.0
_SIGNIFICANT_YR = 0.1


@dataclass(frozen=True)
class EpochError:
    """Years between the epoch that positions speak for and the one that was used, and the error of that."""

    years: float
    err_years: float

    @property
    def significant(self) -> bool:
        """Whether something is wrong with the epochs."""
        return abs(self.years) > max(_SIGNIFICANT_SIGMA * self.err_years, _SIGNIFICANT_YR)


def propagate_positions(catalog: pd.DataFrame, epoch_yr: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions (ra, dec) in degrees of catalogue rows at `epoch_yr`, linear proper motion applied (0 if unknown)."""
    years = epoch_yr - catalog.ref_epoch_yr.to_numpy(float)
    dec = catalog.dec.to_numpy(float)
    pmra, pmdec = (np.nan_to_num(catalog[name].to_numpy(float)) for name in ("pmra", "pmdec"))
    ra = catalog.ra.to_numpy(float) + years * pmra / 3.6e6 / np.maximum(np.cos(np.radians(dec)), 1e-6)
    return ra % 360.0, dec + years * pmdec / 3.6e6


def measure_epoch_error(residual_mas: np.ndarray, motion: np.ndarray) -> EpochError:
    """Robust slope of residuals over proper motions.

    Parameters
    ----------
    residual_mas : (n, 2) array
        Reference minus measured position, right ascension (·cos δ) and declination.
    motion : (n, 2) array
        Proper motions, mas/yr; rows that are not finite do not count.

    Returns
    -------
    EpochError
        Of the epoch that the references were moved to: add `years` to it. Not significant with fewer than 30 stars.
    """
    known = np.isfinite(motion).all(axis=1) & np.isfinite(residual_mas).all(axis=1)
    if known.sum() < _MIN_STARS:
        return EpochError(0.0, np.inf)
    # the mean motion of a field is taken up by its affine terms
    moved = (motion[known] - np.median(motion[known], axis=0)).ravel()
    left = (residual_mas[known] - np.median(residual_mas[known], axis=0)).ravel()
    weight = np.ones(len(left))
    for _ in range(_ROUNDS):
        total = float(np.sum(weight * moved**2))
        if not total > 0:
            return EpochError(0.0, np.inf)
        slope = float(np.sum(weight * moved * left)) / total
        scatter = 1.4826 * float(np.median(np.abs(left - slope * moved)))
        weight = (np.abs(left - slope * moved) <= _CLIP_SIGMA * max(scatter, 1e-6)).astype(float)
    return EpochError(-slope, scatter / np.sqrt(total))
