"""Stage `object_catalogs`: the objects of a skycell, found on all its bands together and measured in each.

Planning and joining only; detection and photometry are in `science/`.
"""

import logging
from typing import Any

import numpy as np
import pandas as pd

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId, join_key
from lap_assets.model.image import MaskedImage
from lap_assets.model.survey import Survey
from lap_assets.pipeline.psf_members import read_psf_grid
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.pictures import MAX_THUMBNAIL_BYTES, colour_picture, thumbnail
from lap_assets.science import catalog, star_galaxy
from lap_assets.science.band_photometry import PhotometryPlan, measure_band, missing_band
from lap_assets.science.stack_psf import StackPsf
from lap_assets.settings import ObjectCatalogSettings, Settings
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

UNITS = {
    "ra": "deg", "dec": "deg", "x": "pix", "y": "pix", "a_px": "pix", "b_px": "pix", "theta_rad": "rad",
    "snr_peak": "sigma", "radius_auto_arcsec": "arcsec",
}  # fmt: skip


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per skycell of the cell that has a final stack in any band."""
    cell = survey.cells[partition]
    bands = survey.bands_of.get(partition, ())
    tasks = []
    for name, skycell in sorted(cell.skycells.items()):
        stacks = [DataId(collection, "final_stacks", join_key(partition, band), name) for band in bands]
        if not any(repo.manifest(stack) for stack in stacks):
            continue
        pins = sorted(pin for pin in map(repo.pin, stacks) if pin)
        params: dict[str, Any] = {"bands": list(bands), "inner": list(skycell.inner)}
        if not pins:
            params["missing"] = f"no usable final stack of skycell {name} in {', '.join(bands)}"
        tasks.append(Task(DataId(collection, "object_catalogs", partition, name), tuple(pins), settings, params))
    return tasks


def make(task: Task, repo: Repo) -> Output:
    """Detect and measure; members: the table, the segments, a colour picture."""
    if reason := task.params.get("missing"):
        raise NoWork(reason)
    settings = task.settings.object_catalogs
    images, fwhms, psfs = {}, {}, {}
    for pin in sorted(task.pins("final_stacks")):
        band = pin.data_id.parts[1]
        images[band] = repo.read_image(pin)
        fwhms[band] = measure_seeing(repo.read_table(pin, "inputs.parquet"))
        psfs[band] = read_psf_grid(repo, pin)
    scale = pixel_scale_arcsec(next(iter(images.values())))
    bands = {b: prepare_band(image, b, settings.background_mesh_px) for b, image in images.items()}
    objects, segments = find_objects(list(bands.values()), min(fwhms.values()) / scale, scale, settings)
    objects = objects[catalog.select_owned(objects["x"], objects["y"], task.params["inner"])].reset_index(drop=True)
    wcs = next(iter(images.values())).wcs
    ra, dec = wcs.all_pix2world(objects["x"].to_numpy(), objects["y"].to_numpy(), 0)
    names = catalog.name_objects(task.data_id.partition, task.data_id.unit, objects["segment"].to_numpy())
    table = pd.DataFrame({"object_id": names, "ra": ra, "dec": dec})
    table["radius_auto_arcsec"] = objects["auto_scale"] * np.sqrt(objects["a_px"] * objects["b_px"]) * scale
    table = table.join(objects.drop(columns=["kron", "auto_scale"]))
    todo = plan_photometry(fwhms, scale, settings)
    measured = {
        b: measure_band(objects, image, segments, fwhms[b] / scale, todo, psfs[b]) for b, image in bands.items()
    }
    table = join_bands(table, {b: t for b, (t, _) in measured.items()}, task.params["bands"])
    log.info("%s: %d objects in %s", task.data_id, len(table), ", ".join(bands))
    metrics = summarise(table, {b: psf for b, (_, psf) in measured.items()}, scale)
    members = {
        "objects.parquet": table,
        "segments.fits": {"SEGMENT": (segments.astype(np.int32), next(iter(images.values())).header)},
        "preview.png": draw_preview(images),
    }
    return Output(members, metrics)


def prepare_band(image: MaskedImage, band: str, mesh_px: int) -> catalog.BandImage:
    """A stack ready to be measured; NOISECOV of its header says how correlated its noise is."""
    return catalog.prepare_band(image, band, mesh_px, float(image.header.get("NOISECOV", 1.0)))


def pixel_scale_arcsec(image: MaskedImage) -> float:
    return float(abs(image.header["CD1_1"]) * 3600.0)


def measure_seeing(inputs: pd.DataFrame) -> float:
    """Weighted mean FWHM (arcsec) of what a stack was made from."""
    known = inputs[np.isfinite(inputs["fwhm_arcsec"]) & (inputs["weight"] > 0) & (inputs["fwhm_arcsec"] > 0)]
    if not len(known):
        return 1.0  # nothing is known of the seeing (given stacks): a usual value
    return float(np.average(known["fwhm_arcsec"], weights=known["weight"]))


def find_objects(
    bands: list[catalog.BandImage], fwhm_px: float, scale: float, settings: ObjectCatalogSettings
) -> tuple[pd.DataFrame, np.ndarray]:
    """Detections on all bands, with `segment` and `auto_scale`; raises `NoWork` where no band has data."""
    snr, empty = catalog.combine_bands(bands)
    if empty.all():
        raise NoWork("no pixel with data in any band of this skycell")
    objects, segments = catalog.detect_objects(
        snr, empty, fwhm_px, settings.detection_sigma, settings.min_area_px, settings.deblend_contrast
    )
    objects["segment"] = np.arange(1, len(objects) + 1, dtype=np.int32)
    objects["auto_scale"] = catalog.measure_kron_radii(
        objects, settings.kron_factor, settings.kron_min_radius_arcsec / scale
    )
    return objects, segments


def plan_photometry(fwhms: dict[str, float], scale: float, settings: ObjectCatalogSettings) -> PhotometryPlan:
    """The same apertures for all bands; the Gaussian is widened to 1.4 of the worst seeing where need be."""
    gauss = max(settings.gauss_fwhm_arcsec, 1.4 * max(fwhms.values()))
    radii = tuple(d / 2.0 / scale for d in settings.aperture_diameters_arcsec)
    return PhotometryPlan(radii, gauss / scale, settings.psf_star_min_snr)


def join_bands(table: pd.DataFrame, measured: dict[str, pd.DataFrame], bands: list[str]) -> pd.DataFrame:
    """Add the columns of each band as `<name>_<band>`, the classification from all bands, and the units."""
    names = [name for name in next(iter(measured.values())).columns if name != "flags"]
    spreads, units = [], dict(UNITS)
    for band in bands:
        columns = measured.get(band, missing_band(len(table), names))
        if {"spread_model", "spread_model_err"} <= set(columns):
            spreads.append(columns[["spread_model", "spread_model_err"]].to_numpy().T)
        columns = columns.drop(columns=["spread_model", "spread_model_err"], errors="ignore").add_suffix(f"_{band}")
        units |= {c: "mag" if c.startswith("mag") else "nJy" for c in columns if not c.startswith("flags")}
        table = table.join(columns)
        if band in measured:
            table["flags"] |= columns[f"flags_{band}"]
    stacked = np.array(spreads) if spreads else np.full((1, 2, len(table)), np.nan)
    spread, error = star_galaxy.combine_spreads(stacked[:, 0], stacked[:, 1])
    table = table.assign(
        spread_model=spread, spread_model_err=error, extendedness=star_galaxy.classify_extendedness(spread, error)
    )
    table.attrs["units"] = units
    return table


def summarise(table: pd.DataFrame, psfs: dict[str, StackPsf], scale: float) -> dict[str, Any]:
    """Counts, and per band the PSF and the depth (5 sigma, point source, from the median error of faint objects)."""
    metrics: dict[str, Any] = {"n_objects": len(table), "n_stars": int(np.sum(table["extendedness"] == 0))}
    for band, psf in psfs.items():
        metrics[f"psf_fwhm_{band}_arcsec"] = round(psf.fwhm_px * scale, 3)
        metrics[f"psf_stars_{band}"] = psf.n_stars
        error = table[f"flux_psf_err_{band}"] if len(table) else pd.Series(dtype=float)
        if error.notna().any():
            # the error of a bright object is its own light
            metrics[f"depth_5sigma_{band}_mag"] = round(float(31.4 - 2.5 * np.log10(5.0 * error.quantile(0.2))), 3)
    return metrics


def draw_preview(images: dict[str, MaskedImage]) -> bytes:
    """A small colour picture of the three reddest bands, or a grey one."""
    order = [band for band in "yzirgu" if band in images][:3]
    if len(order) < 3:
        image = next(iter(images.values()))
        return thumbnail(image.sci, image.mask)
    return colour_picture(*(images[b].sci for b in order[::-1]), size_px=160, max_bytes=MAX_THUMBNAIL_BYTES)
