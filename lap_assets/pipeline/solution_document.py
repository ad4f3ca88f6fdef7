"""What the solution of an exposure holds: its document, its table of sources, its meshes, its picture, its metrics.

Nothing is measured or judged here; `solutions.py` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.model.camera import Camera, header_footprint
from lap_assets.pipeline.task import Task
from lap_assets.qa.plots import plot_focal_plane
from lap_assets.science import photometry
from lap_assets.science.astrometry import ChipAstrometry
from lap_assets.science.chip_catalog import ChipCatalog
from lap_assets.science.focal_plane_sky import FocalPlaneSky
from lap_assets.science.quality import measure_t_eff
from lap_assets.science.tan_sip import project_tan
from lap_assets.science.zero_point import ZeroPoint
from lap_assets.settings import QualitySettings

ASTROMETRY_MIN_SNR = 10.0  # of stars used for astrometry
_UNITS = {
    "x": "pix", "y": "pix", "xy_err": "pix", "ra": "deg", "dec": "deg", "flux": "chip unit", "flux_err": "chip unit",
    "mag": "mag", "mag_err": "mag", "radius": "pix", "peak": "chip unit", "a": "pix", "b": "pix", "theta": "rad",
    "ref_mag": "mag", "colour": "mag",
}  # fmt: skip
_FIRST = (
    "chip", "x", "y", "xy_err", "ra", "dec", "flux", "flux_err", "mag", "mag_err", "is_star", "usable", "ref_id",
    "ref_mag", "colour",
)  # fmt: skip


@dataclass
class SolvedChip:
    """One chip on its way through the solution; `reason` says why it failed."""

    header: fits.Header
    shape: tuple[int, int]
    measured: ChipCatalog | None = None
    astrometry: ChipAstrometry | None = None
    reason: str = ""

    @property
    def for_astrometry(self) -> np.ndarray:
        """Rows of the sources that enter the astrometric fit."""
        table = self.measured.sources
        bright = table.flux.to_numpy() > ASTROMETRY_MIN_SNR * table.flux_err.to_numpy()
        return np.nonzero(table.usable.to_numpy() & bright)[0]

    @property
    def matched_sources(self) -> pd.DataFrame:
        """Sources in the astrometric fit, in the order of `astrometry.refs`."""
        return self.measured.sources.iloc[self.for_astrometry[self.astrometry.stars]]

    @property
    def solved_header(self) -> fits.Header:
        """The solved header, or the chip's own where it was not solved."""
        return self.astrometry.header if self.astrometry else self.header

    @property
    def centre(self) -> tuple[float, float]:
        """Right ascension and declination of its middle, degrees."""
        ra, dec = WCS(self.solved_header).all_pix2world((self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2, 0)
        return float(ra), float(dec)

    @property
    def scale_arcsec(self) -> float:
        """Arcsec per pixel in its middle."""
        x, y = self.shape[1] / 2, self.shape[0] / 2
        ra, dec = WCS(self.solved_header).all_pix2world([x, x + 1], [y, y + 1], 0)
        step = np.hypot((ra[1] - ra[0]) * np.cos(np.radians(dec[0])), dec[1] - dec[0])
        return float(step * 3600.0 / np.sqrt(2.0))


# ---- tables and meshes


def join_sources(
    chips: Mapping[str, SolvedChip], reference: pd.DataFrame | None, zero_point_mag: float
) -> pd.DataFrame:
    """The sources of all chips in one table, with their places on the sky, magnitudes and reference stars."""
    tables = []
    for name, chip in sorted(chips.items()):
        table = chip.measured.sources
        ra, dec = WCS(chip.astrometry.header).all_pix2world(table.x.to_numpy(), table.y.to_numpy(), 0)
        positive = table.flux.to_numpy() > 0
        flux = np.where(positive, table.flux.to_numpy(), 1.0)
        found = {"ref_id": np.full(len(table), -1, np.int64)}
        found |= {column: np.full(len(table), np.nan, np.float32) for column in ("ref_mag", "colour")}
        if reference is not None and len(chip.astrometry.stars):
            rows = chip.for_astrometry[chip.astrometry.stars]
            for column, own in zip(found, ("source_id", "ref_mag", "colour"), strict=True):
                found[column][rows] = reference[own].to_numpy()[chip.astrometry.refs]
        tables.append(
            table.assign(
                chip=name, ra=ra % 360.0, dec=dec, **found,
                mag=np.where(positive, zero_point_mag - 2.5 * np.log10(flux), np.nan),
                mag_err=np.where(positive, 1.0857 * table.flux_err / flux, np.nan),
            )
        )  # fmt: skip
    joined = pd.concat(tables, ignore_index=True)
    joined = joined[[*_FIRST, *(name for name in joined.columns if name not in _FIRST)]]
    joined.attrs["units"] = {name: unit for name, unit in _UNITS.items() if name in joined.columns}
    return joined


def list_backgrounds(
    chips: Mapping[str, SolvedChip], meshes: Mapping[str, np.ndarray] | None = None
) -> dict[str, tuple[np.ndarray, fits.Header]]:
    """A plane per chip: its own mesh, or the one given; HDU names are capitals."""
    planes = {}
    for name, chip in sorted(chips.items()):
        mesh = chip.measured.background.mesh if meshes is None else meshes[name]
        header = fits.Header()
        header["CHIPNX"], header["CHIPNY"] = chip.shape[1], chip.shape[0]
        header["MESHX"] = (chip.shape[1] / mesh.shape[1], "pixels per cell")
        header["MESHY"] = (chip.shape[0] / mesh.shape[0], "pixels per cell")
        planes[name.upper()] = (mesh, header)
    return planes


def draw_preview(chips: Mapping[str, SolvedChip]) -> bytes:
    """The focal plane coloured by FWHM; failed chips in red (LV-12), where their own header puts them."""
    footprints = {name: header_footprint(chip.solved_header) for name, chip in chips.items()}
    fwhm = {name: chip.measured.shape.fwhm_px * chip.scale_arcsec for name, chip in chips.items() if chip.measured}
    failed = sorted(name for name, chip in chips.items() if chip.reason)
    return plot_focal_plane(footprints, fwhm, "FWHM [arcsec]", failed, thumbnail=True)


# ---- the document


def describe_chip(chip: SolvedChip, zero_point_mag: float) -> dict[str, Any]:
    """What is known of a chip, as JSON."""
    if chip.reason:
        return {"state": "failed", "reason": chip.reason}
    one, measured, residuals = chip.astrometry, chip.measured, chip.measured.psf_residuals
    noise = measured.background.noise
    return {
        "state": "good",
        "reason": "",
        "wcs": {card.keyword: card.value for card in one.header.cards},
        "order": one.order,
        "astrometry": {-1: "header as given", 0: "header, shifted"}.get(one.order, "fitted"),
        "note": one.note,
        "astrometry_rms_mas": [_round(value, 2) for value in one.rms_mas],
        "n_matched": one.n_matched,
        "fwhm_arcsec": _round(measured.shape.fwhm_px * chip.scale_arcsec, 4),
        "fwhm_moffat_arcsec": _round(measured.fwhm_moffat_px * chip.scale_arcsec, 4),
        "moffat_beta": _round(measured.moffat_beta, 3),
        "ellipticity": _round(measured.shape.ellipticity, 4),
        "e1": _round(measured.shape.e1, 4),
        "e2": _round(measured.shape.e2, 4),
        "psf_n_stars": measured.psf.n_stars,
        "psf_degree": measured.psf.degree,
        "psf_residual": _round(measured.psf.residual, 5),
        "psf_n_reserved": residuals.n,
        "psf_residual_e": [_round(residuals.e1, 5), _round(residuals.e2, 5)],
        "psf_residual_size": _round(residuals.size, 5),
        "n_saturated": measured.n_saturated,
        "aperture_correction": _round(measured.aperture_correction, 5),
        "aperture_correction_err": _round(measured.aperture_correction_err, 5),
        "sky": _round(measured.background.level, 3),
        "sky_rms": _round(noise, 4),
        "n_sources": len(measured.sources),
        "n_stars": int(measured.sources.is_star.sum()),
        "limit_mag_5sigma": _round(photometry.measure_depth(zero_point_mag, noise, measured.shape.fwhm_px), 3),
    }


def describe_exposure(
    task: Task, chips: dict[str, dict[str, Any]], zero_point: ZeroPoint, source: str, camera: Camera,
    sky: FocalPlaneSky,
) -> dict[str, Any]:  # fmt: skip
    """What is known of an exposure, as JSON; `chips` as `describe_chip` has them."""
    good = [one for one in chips.values() if one["state"] == "good"]
    middle = {name: float(np.median([one[name] for one in good])) for name in ("fwhm_arcsec", "ellipticity", "sky")}
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
        "fwhm_arcsec": middle["fwhm_arcsec"],
        "ellipticity": middle["ellipticity"],
        "t_eff": _round(_effective_time(task, middle, zero_point.mag, task.settings.quality), 4),
        "focal_plane": _describe_focal_plane(good),
        "sky_order": sky.order,
        "sky_rms": _round(sky.rms, 4),
        "chip_counts": _count_chips(task, chips, camera),
        "chips": chips,
    }


def _count_chips(task: Task, chips: Mapping[str, Mapping[str, Any]], camera: Camera) -> dict[str, int]:
    """GW-07: chips good, failed, incomplete (working ones the exposure came without) and known to be broken."""
    good = sum(one["state"] == "good" for one in chips.values())
    taken = len(task.params["chips"])
    return {
        "good": good,
        "failed": taken - good,
        "incomplete": len(camera.good_chips) - taken,
        "broken": len(camera.chips) - len(camera.good_chips),
        "all": len(camera.chips),
    }


def _effective_time(task: Task, middle: Mapping[str, float], zero_point_mag: float, chosen: QualitySettings) -> float:
    band, exptime_s = task.params["band"], task.params["exptime_s"]
    clear = chosen.reference_zero_point_mag.get(band, np.nan)
    transparency = 10.0 ** (0.4 * (zero_point_mag - 2.5 * np.log10(exptime_s) - clear))
    reference = chosen.reference_fwhm_arcsec, chosen.reference_sky_e_s.get(band, np.nan)
    return measure_t_eff(middle["fwhm_arcsec"], middle["sky"] / exptime_s, transparency, *reference)


def _describe_focal_plane(chips: list[dict[str, Any]]) -> dict[str, float]:
    """Middle of the mosaic on the sky, and how far its corners are from it along either axis, degrees."""
    corners = [np.array(header_footprint(fits.Header(list(chip["wcs"].items())))) for chip in chips]
    ra, dec = np.concatenate(corners).T
    ra0, dec0 = float(ra[0]), float(dec[0])
    xi, eta = project_tan(ra, dec, ra0, dec0)
    east, north = 0.5 * (xi.min() + xi.max()), 0.5 * (eta.min() + eta.max())
    reach = max(float(np.ptp(xi)), float(np.ptp(eta))) / 2.0
    return {
        "ra_deg": round((ra0 + east / np.cos(np.radians(dec0))) % 360.0, 6),
        "dec_deg": round(dec0 + north, 6),
        "radius_deg": round(reach, 6),
    }


def summarise(document: dict[str, Any], sources: pd.DataFrame, zero_point: ZeroPoint) -> dict[str, Any]:
    """Metrics of the manifest: the exposure's QC1 parameters (PHX-08)."""
    good = [one for one in document["chips"].values() if one["state"] == "good"]
    metrics = {f"chips_{name}": value for name, value in document["chip_counts"].items() if name != "all"}
    metrics |= {
        "n_sources": len(sources),
        "n_stars": int(sources.is_star.sum()),
        "n_matched": sum(one["n_matched"] for one in good),
        "fwhm_arcsec": round(document["fwhm_arcsec"], 4),
        "fwhm_moffat_arcsec": round(float(np.median([one["fwhm_moffat_arcsec"] for one in good])), 4),
        "ellipticity": round(document["ellipticity"], 4),
        "sky": round(float(np.median([one["sky"] for one in good])), 3),
        "zero_point_mag": round(zero_point.mag, 4),
        "zero_point_rms_mmag": round(1000 * zero_point.rms_mag, 2),
        "limit_mag_5sigma": round(float(np.median([one["limit_mag_5sigma"] for one in good])), 3),
    }
    metrics |= _average_psf_residuals(good)
    if document["t_eff"] is not None:
        metrics["t_eff"] = document["t_eff"]
    for axis, name in enumerate(("ra", "dec")):
        values = [one["astrometry_rms_mas"][axis] for one in good if one["astrometry_rms_mas"][axis] is not None]
        if values:
            metrics[f"astrometry_rms_{name}_mas"] = round(float(np.median(values)), 2)
    return metrics


def _average_psf_residuals(good: list[dict[str, Any]]) -> dict[str, Any]:
    """Residuals of the PSF models over the stars of all chips that were kept out of the fits."""
    count = np.array([one["psf_n_reserved"] for one in good], float)
    metrics: dict[str, Any] = {
        "n_psf_stars": sum(one["psf_n_stars"] for one in good),
        "n_psf_reserved": int(count.sum()),
    }
    if count.sum():
        e1, e2, size = (
            float(np.sum([n * value for n, value in zip(count, values, strict=True) if n]) / count.sum())
            for values in (
                *zip(*(one["psf_residual_e"] for one in good), strict=True),
                [one["psf_residual_size"] for one in good],
            )
        )
        metrics |= {"psf_residual_e": round(float(np.hypot(e1, e2)), 5), "psf_residual_size": round(size, 5)}
    return metrics


def _round(value: float, digits: int) -> float | None:
    """JSON has no NaN: null stands for what could not be measured."""
    return round(float(value), digits) if np.isfinite(value) else None
