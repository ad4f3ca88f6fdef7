"""The point-spread function: a pixel basis that varies as a polynomial over the image, fitted to its stars.

Used on single chips and on stacks. Choosing the stars is the caller's (`science/detection.py`); measuring galaxies with
the model is `science/shear.py`'s.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from lap_assets.errors import NoWork
from lap_assets.science.star_shapes import measure_moments

_LANCZOS = 5
_TAPS, _STAR_SIGMA_PX, _TAP_NOISE = 6, 1.0, 1e-6  # to each side; of the sharpest star shifted well; keeps it stable
_MIN_START = 5  # stars whose median the fit begins with
_ROUNDS = 4
_STARS_PER_TERM = 3  # stars wanted per coefficient of the polynomial
_STARS_PER_FREE_TERM = 30  # the same where every pixel varies freely, and not the size and shape alone
_MODEL_FLOOR = 0.0015  # of a star's flux: no star is trusted more
_CORE_SHARE = 0.03  # of the peak, from which pixels tell size and shape
_CLIP = 5.0


@dataclass(frozen=True)
class PsfModel:
    """PSF as a polynomial in position.

    Attributes
    ----------
    basis : (n_terms, s, s) float32
        Images of the coefficients 1, u, v, u², uv, v², …, with u = (x − x0) / scale_x, v = (y − y0) / scale_y.
    degree : int
    frame : (x0, y0, scale_x, scale_y)
    n_stars : int
    residual : float
        Rms difference star − model in the cores, relative to the peak, after the stars' own noise is taken out.
    """

    basis: np.ndarray
    degree: int
    frame: tuple[float, float, float, float]
    n_stars: int
    residual: float

    @property
    def stamp_px(self) -> int:
        """Side of the stamps, odd."""
        return int(self.basis.shape[1])

    def evaluate(self, x: float, y: float) -> np.ndarray:
        """The PSF at (x, y), (s, s) float64 of sum 1, centred on the middle pixel."""
        return self.evaluate_many(np.array([x]), np.array([y]))[0]

    def evaluate_many(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """PSFs at n positions, (n, s, s) float64, each of sum 1."""
        stamps = np.tensordot(self.terms_at(x, y), self.basis.astype(np.float64), axes=1)
        return stamps / stamps.sum(axis=(1, 2), keepdims=True)

    def terms_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Terms 1, u, v, u², uv, v², … of the polynomial at n positions, (n, n_terms)."""
        return _polynomial_terms(np.asarray(x, float), np.asarray(y, float), self.frame, self.degree)

    def draw(self, x: float, y: float) -> np.ndarray:
        """The PSF at (x, y) on the pixel grid: its centre is off the middle pixel by x − round(x), y − round(y)."""
        shift = np.array([x - np.rint(x)]), np.array([y - np.rint(y)])
        return shift_stamps(self.evaluate(x, y)[None], *shift)[0]


@dataclass(frozen=True)
class PsfShape:
    """FWHM in pixels and the two components of the distortion (a² − b²)/(a² + b²), from adaptive moments."""

    fwhm_px: float
    e1: float
    e2: float

    @property
    def ellipticity(self) -> float:
        return float(np.hypot(self.e1, self.e2))


@dataclass(frozen=True)
class PsfResiduals:
    """Stars less model, over `n` stars that were not fitted: means of e1, e2 and ΔT/T, and what scatter of an
    ellipticity component and of ΔT/T the stars' own noise does not explain; NaN where there was no star."""

    n: int
    e1: float
    e2: float
    size: float
    e_scatter: float
    size_scatter: float


def fit_psf(
    sci: np.ndarray,
    var: np.ndarray,
    bad: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    flux: np.ndarray,
    *,
    stamp_px: int = 25,
    degree: int = 2,
) -> PsfModel:
    """Fit a PSF to stars.

    Each round shifts what the model leaves of the stars to the pixel grid and adds its noise-weighted polynomial fit to
    the model, as effective-PSF building does (Anderson & King 2000, PASP 112, 1360); flux and centre of each star are
    fitted along. Stars the model does not fit (neighbours, galaxies) are dropped, and the degree is lowered until there
    are three stars per coefficient. All pixels vary freely only to the degree that has thirty stars per coefficient:
    beyond it size and shape vary alone, which a few stars tell.

    Parameters
    ----------
    sci, var : (ny, nx) float32
        Image without sky, and variance.
    bad : (ny, nx) bool or integer mask
        Pixels not to be used (non-zero).
    x, y, flux : (n,) arrays
        Stars: 0-based positions and rough fluxes.
    stamp_px : int
        Odd.
    degree : int
        Largest degree of the polynomial.

    Raises
    ------
    NoWork
        If no star lies whole on the image.
    """
    stars = _cut_stamps(sci, var, np.asarray(bad) != 0, x, y, flux, stamp_px)
    if stars is None:
        raise NoWork("no star for a PSF model: none is whole, unmasked and bright enough")
    frame = (0.5 * (sci.shape[1] - 1), 0.5 * (sci.shape[0] - 1), max(sci.shape[1] / 2, 1.0), max(sci.shape[0] / 2, 1.0))
    used = _affordable_degree(len(stars.flux), degree)
    basis = np.zeros((_count_terms(used), stamp_px, stamp_px))
    basis[0] = _start_profile(stars)
    model = np.broadcast_to(basis[0], stars.data.shape)
    _refit_stars(stars, model)
    keep = _judge_stars(stars, model, np.ones(len(stars.flux), bool))
    used = _affordable_degree(int(keep.sum()), used)
    basis = basis[: _count_terms(used)]
    for number in range(_ROUNDS):
        terms = _polynomial_terms(stars.x, stars.y, frame, used)
        basis = basis + _fit_residuals(stars, _model_stamps(terms, basis), terms, keep)
        basis /= basis[0].sum()
        _refit_stars(stars, _model_stamps(terms, basis))
        if number < _ROUNDS - 1:
            keep = _judge_stars(stars, _model_stamps(terms, basis), keep)
            used = _affordable_degree(int(keep.sum()), used)
            basis = basis[: _count_terms(used)]
    residual = _core_residual(stars, _model_stamps(terms, basis), keep)
    return PsfModel(basis.astype(np.float32), used, frame, int(keep.sum()), residual)


def measure_shape(stamp: np.ndarray) -> PsfShape:
    """FWHM and distortion of a PSF stamp.

    The FWHM is that of the azimuthal profile's half-maximum along the model's principal axes (geometric mean), with the
    peak from a paraboloid; the distortion from moments with a Gaussian weight matched to the star (Bernstein & Jarvis
    2002, AJ 123, 583).
    """
    _, _, trace, e1, e2, *_ = measure_moments(stamp[None])[0]
    if not np.isfinite(trace):
        return PsfShape(np.nan, np.nan, np.nan)
    cov = 0.5 * trace * np.array([[1.0 + e1, e2], [e2, 1.0 - e1]])
    return PsfShape(_half_maximum_width(stamp, cov), float(e1), float(e2))


def measure_residuals(
    model: PsfModel, sci: np.ndarray, var: np.ndarray, bad: np.ndarray, x: np.ndarray, y: np.ndarray
) -> PsfResiduals:
    """Adaptive moments of stars at (x, y), which should not be among those fitted, less those of the model there.

    Stars with a bad pixel within the core, cut by the edge or not measurable are left out, as is what lies beyond
    5 robust sigmas (a neighbour in the window). Means are weighted by the stars' own errors.

    Parameters
    ----------
    sci, var : (ny, nx) float32
        Image without sky, and variance.
    bad : (ny, nx) bool
    """
    stars = _cut_stamps(sci, var, bad, x, y, np.ones(len(x)), model.stamp_px)
    if stars is None:
        return PsfResiduals(0, *[np.nan] * 5)
    drawn = shift_stamps(model.evaluate_many(stars.x, stars.y), stars.dx, stars.dy)
    known = stars.weight > 0
    noise = 1.0 / np.where(known, stars.weight, np.inf)
    flux = np.sum(stars.data * drawn * known, axis=(1, 2)) / np.sum(drawn**2 * known, axis=(1, 2))
    # a bad pixel in the wings takes the model's value, and the noise of none
    filled = np.where(known, stars.data, flux[:, None, None] * drawn)
    seen, told = measure_moments(filled, np.where(known, noise, 0.0)), measure_moments(drawn)
    values = np.column_stack([seen[:, 3] - told[:, 3], seen[:, 4] - told[:, 4], seen[:, 2] / told[:, 2] - 1.0])
    errors = np.column_stack([seen[:, 6], seen[:, 6], seen[:, 5]])
    good = np.isfinite(values).all(axis=1) & (errors > 0).all(axis=1)
    values, errors = values[good], errors[good]
    if not len(values):
        return PsfResiduals(0, *[np.nan] * 5)
    away = np.abs(values - np.median(values, axis=0))
    kept = (away <= _CLIP * np.hypot(errors, 1.4826 * np.median(away, axis=0))).all(axis=1)
    values, errors = values[kept], errors[kept]
    weight = 1.0 / (errors**2 + _MODEL_FLOOR**2)
    e1, e2, size = (values * weight).sum(axis=0) / weight.sum(axis=0)
    excess = np.sqrt(np.maximum(((values**2 - errors**2) * weight).sum(axis=0) / weight.sum(axis=0), 0.0))
    return PsfResiduals(len(values), *map(float, (e1, e2, size, np.hypot(*excess[:2]) / np.sqrt(2.0), excess[2])))


def shift_stamps(stamps: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Stamps (n, s, s) whose content is moved by (dx, dy) pixels each; zero beyond the edges."""
    rows, columns = (
        _shift_matrices(np.asarray(dy, float), stamps.shape[1]),
        _shift_matrices(np.asarray(dx, float), stamps.shape[2]),
    )
    return rows @ stamps @ columns.transpose(0, 2, 1)


# ---- the fit


@dataclass
class _Stars:
    """Stamps of the stars; `dx`, `dy` are the offsets of the star from the middle pixel."""

    data: np.ndarray  # (n, s, s), image units
    weight: np.ndarray  # inverse variance, 0 where bad
    x: np.ndarray
    y: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    flux: np.ndarray


def _cut_stamps(sci, var, bad, x, y, flux, stamp_px) -> _Stars | None:
    half = stamp_px // 2
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    inside = (ix >= half) & (iy >= half) & (ix < sci.shape[1] - half) & (iy < sci.shape[0] - half) & (flux > 0)
    chosen = []
    for k in np.nonzero(inside)[0]:
        box = (slice(iy[k] - half, iy[k] + half + 1), slice(ix[k] - half, ix[k] + half + 1))
        core = (slice(iy[k] - 2, iy[k] + 3), slice(ix[k] - 2, ix[k] + 3))
        if not bad[core].any() and bad[box].mean() < 0.1:
            chosen.append((k, box))
    if not chosen:
        return None
    index = np.array([k for k, _ in chosen])
    masked = np.array([bad[box] | ~(var[box] > 0) for _, box in chosen])
    data = np.where(masked, 0.0, np.array([sci[box] for _, box in chosen], np.float64))
    noise = np.where(masked, 1.0, np.array([var[box] for _, box in chosen], np.float64))
    weight = np.where(masked, 0.0, 1.0 / noise)
    x, y = np.asarray(x, float)[index], np.asarray(y, float)[index]
    return _Stars(data, weight, x, y, x - ix[index], y - iy[index], np.asarray(flux, float)[index].copy())


def _start_profile(stars: _Stars) -> np.ndarray:
    """The median of the brighter stars on the pixel grid (s, s), of sum 1: deaf to the neighbours of single ones."""
    bright = np.argsort(-stars.flux, kind="stable")[: max(_MIN_START, len(stars.flux) // 2)]
    centred = shift_stamps(stars.data[bright], -stars.dx[bright], -stars.dy[bright])
    profile = np.maximum(np.median(centred / stars.flux[bright, None, None], axis=0), 0.0)
    return profile / profile.sum()


def _fit_residuals(stars: _Stars, model: np.ndarray, terms: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Noise-weighted polynomial fit to the stars' residuals on the pixel grid; (n_terms, s, s).

    Every pixel varies freely to the degree that many stars bear; beyond it only the size and the two ellipticities do.
    """
    n, s, _ = stars.data.shape
    drawn = shift_stamps(model, stars.dx, stars.dy)
    residual = np.where(stars.weight > 0, stars.data - stars.flux[:, None, None] * drawn, 0.0)
    centred = shift_stamps(residual, -stars.dx, -stars.dy) / stars.flux[:, None, None]
    # a star's profile tells what its flux, hence its shape, is worth; the floor keeps the brightest from ruling alone
    worth = stars.flux * np.sqrt(np.einsum("kyx,kyx,kyx->k", drawn, drawn, stars.weight))
    weight = np.where(keep, 1.0 / (1.0 / np.maximum(worth, 1e-30) ** 2 + _MODEL_FLOOR**2), 0.0)
    root = np.sqrt(weight / weight.max())[:, None]
    free = _count_terms(_affordable_degree(int(keep.sum()), _degree_of(terms.shape[1]), _STARS_PER_FREE_TERM))
    change = np.zeros((terms.shape[1], s, s))
    solution, *_ = np.linalg.lstsq(terms[:, :free] * root, centred.reshape(n, s * s) * root, rcond=1e-8)
    change[:free] = solution.reshape(free, s, s)
    if free < terms.shape[1]:
        left = centred - np.tensordot(terms[:, :free], change[:free], axes=1)
        mean = model.mean(axis=0) + change[0]
        change[free:] = _fit_distortions(left, mean, terms, root)[free:]
    return change


def _fit_distortions(left: np.ndarray, mean: np.ndarray, terms: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Images of the coefficients (n_terms, s, s) by which the `mean` PSF is stretched and sheared to fit."""
    s = mean.shape[0]
    offset = np.arange(s) - s // 2
    xx, yy = np.meshgrid(offset, offset)
    slope_y, slope_x = np.gradient(mean)
    modes = np.stack([xx * slope_x + yy * slope_y, xx * slope_x - yy * slope_y, xx * slope_y + yy * slope_x])
    modes -= modes.sum(axis=(1, 2), keepdims=True) * mean / mean.sum()
    # photons of sky and star: the noise of a pixel in units of that at the peak
    core = mean > _CORE_SHARE * mean.max()
    calm = 1.0 / np.sqrt(mean[core] / mean.max() + _CORE_SHARE)
    amplitudes, *_ = np.linalg.lstsq((modes[:, core] * calm).T, (left[:, core] * calm).T, rcond=None)
    solution, *_ = np.linalg.lstsq(terms * root, amplitudes.T * root, rcond=1e-8)
    return np.tensordot(solution, modes, axes=1)


def _refit_stars(stars: _Stars, model: np.ndarray) -> None:
    """Update flux and centre of every star by one linear step against the model and its derivatives."""
    drawn = shift_stamps(model, stars.dx, stars.dy)
    slope_y, slope_x = np.gradient(drawn, axis=(1, 2))
    design = np.stack([drawn, -stars.flux[:, None, None] * slope_x, -stars.flux[:, None, None] * slope_y], axis=1)
    half = stars.data.shape[1] // 2
    offset = np.arange(-half, half + 1)
    core = (np.hypot(*np.meshgrid(offset, offset)) <= max(4.0, half / 2)) * stars.weight
    normal = np.einsum("kayx,kbyx,kyx->kab", design, design, core)
    right = np.einsum("kayx,kyx,kyx->ka", design, stars.data, core)
    normal += 1e-12 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    step = np.linalg.solve(normal, right[..., None])[..., 0]
    good = step[:, 0] > 0
    stars.flux[good] = step[good, 0]
    for moved, value in ((stars.dx, step[:, 1]), (stars.dy, step[:, 2])):
        moved[good] = np.clip(moved[good] + np.clip(value[good], -0.2, 0.2), -1.0, 1.0)


def _judge_stars(stars: _Stars, model: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Keep the stars whose misfit, relative to flux, is not far above that of the others."""
    if keep.sum() < 4:
        return keep
    misfit = np.sqrt(_misfit(stars, model))
    centre = np.median(misfit[keep])
    spread = 1.4826 * np.median(np.abs(misfit[keep] - centre)) + 0.02 * centre
    judged = misfit <= centre + _CLIP * spread
    return judged if judged.sum() >= 3 else keep


def _misfit(stars: _Stars, model: np.ndarray) -> np.ndarray:
    """Mean chi² per pixel of each star; a model error of 2 % of each pixel's flux is allowed."""
    drawn = stars.flux[:, None, None] * shift_stamps(model, stars.dx, stars.dy)
    good = stars.weight > 0
    var = 1.0 / np.where(good, stars.weight, 1.0) + (0.02 * drawn) ** 2
    return np.sum(np.where(good, (stars.data - drawn) ** 2 / var, 0.0), axis=(1, 2)) / np.maximum(
        good.sum(axis=(1, 2)), 1
    )


def _core_residual(stars: _Stars, model: np.ndarray, keep: np.ndarray) -> float:
    drawn = stars.flux[:, None, None] * shift_stamps(model, stars.dx, stars.dy)
    core = drawn > 0.2 * drawn.max(axis=(1, 2), keepdims=True)
    core &= (stars.weight > 0) & keep[:, None, None]
    excess = (stars.data - drawn) ** 2 - 1.0 / np.where(stars.weight > 0, stars.weight, 1.0)
    peak = np.broadcast_to(drawn.max(axis=(1, 2), keepdims=True), drawn.shape)
    return float(np.sqrt(max(np.mean(excess[core] / peak[core] ** 2), 0.0))) if core.any() else 0.0


def _model_stamps(terms: np.ndarray, basis: np.ndarray) -> np.ndarray:
    stamps = np.tensordot(terms[:, : len(basis)], basis, axes=1)
    return stamps / stamps.sum(axis=(1, 2), keepdims=True)


def _count_terms(degree: int) -> int:
    return (degree + 1) * (degree + 2) // 2


def _degree_of(terms: int) -> int:
    degree = 0
    while _count_terms(degree) < terms:
        degree += 1
    return degree


def _affordable_degree(stars: int, degree: int, per_term: int = _STARS_PER_TERM) -> int:
    while degree > 0 and stars < per_term * _count_terms(degree):
        degree -= 1
    return degree


def _polynomial_terms(x: np.ndarray, y: np.ndarray, frame: tuple[float, ...], degree: int) -> np.ndarray:
    u, v = (x - frame[0]) / frame[2], (y - frame[1]) / frame[3]
    return np.stack([u ** (total - j) * v**j for total in range(degree + 1) for j in range(total + 1)], axis=1)


def _shift_matrices(shift: np.ndarray, s: int) -> np.ndarray:
    """(n, s, s) matrices that move a row of s pixels by `shift`.

    The taps are those of least expected error for rows with the power spectrum of a star (a Gaussian process with its
    correlation), made to sum to 1. They leave the adaptive size of a star of 3 px FWHM within 1e-4, which Lanczos-5,
    too sharp where a star has its power, changes by 3e-3.
    """
    whole = np.rint(shift)
    tap = np.arange(-_TAPS, _TAPS + 1)
    correlation = np.exp(-(((tap[:, None] - tap) / (2.0 * _STAR_SIGMA_PX)) ** 2)) + _TAP_NOISE * np.eye(len(tap))
    inverse = np.linalg.inv(correlation)
    kernel = np.exp(-(((tap - (shift - whole)[:, None]) / (2.0 * _STAR_SIGMA_PX)) ** 2)) @ inverse
    total = inverse.sum(axis=0)
    kernel += (1.0 - kernel.sum(axis=1))[:, None] * total / total.sum()
    place = np.arange(s)[:, None] - np.arange(s)[None, :] - whole.astype(int)[:, None, None] + _TAPS
    inside = (place >= 0) & (place < len(tap))
    moved = np.take_along_axis(kernel[:, None, :], np.clip(place, 0, len(tap) - 1), axis=2)
    return np.where(inside, moved, 0.0)


def _half_maximum_width(stamp: np.ndarray, cov: np.ndarray) -> float:
    """FWHM of the profile in elliptical radius, geometric mean of the axes, in pixels."""
    s = stamp.shape[0]
    values, vectors = np.linalg.eigh(cov)
    mean = np.prod(values) ** 0.25
    # the half-maximum of a star-like profile lies near 1.2 sigma
    fine = np.linspace(0.0, min(s // 2 - 1, 2.5 * mean), 64)
    angles = np.arange(0, 2 * np.pi, np.pi / 8)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    direction = vectors @ (np.sqrt(values)[:, None] * (vectors.T @ circle)) / mean
    xs, ys = direction[0][:, None] * fine + s // 2, direction[1][:, None] * fine + s // 2
    profile = _sample_lanczos(stamp, xs, ys).mean(axis=0)
    below = np.nonzero(profile < 0.5 * profile[0])[0]
    if not len(below):
        return float(2 * fine[-1])
    k = below[0]
    part = (profile[k - 1] - 0.5 * profile[0]) / (profile[k - 1] - profile[k])
    return float(2.0 * (fine[k - 1] + part * (fine[k] - fine[k - 1])))


@njit(cache=True, nogil=True)
def _weigh_lanczos(place, size, weights):
    """Fill `weights` (2·_LANCZOS) with those of the pixels from the one returned on; zero beyond a row of `size`."""
    first = int(np.floor(place)) - _LANCZOS + 1
    for k in range(2 * _LANCZOS):
        distance = np.pi * (place - (first + k))
        inside = 0 <= first + k < size and abs(distance) < np.pi * _LANCZOS
        weights[k] = 1.0 if distance == 0.0 else _LANCZOS * np.sin(distance) * np.sin(distance / _LANCZOS) / distance**2
        weights[k] *= inside
    return first


@njit(cache=True, nogil=True)
def _sample_lanczos(stamp, xs, ys):
    """Values of a square stamp at places (n, m), interpolated."""
    size = stamp.shape[0]
    values = np.zeros(xs.shape)
    across, down = np.empty(2 * _LANCZOS), np.empty(2 * _LANCZOS)
    for i in range(xs.shape[0]):
        for j in range(xs.shape[1]):
            left, top = _weigh_lanczos(xs[i, j], size, across), _weigh_lanczos(ys[i, j], size, down)
            for y in range(max(top, 0), min(top + 2 * _LANCZOS, size)):
                for x in range(max(left, 0), min(left + 2 * _LANCZOS, size)):
                    values[i, j] += down[y - top] * stamp[y, x] * across[x - left]
    return values
