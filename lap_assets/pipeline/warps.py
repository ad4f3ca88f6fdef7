"""Stage `warps`: the chips of one exposure on the skycells of one projection cell, in nJy.

Planning, units and headers; the resampling itself is `science/warp.py`. Footprints are trusted only for planning: the
solved astrometry decides what lands where.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.errors import NotFound, NoWork, UnprocessableData
from lap_assets.model.ids import DataId, Pin, join_key
from lap_assets.model.image import MaskedImage
from lap_assets.model.sphere import grow_polygons
from lap_assets.model.survey import Survey
from lap_assets.pipeline.joint_correction import JointCorrection, read_correction, to_wcs
from lap_assets.pipeline.psf_members import PSF_MEMBER, planes_of_grid, read_psf_models
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.pictures import thumbnail
from lap_assets.science.background import sample_background
from lap_assets.science.block_levels import BLOCK_PX, block_centres, measure_levels
from lap_assets.science.moffat import MoffatPsf
from lap_assets.science.photometry import measure_depth
from lap_assets.science.pixel_map import PixelMap, map_pixels
from lap_assets.science.psf import PsfModel
from lap_assets.science.psf_grid import PsfGrid, lay_nodes
from lap_assets.science.stack import typical_variance
from lap_assets.science.warp import covariance_factor, make_empty_warp, warp_chip
from lap_assets.science.warped_psf import ChipPsf, warp_psf
from lap_assets.settings import Settings
from lap_assets.store.fits_format import Plane
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

NANOJANSKY_ZERO_POINT = 31.4  # AB magnitude of 1 nJy
# between the nodes of the PSF along a side: at the corners fewer exposures meet, and a stack's PSF there is another one
_LEAST_STEPS = 4


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
    header = fits.Header(list(task.params["header"].items()))
    placed = _place_chips(task, repo, solution, joint, 10.0 ** (0.4 * (NANOJANSKY_ZERO_POINT - zero_point)))
    warp = make_empty_warp((header["NAXIS2"], header["NAXIS1"]), header)
    used = _resample_chips(task, repo, placed, warp)
    if not used:
        left_out = "".join(sorted({f"; {reason}" for reason in joint.left_out.values()}))
        raise NoWork(f"no good pixel of {task.params['exposure']} lands on skycell {task.data_id.unit}{left_out}")
    pixel_arcsec = abs(header["CD1_1"]) * 3600.0
    psf = _carry_psf(task, used, warp.shape, pixel_arcsec)
    fwhm = psf.fwhm_px * pixel_arcsec if psf else float(np.mean([chip.solved["fwhm_arcsec"] for chip in used]))
    areas = [chip.n_good for chip in used]
    covariance = float(
        np.average([covariance_factor(chip.pixel_map, task.settings.warps.kernel) for chip in used], weights=areas)
    )
    variance = typical_variance(warp)
    header = warp.header
    header["BUNIT"] = "nJy"
    header["EXPOSURE"], header["BAND"], header["NIGHT"] = (task.params[key] for key in ("exposure", "band", "night"))
    header["MJD"] = task.params["mjd"]
    header["ZP"] = (round(zero_point, 5), "AB magnitude of one unit of the chips")
    header["FWHM"] = (round(fwhm, 4), "arcsec")
    header["NOISECOV"] = (round(covariance, 5), "variance of large sums / sum of VAR")
    header["MEDVAR"] = (float(f"{variance:.6g}"), "nJy2, median of VAR")
    header["KERNEL"] = (task.settings.warps.kernel, "of the interpolation")
    header["CHIPS"] = ",".join(chip.name for chip in used)
    members = {
        "image.fits": warp,
        "levels.fits": _measure_sky(used, warp),
        "preview.png": thumbnail(warp.sci, warp.mask),
    }
    if psf:
        members[PSF_MEMBER] = planes_of_grid(psf)
    members |= _list_stars(task, repo, used, warp)
    metrics = {
        "covered_fraction": round(sum(areas) / warp.sci.size, 4),
        "fwhm_arcsec": round(fwhm, 4),
        "zero_point_mag": round(zero_point, 4),
        "limit_mag_5sigma": round(_measure_depth(variance, covariance, fwhm / pixel_arcsec), 3),
        "noise_covariance": round(covariance, 4),
        "n_chips": len(used),
    }
    return Output(members, metrics)


@dataclass
class _PlacedChip:
    """A chip on the skycell. Nodes are those of the pixel map, (ngy, ngx) each."""

    pin: Pin
    solved: Mapping[str, Any]
    wcs: WCS
    pixel_map: PixelMap
    gain: np.ndarray  # nJy per chip unit at the nodes
    sky: np.ndarray  # chip units, what is taken off
    kept_sky: np.ndarray  # chip units, what is taken off more than the sky of the focal plane
    psf: PsfModel | None
    n_good: int = 0

    @property
    def name(self) -> str:
        return self.pin.data_id.unit

    @property
    def shape(self) -> tuple[int, int]:
        return self.solved["wcs"]["NAXIS2"], self.solved["wcs"]["NAXIS1"]


def _place_chips(
    task: Task, repo: Repo, solution: dict[str, Any], joint: JointCorrection, scale: float
) -> list[_PlacedChip]:
    """The good chips that reach the skycell, in the order of their names; no pixel is read for it."""
    chosen, (pin, *_) = task.settings.warps, task.pins("solutions")
    header = fits.Header(list(task.params["header"].items()))
    target, shape = WCS(header), (header["NAXIS2"], header["NAXIS1"])
    meshes = repo.read_planes(pin, "backgrounds.fits")
    surfaces = _read_surfaces(repo, pin, meshes, chosen.sky)
    models = read_psf_models(repo, pin)
    placed = []
    for chip_pin in task.pins("chips"):
        name = chip_pin.data_id.unit
        solved = solution["chips"].get(name, {"state": "failed", "reason": "not in the solution"})
        if reason := solved["reason"] if solved["state"] != "good" else joint.left_out.get(name, ""):
            log.warning("chip %s left out: %s", name, reason)
            continue
        wcs = to_wcs(joint.headers.get(name, solved["wcs"]))
        chip_shape = (solved["wcs"]["NAXIS2"], solved["wcs"]["NAXIS1"])
        pixel_map = map_pixels(wcs, chip_shape, target, shape, chosen.grid_step_px, chosen.grid_tolerance_px)
        if pixel_map is None:
            continue
        mesh, surface = (
            sample_background(planes[name.upper()][0], chip_shape, pixel_map.x, pixel_map.y)
            for planes in (meshes, surfaces)
        )
        sky = mesh if chosen.sky == "mesh" else surface
        nodes = pixel_map.node_places
        ra, dec = (z.reshape(mesh.shape) for z in target.all_pix2world(*(z.ravel() for z in nodes), 0))
        gain = scale * joint.scale_at(ra, dec)
        placed.append(_PlacedChip(chip_pin, solved, wcs, pixel_map, gain, sky, sky - surface, models.get(name.upper())))
    return placed


def _read_surfaces(repo: Repo, pin: Pin, meshes: Mapping[str, Plane], sky: str) -> Mapping[str, Plane]:
    """The sky of the focal plane on each chip; the chips' own where the solution has none and it is not asked for."""
    try:
        return repo.read_planes(pin, "skies.fits")
    except NotFound:
        if sky == "focal_plane":
            raise
        return meshes


def _resample_chips(task: Task, repo: Repo, placed: list[_PlacedChip], warp: MaskedImage) -> list[_PlacedChip]:
    """Put the chips on the image, one after the other while the next is read; those of which a pixel is good."""
    chosen = task.settings.warps
    with ThreadPoolExecutor(1) as reader:
        images = [reader.submit(repo.read_image, placed[0].pin)] if placed else []
        for number, chip in enumerate(placed):
            image = images.pop().result()
            images += [reader.submit(repo.read_image, later.pin) for later in placed[number + 1 : number + 2]]
            chip.n_good = warp_chip(
                warp, image.sci, image.mask, image.var, chip.pixel_map, background=chip.sky, scale=chip.gain,
                kernel=chosen.kernel, max_bad_weight=chosen.max_bad_weight,
            )  # fmt: skip
    return [chip for chip in placed if chip.n_good]


def _carry_psf(task: Task, used: list[_PlacedChip], shape: tuple[int, int], pixel_arcsec: float) -> PsfGrid | None:
    """The PSF of the warp at its nodes; None where the solution has no model of any of its chips."""
    chosen = task.settings.warps
    known = []
    for chip in used:
        if chip.psf is None:
            log.warning("chip %s: the solution has no PSF model", chip.name)
            continue
        chip_arcsec = pixel_arcsec / np.sqrt(np.nanmean(chip.pixel_map.jacobian))
        width = chip.solved["fwhm_moffat_arcsec"] or chip.solved["fwhm_arcsec"]  # null where no Moffat could be fitted
        moffat = MoffatPsf(width / chip_arcsec, chip.solved["moffat_beta"] or MoffatPsf.beta)
        known.append(ChipPsf(chip.pixel_map, chip.shape, chip.psf, moffat))
    if not known:
        return None
    x, y = lay_nodes(shape, min(chosen.psf_step_px, max(shape) / _LEAST_STEPS))
    grid = warp_psf(known, x, y, chosen.kernel, reach_px=chosen.psf_step_px)
    return grid if grid.known.any() else None


def _measure_sky(used: list[_PlacedChip], warp: MaskedImage) -> dict[str, Any]:
    """Planes of `levels.fits`: what sky is left in blocks, and what is to be added for the sky of the focal plane."""
    level, count = measure_levels(warp.sci, warp.mask)
    x, y = block_centres(warp.shape)
    sky, nearest = np.zeros(level.shape), np.full(level.shape, float(BLOCK_PX))
    for chip in used:
        *_, away = chip.pixel_map.locate(x, y, chip.shape)
        kept = chip.pixel_map.interpolate(chip.kept_sky * chip.gain * chip.pixel_map.jacobian, x, y)
        mine = (away < nearest) & np.isfinite(kept)
        sky[mine], nearest[mine] = kept[mine], away[mine]
    header = fits.Header([("BUNIT", "nJy"), ("BLOCKPX", BLOCK_PX, "px along a block's side")])
    planes = {"LEVEL": level, "COUNT": count, "SKY": sky.astype(np.float32)}
    return {name: (plane, header) for name, plane in planes.items()}


def _list_stars(task: Task, repo: Repo, used: list[_PlacedChip], warp: MaskedImage) -> dict[str, pd.DataFrame]:
    """`stars.parquet`: usable bright stars of the solution, where the WCS that the warp was made with puts them."""
    sources = repo.read_table(task.pins("solutions")[0], "sources.parquet")
    if not {"is_star", "usable"} <= set(sources.columns):
        return {}
    snr = sources.flux / sources.flux_err
    sources = sources.assign(snr=snr)[sources.is_star & sources.usable & (snr >= task.settings.warps.star_min_snr)]
    tables, target = [], warp.wcs
    for chip in used:
        mine = sources[sources.chip == chip.name]
        sky = chip.wcs.all_pix2world(mine.x.to_numpy(float), mine.y.to_numpy(float), 0)
        x, y = target.all_world2pix(*sky, 0) if len(mine) else (np.zeros(0), np.zeros(0))
        inside = (x >= 0) & (y >= 0) & (x <= warp.shape[1] - 1) & (y <= warp.shape[0] - 1)
        x, y, mine = x[inside], y[inside], mine[inside]
        flux = mine.flux.to_numpy(float) * chip.pixel_map.interpolate(chip.gain, x, y)
        tables.append(pd.DataFrame({"x": x, "y": y, "flux_njy": flux, "snr": mine.snr.to_numpy(float)}))
    stars = pd.concat(tables, ignore_index=True).sort_values(["y", "x"], kind="stable", ignore_index=True)
    stars.attrs["units"] = {"x": "px", "y": "px", "flux_njy": "nJy"}
    return {"stars.parquet": stars}


def _measure_depth(variance: float, covariance: float, fwhm_px: float) -> float:
    return measure_depth(NANOJANSKY_ZERO_POINT, float(np.sqrt(variance * covariance)), fwhm_px)


def depth_mag(image: MaskedImage, covariance: float, fwhm_px: float) -> float:
    """AB magnitude of a star at 5 sigma against the sky noise, correlations included."""
    return _measure_depth(typical_variance(image), covariance, fwhm_px)


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
