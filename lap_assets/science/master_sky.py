"""Building a sky frame: what flats of a screen leave of the illumination, from many object frames (LV-11).

Sources are left out (`science/source_mask.py`), each frame is scaled by its sky, and what is common to all is smoothed
to the large scale. Dividing an exposure by it is `science/sky_frame.py`'s.
"""

from collections.abc import Sequence

import numpy as np

from lap_assets.errors import UnprocessableData
from lap_assets.science.background import evaluate_background, measure_background
from lap_assets.science.frame_combination import FrameNoise, combine_frames

_CLIP_SIGMA, _ROUNDS = 3.0, 10


def measure_sky_level(values: np.ndarray) -> float:
    """Sky level of pixels among which are sources: the median, clipped at 3 sigma until nothing changes."""
    values = np.sort(values[np.isfinite(values)].astype(np.float64), axis=None)
    for _ in range(_ROUNDS):
        if values.size == 0:
            return float("nan")
        middle = values[values.size // 2]
        # from the lower half, where no sources are
        spread = 1.4826 * float(np.median(middle - values[: values.size // 2 + 1]))
        low, high = np.searchsorted(values, [middle - _CLIP_SIGMA * spread, middle + _CLIP_SIGMA * spread])
        if spread == 0 or high - low == values.size:
            break
        values = values[low : max(high, low + 1)]
    return float(values[values.size // 2])


def build_sky(
    frames: np.ndarray, levels: Sequence[float], relative_level: float, read_noise: np.ndarray, clip_sigma: float = 5.0
) -> tuple[np.ndarray, np.ndarray]:
    """Sky of a chip relative to the mosaic's, pixel by pixel, or of a stretch of its rows.

    Parameters
    ----------
    frames : (n, ny, nx) float32
        Electrons, flat-fielded, sky included; not finite where there are sources.
    levels : sequence of float
        Sky of each frame, electrons.
    relative_level : float
        What the middle of this chip is relative to the mosaic.
    read_noise : (ny, nx) float32
        Electrons.

    Returns
    -------
    sky, variance : (ny, nx) float32
        NaN where no frame shows sky.

    Raises
    ------
    UnprocessableData
        A frame without sky.
    """
    lit = np.asarray(levels, np.float32)
    if not (np.isfinite(lit).all() and (lit > 0).all()):
        raise UnprocessableData("an object frame has no sky above zero; reject it and build again")
    noise = FrameNoise.of(lit / np.float32(relative_level))
    sky, variance, _ = combine_frames(frames, np.asarray(read_noise, np.float32) ** 2, noise, clip_sigma)
    return sky, variance


def smooth_illumination(sky: np.ndarray, variance: np.ndarray, mesh_px: int) -> tuple[np.ndarray, np.ndarray]:
    """The large scale of a sky frame: clipped means of cells of `mesh_px`, joined by a spline; 0 leaves it as it is.

    Parameters
    ----------
    sky, variance : (ny, nx) float32
        NaN where nothing is known; filled by what is around.
    mesh_px : int

    Returns
    -------
    sky, variance : (ny, nx) float32
        The variance of the smooth one is that of a cell's mean.

    Raises
    ------
    UnprocessableData
        No part of the frame shows enough sky.
    """
    known = np.isfinite(sky) & np.isfinite(variance)
    mesh = measure_background(np.where(known, sky, 0.0).astype(np.float32), known, mesh_px if mesh_px > 0 else 128)
    smooth = evaluate_background(mesh.mesh, sky.shape)
    if mesh_px <= 0:
        typical = np.float32(np.median(variance[known]))
        return np.where(known, sky, smooth), np.where(known, variance, typical)
    cells = max(1.0, known.mean() * mesh_px**2)
    return smooth, np.full(sky.shape, np.mean(variance[known], dtype=np.float64) / cells, np.float32)
