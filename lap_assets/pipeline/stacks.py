"""Stage `stacks`: the first-pass stacks of a cell in a band, for skycells with enough inputs.

Planning, which inputs are used and with which weight, cards and tables; the combination itself is `science/stack.py`,
reading `stack_inputs.py`. `combine_inputs` also serves final stacks and templates.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from astropy.io import fits

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.model.survey import Survey
from lap_assets.pipeline.psf_members import planes_of_grid
from lap_assets.pipeline.stack_inputs import StackInput, open_inputs
from lap_assets.pipeline.task import Output, Task
from lap_assets.pipeline.warps import depth_mag, find_warps
from lap_assets.qa.pictures import thumbnail
from lap_assets.science.block_levels import BLOCK_PX
from lap_assets.science.psf_grid import PsfGrid
from lap_assets.science.psf_matching import choose_target, measure_width
from lap_assets.science.stack import (
    ClipLimits,
    Combination,
    choose_weights,
    combine_covariance,
    combine_rows,
    plan_matching,
    subtract_level,
)
from lap_assets.science.stack_alignment import find_misplaced
from lap_assets.science.stack_flavours import combine_matched, restore_sky
from lap_assets.science.stack_levels import fit_levels
from lap_assets.science.stack_psf import average_psfs
from lap_assets.settings import Settings, StackSettings
from lap_assets.store.fits_format import select_wcs_cards
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

_CLIPPED = int(Mask.CLIPPED)
_LARGE_PX = 2000  # side above which metrics and the picture are made from every eighth row and column
_SAMPLE = 8


@dataclass
class Stack:
    """A combined stack.

    Attributes
    ----------
    image : MaskedImage
        With cards FWHM (weighted mean, arcsec), NOISECOV, NINPUTS besides the WCS.
    inputs : DataFrame
        One row per offered input; see `combine_inputs`.
    used : (p, ny, nx) int
        Bit k of plane p: input 31·p + k (row of `inputs`) entered.
    psf : PsfGrid or None
    flavours : dict of member name to planes
    """

    image: MaskedImage
    inputs: pd.DataFrame
    used: np.ndarray
    psf: PsfGrid | None = None
    flavours: dict[str, dict] = field(default_factory=dict)


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per skycell that has a warp of a member of the run."""
    cell, band = partition.split("|")
    warps = find_warps(repo, collection, survey.members(cell, band), cell)
    return [
        Task(DataId(collection, "stacks", partition, skycell), tuple(sorted(pins)), settings, {"band": band})
        for skycell, pins in warps.items()
    ]


def make(task: Task, repo: Repo) -> Output:
    """Combine the warps; fewer than the least number is no work for the first pass."""
    pins, needed = task.pins("warps"), task.settings.stacks.min_inputs
    if len(pins) < needed:
        raise NoWork(f"{len(pins)} inputs, {needed} needed")
    with open_inputs(repo, pins) as inputs:
        stack = combine_inputs(inputs, task.settings.stacks)
    n = int(stack.inputs["used"].sum())
    if n < needed:
        lost = stack.inputs[~stack.inputs["used"]]
        reasons = "; ".join(f"{name}: {reason}" for name, reason in zip(lost["exposure"], lost["reason"], strict=True))
        raise NoWork(f"{n} inputs, {needed} needed; left out are {reasons}")
    return describe_stack(stack)


def combine_inputs(inputs: Sequence[StackInput], settings: StackSettings) -> Stack:
    """Weighted mean of warps of one skycell, artefacts rejected, backgrounds matched.

    The table of inputs says of each: exposure, night, mjd, weight (0 if left out), fwhm_arcsec, variance_njy2,
    noise_covariance, used, reason (why not), level_0…level_2 (the plane taken off, see `subtract_level`),
    rejected_fraction (of all pixels), n_streaks.

    Raises
    ------
    NoWork
        If no input has a usable pixel.
    """
    headers = [one.header for one in inputs]
    fwhm = np.array([float(header.get("FWHM", np.nan)) for header in headers])
    variances = np.array([one.variance for one in inputs])
    seeing = fwhm if settings.weight == "seeing" else None
    weights = choose_weights(variances, seeing)
    if not weights.any():
        raise NoWork(f"none of {len(inputs)} inputs has a usable pixel")
    reasons = ["" if weight > 0 else "no usable pixel, or no positive variance" for weight in weights]
    scale = abs(headers[0].get("CD1_1", 1.0)) * 3600.0
    misplaced = find_misplaced([one.stars for one in inputs], weights, settings.max_offset_arcsec / scale)
    for index, case in misplaced.items():
        reasons[index] = case.describe(scale)
        log.warning("%s left out of the stack: %s", inputs[index].name, reasons[index])
    weights = choose_weights(
        [np.nan if reason else one for one, reason in zip(variances, reasons, strict=True)], seeing
    )
    shape = inputs[0].shape
    levels = _fit_levels(inputs, weights, settings.level_order)
    limits = ClipLimits(
        settings.clip_sigma, settings.clip_amplitude, settings.clip_matched, settings.clip_grow_sigma,
        settings.clip_epochs, settings.clip_low_fraction, settings.clip_high_fraction,
    )  # fmt: skip
    used = [one for one, weight in zip(inputs, weights, strict=True) if weight > 0]
    matching = plan_matching([one.psf for one in used]) if len(used) > 1 and any(one.psf for one in used) else None
    plan = Combination(weights, limits, fwhm / scale, levels, matching, settings.band_memory_mib)
    result = combine_rows(lambda index, *where: inputs[index].fill(*where), shape, plan)
    table = _tabulate(inputs, weights, variances, reasons, levels, result.rejected / (shape[0] * shape[1]))
    stack = Stack(result.image, table, result.used)
    stack.image.header = _describe(headers, table)
    if any(one.psf for one in used):
        stack.psf = average_psfs([one.psf for one in inputs], stack.used, weights)
    _add_matched(stack, inputs, settings)
    return stack


def _fit_levels(inputs: Sequence[StackInput], weights: np.ndarray, order: int) -> np.ndarray:
    """(n, 3) planes to take off; zero where an input says nothing of its levels."""
    planes = np.zeros((len(inputs), 3))
    known = [k for k, one in enumerate(inputs) if one.levels is not None and weights[k] > 0]
    if len(known) > 1:
        blocks = (np.stack([inputs[k].levels[name] for k in known]) for name in ("LEVEL", "COUNT"))
        planes[known] = fit_levels(*blocks, weights[known], BLOCK_PX, inputs[0].shape, order)
    return planes


def _tabulate(inputs, weights, variances, reasons, levels, rejected) -> pd.DataFrame:
    """The member `inputs.parquet`."""
    headers = [one.header for one in inputs]
    table = pd.DataFrame(
        {
            "exposure": [one.name for one in inputs],
            "night": [str(header.get("NIGHT", "")) for header in headers],
            "mjd": [float(header.get("MJD", np.nan)) for header in headers],
            "weight": weights,
            "fwhm_arcsec": [float(header.get("FWHM", np.nan)) for header in headers],
            "variance_njy2": variances,
            "noise_covariance": [float(header.get("NOISECOV", 1.0)) for header in headers],
            "used": weights > 0,
            "reason": reasons,
            **{f"level_{term}": levels[:, term] for term in range(3)},
            "rejected_fraction": rejected,
            "n_streaks": [one.n_streaks for one in inputs],
        }
    )
    units = {"mjd": "d", "fwhm_arcsec": "arcsec", "variance_njy2": "nJy2"}
    table.attrs["units"] = units | {f"level_{term}": "nJy" for term in range(3)}
    return table


def _describe(headers: Sequence[fits.Header], table: pd.DataFrame) -> fits.Header:
    header = select_wcs_cards(headers[0])
    header["BUNIT"] = "nJy"
    header["BAND"] = headers[0].get("BAND", "")
    used = table[table["used"]]
    known = used[np.isfinite(used["fwhm_arcsec"])]
    seeing = float(np.average(known["fwhm_arcsec"], weights=known["weight"])) if len(known) else 1.0
    header["FWHM"] = (round(seeing, 4), "arcsec, weighted mean of the inputs")
    covariance = combine_covariance(used["noise_covariance"], used["weight"], used["variance_njy2"])
    header["NOISECOV"] = (round(covariance, 5), "variance of large sums / sum of VAR")
    header["NINPUTS"] = len(used)
    return header


def correct_sky(stack: Stack, inputs: Sequence[StackInput]) -> dict[str, dict]:
    """The member with the flavour that keeps large haloes (LV-17); none where an input says nothing of its sky."""
    weights = stack.inputs["weight"].to_numpy()
    used = [k for k in range(len(inputs)) if weights[k] > 0]
    if not used or any(inputs[k].levels is None for k in used):
        return {}
    empty = np.zeros_like(inputs[used[0]].levels["SKY"])
    skies = np.stack([one.levels["SKY"] if one.levels is not None else empty for one in inputs])
    plane = restore_sky(stack.image.sci, stack.used, weights, skies, BLOCK_PX)
    return {"sky_corrected.fits": {"SCI": (plane, stack.image.header)}}


def _add_matched(stack: Stack, inputs: Sequence[StackInput], settings: StackSettings) -> None:
    """The flavour of inputs brought to one PSF, where it is asked for and all PSFs are known."""
    weights = stack.inputs["weight"].to_numpy()
    used = [k for k in range(len(inputs)) if weights[k] > 0]
    if settings.psf_matched and all(inputs[k].psf is not None for k in used):
        target = choose_target([inputs[k].psf for k in used])
        images = ((k, _read_levelled(inputs[k], stack.inputs.iloc[k]), inputs[k].psf) for k in used)
        matched = combine_matched(images, stack.used, weights, target)
        header = stack.image.header.copy()
        header["FWHM"] = (round(measure_width(target) * abs(header["CD1_1"]) * 3600.0, 4), "arcsec, of the common PSF")
        stack.flavours["matched.fits"] = {"SCI": (matched.sci, header), "VAR": (matched.var, header)}


def _read_levelled(one: StackInput, row: pd.Series) -> MaskedImage:
    return subtract_level(one.read_image(), [row[f"level_{term}"] for term in range(3)])


def describe_stack(stack: Stack) -> Output:
    """Members and metrics of a stack."""
    image, header = stack.image, stack.image.header
    covered = np.count_nonzero(image.planes["NINPUT"])
    if not covered:
        raise NoWork(f"no pixel is left of {len(stack.inputs)} inputs")
    sampled = np.s_[::_SAMPLE, ::_SAMPLE] if min(image.shape) > _LARGE_PX else np.s_[:, :]
    seen = MaskedImage(*(np.ascontiguousarray(plane[sampled]) for plane in (image.sci, image.mask, image.var)))
    count = image.planes["NINPUT"][sampled]
    clipped = (seen.mask & _CLIPPED) != 0
    scale = abs(header["CD1_1"]) * 3600.0
    metrics = {
        "n_inputs": int(header["NINPUTS"]),
        "left_out": ", ".join(stack.inputs.loc[~stack.inputs["used"], "exposure"]),
        "covered_fraction": round(covered / image.sci.size, 4),
        "inputs_median": float(np.median(count[count > 0])) if count.any() else 0.0,
        "limit_mag_5sigma": round(depth_mag(seen, header["NOISECOV"], header["FWHM"] / scale), 3),
        "fwhm_arcsec": header["FWHM"],
        "clipped_fraction": round(float(clipped[count > 0].mean()), 5) if count.any() else 0.0,
        "noise_covariance": header["NOISECOV"],
    }
    members = {
        "image.fits": image,
        "inputs.parquet": stack.inputs,
        "used.fits": {f"USED{p}": plane for p, plane in enumerate(stack.used)},
        "preview.png": thumbnail(seen.sci, seen.mask),
    }
    if stack.psf is not None:
        members["psf.fits"] = planes_of_grid(stack.psf)
    return Output(members | stack.flavours, metrics)
