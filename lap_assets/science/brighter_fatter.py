"""Brighter-fatter effect: charge already collected in a pixel pushes later charge to its neighbours; put back here.

The kernel is the camera's; measuring it from the covariances of flats belongs elsewhere.
"""

import numpy as np
from numba import njit
from scipy.fft import irfft2, next_fast_len, rfft2

_BAND_ROWS = 512


def restore_charge(
    electrons: np.ndarray,
    kernel: np.ndarray,
    ignore: np.ndarray | None = None,
    tolerance_e: float = 0.5,
    max_iterations: int = 10,
) -> tuple[np.ndarray, int]:
    """Image with the charge where it would have been collected without repulsion.

    F = F_obs + ½ ∇·(F ∇(K ⊗ F)), solved by iteration (Coulton et al. 2018, AJ 155, 258, eq. 21; Antilogus et al. 2014,
    JINST 9, C03048). The divergence is the difference of fluxes through the four faces of each pixel, and none passes
    the border, so that the sum over the image stays what it was.

    Parameters
    ----------
    electrons : (ny, nx) float32
        Dark and bias removed, not divided by a flat.
    kernel : (k, k) array, k odd
        Per electron; negative in its middle.
    ignore : (ny, nx) bool, optional
        Pixels whose values mean nothing (defects): they count as sky, and exchange no charge.
    tolerance_e : float
        The iteration ends when no pixel changes by more.
    max_iterations : int

    Returns
    -------
    electrons : (ny, nx) float32
    iterations : int
        As many as were made; `max_iterations` if it did not settle.
    """
    image = np.ascontiguousarray(electrons, np.float32)
    blocked = np.zeros(image.shape, bool) if ignore is None else np.ascontiguousarray(ignore, bool)
    sky = np.float32(np.median(image[::4, ::4]))
    half = np.asarray(kernel).shape[0] // 2
    shape, transform = _prepare_kernel(np.asarray(kernel, np.float64), image.shape)
    current = np.where(blocked, sky, image)
    restored = np.empty_like(image)
    n, change = 0, np.inf
    while change > tolerance_e and n < max_iterations:
        n += 1
        field = _convolve_bands(current, sky, transform, shape, half)
        change = _move_charge(image, current, field, blocked, restored)
        current, restored = restored, current
    return np.where(blocked, image, current), n


def _prepare_kernel(kernel: np.ndarray, shape: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
    """Padded shape of a band and Fourier transform (complex64) of a kernel centred on pixel (0, 0)."""
    half = kernel.shape[0] // 2
    rows = min(_BAND_ROWS, shape[0]) + 2 * half
    padded = (next_fast_len(rows, real=True), next_fast_len(shape[1] + half, real=True))
    plane = np.zeros(padded, np.float32)
    plane[: kernel.shape[0], : kernel.shape[1]] = kernel
    return padded, rfft2(np.roll(plane, (-half, -half), axis=(0, 1)), workers=1)


def _convolve_bands(
    image: np.ndarray, sky: np.float32, transform: np.ndarray, shape: tuple[int, int], half: int
) -> np.ndarray:
    """Image less sky convolved with the kernel, band by band: whole planes of complex numbers would cost 100 MiB.

    A constant has no gradient: without the sky the image ends at 0, where its padding begins.
    """
    ny, nx = image.shape
    field = np.empty_like(image)
    for y0 in range(0, ny, _BAND_ROWS):
        y1 = min(y0 + _BAND_ROWS, ny)
        low, high = max(y0 - half, 0), min(y1 + half, ny)
        band = np.zeros(shape, np.float32)
        first = low - y0 + half
        band[first : first + high - low, :nx] = image[low:high] - sky
        spectrum = rfft2(band, workers=1)
        spectrum *= transform
        field[y0:y1] = irfft2(spectrum, shape, workers=1)[half : half + y1 - y0, :nx]
    return field


@njit(cache=True, nogil=True)
def _move_charge(observed, current, field, blocked, restored):
    """`restored` = observed + ½ ∇·(current ∇ field); returns by how much it differs from `current` at most."""
    ny, nx = observed.shape
    largest = 0.0
    quarter = np.float32(0.25)
    for y in range(ny):
        for x in range(nx):
            value = observed[y, x]
            if blocked[y, x]:
                restored[y, x] = current[y, x]
                continue
            flux = np.float32(0.0)
            if x > 0 and not blocked[y, x - 1]:
                flux -= (current[y, x] + current[y, x - 1]) * (field[y, x] - field[y, x - 1])
            if x < nx - 1 and not blocked[y, x + 1]:
                flux += (current[y, x + 1] + current[y, x]) * (field[y, x + 1] - field[y, x])
            if y > 0 and not blocked[y - 1, x]:
                flux -= (current[y, x] + current[y - 1, x]) * (field[y, x] - field[y - 1, x])
            if y < ny - 1 and not blocked[y + 1, x]:
                flux += (current[y + 1, x] + current[y, x]) * (field[y + 1, x] - field[y, x])
            restored[y, x] = value + quarter * flux
            largest = max(largest, abs(restored[y, x] - current[y, x]))
    return largest
