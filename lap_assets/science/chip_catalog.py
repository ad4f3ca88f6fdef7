"""Everything measured on one chip before the sky and other chips come in: background, sources, stars, PSF, apertures.

It strings together the modules of single effects in the order a chip needs them; solutions of the exposure
(astrometry, zero point) are not made here.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from lap_assets.errors import NoWork, UnprocessableData
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.apertures import sum_apertures
from lap_assets.science.background import Background, evaluate_background, measure_background
from lap_assets.science.detection import detect_sources, mask_sources, measure_sources, recenter_sources, select_stars
from lap_assets.science.photometry import measure_aperture_correction
from lap_assets.science.psf import PsfModel, PsfResiduals, PsfShape, fit_psf, measure_residuals, measure_shape
from lap_assets.science.star_shapes import fit_moffat, measure_moments

_FIRST_FWHM_PX = 3.0
_GRID = 3  # positions per axis at which the shape of the PSF is averaged
_UNRELIABLE = ~3  # sep flags other than "has neighbours" and "was blended"
_MODEL_ERR = 0.01  # of an aperture correction computed from the PSF model alone
_BLENDED_ERR_PX = 0.05  # centroid error added for blended sources
_CORRECTION_GRID = 5  # positions per axis at which the aperture correction of the PSF model is computed
_RESERVED_PER_CENT = 15  # of the stars, kept out of the PSF model to judge it by
_MIN_STARS_TO_RESERVE = 20
_BRIGHT_SNR = 30.0
_TRAIL_SOURCES = 200  # the brightest ones, by which a trailed exposure is told
_MIN_TRAIL_SOURCES = 5


@dataclass(frozen=True)
class ChipCatalog:
    """What was measured on one chip; pixels and the chip's unit throughout.

    `sources` has columns x, y, xy_err, flux, flux_err (total: aperture corrected), radius, peak, a, b, theta, mask,
    sep_flag, is_star, usable. `shape` and the Moffat profile are means over the chip; `psf_residuals` are of stars that
    the model was not fitted to; `n_saturated` counts the sources with saturated cores. `star_radius_px` is the median
    half-light radius of what was taken for the PSF's stars; is_star is chosen again with the widths then known.
    """

    sources: pd.DataFrame
    background: Background
    psf: PsfModel
    shape: PsfShape
    aperture_correction: float
    aperture_correction_err: float
    fwhm_moffat_px: float
    moffat_beta: float
    psf_residuals: PsfResiduals
    n_saturated: int
    star_radius_px: float


def catalog_chip(
    image: MaskedImage,
    *,
    mesh_px: int = 128,
    threshold_sigma: float = 4.0,
    min_px: int = 5,
    aperture_fwhm: float = 1.5,
    total_fwhm: float = 4.0,
    stamp_px: int = 25,
    degree: int = 2,
    max_stars: int = 250,
    max_trail_ellipticity: float = 0.4,
    max_star_radius_px: float = np.inf,
) -> ChipCatalog:
    """Measure a calibrated chip.

    Parameters
    ----------
    image : MaskedImage
        Sky included.
    mesh_px : int
        Cells of the background.
    threshold_sigma, min_px
        Of the detection.
    aperture_fwhm, total_fwhm : float
        Radii in FWHM: of the aperture fluxes are measured in, and of the one they are corrected to.
    stamp_px, degree, max_stars
        Of the PSF model.
    max_trail_ellipticity : float
        (a² − b²)/(a² + b²) that the bright sources may have in common.
    max_star_radius_px : float
        Half-light radius above which a source is no star, where the seeing is known from elsewhere.

    Raises
    ------
    UnprocessableData
        No sky, no source, no star, all of them saturated, or a trailed exposure.
    """
    usable = image.usable
    first = measure_background(image.sci[::2, ::2], usable[::2, ::2], max(1, mesh_px // 2))
    sky_free = image.sci - evaluate_background(first.mesh, image.shape)
    sources, segments = detect_sources(sky_free, image.var, image.mask, threshold_sigma, min_px, _FIRST_FWHM_PX)
    if not len(sources):
        raise UnprocessableData("no source detected")
    background = measure_background(image.sci, usable & ~mask_sources(segments), mesh_px)
    sky_free = image.sci - evaluate_background(background.mesh, image.shape)
    sources = measure_sources(sky_free, image.var, image.mask, sources, aperture_fwhm * _FIRST_FWHM_PX)
    _refuse_trailed(sources, max_trail_ellipticity)
    psf, residuals, taken = fit_stars(image, sky_free, sources, stamp_px, degree, max_stars, max_star_radius_px)
    shape, fwhm_moffat, beta = _mean_shape(psf, image.shape)
    sources = recenter_sources(sky_free, image.var, image.mask, sources, shape.fwhm_px)
    sources = measure_sources(sky_free, image.var, image.mask, sources, aperture_fwhm * shape.fwhm_px)
    stars = select_stars(sources, max_radius_px=max_star_radius_px)
    relative, correction, error = _correct_apertures(
        image, sky_free, sources, stars, psf, aperture_fwhm * shape.fwhm_px, total_fwhm * shape.fwhm_px
    )
    sources = sources.assign(
        flux=sources.flux * correction * relative,
        flux_err=sources.flux_err * correction * relative,
        is_star=stars,
        usable=_is_usable(sources),
        xy_err=np.hypot(sources.xy_err, np.where(sources.sep_flag & 3, _BLENDED_ERR_PX, 0.0)).astype(np.float32),
    )
    n_saturated = int(_is_saturated(sources).sum())
    return ChipCatalog(
        sources, background, psf, shape, correction, error, fwhm_moffat, beta, residuals, n_saturated,
        float(sources.radius.loc[taken].median()),
    )  # fmt: skip


def _is_usable(sources: pd.DataFrame) -> np.ndarray:
    """Sources whose core is free of mask bits and whose extraction is complete."""
    known = int(Mask.DETECTED | Mask.INTERPOLATED)
    return ((sources["mask"].to_numpy() & ~known) == 0) & ((sources.sep_flag.to_numpy() & _UNRELIABLE) == 0)


def _is_saturated(sources: pd.DataFrame) -> np.ndarray:
    return (sources["mask"].to_numpy() & int(Mask.SATURATED)) != 0


def _refuse_trailed(sources: pd.DataFrame, limit: float) -> None:
    """Raise where bright sources are all drawn out in one direction, which neither galaxies nor optics do."""
    bright = sources[_is_usable(sources) & (sources.flux > _BRIGHT_SNR * sources.flux_err)]
    bright = bright.sort_values("flux", ascending=False, kind="stable").head(_TRAIL_SOURCES)
    if len(bright) < _MIN_TRAIL_SOURCES:
        return
    a2, b2, theta = (bright[name].to_numpy(float) for name in ("a", "b", "theta"))
    ellipticity = (a2**2 - b2**2) / np.maximum(a2**2 + b2**2, 1e-12)
    common = np.hypot(np.median(ellipticity * np.cos(2 * theta)), np.median(ellipticity * np.sin(2 * theta)))
    if common > limit:
        raise UnprocessableData(
            f"trailed exposure: {len(bright)} bright sources have an ellipticity of {common:.2f} in one direction, "
            f"{limit:.2f} is allowed"
        )


def fit_stars(
    image: MaskedImage, sky_free: np.ndarray, sources: pd.DataFrame, stamp_px: int, degree: int, max_stars: int,
    max_radius_px: float = np.inf,
) -> tuple[PsfModel, PsfResiduals, pd.Index]:  # fmt: skip
    """PSF model from the brightest stars, how it fits those that are reserved, and the rows of all of them."""
    chosen = select_stars(sources, max_radius_px=max_radius_px)
    stars = sources[chosen].sort_values("flux", ascending=False, kind="stable").head(max_stars)
    reserved = reserve_stars(stars.x.to_numpy(), stars.y.to_numpy())
    fitted, kept = stars[~reserved], stars[reserved]
    unusable = ~image.usable
    try:
        model = fit_psf(
            sky_free, image.var, unusable, fitted.x.to_numpy(), fitted.y.to_numpy(), fitted.flux.to_numpy(),
            stamp_px=stamp_px, degree=degree,
        )  # fmt: skip
    except NoWork as error:
        raise UnprocessableData(_tell_missing_stars(sources, len(stars), str(error))) from None
    residuals = measure_residuals(model, sky_free, image.var, unusable, kept.x.to_numpy(), kept.y.to_numpy())
    return model, residuals, stars.index


def reserve_stars(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which stars are kept out of the PSF model, (n,) bool: 15 % by a hash of their pixel, none where stars are few.

    The hash knows no other star, so that a star stays reserved whatever else is found.
    """
    if len(x) < _MIN_STARS_TO_RESERVE:
        return np.zeros(len(x), bool)
    pixel = np.rint(np.stack([x, y])).astype(np.int64)
    mixed = (pixel[0] * 73856093) ^ (pixel[1] * 19349663)
    return (mixed >> 3) % 100 < _RESERVED_PER_CENT


def _tell_missing_stars(sources: pd.DataFrame, n_stars: int, reason: str) -> str:
    """Why there is no star for the PSF model."""
    bright = (sources.flux > _BRIGHT_SNR * sources.flux_err).to_numpy()
    saturated = _is_saturated(sources)
    if bright.any() and saturated[bright].all():
        return f"all {int(bright.sum())} stars are saturated: expose shorter"
    return f"{reason} ({len(sources)} sources, {int(saturated.sum())} saturated, {n_stars} taken for stars)"


def _mean_shape(psf: PsfModel, shape: tuple[int, int]) -> tuple[PsfShape, float, float]:
    """FWHM and ellipticity components, and the FWHM and β of a Moffat profile, averaged over a grid on the chip."""
    xs, ys = _grid(shape, 1 if psf.degree == 0 else _GRID)
    stamps = psf.evaluate_many(xs, ys)
    shapes = [measure_shape(stamp) for stamp in stamps]
    profiles = np.array([fit_moffat(stamp) for stamp in stamps])
    mean = PsfShape(*(float(np.mean([getattr(one, name) for one in shapes])) for name in ("fwhm_px", "e1", "e2")))
    if not np.isfinite(mean.fwhm_px):
        raise UnprocessableData(f"the PSF of {psf.n_stars} stars has no measurable width: they are no stars")
    return mean, float(profiles[:, 0].mean()), float(profiles[:, 1].mean())


def _grid(shape: tuple[int, int], n: int) -> tuple[np.ndarray, np.ndarray]:
    """n × n positions x, y spread over the chip."""
    share = (np.arange(n) + 0.5) / n
    xs, ys = np.meshgrid(share * (shape[1] - 1), share * (shape[0] - 1))
    return xs.ravel(), ys.ravel()


def _correct_apertures(
    image: MaskedImage, sky_free: np.ndarray, sources: pd.DataFrame, stars: np.ndarray, psf: PsfModel,
    small_px: float, total_px: float,
) -> tuple[np.ndarray, float, float]:  # fmt: skip
    """Ratio of total to aperture flux: its variation over the chip from the PSF model, per source, and its mean.

    The mean comes from isolated stars and, as far as they are uncertain, from the model; with its error.
    """
    positions = sources[["x", "y"]].to_numpy()
    model, relative = _model_corrections(psf, image.shape, positions, small_px, total_px)
    flux = sources.flux.to_numpy() * relative
    candidates = np.nonzero(stars & (sources.flux > 50.0 * sources.flux_err).to_numpy())[0]
    tree = cKDTree(positions)
    isolated = []
    for k in candidates:
        near = [i for i in tree.query_ball_point(positions[k], total_px + 2.0) if i != k]
        if flux[near].sum() < 0.01 * flux[k] and _clear(image, positions[k], total_px):
            isolated.append(k)
    if not isolated:
        return relative, model, _MODEL_ERR
    total, total_err = sum_apertures(sky_free, image.var, image.mask, *positions[isolated].T, total_px)
    own, error = measure_aperture_correction(flux[isolated], total, total / total_err)
    # with few stars the model, whose stamp cuts the outer wings, steadies the ratio
    share = _MODEL_ERR**2 / (_MODEL_ERR**2 + error**2)
    return relative, share * own + (1.0 - share) * model, error * np.sqrt(share)


def _clear(image: MaskedImage, position: np.ndarray, radius: float) -> bool:
    """Whether the aperture lies on the image and nearly all its pixels are usable."""
    x, y = position
    ny, nx = image.shape
    if not (radius < x < nx - 1 - radius and radius < y < ny - 1 - radius):
        return False
    box = (slice(int(y - radius), int(y + radius) + 2), slice(int(x - radius), int(x + radius) + 2))
    return bool((image.mask[box] != 0).mean() < 0.005)


def _model_corrections(
    psf: PsfModel, shape: tuple[int, int], positions: np.ndarray, small_px: float, total_px: float
) -> tuple[float, np.ndarray]:
    """Total over aperture flux of the PSF model: its mean over the chip, and relative to it at `positions` (n, 2).

    It varies as the mean PSF does when it is stretched to the adaptive size at each place; the wings themselves, which
    the total needs, are too noisy to be followed over the chip.
    """
    xs, ys = _grid(shape, _CORRECTION_GRID)
    stamps = psf.evaluate_many(xs, ys)
    mean_psf = stamps.mean(axis=0)
    stretch = np.sqrt(measure_moments(stamps)[:, 2])
    stretch /= stretch.mean()
    offset = np.arange(psf.stamp_px) - psf.stamp_px // 2
    radius = np.hypot(*np.meshgrid(offset, offset))
    # soft edges, one pixel wide, stand for the exact overlap of pixel and circle
    limits = np.append(small_px / stretch, total_px)
    enclosed = (mean_psf * np.clip(limits[:, None, None] - radius + 0.5, 0.0, 1.0)).sum(axis=(1, 2))
    ratio = enclosed[-1] / enclosed[:-1]
    mean = float(ratio.mean())
    solution, *_ = np.linalg.lstsq(psf.terms_at(xs, ys), ratio / mean, rcond=None)
    return mean, psf.terms_at(*positions.T) @ solution
