"""Variance of a calibrated chip from photon statistics and read noise.

What later steps add (noise of the masters) is carried by their own modules; empirical corrections for correlated noise
after resampling belong to the warp.
"""

import numpy as np
from numba import njit

_SOURCE_SIGMA = 3.0
_SAMPLES = 1024  # pixels per block whose median is the local sky


def estimate_variance(electrons: np.ndarray, read_noise: np.ndarray, block_px: int = 64) -> np.ndarray:
    """Variance in electrons² of an image in electrons, sky included, before the flat is divided out.

    Where a pixel stands within 3 sigma of the local sky, the sky sets its variance, not its own count: a variance that
    follows the noise would weight low pixels up and bias every weighted mean low (by sigma²/sky, about 1 e⁻).

    Parameters
    ----------
    electrons, read_noise : (ny, nx) float32
    block_px : int
        Size of the blocks whose medians are the local sky, interpolated linearly between them.

    Returns
    -------
    (ny, nx) float32
    """
    image = np.ascontiguousarray(electrons, np.float32)
    sky, rows, columns = measure_block_skies(image, block_px)
    low_y, part_y = _locate(rows, image.shape[0])
    low_x, part_x = _locate(columns, image.shape[1])
    variance = np.empty(image.shape, np.float32)
    noise = np.ascontiguousarray(read_noise, np.float32)
    _fill_variance(image, noise, np.maximum(sky, 0.0), low_y, part_y, low_x, part_x, variance)
    return variance


def measure_block_skies(image: np.ndarray, block_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Medians of the blocks of an image, each from about a thousand pixels spread evenly over the block.

    Returns
    -------
    medians : (my, mx) float32
    rows, columns : (my,), (mx,) float64
        Centres of the blocks in pixels.
    """
    ny, nx = image.shape
    my, mx = max(1, ny // block_px), max(1, nx // block_px)
    y_edges, x_edges = np.linspace(0, ny, my + 1).astype(np.int64), np.linspace(0, nx, mx + 1).astype(np.int64)
    step = max(1, int(np.sqrt((ny / my) * (nx / mx) / _SAMPLES)))
    medians = _block_medians(image, y_edges, x_edges, step)
    return medians, 0.5 * (y_edges[:-1] + y_edges[1:] - 1), 0.5 * (x_edges[:-1] + x_edges[1:] - 1)


@njit(cache=True, nogil=True)
def _block_medians(image, y_edges, x_edges, step):
    medians = np.empty((y_edges.size - 1, x_edges.size - 1), np.float32)
    largest = (np.diff(y_edges).max() // step + 1) * (np.diff(x_edges).max() // step + 1)
    values = np.empty(largest, np.float32)
    for j in range(medians.shape[0]):
        for i in range(medians.shape[1]):
            n = 0
            for y in range(y_edges[j], y_edges[j + 1], step):
                for x in range(x_edges[i], x_edges[i + 1], step):
                    values[n] = image[y, x]
                    n += 1
            medians[j, i] = np.median(values[:n])
    return medians


def _locate(centres: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of an axis the lower of the two centres around it and how far it lies between them (0…1)."""
    place = np.interp(np.arange(n), centres, np.arange(centres.size))
    low = np.minimum(place.astype(np.int64), max(centres.size - 2, 0))
    return low, (place - low).astype(np.float32)


@njit(cache=True, nogil=True)
def _fill_variance(image, read_noise, sky, low_y, part_y, low_x, part_x, variance):
    ny, nx = image.shape
    last_y, last_x = sky.shape[0] - 1, sky.shape[1] - 1
    line, local = np.empty(sky.shape[1], np.float32), np.empty(nx, np.float32)
    limit = np.float32(_SOURCE_SIGMA * _SOURCE_SIGMA)
    for y in range(ny):
        below, above, part = low_y[y], min(low_y[y] + 1, last_y), part_y[y]
        for i in range(line.size):
            line[i] = sky[below, i] + part * (sky[above, i] - sky[below, i])
        for x in range(nx):
            left = line[low_x[x]]
            local[x] = left + part_x[x] * (line[min(low_x[x] + 1, last_x)] - left)
        # a loop without look-ups: the compiler does eight pixels at a time
        for x in range(nx):
            value, read = image[y, x], read_noise[y, x] * read_noise[y, x]
            excess = max(value - local[x], np.float32(0.0))
            quiet = local[x] + read
            variance[y, x] = value + read if excess * excess > limit * quiet else quiet
