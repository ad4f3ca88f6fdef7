"""Difference imaging by a fitted, spatially varying matching kernel (Alard & Lupton 1998, Alard 2000).

Here: choice of stamps, the fit of kernel and differential background, the subtraction with mask, variance and what is
known of the noise's correlation. Not here: finding sources on the difference (`diff_sources`), making the template
(`stack`), which images are compared (`pipeline/diffs`).
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import fft

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import NO_WEIGHT, UNUSABLE, Mask, MaskedImage
from lap_assets.science.warp import noise_correlation

_UNUSABLE = int(UNUSABLE)
_HARD = int(NO_WEIGHT)
_SATURATED = int(Mask.SATURATED | Mask.BLEED)
_CORE = int(Mask.SATURATED)
_NO_DATA = int(Mask.NO_DATA)
_EDGE = int(Mask.EDGE)


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
class Difference:
    """A difference image and how good it is.

    Attributes
    ----------
    image : MaskedImage
        Science minus template, in nJy, in the PSF of the broader of the two.
    convolved : str
        `template` or `science`: which one was convolved with the kernel.
    fwhm_px : float
        Of the broader one, as given.
    kernel : (size, size) float64
        At the centre of the image.
    kernel_sum : float
        Flux ratio of the two images; both are calibrated, so far from 1 is a warning.
    n_stamps, n_rejected : int
    stamp_chi2 : float
        Median reduced χ² of the stamps used.
    sky_chi : float
        Robust scatter of image / √VAR over the pixels: 1 where VAR is right.
    correlation : (m, m) float64
        Noise autocorrelation of the difference, 1 at the centre.
    noisecov : float
        Variance of a sum over a large aperture / the sum of VAR (see `warp.covariance_factor`).
    """

    image: MaskedImage
    convolved: str
    fwhm_px: float
    kernel: np.ndarray
    kernel_sum: float
    n_stamps: int
    n_rejected: int
    stamp_chi2: float
    sky_chi: float
    correlation: np.ndarray
    noisecov: float


@dataclass(frozen=True)
class _Fit:
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


def subtract_images(
    science: MaskedImage,
    template: MaskedImage,
    fwhm_science_px: float,
    fwhm_template_px: float,
    limits: KernelLimits | None = None,
    noisecov: tuple[float, float] = (1.0, 1.0),
) -> Difference:
    """Science minus template after matching the sharper one's PSF, flux scale and background to the other's.

    Parameters
    ----------
    science, template : MaskedImage
        (ny, nx) of one pixel grid, nJy.
    fwhm_science_px, fwhm_template_px : float
        The smaller one is convolved.
    limits : KernelLimits
    noisecov : (float, float)
        Covariance factors of science and template.

    Returns
    -------
    Difference

    Raises
    ------
    UnprocessableData
        If there is no star in a common area to fit the kernel on.
    """
    limits = limits or KernelLimits()
    convolve_template = fwhm_template_px <= fwhm_science_px
    sharp, broad = (template, science) if convolve_template else (science, template)
    wide = max(fwhm_science_px, fwhm_template_px)
    narrow = min(fwhm_science_px, fwhm_template_px)
    basis = make_basis(np.sqrt(max(wide**2 - narrow**2, 0.0)) / 2.3548)
    half = int(np.clip(np.ceil(2.0 * wide), 7, 15))
    bad = ((sharp.mask & _HARD) != 0) | (sharp.var <= 0)
    filled = _fill_masked(sharp.sci, bad)
    x, y = choose_stamps(sharp, broad, half, basis.radius, limits)
    if x.size == 0:
        raise UnprocessableData(
            f"kernel not fitted: no unsaturated object with a peak over {limits.min_stamp_snr:g} sigma in both images"
        )
    fit = _fit_kernel(filled, sharp, broad, x, y, half, basis, limits)
    image, kernel, sky = _apply_kernel(filled, bad, sharp, broad, basis, fit, limits, 1.0 if convolve_template else -1.0)
    covariances = noisecov[::-1] if convolve_template else noisecov
    correlation, cov = _describe_noise(sharp, broad, kernel, covariances)
    chi = image.sci[sky] / np.sqrt(image.var[sky])
    low, middle, high = np.percentile(chi, [15.87, 50.0, 84.13]) if chi.size else (-1.0, 0.0, 1.0)
    return Difference(
        image=image,
        convolved="template" if convolve_template else "science",
        fwhm_px=wide,
        kernel=kernel,
        kernel_sum=float(kernel.sum()),
        n_stamps=int(fit.used.sum()),
        n_rejected=int((~fit.used).sum()),
        stamp_chi2=float(np.median(fit.chi2[fit.used])),
        sky_chi=float(min(high - middle, middle - low)),
        correlation=correlation,
        noisecov=cov,
    )


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


def _count_terms(order: int) -> int:
    return (order + 1) * (order + 2) // 2


def _scaled(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    ny, nx = shape
    return (x - 0.5 * (nx - 1)) / (0.5 * nx), (y - 0.5 * (ny - 1)) / (0.5 * ny)


def _fit_kernel(filled, sharp, broad, x, y, half, basis, limits) -> _Fit:
    """Weighted least squares for kernel and background on the stamps; stamps that fit badly are left out, four rounds."""
    bad_sharp = (sharp.mask & _UNUSABLE != 0) | (sharp.var <= 0)
    good = (broad.mask & _UNUSABLE == 0) & (broad.var > 0) & ~_dilate(bad_sharp, 1)
    orders = [order for order in range(limits.kernel_order + 1) if 4 * _count_terms(order) <= max(x.size, 4)]
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
    scaled = _scaled(x.astype(float), y.astype(float), broad.shape)
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
    return _Fit(coefficients, used, chi2, kernel_order, background_order)


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


def _apply_kernel(filled, bad, sharp, broad, basis, fit, limits, sign):
    """Difference image, kernel at the centre, and the pixels that are plain sky."""
    shape = broad.shape
    members = basis.images
    n_terms = _count_terms(fit.kernel_order)
    varying = fit.coefficients[1 : 1 + (len(members) - 1) * n_terms].reshape(len(members) - 1, n_terms)
    kernels = np.einsum("bt,bij->tij", varying, members[1:])
    kernels[0] += fit.coefficients[0] * members[0]
    sky = fit.coefficients[1 + (len(members) - 1) * n_terms :]
    size = [fft.next_fast_len(n + 2 * basis.radius, real=True) for n in shape]
    transform = fft.rfft2(filled, size)
    convolved = np.empty((n_terms, *shape), np.float32)
    for term in range(n_terms):
        convolved[term] = _convolve(transform, kernels[term], size, shape)
    noise = fft.rfft2(np.where(bad, np.float32(0), sharp.var), size)
    noise = _convolve(noise, kernels[0] ** 2, size, shape)
    power = np.einsum("tij,uij->tu", kernels, kernels)
    power *= _correlated_gain(kernels[0]) / power[0, 0] ** 2  # times `noise`, whose kernel is kernels[0]²
    share = np.abs(kernels[0]) / np.abs(kernels[0]).sum()
    # float32 transforms leave 1e-7 of nothing where no pixel is bad
    bad_share = np.zeros(shape, np.float32)
    if bad.any():
        bad_share = _convolve(fft.rfft2(bad.astype(np.float32), size), share, size, shape)
    saturated = _dilate(sharp.mask & _SATURATED != 0, 2)
    image = MaskedImage(np.zeros(shape, np.float32), np.zeros(shape, np.int16), np.zeros(shape, np.float32))
    _subtract_rows(
        broad.sci, broad.mask, broad.var, sharp.mask, saturated, convolved, noise, bad_share, power, sky,
        fit.kernel_order, fit.background_order, basis.radius, np.float32(sign), np.float32(limits.max_bad_weight),
        image.sci, image.mask, image.var,
    )  # fmt: skip
    faint = (broad.sci < np.median(broad.sci[image.usable]) + 3.0 * np.sqrt(broad.var)) & image.usable
    _flatten_sky(image, faint, fit.background_order)
    return image, kernels[0], faint


def _flatten_sky(image: MaskedImage, sky: np.ndarray, order: int, block: int = 64) -> None:
    """Subtract a polynomial through the medians of blocks of sky pixels, in place.

    The stamps lie on stars; all the sky between them knows the level better by far.
    """
    ny, nx = image.shape
    block = min(block, ny, nx)
    rows, columns = ny // block, nx // block
    cut = np.s_[: rows * block, : columns * block]

    def tiled(plane):
        tiles = plane[cut].reshape(rows, block, columns, block).transpose(0, 2, 1, 3)
        return tiles.reshape(rows * columns, block * block)

    use = tiled(sky)
    enough = np.flatnonzero(use.sum(axis=1) >= 0.2 * block * block)
    if enough.size == 0:
        return
    values = tiled(image.sci)
    level = np.array([np.median(values[one][use[one]]) for one in enough], float)
    row, column = np.divmod(enough, columns)
    x, y = _scaled((column + 0.5) * block - 0.5, (row + 0.5) * block - 0.5, image.shape)
    while 3 * _count_terms(order) > enough.size and order > 0:
        order -= 1
    coefficients = np.linalg.lstsq(polynomial_terms(x, y, order).T, level, rcond=None)[0]
    across, down = _scaled(np.arange(nx), np.arange(ny), image.shape)
    surface = np.zeros(image.shape, np.float32)
    at = 0
    for total in range(order + 1):
        for j in range(total + 1):
            surface += (coefficients[at] * down**j)[:, None].astype(np.float32) * (across ** (total - j)).astype(
                np.float32
            )
            at += 1
    image.sci -= np.where(image.var > 0, surface, np.float32(0))


def _convolve(transform: np.ndarray, kernel: np.ndarray, size, shape) -> np.ndarray:
    """Convolution of a transformed, zero-padded image with a small centred kernel, float32."""
    radius = kernel.shape[0] // 2
    padded = np.zeros(size, np.float32)
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    padded = np.roll(padded, (-radius, -radius), axis=(0, 1))
    return fft.irfft2(transform * fft.rfft2(padded), size)[: shape[0], : shape[1]]


def _autocorrelation(kernel: np.ndarray) -> np.ndarray:
    """Full autocorrelation of a square kernel, centred."""
    size = 2 * kernel.shape[0] - 1
    return np.fft.fftshift(np.fft.irfft2(np.abs(np.fft.rfft2(kernel, (size, size))) ** 2, (size, size)))


def _lanczos_correlation(size: int) -> np.ndarray:
    """(size, size) correlation of the noise of a warp, centred."""
    line = np.zeros(size)
    rho = noise_correlation()
    reach = min(size // 2, rho.size // 2)
    line[size // 2 - reach : size // 2 + reach + 1] = rho[rho.size // 2 - reach : rho.size // 2 + reach + 1]
    return line[:, None] * line[None, :]


def _correlated_gain(kernel: np.ndarray) -> float:
    """Σ KᵢKⱼ ρ(i−j): variance of a convolved pixel of resampled noise of unit variance."""
    auto = _autocorrelation(kernel)
    return float(np.sum(auto * _lanczos_correlation(auto.shape[0])))


def _describe_noise(sharp, broad, kernel, covariances) -> tuple[np.ndarray, float]:
    """Noise autocorrelation of the difference and its covariance factor; `covariances` of (broad, sharp) images."""
    both = (broad.mask & _UNUSABLE == 0) & (sharp.mask & _UNUSABLE == 0) & (broad.var > 0) & (sharp.var > 0)
    v_broad, v_sharp = float(np.median(broad.var[both])), float(np.median(sharp.var[both]))
    auto = _autocorrelation(kernel)
    rho = _lanczos_correlation(auto.shape[0] + 2 * (noise_correlation().size // 2))
    size = rho.shape[0]
    mixed = np.zeros((size, size))
    offset = (size - auto.shape[0]) // 2
    mixed[offset : offset + auto.shape[0], offset : offset + auto.shape[0]] = auto
    spectrum = np.fft.rfft2(np.fft.ifftshift(mixed)) * np.fft.rfft2(np.fft.ifftshift(rho))
    convolved = np.fft.fftshift(np.fft.irfft2(spectrum, (size, size)))
    total = v_broad * rho + v_sharp * convolved
    variance = total[size // 2, size // 2]
    large = v_broad * covariances[0] + v_sharp * covariances[1] * kernel.sum() ** 2
    return total / variance, float(large / variance)


@njit(cache=True, nogil=True)
def _fill_masked(sci, bad):
    """The image with bad pixels replaced by the mean of the nearest ring of good neighbours (0 if none within 5 px)."""
    ny, nx = sci.shape
    filled = sci.copy()
    for y in range(ny):
        for x in range(nx):
            if not bad[y, x]:
                continue
            filled[y, x] = 0
            for reach in range(1, 6):
                total, count = 0.0, 0
                for v in range(max(y - reach, 0), min(y + reach + 1, ny)):
                    for u in range(max(x - reach, 0), min(x + reach + 1, nx)):
                        if not bad[v, u]:
                            total += sci[v, u]
                            count += 1
                if count >= 2 * reach:
                    filled[y, x] = total / count
                    break
    return filled


@njit(cache=True, nogil=True)
def _dilate(bad, reach):
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


@njit(cache=True, nogil=True)
def _powers(x, y, order, terms):
    at = 0
    for total in range(order + 1):
        for j in range(total + 1):
            terms[at] = x ** (total - j) * y**j
            at += 1


@njit(cache=True, nogil=True)
def _subtract_rows(
    broad, broad_mask, broad_var, sharp_mask, saturated, convolved, noise, bad_share, power, sky, kernel_order,
    background_order, radius, sign, max_bad, out, flags, variance,
):  # fmt: skip
    """out = sign · (broad − Σ P_t convolved_t − background), with variance and mask."""
    ny, nx = broad.shape
    n_terms = convolved.shape[0]
    # polynomials are evaluated at nodes every 16 px and held linear in between along x
    step = 16
    terms, next_terms = np.empty(n_terms), np.empty(n_terms)
    sky_terms, next_sky = np.empty(sky.size), np.empty(sky.size)
    for y in range(ny):
        v = (y - 0.5 * (ny - 1)) / (0.5 * ny)
        for first in range(0, nx, step):
            u0, u1 = (first - 0.5 * (nx - 1)) / (0.5 * nx), (first + step - 0.5 * (nx - 1)) / (0.5 * nx)
            _powers(u0, v, kernel_order, terms)
            _powers(u1, v, kernel_order, next_terms)
            _powers(u0, v, background_order, sky_terms)
            _powers(u1, v, background_order, next_sky)
            level, next_level = np.dot(sky_terms, sky), np.dot(next_sky, sky)
            gain, next_gain = np.dot(terms, power @ terms), np.dot(next_terms, power @ next_terms)
            for x in range(first, min(first + step, nx)):
                t = (x - first) / step
                here = broad_mask[y, x] | (sharp_mask[y, x] & ~(_HARD & ~_NO_DATA))
                if bad_share[y, x] > max_bad:
                    here |= (sharp_mask[y, x] & _HARD) | _EDGE
                if saturated[y, x]:
                    here |= _CORE
                if y < radius or x < radius or y >= ny - radius or x >= nx - radius:
                    here |= _EDGE
                flags[y, x] = here
                if here & _NO_DATA or broad_var[y, x] <= 0:
                    flags[y, x] = here | _NO_DATA
                    continue
                model = level + t * (next_level - level)
                for k in range(n_terms):
                    model += (terms[k] + t * (next_terms[k] - terms[k])) * convolved[k, y, x]
                out[y, x] = sign * (broad[y, x] - np.float32(model))
                variance[y, x] = broad_var[y, x] + np.float32(gain + t * (next_gain - gain)) * max(
                    noise[y, x], np.float32(0)
                )
