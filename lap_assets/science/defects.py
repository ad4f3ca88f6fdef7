"""Detector defects: hot and dead pixels and columns, found in master biases and flats, and flagged in images.

Defects that come and go from exposure to exposure (cosmic rays, streaks) do not belong here.
"""

import numpy as np
from scipy.ndimage import median_filter

from lap_assets.model.image import Mask
from lap_assets.science.flat import MIN_RESPONSE

_COLUMN_ROWS = 64  # rows over which a column is judged together


def find_hot_pixels(bias: np.ndarray, sigma: float, noise: float) -> np.ndarray:
    """Pixels, and stretches of columns, whose bias stands out of its surroundings.

    Parameters
    ----------
    bias : (ny, nx) float32
        Master bias, ADU.
    sigma : float
        Threshold in units of `noise`.
    noise : float
        Noise of a pixel of the master bias, ADU.

    Returns
    -------
    (ny, nx) bool
    """
    pattern = bias - median_filter(bias, size=(1, 9), mode="nearest")
    return (np.abs(pattern) > sigma * noise) | _find_columns(pattern, sigma, 0.5 * noise)


def find_dead_pixels(flat: np.ndarray, tolerance: float, sigma: float) -> np.ndarray:
    """Pixels whose response is below `MIN_RESPONSE` or differs from its surroundings by more than `tolerance`.

    Stretches of columns are judged by their median, at `sigma` times its noise and a tenth of `tolerance` at least;
    dust rings and vignetting are wider than the 9-pixel filter and stay.

    Parameters
    ----------
    flat : (ny, nx) float32
    tolerance : float
        Relative, e.g. 0.2.
    sigma : float

    Returns
    -------
    (ny, nx) bool
    """
    local = median_filter(flat, size=(1, 9), mode="nearest")
    ratio = flat / np.maximum(local, MIN_RESPONSE) - 1.0
    noise = 1.4826 * float(np.median(np.abs(ratio)))
    bad = ~np.isfinite(flat) | (flat < MIN_RESPONSE) | (np.abs(ratio) > max(tolerance, sigma * noise))
    return bad | _find_columns(ratio, sigma, max(noise / 8.0, 0.1 * tolerance / sigma))


def flag_defects(mask: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """`mask` (int16) with BAD set where `bad` (bool) is true."""
    return mask | np.where(bad, np.int16(Mask.BAD), np.int16(0))


def _find_columns(residual: np.ndarray, sigma: float, floor: float) -> np.ndarray:
    """Stretches of columns whose median residual differs from that of neighbouring columns."""
    bad = np.zeros(residual.shape, bool)
    for y0 in range(0, residual.shape[0], _COLUMN_ROWS):
        rows = slice(y0, min(y0 + _COLUMN_ROWS, residual.shape[0]))
        medians = np.median(residual[rows], axis=0)
        noise = max(1.4826 * float(np.median(np.abs(medians - np.median(medians)))), floor)
        bad[rows, np.abs(medians - np.median(medians)) > sigma * noise] = True
    return bad
