"""Calibrated images of other pipelines: their inverse variance and quality codes as our variance and mask.

File names and headers are the caller's; nothing is calibrated here.
"""

from collections.abc import Mapping

import numpy as np

from lap_assets.model.image import Mask


def translate_mask(codes: np.ndarray, table: Mapping[int, tuple[str, ...]], is_bits: bool) -> np.ndarray:
    """Mask bits (ny, nx) int16 for a plane of quality codes.

    Parameters
    ----------
    codes : (ny, nx) integer array
    table : mapping of code (or bit value) to names of `Mask` bits
    is_bits : bool
        The plane holds bits rather than one code per pixel. A code that is not in the table becomes SUSPECT.
    """
    mask = np.zeros(codes.shape, np.int16)
    known = codes == 0
    for code, names in sorted(table.items()):
        here = (codes & code) != 0 if is_bits else codes == code
        mask[here] |= int(np.bitwise_or.reduce([int(Mask[name]) for name in names]))
        known |= here
    mask[~known] |= int(Mask.SUSPECT)
    return mask


def complete_variance(
    sci: np.ndarray, inverse_variance: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finite planes from an image and its inverse variance.

    Flagged pixels whose weight was set to zero (saturated, cosmic rays) get the median variance, since their flags
    already say what they are; without a flag, weight zero means there is no data.

    Returns
    -------
    sci, mask, var : (ny, nx) float32, int16, float32
        0, NO_DATA and 0 where there is no data.
    """
    weighted = np.isfinite(inverse_variance) & (inverse_variance > 0)
    typical = float(np.median(1.0 / inverse_variance[weighted])) if weighted.any() else 0.0
    var = np.where(weighted, 1.0 / np.where(weighted, inverse_variance, 1.0), typical).astype(np.float32)
    empty = ~np.isfinite(sci) | (~weighted & (mask == 0)) | (typical == 0.0)
    empty |= (mask & int(Mask.NO_DATA)) != 0
    mask = mask | np.where(empty, np.int16(Mask.NO_DATA), np.int16(0))
    return np.where(empty, 0.0, sci).astype(np.float32), mask, np.where(empty, 0.0, var).astype(np.float32)
