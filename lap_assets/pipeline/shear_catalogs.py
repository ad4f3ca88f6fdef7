"""Stage `shear_catalogs`: PSF-corrected shapes of the galaxies behind the lens, one table per skycell.

Planning and joining only; the shapes are measured in `science/shear.py`.
"""

import logging
from typing import Any

import numpy as np
import pandas as pd

from lap_assets.errors import NoWork, UnprocessableData
from lap_assets.model.ids import DataId, Pin, join_key
from lap_assets.model.objects import SPOILT, Extendedness
from lap_assets.model.survey import Survey
from lap_assets.pipeline.object_catalogs import measure_seeing, pixel_scale_arcsec, prepare_band
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.plots import plot_shears
from lap_assets.science import plane, shear
from lap_assets.science.stack_psf import StackPsf, model_stack_psf
from lap_assets.settings import Settings, ShearCatalogSettings
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

UNITS = {"ra": "deg", "dec": "deg", "size_arcsec": "arcsec", "mag": "mag"}


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per skycell with objects, on the stack of one band; objects of the whole cell show the red sequence."""
    catalogs = repo.units(collection, "object_catalogs", partition)
    pins = {unit.unit: pin for unit in catalogs if (pin := repo.pin(unit))}
    band = choose_band(repo, collection, partition, survey.bands_of.get(partition, ()), settings.shear_catalogs.band)
    tasks = []
    for unit in catalogs:
        data_id = DataId(collection, "shear_catalogs", partition, unit.unit)
        stack = repo.pin(DataId(collection, "final_stacks", join_key(partition, band), unit.unit)) if band else None
        params: dict[str, Any] = {"band": band}
        if unit.unit not in pins:
            params["missing"] = f"no objects in skycell {unit.unit}"
        elif stack is None:
            params["missing"] = f"no final stack of skycell {unit.unit} in band {band}"
        inputs = () if "missing" in params else (*pins.values(), stack)
        tasks.append(Task(data_id, tuple(sorted(inputs)), settings, params))
    return tasks


def choose_band(repo: Repo, collection: str, cell: str, bands: tuple[str, ...], wanted: str) -> str:
    """The wanted band if the cell has it, else the one with the most stacked skycells (the first of equals)."""
    if wanted in bands:
        return wanted
    counts = {
        b: sum(bool(repo.pin(u)) for u in repo.units(collection, "final_stacks", join_key(cell, b))) for b in bands
    }
    return max(sorted(counts), key=lambda b: counts[b], default="")


def make(task: Task, repo: Repo) -> Output:
    """Model the PSF, measure shapes, cut, weigh; members: the table and a picture of the mean shear."""
    if reason := task.params.get("missing"):
        raise NoWork(reason)
    settings, name = task.settings.shear_catalogs, task.params["band"]
    (stack,) = task.pins("final_stacks")
    own = next(pin for pin in task.pins("object_catalogs") if pin.data_id.unit == task.data_id.unit)
    objects, image = repo.read_table(own, "objects.parquet"), repo.read_image(stack)
    segments = repo.read_planes(own, "segments.fits")["SEGMENT"][0]
    scale = pixel_scale_arcsec(image)
    band = prepare_band(image, name, settings.background_mesh_px)
    fwhm = measure_seeing(repo.read_table(stack, "inputs.parquet"))
    flux, error = (objects[f"{k}_{name}"].to_numpy() for k in ("flux_psf", "flux_psf_err"))
    snr = np.nan_to_num(flux / error)
    clean = objects["extendedness"].isin([Extendedness.STAR, Extendedness.LIKELY_STAR]).to_numpy() & np.isfinite(flux)
    clean &= (objects[f"flags_{name}"] & int(SPOILT) == 0).to_numpy()
    place = objects["x"].to_numpy(), objects["y"].to_numpy()
    limits = settings.psf_star_min_snr, settings.min_psf_stars
    ids = objects["segment"].to_numpy()
    psf = model_stack_psf(band, segments, ids, *place, np.nan_to_num(flux), snr, clean, fwhm / scale, *limits)
    if psf.degree < 0:
        raise UnprocessableData(f"too few stars for a PSF model in {name} (at least {settings.min_psf_stars} needed)")
    sequence = read_red_sequence(task.pins("object_catalogs"), repo, settings)
    chosen = select_background(objects, snr, name, sequence, settings)
    table = measure_galaxies(
        objects[chosen].assign(snr=snr[chosen], mag=objects[f"mag_auto_{name}"].to_numpy()[chosen]),
        band,
        segments,
        psf,
        settings,
    )
    sky = plane.turn_to_sky(table["e1"], table["e2"], table["x"], table["y"], image.wcs)
    table = table.assign(e1=sky[0], e2=sky[1], size_arcsec=table["size_px"] * scale).drop(columns=["size_px", "x", "y"])
    table.attrs["units"] = UNITS
    metrics = summarise(table, psf, sequence, int(chosen.sum()), scale)
    log.info("%s: %d shapes, PSF from %d stars", task.data_id, len(table), psf.n_stars)
    return Output({"shear.parquet": table, "preview.png": plot_shears(table, thumbnail=True)}, metrics)


def read_red_sequence(pins: tuple[Pin, ...], repo: Repo, settings: ShearCatalogSettings) -> shear.RedSequence | None:
    """The red sequence of the whole cell, or None where none stands out or a band is missing."""
    blue, red = settings.colour_bands
    columns = ["extendedness", f"flux_gauss_{blue}", f"flux_gauss_{red}", f"mag_auto_{red}"]
    tables = [repo.read_table(pin, "objects.parquet") for pin in pins]
    if not all(set(columns) <= set(table.columns) for table in tables):
        return None
    table = pd.concat([t[columns] for t in tables])
    table = table[table["extendedness"] >= int(Extendedness.LIKELY_GALAXY)]
    return shear.find_red_sequence(
        measure_colour(table, blue, red), table[f"mag_auto_{red}"].to_numpy(), settings.red_sequence_mags
    )


def measure_colour(objects: pd.DataFrame, blue: str, red: str) -> np.ndarray:
    """PSF-matched colour, AB mag; NaN where either flux is not positive."""
    pair = [objects[f"flux_gauss_{band}"].to_numpy() for band in (blue, red)]
    good = (pair[0] > 0) & (pair[1] > 0)
    return np.where(good, -2.5 * np.log10(np.where(good, pair[0], 1.0) / np.where(good, pair[1], 1.0)), np.nan)


def select_background(
    objects: pd.DataFrame,
    snr: np.ndarray,
    band: str,
    sequence: shear.RedSequence | None,
    settings: ShearCatalogSettings,
) -> np.ndarray:
    """(n,) bool: unspoilt galaxies bright enough to be measured and, by magnitude and colour, behind the lens."""
    mag = objects[f"mag_auto_{band}"].to_numpy()
    good = (snr >= settings.min_snr) & (mag > settings.bright_mag) & (mag < settings.faint_mag)
    good &= ((objects["flags"] | objects[f"flags_{band}"]) & int(SPOILT)).to_numpy() == 0
    good &= (objects["extendedness"] >= int(Extendedness.LIKELY_GALAXY)).to_numpy()
    if sequence is None:
        return good
    blue, red = settings.colour_bands
    offset = sequence.distance(measure_colour(objects, blue, red), objects[f"mag_auto_{red}"].to_numpy())
    return good & ~(np.abs(offset) < max(settings.red_sequence_width * sequence.width, 0.1))


def measure_galaxies(
    galaxies: pd.DataFrame, band: Any, segments: np.ndarray, psf: StackPsf, settings: ShearCatalogSettings
) -> pd.DataFrame:
    """Shapes (pixel frame) of the galaxies that pass the cuts, with weight and response."""
    galaxies = galaxies.reset_index(drop=True)
    shapes = shear.measure_shapes(
        band.sci, band.var, band.empty, segments, galaxies, psf.model, settings.stamp_px, band.noise_factor
    )
    limits = settings.min_resolution, settings.max_ellipticity, settings.max_ellipticity_err, settings.max_filled
    good = shear.select_shapes(shapes, *limits)
    table = galaxies[["object_id", "ra", "dec", "x", "y", "mag", "snr"]].join(shapes)[good].reset_index(drop=True)
    e1, e2, error = (table[k].to_numpy() for k in ("e1", "e2", "e_err"))
    weight = shear.weigh_shapes(error, settings.shape_noise)
    return table.assign(weight=weight, response=shear.measure_response(e1, e2, error, settings.calibration_m))


def summarise(
    table: pd.DataFrame, psf: StackPsf, sequence: shear.RedSequence | None, n_selected: int, scale: float
) -> dict[str, Any]:
    """Counts, PSF, mean shape and, where there is one, the red sequence."""
    metrics: dict[str, Any] = {"n_shapes": len(table), "n_selected": n_selected, "psf_stars": psf.n_stars}
    metrics["psf_fwhm_arcsec"] = round(psf.fwhm_px * scale, 3)
    if len(table):
        e_rms = np.sqrt(np.mean(table["e1"] ** 2 + table["e2"] ** 2) / 2.0)
        mean = (np.average(table[k], weights=table["weight"]) for k in ("e1", "e2", "response"))
        metrics |= dict(zip(("mean_e1", "mean_e2", "response"), (round(float(v), 5) for v in mean), strict=True))
        metrics["e_rms"] = round(float(e_rms), 4)
    if sequence:
        metrics |= {
            "red_sequence_mag": round(sequence.colour, 3),
            "red_sequence_sigma": round(sequence.significance, 1),
        }
    return metrics
