"""Compiled loops of the combination over all pixels: one pass over the rows of all inputs, backgrounds, arithmetic.

Here: numba kernels and the sorting network they run. Which pixels are rejected and what becomes of them then is
`stack_rejection.py`'s; the order in which all that runs, and what the numbers mean, `stack.py`'s.
"""

import numpy as np
from numba import njit

from lap_assets.model.image import NO_WEIGHT, Mask

_HARD = int(NO_WEIGHT)
_NO_DATA = int(Mask.NO_DATA)
_HUGE = np.float32(1e30)  # values and variances beyond are no data
_STRIP = 1024  # columns treated together: all rows of all inputs stay in the cache


def sorting_network(n: int) -> np.ndarray:
    """(m, 2) int64 compare-exchange steps that sort n values (Batcher 1968, odd-even merge; Knuth TAOCP 3, 5.2.2 M)."""
    steps = []
    top = 1 << max(n - 1, 0).bit_length() >> 1
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while True:
            steps += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return np.array(steps, np.int64).reshape(-1, 2)


@njit(cache=True, nogil=True)
def take_level_off(line, level, y, ny, nx, first):
    """Subtract a plane c0 + c1 x + c2 y from a piece of a row that begins at column `first`, in place; x and y as
    `matching_kernel.scale_positions` scales them.
    """
    base = np.float32(level[0] + level[2] * ((y - 0.5 * (ny - 1)) / (0.5 * ny)))
    slope = np.float32(level[1] / (0.5 * nx))
    middle = np.float32(0.5 * (nx - 1))
    for x in range(line.size):
        line[x] -= base + slope * (np.float32(x + first) - middle)


@njit(cache=True, nogil=True)
def take_plane_off(sci, level):
    """`take_level_off` for a whole image, in place."""
    for y in range(sci.shape[0]):
        take_level_off(sci[y], level, y, sci.shape[0], sci.shape[1], 0)


@njit(cache=True, nogil=True)
def _is_number(value, variance):
    """Whether a value and its variance can be computed with."""
    return (variance > 0) & (variance < _HUGE) & (value < _HUGE) & (value > -_HUGE)


@njit(cache=True, nogil=True)
def merge_rows(sci, mask, var, rows, top, weight, place, level, network, limit, out, noise, flags, count, used, middle):
    """Weighted mean of rows of all inputs without any rejection, and where one of them deviates from the median.

    Parameters
    ----------
    sci, mask, var : (n, r, nx)
        Row buffers; the level is taken off `sci` in place, and NO_DATA set in `mask` where value or variance is no
        number to compute with.
    rows : (first, last)
        Of the buffers, half-open.
    top : int
        Row of the image that row 0 of the buffers is.
    weight : (n,) float64
    place : (n,) int64
        Bit 31·p + k of an input in plane p of `used`.
    level : (n, 3) float64
        Planes to take off.
    limit : float
        Deviation² over the variance of the input, above which a pixel is a candidate; inf: none is looked for. The
        noise of the median adds π/2n of the variance.
    out, noise, flags, count, used
        Planes of the whole stack, written: mean, its variance, mask, number and bits of the inputs.
    middle : (r, nx) float32
        Written: median of the inputs, the lower one of the middle two.

    Returns
    -------
    (m,) int64
        Candidates as (row of the image) · nx + column, ascending within strips of columns.
    """
    n, nx = sci.shape[0], sci.shape[2]
    ny = out.shape[0]
    zero, infinite, fine, no_data = np.float32(0), np.float32(np.inf), np.int16(0), np.int16(_NO_DATA)
    values = np.empty((n, _STRIP), np.float32)
    mean, total, scatter = np.empty(_STRIP), np.empty(_STRIP), np.empty(_STRIP, np.float32)
    number = np.empty(_STRIP, np.int32)
    deviant, bits_used = np.empty(_STRIP, np.uint8), np.empty((used.shape[0], _STRIP), np.int32)
    found = [0][:0]
    judged = limit < np.inf
    for r in range(rows[0], rows[1]):
        y = top + r
        for x0 in range(0, nx, _STRIP):
            m = min(_STRIP, nx - x0)
            bits = flags[y, x0 : x0 + m]
            mean[:m], total[:m], scatter[:m] = 0, 0, 0
            number[:m] = 0
            bits[:], bits_used[:, :m] = 0, 0
            for k in range(n):
                line, here = sci[k, r, x0 : x0 + m], mask[k, r, x0 : x0 + m]
                variance, column = var[k, r, x0 : x0 + m], values[k]
                entered = bits_used[place[k] // 31]
                bit = np.int32(1 << (place[k] % 31))
                w = weight[k]
                w2 = np.float32(w * w)
                if level[k, 0] != 0 or level[k, 1] != 0 or level[k, 2] != 0:
                    take_level_off(line, level[k], y, ny, nx, x0)
                for x in range(m):
                    flag = here[x] | (fine if _is_number(line[x], variance[x]) else no_data)
                    good = flag & _HARD == 0
                    here[x] = flag
                    column[x] = line[x] if good else infinite
                    scatter[x] += w2 * variance[x] if good else zero
                    number[x] += np.int32(good)
                    entered[x] |= bit if good else np.int32(0)
                    bits[x] |= flag if good else fine
                for x in range(m):
                    mean[x] += w * column[x] if column[x] < infinite else 0.0
                    total[x] += w if column[x] < infinite else 0.0
            _write_means(mean, total, scatter, number, out[y, x0 : x0 + m], noise[y, x0 : x0 + m])
            for x in range(m):
                if number[x] == 0:
                    bits[x] = no_data
                    for k in range(n):
                        bits[x] |= mask[k, r, x0 + x]
            count[y, x0 : x0 + m] = number[:m]
            used[:, y, x0 : x0 + m] = bits_used[:, :m]
            if not judged:
                continue
            _sort_columns(values, network, m)
            reference = middle[r, x0 : x0 + m]
            some = _find_deviants(sci, mask, var, r, x0, values, number, np.float32(limit), reference, deviant)
            if some:
                for x in range(m):
                    if deviant[x]:
                        found.append(y * nx + x0 + x)
    return np.array(found)


@njit(cache=True, nogil=True)
def _write_means(mean, total, scatter, number, out, noise):
    for x in range(out.size):
        some = number[x] > 0
        inverse = 1.0 / (total[x] if some else 1.0)
        out[x] = np.float32(mean[x] * inverse)
        noise[x] = np.float32(scatter[x] * inverse * inverse)


@njit(cache=True, nogil=True)
def _sort_columns(values, network, m):
    """The same compare-exchange steps for all columns run in vector registers; missing values are +inf."""
    for step in range(network.shape[0]):
        lower, upper = values[network[step, 0]], values[network[step, 1]]
        for x in range(m):
            a, b = lower[x], upper[x]
            lower[x] = a if a < b else b
            upper[x] = b if a < b else a


@njit(cache=True, nogil=True)
def _find_deviants(sci, mask, var, r, x0, values, number, limit, middle, deviant):
    """Median of each column, and 1 where a good input deviates from it by more than `limit`; whether there is any."""
    m = middle.size
    for x in range(m):
        middle[x] = values[(number[x] - 1) // 2, x] if number[x] > 0 else np.float32(0)
        deviant[x] = 0
    # the noise of the median is left out: the candidates are judged exactly later
    for k in range(sci.shape[0]):
        # pieces of rows, not of the cube: only these are known to be contiguous, and run in vector registers
        line, here, variance = sci[k, r, x0 : x0 + m], mask[k, r, x0 : x0 + m], var[k, r, x0 : x0 + m]
        for x in range(m):
            off = line[x] - middle[x]
            out = (off * off > limit * variance[x]) & (here[x] & _HARD == 0) & (number[x] > 1)
            deviant[x] |= np.uint8(out)
    some = np.uint8(0)
    for x in range(m):
        some |= deviant[x]
    return some != 0
