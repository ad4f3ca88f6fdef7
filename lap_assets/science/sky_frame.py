"""Sky frame: the illumination correction that flats of a screen leave to do, divided out.

It is built from many object frames with their sources masked, relative to 1. The sky of one exposure is measured and
removed later (`science/background.py`).
"""

import numpy as np

from lap_assets.science.flat import divide_response


def correct_illumination(
    image: np.ndarray, variance: np.ndarray, sky: np.ndarray, sky_variance: np.ndarray, in_place: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and variance divided by the sky frame, and (bool) where that is too dark to divide by.

    All (ny, nx) float32; the sky frame's own noise is added to the variance. See `science.flat.divide_response`.
    """
    return divide_response(image, variance, sky, sky_variance, in_place)
