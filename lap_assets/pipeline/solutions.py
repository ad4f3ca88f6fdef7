"""Solutions of an exposure: background, sources and PSF of every chip, astrometry, zero point.

One unit per exposure: chips are read one after the other, and what is kept of them is small. How things are measured is
`science/chip_catalog.py`, `science/astrometry.py` and `science/photometry.py`.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.errors import NotFound, UnprocessableData
from lap_assets.model.camera import header_footprint, load_camera
from lap_assets.model.ids import DataId
from lap_assets.model.survey import Survey
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.plots import plot_focal_plane
from lap_assets.science import photometry
from lap_assets.science.astrometry import ChipAstrometry, ChipStars, keep_headers, solve_exposure
from lap_assets.science.chip_catalog import ChipCatalog, catalog_chip
from lap_assets.settings import Settings
from lap_assets.store.refcat import describe_refcat
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

_J2000_MJD, _JULIAN_YEAR_D = 51544.5, 365.25
_MIN_SNR = 10.0  # of stars used for astrometry
_UNITS = {
    "x": "pix", "y": "pix", "xy_err": "pix", "ra": "deg", "dec": "deg", "flux": "chip unit", "flux_err": "chip unit",
    "mag": "mag", "mag_err": "mag", "radius": "pix", "peak": "chip unit", "a": "pix", "b": "pix", "theta": "rad",
}  # fmt: skip


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
    """Sources, background, astrometry, zero point and PSF of one exposure."""
    if "missing" in task.params:
        raise UnprocessableData(task.params["missing"])
    camera = load_camera(task.params["camera"], repo.cameras)
    chips = _measure_chips(task, repo)
    good = {name: chip for name, chip in chips.items() if not chip.reason}
    if len(good) < camera.min_good_chips:
        raise UnprocessableData(_tell_failures(chips, camera.min_good_chips))
    catalog = _read_catalog(task, repo, good)
    solved = _solve_astrometry(task, good, catalog)
    for name, one in solved.items():
        chips[name].astrometry = one
        if one.order < 1 and task.params["kind"] != "calibrated":
            chips[name].reason = f"{one.n_matched} stars match the reference catalogue: too few for this chip"
    good = {name: chip for name, chip in chips.items() if not chip.reason}
    if len(good) < camera.min_good_chips:
        raise UnprocessableData(_tell_failures(chips, camera.min_good_chips))
    zero_point, source = _solve_zero_point(task, good, catalog)
    sources = _join_sources(good, catalog, zero_point.mag)
    document = _describe_exposure(task, chips, zero_point, source)
    # HDU names are capitals
    backgrounds = {name.upper(): _background_plane(chip) for name, chip in sorted(good.items())}
    members = {
        "solution.json": document, "sources.parquet": sources, "backgrounds.fits": backgrounds,
        "preview.png": _draw_preview(chips),
    }  # fmt: skip
    return Output(members, _summarise(document, sources, zero_point))


@dataclass
class _Chip:
    """One chip on its way through the solution; `reason` says why it failed."""

    header: fits.Header
    shape: tuple[int, int]
    scale_arcsec: float
    measured: ChipCatalog | None = None
    astrometry: ChipAstrometry | None = None
    reason: str = ""

    @property
    def for_astrometry(self) -> np.ndarray:
        """Rows of the sources that enter the astrometric fit."""
        table = self.measured.sources
        return np.nonzero(table.usable.to_numpy() & (table.flux.to_numpy() > _MIN_SNR * table.flux_err.to_numpy()))[0]


def _measure_chips(task: Task, repo: Repo) -> dict[str, _Chip]:
    chosen = task.settings.solutions
    chips = {}
    for pin in task.pins("chips"):
        name = pin.data_id.unit
        image = repo.read_image(pin)
        chip = _Chip(image.header, image.shape, _pixel_scale(image.header))
        try:
            chip.measured = catalog_chip(
                image, mesh_px=chosen.background_mesh_px, threshold_sigma=chosen.detection_sigma,
                min_px=chosen.detection_min_px, aperture_fwhm=chosen.aperture_fwhm,
                total_fwhm=chosen.total_aperture_fwhm, stamp_px=chosen.psf_stamp_px, degree=chosen.psf_degree,
                max_stars=chosen.psf_max_stars,
            )  # fmt: skip
        except UnprocessableData as error:
            chip.reason = str(error)
            log.warning("chip %s: %s", name, error)
        chips[name] = chip
    _share_aperture_corrections([chip for _, chip in sorted(chips.items()) if chip.measured])
    return chips


def _share_aperture_corrections(chips: list[_Chip]) -> None:
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


def _tell_failures(chips: dict[str, _Chip], needed: int) -> str:
    reasons = "; ".join(f"{name}: {chip.reason}" for name, chip in sorted(chips.items()) if chip.reason)
    good = sum(not chip.reason for chip in chips.values())
    return f"{good} good chips, {needed} are needed ({reasons or 'no chip was made'})"


def _pixel_scale(header: fits.Header) -> float:
    """Arcsec per pixel at the middle of the image."""
    x, y = header["NAXIS1"] / 2, header["NAXIS2"] / 2
    ra, dec = WCS(header).all_pix2world([x, x + 1], [y, y + 1], 0)
    step = np.hypot((ra[1] - ra[0]) * np.cos(np.radians(dec[0])), dec[1] - dec[0])
    return float(step * 3600.0 / np.sqrt(2.0))


# ---- astrometry and zero point


def _read_catalog(task: Task, repo: Repo, chips: dict[str, _Chip]) -> pd.DataFrame | None:
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
    margin = task.settings.solutions.pointing_radius_arcsec / 3600.0
    catalog = repo.read_refcat(task.params["refcat"], centre_ra % 360.0, centre_dec, 1.02 * float(away.max()) + margin)
    magnitude = f"mag_{task.params['band']}"
    if magnitude in catalog:
        faint_enough = ~(catalog[magnitude].to_numpy(float) < task.settings.solutions.reference_mag_min)
        catalog = catalog[faint_enough].reset_index(drop=True)
    return catalog


def _solve_astrometry(task: Task, chips: dict[str, _Chip], catalog: pd.DataFrame | None) -> dict[str, ChipAstrometry]:
    chosen = task.settings.solutions
    stars = {}
    for name, chip in chips.items():
        table = chip.measured.sources.iloc[chip.for_astrometry]
        stars[name] = ChipStars(
            *(table[column].to_numpy(float) for column in ("x", "y", "xy_err", "flux")), chip.header, chip.shape
        )
    if catalog is None or not len(catalog):
        return keep_headers(stars)
    epoch = 2000.0 + (task.params["mjd"] - _J2000_MJD) / _JULIAN_YEAR_D
    return solve_exposure(
        stars, catalog, epoch, trusted=task.params["kind"] == "calibrated",
        pointing_radius_arcsec=chosen.pointing_radius_arcsec, match_radius_arcsec=chosen.match_radius_arcsec,
        max_order=chosen.distortion_order,
    )  # fmt: skip


def _solve_zero_point(
    task: Task, chips: dict[str, _Chip], catalog: pd.DataFrame | None
) -> tuple[photometry.ZeroPoint, str]:
    """Zero point of the exposure, and where it comes from: `reference` or `given`."""
    magnitude = f"mag_{task.params['band']}"
    if catalog is not None and magnitude in catalog:
        tables = [
            _matched_sources(chip).assign(ref_mag=catalog[magnitude].to_numpy(float)[chip.astrometry.refs])
            for chip in chips.values()
        ]
        stars = pd.concat(tables)
        found = photometry.fit_zero_point(*(stars[name].to_numpy(float) for name in ("flux", "flux_err", "ref_mag")))
        if found and found.n_stars >= task.settings.solutions.zero_point_min_stars:
            return found, "reference"
    given = [value for name, value in sorted(task.params["zero_points"].items()) if name in chips]
    if not given:
        raise UnprocessableData(
            f"no zero point: too few stars with {magnitude} in catalogue {task.params['refcat']!r}, and none is given; "
            "ingest a catalogue with magnitudes of this band"
        )
    rms = float(np.std(given))
    return photometry.ZeroPoint(float(np.median(given)), rms / np.sqrt(len(given)), rms, 0), "given"


def _matched_sources(chip: _Chip) -> pd.DataFrame:
    """Sources in the astrometric fit, in the order of `astrometry.refs`."""
    return chip.measured.sources.iloc[chip.for_astrometry[chip.astrometry.stars]]


# ---- what is published


def _join_sources(chips: dict[str, _Chip], catalog: pd.DataFrame | None, zero_point_mag: float) -> pd.DataFrame:
    tables = []
    for name, chip in sorted(chips.items()):
        table = chip.measured.sources
        ra, dec = WCS(chip.astrometry.header).all_pix2world(table.x.to_numpy(), table.y.to_numpy(), 0)
        positive = table.flux.to_numpy() > 0
        flux = np.where(positive, table.flux.to_numpy(), 1.0)
        ref_id = np.full(len(table), -1, np.int64)
        if catalog is not None and len(chip.astrometry.stars):
            ref_id[chip.for_astrometry[chip.astrometry.stars]] = catalog.source_id.to_numpy(np.int64)[
                chip.astrometry.refs
            ]
        tables.append(
            table.assign(
                chip=name, ra=ra % 360.0, dec=dec, ref_id=ref_id,
                mag=np.where(positive, zero_point_mag - 2.5 * np.log10(flux), np.nan),
                mag_err=np.where(positive, 1.0857 * table.flux_err / flux, np.nan),
            )
        )  # fmt: skip
    first = [
        "chip",
        "x",
        "y",
        "xy_err",
        "ra",
        "dec",
        "flux",
        "flux_err",
        "mag",
        "mag_err",
        "is_star",
        "usable",
        "ref_id",
    ]
    joined = pd.concat(tables, ignore_index=True)
    joined = joined[first + [name for name in joined.columns if name not in first]]
    joined.attrs["units"] = {name: unit for name, unit in _UNITS.items() if name in joined.columns}
    return joined


def _background_plane(chip: _Chip) -> tuple[np.ndarray, fits.Header]:
    background = chip.measured.background
    header = fits.Header()
    header["CHIPNX"], header["CHIPNY"] = chip.shape[1], chip.shape[0]
    header["MESHX"] = (chip.shape[1] / background.mesh.shape[1], "pixels per cell")
    header["MESHY"] = (chip.shape[0] / background.mesh.shape[0], "pixels per cell")
    return background.mesh, header


def _describe_chip(chip: _Chip, zero_point_mag: float) -> dict[str, Any]:
    if chip.reason:
        return {"state": "failed", "reason": chip.reason}
    one, measured = chip.astrometry, chip.measured
    noise = measured.background.noise
    return {
        "state": "good",
        "reason": "",
        "wcs": {card.keyword: card.value for card in one.header.cards},
        "order": one.order,
        "astrometry": {-1: "header as given", 0: "header, shifted"}.get(one.order, "fitted"),
        "astrometry_rms_mas": [_round(value, 2) for value in one.rms_mas],
        "n_matched": one.n_matched,
        "fwhm_arcsec": _round(measured.shape.fwhm_px * chip.scale_arcsec, 4),
        "ellipticity": _round(measured.shape.ellipticity, 4),
        "e1": _round(measured.shape.e1, 4),
        "e2": _round(measured.shape.e2, 4),
        "psf_n_stars": measured.psf.n_stars,
        "psf_degree": measured.psf.degree,
        "psf_residual": _round(measured.psf.residual, 5),
        "aperture_correction": _round(measured.aperture_correction, 5),
        "aperture_correction_err": _round(measured.aperture_correction_err, 5),
        "sky": _round(measured.background.level, 3),
        "sky_rms": _round(noise, 4),
        "n_sources": len(measured.sources),
        "n_stars": int(measured.sources.is_star.sum()),
        "limit_mag_5sigma": _round(photometry.measure_depth(zero_point_mag, noise, measured.shape.fwhm_px), 3),
    }


def _round(value: float, digits: int) -> float | None:
    """JSON has no NaN: null stands for what could not be measured."""
    return round(float(value), digits) if np.isfinite(value) else None


def _describe_exposure(
    task: Task, chips: dict[str, _Chip], zero_point: photometry.ZeroPoint, source: str
) -> dict[str, Any]:
    described = {name: _describe_chip(chip, zero_point.mag) for name, chip in sorted(chips.items())}
    good = [one for one in described.values() if one["state"] == "good"]
    return {
        "exposure": task.data_id.partition,
        "band": task.params["band"],
        "mjd": task.params["mjd"],
        "exptime_s": task.params["exptime_s"],
        "zero_point_mag": zero_point.mag,
        "zero_point_err_mag": zero_point.err_mag,
        "zero_point_rms_mag": zero_point.rms_mag,
        "n_zero_point_stars": zero_point.n_stars,
        "zero_point_source": source,
        "fwhm_arcsec": float(np.median([one["fwhm_arcsec"] for one in good])),
        "ellipticity": float(np.median([one["ellipticity"] for one in good])),
        "chips": described,
    }


def _draw_preview(chips: dict[str, _Chip]) -> bytes:
    """The focal plane coloured by FWHM; failed chips, in red, where their own header puts them."""
    good = {name: chip for name, chip in chips.items() if not chip.reason}
    headers = {name: chip.astrometry.header if name in good else chip.header for name, chip in chips.items()}
    footprints = {name: header_footprint(header) for name, header in headers.items()}
    fwhm = {name: chip.measured.shape.fwhm_px * chip.scale_arcsec for name, chip in good.items()}
    return plot_focal_plane(footprints, fwhm, "FWHM [arcsec]", sorted(chips.keys() - good.keys()), thumbnail=True)


def _summarise(document: dict[str, Any], sources: pd.DataFrame, zero_point: photometry.ZeroPoint) -> dict[str, Any]:
    """Metrics of the manifest."""
    good = [one for one in document["chips"].values() if one["state"] == "good"]
    metrics = {
        "chips_good": len(good),
        "chips_failed": len(document["chips"]) - len(good),
        "n_sources": len(sources),
        "n_stars": int(sources.is_star.sum()),
        "n_matched": sum(one["n_matched"] for one in good),
        "fwhm_arcsec": round(document["fwhm_arcsec"], 4),
        "ellipticity": round(document["ellipticity"], 4),
        "zero_point_mag": round(zero_point.mag, 4),
        "zero_point_rms_mmag": round(1000 * zero_point.rms_mag, 2),
        "limit_mag_5sigma": round(float(np.median([one["limit_mag_5sigma"] for one in good])), 3),
    }
    for axis, name in enumerate(("ra", "dec")):
        values = [one["astrometry_rms_mas"][axis] for one in good if one["astrometry_rms_mas"][axis] is not None]
        if values:
            metrics[f"astrometry_rms_{name}_mas"] = round(float(np.median(values)), 2)
    return metrics
