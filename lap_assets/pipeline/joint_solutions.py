"""Relative zero points of the member exposures of a run (one projection cell, one band).

The fit is `science/jointcal.py`; frozen per run, so that a late exposure does not invalidate finished warps.
"""

import numpy as np
import pandas as pd

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId, Pin
from lap_assets.model.survey import Survey
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.plots import plot_zero_points
from lap_assets.science import jointcal
from lap_assets.settings import Settings
from lap_assets.store.repo import Repo

_COLUMNS = ("ra", "dec", "flux", "flux_err", "is_star", "usable")


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task: the solutions of all members that have one, pinned."""
    cell, band = partition.split("|")
    pins = [repo.pin(DataId(collection, "solutions", exposure)) for exposure in survey.members(cell, band)]
    found = tuple(sorted(pin for pin in pins if pin is not None))
    return [Task(DataId(collection, "joint_solutions", partition), found, settings, {"band": band})]


def make(task: Task, repo: Repo) -> Output:
    """Zero-point corrections of all members; 0 for those without stars in common."""
    chosen = task.settings.joint_solutions
    pins = task.pins("solutions")
    if not pins:
        raise NoWork(f"no member of {task.data_id.partition} has a solution")
    stars = {pin.data_id.partition: _read_stars(repo, pin, chosen.min_snr) for pin in pins}
    matched = jointcal.match_stars(stars, chosen.match_radius_arcsec)
    joint = jointcal.solve_zero_points(matched, list(stars), chosen.min_stars, chosen.clip_sigma)
    metrics = {
        "n_exposures": len(stars),
        "n_stars": joint.n_stars,
        "dzp_rms_mmag": round(float(1000 * np.std(joint.table.dzp_mag)), 3),
    }
    if np.isfinite(joint.repeatability_mmag):
        metrics["repeatability_mmag"] = round(joint.repeatability_mmag, 3)
    picture = plot_zero_points(joint.table, f"{task.data_id.partition}: relative zero points", thumbnail=True)
    return Output({"zeropoints.parquet": joint.table, "preview.png": picture}, metrics)


def _read_stars(repo: Repo, pin: Pin, min_snr: float) -> pd.DataFrame:
    """Bright, clean stars of an exposure with magnitudes by its own zero point."""
    zero_point = repo.read_json(pin, "solution.json")["zero_point_mag"]
    table = repo.read_table(pin, "sources.parquet", columns=_COLUMNS)
    chosen = table[table.is_star & table.usable & (table.flux > min_snr * table.flux_err)]
    flux = chosen.flux.to_numpy(float)
    return pd.DataFrame(
        {
            "ra": chosen.ra.to_numpy(float),
            "dec": chosen.dec.to_numpy(float),
            "mag": zero_point - 2.5 * np.log10(flux),
            "mag_err": 1.0857 * chosen.flux_err.to_numpy(float) / flux,
        }
    )
