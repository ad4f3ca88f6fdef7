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
from numba import njit

_TABLE_STEPS = 6000
_OVERSAMPLING = 2  # of the pixel: a Moffat of 2 px FWHM has no power beyond (1e-6)


@dataclass(frozen=True)
class Table:
    """Fourier amplitude of a circular profile of unit flux and size at |k| = index / inverse_step.

    Between entries it is linear with `slopes`, beyond the last it stays.
    """

    inverse_step: float
    values: np.ndarray
    slopes: np.ndarray


@lru_cache(maxsize=64)
def tabulate_profile(kind: str, parameter: float = 0.0) -> Table:
    """Table of a profile: `moffat` (of index beta, unit FWHM) or `sersic` (of index n, unit half-light radius)."""
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
    amplitude = np.ones((len(dx), fine, len(kx)))
    _multiply_transform(amplitude, kx, ky, psf_maps, psf.inverse_step, psf.values, psf.slopes)
    if profile is not None and profile_maps is not None:
        _multiply_transform(amplitude, kx, ky, profile_maps, profile.inverse_step, profile.values, profile.slopes)
    phase_x = np.sinc(kx / (2 * np.pi)) * np.exp(-1j * kx * (np.asarray(dx)[:, None] + size // 2))
    phase_y = np.sinc(ky / (2 * np.pi)) * np.exp(-1j * ky * (np.asarray(dy)[:, None] + size // 2))
    waves = amplitude * phase_x[:, None, :]
    waves *= (phase_y * np.asarray(flux)[:, None])[:, :, None]
    # sampling once per pixel folds the frequencies beyond Nyquist back
    rows = scipy.fft.ifft(waves[:, :size] + waves[:, size:], axis=1)
    half = size // 2 + 1
    folded = rows[:, :, :half] + np.conj(rows[:, :, size : size - half : -1])
    return scipy.fft.irfft(folded, n=size, axis=2)


@njit(cache=True, nogil=True)
def _multiply_transform(
    amplitude: np.ndarray, kx: np.ndarray, ky: np.ndarray, maps: np.ndarray, inverse_step: float, values: np.ndarray,
    slopes: np.ndarray,
) -> None:  # fmt: skip
    """Multiply (n, nky, nkx) amplitudes by the transform of mapped profiles: the table at |transpose(map) k|."""
    last = len(values) - 1.001
    for n in range(len(amplitude)):
        a, b, c, d = maps[n, 0, 0], maps[n, 0, 1], maps[n, 1, 0], maps[n, 1, 1]
        for j in range(len(ky)):
            for i in range(len(kx)):
                along, across = a * kx[i] + c * ky[j], b * kx[i] + d * ky[j]
                position = min(np.sqrt(along * along + across * across) * inverse_step, last)
                index = int(position)
                amplitude[n, j, i] *= values[index] + (position - index) * slopes[index]
