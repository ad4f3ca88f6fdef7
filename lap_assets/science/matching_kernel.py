"""The kernel that matches one image's PSF to another's: its basis, the stamps it is fitted on, the fit.

Alard & Lupton (1998), Alard (2000). Here: everything up to the coefficients. Not here: applying them, noise and masks
of the difference (`diff`).
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import linalg, ndimage

from lap_assets.model.image import UNUSABLE, MaskedImage

_UNUSABLE = int(UNUSABLE)
_MODEL_ERROR = 0.02  # of a star's flux in a pixel
_PIXEL_SIGMA = 5.0  # beyond which a pixel beside a star is left out of the fit
_FEW_STAMPS = 24  # below which all are needed for the fit


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
    """Coefficients of kernel and background, and how the stamps took them.

    Attributes
    ----------
    coefficients : (n_unknown,) float64
        Sum of the kernel; then of each further basis member the polynomial over the image; then of the background.
    used, left_out : (n_stamps,) bool
        Stamps that the fit rests on, and those that had no part in it from the start.
    chi2 : (n_stamps,) float64
        Reduced.
    kernel_order, background_order : int
    """

    coefficients: np.ndarray
    used: np.ndarray
    left_out: np.ndarray
    chi2: np.ndarray
    kernel_order: int
    background_order: int

    def split_kernel(self, basis: KernelBasis) -> tuple[np.ndarray, np.ndarray]:
        """Kernels (n_terms, size, size) that go with the polynomial's terms, and the background's coefficients."""
        members = basis.images
        n_terms = count_terms(self.kernel_order)
        n_varying = (len(members) - 1) * n_terms
        varying = self.coefficients[1 : 1 + n_varying].reshape(len(members) - 1, n_terms)
        kernels = np.einsum("bt,bij->tij", varying, members[1:])
        kernels[0] += self.coefficients[0] * members[0]
        return kernels, self.coefficients[1 + n_varying :]


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
    planes = [(one.sci, one.mask, one.var) for one in (broad, sharp)]
    x, y, flux = _find_peaks(*planes[0], *planes[1], half, radius, limits.min_stamp_snr)
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


def fit_kernel(
    filled: np.ndarray, bad: np.ndarray, sharp: MaskedImage, broad: MaskedImage, x: np.ndarray, y: np.ndarray,
    half: int, basis: KernelBasis, limits: KernelLimits, correlation: np.ndarray, gain: float = 1.0,
) -> KernelFit:  # fmt: skip
    """Weighted least squares for kernel and background on stamps.

    Stamps that fit badly are left out (four rounds), and so are pixels beside the star that deviate by more than 5
    sigma: a neighbour that varies. Of many stamps every sixth takes no part and shows what the fit is worth elsewhere.
    Noise of the convolved image weakens a fitted kernel (Fuller 1987, Measurement Error Models, 1.1): put right.

    Parameters
    ----------
    filled : (ny, nx) float32
        The sharper image, with its bad pixels filled.
    bad : (ny, nx) bool
        These pixels.
    x, y : (n,) int
        Centres of the stamps, of `choose_stamps`.
    half : int
        Half-width of a stamp.
    correlation : (m, m) float64
        Of the sharper image's noise, centred.
    gain : float
        Of the variance of the sharper image by the kernel, about.
    """
    left_out = np.zeros(x.size, bool)
    if x.size >= _FEW_STAMPS:
        left_out[5::6] = True
    n_fitted = int((~left_out).sum())
    orders = [order for order in range(limits.kernel_order + 1) if 4 * count_terms(order) <= max(n_fitted, 4)]
    kernel_order = orders[-1]
    background_order = min(limits.background_order, kernel_order if n_fitted < 12 else limits.background_order)
    models = _convolve_stamps(filled, x, y, half, basis.filters.astype(np.float32), basis.pairs).astype(np.float64)
    models -= basis.correction[None, :, None] * models[:, :1]
    models /= basis.norms[None, :, None]
    models = np.concatenate([models, np.ones((x.size, 1, models.shape[2]))], axis=1)
    data, inverse, noise = _weigh_stamps(bad, sharp, broad, x, y, half, gain)
    excess = _noise_products(basis, correlation)
    scaled = scale_positions(x.astype(float), y.astype(float), broad.shape)
    terms = polynomial_terms(*scaled, max(kernel_order, background_order))
    unknowns = _name_unknowns(models.shape[1] - 1, kernel_order, background_order)
    beside = _beside_core(half)
    used, grams, sides = ~left_out, None, None
    for number in range(4):
        if grams is None:
            grams, sides = _sum_products(models, data, inverse)
        amount = np.sum(inverse * noise, axis=1)[used]
        coefficients = _solve(grams[used], sides[used], amount, excess, terms[:, used], *unknowns)
        local = _local_coefficients(coefficients, terms, *unknowns)
        residual = data - np.matmul(local[:, None, :], models)[:, 0]
        deviation = residual**2 * inverse
        chi2 = deviation.sum(axis=1) / np.maximum((inverse > 0).sum(axis=1), 1)
        middle = np.median(chi2[used])
        limit = middle + 4.0 * max(1.4826 * np.median(np.abs(chi2[used] - middle)), 0.1 * middle)
        keep = (chi2 <= limit) & ~left_out
        if number == 0:
            odd = (deviation > _PIXEL_SIGMA**2 * max(middle, 1.0)) & beside
            varied = _grow(odd, half) & beside
            inverse = np.where(varied, 0.0, inverse)
            changed = varied.any(axis=1)
            grams[changed], sides[changed] = _sum_products(models[changed], data[changed], inverse[changed])
            # what is masked may be all that was wrong
            keep |= changed & ~left_out
        if (np.array_equal(keep, used) and number > 0) or keep.sum() < max(n_fitted // 3, 1):
            break
        used = keep
    return KernelFit(coefficients, used, left_out, chi2, kernel_order, background_order)


def _grow(pixels: np.ndarray, half: int) -> np.ndarray:
    """Marked pixels (n_stamps, pixels) and those within 2 px of them along both axes."""
    stamps = pixels.reshape(-1, 2 * half + 1, 2 * half + 1)
    return ndimage.binary_dilation(stamps, np.ones((1, 5, 5), bool)).reshape(pixels.shape)


def _beside_core(half: int) -> np.ndarray:
    """(pixels,) bool: outside the inner third of a stamp's radius, where a star's own light no longer decides."""
    u = np.arange(-half, half + 1)
    return (np.hypot(u[:, None], u[None, :]) > 0.35 * half).ravel()


def _weigh_stamps(bad, sharp, broad, x, y, half, gain) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n_stamps, pixels) values of the broader image, inverse variances of the difference (0 where bad), and variances
    of the sharper image.
    """
    data, noise = _cut_stamps(broad.sci, x, y, half), _cut_stamps(sharp.var, x, y, half)
    # 2 % of the flux: no PSF model is better, and the brightest star must not decide alone
    variance = _cut_stamps(broad.var, x, y, half) + gain * noise + (_MODEL_ERROR * data) ** 2
    good = _cut_good(bad, broad.mask, sharp.mask, x, y, half, _UNUSABLE)
    good &= np.isfinite(variance) & (variance > 0) & np.isfinite(data)
    inverse = np.where(good, 1.0 / np.where(good, variance, 1.0), 0.0)
    return np.where(good, data, 0.0), inverse, np.where(good, noise, 0.0)


def _noise_products(basis: KernelBasis, correlation: np.ndarray) -> np.ndarray:
    """(n + 1, n + 1) products that noise of unit variance has with itself after the basis members; 0 with the sky."""
    members = basis.images
    side = members.shape[1] + correlation.shape[0]
    spectra = np.fft.fft2(members, (side, side)).reshape(len(members), -1)
    # centred: its phase drops out of the absolute value
    power = np.abs(np.fft.fft2(correlation, (side, side))).ravel()
    products = np.zeros((len(members) + 1, len(members) + 1))
    products[:-1, :-1] = ((spectra * power) @ spectra.conj().T).real / side**2
    return products


def _sum_products(models, data, inverse) -> tuple[np.ndarray, np.ndarray]:
    weighted = models * inverse[:, None, :]
    return weighted @ models.transpose(0, 2, 1), np.matmul(weighted, data[:, :, None])[:, :, 0]


def _name_unknowns(n_basis: int, kernel_order: int, background_order: int) -> tuple[np.ndarray, np.ndarray]:
    """Basis member and polynomial term of each unknown: the kernel's sum, the other members' terms, the background."""
    member, term = [0], [0]
    for one, order in [(k, kernel_order) for k in range(1, n_basis)] + [(n_basis, background_order)]:
        member += [one] * count_terms(order)
        term += range(count_terms(order))
    return np.array(member), np.array(term)


def _solve(grams, sides, amount, excess, terms, member, term) -> np.ndarray:
    """Unknowns from the products of the stamps: each stamp's matrix times the products of its polynomial terms.

    Noise of the convolved image adds `amount` times `excess` to these products; the first order of what that takes from
    the solution is given back. (Taking it off the products themselves leaves them near singular.)
    """
    n_stamps, n_members, _ = grams.shape
    n_terms = len(terms)
    products = (terms[:, None] * terms[None]).reshape(n_terms**2, n_stamps)
    matrix = (products @ grams.reshape(n_stamps, -1)).reshape(n_terms, n_terms, n_members, n_members)
    matrix = matrix[term[:, None], term[None, :], member[:, None], member[None, :]]
    noise = (products @ amount).reshape(n_terms, n_terms)[term[:, None], term[None, :]]
    noise = noise * excess[member[:, None], member[None, :]]
    vector = (terms @ sides)[term, member]
    scale = np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    matrix = matrix / scale[:, None] / scale[None, :]
    # a ridge of 1e-6 keeps near-degenerate Gaussians from cancelling each other with huge coefficients
    matrix[np.diag_indices_from(matrix)] += 1e-6
    factors = linalg.lu_factor(matrix, overwrite_a=True)
    solution = linalg.lu_solve(factors, vector / scale) / scale
    return solution + linalg.lu_solve(factors, noise @ solution / scale) / scale


def _local_coefficients(coefficients, terms, member, term) -> np.ndarray:
    """(n_stamps, n_members): the polynomials' values at the stamps."""
    local = np.zeros((member[-1] + 1, terms.shape[1]))
    np.add.at(local, member, coefficients[:, None] * terms[term])
    return local.T


@njit(cache=True, nogil=True)
def _is_usable(sci, mask, var, y, x):
    value, variance = sci[y, x], var[y, x]
    return mask[y, x] & _UNUSABLE == 0 and 0 < variance < np.inf and -np.inf < value < np.inf


@njit(cache=True, nogil=True)
def _find_peaks(sci, mask, var, other, other_mask, other_var, half, radius, min_snr):
    """Local maxima (5×5) with the core usable in both images and at least 85 % of the stamp."""
    ny, nx = sci.shape
    xs, ys, fluxes = [0][:0], [0][:0], [0.0][:0]
    margin = half + radius
    square, zero = np.float32(min_snr * min_snr), np.float32(0)
    bright = np.empty(nx, np.bool_)
    for y in range(margin, ny - margin):
        line, noise, flags = sci[y], var[y], mask[y]
        some = False
        for x in range(nx):
            bright[x] = (line[x] > zero) & (line[x] * line[x] >= square * noise[x]) & (flags[x] & _UNUSABLE == 0)
            some |= bright[x]
        if not some:
            continue
        for x in range(margin, nx - margin):
            if not bright[x] or other[y, x] <= zero or other[y, x] ** 2 < square * other_var[y, x]:
                continue
            value = line[x]
            peak = True
            for v in range(y - 2, y + 3):
                for u in range(x - 2, x + 3):
                    peak &= not (sci[v, u] > value or (sci[v, u] == value and (v, u) < (y, x)))
            if not peak:
                continue
            good, core = 0, True
            for v in range(y - half, y + half + 1):
                for u in range(x - half, x + half + 1):
                    here = _is_usable(sci, mask, var, v, u) and _is_usable(other, other_mask, other_var, v, u)
                    good += here
                    core &= here or abs(v - y) > 2 or abs(u - x) > 2
            if core and good >= 0.85 * (2 * half + 1) ** 2:
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
def _cut_good(bad, mask, other_mask, xs, ys, half, bits):
    """(n_stamps, pixels) bool: without `bits` in either mask, and no bad pixel among the 3×3."""
    size = 2 * half + 1
    good = np.ones((xs.size, size * size), np.bool_)
    for s in range(xs.size):
        for v in range(size):
            for u in range(size):
                y, x = ys[s] - half + v, xs[s] - half + u
                fine = (mask[y, x] & bits) == 0 and (other_mask[y, x] & bits) == 0
                for near in range(9):
                    fine &= not bad[y - 1 + near // 3, x - 1 + near % 3]
                good[s, v * size + u] = fine
    return good


@njit(cache=True, nogil=True)
def _convolve_stamps(image, xs, ys, half, filters, pairs):
    """(n_stamps, n_pairs, pixels) stamps convolved with the separable products of 1-D filters."""
    radius = filters.shape[1] // 2
    size = 2 * half + 1
    tall = size + 2 * radius
    stamps = np.zeros((xs.size, pairs.shape[0], size * size), np.float32)
    across = np.empty((filters.shape[0], tall, size), np.float32)
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
