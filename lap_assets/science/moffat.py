"""The round Moffat profile: what stands for a PSF where none, or a little only, is known of it.

Here: the profile and its pictures. Fitting one to stars is `measured_psf.py`'s (differences) and `star_shapes.py`'s
(seeing); PSFs measured on stars are `psf.py`'s and `psf_grid.py`'s.
"""

from dataclasses import dataclass

import numpy as np

_FINE = 5  # points per pixel and axis over which `evaluate` averages


def stamp_size(fwhm_px: float) -> int:
    """Odd number of pixels that holds a PSF and its wings: 4 FWHM to each side, at least 25 pixels."""
    return max(25, 2 * int(np.ceil(4.0 * fwhm_px)) + 1)


@dataclass(frozen=True)
class MoffatPsf:
    """Circular Moffat profile (1969, A&A 3, 455), the same everywhere.

    Attributes
    ----------
    fwhm_px, beta : float
    n_stars : int
        0 where none could be measured and the width is taken from elsewhere.
    """

    fwhm_px: float
    beta: float = 3.5
    n_stars: int = 0

    def evaluate(self, x: float = 0.0, y: float = 0.0) -> np.ndarray:
        """(s, s) float64 stamp, sum 1, centred on its middle pixel, s = `stamp_size`; pixels are averages."""
        size = stamp_size(self.fwhm_px)
        fine = (np.arange(size * _FINE) - (size * _FINE - 1) / 2.0) / _FINE
        profile = (1.0 + (fine[:, None] ** 2 + fine[None, :] ** 2) / self._alpha2) ** -self.beta
        stamp = profile.reshape(size, _FINE, size, _FINE).mean(axis=(1, 3))
        return stamp / stamp.sum()

    def evaluate_many(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The same stamp n times, (n, s, s)."""
        return np.repeat(self.evaluate()[None], len(x), axis=0)

    @property
    def _alpha2(self) -> float:
        return (0.5 * self.fwhm_px) ** 2 / (2.0 ** (1.0 / self.beta) - 1.0)
