"""Joint calibration of the member exposures of a run (one projection cell, one band): which of their chips are used,
their relative zero points over the focal plane, their astrometry.

The fits are `science/jointcal.py` and `science/joint_astrometry.py`, the choice `science/quality.py`; frozen per run,
so that a late exposure does not invalidate finished warps.
"""

import logging
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits

from lap_assets.errors import NoWork, UnprocessableData
from lap_assets.model.camera import load_camera
from lap_assets.model.ids import DataId, Pin
from lap_assets.model.survey import Survey
from lap_assets.pipeline.solution_document import ASTROMETRY_MIN_SNR
from lap_assets.pipeline.solutions import J2000_MJD, JULIAN_YEAR_D
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.plots import plot_zero_points
from lap_assets.science import jointcal
from lap_assets.science.astrometry import ChipStars
from lap_assets.science.joint_astrometry import JointAstrometry, fit_joint_astrometry
from lap_assets.science.quality import select_chips
from lap_assets.science.tan_sip import project_tan
from lap_assets.settings import JointSolutionSettings, Settings
from lap_assets.store.refcat import describe_refcat
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

_COLUMNS = ("chip", "ra", "dec", "flux", "flux_err", "is_star", "usable", "ref_mag", "colour")


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task: the solutions of all members that have one, pinned."""
    cell, band = partition.split("|")
    pins = [repo.pin(DataId(collection, "solutions", exposure)) for exposure in survey.members(cell, band)]
    found = tuple(sorted(pin for pin in pins if pin is not None))
    one = survey.cells[cell]
    params: dict[str, Any] = {"band": band, "ra_deg": one.ra_deg, "dec_deg": one.dec_deg, "exposures": {}}
    for pin in found:
        exposure = survey.exposures[pin.data_id.partition]
        camera = load_camera(exposure.camera, repo.cameras)
        params["exposures"][exposure.id] = {
            "camera": camera.name, "camera_sha256": camera.sha256, "kind": exposure.kind, "mjd": exposure.mjd,
            "ra_deg": exposure.ra_deg, "dec_deg": exposure.dec_deg,
        }  # fmt: skip
    name = survey.reference_catalogs.get(band, survey.reference_catalogs.get("*", ""))
    if name and settings.joint_solutions.astrometry:
        params |= {"refcat": name, "refcat_version": describe_refcat(repo.layout, name)["version"]}
    return [Task(DataId(collection, "joint_solutions", partition), found, settings, params)]


def make(task: Task, repo: Repo) -> Output:
    """Corrections of all members; 0 for those without stars in common."""
    chosen = task.settings.joint_solutions
    pins = task.pins("solutions")
    if not pins:
        raise NoWork(f"no member of {task.data_id.partition} has a solution")
    solutions = {pin.data_id.partition: repo.read_json(pin, "solution.json") for pin in pins}
    selection = _select(task, solutions)
    used = selection[selection.used].groupby("exposure").chip.apply(set).to_dict()
    radius_deg = max(one["focal_plane"]["radius_deg"] for one in solutions.values())
    stars = {
        pin.data_id.partition: _read_stars(repo, pin, solutions[pin.data_id.partition], radius_deg, used, chosen)
        for pin in pins
    }
    joint = _solve_zero_points(stars, chosen)
    table = joint.table.assign(
        ra_deg=[solutions[name]["focal_plane"]["ra_deg"] for name in joint.table.exposure],
        dec_deg=[solutions[name]["focal_plane"]["dec_deg"] for name in joint.table.exposure],
        radius_deg=radius_deg,
    )
    table.attrs["units"] = joint.table.attrs["units"] | dict.fromkeys(("ra_deg", "dec_deg", "radius_deg"), "deg")
    picture = plot_zero_points(joint.table, f"{task.data_id.partition}: relative zero points", thumbnail=True)
    headers, astrometry = _solve_astrometry(task, repo, solutions, used)
    members = {
        "zeropoints.parquet": table, "selection.parquet": selection, "astrometry.json": headers, "preview.png": picture,
    }  # fmt: skip
    return Output(members, _summarise(joint, selection) | astrometry)


def _select(task: Task, solutions: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """LV-13: the good chips of all members, which of them are used, and why others are not."""
    chosen = task.settings.quality
    rows = []
    for exposure, solution in solutions.items():
        for name, chip in solution["chips"].items():
            if chip["state"] != "good":
                continue
            middle = np.array(chip["wcs"]["CRVAL1"]), np.array(chip["wcs"]["CRVAL2"])
            away = np.hypot(*project_tan(*middle, task.params["ra_deg"], task.params["dec_deg"]))
            rows.append((exposure, name, chip["n_matched"], float(away) if np.isfinite(away) else 90.0))
    table = pd.DataFrame(rows, columns=["exposure", "chip", "n_reference", "distance_deg"])
    selection = select_chips(
        table, max_distance_deg=chosen.max_distance_deg, visit_sigma=chosen.visit_sigma,
        visit_fraction=chosen.visit_fraction, chip_sigma=chosen.chip_sigma, chip_fraction=chosen.chip_fraction,
        min_good_chips=chosen.min_good_chips,
    )  # fmt: skip
    selection.attrs["units"] = {"distance_deg": "deg"}
    return selection


def _solve_zero_points(stars: dict[str, pd.DataFrame], chosen: JointSolutionSettings) -> jointcal.JointZeroPoints:
    matched = jointcal.match_stars(stars, chosen.match_radius_arcsec)
    candidates = [jointcal.Structure(own, shared) for own, shared in chosen.focal_plane_orders]
    if chosen.colour_term:
        candidates += [jointcal.Structure(own, shared, True) for own, shared in chosen.focal_plane_orders]
    return jointcal.solve_zero_points(matched, list(stars), chosen.min_stars, chosen.clip_sigma, candidates)


# ---- astrometry


def _solve_astrometry(
    task: Task, repo: Repo, solutions: dict[str, dict[str, Any]], used: dict[str, set[str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cards of the used chips' headers by exposure and chip, and metrics; camera by camera, as chips are shared.

    The exposures of a camera whose stars do not suffice keep their own astrometry.
    """
    if "refcat" not in task.params:
        return {}, {}
    facts, catalog = task.params["exposures"], _read_catalog(task, repo, solutions)
    headers, metrics = {}, {}
    for camera in sorted({one["camera"] for one in facts.values()}):
        pins = [pin for pin in task.pins("solutions") if facts[pin.data_id.partition]["camera"] == camera]
        try:
            joint = _fit_camera(task, repo, pins, solutions, used, catalog)
        except UnprocessableData as error:
            log.warning("%s: %s: %s; each exposure keeps its own astrometry", task.data_id.partition, camera, error)
            metrics.setdefault("astrometry", f"{camera}: {error}")
            continue
        for name, chips in sorted(joint.headers.items()):
            headers[name] = {
                chip: {card.keyword: card.value for card in one.cards} for chip, one in sorted(chips.items())
            }
        if joint.n_stars > metrics.get("n_astrometry_stars", 0):
            metrics |= {
                "astrometry_order": joint.order,
                "n_astrometry_stars": joint.n_stars,
                "astrometry_repeatability_mas": round(float(np.mean(joint.repeatability_mas)), 2),
                "astrometry_reference_rms_mas": round(float(np.mean(joint.reference_rms_mas)), 2),
            }
    return headers, metrics


def _fit_camera(
    task: Task, repo: Repo, pins: list[Pin], solutions: dict[str, dict[str, Any]], used: dict[str, set[str]],
    catalog: pd.DataFrame,
) -> JointAstrometry:  # fmt: skip
    facts, stars, own = task.params["exposures"], {}, {}
    for pin in pins:
        name = pin.data_id.partition
        good = {chip: solutions[name]["chips"][chip]["wcs"] for chip in sorted(used.get(name, ()))}
        own[name] = {chip: fits.Header(list(cards.items())) for chip, cards in good.items()}
        stars[name] = _read_centroids(repo, pin, own[name], facts[name])
    epochs = {name: 2000.0 + (facts[name]["mjd"] - J2000_MJD) / JULIAN_YEAR_D for name in own}
    return fit_joint_astrometry(
        stars, own, catalog, epochs,
        match_radius_arcsec=task.settings.joint_solutions.match_radius_arcsec,
        max_order=task.settings.joint_solutions.distortion_order,
    )  # fmt: skip


def _read_centroids(repo: Repo, pin: Pin, own: dict[str, fits.Header], facts: dict[str, Any]) -> dict[str, ChipStars]:
    """Stars of an exposure's used chips, with the geometry its camera tells (or the header it came with)."""
    columns = ("chip", "x", "y", "xy_err", "flux", "flux_err", "usable")
    table = repo.read_table(pin, "sources.parquet", columns=columns)
    bright = table[table.usable & (table.flux > ASTROMETRY_MIN_SNR * table.flux_err)]
    camera = load_camera(facts["camera"], repo.cameras)
    stars = {}
    for chip, header in own.items():
        mine = bright[bright.chip == chip]
        came = facts["kind"] == "calibrated"
        nominal = header if came else camera.nominal_wcs(chip, facts["ra_deg"], facts["dec_deg"])
        values = (mine[name].to_numpy(float) for name in ("x", "y", "xy_err", "flux"))
        stars[chip] = ChipStars(*values, nominal, (header["NAXIS2"], header["NAXIS1"]))
    return stars


def _read_catalog(task: Task, repo: Repo, solutions: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Reference stars on all exposures of the run."""
    reach = 0.0
    for solution in solutions.values():
        plane = solution["focal_plane"]
        away = np.hypot(*project_tan(plane["ra_deg"], plane["dec_deg"], task.params["ra_deg"], task.params["dec_deg"]))
        reach = max(reach, float(away) + 1.5 * plane["radius_deg"])
    return repo.read_refcat(task.params["refcat"], task.params["ra_deg"], task.params["dec_deg"], reach)


# ---- what is said of it


def _summarise(joint: jointcal.JointZeroPoints, selection: pd.DataFrame) -> dict[str, Any]:
    metrics = {
        "n_exposures": len(joint.table),
        "n_stars": joint.n_stars,
        "dzp_rms_mmag": round(float(1000 * np.std(joint.table.dzp_mag)), 3),
        "focal_plane_order": joint.structure.order,
        "shared_order": joint.structure.shared,
        "chips_used": int(selection.used.sum()),
        "chips_left_out": int((~selection.used).sum()),
    }
    if joint.structure.colour:
        metrics["colour_mag"] = round(joint.colour_mag, 5)
    if np.isfinite(joint.repeatability_mmag):
        metrics["repeatability_mmag"] = round(joint.repeatability_mmag, 3)
    return metrics


def _read_stars(
    repo: Repo, pin: Pin, solution: dict[str, Any], radius_deg: float, used: dict[str, set[str]],
    chosen: JointSolutionSettings,
) -> pd.DataFrame:  # fmt: skip
    """Bright, clean stars of an exposure's used chips, with magnitudes by its own zero point."""
    table = repo.read_table(pin, "sources.parquet", columns=_COLUMNS)
    bright = table.is_star & table.usable & (table.flux > chosen.min_snr * table.flux_err)
    stars = table[bright & table.chip.isin(used.get(pin.data_id.partition, set()))]
    flux, plane = stars.flux.to_numpy(float), solution["focal_plane"]
    ra, dec = stars.ra.to_numpy(float), stars.dec.to_numpy(float)
    u, v = (axis / radius_deg for axis in project_tan(ra, dec, plane["ra_deg"], plane["dec_deg"]))
    return pd.DataFrame(
        {
            "ra": ra,
            "dec": dec,
            "mag": solution["zero_point_mag"] - 2.5 * np.log10(flux),
            "mag_err": 1.0857 * stars.flux_err.to_numpy(float) / flux,
            "u": u,
            "v": v,
            "ref_mag": stars.ref_mag.to_numpy(float),
            "ref_err": chosen.reference_err_mag,
            "colour": stars.colour.to_numpy(float),
        }
    )
