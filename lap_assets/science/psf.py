"""The point-spread function: a pixel basis that varies as a polynomial over the image, fitted to its stars.

Used on single chips and on stacks. Choosing the stars is the caller's (`science/detection.py`); measuring galaxies with
the model is `science/shear.py`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lap_assets.errors import NoWork

_LANCZOS = 5
_ROUNDS = 4
_STARS_PER_TERM = 3  # stars wanted per coefficient of the polynomial
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
        terms = _polynomial_terms(np.asarray(x, float), np.asarray(y, float), self.frame, self.degree)
        stamps = np.tensordot(terms, self.basis.astype(np.float64), axes=1)
        return stamps / stamps.sum(axis=(1, 2), keepdims=True)

    def draw(self, x: float, y: float) -> np.ndarray:
        """The PSF at (x, y) on the pixel grid: its centre is off the middle pixel by x − round(x), y − round(y)."""
        shift = np.array([x - np.rint(x)]), np.array([y - np.rint(y)])
        return shift_stamps(self.evaluate(x, y)[None], *shift)[0]

    def to_planes(self) -> dict[str, np.ndarray]:
        """Arrays that hold the model (FITS planes); read back by `from_planes`."""
        meta = np.array([self.degree, *self.frame, self.n_stars, self.residual], np.float64)
        return {"PSF": self.basis.astype(np.float32), "PSFMETA": meta}

    @classmethod
    def from_planes(cls, planes: Mapping[str, Any]) -> "PsfModel":
        """The model from the planes of `to_planes` (plain arrays, or (array, header) as `Repo.read_planes` gives)."""
        basis, meta = (
            planes[name][0] if isinstance(planes[name], tuple) else planes[name] for name in ("PSF", "PSFMETA")
        )
        return cls(
            np.asarray(basis, np.float32), int(meta[0]), tuple(map(float, meta[1:5])), int(meta[5]), float(meta[6])
        )


@dataclass(frozen=True)
class PsfShape:
    """FWHM in pixels and the two components of the distortion (a² − b²)/(a² + b²), from adaptive moments."""

    fwhm_px: float
    e1: float
    e2: float

    @property
    def ellipticity(self) -> float:
        return float(np.hypot(self.e1, self.e2))


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
    are three stars per coefficient.

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
    keep = np.ones(len(stars.flux), bool)
    used = _affordable_degree(len(keep), degree)
    basis = np.zeros((_count_terms(used), stamp_px, stamp_px))
    for number in range(_ROUNDS):
        terms = _polynomial_terms(stars.x, stars.y, frame, used)
        model = _model_stamps(terms, basis) if number else np.zeros_like(stars.data)
        basis = basis + _fit_residuals(stars, model, terms, keep)
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
    s = stamp.shape[0]
    offset = np.arange(s) - s // 2
    xx, yy = np.meshgrid(offset, offset)
    cov = np.array([[2.0, 0.0], [0.0, 2.0]])
    for _ in range(60):
        inverse = np.linalg.inv(cov)
        weight = np.exp(-0.5 * (inverse[0, 0] * xx**2 + 2 * inverse[0, 1] * xx * yy + inverse[1, 1] * yy**2)) * stamp
        total = weight.sum()
        moments = np.array(
            [[(weight * xx**2).sum(), (weight * xx * yy).sum()], [(weight * xx * yy).sum(), (weight * yy**2).sum()]]
        )
        updated = 2.0 * moments / total
        if not np.all(np.isfinite(updated)) or np.linalg.det(updated) <= 0.01:
            break
        done = np.abs(updated - cov).max() < 1e-7
        cov = updated
        if done:
            break
    trace = cov[0, 0] + cov[1, 1]
    return PsfShape(_half_maximum_width(stamp, cov), (cov[0, 0] - cov[1, 1]) / trace, 2 * cov[0, 1] / trace)


def shift_stamps(stamps: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Stamps (n, s, s) whose content is moved by (dx, dy) pixels each, Lanczos-5, zero beyond the edges."""
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


def _fit_residuals(stars: _Stars, model: np.ndarray, terms: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Noise-weighted polynomial fit, pixel by pixel, to the stars' residuals on the pixel grid; (n_terms, s, s)."""
    n, s, _ = stars.data.shape
    predicted = stars.flux[:, None, None] * shift_stamps(model, stars.dx, stars.dy)
    residual = np.where(stars.weight > 0, stars.data - predicted, 0.0)
    centred = shift_stamps(residual, -stars.dx, -stars.dy) / stars.flux[:, None, None]
    # one weight per star (its noise in units of its flux, tempered so that the brightest do not rule alone)
    noise = (
        np.median(1.0 / np.where(stars.weight > 0, stars.weight, np.inf).clip(1e-30), axis=(1, 2)) ** 0.5 / stars.flux
    )
    floor = np.median(noise[keep])
    weight = np.where(keep, 1.0 / (noise**2 + floor**2), 0.0)
    root = np.sqrt(weight / weight.max())
    solution, *_ = np.linalg.lstsq(terms * root[:, None], centred.reshape(n, s * s) * root[:, None], rcond=1e-8)
    return solution.reshape(-1, s, s)


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


def _affordable_degree(stars: int, degree: int) -> int:
    while degree > 0 and stars < _STARS_PER_TERM * _count_terms(degree):
        degree -= 1
    return degree


def _polynomial_terms(x: np.ndarray, y: np.ndarray, frame: tuple[float, ...], degree: int) -> np.ndarray:
    u, v = (x - frame[0]) / frame[2], (y - frame[1]) / frame[3]
    return np.stack([u ** (total - j) * v**j for total in range(degree + 1) for j in range(total + 1)], axis=1)


def _shift_matrices(shift: np.ndarray, s: int) -> np.ndarray:
    """(n, s, s) matrices that move a row of s pixels by `shift`."""
    distance = np.arange(s)[None, :, None] - np.arange(s)[None, None, :] - shift[:, None, None]
    kernel = np.sinc(distance) * np.sinc(distance / _LANCZOS) * (np.abs(distance) < _LANCZOS)
    return kernel


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


def _sample_lanczos(stamp: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    grid = np.arange(stamp.shape[0])

    def weights(position: np.ndarray) -> np.ndarray:
        distance = position[..., None] - grid
        return np.sinc(distance) * np.sinc(distance / _LANCZOS) * (np.abs(distance) < _LANCZOS)

    return np.einsum("...y,yx,...x->...", weights(ys), stamp, weights(xs))
