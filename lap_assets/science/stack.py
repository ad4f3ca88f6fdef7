"""Clipped combination of warps to one stack, streamed in row bands.

Here: weights, outlier rejection, the planes of the stack and what is known of its noise. Not here: which warps enter
(`pipeline/stacks`, `pipeline/final_stacks`), resampling (`warp`), streak masks (`streaks`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage

_HARD = int(NO_WEIGHT)
_NO_DATA = int(Mask.NO_DATA)
_CLIPPED = int(Mask.CLIPPED)
_HALO = 2  # rows beyond a band that the neighbourhoods of the rejection look at

# (input, first row, last row + 1) -> sci, mask, var of these rows
ReadRows = Callable[[int, int, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ClipLimits:
    """When an input pixel is rejected.

    Attributes
    ----------
    sigma : float
        Deviation from the reference, in its own standard deviations, that is always allowed.
    amplitude : float
        Deviation allowed on top, as a fraction of the local amplitude (0.3 clips star cores in seeing of 0.85–1.2″, 1.0
        does not: measured). Grows with the spread of the seeing, see `amplitude_tolerances`.
    grow_sigma : float
        Neighbours of a rejected pixel go at this smaller deviation, edges of cosmic rays and trails among them.
    """

    sigma: float = 5.0
    amplitude: float = 1.0
    grow_sigma: float = 2.5


def choose_weights(variances: Sequence[float]) -> np.ndarray:
    """(n,) inverse-variance weights with sum 1; inputs without a finite positive variance get 0.

    One number per input, not per pixel: the PSF of the stack is then one weighted mean of the inputs' PSFs, and the
    moiré that resampling prints into VAR does not print through.
    """
    variance = np.asarray(variances, float)
    good = np.isfinite(variance) & (variance > 0)
    weight = np.where(good, 1.0 / np.where(good, variance, 1.0), 0.0)
    total = weight.sum()
    return weight / total if total > 0 else weight


def amplitude_tolerances(fwhm: Sequence[float], limits: ClipLimits) -> np.ndarray:
    """(n,) allowed deviation of each input as a fraction of the local amplitude.

    The peak of a star goes with 1/FWHM², so an input may exceed the reference by (FWHM_max / FWHM)² − 1 in cores, and
    one with broad wings likewise by (FWHM / FWHM_min)² − 1; with a quarter more for the profile's shape.
    """
    width = np.asarray(fwhm, float)
    known = np.isfinite(width) & (width > 0)
    if not known.any():
        return np.full(width.size, limits.amplitude)
    width = np.where(known, width, np.median(width[known]))
    ratio = np.maximum(width.max() / width, width / width.min())
    return limits.amplitude * np.maximum(1.0, 1.25 * (ratio**2 - 1.0))


def typical_variance(image: MaskedImage) -> float:
    """Median variance of the pixels that carry weight; NaN where there is none."""
    sample = np.s_[::4, ::4] if image.sci.size > 100_000 else np.s_[:, :]
    variance = image.var[sample]
    good = ((image.mask[sample] & _HARD) == 0) & (variance > 0)
    return float(np.median(variance[good])) if good.any() else float("nan")


def combine_images(
    images: Sequence[MaskedImage],
    weights: np.ndarray,
    limits: ClipLimits | None = None,
    fwhm: Sequence[float] | None = None,
) -> MaskedImage:
    """`combine_rows` for warps that lie in memory; same result.

    Parameters
    ----------
    images : sequence of MaskedImage
        All of one shape.
    weights : (n,) float
    limits : ClipLimits or None
        None: no rejection.
    fwhm : (n,) or None
        Seeing of the inputs, any unit.
    """

    def read_rows(index: int, first: int, last: int):
        one = images[index]
        return one.sci[first:last], one.mask[first:last], one.var[first:last]

    return combine_rows(read_rows, weights, images[0].shape, limits, fwhm)


def combine_rows(
    read_rows: ReadRows,
    weights: np.ndarray,
    shape: tuple[int, int],
    limits: ClipLimits | None = None,
    fwhm: Sequence[float] | None = None,
    band_rows: int = 128,
) -> MaskedImage:
    """Weighted mean of inputs with rejection of outliers, in bands of rows.

    Reference of a pixel: the median of the inputs there (the smaller one of two, as outliers are mostly light added).
    Rejected is what deviates by more than `sigma`·σ + a·A, with a from `amplitude_tolerances` and A the largest
    reference among the 3×3 neighbours: it follows the slope of stars whose seeing differs. Then neighbours in the
    same input that deviate by more than `grow_sigma`·σ + a·A. σ² is the input's variance and that of the reference. A
    single input cannot be judged.

    Parameters
    ----------
    read_rows : callable
        Gives rows of one input; sci in nJy, mask bits of `Mask`, var in nJy².
    weights : (n,) float
        From `choose_weights`.
    shape : (ny, nx)
    limits : ClipLimits or None
        None: no rejection (only masked pixels are left out).
    fwhm : (n,) or None
        Seeing of the inputs, any unit; None: alike.
    band_rows : int
        Memory is n · (band_rows + 4) · nx · 11 bytes, whatever ny is; the result does not depend on it.

    Returns
    -------
    MaskedImage
        Variance Σw²v/(Σw)²; mask: OR of the flags of the inputs used, CLIPPED where one was rejected, NO_DATA (with
        zero sci and var) where none is left; plane NINPUT (int16).
    """
    ny, nx = shape
    weight = np.asarray(weights, np.float32)
    network = sorting_network(weight.size)
    if limits:
        widths = np.ones(weight.size) if fwhm is None else fwhm
        tolerances = amplitude_tolerances(widths, limits).astype(np.float32)
    stack = MaskedImage(
        sci=np.zeros(shape, np.float32), mask=np.zeros(shape, np.int16), var=np.zeros(shape, np.float32)
    )  # fmt: skip
    stack.planes["NINPUT"] = count = np.zeros(shape, np.int16)
    for first in range(0, ny, band_rows):
        last = min(first + band_rows, ny)
        low, high = max(first - _HALO, 0), min(last + _HALO, ny)
        sci = np.empty((weight.size, high - low, nx), np.float32)
        mask, var = np.empty(sci.shape, np.int16), np.empty(sci.shape, np.float32)
        for index in range(weight.size):
            sci[index], mask[index], var[index] = read_rows(index, low, high)
        rejected = np.zeros((0, 0, 0), np.uint8)
        if limits:
            rejected = _find_outliers(sci, mask, var, weight, network, tolerances, limits)
        rows = np.s_[first:last]
        into = (stack.sci[rows], stack.mask[rows], stack.var[rows], count[rows])
        _average(sci, mask, var, weight, rejected, first - low, *into)
    return stack


def _find_outliers(sci, mask, var, weight, network, tolerances, limits: ClipLimits) -> np.ndarray:
    """(n, rows, nx) uint8: 0 for what may enter."""
    reference, slack = _reference(sci, mask, var, weight, network)
    rejected = np.zeros(sci.shape, np.uint8)
    sigma, grow = np.float32(limits.sigma), np.float32(limits.grow_sigma)
    _reject(sci, mask, var, reference, slack, _widen(reference), sigma, tolerances, grow, rejected)
    return rejected


def combine_covariance(factors: Sequence[float], weights: np.ndarray, variances: Sequence[float]) -> float:
    """NOISECOV of a weighted mean: Σ w² c v / Σ w² v over the inputs of weight > 0."""
    w, c, v = (np.asarray(x, float) for x in (weights, factors, variances))
    used = w > 0
    return float(np.sum(w[used] ** 2 * c[used] * v[used]) / np.sum(w[used] ** 2 * v[used]))


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
def _reference(sci, mask, var, weight, network):
    """(rows, nx) median over the inputs with weight (lower one of the middle two; 0 where there is none), and by how
    much its own noise adds to the variance of a deviation from it: 1 + π/2n.

    The same compare-exchange steps for all pixels of a row run in vector registers; missing values are +inf.
    """
    n, rows, nx = sci.shape
    reference, slack = np.zeros((rows, nx), np.float32), np.ones((rows, nx), np.float32)
    values = np.empty((n, nx), np.float32)
    counts = np.empty(nx, np.int32)
    for y in range(rows):
        counts[:] = 0
        for k in range(n):
            line, flags, variance, column = sci[k, y], mask[k, y], var[k, y], values[k]
            weighted = weight[k] > 0
            for x in range(nx):
                good = (flags[x] & _HARD == 0) & (variance[x] > 0) & weighted
                column[x] = line[x] if good else np.float32(np.inf)
                counts[x] += np.int32(good)
        for step in range(network.shape[0]):
            lower, upper = values[network[step, 0]], values[network[step, 1]]
            for x in range(nx):
                a, b = lower[x], upper[x]
                lower[x] = a if a < b else b
                upper[x] = b if a < b else a
        for x in range(nx):
            if counts[x] > 0:
                reference[y, x] = values[(counts[x] - 1) // 2, x]
                slack[y, x] = np.float32(1.0) + np.float32(0.5 * np.pi) / counts[x]
    return reference, slack


@njit(cache=True, nogil=True)
def _widen(reference):
    """Largest of the 3×3 neighbours, at least 0."""
    rows, nx = reference.shape
    across = np.empty((rows, nx), np.float32)
    for y in range(rows):
        for x in range(nx):
            across[y, x] = max(reference[y, x], reference[y, max(x - 1, 0)], reference[y, min(x + 1, nx - 1)], 0.0)
    wide = np.empty((rows, nx), np.float32)
    for y in range(rows):
        for x in range(nx):
            wide[y, x] = max(across[y, x], across[max(y - 1, 0), x], across[min(y + 1, rows - 1), x])
    return wide


@njit(cache=True, nogil=True)
def _reject(sci, mask, var, reference, slack, amplitude, sigma, tolerances, grow, rejected):
    """Mark outliers (1), then their deviating neighbours in the same input (2)."""
    n, rows, nx = sci.shape
    zero = np.float32(0)
    found = np.empty(rows, np.uint8)
    for k in range(n):
        fraction = tolerances[k]
        for y in range(rows):
            line, flags, variance, mark = sci[k, y], mask[k, y], var[k, y], rejected[k, y]
            middle, wide, looser = reference[y], amplitude[y], slack[y]
            some = np.uint8(0)
            for x in range(nx):
                excess = abs(line[x] - middle[x]) - fraction * wide[x]
                excess = excess if excess > zero else zero
                out = (excess * excess > sigma * sigma * looser[x] * variance[x]) & (flags[x] & _HARD == 0)
                mark[x] = np.uint8(out)
                some |= np.uint8(out)
            found[y] = some
        for y in range(rows):
            if not found[y]:
                continue
            for x in range(nx):
                if rejected[k, y, x] != 1:
                    continue
                for v in range(max(y - 1, 0), min(y + 2, rows)):
                    for u in range(max(x - 1, 0), min(x + 2, nx)):
                        excess = abs(sci[k, v, u] - reference[v, u]) - fraction * amplitude[v, u]
                        limit = grow * grow * slack[v, u] * var[k, v, u]
                        if rejected[k, v, u] == 0 and excess > 0 and excess * excess > limit:
                            rejected[k, v, u] = 2


@njit(cache=True, nogil=True)
def _average(sci, mask, var, weight, rejected, skip, out, flags, variance, count):
    n = sci.shape[0]
    rows, nx = out.shape
    zero = np.float32(0)
    none = np.zeros(nx, np.uint8)
    total, missing = np.empty(nx, np.float32), np.empty(nx, np.int16)
    for y in range(rows):
        mean, noise, bits, number = out[y], variance[y], flags[y], count[y]
        total[:] = 0
        missing[:] = 0
        for k in range(n):
            w = weight[k]
            if w <= 0:
                continue
            line, here, var_line = sci[k, y + skip], mask[k, y + skip], var[k, y + skip]
            mark = rejected[k, y + skip] if rejected.size else none
            for x in range(nx):
                good = (here[x] & _HARD == 0) & (var_line[x] > zero)
                used = good & (mark[x] == 0)
                mean[x] += w * line[x] if used else zero
                noise[x] += w * w * var_line[x] if used else zero
                total[x] += w if used else zero
                number[x] += np.int16(used)
                bits[x] |= here[x] if used else np.int16(_CLIPPED if good else 0)
                missing[x] |= here[x]
        for x in range(nx):
            if number[x] > 0:
                mean[x] /= total[x]
                noise[x] /= total[x] * total[x]
            else:
                bits[x] |= missing[x] | _NO_DATA
