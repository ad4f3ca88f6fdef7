"""Stage `mass_maps`: aperture-mass E and B maps of a cell, and their peaks.

Planning and joining only; the estimator is in `science/massmap.py`.
"""

import logging
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId
from lap_assets.model.survey import Survey
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.plots import plot_mass_map
from lap_assets.science import massmap, plane
from lap_assets.science.shear import calibrate_shears
from lap_assets.settings import MassMapSettings, Settings
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

UNITS = {
    "ra": "deg",
    "dec": "deg",
    "snr": "sigma",
    "radius_arcmin": "arcmin",
    "x_arcmin": "arcmin",
    "y_arcmin": "arcmin",
}


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task: the cell."""
    cell = survey.cells[partition]
    pins = sorted(pin for pin in map(repo.pin, repo.units(collection, "shear_catalogs", partition)) if pin)
    params: dict[str, Any] = {"ra_deg": cell.ra_deg, "dec_deg": cell.dec_deg}
    if not pins:
        params["missing"] = "no shear catalogue of any skycell of this cell"
    return [Task(DataId(collection, "mass_maps", partition), tuple(pins), settings, params)]


def make(task: Task, repo: Repo) -> Output:
    """Maps of all radii; the chosen one's planes are E, B, SNR, SNR_B, the others' SNR<n>."""
    if reason := task.params.get("missing"):
        raise NoWork(reason)
    settings = task.settings.mass_maps
    ra0, dec0 = task.params["ra_deg"], task.params["dec_deg"]
    sample = calibrate_shears(read_shears(task, repo), ra0, dec0)
    grid = massmap.make_grid(sample, settings.step_arcmin)
    radii = sorted({*settings.radii_arcmin, settings.map_radius_arcmin})
    maps = [massmap.map_aperture(sample, grid, radius, settings.filter, settings.min_coverage) for radius in radii]
    chosen = maps[radii.index(settings.map_radius_arcmin)]
    peaks = find_all_peaks(maps, grid, ra0, dec0, settings)
    main = peaks[peaks["radius_arcmin"] == settings.map_radius_arcmin]
    log.info("%s: %d galaxies, %d peaks", task.data_id, len(sample.x), len(main))
    members = {
        "map.fits": build_planes(maps, chosen, grid, ra0, dec0),
        "peaks.parquet": peaks,
        "preview.png": plot_mass_map(chosen.snr, grid, main, thumbnail=True),
    }
    return Output(members, summarise(chosen, sample, main))


def read_shears(task: Task, repo: Repo) -> pd.DataFrame:
    """Shapes of all skycells of the task, in the order of their names."""
    return pd.concat([repo.read_table(pin, "shear.parquet") for pin in task.pins("shear_catalogs")], ignore_index=True)


def find_all_peaks(
    maps: list[massmap.MassMap], grid: massmap.MapGrid, ra0: float, dec0: float, settings: MassMapSettings
) -> pd.DataFrame:
    """Peaks of every radius with places on the sky and on the plane; highest first within a radius."""
    tables = []
    for one in maps:
        found = massmap.find_peaks(one.snr, settings.peak_snr, settings.peak_separation_arcmin / grid.step)
        x, y = grid.x0 + grid.step * found["x"].to_numpy(), grid.y0 + grid.step * found["y"].to_numpy()
        ra, dec = plane.unproject_positions(x, y, ra0, dec0)
        columns = {"ra": ra, "dec": dec, "snr": found["snr"], "radius_arcmin": one.radius_arcmin}
        tables.append(pd.DataFrame({**columns, "x_arcmin": x, "y_arcmin": y}))
    peaks = pd.concat(tables, ignore_index=True)
    peaks.attrs["units"] = UNITS
    return peaks


def build_planes(
    maps: list[massmap.MassMap], chosen: massmap.MassMap, grid: massmap.MapGrid, ra0: float, dec0: float
) -> dict[str, tuple[np.ndarray, fits.Header]]:
    """FITS planes, x to the west as all images of the platform, float32."""
    header = make_header(grid, ra0, dec0)

    def flip(plane_: np.ndarray, radius: float) -> tuple[np.ndarray, fits.Header]:
        own = header.copy()
        own["RADIUS"] = (radius, "aperture radius [arcmin]")
        return plane_[:, ::-1].astype(np.float32), own

    names = {
        "E": chosen.e_mode,
        "B": chosen.b_mode,
        "SNR": chosen.snr,
        "SNR_B": chosen.snr_b,
        "COVERAGE": chosen.coverage,
    }
    planes = {name: flip(values, chosen.radius_arcmin) for name, values in names.items()}
    others = [one for one in maps if one is not chosen]
    return planes | {f"SNR{k}": flip(one.snr, one.radius_arcmin) for k, one in enumerate(others, start=1)}


def make_header(grid: massmap.MapGrid, ra0: float, dec0: float) -> fits.Header:
    """TAN header of the map as written (mirrored: x to the west)."""
    header = fits.Header()
    step = grid.step / 60.0
    values = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "CRVAL1": ra0, "CRVAL2": dec0,
        "CRPIX1": grid.nx + grid.x0 / grid.step, "CRPIX2": 1.0 - grid.y0 / grid.step,
        "CD1_1": -step, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": step, "LONPOLE": 180.0, "RADESYS": "ICRS",
    }  # fmt: skip
    header.update(values)
    return header


def summarise(chosen: massmap.MassMap, sample: massmap.ShearSample, peaks: pd.DataFrame) -> dict[str, Any]:
    """Numbers of the chosen map; `b_mode_rms_sigma` is 1 where B is noise."""
    covered = chosen.snr != 0
    metrics: dict[str, Any] = {
        "n_galaxies": len(sample.x),
        "n_peaks": len(peaks),
        "radius_arcmin": chosen.radius_arcmin,
    }
    metrics["peak_snr_sigma"] = round(float(chosen.snr.max()), 3)
    if covered.any():
        metrics["b_mode_rms_sigma"] = round(float(chosen.snr_b[covered].std()), 3)
        metrics["b_mode_max_sigma"] = round(float(np.abs(chosen.snr_b[covered]).max()), 3)
    if len(peaks):
        metrics |= {
            "peak_ra_deg": round(float(peaks["ra"].iloc[0]), 6),
            "peak_dec_deg": round(float(peaks["dec"].iloc[0]), 6),
        }
    return metrics
