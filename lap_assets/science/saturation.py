"""Saturation: pixels at full well or at the end of the converter, and the charge that spilled along their columns.

Judged on raw counts, before anything is subtracted. Non-linearity below saturation is `science/linearity.py`'s.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit

from lap_assets.model.camera import Amplifier
from lap_assets.model.image import Mask

_SATURATED, _BLEED = int(Mask.SATURATED), int(Mask.BLEED)


def flag_saturation(
    raw_adu: np.ndarray, amplifiers: Sequence[Amplifier], trail_ratio: float = 1.5, grow_px: int = 1
) -> np.ndarray:
    """Mask bits SATURATED and BLEED of a trimmed frame in raw ADU.

    Pixels at or above their amplifier's `saturation_adu`, and `grow_px` around them (charge has leaked there already),
    are SATURATED. In each connected group, what reaches further along the column than `trail_ratio` times half the
    group's width from its widest row is a bleed trail: BLEED too, with `grow_px` more at its ends.

    Parameters
    ----------
    raw_adu : (ny, nx) float32
    amplifiers : sequence of Amplifier
    trail_ratio : float
    grow_px : int

    Returns
    -------
    (ny, nx) int16
    """
    full = np.zeros(raw_adu.shape, bool)
    for amp in amplifiers:
        x0, x1, y0, y1 = amp.target
        full[y0:y1, x0:x1] = raw_adu[y0:y1, x0:x1] >= amp.saturation_adu
    mask = np.zeros(raw_adu.shape, np.int16)
    rows, columns = np.nonzero(full)
    if rows.size:
        _flag_groups(full, rows, columns, float(trail_ratio), int(grow_px), mask)
    return mask


@njit(cache=True, nogil=True)
def _flag_groups(full, rows, columns, trail_ratio, grow_px, mask):
    """Flag each connected group (8 neighbours) of `full`, which is emptied on the way."""
    for start in range(rows.size):
        if full[rows[start], columns[start]]:
            y, x = _take_group(full, rows[start], columns[start])
            _flag_group(y, x, trail_ratio, grow_px, mask)


@njit(cache=True, nogil=True)
def _take_group(full, y0, x0):
    """Rows and columns of the pixels connected with one; they are taken out of `full`."""
    ny, nx = full.shape
    ys, xs = [y0], [x0]
    full[y0, x0] = False
    done = 0
    while done < len(ys):
        y, x = ys[done], xs[done]
        done += 1
        for j in range(max(0, y - 1), min(ny, y + 2)):
            for i in range(max(0, x - 1), min(nx, x + 2)):
                if full[j, i]:
                    full[j, i] = False
                    ys.append(j)
                    xs.append(i)
    return np.array(ys), np.array(xs)


@njit(cache=True, nogil=True)
def _flag_group(y, x, trail_ratio, grow_px, mask):
    """Bits of one group: what lies further from its widest rows than a round core would reach is a trail."""
    ny, nx = mask.shape
    first = y.min()
    widths = np.zeros(y.max() - first + 1, np.int64)
    for k in range(y.size):
        widths[y[k] - first] += 1
    widest = widths.max()
    core, n = 0.0, 0
    for row in range(widths.size):
        if widths[row] == widest:
            core += row
            n += 1
    core = first + core / n
    reach = trail_ratio * max(widest / 2.0, 1.0) + 1.0
    for k in range(y.size):
        bits = _SATURATED | _BLEED if abs(y[k] - core) > reach else _SATURATED
        for j in range(max(0, y[k] - grow_px), min(ny, y[k] + grow_px + 1)):
            for i in range(max(0, x[k] - grow_px), min(nx, x[k] + grow_px + 1)):
                mask[j, i] |= bits
