"""Robust mean of a few frames of one chip, pixel by pixel, with the variance of that mean.

Used for master biases and master flats. What the frames are and how they are scaled belongs to the caller; combining
warps is `science/stack.py`'s.
"""

import numpy as np
from numba import njit

from lap_assets.errors import UnprocessableData


@njit(cache=True, nogil=True)
def _clip_pixels(frames, sigma, clip_sigma, mean, count):
    """One pass over the pixels: median, reject by expected noise, mean of the rest."""
    n, ny, nx = frames.shape
    values = np.empty(n, np.float32)
    for y in range(ny):
        for x in range(nx):
            for k in range(n):
                values[k] = frames[k, y, x]
            ordered = np.sort(values)
            centre = ordered[n // 2] if n % 2 else 0.5 * (ordered[n // 2 - 1] + ordered[n // 2])
            total, used = 0.0, 0
            for k in range(n):
                if abs(values[k] - centre) <= clip_sigma * sigma[k, y, x]:
                    total += values[k]
                    used += 1
            mean[y, x] = total / used if used else centre
            count[y, x] = max(used, 1)


def combine_frames(frames: np.ndarray, variances: np.ndarray, clip_sigma: float = 5.0) -> tuple[np.ndarray, ...]:
    """Clipped mean of frames of one chip.

    A value is rejected when it lies more than `clip_sigma` *expected* sigmas from the median of its pixel; with five
    frames the sample's own scatter would be no guide.

    Parameters
    ----------
    frames, variances : (n, ny, nx) float32
        Values and their expected variances.
    clip_sigma : float

    Returns
    -------
    mean : (ny, nx) float32
    variance : (ny, nx) float32
        Of the mean.
    count : (ny, nx) int16
        Frames used.

    Raises
    ------
    UnprocessableData
        Without any frame, or when shapes differ.
    """
    if frames.ndim != 3 or len(frames) == 0 or frames.shape != variances.shape:
        raise UnprocessableData(f"cannot combine frames of shape {frames.shape} with variances {variances.shape}")
    mean = np.empty(frames.shape[1:], np.float32)
    count = np.empty(frames.shape[1:], np.int16)
    sigma = np.sqrt(variances, dtype=np.float32)
    _clip_pixels(np.ascontiguousarray(frames, np.float32), sigma, float(clip_sigma), mean, count)
    variance = variances.mean(axis=0, dtype=np.float32) / count
    return mean, variance.astype(np.float32), count


def measure_frame_noise(frames: np.ndarray) -> float:
    """Noise of a single frame (one number) from the median absolute difference of successive frames, (n, ny, nx)."""
    if len(frames) < 2:
        raise UnprocessableData("the noise of calibration frames needs at least two of them")
    differences = np.abs(np.diff(frames, axis=0))
    return float(1.4826 * np.median(differences) / np.sqrt(2.0))
