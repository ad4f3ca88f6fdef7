"""Numbers that say how good a product is: matching, robust statistics, completeness. Pure functions.

Reading products and truth belongs to the reports; here are only the formulas, so that tests, reports and benchmarks
count in the same way.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree


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


def unit_vectors(ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
    """(n, 3) directions."""
    ra, dec = np.radians(np.asarray(ra_deg, np.float64)), np.radians(np.asarray(dec_deg, np.float64))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


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


@dataclass(frozen=True)
class Detection:
    """How a list of detections compares with what was injected."""

    n_injected: int
    n_found: int
    n_false: int

    @property
    def completeness(self) -> float:
        return self.n_found / self.n_injected if self.n_injected else float("nan")

    @property
    def purity(self) -> float:
        total = self.n_found + self.n_false
        return self.n_found / total if total else float("nan")


def compare_lists(
    ra_deg: np.ndarray, dec_deg: np.ndarray, ra_true_deg: np.ndarray, dec_true_deg: np.ndarray, radius_arcsec: float
) -> Detection:
    """Count what was found and what is false: each injected position takes one detection at most."""
    found, _ = match_positions(ra_deg, dec_deg, ra_true_deg, dec_true_deg, radius_arcsec)
    return Detection(len(ra_true_deg), len(found), len(ra_deg) - len(found))


def measure_completeness(value: np.ndarray, found: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Part of the injected that was found in bins of a value (magnitude); NaN in empty bins."""
    total, _ = np.histogram(value, edges)
    good, _ = np.histogram(np.asarray(value)[np.asarray(found, bool)], edges)
    return np.where(total > 0, good / np.maximum(total, 1), np.nan)
