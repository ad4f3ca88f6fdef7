"""What bad pixels do to a subtraction: found, filled before a convolution, followed through the kernel.

Compiled loops over whole planes, for both methods. Not here: which bits are bad (the callers say), the convolutions.
"""

import numpy as np
from numba import njit

from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage

_HARD = int(NO_WEIGHT)
_SATURATED = int(Mask.SATURATED | Mask.BLEED)
_CORE = int(Mask.SATURATED)
_NO_DATA = int(Mask.NO_DATA)
_EDGE = int(Mask.EDGE)
_FILL_REACH = 5  # px within which a bad pixel is filled from good ones


@njit(cache=True, nogil=True)
def find_bad(sci, mask, var, bits):
    """(ny, nx) bool: pixels with one of `bits`, a value not finite, or a variance not finite or not positive."""
    ny, nx = sci.shape
    bad = np.empty((ny, nx), np.bool_)
    big = np.float32(np.inf)
    for y in range(ny):
        line, flags, variance, out = sci[y], mask[y], var[y], bad[y]
        for x in range(nx):
            good = (flags[x] & bits) == 0
            good &= (variance[x] > 0) & (variance[x] < big)
            good &= (line[x] > -big) & (line[x] < big)
            out[x] = not good
    return bad


@njit(cache=True, nogil=True)
def join_flags(bad, mask, bits):
    """(ny, nx) bool: pixels that are `bad`, or have one of `bits`."""
    ny, nx = bad.shape
    both = np.empty((ny, nx), np.bool_)
    for y in range(ny):
        first, flags, out = bad[y], mask[y], both[y]
        for x in range(nx):
            out[x] = first[x] | ((flags[x] & bits) != 0)
    return both


def fill_masked(bad: np.ndarray, *planes: np.ndarray) -> list[np.ndarray]:
    """Planes with bad pixels replaced by the mean of the nearest ring of good neighbours.

    Zero where fewer than half of a ring's pixels are good within 5 px. The planes themselves where none is bad.
    """
    places = np.flatnonzero(bad)
    if places.size == 0:
        return list(planes)
    reaches = _find_reaches(bad, places)
    filled = [plane.copy() for plane in planes]
    for plane in filled:
        _fill_places(bad, places, reaches, plane)
    return filled


@njit(cache=True, nogil=True)
def _find_reaches(bad, places):
    """Half-width of the window that a bad pixel is filled from; 0: none has enough good pixels."""
    ny, nx = bad.shape
    reaches = np.zeros(places.size, np.int8)
    for k in range(places.size):
        y, x = places[k] // nx, places[k] % nx
        # in the middle of a hole: no good pixel in eight directions, near or far
        alone = True
        for far in (1, _FILL_REACH):
            for step in range(9):
                v, u = y + far * (step // 3 - 1), x + far * (step % 3 - 1)
                alone &= v < 0 or u < 0 or v >= ny or u >= nx or bad[v, u]
        if alone:
            continue
        for reach in range(1, _FILL_REACH + 1):
            count = 0
            for v in range(max(y - reach, 0), min(y + reach + 1, ny)):
                for u in range(max(x - reach, 0), min(x + reach + 1, nx)):
                    count += not bad[v, u]
            if count >= 2 * reach:
                reaches[k] = reach
                break
    return reaches


@njit(cache=True, nogil=True)
def _fill_places(bad, places, reaches, plane):
    """In place: only good pixels are read, only bad ones written."""
    ny, nx = plane.shape
    for k in range(places.size):
        y, x, reach = places[k] // nx, places[k] % nx, reaches[k]
        plane[y, x] = 0
        if reach == 0:
            continue
        total, count = 0.0, 0
        for v in range(max(y - reach, 0), min(y + reach + 1, ny)):
            for u in range(max(x - reach, 0), min(x + reach + 1, nx)):
                if not bad[v, u]:
                    total += plane[v, u]
                    count += 1
        plane[y, x] = total / count


def share_of_bad(bad: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(ny, nx) float32: fraction of |kernel| that lies on bad pixels, at each pixel of the convolved image.

    Bad pixels come in runs along rows; each adds differences of the kernel's running sums to the rows around it.
    """
    weight = np.abs(kernel) / np.abs(kernel).sum()
    sums = np.zeros((len(kernel), len(kernel) + 1), np.float32)
    sums[:, 1:] = np.cumsum(weight, axis=1)
    share = np.zeros(bad.shape, np.float32)
    _share_rows(bad, np.flatnonzero(bad.any(axis=1)), sums, share)
    return share


@njit(cache=True, nogil=True)
def _share_rows(bad, rows, sums, share):
    ny, nx = bad.shape
    size = sums.shape[0]
    radius = size // 2
    for y in rows:
        x = 0
        while x < nx:
            if not bad[y, x]:
                x += 1
                continue
            first = x
            while x < nx and bad[y, x]:
                x += 1
            for v in range(max(y - radius, 0), min(y + radius + 1, ny)):
                line = sums[v - y + radius]
                for u in range(max(first - radius, 0), min(x + radius, nx)):
                    share[v, u] += line[min(u - first + radius + 1, size)] - line[max(u - x + radius + 1, 0)]


def spread_flags(mask: np.ndarray, bits: int, reach: int) -> np.ndarray:
    """(ny, nx) bool: within `reach` px, along both axes, of a pixel with one of `bits`."""
    near = np.zeros(mask.shape, np.bool_)
    _spread_places(mask, np.int16(bits), reach, near)
    return near


@njit(cache=True, nogil=True)
def _spread_places(mask, bits, reach, near):
    ny, nx = mask.shape
    for y in range(ny):
        flags, some = mask[y], np.int16(0)
        for x in range(nx):
            some |= flags[x]
        if some & bits == 0:
            continue
        for x in range(nx):
            if flags[x] & bits:
                near[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = True


def _spread_radius(kernel: np.ndarray) -> int:
    """Distance (of columns or rows) beyond which lies less than 0.5 % of |kernel|: as far as a bleed trail smears."""
    radius = kernel.shape[0] // 2
    v, u = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    beyond = np.bincount(np.maximum(abs(u), abs(v)).ravel(), np.abs(kernel).ravel())[::-1].cumsum()[::-1]
    return int(np.sum(beyond > 0.005 * beyond[0])) - 1


def merge_masks(
    sharp: MaskedImage, broad: MaskedImage, bad: np.ndarray, kernel: np.ndarray, max_bad_weight: float,
    reach: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """(ny, nx) int16 mask of the difference of an image and another one that was convolved.

    Flags of the image left alone stay where they are, and what is not finite there is NO_DATA. Of the convolved one,
    NO_WEIGHT bits count where more than `max_bad_weight` of the kernel lies on bad pixels, and saturation as far as the
    kernel smears it; a border as wide as the kernel is EDGE.

    Parameters
    ----------
    sharp, broad : MaskedImage
        The image convolved, and the other.
    bad : (ny, nx) bool
        Pixels of `sharp` that carry nothing.
    kernel : (s, s) float64
    max_bad_weight : float
    reach : (t, t) float64 or None
        Tells in place of `kernel` how far bad pixels reach, for kernels that ring; the bad pixels themselves, then of
        either image, count however little of it lies on them.
    """
    share = share_of_bad(bad, kernel if reach is None else reach)
    near = spread_flags(sharp.mask, _SATURATED, _spread_radius(kernel))
    mask = np.empty(bad.shape, np.int16)
    _merge(
        sharp.mask, broad.mask, broad.sci, broad.var, near, share, np.float32(max_bad_weight), bad,
        reach is not None, len(kernel) // 2, mask,
    )  # fmt: skip
    return mask


@njit(cache=True, nogil=True)
def _merge(sharp, broad, sci, variance, near, share, most, bad, themselves, radius, mask):
    ny, nx = mask.shape
    big = np.float32(np.inf)
    for y in range(ny):
        edge_row = y < radius or y >= ny - radius
        from_sharp, from_broad, value, noise, out = sharp[y], broad[y], sci[y], variance[y], mask[y]
        close, part, lost = near[y], share[y], bad[y]
        for x in range(nx):
            here = from_broad[x] | (from_sharp[x] & np.int16(~(_HARD & ~_NO_DATA)))
            reached = (part[x] > most) | (themselves & lost[x])
            here |= (from_sharp[x] & np.int16(_HARD)) | np.int16(_EDGE) if reached else np.int16(0)
            here |= np.int16(_CORE) if close[x] else np.int16(0)
            known = (noise[x] > 0) & (noise[x] < big) & (abs(value[x]) < big)
            here |= np.int16(0) if known else np.int16(_NO_DATA)
            out[x] = here
        for x in range(nx if edge_row else min(radius, nx)):
            out[x] |= np.int16(_EDGE)
            out[nx - 1 - x] |= np.int16(_EDGE)
