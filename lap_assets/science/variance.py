"""Variance of a calibrated chip from photon statistics and read noise.

Empirical corrections for correlated noise after resampling belong to the warp.
"""

import numpy as np
from scipy.ndimage import zoom

_SOURCE_SIGMA = 3.0


def estimate_variance(electrons: np.ndarray, read_noise: np.ndarray, block_px: int = 64) -> np.ndarray:
    """Variance in electrons² of an image in electrons, sky included, before the flat is divided out.

    Where a pixel stands within 3 sigma of the local sky, the sky sets its variance, not its own count: a variance that
    follows the noise would weight low pixels up and bias every weighted mean low (by sigma²/sky, about 1 e⁻).

    Parameters
    ----------
    electrons, read_noise : (ny, nx) float32
    block_px : int
        Size of the blocks whose medians are the local sky.

    Returns
    -------
    (ny, nx) float32
    """
    sky = _estimate_sky(electrons, block_px)
    quiet = sky + read_noise**2
    own = np.maximum(electrons, 0.0) + read_noise**2
    return np.where(electrons - sky > _SOURCE_SIGMA * np.sqrt(quiet), own, quiet).astype(np.float32)


def _estimate_sky(electrons: np.ndarray, block_px: int) -> np.ndarray:
    ny, nx = electrons.shape
    my, mx = max(1, ny // block_px), max(1, nx // block_px)
    rows, columns = np.linspace(0, ny, my + 1).astype(int), np.linspace(0, nx, mx + 1).astype(int)
    medians = np.array(
        [
            [np.median(electrons[rows[j] : rows[j + 1], columns[i] : columns[i + 1]]) for i in range(mx)]
            for j in range(my)
        ]
    )
    smooth = zoom(np.maximum(medians, 0.0), (ny / my, nx / mx), order=1, mode="nearest", grid_mode=True)
    return np.maximum(smooth[:ny, :nx], 0.0).astype(np.float32)
