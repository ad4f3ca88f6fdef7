"""Straight trails of satellites and aircraft on difference images: found by a Radon transform, drawn as masks.

Here: detection and drawing. Not here: which differences are searched (`pipeline/streak_masks`), restacking without the
trails (`pipeline/final_stacks`).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numba import njit

from lap_assets.model.image import MaskedImage

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

    snr: float = 8.0
    min_length_px: float = 80.0
    min_filled: float = 0.7
    clip_sigma: float = 2.5
    max_streaks: int = 5


def find_streaks(image: MaskedImage, limits: StreakLimits | None = None) -> pd.DataFrame:
    """Trails on a difference image.

    The signal-to-noise image is clipped and binned until a trail is about a pixel wide, then summed along straight lines of
    all angles and offsets (Radon transform). The best line is accepted if the light is spread along it; its place, width and
    ends are refined at full resolution; it is erased and the search repeated.

    Parameters
    ----------
    image : MaskedImage
        Difference; masked pixels do not count.
    limits : StreakLimits

    Returns
    -------
    DataFrame
        x0, y0, x1, y1 [px, ends of the axis], width_px (covers the light down to the noise), snr; brightest first.
    """
    limits = limits or StreakLimits()
    signal, weight = _clipped_signal(image, limits.clip_sigma)
    # fine bins for narrow trails first; coarse ones gather the light of broad, faint ones
    found: list[tuple[float, ...]] = []
    for bin_px in (2, 6):
        while len(found) < limits.max_streaks:
            one = _best_line(signal, weight, bin_px, limits)
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
    good = image.usable
    noise = np.sqrt(np.where(good, image.var, np.float32(1)))
    ratio = np.where(good, image.sci / noise, np.float32(0))
    if good.any():
        low, middle, high = np.percentile(ratio[good], [15.87, 50.0, 84.13])
        # bright residuals make some differences rougher than their variance says
        ratio = (ratio - middle) / max(0.5 * (high - low), 1e-3)
    signal = np.where(good, np.clip(ratio, -clip, clip), 0).astype(np.float32)
    return signal, good.astype(np.float32)


def _best_line(signal, weight, bin_px: int, limits: StreakLimits) -> tuple[float, ...] | None:
    binned, counts = _bin_sums(signal * weight, bin_px), _bin_sums(weight, bin_px)
    ny, nx = binned.shape
    diagonal = np.hypot(nx, ny)
    n_angles = int(np.ceil(np.pi * diagonal / 2.0))
    angles = np.arange(n_angles) * np.pi / n_angles
    light, seen = _radon(binned, counts, np.cos(angles), np.sin(angles), int(np.ceil(diagonal)) + 2)
    least = limits.min_length_px * bin_px  # pixels under a line of the least length
    ratio = np.where(seen >= least, light / np.sqrt(np.maximum(seen, 1.0)), 0.0)
    # a few bests: the very best may be two galaxies and a residual in a row
    for _ in range(8):
        angle, offset = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        if ratio[angle, offset] < 0.6 * limits.snr:
            return None
        line = _refine_line(signal, weight, angles[angle], offset - diagonal / 2.0, bin_px, limits)
        if line is not None:
            return line
        lo, hi = max(offset - 3, 0), offset + 4
        for step in range(-3, 4):
            turned = (angle + step) % n_angles
            if 0 <= angle + step < n_angles:
                ratio[turned, lo:hi] = 0
    return None


def _refine_line(signal, weight, angle: float, offset: float, bin_px: int, limits) -> tuple[float, ...] | None:
    """Place, ends, width and S/N of a candidate at full resolution; None if its light is not that of a trail."""
    ny, nx = signal.shape
    centre_x, centre_y = 0.5 * (nx - 1), 0.5 * (ny - 1)
    nx_, ny_ = np.cos(angle), np.sin(angle)
    reach = 8.0 * bin_px
    rho = offset * bin_px
    for _ in range(3):
        along, across, values = _strip(signal, weight, centre_x, centre_y, nx_, ny_, rho, reach)
        if along.size < limits.min_length_px:
            return None
        piece = max(limits.min_length_px / 4.0, 4.0 * bin_px)
        index = ((along - along.min()) / piece).astype(int)
        shift, tilt = _fit_axis(along, across, values, index, reach)
        turn = np.arctan(tilt)
        rho += shift
        cos, sin = np.cos(-turn), np.sin(-turn)
        nx_, ny_ = nx_ * cos - ny_ * sin, nx_ * sin + ny_ * cos
        reach = max(0.6 * reach, 3.0 * bin_px)
    return _measure_line(signal, weight, (centre_x, centre_y), (nx_, ny_), rho, bin_px, limits)


def _strip(signal, weight, centre_x, centre_y, nx_, ny_, rho, reach):
    """Usable pixels within `reach` of a line: position along it, across it, value."""
    along, across, values = _collect_strip(signal, weight, centre_x, centre_y, nx_, ny_, rho, reach)
    return along, across, values


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


def _measure_line(signal, weight, centre, normal, rho, bin_px, limits) -> tuple[float, ...] | None:
    reach = 6.0 * bin_px
    along, across, values = _strip(signal, weight, *centre, *normal, rho, reach)
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
    ratio = np.bincount(index, values) / np.sqrt(np.maximum(number, 1))
    known = number >= 0.25 * np.median(number[number > 0])
    first, last = _longest_run(ratio, known)
    if first is None or (last - first) * piece < limits.min_length_px:
        return None
    inside = known[first:last]
    filled = ratio[first:last][inside] > 1.5
    total = values[(index >= first) & (index < last)]
    snr = float(total.sum() / np.sqrt(total.size))
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
    """Half-open range of pieces with the largest sum of (S/N − 1.5): gaps are bridged when what follows pays for them."""
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


@njit(cache=True, nogil=True)
def _radon(light, counts, cosines, sines, n_offsets):
    """Sums of light and of pixel counts along lines (angle of the normal, offset from the centre in bins)."""
    ny, nx = light.shape
    total = np.zeros((cosines.size, n_offsets), np.float64)
    seen = np.zeros((cosines.size, n_offsets), np.float64)
    shift = np.hypot(nx, ny) / 2.0 + 0.5
    for a in range(cosines.size):
        for y in range(ny):
            start = (y - 0.5 * (ny - 1)) * sines[a] - 0.5 * (nx - 1) * cosines[a] + shift
            for x in range(nx):
                if counts[y, x] > 0:
                    offset = int(start + x * cosines[a])
                    total[a, offset] += light[y, x]
                    seen[a, offset] += counts[y, x]
    return total, seen


@njit(cache=True, nogil=True)
def _collect_strip(signal, weight, centre_x, centre_y, cos, sin, rho, reach):
    ny, nx = signal.shape
    along, across, values = [0.0][:0], [0.0][:0], [0.0][:0]
    for y in range(ny):
        for x in range(nx):
            u, v = x - centre_x, y - centre_y
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
        for x in range(nx):
            u, v = x - x0, y - y0
            along, across = u * ux + v * uy, v * ux - u * uy
            if abs(across) <= half and start <= along <= end:
                drawn[y, x] = True
