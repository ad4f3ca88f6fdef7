"""The numerical core of sky meshes: clipped level and noise of the cells of an image, and splines along one axis.

What a background is, how empty cells are filled and the mesh is smoothed is `background.py`'s.
"""

import numpy as np
from numba import njit
from scipy.interpolate import make_interp_spline

_CLIP_SIGMA = 3.0
_ROUNDS = 12
_BINS = 256
_FIRST_LOOK = 128  # pixels of a cell, about, from which the range of its histogram is taken
_LEAST_LOOK = 16  # where fewer of them are usable, all pixels are looked at
_RANGE_BELOW, _RANGE = 6.0, 16.0  # sigmas of the histogram below the median, and in all
_CROWDED = 0.3  # sigmas between mean and median, from which sources are taken to lie under the whole cell


def clip_cells(
    sci: np.ndarray, usable: np.ndarray, rows: np.ndarray, columns: np.ndarray, min_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sky level and noise per pixel of the cells between `rows` and `columns`.

    Pixels are clipped at 3 sigma around the median until nothing changes; the level is the mean of the rest, or the
    mode 2.5·median − 1.5·mean where the cell is crowded (Bertin & Arnouts 1996, A&AS 117, 393). Like there, this is
    done on a histogram of each cell, in steps of 1/16 sigma.

    Parameters
    ----------
    sci : (ny, nx) float32
    usable : (ny, nx) bool
    rows, columns : (my + 1,), (mx + 1,) int
        Edges of the cells.
    min_fraction : float
        Of a cell's pixels that must be usable.

    Returns
    -------
    level, noise : (my, mx) float64
        NaN where too few pixels are usable.
    """
    return _clip_cells(sci, usable, rows.astype(np.int64), columns.astype(np.int64), float(min_fraction))


def spline_matrix(positions: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(n, len(positions)) float32: what the values at `positions` contribute to the interpolating spline at n places.

    Cubic with not-a-knot ends, of lower degree where there are fewer than four positions.
    """
    degree = min(3, len(positions) - 1)
    spline = make_interp_spline(positions, np.eye(len(positions)), k=degree)
    return spline(at).astype(np.float32)


@njit(cache=True, nogil=True)
def _sample(sci, usable, y0, y1, x0, x1, stride, out):
    """Fill `out` with usable values of every `stride`-th row and column; how many there are."""
    taken = 0
    for y in range(y0, y1, stride):
        for x in range(x0, x1, stride):
            if usable[y, x]:
                out[taken] = sci[y, x]
                taken += 1
    return taken


@njit(cache=True, nogil=True)
def _clip_cells(sci, usable, rows, columns, min_fraction):
    level = np.full((len(rows) - 1, len(columns) - 1), np.nan)
    noise = level.copy()
    values = np.empty(np.max(rows[1:] - rows[:-1]) * np.max(columns[1:] - columns[:-1]), np.float32)
    counts = np.empty(_BINS, np.int64)
    for j in range(len(rows) - 1):
        for i in range(len(columns) - 1):
            y0, y1, x0, x1 = rows[j], rows[j + 1], columns[i], columns[i + 1]
            area = (y1 - y0) * (x1 - x0)
            stride = max(1, int(np.sqrt(area / _FIRST_LOOK)))
            taken = _sample(sci, usable, y0, y1, x0, x1, stride, values)
            if taken < _LEAST_LOOK:
                taken = _sample(sci, usable, y0, y1, x0, x1, 1, values)
            if taken == 0:
                continue
            ordered = np.sort(values[:taken])
            middle = ordered[taken // 2]
            # sources are on the bright side: the width is taken from the other
            sigma = max(middle - ordered[int(0.1587 * taken)], np.float32(1e-6) * max(abs(middle), np.float32(1e-20)))
            low, scale = middle - np.float32(_RANGE_BELOW) * sigma, np.float32(_BINS / _RANGE) / sigma
            counts[:] = 0
            good = 0
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if usable[y, x]:
                        good += 1
                        place = (sci[y, x] - low) * scale
                        if np.float32(0.0) <= place < np.float32(_BINS):
                            counts[int(place)] += 1
            if good >= min_fraction * area:
                level[j, i], noise[j, i] = _clip_histogram(counts, low, 1.0 / scale)
    return level, noise


@njit(cache=True, nogil=True)
def _clip_histogram(counts, low, width):
    """Level and noise of a histogram whose first bin begins at `low`."""
    begin, end = 0, len(counts)
    mean, median, spread = 0.0, 0.0, 0.0  # in bins
    for _ in range(_ROUNDS):
        n, total, power = 0, 0.0, 0.0
        for k in range(begin, end):
            centre = k + 0.5
            n += counts[k]
            total += counts[k] * centre
            power += counts[k] * centre * centre
        if n == 0:
            break
        mean = total / n
        spread = np.sqrt(max(power / n - mean * mean, 0.0))
        passed = 0
        for k in range(begin, end):
            if 2 * (passed + counts[k]) >= n:
                median = k + (0.5 * n - passed) / counts[k]
                break
            passed += counts[k]
        fresh_begin = max(begin, int(np.floor(median - _CLIP_SIGMA * spread + 0.5)))
        fresh_end = min(end, int(np.floor(median + _CLIP_SIGMA * spread + 0.5)))
        if (fresh_begin == begin and fresh_end == end) or fresh_end <= fresh_begin:
            break
        begin, end = fresh_begin, fresh_end
    if abs(mean - median) > _CROWDED * spread:
        mean = 2.5 * median - 1.5 * mean
    return low + width * mean, width * spread
