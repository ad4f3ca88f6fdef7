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
_STRIP = 512  # columns treated together: all rows of all inputs stay in the cache


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
def _center_columns(nx):
    """(nx,) float32: columns from the middle one."""
    return np.arange(nx).astype(np.float32) - np.float32(0.5 * (nx - 1))


@njit(cache=True, nogil=True)
def _level_of_row(level, y, ny, nx):
    """Value in the middle of a row and slope per column of a plane c0 + c1 x + c2 y; x and y as
    `matching_kernel.scale_positions` scales them.
    """
    base = np.float32(level[0] + level[2] * ((y - 0.5 * (ny - 1)) / (0.5 * ny)))
    return base, np.float32(level[1] / (0.5 * nx))


@njit(cache=True, nogil=True)
def take_plane_off(sci, level):
    """Subtract a plane from an image as `merge_rows` does, in place."""
    ny, nx = sci.shape
    offset = _center_columns(nx)
    for y in range(ny):
        base, slope = _level_of_row(level, y, ny, nx)
        for x in range(nx):
            sci[y, x] -= base + slope * offset[x]


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
    out, noise, flags, count
        Planes of the whole stack, written: mean, its variance, mask, number of the inputs.
    used : (p, ny, nx·b) uint8
        Planes of bits as bytes, low ones first, written: one type however many inputs there are.
    middle : (r, nx) float32
        Written: median of the inputs, the lower one of the middle two.

    Returns
    -------
    (m,) int64
        Candidates as (row of the image) · nx + column, ascending within strips of columns.
    """
    n, nx = sci.shape[0], sci.shape[2]
    width = used.shape[2] // nx
    values, flawed = np.empty((n, _STRIP), np.float32), np.empty(n, np.int16)
    mean, total, scatter = np.empty(_STRIP), np.empty(_STRIP), np.empty(_STRIP, np.float32)
    deviant, entered = np.empty(_STRIP, np.int32), np.empty((used.shape[0], _STRIP), np.int32)
    offset = _center_columns(nx)
    found = [0][:0]
    for r in range(rows[0], rows[1]):
        y = top + r
        for x0 in range(0, nx, _STRIP):
            m = min(_STRIP, nx - x0)
            bits, number = flags[y, x0 : x0 + m], count[y, x0 : x0 + m]
            _add_inputs(
                sci, mask, var, r, x0, y, out.shape[0], weight, level, offset, values, flawed, mean, scatter, bits
            )
            whole = True
            for k in range(n):
                whole &= flawed[k] & _HARD == 0
            _count_inputs(values, flawed, whole, weight, place, total, entered, number)
            _write_means(mean, total, scatter, out[y, x0 : x0 + m], noise[y, x0 : x0 + m])
            if not whole:
                _name_holes(mask, r, x0, number, bits)
            for p in range(used.shape[0]):
                _write_bytes(entered[p], width, used[p, y, x0 * width : (x0 + m) * width])
            if limit == np.inf:
                continue
            _sort_columns(values, network, m)
            reference = middle[r, x0 : x0 + m]
            if _find_deviants(sci, mask, var, r, x0, values, number, whole, np.float32(limit), reference, deviant):
                for x in range(m):
                    if deviant[x]:
                        found.append(y * nx + x0 + x)
    return np.array(found)


@njit(cache=True, nogil=True)
def _add_inputs(sci, mask, var, r, x0, y, ny, weight, level, offset, values, flawed, mean, scatter, bits):
    """Sums over the inputs of a piece of a row, their values (+inf where there is none) and all flags of each."""
    m, nx = bits.size, sci.shape[2]
    infinite, fine, no_data, zero = np.float32(np.inf), np.int16(0), np.int16(_NO_DATA), np.float32(0)
    mean[:m], scatter[:m], bits[:] = 0, 0, 0
    offset_here = offset[x0 : x0 + m]
    for k in range(sci.shape[0]):
        # pieces of rows, not of the cube: only these are known to be contiguous, and run in vector registers; int16 by
        # name, as `|` makes int64 of two of them
        line, here, variance = sci[k, r, x0 : x0 + m], mask[k, r, x0 : x0 + m], var[k, r, x0 : x0 + m]
        column, w, w2 = values[k], weight[k], np.float32(weight[k] * weight[k])
        base, slope = _level_of_row(level[k], y, ny, nx)
        seen, broken = np.int16(0), np.int16(0)
        for x in range(m):
            value = line[x] - (base + slope * offset_here[x])
            added = fine if _is_number(value, variance[x]) else no_data
            flag = np.int16(here[x] | added)
            line[x] = value
            good = flag & _HARD == 0
            column[x] = value if good else infinite
            scatter[x] += w2 * variance[x] if good else zero
            seen = np.int16(seen | flag)
            broken = np.int16(broken | (added & ~here[x]))
        flawed[k] = seen
        if seen & _HARD:
            for x in range(m):
                mean[x] += w * column[x] if column[x] < infinite else 0.0
        else:
            for x in range(m):
                mean[x] += w * column[x]
        if broken:
            for x in range(m):
                if not _is_number(line[x], variance[x]):
                    here[x] |= no_data
        if seen:
            for x in range(m):
                bits[x] |= here[x] if here[x] & _HARD == 0 else fine


@njit(cache=True, nogil=True)
def _count_inputs(values, flawed, whole, weight, place, total, entered, number):
    """Number, bits and weights of the inputs that are finite in `values`, where not all are (`whole`)."""
    m, infinite = number.size, np.float32(np.inf)
    weights, bits, inputs = 0.0, np.zeros(entered.shape[0], np.int32), np.int16(0)
    if whole:
        for k in range(weight.size):
            weights += weight[k]
            bits[place[k] // 31] |= np.int32(1 << (place[k] % 31))
            inputs += np.int16(1)
    total[:m], number[:] = weights, inputs
    for p in range(entered.shape[0]):
        entered[p, :m] = bits[p]
    if whole:
        return
    for k in range(weight.size):
        column, w, some, bit = values[k], weight[k], entered[place[k] // 31], np.int32(1 << (place[k] % 31))
        for x in range(m):
            good = column[x] < infinite
            some[x] |= bit if good else np.int32(0)
            number[x] += np.int16(good)
        for x in range(m):
            total[x] += w if column[x] < infinite else 0.0


@njit(cache=True, nogil=True)
def _write_means(mean, total, scatter, out, noise):
    for x in range(out.size):
        inverse = 1.0 / (total[x] if total[x] > 0 else 1.0)
        out[x] = np.float32(mean[x] * inverse)
        noise[x] = np.float32(scatter[x] * inverse * inverse)


@njit(cache=True, nogil=True)
def _name_holes(mask, r, x0, number, bits):
    """Where no input is left, all that is wrong with them."""
    for x in range(number.size):
        if number[x] == 0:
            bits[x] = _NO_DATA
            for k in range(mask.shape[0]):
                bits[x] |= mask[k, r, x0 + x]


@njit(cache=True, nogil=True)
def _write_bytes(bits, width, piece):
    """Bits of the pixels of a piece of a row, `width` bytes each, low ones first."""
    if width == 1:
        for x in range(piece.size):
            piece[x] = bits[x]
    else:
        for x in range(piece.size // width):
            for b in range(width):
                piece[x * width + b] = bits[x] >> (8 * b)


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
def _find_deviants(sci, mask, var, r, x0, values, number, whole, limit, middle, deviant):
    """Median of each column, and 1 where a good input deviates from it by more than `limit`; whether there is any.

    `whole`: all inputs are good in all columns.
    """
    n, m = sci.shape[0], middle.size
    deviant[:m] = 0
    if whole:
        middle[:] = values[(n - 1) // 2, :m]
    else:
        for x in range(m):
            middle[x] = values[(number[x] - 1) // 2, x] if number[x] > 0 else np.float32(0)
    # the noise of the median is left out: the candidates are judged exactly later
    for k in range(n):
        line, here, variance = sci[k, r, x0 : x0 + m], mask[k, r, x0 : x0 + m], var[k, r, x0 : x0 + m]
        if whole:
            for x in range(m):
                off = line[x] - middle[x]
                deviant[x] |= np.int32(off * off > limit * variance[x])
        else:
            for x in range(m):
                off = line[x] - middle[x]
                deviant[x] |= np.int32((off * off > limit * variance[x]) & (here[x] & _HARD == 0))
    some = np.int32(0)
    for x in range(m):
        some |= deviant[x]
    return some != 0
