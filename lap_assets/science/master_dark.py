"""Building a master dark: electrons per second that the detector collects without light, from long dark frames.

Taking it off an exposure is `science/dark.py`'s; its hot pixels are found in `science/defects.py`.
"""

from collections.abc import Sequence

import numpy as np

from lap_assets.errors import UnprocessableData
from lap_assets.science.frame_combination import FrameNoise, combine_frames


def build_dark(
    frames: np.ndarray, exptimes_s: Sequence[float], read_noise: np.ndarray, clip_sigma: float = 5.0
) -> tuple[np.ndarray, np.ndarray]:
    """Master dark of a chip, or of a stretch of its rows.

    Frames of different exposure times are weighed by how well each tells the current: a long one tells more.

    Parameters
    ----------
    frames : (n, ny, nx) float32
        Electrons, overscan and bias removed.
    exptimes_s : sequence of float
        > 0.
    read_noise : (ny, nx) float32
        Electrons.
    clip_sigma : float
        Rejection of cosmic rays, of which long darks are full.

    Returns
    -------
    dark, variance : (ny, nx) float32
        Electrons per second, its square.

    Raises
    ------
    UnprocessableData
        An exposure time that is not above zero.
    """
    times = np.asarray(exptimes_s, np.float32)
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise UnprocessableData(f"dark frames need exposure times above 0 s, not {sorted(map(float, times))[:3]} …")
    noise = FrameNoise.of(times, typical=0.0)
    dark, variance, _ = combine_frames(frames, np.asarray(read_noise, np.float32) ** 2, noise, clip_sigma)
    return dark, variance


def carry_bias_noise(bias_variance: np.ndarray, exptimes_s: Sequence[float]) -> np.ndarray:
    """Variance of a master dark that comes from the master bias taken off all of its frames.

    Parameters
    ----------
    bias_variance : (ny, nx) float32
        Electrons².
    exptimes_s : sequence of float

    Returns
    -------
    (ny, nx) float32
        (electrons per second)²; the frames' weights are those of `build_dark`, as the square of the time.
    """
    times = np.asarray(exptimes_s, np.float64)
    return bias_variance * np.float32((times.sum() / np.sum(times**2)) ** 2)
