"""The sky of a difference: which pixels show it, its level as a polynomial, its scatter against the variance.

For both methods of subtraction, on every third pixel and row: neighbours share their noise. Not here: the sky of an
exposure (`background`, `focal_plane_sky`).
"""

import numpy as np
from numba import njit

from lap_assets.model.image import UNUSABLE, MaskedImage
from lap_assets.science.matching_kernel import count_terms, polynomial_terms, scale_positions

_UNUSABLE = int(UNUSABLE)
_STEP = 3  # px
_BLOCK = 64  # px, of a median
THIN = np.s_[::_STEP, ::_STEP]


def choose_sky(image: MaskedImage, brightness: MaskedImage) -> np.ndarray:
    """(ny / 3, nx / 3) bool: which of the thinned pixels of `image` are usable and no source in `brightness`."""
    usable = _find_usable(image.mask, image.var, brightness.var)
    values = brightness.sci[THIN]
    some = values[usable]
    level = np.median(some[:: max(some.size // 100_000, 1)]) if some.size else np.float32(0)
    _leave_sky(values, brightness.var, level, usable)
    return usable


def fit_sky(values: np.ndarray, sky: np.ndarray, shape: tuple[int, int], order: int) -> np.ndarray:
    """Polynomial through the medians of blocks of sky pixels; its coefficients, fewer where there are few blocks.

    Parameters
    ----------
    values : (ny / 3, nx / 3) float32
        Thinned by `THIN`.
    sky : (ny / 3, nx / 3) bool
    shape : (ny, nx)
        Of the whole image.
    """
    ny, nx = sky.shape
    block = min(_BLOCK // _STEP, ny, nx)
    rows, columns = ny // block, nx // block
    # what is no sky goes to the end of the sorted block
    ranked = np.where(sky, values, np.float32(np.inf))[: rows * block, : columns * block]
    ranked = ranked.reshape(rows, block, columns, block).swapaxes(1, 2).reshape(rows * columns, block * block)
    ranked = np.sort(ranked, axis=1)
    count = np.isfinite(ranked).sum(axis=1)
    enough = np.flatnonzero(count >= max(0.2 * block**2, 1))
    if enough.size == 0:
        return np.zeros(1)
    half = count[enough] // 2
    level = 0.5 * (ranked[enough, half] + ranked[enough, half - (count[enough] % 2 == 0)]).astype(float)
    row, column = np.divmod(enough, columns)
    x, y = ((at * block + 0.5 * (block - 1)) * _STEP for at in (column, row))
    while 3 * count_terms(order) > enough.size and order > 0:
        order -= 1
    return np.linalg.lstsq(polynomial_terms(*scale_positions(x, y, shape), order).T, level, rcond=None)[0]


def subtract_sky(sci: np.ndarray, var: np.ndarray, coefficients: np.ndarray) -> None:
    """Take a polynomial (of `fit_sky`) off in place, where there is data."""
    order = order_of(coefficients)
    _subtract_surface(sci, var, terms_along_row(sci.shape, order), coefficients, order)


def order_of(coefficients: np.ndarray) -> int:
    """Degree of a polynomial with so many coefficients."""
    order = 0
    while count_terms(order) < len(coefficients):
        order += 1
    return order


def terms_along_row(shape: tuple[int, int], order: int) -> np.ndarray:
    """(n_terms, nx) float32 polynomial terms of the columns; what they owe to y is multiplied in row by row."""
    x, _ = scale_positions(np.arange(shape[1], dtype=float), 0.0, shape)
    return polynomial_terms(x, np.ones_like(x), order).astype(np.float32)


def measure_chi(image: MaskedImage, sky: np.ndarray) -> float:
    """Half the central 68 % of sky / √VAR; NaN where there is no sky."""
    # 0.3 % of the noise needs no more
    places = np.flatnonzero(sky)
    row, column = np.divmod(places[:: max(places.size // 100_000, 1)], sky.shape[1])
    values, variance = (plane[_STEP * row, _STEP * column] for plane in (image.sci, image.var))
    known = variance > 0
    chi = values[known] / np.sqrt(variance[known])
    if not chi.size:
        return float("nan")
    low, high = np.percentile(chi, [15.865, 84.135])
    return float(0.5 * (high - low))


@njit(cache=True, nogil=True)
def _find_usable(mask, var, other_var):
    """(ny / 3, nx / 3) bool: thinned pixels without a flag and with a variance in both images."""
    ny, nx = mask.shape
    usable = np.empty(((ny + _STEP - 1) // _STEP, (nx + _STEP - 1) // _STEP), np.bool_)
    for row in range(usable.shape[0]):
        y, out = row * _STEP, usable[row]
        flags, one, two = mask[y], var[y], other_var[y]
        for k in range(out.size):
            x = k * _STEP
            out[k] = (flags[x] & _UNUSABLE == 0) & (one[x] > 0) & (two[x] > 0)
    return usable


@njit(cache=True, nogil=True)
def _leave_sky(values, var, level, usable):
    """Take out of `usable`, in place, thinned pixels more than three sigma over the level."""
    for row in range(usable.shape[0]):
        line, noise, out = values[row], var[row * _STEP], usable[row]
        for k in range(out.size):
            over = line[k] - level
            out[k] &= (over < 0) | (over * over < np.float32(9) * noise[k * _STEP])


@njit(cache=True, nogil=True)
def _subtract_surface(sci, var, across, coefficients, order):
    ny, nx = sci.shape
    surface = np.empty(nx, np.float32)
    for y in range(ny):
        v = (y - 0.5 * (ny - 1)) / (0.5 * ny)
        surface[:] = 0
        at = 0
        for total in range(order + 1):
            for j in range(total + 1):
                factor, terms = np.float32(coefficients[at] * v**j), across[at]
                for x in range(nx):
                    surface[x] += factor * terms[x]
                at += 1
        line, variance = sci[y], var[y]
        for x in range(nx):
            line[x] -= surface[x] if variance[x] > 0 else np.float32(0)
