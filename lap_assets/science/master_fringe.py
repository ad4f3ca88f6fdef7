"""Building a fringe pattern: the interference of sky lines in the detector, common to object frames (LV-11).

Sources and the smooth sky are taken off first (`science/source_mask.py`); the pattern has mean zero and unit robust
amplitude, so that what is fitted to an exposure (`science/fringe.py`) is an amplitude in electrons.
"""

from collections.abc import Sequence

import numpy as np

from lap_assets.errors import UnprocessableData
from lap_assets.science.frame_combination import FrameNoise, combine_frames

_ROUNDS = 4
_SHOWN = 0.1  # of the largest amplitude, below which a frame does not tell the pattern
_SAMPLE = 1_000_000  # blocks that tell the noise


def measure_fringe_amplitudes(
    residuals: np.ndarray, skies: Sequence[float], min_correlation: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Amplitude of the common pattern in each frame, from frames averaged over blocks.

    Frames are scaled by their sky, whose lines make the fringes, and combined; each is then fitted with the pattern,
    scaled by what was found, and combined again.

    Parameters
    ----------
    residuals : (n, my, mx) float32
        Block averages without sources (NaN there) and smooth sky, electrons.
    skies : sequence of float
        Sky of each frame, electrons: the first guess of the amplitudes.
    min_correlation : float
        Between the patterns of every other frame and of the rest.

    Returns
    -------
    amplitudes : (n,) float32
        Electrons per unit of the pattern; <= 0 in frames that do not show it.
    pattern : (my, mx) float32
        Unit robust amplitude.

    Raises
    ------
    UnprocessableData
        There is no pattern that the frames have in common.
    """
    amplitudes = np.asarray(skies, np.float32)
    if len(residuals) < 2 or not (amplitudes > 0).all():
        raise UnprocessableData("a fringe pattern needs at least two object frames with sky above zero")
    pattern = _combine(residuals, amplitudes)
    for _ in range(_ROUNDS):
        amplitudes = np.array([_fit_amplitude(one, pattern) for one in residuals], np.float32)
        shown = amplitudes > _SHOWN * np.max(amplitudes)
        # a copy of the stack only where frames are left out
        told = residuals if shown.all() else residuals[shown]
        pattern = _combine(told, amplitudes[shown])
    found = _compare_halves(told, amplitudes[shown])
    if not found >= min_correlation:
        raise UnprocessableData(
            f"the object frames have no fringe pattern in common (correlation of two halves {found:.2f}, at least "
            f"{min_correlation} is needed); reject this set, the band needs no fringe correction"
        )
    unit = 1.4826 * float(np.median(np.abs(pattern)))
    return np.where(shown, amplitudes * np.float32(unit), np.float32(0.0)), pattern / np.float32(unit)


def build_fringe(
    frames: np.ndarray,
    amplitudes: Sequence[float],
    skies: Sequence[float],
    read_noise: np.ndarray,
    clip_sigma: float = 5.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Fringe pattern of a chip pixel by pixel, or of a stretch of its rows.

    Parameters
    ----------
    frames : (n, ny, nx) float32
        Electrons without the smooth sky; not finite where there are sources.
    amplitudes, skies : sequence of float
        Of each frame, electrons; amplitudes > 0.
    read_noise : (ny, nx) float32
        Electrons.

    Returns
    -------
    pattern, variance : (ny, nx) float32
        NaN where no frame has a value.
    """
    noise = FrameNoise.of(amplitudes, backgrounds=skies, photons=False)
    pattern, variance, _ = combine_frames(frames, np.asarray(read_noise, np.float32) ** 2, noise, clip_sigma)
    return pattern, variance


def _combine(residuals: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """Pattern of mean zero from scaled frames; 0 where none has a value."""
    # an odd step: no column stands for all
    sample = residuals.reshape(-1)[:: max(1, residuals.size // _SAMPLE) | 1]
    sample = sample[np.isfinite(sample)]
    spread = 1.4826 * np.median(np.abs(sample)) if sample.size else 1.0
    noise = FrameNoise.of(amplitudes, photons=False)
    pattern, _, _ = combine_frames(residuals, float(spread) ** 2, noise, clip_sigma=3.0)
    known = np.isfinite(pattern)
    if not known.any():
        raise UnprocessableData("the object frames of the fringe pattern hold no sky between their sources")
    return np.where(known, pattern - np.mean(pattern[known], dtype=np.float64), 0.0).astype(np.float32)


def _fit_amplitude(residual: np.ndarray, pattern: np.ndarray) -> float:
    """Least squares of a frame on the pattern, blocks beyond 3 sigma left out."""
    seen = np.isfinite(residual) & (pattern != 0)
    amplitude = 0.0
    for _ in range(3):
        y, x = residual[seen].astype(np.float64), pattern[seen].astype(np.float64)
        power = float(np.sum((x - x.mean()) ** 2)) if x.size else 0.0
        if power == 0:
            return 0.0
        amplitude = float(np.sum((x - x.mean()) * (y - y.mean()))) / power
        off = residual - amplitude * pattern
        middle = float(np.median(off[seen]))
        spread = 1.4826 * float(np.median(np.abs(off[seen] - middle)))
        seen &= np.abs(off - middle) <= 3.0 * spread
    return amplitude


def _compare_halves(residuals: np.ndarray, amplitudes: np.ndarray) -> float:
    """Correlation of the patterns of two halves of the frames; 0 with fewer than two frames."""
    if len(residuals) < 2:
        return 0.0
    one, two = (_combine(residuals[k::2], amplitudes[k::2]) for k in (0, 1))
    both = (one != 0) & (two != 0)
    return float(np.corrcoef(one[both], two[both])[0, 1]) if both.sum() > 2 else 0.0
