"""The interpolation kernels of the resampling, as tables over sub-pixel phases, and what each does to white noise.

Here: numbers only. Applying them to pixels is `warp.py`'s.
"""

from functools import cache

import numpy as np

from lap_assets.errors import BadInput

PHASES = 4096  # sub-pixel phases of a table: position rounded to ≤ 1.3e-4 px
TAPS = 6
ROW = 8  # entries of a row of a table: taps −2…3 about the pixel below, two zeros to pad
KERNELS = ("lanczos3", "spline", "bilinear", "nearest")


@cache
def kernel_table(kernel: str = "lanczos3") -> np.ndarray:
    """Weights of the taps at each phase, (PHASES + 1, ROW) float32, Σw = 1.

    `lanczos3`: Lanczos-3 with its moments put right: Σw dᵏ = 0 for k = 1, 2, 3 at every phase (d: distance of the tap),
    by adding the window sinc(d/3) times a cubic, at most 0.01 anywhere. Bare Lanczos-3 makes a flat sky ripple by 1 %
    and, normalised, still moves stars by 8 mpx per axis and their fluxes by 1.5e-4; this leaves 0.6 mpx and 6e-6 (FWHM
    3.8 px, turned by 3°).

    `spline`: cubic convolution with six points (Keys 1981, IEEE Trans. ASSP 29, 1153, eq. 25), of fourth order. Unlike
    the interpolating B-spline it has no recursive filter, so that a bad pixel is felt within three pixels and nowhere
    else.

    `bilinear` smooths, `nearest` moves by up to half a pixel.

    Raises
    ------
    BadInput
        For an unknown name.
    """
    offset = np.arange(PHASES + 1)[:, None] / PHASES - np.arange(-2, 4)[None, :]
    shapes = {"lanczos3": _lanczos3, "spline": _keys6, "bilinear": _triangle, "nearest": _box}
    if kernel not in shapes:
        raise BadInput(f"unknown kernel {kernel!r}; there are: {', '.join(KERNELS)}")
    table = np.zeros((PHASES + 1, ROW), np.float32)
    table[:, :TAPS] = shapes[kernel](offset)
    return table


def _lanczos3(offset: np.ndarray) -> np.ndarray:
    window = np.sinc(offset / 3.0)
    kernel = np.sinc(offset) * window
    powers = offset[:, :, None] ** np.arange(4)
    missing = np.array([1.0, 0.0, 0.0, 0.0]) - np.einsum("nk,nkp->np", kernel, powers)
    gram = np.einsum("nk,nkp,nkq->npq", window, powers, powers)
    cubic = np.linalg.solve(gram, missing[:, :, None])[:, :, 0]
    return kernel + window * np.einsum("nkp,np->nk", powers, cubic)


def _keys6(offset: np.ndarray) -> np.ndarray:
    s = np.abs(offset)
    inner = (4.0 / 3.0 * s - 7.0 / 3.0) * s**2 + 1.0
    middle = ((-7.0 / 12.0 * s + 3.0) * s - 59.0 / 12.0) * s + 2.5
    outer = ((s / 12.0 - 2.0 / 3.0) * s + 1.75) * s - 1.5
    return np.where(s < 1.0, inner, np.where(s < 2.0, middle, np.where(s < 3.0, outer, 0.0)))


def _triangle(offset: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(offset), 0.0)


def _box(offset: np.ndarray) -> np.ndarray:
    phase = offset[:, 2:3]
    return np.where(np.arange(TAPS) == np.where(phase < 0.5, 2, 3), 1.0, 0.0)


@cache
def kernel_power(kernel: str = "lanczos3") -> np.ndarray:
    """(PHASES + 1,) float64: Σw² along one axis at each phase, the part of white noise's variance that is kept."""
    return np.sum(kernel_table(kernel).astype(np.float64) ** 2, axis=1)


@cache
def noise_correlation(kernel: str = "lanczos3") -> np.ndarray:
    """(11,) correlation of resampled white noise at lags −5…5 px along one axis, averaged over phases."""
    weights = kernel_table(kernel)[:-1, :TAPS].astype(np.float64)
    lags = [np.mean(np.sum(weights[:, lag:] * weights[:, : TAPS - lag], axis=1)) for lag in range(TAPS)]
    return np.array(lags[:0:-1] + lags) / lags[0]
