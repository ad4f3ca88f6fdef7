"""All that a catalogue says of its objects in one band, as one table.

Here: the columns of a band, put together from `forced.py` (fluxes), `catalog.py` (flags), `star_galaxy.py` (spread) and
`stack_psf.py` (the PSF), and the columns of a band that is missing.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lap_assets.model.objects import SPOILT, ObjectFlag
from lap_assets.science.catalog import BandImage, measure_flags
from lap_assets.science.forced import (
    cut_stamps,
    measure_gauss_fluxes,
    measure_psf_fluxes,
    render_psfs,
    sum_ellipses,
)
from lap_assets.science.moffat import MoffatPsf
from lap_assets.science.psf_grid import PsfGrid
from lap_assets.science.stack_psf import StackPsf, model_stack_psf
from lap_assets.science.star_galaxy import measure_spread

_CHUNK = 2000  # objects whose stamps are held at once
AB_ZERO_NJY = 31.4  # AB magnitude of 1 nJy


@dataclass(frozen=True)
class PhotometryPlan:
    """What is to be measured, in pixels.

    Attributes
    ----------
    aperture_radii_px : tuple of float
        Circular apertures.
    gauss_fwhm_px : float
        Gaussian of the PSF-matched flux.
    psf_star_min_snr : float
    """

    aperture_radii_px: tuple[float, ...]
    gauss_fwhm_px: float
    psf_star_min_snr: float


def measure_band(
    objects: pd.DataFrame,
    band: BandImage,
    segments: np.ndarray,
    fwhm_px: float,
    plan: PhotometryPlan,
    expected: PsfGrid | None = None,
) -> tuple[pd.DataFrame, StackPsf]:
    """Measure known objects in one band.

    Parameters
    ----------
    objects : columns x, y, a_px, b_px, theta_rad, auto_scale, segment, flags
    fwhm_px : float
        Expected seeing of this band.
    expected : PsfGrid or None
        Mean PSF of the stack's inputs, for where its own stars are too few.

    Returns
    -------
    table : DataFrame in the order of `objects`
        flux_psf, flux_gauss, flux_auto, flux_aper<k> [nJy] each with `_err`, mag_auto, mag_auto_err [AB],
        spread_model, spread_model_err, flags; without band suffix. Errors include correlated noise. For a point source
        every one of them is its total flux.
    psf : StackPsf
    """
    x, y, ids = objects["x"].to_numpy(), objects["y"].to_numpy(), objects["segment"].to_numpy()
    scale = objects["auto_scale"].to_numpy()
    flags = objects["flags"].to_numpy() | measure_flags(objects, band, segments, scale, fwhm_px)
    core = _sum_circles(objects, band, segments, 1.25 * fwhm_px)
    snr = core[0] / np.maximum(core[1], 1e-30)
    clean = (flags & int(SPOILT)) == 0
    psf = model_stack_psf(
        band, segments, ids, x, y, core[0], snr, clean, fwhm_px, plan.psf_star_min_snr, expected=expected
    )
    table = measure_apertures(objects, band, segments, psf, plan.aperture_radii_px)
    stamps = [
        _measure_stamps(band, segments, ids[part], x[part], y[part], psf, plan.gauss_fwhm_px)
        for part in (slice(k, k + _CHUNK) for k in range(0, max(len(objects), 1), _CHUNK))
    ]
    table = table.join(pd.concat(stamps, ignore_index=True))
    auto, auto_err = measure_auto_fluxes(objects, band, segments, psf)
    table["flux_auto"], table["flux_auto_err"] = auto, auto_err
    table["mag_auto"], table["mag_auto_err"] = convert_to_magnitudes(auto, auto_err)
    rough = int(ObjectFlag.ROUGH_PSF) if isinstance(psf.model, MoffatPsf) else 0
    return table.assign(flags=(flags | rough).astype(np.int32)), psf


def missing_band(n: int, columns: list[str]) -> pd.DataFrame:
    """The columns of a band without image: NaN everywhere, flags `INCOMPLETE`."""
    table = pd.DataFrame({name: np.full(n, np.nan) for name in columns})
    return table.assign(flags=np.full(n, int(ObjectFlag.INCOMPLETE), np.int32))


def measure_apertures(
    objects: pd.DataFrame, band: BandImage, segments: np.ndarray, psf: StackPsf, radii_px: tuple[float, ...]
) -> pd.DataFrame:
    """Fluxes in circles, columns flux_aper1, flux_aper1_err, … [nJy], corrected for what a point source has outside."""
    columns: dict[str, np.ndarray] = {}
    inside = measure_enclosed(psf, band.sci.shape, np.array(radii_px))
    for k, radius in enumerate(radii_px):
        flux, error = _sum_circles(objects, band, segments, radius)
        columns[f"flux_aper{k + 1}"], columns[f"flux_aper{k + 1}_err"] = flux / inside[k], error / inside[k]
    return pd.DataFrame(columns, index=range(len(objects)))


def _sum_circles(
    objects: pd.DataFrame, band: BandImage, segments: np.ndarray, radius_px: float
) -> tuple[np.ndarray, np.ndarray]:
    circle = np.full(len(objects), radius_px)
    place = objects["segment"].to_numpy(), objects["x"].to_numpy(), objects["y"].to_numpy()
    sums = sum_ellipses(band.sci, band.var, band.empty, segments, *place, circle, circle, np.zeros(len(objects)))
    known = sums.empty_area < 0.5 * sums.area
    error = np.sqrt(sums.variance * band.noise_factor)
    return np.where(known, sums.flux, np.nan), np.where(known, error, np.nan)


def measure_auto_fluxes(
    objects: pd.DataFrame, band: BandImage, segments: np.ndarray, psf: StackPsf
) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes in each object's Kron ellipse and their errors, nJy, corrected for what a point source has outside.

    The correction takes the circle of the ellipse's area.
    """
    a, b = (objects[k].to_numpy() * objects["auto_scale"].to_numpy() for k in ("a_px", "b_px"))
    place = objects["segment"].to_numpy(), objects["x"].to_numpy(), objects["y"].to_numpy()
    sums = sum_ellipses(band.sci, band.var, band.empty, segments, *place, a, b, objects["theta_rad"].to_numpy())
    inside = measure_enclosed(psf, band.sci.shape, np.sqrt(a * b))
    known = sums.empty_area < 0.5 * sums.area
    flux, error = sums.flux / inside, np.sqrt(sums.variance * band.noise_factor) / inside
    return np.where(known, flux, np.nan), np.where(known, error, np.nan)


def measure_enclosed(psf: StackPsf, shape: tuple[int, int], radii_px: np.ndarray) -> np.ndarray:
    """Part of a point source's flux inside circles, for the PSF in the middle of the image; 1 beyond its stamp."""
    stamp = psf.model.evaluate((shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0)
    size = stamp.shape[0]
    nodes = np.linspace(0.5, size / 2.0, 4 * size)
    middle, zero = np.full(len(nodes), size // 2, float), np.zeros(len(nodes))
    nothing, none = np.zeros((size, size), bool), np.zeros((size, size), np.int32)
    flat = stamp.astype(np.float32)
    grown = sum_ellipses(flat, flat, nothing, none, zero.astype(int), middle, middle, nodes, nodes, zero).flux
    return np.interp(radii_px, nodes, np.minimum(grown, 1.0), right=1.0)


def _measure_stamps(
    band: BandImage, segments: np.ndarray, ids: np.ndarray, x: np.ndarray, y: np.ndarray, psf: StackPsf, gauss_px: float
) -> pd.DataFrame:
    size = psf.model.evaluate(0.0, 0.0).shape[0]
    psfs = render_psfs(psf.model, x, y)
    stamps = cut_stamps(band.sci, band.var, band.empty, segments, ids.astype(np.int64), x, y, size)
    columns = {}
    columns["flux_psf"], columns["flux_psf_err"] = measure_psf_fluxes(*stamps, psfs)
    columns["flux_gauss"], columns["flux_gauss_err"] = measure_gauss_fluxes(*stamps, psfs, gauss_px)
    columns["spread_model"], columns["spread_model_err"] = measure_spread(*stamps, psfs, psf.fwhm_px)
    correlated = np.sqrt(band.noise_factor)
    return pd.DataFrame({k: v * correlated if k.endswith("_err") else v for k, v in columns.items()})


def convert_to_magnitudes(flux_njy: np.ndarray, error_njy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AB magnitudes and their errors; NaN where the flux is not positive."""
    flux = np.where(flux_njy > 0, flux_njy, np.nan)
    return AB_ZERO_NJY - 2.5 * np.log10(flux), 2.5 / np.log(10.0) * error_njy / flux
