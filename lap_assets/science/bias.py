"""Master bias: the fixed pattern left after the overscan is removed, built from zero-second frames, and its removal.

The row-by-row level is `science/overscan.py`'s; pixels that misbehave are found in `science/defects.py`.
"""

import numpy as np

from lap_assets.science.frame_combination import combine_frames, measure_frame_noise

_MIN_NOISE_ADU = 0.3  # of integers: rounding alone


def build_bias(
    frames: np.ndarray, clip_sigma: float = 5.0, noise: float | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Master bias from overscan-subtracted, trimmed frames, or a stretch of its rows.

    Parameters
    ----------
    frames : (n, ny, nx) float32
        ADU.
    clip_sigma : float
        Rejection of cosmic rays, in sigmas of the read noise measured between the frames.
    noise : float, optional
        Read noise of one frame in ADU where it is known; None: measured on these frames.

    Returns
    -------
    bias, variance : (ny, nx) float32
        ADU, ADU².
    noise : float
        Read noise of one frame in ADU.
    """
    noise = measure_frame_noise(frames) if noise is None else noise
    bias, variance, _ = combine_frames(frames, max(noise, _MIN_NOISE_ADU) ** 2, clip_sigma=clip_sigma)
    return bias, variance, noise


def subtract_bias(image: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """`image` minus the master bias, both (ny, nx) ADU."""
    return image - bias
