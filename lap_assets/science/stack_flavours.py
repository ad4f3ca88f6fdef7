"""Further flavours of a stack: with the large-scale sky left in, and of inputs brought to one PSF.

Here: arrays in, arrays out. The plain stack is `stack`'s; which flavours are made and how inputs are read is
`pipeline/stacks`'.
"""

from collections.abc import Iterable

import numpy as np
from numba import njit

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.psf_grid import PsfGrid
from lap_assets.science.psf_matching import homogenise

_STRIP = 32  # pixels of a row that are looked at together


def restore_sky(sci: np.ndarray, used: np.ndarray, weights: np.ndarray, skies: np.ndarray, block_px: int) -> np.ndarray:
    """The stack as if each input had had only the sky of the focal plane taken off, so that large haloes stay (LV-17).

    SCI + Σ w_k b_k S_k / Σ w_k b_k over the inputs used at a pixel, S_k bilinear between block centres.

    Parameters
    ----------
    sci : (ny, nx) float32
    used : (p, ny, nx) int
        Bit k of plane p: input 31·p + k entered.
    weights : (n,) float
    skies : (n, by, bx) float
        What has to be added to each input, nJy/px, at the centres of its blocks.
    block_px : int
    """
    skies, weights = np.ascontiguousarray(skies, np.float32), np.asarray(weights, float)
    column, right = _locate(np.arange(sci.shape[1]), block_px, skies.shape[2])
    row, below = _locate(np.arange(sci.shape[0]), block_px, skies.shape[1])
    beside = np.minimum(column + 1, skies.shape[2] - 1)
    mean = np.tensordot(weights / weights.sum(), skies, axes=1).astype(np.float32)
    common = mean[:, column] + right * (mean[:, beside] - mean[:, column])
    out = np.empty_like(sci)
    _add_skies(
        sci, np.ascontiguousarray(used).view(np.uint8), weights, skies, common, row, below, column, beside, right, out
    )
    return out


def _locate(pixels: np.ndarray, block_px: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks whose centres lie before pixels, and how far on these are to the next; clipped to the blocks."""
    place = np.clip((pixels - 0.5 * (block_px - 1)) / block_px, 0.0, n - 1.0)
    block = np.minimum(place.astype(np.int64), max(n - 2, 0))
    return block, (place - block).astype(np.float32)


@njit(cache=True, nogil=True)
def _add_skies(sci, used, weights, skies, common, row, below, column, beside, right, out):
    """Add the mean sky, interpolated along x already, where all inputs were used, else the mean of those used.

    `used`: as in `stack_kernels.merge_rows`, one type however many inputs there are.
    """
    ny, nx = sci.shape
    n, last, width = weights.size, skies.shape[1] - 1, used.shape[2] // sci.shape[1]
    plane, byte, bit = np.arange(n) // 31, np.arange(n) % 31 // 8, np.arange(n) % 31 % 8
    whole = np.zeros((used.shape[0], _STRIP * width), np.uint8)
    for k in range(n):
        if weights[k] > 0:
            whole[plane[k], byte[k] :: width] |= np.uint8(1 << bit[k])
    for y in range(ny):
        top, bottom, part = row[y], min(row[y] + 1, last), below[y]
        upper, lower, plain, corrected = common[top], common[bottom], sci[y], out[y]
        for x in range(nx):
            corrected[x] = plain[x] + upper[x] + part * (lower[x] - upper[x])
        for x0 in range(0, nx, _STRIP):
            x1, some = min(x0 + _STRIP, nx), False
            for p in range(used.shape[0]):
                some |= _differ(used[p, y, x0 * width : x1 * width], whole[p])
            if not some:
                continue
            for x in range(x0, x1):
                sky, total = 0.0, 0.0
                for k in range(n):
                    if weights[k] > 0 and used[plane[k], y, x * width + byte[k]] >> bit[k] & 1:
                        first = _blend(skies[k, top], column[x], beside[x], right[x])
                        second = _blend(skies[k, bottom], column[x], beside[x], right[x])
                        sky += weights[k] * (first + part * (second - first))
                        total += weights[k]
                corrected[x] = plain[x] + (np.float32(sky / total) if total > 0 else np.float32(0))


@njit(cache=True, nogil=True)
def _differ(bits, whole):
    """Whether one of some pixels lacks an input."""
    other = np.uint8(0)
    for x in range(bits.size):
        other = np.uint8(other | (bits[x] ^ whole[x]))
    return other != 0


@njit(cache=True, nogil=True)
def _blend(line, left, right, part):
    return line[left] + part * (line[right] - line[left])


def combine_matched(
    images: Iterable[tuple[int, MaskedImage, PsfGrid]], used: np.ndarray, weights: np.ndarray, target: np.ndarray
) -> MaskedImage:
    """Stack of inputs brought to the PSF `target`, what was rejected before left out; one input in memory at a time.

    Parameters
    ----------
    images : iterable of (index, image, PSF)
        Inputs of weight > 0 in order, their level taken off.
    used : (p, ny, nx) int
        Bits of the plain stack.
    weights : (n,) float
    target : (s, s) float

    Returns
    -------
    MaskedImage
        NO_DATA where nothing is.
    """
    shape = used.shape[1:]
    total, scatter, norm = (np.zeros(shape) for _ in range(3))
    for index, image, psf in images:
        entered = (used[index // 31] >> (index % 31)) & 1 != 0
        mask = np.where(entered, image.mask, image.mask | np.int16(Mask.COSMIC_RAY))
        matched = homogenise(MaskedImage(image.sci, mask, image.var, image.header), psf, target)
        good = entered & (matched.mask & int(Mask.EDGE) == 0) & (matched.var > 0)
        w = np.where(good, weights[index], 0.0)
        total += w * matched.sci
        scatter += w**2 * matched.var
        norm += w
    some = norm > 0
    inverse = np.divide(1.0, norm, out=np.zeros(shape), where=some)
    mask = np.where(some, 0, int(Mask.NO_DATA)).astype(np.int16)
    return MaskedImage((total * inverse).astype(np.float32), mask, (scatter * inverse**2).astype(np.float32))
