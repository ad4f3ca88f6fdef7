"""The sky left on a warp, in coarse blocks: medians of a sparse sample of the good pixels.

Cheap figures for telling the levels of warps apart (`stack_levels.py` makes use of them); the sky of a chip, which is
taken off before, is `background.py`'s.
"""

import numpy as np
from numba import njit

from lap_assets.model.image import UNUSABLE

BLOCK_PX = 64
_STRIDE = 4  # px between the pixels looked at
_BAD = int(UNUSABLE)


def measure_levels(sci: np.ndarray, mask: np.ndarray, block_px: int = BLOCK_PX) -> tuple[np.ndarray, np.ndarray]:
    """Median level and number of good pixels looked at in blocks, (my, mx) float32 each; 0 where none is good.

    Parameters
    ----------
    sci, mask : (ny, nx) float32, int16
    block_px : int
        Blocks begin at the first pixel; the last ones may be smaller.
    """
    return _measure_levels(sci, mask, block_px)


def block_centres(shape: tuple[int, int], block_px: int = BLOCK_PX) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (x, y) of the middles of the blocks of an image (ny, nx), (my, mx) float64 each."""
    y, x = (np.arange(-(-n // block_px)) * float(block_px) + (block_px - 1) / 2.0 for n in shape)
    return tuple(np.meshgrid(x, y))


@njit(cache=True, nogil=True)
def _measure_levels(sci, mask, block):
    ny, nx = sci.shape
    my, mx = -(-ny // block), -(-nx // block)
    level, count = np.zeros((my, mx), np.float32), np.zeros((my, mx), np.float32)
    side = -(-block // _STRIDE)
    values, taken = np.empty((mx, side * side), np.float32), np.zeros(mx, np.int64)
    for j in range(my):
        taken[:] = 0
        # row by row over all blocks: the memory is read in order
        for y in range(j * block, min((j + 1) * block, ny), _STRIDE):
            for x in range(0, nx, _STRIDE):
                if mask[y, x] & _BAD == 0:
                    i = x // block
                    values[i, taken[i]] = sci[y, x]
                    taken[i] += 1
        for i in range(mx):
            n = taken[i]
            if n:
                level[j, i], count[j, i] = np.median(values[i, :n]), n
    return level, count
