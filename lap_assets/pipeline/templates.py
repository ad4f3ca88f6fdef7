"""What an exposure is subtracted from: the template of a skycell, chosen by `diffs.template`, always without its night.

Planning pins what it is made of; `make_template` makes it in the worker: the run's stack less the warps of the night
(arithmetic), the other nights' warps combined anew, with or without matched PSFs, another exposure's warp, or an image
of another collection or repository (`elsewhere.py`). The subtraction is `diffs.py`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId, Pin, join_key
from lap_assets.model.image import MaskedImage
from lap_assets.model.survey import Survey
from lap_assets.pipeline.elsewhere import (
    Elsewhere,
    is_same_grid,
    join_pins,
    open_elsewhere,
    resample_images,
    split_pins,
)
from lap_assets.pipeline.psf_members import read_psf_grid
from lap_assets.pipeline.stack_inputs import open_inputs, read_used, wrap_images
from lap_assets.pipeline.stacks import combine_inputs
from lap_assets.pipeline.task import Task
from lap_assets.pipeline.warps import find_warps
from lap_assets.science.difference import Psf
from lap_assets.science.input_removal import remove_inputs
from lap_assets.science.measured_psf import measure_psf
from lap_assets.science.psf_grid import PsfGrid
from lap_assets.science.psf_matching import choose_target, homogenise
from lap_assets.science.stack import combine_covariance
from lap_assets.science.stack_psf import reduce_psf
from lap_assets.settings import DiffSettings, Settings
from lap_assets.store.repo import Repo

LEVEL_COLUMNS = ("level_0", "level_1", "level_2")
PLANES = ("SCI", "MASK", "VAR")  # all that a template needs of an image


@dataclass(frozen=True)
class TemplatePlan:
    """What the template of one skycell is made of.

    Attributes
    ----------
    kind : str
        `stack`, `warps`, `matched`, `exposure` or `elsewhere`.
    pins : tuple of Pin
        Inputs in this repository, besides the warp itself.
    elsewhere : list of (data id, content)
        Images of another collection or repository, and
    night : list of (data id, content)
        those warps there of the exposure's night that are in them.
    n_lost : int
        How many of the latter are not known there any more, so that the night cannot be taken out.
    looked_for : str
        What it is, in words, for the reason where there is none.
    """

    kind: str
    pins: tuple[Pin, ...] = ()
    elsewhere: list[list[str]] = field(default_factory=list)
    night: list[list[str]] = field(default_factory=list)
    n_lost: int = 0
    looked_for: str = ""


@dataclass(frozen=True)
class Template:
    """A template: the image (FWHM and NOISECOV in its header), its PSF, how many exposures are in it."""

    image: MaskedImage
    psf: Psf
    n_inputs: int


# ---- planning


def plan_templates(
    survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str, skycells: Sequence[str]
) -> dict[str, TemplatePlan]:
    """The template of an exposure on some skycells of a cell."""
    name, cell = partition.split("|")
    chosen, band = settings.diffs, survey.exposures[name].band
    other = survey.companion(name, cell) or chosen.template_exposure
    away = chosen.template_repository or chosen.template_collection not in ("", collection)
    if away and not survey.companion(name, cell):
        place = open_elsewhere(repo, chosen, collection, other, band)
        headers = {skycell: survey.cells[cell].skycells[skycell].header() for skycell in skycells}
        night, ours = survey.exposures[name].night, not chosen.template_repository
        return {one: _plan_elsewhere(place, place.find(cell, one, headers[one]), night, ours) for one in skycells}
    if other:
        warps = find_warps(repo, collection, [other], cell)
        looked = f"a warp of {other}"
        return {one: TemplatePlan("exposure", tuple(warps.get(one, ())), looked_for=looked) for one in skycells}
    warps = find_warps(repo, collection, survey.members(cell, band), cell)
    mine = survey.exposures[name].night
    nights = {member: survey.exposures[member].night for member in survey.members(cell, band)}
    plans = {}
    for skycell in skycells:
        here = warps.get(skycell, [])
        same = [pin for pin in here if nights[pin.data_id.parts[0]] == mine]
        rest = tuple(pin for pin in here if nights[pin.data_id.parts[0]] != mine)
        looked = f"{settings.diffs.min_template_inputs} warps of other nights than {mine}"
        stack = _find_stack(repo, DataId(collection, "stacks", join_key(cell, band), skycell), here)
        if chosen.template == "stack" and stack is not None and rest:
            plans[skycell] = TemplatePlan("stack", (stack, *same), looked_for=looked)
        else:
            kind = "matched" if chosen.template == "matched" else "warps"
            plans[skycell] = TemplatePlan(kind, rest, looked_for=looked)
    return plans


def _plan_elsewhere(place: Elsewhere, pins: Sequence[Pin], night: str, ours: bool) -> TemplatePlan:
    """Images of another place; of stacks that hold the exposure's night, the warps by which it is taken out."""
    gone = [] if place.wanted else [one for pin in pins for one in place.find_night(pin, night)]
    # also those that were cleaned: what was made with them stays as it is
    warps = [pin for one in gone if (pin := place.repo.pin(one)) is not None]
    return TemplatePlan(
        "elsewhere", (*pins, *warps) if ours else (), split_pins(pins), split_pins(warps),
        len(gone) - len(warps), place.description,
    )  # fmt: skip


def _find_stack(repo: Repo, data_id: DataId, warps: Sequence[Pin]) -> Pin | None:
    """The first-pass stack of a skycell if it was made of the warps there are, and says which of them are where.

    Cleaned or not: what a difference is made of must not change with that.
    """
    manifest = repo.manifest(data_id)
    if manifest is None or not manifest.has_content or "used.fits" not in manifest.members:
        return None
    made_of = sorted(pin for pin in manifest.inputs if pin.data_id.product == "warps")
    return manifest.pin if made_of == sorted(warps) else None


def describe_plan(plan: TemplatePlan, settings: DiffSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts and places of a task that follow from a plan."""
    facts: dict[str, Any] = {"template": plan.kind, "looked_for": plan.looked_for}
    if plan.kind != "elsewhere":
        return facts, {}
    # the path is no part of the recipe: what the pins name is
    facts["template_pins"] = plan.elsewhere
    facts |= {"template_night": plan.night} if plan.night else {}
    facts |= {"template_lost": plan.n_lost} if plan.n_lost else {}
    return facts, {"template_repository": settings.template_repository}


# ---- making


def make_template(task: Task, repo: Repo, mine: Pin, science: MaskedImage) -> Template:
    """The template of a task; raises `NoWork` where there is none, saying for what and what was looked for."""
    pins = [pin for pin in task.pins("warps") if pin != mine]
    kind = task.params["template"]
    if kind == "stack":
        return _reduce_stack(task, repo, mine, science, pins)
    if kind == "elsewhere":
        return _fetch_template(task, repo, science)
    if kind == "exposure":
        if not pins:
            raise _explain_lack(task, "none is there")
        image = repo.read_image(pins[0])
        return Template(image, find_psf(image, read_psf_grid(repo, pins[0])), 1)
    if len(pins) < task.settings.diffs.min_template_inputs:
        raise _explain_lack(task, f"there are {len(pins)}")
    return _combine_nights(task, repo, pins, matched=kind == "matched")


def find_psf(image: MaskedImage, grid: PsfGrid | None) -> Psf:
    """The PSF as published with an image, else a round one from the image's own stars."""
    return measure_psf(image, fwhm_px(image)) if grid is None else grid


def fwhm_px(image: MaskedImage) -> float:
    """Seeing from the header."""
    return float(image.header["FWHM"]) / (abs(float(image.header["CD1_1"])) * 3600.0)


def _explain_lack(task: Task, why: str) -> NoWork:
    exposure, cell = task.data_id.parts
    place = f"{exposure} on skycell {task.data_id.unit} of {cell}"
    return NoWork(f"no template for {place}: looked for {task.params['looked_for']}, {why}")


def _combine_nights(task: Task, repo: Repo, pins: Sequence[Pin], matched: bool) -> Template:
    """The warps of the other nights combined, all brought to the broadest PSF before that if asked for."""
    plain = task.settings.stacks.model_copy(update={"psf_matched": False})
    if not matched:
        with open_inputs(repo, pins) as inputs:
            stack = combine_inputs(inputs, plain)
        return Template(stack.image, find_psf(stack.image, stack.psf), int(stack.inputs["used"].sum()))
    grids = [read_psf_grid(repo, pin) for pin in pins]
    if any(grid is None for grid in grids):
        raise _explain_lack(task, "and the PSF of one is not known (diffs.template: matched needs psf.fits of warps)")
    target = choose_target(grids)
    images = [homogenise(repo.read_image(pin), grid, target) for pin, grid in zip(pins, grids, strict=True)]
    stack = combine_inputs(wrap_images(images), plain)
    alike = PsfGrid(np.zeros(1), np.zeros(1), target[None, None].astype(np.float32))
    return Template(stack.image, alike, int(stack.inputs["used"].sum()))


def _reduce_stack(task: Task, repo: Repo, mine: Pin, science: MaskedImage, night: Sequence[Pin]) -> Template:
    """The first-pass stack less all inputs of the exposure's night."""
    return _take_out(task, repo, task.pins("stacks")[0], (mine, *night), {mine: science})


def _take_out(
    task: Task, repo: Repo, pin: Pin, night: Sequence[Pin], at_hand: Mapping[Pin, MaskedImage]
) -> Template:  # fmt: skip
    """A stack less some of its inputs, by arithmetic; those `at_hand` are not read again."""
    inputs = repo.read_table(pin, "inputs.parquet")
    weights = inputs["weight"].to_numpy(float)
    pins = {one.data_id.parts[0]: one for one in night}
    gone = [row for row, name in enumerate(inputs["exposure"]) if name in pins and weights[row] > 0]
    left = (weights > 0) & ~np.isin(np.arange(len(weights)), gone)
    if left.sum() < task.settings.diffs.min_template_inputs:
        raise _explain_lack(task, f"the stack holds {left.sum()}")
    stack = repo.read_image(pin, planes=PLANES)
    used = read_used(repo, pin)
    if gone:
        names = [inputs["exposure"][row] for row in gone]
        warps = [
            at_hand[pins[name]] if pins[name] in at_hand else repo.read_image(pins[name], planes=PLANES)
            for name in names
        ]
        remove_inputs(stack, used, weights, gone, warps, _read_levels(inputs)[gone])
    stack.header.update(_describe_rest(inputs, left))
    grid = read_psf_grid(repo, pin)
    if grid is not None and gone:
        grid = reduce_psf(grid, [read_psf_grid(repo, pins[name]) for name in names], used, weights, gone)
    return Template(stack, find_psf(stack, grid), int(left.sum()))


def _read_levels(inputs: pd.DataFrame) -> np.ndarray:
    """(n, 3) planes taken off the inputs; zero where the table has none."""
    if not set(LEVEL_COLUMNS) <= set(inputs.columns):
        return np.zeros((len(inputs), 3))
    return inputs[list(LEVEL_COLUMNS)].fillna(0.0).to_numpy(float)


def _describe_rest(inputs: pd.DataFrame, left: np.ndarray) -> dict[str, Any]:
    """Cards of a stack that hold for the inputs left in it."""
    rest = inputs[left]
    weight, fwhm = rest["weight"].to_numpy(float), rest["fwhm_arcsec"].to_numpy(float)
    known = np.isfinite(fwhm)
    cards: dict[str, Any] = {"NINPUTS": int(left.sum())}
    if known.any():
        cards["FWHM"] = round(float(np.average(fwhm[known], weights=weight[known])), 4)
    factors, variances = (rest[name].to_numpy(float) for name in ("noise_covariance", "variance_njy2"))
    cards["NOISECOV"] = round(combine_covariance(factors, weight, variances), 5)
    return cards


def _fetch_template(task: Task, repo: Repo, science: MaskedImage) -> Template:
    """An image of another collection or repository on our grid."""
    pins, night = join_pins(task.params["template_pins"]), join_pins(task.params.get("template_night", ()))
    if not pins:
        raise _explain_lack(task, "nothing there overlaps it")
    root = task.places.get("template_repository", "")
    there = Repo(Path(repo.root / root)) if root else repo
    lost = task.params.get("template_lost", 0) + sum(not there.has_files(pin.data_id) for pin in night)
    if lost:
        raise _explain_lack(task, f"it holds the night of {task.params['exposure']}, of which {lost} warps are cleaned")
    if len(pins) == 1 and is_same_grid(there.read_header(pins[0], "image.fits"), science.header):
        return _read_stack(task, there, pins[0], night)
    found = [_read_stack(task, there, pin, night) for pin in pins]
    image = resample_images([one.image for one in found], science.header)
    return Template(image, find_psf(image, None), max(one.n_inputs for one in found))


def _read_stack(task: Task, repo: Repo, pin: Pin, night: Sequence[Pin]) -> Template:
    """An image as it is, less those warps of a night that are in it."""
    cell, unit = pin.data_id.parts[0], pin.data_id.unit
    mine = [one for one in night if (one.data_id.parts[1], one.data_id.unit) == (cell, unit)]
    if mine:
        return _take_out(task, repo, pin, mine, {})
    image = repo.read_image(pin)
    return Template(image, find_psf(image, read_psf_grid(repo, pin)), _count_inputs(image))


def _count_inputs(image: MaskedImage) -> int:
    return int(image.header.get("NINPUTS", 1))
