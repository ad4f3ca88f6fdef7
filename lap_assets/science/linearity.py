"""Linearity: counts that fall behind the light at high levels, made proportional to it again.

A polynomial per amplifier, in ADU above overscan, from the camera file; measuring its coefficients belongs elsewhere.
Pixels at the end of the converter are `science/saturation.py`'s.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit

from lap_assets.model.camera import Amplifier
from lap_assets.model.image import Mask


def linearize(image: np.ndarray, amplifiers: Sequence[Amplifier]) -> tuple[np.ndarray, np.ndarray]:
    """Counts proportional to light, and where the correction is not trusted.

    true = m · (1 + c2·m + c3·m² + …) with the amplifier's `linearity` (c2, c3, …). Above `linearity_max_adu` pixels
    are SUSPECT, and the factor is that at the limit: a polynomial says nothing beyond what it was fitted to.

    Parameters
    ----------
    image : (ny, nx) float32
        ADU above overscan.
    amplifiers : sequence of Amplifier
        Those without coefficients are left as they are.

    Returns
    -------
    image : (ny, nx) float32
    flags : (ny, nx) int16
        SUSPECT or 0.
    """
    result = image.astype(np.float32)
    flags = np.zeros(image.shape, np.int16)
    for amp in amplifiers:
        if not amp.linearity and amp.linearity_max_adu is None:
            continue
        limit = np.inf if amp.linearity_max_adu is None else amp.linearity_max_adu
        x0, x1, y0, y1 = amp.target
        coefficients = np.array(amp.linearity, np.float64)
        _apply_polynomial(result[y0:y1, x0:x1], coefficients, float(limit), int(Mask.SUSPECT), flags[y0:y1, x0:x1])
    return result, flags


@njit(cache=True, nogil=True)
def _apply_polynomial(image, coefficients, limit, bit, flags):
    ny, nx = image.shape
    for y in range(ny):
        for x in range(nx):
            measured = image[y, x]
            level = min(measured, limit)
            factor = 0.0
            for k in range(coefficients.size - 1, -1, -1):
                factor = (factor + coefficients[k]) * level
            image[y, x] = measured * (1.0 + factor)
            if measured > limit:
                flags[y, x] = bit
