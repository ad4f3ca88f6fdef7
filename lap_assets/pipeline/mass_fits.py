"""Stage `mass_fits`: shear profile and NFW mass at the highest peak of a cell's mass map.

Planning and joining only; profile and fit are in `science/massfit.py`.
"""

import logging
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId
from lap_assets.model.survey import Survey
from lap_assets.pipeline.mass_maps import read_shears
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.plots import plot_profile
from lap_assets.science import massfit
from lap_assets.science.cosmology import LensGeometry, lens_geometry
from lap_assets.science.nfw import r200c_mpc, reduced_shear
from lap_assets.science.shear import calibrate_shears
from lap_assets.settings import MassFitSettings, Settings
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

UNITS = {"radius_mpc": "Mpc"}


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task: the cell."""
    pins = [pin for pin in map(repo.pin, repo.units(collection, "shear_catalogs", partition)) if pin]
    peaks = repo.pin(DataId(collection, "mass_maps", partition))
    # the radius is the map's setting, so it must be told: only the fit's own settings are part of its recipe
    params: dict[str, Any] = {"map_radius_arcmin": settings.mass_maps.map_radius_arcmin}
    if peaks is None or not pins:
        params["missing"] = "no mass map of this cell"
    inputs = () if "missing" in params else (*pins, peaks)
    return [Task(DataId(collection, "mass_fits", partition), tuple(sorted(inputs)), settings, params)]


def make(task: Task, repo: Repo) -> Output:
    """Fit the highest peak of the chosen radius; members: the fit, the profile, a plot of both."""
    if reason := task.params.get("missing"):
        raise NoWork(reason)
    settings = task.settings.mass_fits
    (pin,) = task.pins("mass_maps")
    peaks = repo.read_table(pin, "peaks.parquet")
    peaks = peaks[peaks["radius_arcmin"] == task.params["map_radius_arcmin"]]
    if not len(peaks):
        raise NoWork("no peak of the mass map is above the threshold (mass_maps.peak_snr)")
    peak = peaks.loc[peaks["snr"].idxmax()]
    geometry = lens_geometry(settings.lens_redshift, settings.source_redshift, settings.h0_km_s_mpc, settings.omega_m)
    sample = calibrate_shears(read_shears(task, repo), float(peak["ra"]), float(peak["dec"]))
    edges = np.geomspace(settings.min_radius_mpc, settings.max_radius_mpc, settings.n_rings + 1)
    profile = massfit.measure_profile(sample, 0.0, 0.0, edges, geometry.mpc_per_arcmin)
    fit = massfit.fit_halo(profile, geometry, settings.concentration)
    profile.attrs["units"] = UNITS
    log.info("%s: M200c = %.3g Msun, S/N %.1f", task.data_id, fit.m200c_msun, fit.snr)
    record = describe_fit(fit, peak, geometry, settings, profile)
    model = reduced_shear(profile["radius_mpc"].to_numpy(), fit.m200c_msun, fit.c200c, geometry)
    picture = plot_profile(profile, model, f"M200c = {fit.m200c_msun:.2e} Msun", thumbnail=True)
    metrics = {
        k: record[k] for k in ("m200c_msun", "m200c_plus_msun", "m200c_minus_msun", "chi2", "dof", "snr", "n_galaxies")
    }
    return Output({"fit.json": record, "profile.parquet": profile, "preview.png": picture}, metrics)


def describe_fit(
    fit: massfit.HaloFit, peak: pd.Series, geometry: LensGeometry, settings: MassFitSettings, profile: pd.DataFrame
) -> dict[str, Any]:
    """All one needs to know of the fit, as JSON."""
    return {
        "ra": float(peak["ra"]),
        "dec": float(peak["dec"]),
        "peak_snr": float(peak["snr"]),
        **asdict(fit),
        "r200c_mpc": r200c_mpc(fit.m200c_msun, geometry),
        "z_lens": geometry.z_lens,
        "z_source": geometry.z_source,
        "h0_km_s_mpc": settings.h0_km_s_mpc,
        "omega_m": settings.omega_m,
        "concentration": settings.concentration,
        "min_radius_mpc": settings.min_radius_mpc,
        "max_radius_mpc": settings.max_radius_mpc,
        "n_galaxies": int(profile["n"].sum()),
        "n_rings": len(profile),
    }
