"""Dark current: what the detector collects without light, proportional to the exposure time, and its removal.

Master darks are built in `pipeline/calibrations.py`; their hot pixels are `science/defects.py`'s.
"""

import numpy as np

from lap_assets.errors import UnprocessableData


def subtract_dark(
    image: np.ndarray, variance: np.ndarray, dark: np.ndarray, dark_variance: np.ndarray, exptime_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Image minus the dark scaled to the exposure time, and the variance with the dark's own noise added.

    The shot noise of the collected dark current is in `variance` already, which was taken from the counts.

    Parameters
    ----------
    image, variance : (ny, nx) float32
        Electrons, electrons².
    dark, dark_variance : (ny, nx) float32
        Electrons per second and its square.
    exptime_s : float

    Returns
    -------
    image, variance : (ny, nx) float32

    Raises
    ------
    UnprocessableData
        The exposure time is not a number of seconds >= 0.
    """
    if not (np.isfinite(exptime_s) and exptime_s >= 0):
        raise UnprocessableData(f"exposure time {exptime_s} s: the dark cannot be scaled; correct it and ingest again")
    time = np.float32(exptime_s)
    collected, noise = time * dark, time**2 * dark_variance
    return np.subtract(image, collected, out=collected), np.add(variance, noise, out=noise)
