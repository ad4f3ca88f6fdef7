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
from lap_assets.science.background import Background, evaluate_background, measure_background
from lap_assets.science.detection import detect_sources, mask_sources, measure_sources, recenter_sources, select_stars
from lap_assets.science.photometry import measure_aperture_correction
from lap_assets.science.psf import PsfModel, PsfShape, fit_psf, measure_shape

_FIRST_FWHM_PX = 3.0
_GRID = 3  # positions per axis at which the shape of the PSF is averaged
_UNRELIABLE = ~3  # sep flags other than "has neighbours" and "was blended"
_MODEL_ERR = 0.01  # of an aperture correction computed from the PSF model alone
_BLENDED_ERR_PX = 0.05  # centroid error added for blended sources


@dataclass(frozen=True)
class ChipCatalog:
    """What was measured on one chip; pixels and the chip's unit throughout.

    `sources` has columns x, y, xy_err, flux, flux_err (total: aperture corrected), radius, peak, a, b, theta, mask,
    sep_flag, is_star, usable.
    """

    sources: pd.DataFrame
    background: Background
    psf: PsfModel
    shape: PsfShape
    aperture_correction: float
    aperture_correction_err: float


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
    max_stars: int = 120,
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

    Raises
    ------
    UnprocessableData
        No sky, no source, or no star.
    """
    usable = image.usable
    first = measure_background(image.sci, usable, mesh_px)
    sky_free = image.sci - evaluate_background(first.mesh, image.shape)
    sources, segments = detect_sources(sky_free, image.var, image.mask, threshold_sigma, min_px, _FIRST_FWHM_PX)
    if not len(sources):
        raise UnprocessableData("no source detected")
    background = measure_background(image.sci, usable & ~mask_sources(segments), mesh_px)
    sky_free = image.sci - evaluate_background(background.mesh, image.shape)
    sources = measure_sources(sky_free, image.var, image.mask, sources, aperture_fwhm * _FIRST_FWHM_PX)
    psf = _fit_stars(image, sky_free, sources, stamp_px, degree, max_stars)
    shape = _mean_shape(psf, image.shape)
    sources = recenter_sources(sky_free, image.mask, sources, shape.fwhm_px)
    sources = measure_sources(sky_free, image.var, image.mask, sources, aperture_fwhm * shape.fwhm_px)
    stars = select_stars(sources)
    correction, error = _correct_apertures(
        image, sky_free, sources, stars, psf, aperture_fwhm * shape.fwhm_px, total_fwhm * shape.fwhm_px
    )
    sources = sources.assign(
        flux=sources.flux * correction,
        flux_err=sources.flux_err * correction,
        is_star=stars,
        usable=_is_usable(sources, image.mask),
        xy_err=np.hypot(sources.xy_err, np.where(sources.sep_flag & 3, _BLENDED_ERR_PX, 0.0)).astype(np.float32),
    )
    return ChipCatalog(sources, background, psf, shape, correction, error)


def _is_usable(sources: pd.DataFrame, mask: np.ndarray) -> np.ndarray:
    """Sources whose core is free of mask bits and whose extraction is complete."""
    known = int(Mask.DETECTED | Mask.INTERPOLATED)
    return ((sources["mask"].to_numpy() & ~known) == 0) & ((sources.sep_flag.to_numpy() & _UNRELIABLE) == 0)


def _fit_stars(
    image: MaskedImage, sky_free: np.ndarray, sources: pd.DataFrame, stamp_px: int, degree: int, max_stars: int
) -> PsfModel:
    stars = sources[select_stars(sources)].sort_values("flux", ascending=False, kind="stable").head(max_stars)
    try:
        return fit_psf(
            sky_free, image.var, ~image.usable, stars.x.to_numpy(), stars.y.to_numpy(), stars.flux.to_numpy(),
            stamp_px=stamp_px, degree=degree,
        )  # fmt: skip
    except NoWork as error:
        raise UnprocessableData(f"{error} ({len(sources)} sources, {len(stars)} taken for stars)") from None


def _mean_shape(psf: PsfModel, shape: tuple[int, int]) -> PsfShape:
    """FWHM and ellipticity components averaged over a grid on the chip."""
    x = np.linspace(0.1, 0.9, _GRID) * shape[1]
    y = np.linspace(0.1, 0.9, _GRID) * shape[0]
    xs, ys = (one.ravel() for one in np.meshgrid(x, y))
    if psf.degree == 0:
        xs, ys = xs[:1], ys[:1]
    shapes = [measure_shape(stamp) for stamp in psf.evaluate_many(xs, ys)]
    return PsfShape(*(float(np.mean([getattr(one, name) for one in shapes])) for name in ("fwhm_px", "e1", "e2")))


def _correct_apertures(
    image: MaskedImage, sky_free: np.ndarray, sources: pd.DataFrame, stars: np.ndarray, psf: PsfModel,
    small_px: float, total_px: float,
) -> tuple[float, float]:  # fmt: skip
    """Ratio of total to aperture flux from isolated stars and, as far as they are uncertain, the PSF model."""
    positions = sources[["x", "y"]].to_numpy()
    flux = sources.flux.to_numpy()
    candidates = np.nonzero(stars & (flux > 50.0 * sources.flux_err.to_numpy()))[0]
    tree = cKDTree(positions)
    isolated = []
    for k in candidates:
        near = [i for i in tree.query_ball_point(positions[k], total_px + 2.0) if i != k]
        if flux[near].sum() < 0.01 * flux[k] and _clear(image, positions[k], total_px):
            isolated.append(k)
    model = _model_correction(psf, image.shape, small_px, total_px)
    if not isolated:
        return model, _MODEL_ERR
    chosen = sources.iloc[isolated]
    total = measure_sources(sky_free, image.var, image.mask, chosen, total_px)
    own, error = measure_aperture_correction(
        chosen.flux.to_numpy(), total.flux.to_numpy(), (total.flux / total.flux_err).to_numpy()
    )
    # with few stars the model, whose stamp cuts the outer wings, steadies the ratio
    share = _MODEL_ERR**2 / (_MODEL_ERR**2 + error**2)
    return share * own + (1.0 - share) * model, error * np.sqrt(share)


def _clear(image: MaskedImage, position: np.ndarray, radius: float) -> bool:
    """Whether the aperture lies on the image and nearly all its pixels are usable."""
    x, y = position
    ny, nx = image.shape
    if not (radius < x < nx - 1 - radius and radius < y < ny - 1 - radius):
        return False
    box = (slice(int(y - radius), int(y + radius) + 2), slice(int(x - radius), int(x + radius) + 2))
    return bool((image.mask[box] != 0).mean() < 0.005)


def _model_correction(psf: PsfModel, shape: tuple[int, int], small_px: float, total_px: float) -> float:
    stamp = psf.evaluate(0.5 * shape[1], 0.5 * shape[0])
    offset = np.arange(stamp.shape[0]) - stamp.shape[0] // 2
    radius = np.hypot(*np.meshgrid(offset, offset))
    # soft edges, one pixel wide, stand for the exact overlap of pixel and circle
    inside = [np.clip(limit - radius + 0.5, 0.0, 1.0) for limit in (small_px, total_px)]
    return float((stamp * inside[1]).sum() / (stamp * inside[0]).sum())
