"""Fringes: interference of sky lines in the detector; the pattern's amplitude is fitted to each exposure and removed.

The pattern (mean zero, unit amplitude) is a master built from object frames. The smooth sky belongs to
`science/background.py`.
"""

import numpy as np
from numba import njit

from lap_assets.errors import UnprocessableData

_BIN_PX = 4
_BLOCK_BINS = 32  # over which the smooth sky is one number: wider than fringes
_MIN_BLOCK_BINS = 50
_CLIP_SIGMA = 2.5
_ROUNDS = 8


def fit_fringe(image: np.ndarray, usable: np.ndarray, pattern: np.ndarray) -> tuple[float, float]:
    """Amplitude of a fringe pattern in an image, and its error.

    Image and pattern are averaged over 4 × 4 pixels; in blocks of 128 pixels both are taken relative to their means,
    which leaves the smooth sky out of the fit, and the amplitude is that of least squares. Bins that stand out of the
    fit (sources and their wings) are left out and the fit is repeated.

    Parameters
    ----------
    image : (ny, nx) float32
        Electrons, sky included.
    usable : (ny, nx) bool
    pattern : (ny, nx) float32

    Returns
    -------
    amplitude, error : float
        Electrons per unit of the pattern.

    Raises
    ------
    UnprocessableData
        The pattern is flat, or too few pixels are usable.
    """
    data, shape, seen = _average_bins(image, pattern, np.ascontiguousarray(usable, bool), _BIN_PX)
    blocks = _number_blocks(data.shape)
    # a bright star would shift the mean of its block, and so the residuals of all its neighbours
    first = data - _block_medians(data, seen)
    kept = seen & (np.abs(first) <= _CLIP_SIGMA * 1.4826 * np.median(np.abs(first[seen])) if seen.any() else False)
    amplitude, error = 0.0, np.inf
    for _ in range(_ROUNDS):
        amplitude, error, residual = _fit_amplitude(data, shape, kept, blocks)
        spread = 1.4826 * float(np.median(np.abs(residual[kept])))
        again = seen & (np.abs(residual) <= _CLIP_SIGMA * spread)
        if np.array_equal(again, kept):
            break
        kept = again
    return amplitude, error


def subtract_fringe(
    image: np.ndarray, variance: np.ndarray, pattern: np.ndarray, pattern_variance: np.ndarray, amplitude: float
) -> tuple[np.ndarray, np.ndarray]:
    """Image minus `amplitude` times the pattern, whose noise is added to the variance; all (ny, nx) float32."""
    scale = np.float32(amplitude)
    light, noise = scale * pattern, scale**2 * pattern_variance
    return np.subtract(image, light, out=light), np.add(variance, noise, out=noise)


def _number_blocks(shape: tuple[int, int]) -> np.ndarray:
    """(my, mx) number of the block each bin lies in."""
    rows, columns = (np.arange(n) // _BLOCK_BINS for n in shape)
    return rows[:, None] * (columns[-1] + 1) + columns[None, :]


def _block_medians(data: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Median of the seen bins of each bin's block, (my, mx)."""
    medians = np.zeros_like(data)
    for y in range(0, data.shape[0], _BLOCK_BINS):
        for x in range(0, data.shape[1], _BLOCK_BINS):
            part = slice(y, y + _BLOCK_BINS), slice(x, x + _BLOCK_BINS)
            if seen[part].any():
                medians[part] = np.median(data[part][seen[part]])
    return medians


def _fit_amplitude(
    data: np.ndarray, shape: np.ndarray, kept: np.ndarray, blocks: np.ndarray
) -> tuple[float, float, np.ndarray]:
    """Least squares of data on shape, both relative to the means of their blocks; and the residual of every bin."""
    n = int(blocks.max()) + 1
    number = np.bincount(blocks[kept], minlength=n)
    means = [np.bincount(blocks[kept], plane[kept], n) / np.maximum(number, 1) for plane in (data, shape)]
    full = number >= _MIN_BLOCK_BINS
    # blocks too empty for a mean of their own say nothing
    used = kept & full[blocks]
    y, x = data - means[0][blocks], shape - means[1][blocks]
    power = float(np.sum(x[used] ** 2))
    if power <= 0 or used.sum() < 2 * _MIN_BLOCK_BINS:
        raise UnprocessableData(
            "the fringe amplitude cannot be fitted: the pattern is flat, or too few pixels are usable; leave the step "
            "out (chips.skip_steps) or build another fringe frame"
        )
    amplitude = float(np.sum(x[used] * y[used])) / power
    residual = y - amplitude * x
    return amplitude, float(np.sqrt(np.mean(residual[used] ** 2) / power)), residual


@njit(cache=True, nogil=True)
def _average_bins(image, pattern, usable, size):
    """Means of two planes over bins of size × size pixels, and the bins at least half of whose pixels are usable."""
    my, mx = max(image.shape[0] // size, 1), max(image.shape[1] // size, 1)
    first, second = np.zeros((my, mx)), np.zeros((my, mx))
    number = np.zeros((my, mx), np.int64)
    for y in range(min(my * size, image.shape[0])):
        for x in range(min(mx * size, image.shape[1])):
            if usable[y, x]:
                first[y // size, x // size] += image[y, x]
                second[y // size, x // size] += pattern[y, x]
                number[y // size, x // size] += 1
    seen = 2 * number >= size * size
    for j in range(my):
        for i in range(mx):
            if number[j, i] > 0:
                first[j, i] /= number[j, i]
                second[j, i] /= number[j, i]
    return first, second, seen
