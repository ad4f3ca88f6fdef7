"""Compiled loops of the combination at the few pixels that deviate: which of them are artefacts, and the mean without.

Here: numba kernels that call each other. The rules are told in `stack.combine_rows`; the pass that finds the candidates
is `stack_kernels.merge_rows`, which also has marked as NO_DATA what is no number. Pixels of inputs go from kernel to
kernel as items: (row of the image · nx + column) · n + input.
"""

import numpy as np
from numba import njit

from lap_assets.model.image import NO_WEIGHT, Mask

_HARD = int(NO_WEIGHT)
_SOFT = int(Mask.SATURATED | Mask.BLEED)
_CLIPPED = int(Mask.CLIPPED)
# marks in the mask of a row buffer, never stored: no amount of PSF matching explains this pixel; it does not enter, as
# it deviates itself or as the neighbour of one that does
_BLATANT = 1 << 13
_REJECTED = 1 << 14
GROWN = -1 << 15
_OUT = _REJECTED | GROWN
_MARKS = _BLATANT | _OUT
_UNFIT = _HARD | _SOFT | _BLATANT  # not to be convolved
# one of each pair of opposite places on a ring of 4 px: (row, column)
_RING = np.array([(0, 4), (2, 3), (3, 2), (4, 0), (3, -2), (2, -3)])
_MAX_SATURATED = 0.01  # part of a matching kernel that may lie on saturated pixels


@njit(cache=True, nogil=True)
def _amplitude(middle, rows, r, x, reach):
    """Largest median within `reach` px along both axes, at least 0: it follows the slope of stars."""
    largest = np.float32(0)
    for v in range(max(r - reach, rows[0]), min(r + reach + 1, rows[1])):
        for u in range(max(x - reach, 0), min(x + reach + 1, middle.shape[1])):
            largest = max(largest, middle[v, u])
    return largest


@njit(cache=True, nogil=True)
def _exceeds(off, variance, slack, allowed, sigma):
    """Whether a deviation, less what is allowed, is more than `sigma` times its noise."""
    rest = off - allowed
    return rest > 0 and rest * rest > sigma * sigma * slack * variance


@njit(cache=True, nogil=True)
def _deviation(sci, mask, var, middle, rows, r, x):
    """By how much an input deviates from the median at a pixel, less what it deviates by all around: the wings of
    bright stars in different seeing.

    That is the least mean of two opposite pixels 4 px away (an edge or a line has a pair that lies beside it), as far
    as it is at most four times the light there (reference less one sigma of a pixel, so that noise is no light).
    """
    off = sci[r, x] - middle[r, x]
    sign = np.float32(1) if off > 0 else np.float32(-1)
    halo, light, pairs = np.float32(np.inf), np.float32(0), 0
    half = _RING.shape[0]
    for one in range(half):
        dy, dx = _RING[one, 0], _RING[one, 1]
        if r - abs(dy) < rows[0] or r + abs(dy) >= rows[1] or x - abs(dx) < 0 or x + abs(dx) >= sci.shape[1]:
            continue
        if (mask[r + dy, x + dx] | mask[r - dy, x - dx]) & _HARD:
            continue
        reference = middle[r + dy, x + dx] + middle[r - dy, x - dx]
        halo = min(halo, sign * (sci[r + dy, x + dx] + sci[r - dy, x - dx] - reference))
        light += reference
        pairs += 1
    if pairs < half // 2:
        return abs(off)
    limit = np.float32(4) * (light / np.float32(2 * pairs) - np.sqrt(var[r, x]))
    return abs(off) - max(min(np.float32(0.5) * halo, limit), np.float32(0))


@njit(cache=True, nogil=True)
def mark_rows(sci, mask, var, rows, top, middle, found, tolerance, reach, sigma, small, epochs, matched):
    """Mark what deviates blatantly in few inputs at the candidates; see `stack.combine_rows` for the rules.

    Parameters
    ----------
    sci, mask, var : (n, r, nx)
        Row buffers; marks are set in `mask`.
    rows : (first, last)
        Rows of the buffers that there are.
    found : (m,) int64
        Candidates of `merge_rows`.
    tolerance : (n,) float32
        Fraction of the amplitude that no difference of PSFs exceeds; `reach` px is how far it carries light.
    sigma, small : float
        Deviation allowed, and fraction of the amplitude allowed on top between inputs of one PSF.
    epochs : (n + 1,) int64
        Largest number of deviating inputs that is an artefact, by the number of inputs.
    matched : bool
        False: PSFs are not known, only `tolerance` counts.

    Returns
    -------
    guilty : (j,) int64
        Items rejected.
    doubtful : (i,) int64
        Candidates whose deviation PSFs may explain, for `judge_rows`.
    """
    n, nx = sci.shape[0], sci.shape[2]
    guilty, doubtful = [0][:0], [0][:0]
    for place in found:
        r, x = place // nx - top, place % nx
        number, saturated = _count_inputs(mask, r, x)
        if number < 2 or saturated > epochs[number]:
            continue
        amplitude, wide = _amplitude(middle, rows, r, x, 1), _amplitude(middle, rows, r, x, reach)
        slack = 1.0 + 0.5 * np.pi / number
        blatant, open_cases = 0, 0
        for k in range(n):
            if mask[k, r, x] & _HARD:
                continue
            off = abs(sci[k, r, x] - middle[r, x])
            if not _exceeds(off, var[k, r, x], slack, small * amplitude, sigma):
                continue
            off = _deviation(sci[k], mask[k], var[k], middle, rows, r, x)
            if _exceeds(off, var[k, r, x], slack, tolerance[k] * wide, sigma):
                blatant += 1
                mask[k, r, x] |= _BLATANT
            elif _exceeds(off, var[k, r, x], slack, small * amplitude, sigma):
                open_cases += 1
        if blatant > epochs[number]:
            for k in range(n):
                mask[k, r, x] &= ~_BLATANT
        elif matched and open_cases > 0 and saturated == 0:
            doubtful.append(place)
        elif blatant > 0:
            for k in range(n):
                if mask[k, r, x] & _BLATANT:
                    mask[k, r, x] |= _REJECTED
                    guilty.append(place * n + k)
    return np.array(guilty), np.array(doubtful)


@njit(cache=True, nogil=True)
def judge_rows(sci, mask, var, rows, top, middle, doubtful, sigma, small, epochs, kernels, nodes, step):
    """Judge what PSFs may explain; all that is blatant around is marked.

    Parameters
    ----------
    doubtful : (m,) int64
        From `mark_rows`, as the other parameters.
    kernels : (n, ky, kx, s, s) float32
        Kernels to the common PSF, mirrored, at nodes; `nodes` (x, y of the first), `step` (x, y).

    Returns
    -------
    (j,) int64
        Items rejected.
    """
    n, nx = sci.shape[0], sci.shape[2]
    guilty = [0][:0]
    values, total = np.empty(n, np.float32), np.empty(kernels.shape[4], np.float32)
    for place in doubtful:
        r, x = place // nx - top, place % nx
        if _judge_matched(
            sci, mask, var, rows, r, x, top, middle, sigma, small, epochs, kernels, nodes, step, values, total
        ):
            for k in range(n):
                if mask[k, r, x] & _REJECTED:
                    guilty.append(place * n + k)
    return np.array(guilty)


@njit(cache=True, nogil=True)
def _count_inputs(mask, r, x):
    """Good inputs at a pixel, and how many of them are saturated there: such a value is no measurement."""
    number, saturated = 0, 0
    for k in range(mask.shape[0]):
        if mask[k, r, x] & _HARD == 0:
            number += 1
            saturated += int(mask[k, r, x] & _SOFT != 0)
    return number, saturated


@njit(cache=True, nogil=True)
def _judge_matched(sci, mask, var, rows, r, x, top, middle, sigma, small, epochs, kernels, nodes, step, values, total):
    """Compare the inputs at one pixel after bringing them to the common PSF; True if one is rejected."""
    n, half = sci.shape[0], kernels.shape[3] // 2
    kx = min(max(round((x - nodes[0]) / step[0]), 0), kernels.shape[2] - 1)
    ky = min(max(round((r + top - nodes[1]) / step[1]), 0), kernels.shape[1] - 1)
    number, judged, deviant = 0, 0, 0
    for k in range(n):
        values[k] = np.inf
        if mask[k, r, x] & _HARD:
            continue
        number += 1
        deviant += int(mask[k, r, x] & _BLATANT != 0)
        kernel = kernels[k, ky, kx]
        if kernel[half, half] == 0:
            continue
        values[k], soft = _match_pixel(sci[k], mask[k], middle, rows, r, x, kernel, total)
        if soft <= _MAX_SATURATED:
            judged += 1
        else:
            values[k] = np.inf
    reference, slack = np.sort(values)[max(judged - 1, 0) // 2], 1.0 + 0.5 * np.pi / max(judged, 1)
    amplitude = _amplitude(middle, rows, r, x, 1)
    allowed = small * max(amplitude, reference)
    for k in range(n):
        if values[k] == np.inf or judged < 2 or mask[k, r, x] & _BLATANT:
            continue
        off, matched = _deviation(sci[k], mask[k], var[k], middle, rows, r, x), abs(values[k] - reference)
        halo = abs(sci[k, r, x] - middle[r, x]) - off
        values[k] = np.inf
        # the noise costs as much as the value: only where it decides
        if matched - halo > allowed and _exceeds(off, var[k, r, x], slack, small * amplitude, sigma):
            noise = _match_noise(mask[k], var[k], rows, r, x, kernels[k, ky, kx], total)
            if _exceeds(matched - halo, noise, slack, allowed, sigma):
                deviant += 1
                values[k] = matched
    if deviant == 0 or deviant > epochs[number]:
        return False
    for k in range(n):
        if mask[k, r, x] & _BLATANT or (judged > 1 and values[k] != np.inf):
            mask[k, r, x] |= _REJECTED
    return True


@njit(cache=True, nogil=True)
def _match_pixel(sci, mask, middle, rows, r, x, kernel, total):
    """One input convolved at one pixel, and the part of the kernel on saturated pixels; missing pixels are taken from
    the median, rows and columns beyond the image from its edge. `kernel` is mirrored; `total` is scratch of its width.
    """
    size = kernel.shape[0]
    half = size // 2
    soft = np.float32(0)
    total[:] = 0
    inside = x >= half and x + half < sci.shape[1]
    for j in range(size):
        v = min(max(r - half + j, rows[0]), rows[1] - 1)
        if inside:
            # pieces without a branch in the loop run in vector registers
            piece, taps, marked = slice(x - half, x + half + 1), kernel[j], np.int16(0)
            line, here, instead = sci[v, piece], mask[v, piece], middle[v, piece]
            for i in range(size):
                total[i] += taps[i] * (line[i] if here[i] & _UNFIT == 0 else instead[i])
                marked = np.int16(marked | here[i])
            if marked & _SOFT == 0:
                continue
        for i in range(size):
            u = min(max(x - half + i, 0), sci.shape[1] - 1)
            if not inside:
                total[i] += kernel[j, i] * (sci[v, u] if mask[v, u] & _UNFIT == 0 else middle[v, u])
            soft += abs(kernel[j, i]) if mask[v, u] & _SOFT else np.float32(0)
    return np.float32(total.sum()), soft


@njit(cache=True, nogil=True)
def _match_noise(mask, var, rows, r, x, kernel, total):
    """Variance of what `_match_pixel` gives."""
    size = kernel.shape[0]
    half = size // 2
    total[:] = 0
    inside = x >= half and x + half < var.shape[1]
    for j in range(size):
        v = min(max(r - half + j, rows[0]), rows[1] - 1)
        if inside:
            piece, taps = slice(x - half, x + half + 1), kernel[j]
            line, here = var[v, piece], mask[v, piece]
            for i in range(size):
                total[i] += taps[i] * taps[i] * (line[i] if here[i] & _UNFIT == 0 else np.float32(0))
            continue
        for i in range(size):
            u = min(max(x - half + i, 0), var.shape[1] - 1)
            total[i] += kernel[j, i] * kernel[j, i] * (var[v, u] if mask[v, u] & _UNFIT == 0 else np.float32(0))
    return np.float32(total.sum())


@njit(cache=True, nogil=True)
def grow_rows(sci, mask, var, rows, top, middle, guilty, sigma, small):
    """Reject also the neighbours (3×3) of rejected items that deviate by more than `sigma` in the same input.

    Returns the new items.
    """
    n, nx = sci.shape[0], sci.shape[2]
    grown = [0][:0]
    for item in guilty:
        one, k = item // n, item % n
        r, x = one // nx - top, one % nx
        for v in range(max(r - 1, rows[0]), min(r + 2, rows[1])):
            for u in range(max(x - 1, 0), min(x + 2, nx)):
                if mask[k, v, u] & (_OUT | _HARD):
                    continue
                off = abs(sci[k, v, u] - middle[v, u])
                if not _exceeds(off, var[k, v, u], np.float32(1), np.float32(0), sigma):
                    continue
                number, saturated = _count_inputs(mask, v, u)
                if number < 2 or saturated > 0:
                    continue
                allowed = small * _amplitude(middle, rows, v, u, 1)
                if _exceeds(off, var[k, v, u], 1.0 + 0.5 * np.pi / number, allowed, sigma):
                    mask[k, v, u] |= GROWN
                    grown.append(((v + top) * nx + u) * n + k)
    return np.array(grown)


@njit(cache=True, nogil=True)
def settle_rows(sci, mask, var, core, top, weight, place, guilty, out, noise, flags, count, used, rejected):
    """Write the pixels at which an input is rejected anew, for rows `core` of the buffers.

    A pixel may have several items in `guilty`; `used` is as in `merge_rows`; `rejected` (n,) counts the pixels each
    input loses.
    """
    n, nx = sci.shape[0], sci.shape[2]
    width = used.shape[2] // nx
    for item in guilty:
        r, x = item // n // nx - top, item // n % nx
        if r < core[0] or r >= core[1]:
            continue
        y = r + top
        mean, total, scatter = 0.0, 0.0, np.float32(0)
        # the input that is the median never deviates from it: at least one is left
        bits, number = np.int16(_CLIPPED), 0
        for k in range(n):
            if mask[k, r, x] & _HARD:
                continue
            if mask[k, r, x] & _OUT:
                plane, byte, bit = place[k] // 31, x * width + place[k] % 31 // 8, place[k] % 31 % 8
                rejected[k] += used[plane, y, byte] >> bit & 1
                used[plane, y, byte] &= ~np.uint8(1 << bit)
                continue
            w = weight[k]
            mean += w * sci[k, r, x]
            total += w
            scatter += np.float32(w * w) * var[k, r, x]
            bits |= mask[k, r, x] & ~np.int16(_MARKS)
            number += 1
        out[y, x] = np.float32(mean / total)
        noise[y, x] = np.float32(scatter / (total * total))
        flags[y, x] = bits
        count[y, x] = number
