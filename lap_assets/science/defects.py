"""Detector defects: hot and dead pixels and columns, found in master biases and flats, and flagged in images.

Defects that come and go from exposure to exposure (cosmic rays, streaks) do not belong here.
"""

import numpy as np
from numba import njit

from lap_assets.model.image import Mask
from lap_assets.science.flat import MIN_RESPONSE

_COLUMN_ROWS = 64  # rows over which a column is judged together
_SAMPLE = 1_000_000  # pixels that tell a noise


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
    pattern = bias - _filter_rows(bias)
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
    local = _filter_rows(flat)
    ratio = flat / np.maximum(local, MIN_RESPONSE) - 1.0
    # an odd step: no column stands for all
    sample = ratio.reshape(-1)[:: max(1, ratio.size // _SAMPLE) | 1]
    noise = 1.4826 * float(np.nanmedian(np.abs(sample)))
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


def _filter_rows(image: np.ndarray) -> np.ndarray:
    """Median of each pixel and the four on either side of it in its row, edges repeated; (ny, nx) float32."""
    wide = np.pad(np.asarray(image, np.float32), ((0, 0), (4, 4)), mode="edge")
    result = np.empty(image.shape, np.float32)
    _take_medians(wide, result)
    return result


@njit(cache=True, nogil=True)
def _take_medians(wide, result):
    """The middle one of nine by the comparisons of Devillard (1998; after Paeth), side by side in a row.

    Done on whole rows: comparison by comparison, so that pixels go through it together in vector registers.
    """
    pairs = (
        (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3), (5, 8), (4, 7), (3, 6), (1, 4),
        (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
    )  # fmt: skip
    ny, nx = result.shape
    lanes = np.empty((9, nx), np.float32)
    for y in range(ny):
        for k in range(9):
            for x in range(nx):
                lanes[k, x] = wide[y, x + k]
        for c in range(len(pairs)):
            i, j = pairs[c]
            for x in range(nx):
                a, b = lanes[i, x], lanes[j, x]
                lanes[i, x] = a if a < b else b
                lanes[j, x] = b if a < b else a
        for x in range(nx):
            result[y, x] = lanes[4, x]
