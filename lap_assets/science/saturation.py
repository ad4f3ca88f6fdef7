"""Saturation: pixels at full well or at the end of the converter, and the charge that spilled along their columns.

Judged on raw counts, before anything is subtracted. Non-linearity below saturation does not belong here.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_dilation, find_objects, label

from lap_assets.model.camera import Amplifier
from lap_assets.model.image import Mask

_ALL_AROUND = np.ones((3, 3), bool)


def flag_saturation(
    raw_adu: np.ndarray, amplifiers: Sequence[Amplifier], trail_ratio: float = 1.5, grow_px: int = 1
) -> np.ndarray:
    """Mask bits SATURATED and BLEED of a trimmed frame in raw ADU.

    Pixels at or above their amplifier's `saturation_adu`, and `grow_px` around them (charge has leaked there already),
    are SATURATED. In each connected group, what reaches further along the column than `trail_ratio` times half the
    group's width from its brightest row is a bleed trail: BLEED too, with `grow_px` more at its ends.

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
    if not full.any():
        return mask
    groups, _ = label(full, structure=_ALL_AROUND)
    trails = np.zeros_like(full)
    for number, box in enumerate(find_objects(groups), start=1):
        trails[box] |= _find_trail(groups[box] == number, trail_ratio)
    if grow_px > 0:
        full = binary_dilation(full, _ALL_AROUND, iterations=grow_px)
        if trails.any():
            trails = binary_dilation(trails, _ALL_AROUND, iterations=grow_px)
    mask[full] |= int(Mask.SATURATED)
    mask[trails] |= int(Mask.BLEED) | int(Mask.SATURATED)
    return mask


def _find_trail(group: np.ndarray, trail_ratio: float) -> np.ndarray:
    """Pixels of one saturated group that lie further from its widest row than a round core would reach."""
    widths = group.sum(axis=1)
    widest = widths.max()
    core_row = float(np.mean(np.nonzero(widths == widest)[0]))
    reach = trail_ratio * max(widest / 2.0, 1.0) + 1.0
    far = np.abs(np.arange(len(widths)) - core_row) > reach
    return group & far[:, None]
