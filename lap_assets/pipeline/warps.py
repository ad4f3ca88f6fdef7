"""Stage `warps`: the chips of one exposure on the skycells of one projection cell, in nJy.

Planning, units and headers; the resampling itself is `science/warp.py`. Footprints are trusted only for planning: the
solved astrometry decides what lands where.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.errors import NoWork, UnprocessableData
from lap_assets.model.ids import DataId, Pin, join_key
from lap_assets.model.image import NO_WEIGHT, MaskedImage
from lap_assets.model.sphere import grow_polygons
from lap_assets.model.survey import Survey
from lap_assets.pipeline.joint_correction import JointCorrection, read_correction, to_wcs
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.pictures import thumbnail
from lap_assets.science.background import evaluate_background
from lap_assets.science.photometry import measure_depth
from lap_assets.science.stack import typical_variance
from lap_assets.science.warp import covariance_factor, make_empty_warp, map_pixels, warp_chip
from lap_assets.settings import Settings
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

NANOJANSKY_ZERO_POINT = 31.4  # AB magnitude of 1 nJy


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per skycell that a chip of the exposure can reach."""
    name, cell_name = partition.split("|")
    exposure, cell = survey.exposures[name], survey.cells[cell_name]
    reach: dict[str, list[str]] = {}
    for chip in exposure.chips:
        polygon = grow_polygons(np.array(chip.footprint), settings.warps.footprint_margin_arcsec / 3600.0)
        for skycell in cell.skycells_overlapping(polygon):
            reach.setdefault(skycell, []).append(chip.chip)
    solution = DataId(collection, "solutions", name)
    shared = [repo.pin(solution), repo.pin(DataId(collection, "joint_solutions", join_key(cell_name, exposure.band)))]
    chips = {chip.chip: repo.pin(DataId(collection, "chips", name, chip.chip)) for chip in exposure.chips}
    facts = {"exposure": name, "band": exposure.band, "night": exposure.night, "mjd": exposure.mjd}
    if shared[0] is None:
        manifest = repo.manifest(solution)
        facts["missing"] = f"exposure {name} has no solution" + (f": {manifest.reason}" if manifest else "")
    tasks = []
    for skycell, names in sorted(reach.items()):
        pins = sorted(pin for pin in [*shared, *(chips[chip] for chip in names)] if pin is not None)
        params = facts | {"header": _header_cards(cell.skycells[skycell].header())}
        tasks.append(Task(DataId(collection, "warps", partition, skycell), tuple(pins), settings, params))
    return tasks


def make(task: Task, repo: Repo) -> Output:
    """Resample what chips reach this skycell into one image."""
    if reason := task.params.get("missing"):
        raise UnprocessableData(reason)
    solution = repo.read_json(task.pins("solutions")[0], "solution.json")
    joint = read_correction(repo, task.pins("joint_solutions"), task.params["exposure"])
    zero_point = solution["zero_point_mag"] + joint.dzp_mag
    warp, used, covariance = _warp_chips(task, repo, solution, joint, zero_point)
    good = ((warp.mask & int(NO_WEIGHT)) == 0) & (warp.var > 0)
    if not good.any():
        left_out = "".join(sorted({f"; {reason}" for reason in joint.left_out.values()}))
        raise NoWork(f"no good pixel of {task.params['exposure']} lands on skycell {task.data_id.unit}{left_out}")
    fwhm = float(np.mean([solution["chips"][name]["fwhm_arcsec"] for name in used]))
    header = warp.header
    header["BUNIT"] = "nJy"
    header["EXPOSURE"], header["BAND"], header["NIGHT"] = (task.params[key] for key in ("exposure", "band", "night"))
    header["MJD"] = task.params["mjd"]
    header["ZP"] = (round(zero_point, 5), "AB magnitude of one unit of the chips")
    header["FWHM"] = (round(fwhm, 4), "arcsec")
    header["NOISECOV"] = (round(covariance, 5), "variance of large sums / sum of VAR")
    header["CHIPS"] = ",".join(used)
    scale = abs(header["CD1_1"]) * 3600.0
    metrics = {
        "covered_fraction": round(float(good.mean()), 4),
        "fwhm_arcsec": round(fwhm, 4),
        "zero_point_mag": round(zero_point, 4),
        "limit_mag_5sigma": round(depth_mag(warp, covariance, fwhm / scale), 3),
        "noise_covariance": round(covariance, 4),
        "n_chips": len(used),
    }
    return Output({"image.fits": warp, "preview.png": thumbnail(warp.sci, warp.mask)}, metrics)


def _warp_chips(
    task: Task, repo: Repo, solution: dict[str, Any], joint: JointCorrection, zero_point: float
) -> tuple[MaskedImage, list[str], float]:
    """All chips on one image; names of those that landed, and the covariance factor weighted by their area."""
    chosen = task.settings.warps
    header = fits.Header(list(task.params["header"].items()))
    shape = (header["NAXIS2"], header["NAXIS1"])
    warp, target = make_empty_warp(shape, header), WCS(header)
    skies = "backgrounds.fits" if chosen.sky == "mesh" else "skies.fits"
    backgrounds = repo.read_planes(task.pins("solutions")[0], skies)
    scale = 10.0 ** (0.4 * (NANOJANSKY_ZERO_POINT - zero_point))
    used, factors, areas = [], [], []
    for pin in task.pins("chips"):
        name = pin.data_id.unit
        solved = solution["chips"].get(name, {"state": "failed", "reason": "not in the solution"})
        if solved["state"] != "good":
            log.warning("chip %s left out: %s", name, solved["reason"])
            continue
        if name in joint.left_out:
            log.warning("chip %s left out: %s", name, joint.left_out[name])
            continue
        wcs = to_wcs(joint.headers.get(name, solved["wcs"]))
        chip_shape = (solved["wcs"]["NAXIS2"], solved["wcs"]["NAXIS1"])
        pixel_map = map_pixels(wcs, chip_shape, target, shape, chosen.grid_step_px, chosen.grid_tolerance_px)
        if pixel_map is None:
            continue
        chip = repo.read_image(pin)
        sky = evaluate_background(backgrounds[name.upper()][0], chip.shape)
        sci, var = chip.sci, chip.var
        if (factor := joint.scale_over(wcs, chip.shape)) is not None:
            sci, var, sky = (sci - sky) * factor, var * factor**2, None
        written = warp_chip(
            warp, sci, chip.mask, var, pixel_map,
            background=sky, scale=scale, max_bad_weight=chosen.max_bad_weight,
        )  # fmt: skip
        if written:
            used.append(name)
            factors.append(covariance_factor(pixel_map))
            areas.append(written)
    return warp, used, float(np.average(factors, weights=areas)) if used else 1.0


def depth_mag(image: MaskedImage, covariance: float, fwhm_px: float) -> float:
    """AB magnitude of a star at 5 sigma against the sky noise, correlations included."""
    noise = np.sqrt(typical_variance(image) * covariance)
    return measure_depth(NANOJANSKY_ZERO_POINT, float(noise), fwhm_px)


def _header_cards(header: fits.Header) -> dict[str, Any]:
    """Cards as JSON-able facts, in order."""
    return {card.keyword: card.value for card in header.cards}


def find_warps(repo: Repo, collection: str, exposures: Sequence[str], cell: str) -> dict[str, list[Pin]]:
    """Warps (cleaned or not) of some exposures on a cell, by skycell, each list in the order of the exposures."""
    found: dict[str, list[Pin]] = {}
    for exposure in exposures:
        for data_id in repo.units(collection, "warps", join_key(exposure, cell)):
            manifest = repo.manifest(data_id)
            if manifest is not None and manifest.has_content:
                found.setdefault(data_id.unit, []).append(manifest.pin)
    return {skycell: found[skycell] for skycell in sorted(found)}
