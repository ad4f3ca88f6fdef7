"""Straight trails of satellites and aircraft on difference images: found by a Radon transform, drawn as masks.

Here: detection and drawing. Not here: which differences are searched (`pipeline/streak_masks`), restacking without the
trails (`pipeline/final_stacks`).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numba import njit
from scipy import ndimage

from lap_assets.model.image import Mask, MaskedImage

_SATURATED = int(Mask.SATURATED | Mask.BLEED)
_SATURATED_MARGIN_PX = 4
STREAK_COLUMNS = ("x0", "y0", "x1", "y1", "width_px", "snr")


@dataclass(frozen=True)
class StreakLimits:
    """What counts as a trail.

    Attributes
    ----------
    snr : float
        Signal to noise of the whole line, every pixel's contribution clipped.
    min_length_px : float
    min_filled : float
        Fraction of the pieces of a line that must be bright by themselves: galaxies and residuals fill few.
    clip_sigma : float
        A pixel counts at most this much: no single residual makes a line.
    max_streaks : int
    """

    snr: float = 10.0
    min_length_px: float = 80.0
    min_filled: float = 0.7
    clip_sigma: float = 2.5
    max_streaks: int = 5


def find_streaks(image: MaskedImage, limits: StreakLimits | None = None, noise_covariance: float = 1.0) -> pd.DataFrame:
    """Trails on a difference image.

    The signal-to-noise image is clipped and binned until a trail is about a pixel wide, then summed along straight
    lines of all angles and offsets (Radon transform). The best line is accepted if the light is spread along it; its
    place, width and ends are refined at full resolution; it is erased and the search repeated.

    Parameters
    ----------
    image : MaskedImage
        Difference; masked pixels do not count.
    limits : StreakLimits
    noise_covariance : float
        Variance of large sums over the sum of VAR: correlated noise makes lines of its own.

    Returns
    -------
    DataFrame
        x0, y0, x1, y1 [px, ends of the axis], width_px (covers the light down to the noise), snr; brightest first.
    """
    limits = limits or StreakLimits()
    signal, weight = _clipped_signal(image, limits.clip_sigma)
    gain = 1.0 / np.sqrt(max(noise_covariance, 1.0))
    # fine bins for narrow trails first; coarse ones gather the light of broad, faint ones
    found: list[tuple[float, ...]] = []
    _drop_compact(signal, weight, limits)
    for bin_px in (3, 8):
        while len(found) < limits.max_streaks:
            one = _best_line(signal, weight, bin_px, limits, gain)
            if one is None:
                break
            found.append(one)
            weight[draw_streaks(image.shape, pd.DataFrame([one], columns=STREAK_COLUMNS), margin_px=2.0)] = 0
    table = pd.DataFrame(found, columns=list(STREAK_COLUMNS), dtype=float)
    table = table.sort_values(["snr", "x0", "y0"], ascending=[False, True, True], ignore_index=True)
    table.attrs["units"] = {"x0": "px", "y0": "px", "x1": "px", "y1": "px", "width_px": "px"}
    return table


def draw_streaks(shape: tuple[int, int], streaks: pd.DataFrame, margin_px: float = 0.0) -> np.ndarray:
    """(ny, nx) bool: pixels within half the width plus `margin_px` of the axis of any streak.

    A streak whose end lies near the border of the image is drawn on to the border.
    """
    drawn = np.zeros(shape, bool)
    ny, nx = shape
    for row in streaks.itertuples(index=False):
        dx, dy = row.x1 - row.x0, row.y1 - row.y0
        length = float(np.hypot(dx, dy))
        if length == 0:
            continue
        ux, uy = dx / length, dy / length
        half = 0.5 * row.width_px + margin_px
        start, end = -margin_px - half, length + margin_px + half
        near = 0.05 * max(nx, ny) + 2.0 * half
        if min(row.x0, row.y0, nx - 1 - row.x0, ny - 1 - row.y0) < near:
            start -= 2.0 * near
        if min(row.x1, row.y1, nx - 1 - row.x1, ny - 1 - row.y1) < near:
            end += 2.0 * near
        _draw_line(drawn, row.x0, row.y0, ux, uy, start, end, half)
    return drawn


def _clipped_signal(image: MaskedImage, clip: float) -> tuple[np.ndarray, np.ndarray]:
    """Signal to noise, clipped on both sides, less its median; and 1 where it may be used."""
    # smeared charge and misfitted wings beside bleed trails look like trails themselves
    saturated = (image.mask & _SATURATED) != 0
    good = image.usable & ~ndimage.binary_dilation(saturated, np.ones((3, 3), bool), iterations=_SATURATED_MARGIN_PX)
    noise = np.sqrt(np.where(good, image.var, np.float32(1)))
    ratio = np.where(good, image.sci / noise, np.float32(0))
    if good.any():
        low, middle, high = np.percentile(ratio[good], [15.87, 50.0, 84.13])
        # bright residuals make some differences rougher than their variance says
        ratio = (ratio - middle) / max(0.5 * (high - low), 1e-3)
    signal = np.where(good, np.clip(ratio, -clip, clip), 0).astype(np.float32)
    return signal, good.astype(np.float32)


def _drop_compact(signal: np.ndarray, weight: np.ndarray, limits: StreakLimits) -> None:
    """Take away the weight of bright residuals that are no piece of a line: short or round. In place."""
    smooth = ndimage.uniform_filter(signal, 3, mode="constant")
    labels, n = ndimage.label(smooth > 1.5, structure=np.ones((3, 3), bool))
    if n == 0:
        return
    y, x = np.nonzero(labels)
    one = labels[y, x] - 1
    area = np.bincount(one, minlength=n)
    mean_x, mean_y = np.bincount(one, x, n) / area, np.bincount(one, y, n) / area
    u, v = x - mean_x[one], y - mean_y[one]
    xx, yy, xy = (np.bincount(one, moment, n) / area for moment in (u * u, v * v, u * v))
    major = 0.5 * (xx + yy) + np.sqrt(0.25 * (xx - yy) ** 2 + xy**2)
    # lines, crossing ones too, fill little of the square over their length
    linelike = (area < 0.15 * 16.0 * major) & (4.0 * np.sqrt(major) > 0.3 * limits.min_length_px)
    # few pixels may be a fragment of a faint trail: those stay, clipped
    compact = (area >= 12) & ~linelike
    weight[np.concatenate([[False], compact])[labels]] = 0


def _best_line(signal, weight, bin_px: int, limits: StreakLimits, gain: float) -> tuple[float, ...] | None:
    """The brightest line that stands the tests of `_measure_line`, or None."""
    light, counts = _bin_sums(signal * weight, bin_px), _bin_sums(weight, bin_px)
    ny, nx = light.shape
    centre = (0.5 * (signal.shape[1] - 1), 0.5 * (signal.shape[0] - 1))
    least = limits.min_length_px * bin_px  # pixels under a line of the least length
    candidates = []
    for steep in (True, False):
        for mirrored in (False, True):
            ratio = _line_ratios(light if steep else light.T, counts if steep else counts.T, mirrored, least)
            n = ratio.shape[0]
            for _ in range(4):
                shift, column = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
                height = gain * float(ratio[shift, column])
                ratio[max(shift - 6, 0) : shift + 7, max(column - 6, 0) : column + 7] = 0
                if height < 5.5:
                    break
                ends = np.array([column - n, column - n + shift], float)
                if mirrored:
                    ends = (nx if steep else ny) - 1 - ends
                ends, rows = (ends + 0.5) * bin_px - 0.5, np.array([0.5 * bin_px - 0.5, (n - 0.5) * bin_px - 0.5])
                x, y = (ends, rows) if steep else (rows, ends)
                candidates.append((height, *_normal_form(x, y, centre)))
    for _, cos, sin, rho in sorted(candidates, reverse=True):
        line = _refine_line(signal, weight, centre, (cos, sin), rho, bin_px, limits, gain)
        if line is not None:
            return line
    return None


def _line_ratios(light: np.ndarray, counts: np.ndarray, mirrored: bool, least: float) -> np.ndarray:
    """S/N along all lines of one octant pair; 0 where too few usable pixels lie under the line."""
    n = 1 << (light.shape[0] - 1).bit_length()

    def prepare(plane):
        plane = plane[:, ::-1] if mirrored else plane
        return np.pad(plane, ((0, n - plane.shape[0]), (0, 0)))

    total, seen = sum_lines(prepare(light)), sum_lines(prepare(counts))
    return np.where(seen >= least, total / np.sqrt(np.maximum(seen, 1.0)), np.float32(0))


def _normal_form(x: np.ndarray, y: np.ndarray, centre) -> tuple[float, float, float]:
    """(cos, sin, rho) of the line through two points: u·cos + v·sin = rho about the centre."""
    dx, dy = x[1] - x[0], y[1] - y[0]
    length = float(np.hypot(dx, dy))
    cos, sin = -dy / length, dx / length
    return float(cos), float(sin), float((x[0] - centre[0]) * cos + (y[0] - centre[1]) * sin)


def _refine_line(signal, weight, centre, normal, rho, bin_px: int, limits, gain) -> tuple[float, ...] | None:
    """Place, ends, width and S/N of a candidate at full resolution; None if its light is not that of a trail."""
    cos, sin = normal
    reach = 8.0 * bin_px
    for _ in range(5):
        along, across, values = _collect_strip(signal, weight, *centre, cos, sin, rho, reach)
        if along.size < limits.min_length_px:
            return None
        piece = max(limits.min_length_px / 4.0, 4.0 * bin_px)
        index = ((along - along.min()) / piece).astype(int)
        shift, tilt = _fit_axis(along, across, values, index, reach)
        rho += shift
        # the axis is across = shift + tilt · along: turn the normal by −arctan(tilt)
        turn = -np.arctan(tilt)
        cos, sin = cos * np.cos(turn) - sin * np.sin(turn), cos * np.sin(turn) + sin * np.cos(turn)
        reach = max(0.6 * reach, 4.0)
    return _measure_line(signal, weight, centre, (cos, sin), rho, bin_px, limits, gain)


def _fit_axis(along, across, values, index, reach) -> tuple[float, float]:
    """Correction of offset and slope from the light's position across, piece by piece, weighted by its S/N."""
    n = index.max() + 1
    light = np.clip(values, 0.0, None) * (np.abs(across) < reach)
    expected = np.bincount(index, minlength=n) * 0.4  # mean of the positive half of unit noise
    total = np.bincount(index, light, n)
    moment = np.bincount(index, light * across, n)
    excess = total - expected
    noise = np.sqrt(np.bincount(index, minlength=n) * 0.34 + 1.0)
    strong = excess > 2.0 * noise
    if strong.sum() < 3:
        return 0.0, 0.0
    middle = np.bincount(index, along, n)[strong] / np.bincount(index, minlength=n)[strong]
    # symmetric noise pulls towards 0: divide by the excess alone
    place = np.clip(moment[strong] / excess[strong], -reach, reach)
    weight = excess[strong]
    mean = np.average(middle, weights=weight)
    level = np.average(place, weights=weight)
    slope = np.sum(weight * (middle - mean) * (place - level)) / max(np.sum(weight * (middle - mean) ** 2), 1e-9)
    return float(level - slope * mean), float(slope)


def _measure_line(signal, weight, centre, normal, rho, bin_px, limits, gain) -> tuple[float, ...] | None:
    reach = 6.0 * bin_px
    along, across, values = _collect_strip(signal, weight, *centre, *normal, rho, reach)
    if along.size == 0:
        return None
    half = _half_width(across, values, reach)
    core = np.abs(across) <= half
    along, values = along[core], values[core]
    if along.size < limits.min_length_px:
        return None
    piece = max(limits.min_length_px / 4.0, 4.0 * bin_px)
    origin = along.min()
    index = ((along - origin) / piece).astype(int)
    number = np.bincount(index)
    ratio = gain * np.bincount(index, values) / np.sqrt(np.maximum(number, 1))
    known = number >= 0.25 * np.median(number[number > 0])
    first, last = _longest_run(ratio, known)
    if first is None or (last - first) * piece < limits.min_length_px:
        return None
    inside = known[first:last]
    filled = ratio[first:last][inside] > 1.5
    total = values[(index >= first) & (index < last)]
    snr = float(gain * total.sum() / np.sqrt(total.size))
    # half of the light from a quarter of the pieces is a chain of objects, not a trail
    share = np.sort(np.clip(ratio[first:last][inside], 0, None))[::-1]
    lumpy = share[: max(share.size // 4, 1)].sum() > 0.6 * share.sum()
    if snr < limits.snr or filled.mean() < limits.min_filled or lumpy:
        return None
    tx, ty = -normal[1], normal[0]
    foot_x, foot_y = centre[0] + rho * normal[0], centre[1] + rho * normal[1]
    s0, s1 = origin + first * piece, origin + last * piece
    return (foot_x + s0 * tx, foot_y + s0 * ty, foot_x + s1 * tx, foot_y + s1 * ty, 2.0 * half + 1.0, snr)


def _half_width(across, values, reach) -> float:
    """Distance from the axis beyond which the mean profile is lost in its noise, at least 1.5 px."""
    bins = np.floor(np.abs(across)).astype(int)
    count = np.bincount(bins, minlength=int(reach) + 1)
    mean = np.bincount(bins, values, int(reach) + 1) / np.maximum(count, 1)
    lost = mean < np.maximum(2.0 / np.sqrt(np.maximum(count, 1)), 0.1 * mean.max())
    return float(max(np.argmax(lost) if lost.any() else reach, 1.5))


def _longest_run(ratio: np.ndarray, known: np.ndarray) -> tuple[int | None, int | None]:
    """Half-open range of pieces with the largest sum of (S/N − 1.5): gaps are bridged when what follows pays for
    them.
    """
    score = np.where(known, np.clip(ratio, -3.0, 6.0) - 1.5, 0.0)
    best, first, last, run, start = 0.0, None, None, 0.0, 0
    for i, value in enumerate(score):
        if run <= 0:
            run, start = 0.0, i
        run += value
        if run > best:
            best, first, last = run, start, i + 1
    return first, last


def _bin_sums(plane: np.ndarray, size: int) -> np.ndarray:
    ny, nx = (n // size * size for n in plane.shape)
    return plane[:ny, :nx].reshape(ny // size, size, nx // size, size).sum(axis=(1, 3), dtype=np.float64)


def sum_lines(plane: np.ndarray) -> np.ndarray:
    """Sums along all digital lines of slope 0–45° to the rows' normal: the fast Radon transform (Brady 1998).

    Parameters
    ----------
    plane : (n, m), n a power of two

    Returns
    -------
    (n, n + m) float32
        Element [s, n + x] is the sum along the line from (x, row 0) to (x + s, row n − 1), x ≥ −n; O(n² log n).
    """
    n, m = plane.shape
    width = n + m
    lines = np.zeros((n, 1, width), np.float32)
    lines[:, 0, n:] = plane
    while lines.shape[0] > 1:
        shifts = 2 * lines.shape[1]
        joined = np.empty((lines.shape[0] // 2, shifts, width), np.float32)
        for shift in range(shifts):
            top, bottom, by = lines[0::2, shift // 2], lines[1::2, shift // 2], (shift + 1) // 2
            joined[:, shift] = top
            joined[:, shift, : width - by] += bottom[:, by:]
        lines = joined
    return lines[0]


@njit(cache=True, nogil=True)
def _row_span(v, nx, centre_x, cos, sin, rho, reach):
    """Half-open range of columns of a row that can lie within `reach` of the line u·cos + v·sin = rho."""
    if abs(cos) < 1e-9:
        return (0, nx) if abs(v * sin - rho) <= reach else (0, 0)
    a, b = (rho - v * sin - reach) / cos, (rho - v * sin + reach) / cos
    return max(int(np.floor(min(a, b) + centre_x)), 0), min(int(np.ceil(max(a, b) + centre_x)) + 1, nx)


@njit(cache=True, nogil=True)
def _collect_strip(signal, weight, centre_x, centre_y, cos, sin, rho, reach):
    """Usable pixels within `reach` of a line: position along it, across it, value."""
    ny, nx = signal.shape
    along, across, values = [0.0][:0], [0.0][:0], [0.0][:0]
    for y in range(ny):
        v = y - centre_y
        first, last = _row_span(v, nx, centre_x, cos, sin, rho, reach)
        for x in range(first, last):
            u = x - centre_x
            d = u * cos + v * sin - rho
            if abs(d) <= reach and weight[y, x] > 0:
                along.append(v * cos - u * sin)
                across.append(d)
                values.append(float(signal[y, x]))
    return np.array(along), np.array(across), np.array(values)


@njit(cache=True, nogil=True)
def _draw_line(drawn, x0, y0, ux, uy, start, end, half):
    ny, nx = drawn.shape
    for y in range(ny):
        v = y - y0
        first, last = _row_span(v, nx, x0, -uy, ux, 0.0, half)
        for x in range(first, last):
            u = x - x0
            along, across = u * ux + v * uy, v * ux - u * uy
            if abs(across) <= half and start <= along <= end:
                drawn[y, x] = True
