"""Relative zero points of exposures from the stars they share.

Matching catalogues of several exposures and one least-squares fit; the absolute zero point of each exposure stays what
its own solution says on average. Joint astrometry does not belong here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

_MAX_ROUNDS = 10
_ERR_FLOOR_MAG = 0.003  # flat-field and aperture errors that no photon statistics knows


@dataclass(frozen=True)
class JointZeroPoints:
    """Result of `solve_zero_points`.

    Attributes
    ----------
    table : DataFrame
        exposure, dzp_mag, dzp_err_mag, n_stars: one row per exposure, sorted. zero point + dzp_mag is the one to use.
    repeatability_mmag : float
        Robust scatter of single measurements about the stars' means after the fit (NaN without common stars).
    n_stars : int
        Stars seen in two exposures or more.
    """

    table: pd.DataFrame
    repeatability_mmag: float
    n_stars: int


def match_stars(stars: Mapping[str, pd.DataFrame], radius_arcsec: float) -> pd.DataFrame:
    """Group the stars of several exposures by position.

    Exposures are taken in sorted order; each star joins the nearest star already known within the radius (mutual
    nearest), else founds a new one.

    Parameters
    ----------
    stars : mapping of exposure to DataFrame
        ra, dec [deg], mag, mag_err.

    Returns
    -------
    DataFrame
        star (int), exposure (int, index in sorted order), mag, mag_err.
    """
    known = np.zeros((0, 3))
    rows = []
    reach = 2.0 * np.sin(np.radians(radius_arcsec / 3600.0) / 2.0)
    for number, exposure in enumerate(sorted(stars)):
        table = stars[exposure]
        if not len(table):
            continue
        vectors = _unit_vectors(table.ra.to_numpy(float), table.dec.to_numpy(float))
        ids = np.full(len(table), -1)
        if len(known):
            distance, index = cKDTree(known).query(vectors, distance_upper_bound=reach)
            near = np.nonzero(np.isfinite(distance))[0]
            _, back = cKDTree(vectors).query(known[index[near]])
            mutual = near[back == near]
            ids[mutual] = index[mutual]
        new = ids < 0
        ids[new] = len(known) + np.arange(int(new.sum()))
        known = np.vstack([known, vectors[new]])
        rows.append(
            pd.DataFrame(
                {
                    "star": ids,
                    "exposure": number,
                    "mag": table.mag.to_numpy(float),
                    "mag_err": table.mag_err.to_numpy(float),
                }
            )
        )
    columns = ["star", "exposure", "mag", "mag_err"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame({name: [] for name in columns})


def solve_zero_points(
    measurements: pd.DataFrame, exposures: list[str], min_stars: int = 5, clip_sigma: float = 4.0
) -> JointZeroPoints:
    """Corrections dzp that make the magnitudes of common stars agree best, of mean 0 over the exposures that have them.

    Minimises Σ (mag + dzp_exposure − m_star)² / err² with the m_star eliminated, rejecting outliers between rounds. An
    exposure with fewer than `min_stars` common stars keeps its own zero point: dzp 0, n_stars 0.

    Parameters
    ----------
    measurements : DataFrame
        From `match_stars`; `exposure` counts in the order of sorted `exposures`.
    exposures : list of str
    """
    names = sorted(exposures)
    star, exposure = (measurements[name].to_numpy(int) for name in ("star", "exposure"))
    mag = measurements["mag"].to_numpy(float)
    weight = 1.0 / (measurements["mag_err"].to_numpy(float) ** 2 + _ERR_FLOOR_MAG**2)
    keep = np.isfinite(mag) & np.isfinite(weight)
    dzp, err, residual = np.zeros(len(names)), np.full(len(names), np.nan), np.zeros(len(mag))
    for _ in range(_MAX_ROUNDS):
        keep, counts = _drop_lonely(star, exposure, keep, len(names), min_stars)
        if not keep.any():
            break
        dzp, err, residual = _solve_once(star, exposure, mag, weight, keep, len(names))
        spread = max(1.4826 * float(np.median(np.abs(residual[keep]))), 1e-4)
        scaled = np.abs(residual) / np.sqrt(spread**2 + 1.0 / weight)
        fresh = keep & (scaled < clip_sigma)
        if np.array_equal(fresh, keep):
            break
        keep = fresh
    _, counts = _drop_lonely(star, exposure, keep, len(names), min_stars)
    dzp = np.where(counts > 0, dzp, 0.0)
    table = pd.DataFrame(
        {"exposure": names, "dzp_mag": dzp, "dzp_err_mag": np.where(counts > 0, err, 0.0), "n_stars": counts}
    )
    table.attrs["units"] = {"dzp_mag": "mag", "dzp_err_mag": "mag"}
    return JointZeroPoints(table, _measure_repeatability(star, residual, keep), len(np.unique(star[keep])))


def _drop_lonely(star, exposure, keep, n_exposures, min_stars):
    """Leave out stars seen once and exposures with too few stars, until nothing changes; also counts per exposure."""
    keep = keep.copy()
    while True:
        seen = np.bincount(star[keep], minlength=int(star.max()) + 1 if len(star) else 1)
        counts = np.bincount(exposure[keep & (seen[star] > 1)] if len(star) else [], minlength=n_exposures)
        counts = np.where(counts < min_stars, 0, counts)
        fresh = keep & (seen[star] > 1) & (counts[exposure] > 0)
        if np.array_equal(fresh, keep):
            return keep, counts
        keep = fresh


def _solve_once(star, exposure, mag, weight, keep, n_exposures):
    """Normal equations of the exposures with the stars' magnitudes eliminated; mean of dzp fixed to 0."""
    _, index = np.unique(star[keep], return_inverse=True)
    n_stars = int(index.max()) + 1
    weights = np.zeros((n_stars, n_exposures))
    values = np.zeros((n_stars, n_exposures))
    np.add.at(weights, (index, exposure[keep]), weight[keep])
    np.add.at(values, (index, exposure[keep]), weight[keep] * mag[keep])
    total = weights.sum(axis=1)
    normal = np.diag(weights.sum(axis=0)) - weights.T @ (weights / total[:, None])
    right = -(values.sum(axis=0) - weights.T @ (values.sum(axis=1) / total))
    active = weights.sum(axis=0) > 0
    matrix = normal[np.ix_(active, active)]
    # the sum of the corrections is unconstrained by the data: its null direction is filled and then projected out
    inverse = np.linalg.pinv(matrix + np.full(matrix.shape, np.trace(matrix) / len(matrix) ** 2))
    part = inverse @ right[active]
    dzp, err = np.zeros(n_exposures), np.full(n_exposures, np.nan)
    dzp[active] = part - part.mean()
    centring = np.eye(len(part)) - 1.0 / len(part)
    err[active] = np.sqrt(np.maximum(np.diag(centring @ inverse @ centring.T), 0.0))
    corrected = values + weights * dzp[None, :]
    mean = corrected.sum(axis=1) / total
    residual = np.zeros(len(mag))
    residual[keep] = mag[keep] + dzp[exposure[keep]] - mean[index]
    return dzp, err, residual


def _measure_repeatability(star: np.ndarray, residual: np.ndarray, keep: np.ndarray) -> float:
    """Robust scatter of single measurements in mmag, corrected for the mean each star was given (n/(n−1))."""
    if not keep.any():
        return float("nan")
    seen = np.bincount(star[keep])[star[keep]]
    unbiased = residual[keep] * np.sqrt(seen / np.maximum(seen - 1, 1))
    return float(1000.0 * 1.4826 * np.median(np.abs(unbiased)))


def _unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)
