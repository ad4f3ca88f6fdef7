"""Solutions of an exposure: background, sources and PSF of every chip, astrometry, zero point, quality.

One unit per exposure: chips are read one after the other, and what is kept of them is small. How things are measured is
`science/chip_catalog.py`, `science/astrometry.py` and `science/zero_point.py`; what is published of it is written down
in `solution_document.py`.
"""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from astropy.wcs import WCS

from lap_assets.errors import NotFound, UnprocessableData
from lap_assets.model.camera import ColourTerm, header_footprint, load_camera
from lap_assets.model.ids import DataId
from lap_assets.model.image import MaskedImage
from lap_assets.model.survey import Survey
from lap_assets.pipeline.psf_members import PSF_MODELS, planes_of_models
from lap_assets.pipeline.solution_document import (
    SolvedChip,
    describe_chip,
    describe_exposure,
    draw_preview,
    join_sources,
    list_backgrounds,
    summarise,
)
from lap_assets.pipeline.task import Output, Task
from lap_assets.science import photometry
from lap_assets.science.astrometry import ChipAstrometry, ChipStars, keep_headers, solve_exposure
from lap_assets.science.chip_catalog import ChipCatalog, catalog_chip
from lap_assets.science.focal_plane_sky import FocalPlaneSky, SkyCells, fit_focal_plane_sky
from lap_assets.science.quality import judge_measures
from lap_assets.science.star_sizes import fits_better, limit_star_sizes
from lap_assets.science.tan_sip import project_tan
from lap_assets.science.zero_point import ZeroPoint, fit_zero_point, transform_magnitudes
from lap_assets.settings import QualitySettings, Settings
from lap_assets.store.refcat import describe_refcat
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

J2000_MJD, JULIAN_YEAR_D = 51544.5, 365.25


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task: the exposure with all its finished chips pinned."""
    exposure = survey.exposures[partition]
    camera = load_camera(exposure.camera, repo.cameras)
    pins = [repo.pin(DataId(collection, "chips", partition, file.chip)) for file in exposure.chips]
    name = survey.reference_catalogs.get(exposure.band, survey.reference_catalogs.get("*", ""))
    params: dict[str, Any] = {
        "camera": camera.name, "camera_sha256": camera.sha256, "band": exposure.band, "kind": exposure.kind,
        "night": exposure.night,
        "mjd": exposure.mjd, "exptime_s": exposure.exptime_s, "refcat": name,
        "chips": sorted({file.chip for file in exposure.chips} & set(camera.good_chips)),
        "zero_points": {f.chip: f.zero_point_mag for f in exposure.chips if f.zero_point_mag is not None},
    }  # fmt: skip
    if name:
        try:
            params["refcat_version"] = describe_refcat(repo.layout, name)["version"]
        except NotFound as error:
            params["missing"] = str(error)
    found = tuple(sorted(pin for pin in pins if pin is not None))
    return [Task(DataId(collection, "solutions", partition), found, settings, params)]


def make(task: Task, repo: Repo) -> Output:
    """Sources, background, astrometry, zero point, PSF and quality of one exposure."""
    if "missing" in task.params:
        raise UnprocessableData(task.params["missing"])
    camera = load_camera(task.params["camera"], repo.cameras)
    chips = _measure_chips(task, repo)
    good = _keep_good(chips, camera.min_good_chips)
    catalog = _read_catalog(task, repo, good)
    for name, one in _solve_astrometry(task, good, catalog).items():
        chips[name].astrometry = one
        if one.order < 1 and task.params["kind"] != "calibrated":
            chips[name].reason = f"{one.n_matched} stars match the reference catalogue: too few for this chip"
    good = _keep_good(chips, camera.min_good_chips)
    reference = _transform_catalog(catalog, task.params["band"], camera.colour_terms.get(task.params["band"]))
    zero_point, source = _solve_zero_point(task, good, reference)
    described = {name: describe_chip(chip, zero_point.mag) for name, chip in sorted(chips.items())}
    _judge_chips(chips, described, task.settings.quality, task.params["band"])
    good = _keep_good(chips, camera.min_good_chips)
    sky = _fit_sky(good, task.settings.solutions.focal_plane_sky_order)
    document = describe_exposure(task, described, zero_point, source, camera, sky)
    sources = join_sources(good, reference, zero_point.mag)
    members = {
        "solution.json": document, "sources.parquet": sources, "backgrounds.fits": list_backgrounds(good),
        "skies.fits": list_backgrounds(good, sky.meshes), "preview.png": draw_preview(chips),
        PSF_MODELS: planes_of_models({name: chip.measured.psf for name, chip in good.items()}),
    }  # fmt: skip
    return Output(members, summarise(document, sources, zero_point))


def _measure_chips(task: Task, repo: Repo) -> dict[str, SolvedChip]:
    pins = {pin.data_id.unit: pin for pin in task.pins("chips")}
    chips = {name: _measure_chip(task, repo.read_image(pin)) for name, pin in pins.items()}
    measured = {name: chip.measured for name, chip in chips.items() if chip.measured}
    limits = limit_star_sizes(
        {name: one.sources for name, one in measured.items()},
        {name: one.star_radius_px for name, one in measured.items()},
    )
    for name, limit in limits.items():
        again = _measure_chip(task, repo.read_image(pins[name]), limit)
        if again.measured and fits_better(again.measured.psf.residual, chips[name].measured.psf.residual):
            _tell_new_choice(name, chips[name].measured, again.measured)
            chips[name] = again
    _share_aperture_corrections([chip for _, chip in sorted(chips.items()) if chip.measured])
    return chips


def _tell_new_choice(name: str, before: ChipCatalog, after: ChipCatalog) -> None:
    log.warning(
        "chip %s: stars chosen again, FWHM %.2f px instead of %.2f, PSF residual %.3f instead of %.3f",
        name, after.shape.fwhm_px, before.shape.fwhm_px, after.psf.residual, before.psf.residual,
    )  # fmt: skip


def _measure_chip(task: Task, image: MaskedImage, max_star_radius_px: float = np.inf) -> SolvedChip:
    chosen = task.settings.solutions
    chip = SolvedChip(image.header, image.shape)
    try:
        chip.measured = catalog_chip(
            image, mesh_px=chosen.background_mesh_px, threshold_sigma=chosen.detection_sigma,
            min_px=chosen.detection_min_px, aperture_fwhm=chosen.aperture_fwhm,
            total_fwhm=chosen.total_aperture_fwhm, stamp_px=chosen.psf_stamp_px, degree=chosen.psf_degree,
            max_stars=chosen.psf_max_stars, max_trail_ellipticity=chosen.max_trail_ellipticity,
            max_star_radius_px=max_star_radius_px,
        )  # fmt: skip
    except UnprocessableData as error:
        chip.reason = str(error)
        log.warning("chip %s: %s", image.header.get("CHIP", ""), error)
    return chip


def _share_aperture_corrections(chips: list[SolvedChip]) -> None:
    """Replace each chip's aperture correction, uncertain by itself, by its share of the exposure's."""
    if not chips:
        return
    own = np.array([chip.measured.aperture_correction for chip in chips])
    errors = np.array([chip.measured.aperture_correction_err for chip in chips])
    shared = photometry.combine_aperture_corrections(own, errors)
    for chip, ratio, value in zip(chips, shared / own, shared, strict=True):
        sources = chip.measured.sources
        sources = sources.assign(flux=sources.flux * ratio, flux_err=sources.flux_err * ratio)
        chip.measured = replace(chip.measured, sources=sources, aperture_correction=float(value))


def _keep_good(chips: dict[str, SolvedChip], needed: int) -> dict[str, SolvedChip]:
    """The chips that have not failed so far; raises `UnprocessableData` where they are too few for an exposure."""
    good = {name: chip for name, chip in chips.items() if not chip.reason}
    if len(good) < needed:
        reasons = "; ".join(f"{name}: {chip.reason}" for name, chip in sorted(chips.items()) if chip.reason)
        raise UnprocessableData(f"{len(good)} good chips, {needed} are needed ({reasons or 'no chip was made'})")
    return good


def _judge_chips(
    chips: dict[str, SolvedChip], described: dict[str, dict[str, Any]], chosen: QualitySettings, band: str
) -> None:
    """LV-12: chips beyond the cuts on seeing, shape, PSF model and astrometry have failed, too."""
    limits = {
        "fwhm_moffat_arcsec": chosen.max_fwhm_arcsec_by_band.get(band, chosen.max_fwhm_arcsec),
        "ellipticity": chosen.max_ellipticity_by_band.get(band, chosen.max_ellipticity),
        "psf_residual": chosen.max_psf_residual,
        "astrometry_rms_mas": chosen.max_astrometry_rms_mas,
    }
    for name, chip in chips.items():
        if chip.reason:
            continue
        measures = described[name]
        rms = [value for value in measures["astrometry_rms_mas"] if value is not None]
        chip.reason = judge_measures(measures | {"astrometry_rms_mas": max(rms, default=None)}, limits)
        if chip.reason:
            described[name] = measures | {"state": "failed", "reason": chip.reason}


# ---- astrometry, zero point and sky


def _read_catalog(task: Task, repo: Repo, chips: dict[str, SolvedChip]) -> pd.DataFrame | None:
    """Reference stars around the chips, or None where the survey names no catalogue."""
    if not task.params["refcat"]:
        if task.params["kind"] != "calibrated":
            raise UnprocessableData("no reference catalogue: ingest one with `lap ingest FILE --kind refcat`")
        return None
    corners = np.array([corner for chip in chips.values() for corner in header_footprint(chip.header)])
    ra0 = corners[0, 0]
    east = (corners[:, 0] - ra0 + 180.0) % 360.0 - 180.0
    centre_ra, centre_dec = ra0 + 0.5 * (east.min() + east.max()), 0.5 * (corners[:, 1].min() + corners[:, 1].max())
    away = np.hypot((east - (centre_ra - ra0)) * np.cos(np.radians(centre_dec)), corners[:, 1] - centre_dec)
    radius = 1.02 * float(away.max()) + task.settings.solutions.pointing_radius_arcsec / 3600.0
    catalog = repo.read_refcat(task.params["refcat"], centre_ra % 360.0, centre_dec, radius)
    magnitude = f"mag_{task.params['band']}"
    if magnitude in catalog:
        faint_enough = ~(catalog[magnitude].to_numpy(float) < task.settings.solutions.reference_mag_min)
        catalog = catalog[faint_enough].reset_index(drop=True)
    if not len(catalog) and task.params["kind"] != "calibrated":
        raise UnprocessableData(
            f"reference catalogue {task.params['refcat']!r} has no star here (RA {centre_ra % 360.0:.3f} Dec "
            f"{centre_dec:.3f}): ingest one that covers the field"
        )
    return catalog


def _solve_astrometry(
    task: Task, chips: dict[str, SolvedChip], catalog: pd.DataFrame | None
) -> dict[str, ChipAstrometry]:
    chosen = task.settings.solutions
    stars = {}
    for name, chip in chips.items():
        table = chip.measured.sources.iloc[chip.for_astrometry]
        stars[name] = ChipStars(
            *(table[column].to_numpy(float) for column in ("x", "y", "xy_err", "flux")), chip.header, chip.shape
        )
    if catalog is None or (not len(catalog) and task.params["kind"] == "calibrated"):
        return keep_headers(stars)
    epoch = 2000.0 + (task.params["mjd"] - J2000_MJD) / JULIAN_YEAR_D
    return solve_exposure(
        stars, catalog, epoch, trusted=task.params["kind"] == "calibrated",
        pointing_radius_arcsec=chosen.pointing_radius_arcsec, match_radius_arcsec=chosen.match_radius_arcsec,
        max_order=chosen.distortion_order, max_rotation_deg=chosen.pointing_rotation_deg,
    )  # fmt: skip


def _transform_catalog(catalog: pd.DataFrame | None, band: str, term: ColourTerm | None) -> pd.DataFrame | None:
    """The catalogue with `ref_mag`, in the camera's own band, and `colour` (NaN where they are not known)."""
    if catalog is None:
        return None
    names = {band, *(term.bands if term else ())}
    magnitudes = {
        name: catalog[f"mag_{name}"].to_numpy(float) if f"mag_{name}" in catalog else np.full(len(catalog), np.nan)
        for name in sorted(names)
    }
    blue, red = term.bands if term else (band, band)
    bands, coefficient = (term.bands, term.coefficient) if term else (None, 0.0)
    return catalog.assign(
        ref_mag=transform_magnitudes(magnitudes, band, bands, coefficient),
        colour=magnitudes[blue] - magnitudes[red] if term else np.nan,
    )


def _solve_zero_point(
    task: Task, chips: dict[str, SolvedChip], reference: pd.DataFrame | None
) -> tuple[ZeroPoint, str]:
    """Zero point of the exposure, and where it comes from: `reference` or `given`."""
    if reference is not None:
        pairs = [(chip.matched_sources, chip.astrometry.refs) for _, chip in sorted(chips.items())]
        flux, err = (np.concatenate([one[name].to_numpy(float) for one, _ in pairs]) for name in ("flux", "flux_err"))
        mag = np.concatenate([reference.ref_mag.to_numpy(float)[refs] for _, refs in pairs])
        found = fit_zero_point(flux, err, mag)
        if found and found.n_stars >= task.settings.solutions.zero_point_min_stars:
            return found, "reference"
    given = [value for name, value in sorted(task.params["zero_points"].items()) if name in chips]
    if not given:
        raise UnprocessableData(
            f"no zero point: too few stars with mag_{task.params['band']} in catalogue {task.params['refcat']!r}, and "
            "none is given; ingest a catalogue with magnitudes of this band"
        )
    rms = float(np.std(given))
    return ZeroPoint(float(np.median(given)), rms / np.sqrt(len(given)), rms, 0), "given"


def _fit_sky(chips: dict[str, SolvedChip], order: int) -> FocalPlaneSky:
    """One smooth sky for the exposure, from the meshes of its chips where they lie in the focal plane (LV-17)."""
    cells = {}
    ra0, dec0 = next(iter(chips.values())).centre
    for name, chip in chips.items():
        mesh = chip.measured.background.mesh
        step_y, step_x = chip.shape[0] / mesh.shape[0], chip.shape[1] / mesh.shape[1]
        x, y = np.meshgrid((np.arange(mesh.shape[1]) + 0.5) * step_x, (np.arange(mesh.shape[0]) + 0.5) * step_y)
        sky = WCS(chip.astrometry.header).all_pix2world(x.ravel(), y.ravel(), 0)
        xi, eta = project_tan(*sky, ra0, dec0)
        cells[name] = SkyCells(mesh, xi.reshape(mesh.shape), eta.reshape(mesh.shape))
    return fit_focal_plane_sky(cells, order)
