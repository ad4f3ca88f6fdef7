"""Stage `diffs`: an exposure's warp minus its template; the sources on it, and whether it can be believed.

Planning, cards, metrics and the verdict; what the template is `templates.py` says, the subtraction is
`science/diff.py`, the sources are `science/diff_sources.py`. A subtraction that fails its check is published with the
reason (metric `quality`, card QUALITY): its sources are flagged, and neither transients nor trails are taken from it.
"""

import logging

import numpy as np
import pandas as pd
from astropy.io import fits

from lap_assets.errors import NotFound, NoWork
from lap_assets.model.ids import DataId, Pin
from lap_assets.model.image import NO_WEIGHT, UNUSABLE, MaskedImage
from lap_assets.model.quality import GOOD
from lap_assets.model.survey import Survey
from lap_assets.pipeline.psf_members import PSF_MEMBER, planes_of_grid, read_psf_grid
from lap_assets.pipeline.task import Output, Task
from lap_assets.pipeline.templates import describe_plan, find_psf, make_template, plan_templates
from lap_assets.qa.pictures import thumbnail
from lap_assets.science.diff import Difference, DiffLimits, Psf, judge_difference, subtract_images
from lap_assets.science.diff_sources import SourceFlag, SourceLimits, count_residual_stars, detect_sources
from lap_assets.science.matching_kernel import KernelLimits
from lap_assets.science.moffat import MoffatPsf
from lap_assets.science.psf_grid import PsfGrid, lay_nodes
from lap_assets.science.source_search import correlated_gain
from lap_assets.settings import DiffSettings, Settings
from lap_assets.store.fits_format import select_wcs_cards
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

_ROW_STEP = 4
_FEW = np.s_[::_ROW_STEP, ::_ROW_STEP]
_PREVIEW_PX = 2000  # images larger than this are thinned out before they are drawn


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per skycell with a warp of this exposure, with what its template is made of."""
    name, cell = partition.split("|")
    exposure, companion = survey.exposures[name], survey.companion(name, cell)
    params = {"exposure": name, "band": exposure.band, "night": exposure.night, "mjd": exposure.mjd}
    if companion:
        params["companion"] = companion
    units = repo.units(collection, "warps", partition)
    templates = plan_templates(survey, repo, settings, collection, partition, [unit.unit for unit in units])
    tasks = []
    for warp in units:
        manifest, template = repo.manifest(warp), templates[warp.unit]
        if manifest is None:
            continue
        facts, places = describe_plan(template, settings.diffs)
        facts |= params
        pins = set(template.pins)
        if manifest.has_content:
            pins.add(manifest.pin)
        else:
            facts["missing"] = f"no warp to subtract from: {manifest.state} ({manifest.reason})"
        data_id = DataId(collection, "diffs", partition, warp.unit)
        tasks.append(Task(data_id, tuple(sorted(pins)), settings, facts, places))
    return tasks


def make(task: Task, repo: Repo) -> Output:
    """Make the template, subtract, find sources, judge."""
    if reason := task.params.get("missing"):
        raise NoWork(reason)
    chosen = task.settings.diffs
    mine = next(pin for pin in task.pins("warps") if is_own(pin, task.data_id))
    science = repo.read_image(mine)
    template = make_template(task, repo, mine, science)
    _check_overlap(task, science, template.image)
    covariances = tuple(float(image.header.get("NOISECOV", 1.0)) for image in (science, template.image))
    limits = choose_limits(chosen)
    psf = find_psf(science, read_psf_grid(repo, mine))
    difference = subtract_images(science, template.image, psf, template.psf, limits, covariances)
    cuts = SourceLimits(
        snr=chosen.source_snr, bright_fraction=chosen.bright_fraction, bright_star_snr=chosen.bright_star_snr
    )
    stars = _read_stars(repo, mine)
    sources = detect_sources(difference, template.image, science.wcs, cuts, stars)
    quality = judge_difference(difference, limits) or _judge_stars(difference, sources, stars, chosen, cuts) or GOOD
    if quality != GOOD:
        log.warning("%s: bad subtraction: %s", task.data_id, quality)
        sources["flags"] |= int(SourceFlag.BAD_SUBTRACTION)
    image = difference.image
    image.header = _describe(task, science, difference, template.n_inputs, quality)
    members = {
        "image.fits": image,
        "sources.parquet": sources,
        PSF_MEMBER: planes_of_grid(_sample_psf(difference.psf, image.shape)),
        "preview.png": _draw_preview(image),
    }
    metrics = _measure(difference, template.n_inputs, sources) | {"quality": quality}
    if away := task.params.get("template_pins"):
        metrics["template"] = ", ".join(f"{name}@{content[:12]}" for name, content in away)
    return Output(members, metrics)


def _judge_stars(
    difference: Difference, sources: pd.DataFrame, stars: pd.DataFrame | None, chosen: DiffSettings, cuts: SourceLimits
) -> str:
    """What is wrong where more stars than ever vary leave a source; empty where nothing is, or no star is known."""
    if stars is None:
        return ""
    left, n = count_residual_stars(sources, stars, cuts, difference.psf.fwhm_px)
    if left < chosen.min_matched or left <= chosen.max_residual_stars * n:
        return ""
    return f"{left} of {n} bright stars leave a source, {chosen.max_residual_stars:.0%} allowed: PSF or zero points"


def _draw_preview(image: MaskedImage) -> bytes:
    step = _ROW_STEP if min(image.shape) >= _PREVIEW_PX else 1
    return thumbnail(image.sci[::step, ::step], image.mask[::step, ::step])


def is_own(pin: Pin, data_id: DataId) -> bool:
    """Whether an input is the warp that a difference is made of, not one of its template."""
    return (pin.data_id.collection, pin.data_id.partition) == (data_id.collection, data_id.partition)


def choose_limits(chosen: DiffSettings) -> DiffLimits:
    """How images are subtracted and judged, from the settings."""
    return DiffLimits(
        method=chosen.method,
        kernel=KernelLimits(chosen.kernel_order, chosen.background_order, chosen.max_stamps, chosen.min_stamp_snr),
        decorrelate=chosen.decorrelate,
        convolve=chosen.convolve,
        min_matched=chosen.min_matched,
        max_stamp_chi2=chosen.max_stamp_chi2,
        max_kernel_sum_error=chosen.max_kernel_sum_error,
        max_offset_px=chosen.max_offset_px,
        max_sky_chi=chosen.max_sky_chi,
    )


def _check_overlap(task: Task, science: MaskedImage, template: MaskedImage) -> None:
    """Raise `NoWork` where too little of the exposure is covered."""
    least = task.settings.diffs.min_template_coverage
    # every fourth row and column tell the share well enough
    good, covered = (((one.mask[_FEW] & int(NO_WEIGHT)) == 0) & (one.var[_FEW] > 0) for one in (science, template))
    both = good & covered
    share = both.sum() / max(int(good.sum()), 1)
    if share < least:
        exposure, cell = task.data_id.parts
        raise NoWork(
            f"the template ({task.params['looked_for']}) covers {share:.0%} of {exposure} on skycell "
            f"{task.data_id.unit} of {cell}, {least:.0%} needed"
        )


def _read_stars(repo: Repo, pin: Pin) -> pd.DataFrame | None:
    """The bright stars of a warp, where it tells them."""
    try:
        return repo.read_table(pin, "stars.parquet")
    except NotFound:
        return None


def _sample_psf(psf: Psf, shape: tuple[int, int]) -> PsfGrid:
    """A PSF at nodes, as products have it."""
    x, y = lay_nodes(shape)
    stamps = psf.evaluate_many(np.tile(x, len(y)), np.repeat(y, len(x)))
    return PsfGrid(x, y, stamps.reshape(len(y), len(x), *stamps.shape[1:]).astype(np.float32))


def _measure(difference: Difference, n_template: int, sources: pd.DataFrame) -> dict[str, float | int | str]:
    """Metrics of a difference; a number that is not known is left out."""
    image = difference.image
    usable = ((image.mask[_FEW] & int(UNUSABLE)) == 0) & (image.var[_FEW] > 0)
    metrics = {
        "sky_chi": round(difference.sky_chi, 4),
        "stamp_chi2": round(difference.stamp_chi2, 3),
        "left_out_chi2": round(difference.left_out_chi2, 3),
        "kernel_sum": round(difference.kernel_sum, 5),
        "offset_px": round(float(np.hypot(*difference.astrometric_offset_px)), 4),
        "n_matched_stars": difference.n_matched,
        "n_stamps": difference.n_stamps,
        "n_template_inputs": n_template,
        "fwhm_px": round(difference.psf.fwhm_px, 3),
        "usable_fraction": round(float(usable.mean()), 4),
        "n_sources": len(sources),
        "n_clean_sources": int((sources["flags"] == 0).sum()),
    }
    return {name: value for name, value in metrics.items() if np.isfinite(value)} | {"method": difference.method}


def _describe(
    task: Task, science: MaskedImage, difference: Difference, n_template: int, quality: str
) -> fits.Header:  # fmt: skip
    """Cards of a difference: WCS, what was subtracted and how well, the noise (PSFCOV is read by `read_psf`)."""
    header = select_wcs_cards(science.header)
    header["BUNIT"] = "nJy"
    header["EXPOSURE"], header["BAND"], header["NIGHT"] = (task.params[key] for key in ("exposure", "band", "night"))
    header["MJD"] = task.params["mjd"]
    header["METHOD"] = (difference.method, "of subtraction")
    header["TEMPLATE"] = (task.params["template"], "kind of template")
    header["NTEMPL"] = (n_template, "exposures in the template")
    header["CONVOLVE"] = (difference.convolved, "image convolved with the kernel")
    header["DECORR"] = (difference.decorrelated, "noise as white as a warp's")
    header["QUALITY"] = quality[:68]  # good, or why not: no room for more in a card
    header["NMATCH"] = (difference.n_matched, "stars in both images")
    header["KSUM"] = (round(difference.kernel_sum, 6), "sum of the kernel")
    for card, value, comment in (
        ("STARCHI2", difference.stamp_chi2, "reduced chi2 of matched stars"),
        ("SKYCHI", difference.sky_chi, "scatter of the sky / sqrt(VAR)"),
    ):
        if np.isfinite(value):
            header[card] = (round(value, 5), comment)
    header["NOISECOV"] = (round(difference.noisecov, 5), "variance of large sums / sum of VAR")
    header["PSFFWHM"] = (round(difference.psf.fwhm_px, 5), "px")
    ny, nx = science.shape
    gain = correlated_gain(difference.psf.evaluate(0.5 * (nx - 1), 0.5 * (ny - 1)), difference.correlation)
    header["PSFCOV"] = (round(gain, 5), "variance of PSF-weighted sums / that of VAR")
    header["FWHM"] = (round(difference.psf.fwhm_px * abs(float(header["CD1_1"])) * 3600.0, 4), "arcsec")
    return header


def is_good(header: fits.Header) -> bool:
    """Whether a published difference passed its check."""
    return header.get("QUALITY", GOOD) == GOOD


def read_psf(repo: Repo, pin: Pin, header: fits.Header) -> tuple[Psf, float]:
    """PSF of a published difference, and the factor of the variance of PSF-weighted sums."""
    grid = read_psf_grid(repo, pin)
    return MoffatPsf(float(header["PSFFWHM"])) if grid is None else grid, float(header["PSFCOV"])
