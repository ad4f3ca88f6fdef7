"""Overscan: assemble the amplifiers of a raw frame into the trimmed chip and remove the level read in the overscan.

Only the electronic level row by row belongs here; the two-dimensional pattern that stays is the master bias's
(`science/bias.py`).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.interpolate import make_lsq_spline
from scipy.ndimage import median_filter, uniform_filter1d

from lap_assets.errors import UnprocessableData
from lap_assets.model.camera import Amplifier, Chip

OverscanMode = Literal["row", "median", "spline"]
_CLIP_SIGMA = 5.0
_MIN_SPREAD_ADU = 0.5  # of integers, whose median deviation may be 0
_LIT_RATIO = 5.0  # scatter of an overscan, in read noises, from which it holds light


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


def check_overscan(raw: np.ndarray, chip: Chip) -> None:
    """Raise `UnprocessableData`, naming chip and amplifier, where a promised overscan is none.

    An overscan without any number or of one single value was filled in by whoever wrote the file; one that scatters
    much more than the read noise, or lies above the pixels beside it, holds light.
    """
    for amp in chip.amplifiers:
        if amp.overscan is None:
            continue
        strip = np.asarray(raw[_slices(amp.overscan)], np.float32)
        where = f"chip {chip.name}, amplifier {amp.name}: the overscan {list(amp.overscan)} that the camera promises"
        cure = "correct the sections in the camera file, or set overscan: null there if this camera has none"
        if not np.isfinite(strip).all() or strip.min() == strip.max():
            raise UnprocessableData(f"{where} is empty; {cure}")
        centre = np.median(strip, axis=1)
        scatter = 1.4826 * float(np.median(np.abs(strip - centre[:, None])))
        expected = max(amp.read_noise_e / amp.gain, _MIN_SPREAD_ADU)
        if amp.read_noise_e > 0 and scatter > _LIT_RATIO * expected:
            raise UnprocessableData(f"{where} scatters by {scatter:.1f} ADU, {expected:.1f} are expected; {cure}")
        level, beside = float(np.median(centre)), float(np.median(raw[_slices(amp.data)][::8, ::8]))
        if level > beside + 2.0 * _LIT_RATIO * max(scatter, expected):
            raise UnprocessableData(f"{where} lies at {level:.0f} ADU, above the light at {beside:.0f}; {cure}")


def assemble_chip(raw: np.ndarray, chip: Chip) -> np.ndarray:
    """Trimmed frame (ny, nx) float32 in raw ADU, amplifiers at their places, nothing subtracted."""
    check_raw_shape(raw, chip)
    image = np.zeros(chip.shape, np.float32)
    for amp in chip.amplifiers:
        image[_slices(amp.target)] = raw[_slices(amp.data)]
    return image


def measure_overscan(
    raw: np.ndarray, amplifier: Amplifier, smooth_rows: int = 15, mode: OverscanMode = "row", knot_rows: int = 256
) -> np.ndarray:
    """Level of each row of the amplifier's data in ADU, (rows,) float32.

    Each row's level is a clipped mean over the columns of the overscan (the mean, since the median of integers is
    quantised). `row` smooths it by median and mean over `smooth_rows` rows: the level drifts slowly; the noise of a
    single row would be printed as stripes. `spline` fits a cubic spline with a knot every `knot_rows`, outlying rows
    clipped; `median` takes one clipped mean for the whole amplifier.
    """
    level = _measure_rows(np.asarray(raw[_slices(amplifier.overscan)], np.float32))
    if mode == "median":
        level[:] = _clip_mean(level)
    elif mode == "spline":
        level = _fit_spline(level, knot_rows)
    elif smooth_rows > 1:
        level = median_filter(level, size=min(5, smooth_rows), mode="nearest")
        level = uniform_filter1d(level, size=smooth_rows, mode="nearest")
    return level.astype(np.float32)


def subtract_overscan(
    image: np.ndarray,
    raw: np.ndarray,
    amplifiers: Sequence[Amplifier],
    smooth_rows: int = 15,
    mode: OverscanMode = "row",
    knot_rows: int = 256,
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
    smooth_rows, mode, knot_rows
        See `measure_overscan`.
    """
    result = image.copy()
    for amp in amplifiers:
        if amp.overscan is not None:
            result[_slices(amp.target)] -= measure_overscan(raw, amp, smooth_rows, mode, knot_rows)[:, None]
    return result


def _measure_rows(strip: np.ndarray) -> np.ndarray:
    """Clipped mean of each row of an overscan."""
    centre = np.median(strip, axis=1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(strip - centre)) + _MIN_SPREAD_ADU
    good = np.abs(strip - centre) <= _CLIP_SIGMA * spread
    return np.sum(np.where(good, strip, 0.0), axis=1) / np.maximum(good.sum(axis=1), 1)


def _clip_mean(level: np.ndarray) -> float:
    away = np.abs(level - np.median(level))
    return float(np.mean(level[away <= _CLIP_SIGMA * (1.4826 * np.median(away) + _MIN_SPREAD_ADU)]))


def _fit_spline(level: np.ndarray, knot_rows: int, degree: int = 3, rounds: int = 3) -> np.ndarray:
    """Cubic spline through the rows' levels, rows beyond 5 sigma left out; fewer knots where there are few rows."""
    n = level.size
    if n <= degree + 1:
        return np.full(n, _clip_mean(level))
    rows = np.arange(n, dtype=np.float64)
    inner = np.linspace(0.0, n - 1.0, max(n // max(knot_rows, 8), 1) + 1)[1:-1]
    knots = np.concatenate([np.zeros(degree + 1), inner, np.full(degree + 1, n - 1.0)])
    weight = np.ones(n)
    for _ in range(rounds):
        # weights, not fewer rows: a stretch of bad rows must not leave a knot without data
        fitted = make_lsq_spline(rows, level, knots, degree, w=weight)(rows)
        away = np.abs(level - fitted)
        weight = np.where(away <= _CLIP_SIGMA * (1.4826 * np.median(away) + 1e-3), 1.0, 1e-3)
    return fitted


def _slices(box: tuple[int, int, int, int]) -> tuple[slice, slice]:
    x0, x1, y0, y1 = box
    return slice(y0, y1), slice(x0, x1)
