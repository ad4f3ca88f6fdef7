"""Satellite trails on a single calibrated frame, with all its stars and galaxies, and their mask.

The line finder is that of difference images (`science/streaks.py`); here the frame is made ready for it (averaged over
blocks, smooth sky removed) and what is no trail is told apart: spikes of bright stars, galaxies seen edge-on.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numba import njit

from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage
from lap_assets.science.streaks import STREAK_COLUMNS, StreakLimits, draw_streaks, find_streaks
from lap_assets.science.variance import measure_block_skies

_SKY_BINS = 32  # block of the smooth sky, in bins
_SATURATED = int(Mask.SATURATED | Mask.BLEED)
_PARTS = 8
_LIT_PARTS = 0.8  # of the parts of a trail must be lit like the others: a bright star may hide one
_FLANK_BINS = 6  # on both sides of a line, that it is compared to
_MIN_BINS = 5


@dataclass(frozen=True)
class TrailLimits:
    """What counts as a trail on a single frame.

    Attributes
    ----------
    snr : float
        Of the whole line, each bin's contribution clipped.
    min_length_px : float
        Longer than spikes of most stars and nearly all galaxies.
    min_evenness : float
        Its parts are as bright as their median, within this factor both ways. Spikes and galaxies fade.
    bin_px : int
        Pixels averaged on a side before lines are sought: about the width of a trail.
    """

    snr: float = 10.0
    min_length_px: float = 300.0
    min_evenness: float = 0.3
    bin_px: int = 4


def find_trails(
    image: np.ndarray, mask: np.ndarray, variance: np.ndarray, limits: TrailLimits | None = None
) -> pd.DataFrame:
    """Trails on a calibrated frame, sky included.

    Parameters
    ----------
    image, variance : (ny, nx) float32
    mask : (ny, nx) int16
        Bits of `Mask`; what must not be measured does not count.
    limits : TrailLimits

    Returns
    -------
    DataFrame
        As of `science.streaks.find_streaks`: x0, y0, x1, y1, width_px [px], snr; brightest first.
    """
    limits = limits or TrailLimits()
    size = limits.bin_px
    if min(image.shape) < 2 * size:
        return pd.DataFrame([], columns=list(STREAK_COLUMNS), dtype=float)
    light, noise, bits = _average_bins(image, mask, variance, size, int(NO_WEIGHT), _SATURATED, int(Mask.NO_DATA))
    binned = MaskedImage(light - _evaluate_sky(light), bits, noise)
    found = find_streaks(binned, StreakLimits(limits.snr, limits.min_length_px / size))
    real = [_is_trail(binned, row, limits.min_evenness) for row in found.itertuples(index=False)]
    rows = [
        _extend_trail(binned, row, limits.min_evenness)
        for row, good in zip(found.itertuples(index=False), real, strict=True)
        if good
    ]
    return pd.DataFrame(
        [_refine_trail(image, mask, row, size) for row in rows], columns=list(STREAK_COLUMNS), dtype=float
    )


def flag_trails(mask: np.ndarray, trails: pd.DataFrame, margin_px: float) -> np.ndarray:
    """`mask` (int16) with STREAK set within half the width of each trail plus `margin_px`."""
    if len(trails) == 0:
        return mask
    return mask | np.where(draw_streaks(mask.shape, trails, margin_px), np.int16(Mask.STREAK), np.int16(0))


def _evaluate_sky(light: np.ndarray) -> np.ndarray:
    """Smooth sky of a binned frame, (my, mx) float32: medians of blocks, linear between them."""
    medians, rows, columns = measure_block_skies(light, _SKY_BINS)
    along = np.array([np.interp(np.arange(light.shape[1]), columns, line) for line in medians])
    return np.array([np.interp(np.arange(light.shape[0]), rows, line) for line in along.T], np.float32).T


def _is_trail(image: MaskedImage, row, min_evenness: float) -> bool:
    """Whether a line is lit all along, and about evenly.

    In each of eight parts the median along its core is compared to that of both flanks: stars that happen to stand in
    a row do not move the median; spikes and discs fade from their middle.
    """
    level, noise = _measure_parts(image, row)
    seen = np.isfinite(noise)
    if 2 * seen.sum() < _PARTS:
        return False
    level, noise = level[seen], noise[seen]
    middle = np.median(level)
    lit = (level > 2.0 * noise) & (level >= min_evenness * middle) & (level * min_evenness <= middle)
    if lit.mean() < _LIT_PARTS:
        return False
    thirds = [np.median(part) for part in np.array_split(level[lit], 3)]
    return min(thirds) >= min_evenness * max(thirds)


def _extend_trail(image: MaskedImage, row, min_evenness: float):
    """The line with its ends moved on towards the border as long as it goes on being lit; one dark part is passed.

    The finder ends a line where bright stars leave little of it to be seen.
    """
    level, _ = _measure_parts(image, row)
    middle = np.median(level[level > 0])
    step = np.hypot(row.x1 - row.x0, row.y1 - row.y0) / _PARTS
    for _ in range(2):
        ux, uy = (row.x1 - row.x0) / step / _PARTS, (row.y1 - row.y0) / step / _PARTS
        left = _distance_to_border(image.shape, row.x1, row.y1, ux, uy)
        number = int(np.ceil(left / step))
        if number > 0:
            size = left / number
            rest = row._replace(x0=row.x1, y0=row.y1, x1=row.x1 + left * ux, y1=row.y1 + left * uy)
            level, noise = _measure_parts(image, rest, number)
            lit = (level > 2.0 * noise) & (level >= min_evenness * middle)
            reached = 0
            for k in np.flatnonzero(lit):
                if k <= reached + 1:
                    reached = k + 1
            row = row._replace(x1=row.x1 + reached * size * ux, y1=row.y1 + reached * size * uy)
            step = np.hypot(row.x1 - row.x0, row.y1 - row.y0) / _PARTS
        # now the other end
        row = row._replace(x0=row.x1, y0=row.y1, x1=row.x0, y1=row.y0)
    return row


def _distance_to_border(shape: tuple[int, int], x: float, y: float, ux: float, uy: float) -> float:
    """How far a point can go in a direction inside an image of a shape (ny, nx)."""
    ways = [np.inf]
    for place, speed, last in ((x, ux, shape[1] - 1), (y, uy, shape[0] - 1)):
        if speed != 0.0:
            ways.append(((last if speed > 0 else 0.0) - place) / speed)
    return max(min(ways), 0.0)


def _measure_parts(image: MaskedImage, row, n_parts: int = _PARTS) -> tuple[np.ndarray, np.ndarray]:
    """Light of each part of a line over that of its flanks, and its noise; 0 and infinite where too little is seen."""
    length = np.hypot(row.x1 - row.x0, row.y1 - row.y0)
    line = pd.DataFrame([row], columns=list(STREAK_COLUMNS))
    y, x = np.nonzero(draw_streaks(image.shape, line, _FLANK_BINS) & image.usable)
    part, across = _place_pixels(x, y, row)
    across = np.abs(across)
    core, flank = across <= max(0.2 * row.width_px, 0.75), across > 0.5 * row.width_px
    part = np.floor(part / length * n_parts)
    light = image.sci[y, x]
    level, noise = np.zeros(n_parts), np.full(n_parts, np.inf)
    for k in range(n_parts):
        mine, beside = core & (part == k), flank & (part == k)
        if mine.sum() >= _MIN_BINS and beside.sum() >= _MIN_BINS:
            level[k] = np.median(light[mine]) - np.median(light[beside])
            variance = np.median(image.var[y[mine], x[mine]]) * (1.0 / mine.sum() + 1.0 / beside.sum())
            noise[k] = 1.25 * np.sqrt(variance)
    return level, noise


def _place_pixels(x: np.ndarray, y: np.ndarray, row) -> tuple[np.ndarray, np.ndarray]:
    """Distance of pixels along a line from its beginning, and across from it (to the left of its direction)."""
    length = np.hypot(row.x1 - row.x0, row.y1 - row.y0)
    ux, uy = (row.x1 - row.x0) / length, (row.y1 - row.y0) / length
    return (x - row.x0) * ux + (y - row.y0) * uy, (y - row.y0) * ux - (x - row.x0) * uy


def _refine_trail(image: np.ndarray, mask: np.ndarray, row, size: int) -> tuple[float, ...]:
    """Axis and full width [px] of a trail at full resolution, from medians along it: stars neither bend nor widen it.

    Down to a twentieth of its peak, where two pixels in a row are below.
    """
    reach = int(0.5 * size * row.width_px) + 2 * size
    row = row._replace(**{name: (getattr(row, name) + 0.5) * size - 0.5 for name in ("x0", "y0", "x1", "y1")})
    line = pd.DataFrame([row._replace(width_px=2.0 * reach)])
    y, x = np.nonzero(draw_streaks(image.shape, line) & ((mask & np.int16(NO_WEIGHT)) == 0))
    light = image[y, x]
    length = np.hypot(row.x1 - row.x0, row.y1 - row.y0)
    for _ in range(2):
        along, across = _place_pixels(x, y, row)
        shift, tilt = _fit_axis(np.floor(along / length * _PARTS), across, light, reach)
        nx, ny = -(row.y1 - row.y0) / length, (row.x1 - row.x0) / length
        row = row._replace(x0=row.x0 + shift * nx, y0=row.y0 + shift * ny)
        row = row._replace(x1=row.x1 + (shift + tilt) * nx, y1=row.y1 + (shift + tilt) * ny)
    profile = _measure_profile(np.abs(_place_pixels(x, y, row)[1]), light, 0, reach)
    below = profile < 0.05 * profile[:size].max()
    ends = np.flatnonzero(below[:-1] & below[1:])
    half = max(int(ends[0]) if ends.size else reach, 1)
    return (row.x0, row.y0, row.x1, row.y1, 2.0 * half + 1.0, row.snr)


def _fit_axis(part: np.ndarray, across: np.ndarray, light: np.ndarray, reach: int) -> tuple[float, float]:
    """How far the light lies from a line at its beginning, and how much farther at its end [px]."""
    place, offset, weight = [], [], []
    for k in range(_PARTS):
        mine = part == k
        if not mine.any():
            continue
        profile = np.clip(_measure_profile(across[mine], light[mine], -reach, reach), 0.0, None)
        profile[profile < 0.2 * profile.max()] = 0.0  # what is left of the noise
        if profile.sum() > 0:
            place.append((k + 0.5) / _PARTS)
            offset.append(np.average(np.arange(-reach, reach) + 0.5, weights=profile))
            weight.append(profile.max())
    if len(place) < 3:
        return 0.0, 0.0
    # a star in one part must not bend the line: no weight above the median's
    tilt, shift = np.polyfit(place, offset, 1, w=np.minimum(weight, np.median(weight)))
    return float(shift), float(tilt)


def _measure_profile(across: np.ndarray, light: np.ndarray, first: int, last: int) -> np.ndarray:
    """Median light at each distance (pixels `first` to `last`) across a line, over that of its outermost pixels."""
    ring = np.floor(across).astype(int)
    order = np.argsort(ring, kind="stable")
    edges = np.searchsorted(ring[order], np.arange(first, last + 1))
    values = light[order]
    medians = np.array([np.median(values[a:b]) if b > a else np.nan for a, b in pairwise(edges)])
    outside = np.concatenate([medians[-4:], medians[:4]] if first < 0 else [medians[-4:]])
    outside = outside[np.isfinite(outside)]
    return np.nan_to_num(medians - (np.median(outside) if outside.size else 0.0))


@njit(cache=True, nogil=True)
def _average_bins(image, mask, variance, size, bad, saturated, no_data):
    """Mean of the good pixels of each bin, its variance, and mask bits: no data where less than half are good."""
    my, mx = image.shape[0] // size, image.shape[1] // size
    light, noise = np.zeros((my, mx), np.float32), np.ones((my, mx), np.float32)
    bits = np.zeros((my, mx), np.int16)
    for j in range(my):
        for i in range(mx):
            total, power, n = 0.0, 0.0, 0
            full = False
            for y in range(j * size, (j + 1) * size):
                for x in range(i * size, (i + 1) * size):
                    full = full or (mask[y, x] & saturated) != 0
                    if (mask[y, x] & bad) == 0 and variance[y, x] > 0:
                        total += image[y, x]
                        power += variance[y, x]
                        n += 1
            if n > 0:
                light[j, i] = total / n
                noise[j, i] = power / (n * n)
            if full:
                bits[j, i] = saturated
            if 2 * n < size * size:
                bits[j, i] |= no_data
    return light, noise, bits
