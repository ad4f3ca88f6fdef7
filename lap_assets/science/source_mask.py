"""Leaving sources out of object frames that are to show sky alone: averages over small blocks, and what stands out.

For building sky frames and fringe patterns, where a crude, generous mask is wanted at once; measuring sources is
`science/detection.py`'s.
"""

import numpy as np
from numba import njit
from scipy.ndimage import binary_dilation, median_filter, uniform_filter

from lap_assets.science.background import evaluate_background

BIN_PX = 4
_MESH_BINS = 32
_MIN_CELLS = 3
_ROUNDS = 3


@njit(cache=True, nogil=True)
def bin_rows(image: np.ndarray, size: int = BIN_PX) -> np.ndarray:
    """Means of the finite pixels of blocks of size × size; NaN where fewer than half are. What is left over goes.

    Parameters
    ----------
    image : (ny, nx) float32
    size : int

    Returns
    -------
    (ny // size, nx // size) float32
    """
    my, mx = image.shape[0] // size, image.shape[1] // size
    result = np.empty((my, mx), np.float32)
    for j in range(my):
        for i in range(mx):
            total, number = 0.0, 0
            for y in range(j * size, (j + 1) * size):
                for x in range(i * size, (i + 1) * size):
                    v = image[y, x]
                    if np.isfinite(v):
                        total += v
                        number += 1
            result[j, i] = total / number if 2 * number >= size * size else np.nan
    return result


def find_sources(binned: np.ndarray, sigma: float, grow_px: float) -> np.ndarray:
    """Blocks that hold more than sky, and `grow_px` around them.

    Means of 3 × 3 blocks are compared with the local sky (medians over 128 pixels) at `sigma` times their own scatter
    over the frame, which holds the amplitude of fringes: these are no sources.

    Parameters
    ----------
    binned : (my, mx) float32
        From `bin_rows`, not finite where there is nothing.
    sigma, grow_px : float

    Returns
    -------
    (my, mx) bool
    """
    empty = ~np.isfinite(binned)
    found = empty.copy()
    for _ in range(_ROUNDS):
        off = np.where(found, 0.0, binned - measure_smooth(binned, ~found, _MESH_BINS)) if not found.all() else 0.0
        if np.isscalar(off):
            return found
        # what was found counts as sky here, so that a star does not spread further in each round
        smooth = uniform_filter(off, 3, mode="nearest")
        spread = 1.4826 * float(np.median(np.abs(smooth[~found])))
        again = found | (smooth > sigma * spread)
        if np.array_equal(again, found):
            break
        found = again
    steps = int(np.ceil(grow_px / BIN_PX))
    reach = np.arange(-steps, steps + 1)
    disk = np.hypot(reach[:, None], reach[None, :]) <= max(grow_px / BIN_PX, 0.5)
    return binary_dilation(found & ~empty, disk) | empty


def measure_smooth(binned: np.ndarray, usable: np.ndarray, mesh_bins: int) -> np.ndarray:
    """The smooth part of a binned frame: medians of cells of about `mesh_bins`, at least three a side, and a spline.

    Cells with less than a fifth of their blocks usable take the median of all others.

    Parameters
    ----------
    binned : (my, mx) float32
    usable : (my, mx) bool
    mesh_bins : int

    Returns
    -------
    (my, mx) float32
    """
    my, mx = binned.shape
    ky, kx = (min(max(_MIN_CELLS, round(n / mesh_bins)), n) for n in (my, mx))
    rows, columns = (np.round(np.linspace(0, n, k + 1)).astype(int) for n, k in ((my, ky), (mx, kx)))
    mesh = np.full((ky, kx), np.nan)
    for j in range(ky):
        for i in range(kx):
            cell = (slice(rows[j], rows[j + 1]), slice(columns[i], columns[i + 1]))
            good = usable[cell]
            if good.mean() >= 0.2:
                mesh[j, i] = np.median(binned[cell][good])
    known = np.isfinite(mesh)
    mesh[~known] = np.median(mesh[known]) if known.any() else 0.0
    if min(ky, kx) >= 3:
        mesh = median_filter(np.pad(mesh, 1, mode="reflect", reflect_type="odd"), 3)[1:-1, 1:-1]
    return evaluate_background(mesh, (my, mx))


def spread_blocks(blocks: np.ndarray, y0: int, rows: int, nx: int) -> np.ndarray:
    """Rows y0 to y0 + rows of the full image that `blocks` (my, mx) are averages of; (rows, nx), edges repeated."""
    y = np.minimum(np.arange(y0, y0 + rows) // BIN_PX, blocks.shape[0] - 1)
    x = np.minimum(np.arange(nx) // BIN_PX, blocks.shape[1] - 1)
    return blocks[y[:, None], x[None, :]]
