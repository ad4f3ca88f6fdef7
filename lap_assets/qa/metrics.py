"""Numbers that say how good a product is: matching, robust statistics, completeness. Pure functions.

Reading products and truth belongs to the reports; here are only the formulas, so that tests, reports and benchmarks
count in the same way.
"""

import numpy as np
from scipy.spatial import cKDTree

from lap_assets.model.sphere import unit_vectors


def match_positions(
    ra1_deg: np.ndarray, dec1_deg: np.ndarray, ra2_deg: np.ndarray, dec2_deg: np.ndarray, radius_arcsec: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of mutually nearest positions of two lists within a radius, as two index arrays sorted by the first.

    Each position is used once at most; right at RA 0/360 and the poles.
    """
    if not len(ra1_deg) or not len(ra2_deg):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    first, second = cKDTree(unit_vectors(ra1_deg, dec1_deg)), cKDTree(unit_vectors(ra2_deg, dec2_deg))
    chord = 2.0 * np.sin(np.radians(radius_arcsec / 3600.0) / 2.0)
    distance, there = second.query(first.data, distance_upper_bound=chord * (1.0 + 1e-12))
    found = np.flatnonzero(np.isfinite(distance))
    _, back = first.query(second.data[there[found]])
    mutual = back == found
    return found[mutual], there[found][mutual].astype(np.int64)


def measure_separation(
    ra1_deg: np.ndarray, dec1_deg: np.ndarray, ra2_deg: np.ndarray, dec2_deg: np.ndarray
) -> np.ndarray:
    """Angle between positions, arcsec."""
    chord = np.linalg.norm(unit_vectors(ra1_deg, dec1_deg) - unit_vectors(ra2_deg, dec2_deg), axis=-1)
    return np.degrees(2.0 * np.arcsin(np.clip(chord / 2.0, 0.0, 1.0))) * 3600.0


def measure_offsets(
    ra_deg: np.ndarray, dec_deg: np.ndarray, ra_true_deg: np.ndarray, dec_true_deg: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Offsets to the east and to the north, milliarcsec (small angles)."""
    dra = (np.asarray(ra_deg) - np.asarray(ra_true_deg) + 180.0) % 360.0 - 180.0
    east = dra * np.cos(np.radians(np.asarray(dec_true_deg)))
    return east * 3.6e6, (np.asarray(dec_deg) - np.asarray(dec_true_deg)) * 3.6e6


def robust_sigma(values: np.ndarray) -> float:
    """1.4826 times the median absolute deviation from the median (NMAD); NaN for no finite values."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    return float(1.4826 * np.median(np.abs(finite - np.median(finite)))) if len(finite) else float("nan")
