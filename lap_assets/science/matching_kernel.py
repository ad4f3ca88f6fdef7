"""The kernel that matches one image's PSF to another's: its basis, the stamps it is fitted on, the fit.

Alard & Lupton (1998), Alard (2000). Here: everything up to the coefficients. Not here: applying them, noise and masks
of the difference (`diff`).
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from lap_assets.model.image import UNUSABLE, MaskedImage

_UNUSABLE = int(UNUSABLE)


@dataclass(frozen=True)
class KernelBasis:
    """Gaussians times polynomials on a square of (2·radius + 1)² pixels.

    The first has sum 1, all others sum 0: the kernel's sum is its one coefficient everywhere (Alard 2000, eq. 3).

    Attributes
    ----------
    filters : (n_filters, 2·radius + 1) float64
        One-dimensional factors.
    pairs : (n, 2) int64
        Factors along x and y of each member.
    correction : (n,) float64
        Multiple of the first member that is subtracted.
    norms : (n,) float64
        Divisor of each member, after that.
    """

    filters: np.ndarray
    pairs: np.ndarray
    correction: np.ndarray
    norms: np.ndarray

    @property
    def radius(self) -> int:
        return self.filters.shape[1] // 2

    @property
    def images(self) -> np.ndarray:
        """(n, size, size) members as pictures."""
        raw = self.filters[self.pairs[:, 1]][:, :, None] * self.filters[self.pairs[:, 0]][:, None, :]
        return (raw - self.correction[:, None, None] * raw[0]) / self.norms[:, None, None]


@dataclass(frozen=True)
class KernelLimits:
    """How kernel and background are fitted; lengths in pixels.

    Attributes
    ----------
    kernel_order, background_order : int
        Degrees of their polynomials over the image; lowered where there are few stamps.
    max_stamps : int
    min_stamp_snr : float
        Signal to noise of the peak pixel of a stamp.
    max_bad_weight : float
        Fraction of |kernel| on bad pixels above which an output pixel is masked.
    """

    kernel_order: int = 1
    background_order: int = 1
    max_stamps: int = 100
    min_stamp_snr: float = 20.0
    max_bad_weight: float = 0.1


@dataclass(frozen=True)
class KernelFit:
    coefficients: np.ndarray
    used: np.ndarray
    chi2: np.ndarray
    kernel_order: int
    background_order: int


def make_basis(sigma_px: float, degrees: tuple[int, ...] = (4, 3, 2)) -> KernelBasis:
    """Basis for a kernel of about `sigma_px` (the quadratic difference of the two PSFs' widths).

    Parameters
    ----------
    sigma_px : float
        At least 1.2 px is used: two PSFs of one width still differ in shape.
    degrees : tuple of int
        Highest degree of the polynomial on the Gaussians of 0.6, 1.1 and 2 times that width.
    """
    base = max(float(sigma_px), 1.2)
    widths = base * np.array([0.6, 1.1, 2.0])
    radius = int(np.clip(np.ceil(5.0 * base), 5, 17))
    u = np.arange(-radius, radius + 1.0)
    filters, pairs = [], []
    for width, degree in zip(widths, degrees, strict=True):
        first = len(filters)
        filters += [np.exp(-0.5 * (u / width) ** 2) * (u / width) ** power for power in range(degree + 1)]
        pairs += [(first + i, first + j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    filters, pairs = np.array(filters), np.array(pairs, np.int64)
    filters[: degrees[0] + 1] /= filters[0].sum()
    sums = filters[pairs[:, 0]].sum(axis=1) * filters[pairs[:, 1]].sum(axis=1)
    correction = sums / sums[0]
    correction[0] = 0.0
    norms = np.ones(len(pairs))
    bare = KernelBasis(filters, pairs, correction, norms).images
    norms[0] = sums[0]
    norms[1:] = np.sqrt(np.sum(bare[1:] ** 2, axis=(1, 2)))
    return KernelBasis(filters, pairs, correction, norms)


def choose_stamps(
    sharp: MaskedImage, broad: MaskedImage, half: int, radius: int, limits: KernelLimits
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (x, y) of stamps on bright unsaturated objects, spread evenly over the common area; may be empty.

    Parameters
    ----------
    half : int
        Half-width of a stamp; `radius` more pixels are needed around it in the sharper image.
    """
    common = (sharp.mask & _UNUSABLE == 0) & (broad.mask & _UNUSABLE == 0) & (sharp.var > 0) & (broad.var > 0)
    x, y, flux = _find_peaks(broad.sci, broad.var, sharp.sci, sharp.var, common, half, radius, limits.min_stamp_snr)
    # the brightest of each tile first, then the second brightest, …: even coverage
    tiles = max(int(np.sqrt(limits.max_stamps)), 1)
    ny, nx = broad.shape
    tile = (y * tiles // ny) * tiles + x * tiles // nx
    order = np.lexsort((x, y, -flux))
    rank = np.empty(x.size, np.int64)
    seen = np.zeros(tiles * tiles, np.int64)
    for one in order:
        rank[one] = seen[tile[one]]
        seen[tile[one]] += 1
    chosen = np.lexsort((x, y, -flux, rank))[: limits.max_stamps]
    return x[chosen], y[chosen]


def polynomial_terms(x: np.ndarray, y: np.ndarray, order: int) -> np.ndarray:
    """(n_terms, …) monomials xⁱyʲ with i + j ≤ order, constant first; x and y scaled to about −1…1 by the caller."""
    return np.array([x ** (total - j) * y**j for total in range(order + 1) for j in range(total + 1)])


def count_terms(order: int) -> int:
    return (order + 1) * (order + 2) // 2


def scale_positions(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    ny, nx = shape
    return (x - 0.5 * (nx - 1)) / (0.5 * nx), (y - 0.5 * (ny - 1)) / (0.5 * ny)


def fit_kernel(filled, sharp, broad, x, y, half, basis, limits) -> KernelFit:
    """Weighted least squares for kernel and background on the stamps; stamps that fit badly are left out, four
    rounds.
    """
    bad_sharp = (sharp.mask & _UNUSABLE != 0) | (sharp.var <= 0)
    good = (broad.mask & _UNUSABLE == 0) & (broad.var > 0) & ~dilate_mask(bad_sharp, 1)
    orders = [order for order in range(limits.kernel_order + 1) if 4 * count_terms(order) <= max(x.size, 4)]
    kernel_order = orders[-1]
    background_order = min(limits.background_order, kernel_order if x.size < 12 else limits.background_order)
    models = _convolve_stamps(filled, x, y, half, basis.filters, basis.pairs)
    models -= basis.correction[None, :, None] * models[:, :1]
    models /= basis.norms[None, :, None]
    models = np.concatenate([models, np.ones((x.size, 1, models.shape[2]))], axis=1)
    data = _cut_stamps(broad.sci, x, y, half)
    variance = _cut_stamps(broad.var, x, y, half) + _cut_stamps(sharp.var, x, y, half)
    # 2 % of the flux: no PSF model is better, and the brightest star must not decide alone
    variance = variance + (0.02 * data) ** 2
    inverse = np.where(_cut_stamps(good, x, y, half) > 0, 1.0 / np.where(variance > 0, variance, 1.0), 0.0)
    grams = (models * inverse[:, None, :]) @ models.transpose(0, 2, 1)
    sides = np.einsum("sip,sp->si", models, inverse * data)
    scaled = scale_positions(x.astype(float), y.astype(float), broad.shape)
    spread = _spread_terms(*scaled, models.shape[1] - 1, kernel_order, background_order)
    used = np.ones(x.size, bool)
    dof = np.maximum((inverse > 0).sum(axis=1), 1)
    for _ in range(4):
        coefficients = _solve(grams[used], sides[used], spread[used])
        local = np.einsum("sik,k->si", spread, coefficients)
        residual = data - np.einsum("si,sip->sp", local, models)
        chi2 = np.sum(residual**2 * inverse, axis=1) / dof
        middle = np.median(chi2[used])
        limit = middle + 4.0 * max(1.4826 * np.median(np.abs(chi2[used] - middle)), 0.1 * middle)
        keep = chi2 <= limit
        if np.array_equal(keep, used) or keep.sum() < max(x.size // 3, 1):
            break
        used = keep
    return KernelFit(coefficients, used, chi2, kernel_order, background_order)


def _spread_terms(x, y, n_basis: int, kernel_order: int, background_order: int) -> np.ndarray:
    """(n_stamps, n_basis + 1, n_unknown): how the coefficients at a stamp follow from the unknowns."""
    terms, sky_terms = polynomial_terms(x, y, kernel_order), polynomial_terms(x, y, background_order)
    n_terms = len(terms)
    spread = np.zeros((x.size, n_basis + 1, 1 + (n_basis - 1) * n_terms + len(sky_terms)))
    spread[:, 0, 0] = 1.0
    for member in range(1, n_basis):
        first = 1 + (member - 1) * n_terms
        spread[:, member, first : first + n_terms] = terms.T
    spread[:, n_basis, 1 + (n_basis - 1) * n_terms :] = sky_terms.T
    return spread


def _solve(grams: np.ndarray, sides: np.ndarray, spread: np.ndarray) -> np.ndarray:
    matrix = np.einsum("sik,sil->kl", spread, np.einsum("sij,sjl->sil", grams, spread, optimize=True), optimize=True)
    vector = np.einsum("sik,si->k", spread, sides)
    scale = np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    matrix = matrix / scale[:, None] / scale[None, :]
    # a ridge of 1e-6 keeps near-degenerate Gaussians from cancelling each other with huge coefficients
    matrix[np.diag_indices_from(matrix)] += 1e-6
    return np.linalg.solve(matrix, vector / scale) / scale


@njit(cache=True, nogil=True)
def dilate_mask(bad, reach):
    """(ny, nx) bool: within `reach` px, along both axes, of a bad pixel."""
    ny, nx = bad.shape
    grown = np.zeros((ny, nx), np.bool_)
    for y in range(ny):
        for x in range(nx):
            if bad[y, x]:
                grown[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = True
    return grown


@njit(cache=True, nogil=True)
def _find_peaks(sci, var, other, other_var, common, half, radius, min_snr):
    """Local maxima (5×5) with the core usable in both images and at least 85 % of the stamp."""
    ny, nx = sci.shape
    xs, ys, fluxes = [0][:0], [0][:0], [0.0][:0]
    margin = half + radius
    for y in range(margin, ny - margin):
        for x in range(margin, nx - margin):
            value = sci[y, x]
            if not common[y, x] or value <= 0 or value * value < min_snr * min_snr * var[y, x]:
                continue
            if other[y, x] <= 0 or other[y, x] ** 2 < min_snr * min_snr * other_var[y, x]:
                continue
            peak = True
            for v in range(y - 2, y + 3):
                for u in range(x - 2, x + 3):
                    if not common[v, u] or sci[v, u] > value or (sci[v, u] == value and (v, u) < (y, x)):
                        peak = False
            if not peak:
                continue
            good = 0
            for v in range(y - half, y + half + 1):
                for u in range(x - half, x + half + 1):
                    good += common[v, u]
            if good >= 0.85 * (2 * half + 1) ** 2:
                xs.append(x)
                ys.append(y)
                fluxes.append(value)
    return np.array(xs), np.array(ys), np.array(fluxes)


@njit(cache=True, nogil=True)
def _cut_stamps(image, xs, ys, half):
    size = 2 * half + 1
    stamps = np.empty((xs.size, size * size), np.float64)
    for s in range(xs.size):
        for v in range(size):
            for u in range(size):
                stamps[s, v * size + u] = image[ys[s] - half + v, xs[s] - half + u]
    return stamps


@njit(cache=True, nogil=True)
def _convolve_stamps(image, xs, ys, half, filters, pairs):
    """(n_stamps, n_pairs, pixels) stamps convolved with the separable products of 1-D filters."""
    radius = filters.shape[1] // 2
    size = 2 * half + 1
    tall = size + 2 * radius
    stamps = np.zeros((xs.size, pairs.shape[0], size * size), np.float64)
    across = np.empty((filters.shape[0], tall, size), np.float64)
    for s in range(xs.size):
        top, left = ys[s] - half - radius, xs[s] - half - radius
        across[:] = 0
        for f in range(filters.shape[0]):
            for k in range(2 * radius + 1):
                tap = filters[f, 2 * radius - k]
                for v in range(tall):
                    line = image[top + v]
                    for u in range(size):
                        across[f, v, u] += tap * line[left + u + k]
        for b in range(pairs.shape[0]):
            rows, column = across[pairs[b, 0]], filters[pairs[b, 1]]
            out = stamps[s, b].reshape(size, size)
            for k in range(2 * radius + 1):
                tap = column[2 * radius - k]
                for v in range(size):
                    for u in range(size):
                        out[v, u] += tap * rows[v + k, u]
    return stamps
