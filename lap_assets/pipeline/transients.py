"""Stage `transients`: the sources of all differences of a cell joined to objects, with light curves.

Planning, reading, ownership and cuts; association and forced fluxes are `science/association.py`.
"""

import logging
from typing import Any

import numpy as np
import pandas as pd

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId, Pin, join_key
from lap_assets.model.survey import Survey
from lap_assets.pipeline.diffs import is_good, read_psf
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.plots import plot_transients
from lap_assets.science.association import associate_sources, force_psf_flux
from lap_assets.science.streaks import draw_streaks
from lap_assets.settings import Settings
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

_CURVE_COLUMNS = ("transient_id", "exposure", "band", "night", "mjd", "flux", "flux_err", "detected")
_CURVE_UNITS = {"mjd": "d", "flux": "nJy", "flux_err": "nJy"}
_SOURCE_COLUMNS = ("x", "y", "ra", "dec", "flux", "flux_err", "snr", "flags")


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per cell: all its differences and their streak masks."""
    exposures = survey.used_on(partition)
    pins: list[Pin] = []
    for name in exposures:
        for diff in repo.units(collection, "diffs", join_key(name, partition)):
            mask = DataId(collection, "streak_masks", diff.partition, diff.unit)
            pins += [pin for pin in (repo.pin(diff), repo.pin(mask)) if pin is not None]
    facts = {name: [one.band, one.night, one.mjd] for name, one in ((e, survey.exposures[e]) for e in exposures)}
    skycells = survey.cells[partition].skycells
    used = sorted({pin.data_id.unit for pin in pins})
    params: dict[str, Any] = {
        "exposures": facts,
        "inner": {name: list(skycells[name].inner) for name in used},
        "shape": {name: [skycells[name].ny, skycells[name].nx] for name in used},
    }
    return [Task(DataId(collection, "transients", partition), tuple(sorted(pins)), settings, params)]


def make(task: Task, repo: Repo) -> Output:
    """Associate, then measure every object on every difference that shows its place."""
    diffs = task.pins("diffs")
    if not diffs:
        raise NoWork("no difference image in this cell")
    chosen = task.settings.transients
    sources = _read_sources(task, repo)
    objects, membership = associate_sources(
        sources, chosen.match_radius_arcsec, chosen.min_detections, chosen.min_snr_max
    )  # fmt: skip
    curves = _measure_curves(task, repo, objects, sources, membership)
    log.info(
        "%s: %d transients from %d sources on %d differences", task.data_id, len(objects), len(sources), len(diffs)
    )
    metrics = {"n_transients": len(objects), "n_sources": len(sources), "n_diffs": len(diffs), "n_fluxes": len(curves)}
    picture = plot_transients(objects, sources, thumbnail=True)
    return Output({"transients.parquet": objects, "lightcurves.parquet": curves, "preview.png": picture}, metrics)


def select_owned(table: pd.DataFrame, inner: list[int]) -> np.ndarray:
    """Rows whose pixel lies in the region that their skycell owns alone."""
    x, y = (np.floor(table[name].to_numpy(float) + 0.5) for name in ("x", "y"))
    return (x >= inner[0]) & (x < inner[1]) & (y >= inner[2]) & (y < inner[3])


def _read_sources(task: Task, repo: Repo) -> pd.DataFrame:
    """Clean, owned sources of all differences, none on a trail; those of a bad subtraction are flagged, none clean."""
    chosen, margin = task.settings.transients, task.settings.streak_masks.margin_px
    streaks = {(pin.data_id.partition, pin.data_id.unit): pin for pin in task.pins("streak_masks")}
    tables = []
    for pin in task.pins("diffs"):
        table = repo.read_table(pin, "sources.parquet", columns=_SOURCE_COLUMNS)
        good = (table["flags"] == 0) & (table["snr"].abs() >= chosen.min_snr)
        if chosen.positive_only:
            good &= table["flux"] > 0
        table = table[good.to_numpy() & select_owned(table, task.params["inner"][pin.data_id.unit])]
        trail = streaks.get((pin.data_id.partition, pin.data_id.unit))
        lines = repo.read_table(trail, "streaks.parquet") if trail else ()
        if len(lines) and len(table):
            x, y = (np.floor(table[name].to_numpy(float) + 0.5).astype(int) for name in ("x", "y"))
            drawn = draw_streaks(tuple(task.params["shape"][pin.data_id.unit]), lines, margin)
            table = table[~drawn[y, x]]
        name = pin.data_id.parts[0]
        band, night, mjd = task.params["exposures"][name]
        tables.append(table.assign(exposure=name, band=band, night=night, mjd=mjd, skycell=pin.data_id.unit))
    return pd.concat(tables, ignore_index=True)


def _measure_curves(
    task: Task, repo: Repo, objects: pd.DataFrame, sources: pd.DataFrame, membership: np.ndarray
) -> pd.DataFrame:
    """Forced PSF flux of every object on every good difference of the skycell that owns it."""
    seen = {(row, exposure) for row, exposure in zip(membership, sources["exposure"], strict=True) if row >= 0}
    rows = []
    for pin in task.pins("diffs") if len(objects) else ():
        image = repo.read_image(pin)
        if not is_good(image.header):
            continue
        x, y = image.wcs.all_world2pix(objects["ra"].to_numpy(), objects["dec"].to_numpy(), 0)
        mine = np.flatnonzero(select_owned(pd.DataFrame({"x": x, "y": y}), task.params["inner"][pin.data_id.unit]))
        if mine.size == 0:
            continue
        psf, gain = read_psf(repo, pin, image.header)
        flux, error, _ = force_psf_flux(image, x[mine], y[mine], psf, gain)
        name = pin.data_id.parts[0]
        for at, value, sigma in zip(mine, flux, error, strict=True):
            if np.isfinite(value):
                identifier = objects["transient_id"].iloc[at]
                rows.append((identifier, name, *task.params["exposures"][name], value, sigma, (at, name) in seen))
    curves = pd.DataFrame(rows, columns=list(_CURVE_COLUMNS))
    curves = curves.sort_values(["transient_id", "mjd", "exposure"], ignore_index=True)
    curves.attrs["units"] = _CURVE_UNITS
    return curves
