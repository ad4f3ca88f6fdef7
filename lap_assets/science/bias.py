"""Master bias: the fixed pattern left after the overscan is removed, built from zero-second frames, and its removal.

The row-by-row level is `science/overscan.py`'s; pixels that misbehave are found in `science/defects.py`.
"""

import numpy as np

from lap_assets.science.frame_combination import combine_frames, measure_frame_noise


def build_bias(frames: np.ndarray, clip_sigma: float = 5.0) -> tuple[np.ndarray, np.ndarray, float]:
    """Master bias from overscan-subtracted, trimmed frames.

    Parameters
    ----------
    frames : (n, ny, nx) float32
        ADU.
    clip_sigma : float
        Rejection of cosmic rays, in sigmas of the read noise measured between the frames.

    Returns
    -------
    bias, variance : (ny, nx) float32
        ADU, ADU².
    noise : float
        Read noise of one frame in ADU.
    """
    noise = measure_frame_noise(frames)
    variances = np.full(frames.shape, max(noise, 0.3) ** 2, np.float32)
    bias, variance, _ = combine_frames(frames, variances, clip_sigma)
    return bias, variance, noise


def subtract_bias(image: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """`image` minus the master bias, both (ny, nx) ADU."""
    return image - bias
