"""Variance of a convolved image: that of the image smoothed by the square of the kernel, on every second pixel.

By how much correlated noise changes the
variance is `decorrelation.py`'s.
"""

import numpy as np
from numba import njit


def smooth_variance(variance: np.ndarray, bad: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Variance smoothed by the square of a kernel, normalised to sum 1; (⌈ny/2⌉, ⌈nx/2⌉) float32, one for 2×2 pixels.

    Variance is smooth enough for that. The square is replaced by the product of two profiles nearest to it. Bad
    pixels take the mean of the others of the four; nothing comes from beyond the edges.
    """
    return smooth_halved(halve_variance(variance, bad), kernel)


def smooth_halved(halved: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """`smooth_variance` of what `halve_variance` gives: one image may be smoothed by several kernels."""
    return _smooth(halved, *_square_profiles(kernel))


def _square_profiles(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Profiles along y and x, of sum 1, for an image of every second pixel."""
    left, _, right = np.linalg.svd(kernel**2)
    profiles = []
    for line in (np.abs(left[:, 0]), np.abs(right[0])):
        padded = np.pad(line, 3)
        at = padded.size // 2 + 2 * np.arange(-(line.size // 4) - 1, line.size // 4 + 2)
        profile = 0.5 * padded[at - 1] + padded[at] + 0.5 * padded[at + 1]
        needed = np.abs(np.flatnonzero(profile > 1e-3 * profile.max()) - profile.size // 2).max()
        profile = profile[profile.size // 2 - needed : profile.size // 2 + needed + 1]
        profiles.append((profile / profile.sum()).astype(np.float32))
    return profiles[0], profiles[1]


@njit(cache=True, nogil=True)
def halve_variance(variance, bad):
    """(⌈ny/2⌉, ⌈nx/2⌉) float32: means of the good ones of 2×2 pixels; 0 where none is."""
    ny, nx = variance.shape
    rows, columns = (ny + 1) // 2, (nx + 1) // 2
    small = np.zeros((rows, columns), np.float32)
    zero, one = np.float32(0), np.float32(1)
    for y in range(rows):
        line = small[y]
        upper, lower = variance[2 * y], variance[min(2 * y + 1, ny - 1)]
        bad_upper, bad_lower = bad[2 * y], bad[min(2 * y + 1, ny - 1)]
        for x in range(nx // 2):
            a, b = not bad_upper[2 * x], not bad_upper[2 * x + 1]
            c, d = not bad_lower[2 * x], not bad_lower[2 * x + 1]
            total = (upper[2 * x] if a else zero) + (upper[2 * x + 1] if b else zero)
            total += (lower[2 * x] if c else zero) + (lower[2 * x + 1] if d else zero)
            line[x] = total / max(np.float32(a) + np.float32(b) + np.float32(c) + np.float32(d), one)
        if nx % 2:
            line[columns - 1] = zero if bad_upper[nx - 1] else upper[nx - 1]
    return small


@njit(cache=True, nogil=True)
def _smooth(small, down, across):
    rows, columns = small.shape
    out = np.zeros((rows, columns), np.float32)
    reach, wing = down.size // 2, across.size // 2
    line = np.zeros(columns + 2 * wing, np.float32)
    for y in range(rows):
        middle, smooth = line[wing : wing + columns], out[y]
        middle[:] = 0
        for k in range(max(-reach, y - rows + 1), min(reach, y) + 1):
            tap, source = down[k + reach], small[y - k]
            for x in range(columns):
                middle[x] += tap * source[x]
        for k in range(across.size):
            tap, moved = across[across.size - 1 - k], line[k : k + columns]
            for x in range(columns):
                smooth[x] += tap * moved[x]
    return out
