"""Overscan: assemble the amplifiers of a raw frame into the trimmed chip and remove the level read in the overscan.

Only the electronic level row by row belongs here; the two-dimensional pattern that stays is the master bias's
(`science/bias.py`).
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import median_filter, uniform_filter1d

from lap_assets.errors import UnprocessableData
from lap_assets.model.camera import Amplifier, Chip

_CLIP_SIGMA = 5.0


def check_raw_shape(raw: np.ndarray, chip: Chip) -> None:
    """Raise `UnprocessableData` unless `raw` (ny, nx) can hold every section of `chip`."""
    if not chip.amplifiers:
        raise UnprocessableData(f"chip {chip.name}: the camera file gives no amplifier sections; raw frames need them")
    if raw is None or raw.ndim != 2:
        raise UnprocessableData(
            f"chip {chip.name}: no image in the raw frame; ingest the exposure again from its source"
        )
    need_x = max(box[1] for amp in chip.amplifiers for box in (amp.data, amp.overscan) if box)
    need_y = max(box[3] for amp in chip.amplifiers for box in (amp.data, amp.overscan) if box)
    expected = chip.raw_shape or (need_y, need_x)
    fits = raw.shape == chip.raw_shape if chip.raw_shape else raw.shape[0] >= need_y and raw.shape[1] >= need_x
    if not fits:
        raise UnprocessableData(f"chip {chip.name}: raw frame has shape {raw.shape}, the camera expects {expected}")


def assemble_chip(raw: np.ndarray, chip: Chip) -> np.ndarray:
    """Trimmed frame (ny, nx) float32 in raw ADU, amplifiers at their places, nothing subtracted."""
    check_raw_shape(raw, chip)
    image = np.zeros(chip.shape, np.float32)
    for amp in chip.amplifiers:
        image[_slices(amp.target)] = raw[_slices(amp.data)]
    return image


def measure_overscan(raw: np.ndarray, amplifier: Amplifier, smooth_rows: int = 15) -> np.ndarray:
    """Level of each row of the amplifier's data in ADU, (rows,) float32.

    Clipped mean over the columns of the overscan (the mean, since the median of integers is quantised), then median
    and mean over `smooth_rows` rows: the level drifts slowly; the noise of a single row would be printed as stripes.
    """
    strip = np.asarray(raw[_slices(amplifier.overscan)], np.float32)
    centre = np.median(strip, axis=1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(strip - centre)) + 0.5
    good = np.abs(strip - centre) <= _CLIP_SIGMA * spread
    level = np.sum(np.where(good, strip, 0.0), axis=1) / np.maximum(good.sum(axis=1), 1)
    if smooth_rows > 1:
        level = median_filter(level, size=min(5, smooth_rows), mode="nearest")
        level = uniform_filter1d(level, size=smooth_rows, mode="nearest")
    return level.astype(np.float32)


def subtract_overscan(
    image: np.ndarray, raw: np.ndarray, amplifiers: Sequence[Amplifier], smooth_rows: int = 15
) -> np.ndarray:
    """The trimmed frame minus the overscan level of each row, amplifier by amplifier.

    Parameters
    ----------
    image : (ny, nx) float32
        From `assemble_chip`, ADU.
    raw : (raw_ny, raw_nx) array
        The frame it came from.
    amplifiers : sequence of Amplifier
        Those without overscan are left as they are.
    smooth_rows : int
        Rows over which the level is smoothed; 1 takes each row by itself.
    """
    result = image.copy()
    for amp in amplifiers:
        if amp.overscan is not None:
            result[_slices(amp.target)] -= measure_overscan(raw, amp, smooth_rows)[:, None]
    return result


def _slices(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
    x0, x1, y0, y1 = box
    return slice(y0, y1), slice(x0, x1)
