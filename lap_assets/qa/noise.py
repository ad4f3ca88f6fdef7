"""Pure measures of noise and scatter that the reports quote: clipped rms, and the noise of empty apertures."""

import numpy as np
from scipy.spatial import cKDTree

from lap_assets.qa.metrics import robust_sigma

CLIP_SIGMA = 5.0


def compute_rms(values: np.ndarray) -> tuple[float, float]:
    """RMS about the median, after one cut at 5 robust sigma, and the median; NaN for no finite values."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return float("nan"), float("nan")
    middle, width = float(np.median(finite)), robust_sigma(finite)
    kept = finite[np.abs(finite - middle) <= CLIP_SIGMA * width] if width > 0 else finite
    return float(np.sqrt(np.mean((kept - middle) ** 2))), middle


def measure_aperture_noise(
    sci: np.ndarray, usable: np.ndarray, x: np.ndarray, y: np.ndarray, radius_px: float, avoid_px: float = 12.0
) -> float:
    """Noise per pixel as empty apertures see it, so that correlations between pixels count.

    Robust scatter of aperture sums on a grid of places at least `avoid_px` from every object and wholly usable,
    divided by the square root of the number of pixels in an aperture.

    Parameters
    ----------
    sci : (ny, nx) array
    usable : (ny, nx) bool
    x, y : arrays
        Positions of objects, 0-based pixels.
    radius_px : float

    Returns
    -------
    float
        In the unit of `sci`; NaN with fewer than 50 places.
    """
    reach = int(np.ceil(radius_px))
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inside = dx**2 + dy**2 <= radius_px**2
    step = 2 * reach + 1
    ny, nx = sci.shape
    gy, gx = (a.ravel() for a in np.mgrid[reach : ny - reach : step, reach : nx - reach : step])
    rows, columns = gy[:, None] + dy[inside][None, :], gx[:, None] + dx[inside][None, :]
    empty = usable[rows, columns].all(axis=1) & ~_is_near(gx, gy, np.asarray(x, float), np.asarray(y, float), avoid_px)
    if empty.sum() < 50:
        return float("nan")
    return robust_sigma(sci[rows[empty], columns[empty]].sum(axis=1, dtype=np.float64)) / np.sqrt(inside.sum())


def _is_near(gx: np.ndarray, gy: np.ndarray, x: np.ndarray, y: np.ndarray, distance: float) -> np.ndarray:
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return np.zeros(len(gx), bool)
    nearest, _ = cKDTree(np.column_stack([x[known], y[known]])).query(np.column_stack([gx, gy]))
    return nearest < distance
