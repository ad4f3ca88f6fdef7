"""Images of many small objects at once: the same convolution of profile, PSF and pixel that GalSim draws.

The Fourier transforms of the profiles (Moffat, exponential, Sersic) come from GalSim as tables; what is ours is only
the batching. GalSim's own drawImage takes 3.5 to 4.7 ms per object here, these stamps 0.1 to 0.3 ms, and the demo has
some 180,000 of them. A test holds the two equal.
"""

from dataclasses import dataclass
from functools import lru_cache

import galsim
import numpy as np
import scipy.fft

_TABLE_STEPS = 6000
_OVERSAMPLING = 2  # of the pixel: a Moffat of 2 px FWHM has no power beyond (1e-6)


@dataclass(frozen=True)
class Table:
    """Fourier amplitude of a circular profile of unit flux and size at |k| = index / inverse_step."""

    inverse_step: float
    values: np.ndarray
    slopes: np.ndarray

    def look_up(self, k: np.ndarray) -> np.ndarray:
        """Amplitudes at |k|, linearly interpolated; the last value beyond the table."""
        position = np.minimum(k * self.inverse_step, _TABLE_STEPS - 1.001)
        index = position.astype(np.int32)
        return self.values[index] + (position - index) * self.slopes[index]


@lru_cache(maxsize=64)
def tabulate_profile(kind: str, parameter: float = 0.0) -> Table:
    """Table of a profile: `moffat` (parameter beta, unit FWHM) or `sersic` (parameter index, unit half-light radius)."""
    if kind == "moffat":
        profile, k_max = galsim.Moffat(beta=parameter, fwhm=1.0), 40.0
    else:
        profile = galsim.Exponential(half_light_radius=1.0) if parameter == 1.0 else galsim.Sersic(parameter, 1.0)
        k_max = 120.0
    step = k_max / _TABLE_STEPS
    values = np.array([profile.kValue(step * i, 0.0).real for i in range(_TABLE_STEPS)])
    return Table(1.0 / step, values, np.append(np.diff(values), 0.0))


def draw_stamps(
    size: int, dx: np.ndarray, dy: np.ndarray, flux: np.ndarray, psf: Table, psf_maps: np.ndarray,
    profile: Table | None = None, profile_maps: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Draw objects on square stamps, integrated over pixels.

    Parameters
    ----------
    size : int
        Even width of the stamps; what spills over one side comes back on the other, so no flux is lost.
    dx, dy : (n,) float
        Positions relative to pixel (size/2, size/2), px.
    flux : (n,) float
    psf, profile : Table
        Profiles of unit size; `profile` None for point sources.
    psf_maps, profile_maps : (n, 2, 2) float
        Linear maps from the unit profile to pixels.

    Returns
    -------
    (n, size, size) float array
    """
    fine = _OVERSAMPLING * size
    kx = 2.0 * np.pi * scipy.fft.rfftfreq(fine, 1.0 / _OVERSAMPLING)
    ky = 2.0 * np.pi * scipy.fft.fftfreq(fine, 1.0 / _OVERSAMPLING)
    amplitude = psf.look_up(_stretched_k(kx, ky, psf_maps))
    if profile is not None and profile_maps is not None:
        amplitude *= profile.look_up(_stretched_k(kx, ky, profile_maps))
    phase_x = np.sinc(kx / (2 * np.pi)) * np.exp(-1j * kx * (np.asarray(dx)[:, None] + size // 2))
    phase_y = np.sinc(ky / (2 * np.pi)) * np.exp(-1j * ky * (np.asarray(dy)[:, None] + size // 2))
    waves = amplitude * phase_x[:, None, :]
    waves *= (phase_y * np.asarray(flux)[:, None])[:, :, None]
    # sampling once per pixel folds the frequencies beyond Nyquist back
    rows = scipy.fft.ifft(waves[:, :size] + waves[:, size:], axis=1)
    half = size // 2 + 1
    folded = rows[:, :, :half] + np.conj(rows[:, :, size : size - half : -1])
    return scipy.fft.irfft(folded, n=size, axis=2)


def _stretched_k(kx: np.ndarray, ky: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """(n, nky, nkx) |transpose(map) k|: where a mapped profile's transform is looked up."""
    xx = maps[:, 0, 0] ** 2 + maps[:, 0, 1] ** 2
    xy = maps[:, 0, 0] * maps[:, 1, 0] + maps[:, 0, 1] * maps[:, 1, 1]
    yy = maps[:, 1, 0] ** 2 + maps[:, 1, 1] ** 2
    squared = (2.0 * xy[:, None] * ky)[:, :, None] * kx
    squared += (xx[:, None] * kx**2)[:, None, :]
    squared += (yy[:, None] * ky**2)[:, :, None]
    return np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared)
