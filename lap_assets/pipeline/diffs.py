"""Stage `diffs`: an exposure's warp minus a template of the other nights or its companion's warp; sources on it.

Planning (which warps make the template), cards and metrics; the subtraction is `science/diff.py`, the sources are
`science/diff_sources.py`. A template is stacked again from the run's warps without those of the science exposure's
night; a pairwise difference (LAP-28, `diffs.against: pair`) takes the companion's warp as it is.
"""

import logging

import numpy as np
from astropy.io import fits

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId, Pin
from lap_assets.model.image import NO_WEIGHT, MaskedImage
from lap_assets.model.survey import Survey
from lap_assets.pipeline.stacks import combine_warps
from lap_assets.pipeline.task import Output, Task
from lap_assets.pipeline.warps import find_warps
from lap_assets.qa.pictures import thumbnail
from lap_assets.science.diff import Difference, subtract_images
from lap_assets.science.diff_sources import MoffatPsf, SourceLimits, correlated_gain, detect_sources, measure_psf
from lap_assets.science.matching_kernel import KernelLimits
from lap_assets.settings import Settings
from lap_assets.store.fits_format import select_wcs_cards
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per skycell with a warp of this exposure, with the warps it is subtracted from."""
    name, cell = partition.split("|")
    exposure = survey.exposures[name]
    companion = survey.companion(name, cell)
    nights = [one for one in survey.members(cell, exposure.band) if survey.exposures[one].night != exposure.night]
    templates = find_warps(repo, collection, [companion] if companion else nights, cell)
    params = {"exposure": name, "band": exposure.band, "night": exposure.night, "mjd": exposure.mjd}
    if companion:
        params["companion"] = companion
    tasks = []
    for warp in repo.units(collection, "warps", partition):
        manifest = repo.manifest(warp)
        if manifest is None:
            continue
        pins = list(templates.get(warp.unit, []))
        facts = dict(params)
        if manifest.has_content:
            pins.append(manifest.pin)
        else:
            facts["missing"] = f"no warp to subtract from: {manifest.state} ({manifest.reason})"
        tasks.append(Task(DataId(collection, "diffs", partition, warp.unit), tuple(sorted(pins)), settings, facts))
    return tasks


def make(task: Task, repo: Repo) -> Output:
    """Make the template, subtract, find sources."""
    if reason := task.params.get("missing"):
        raise NoWork(reason)
    chosen = task.settings.diffs
    mine = [pin for pin in task.pins("warps") if pin.data_id.partition == task.data_id.partition]
    rest = [pin for pin in task.pins("warps") if pin.data_id.partition != task.data_id.partition]
    science, template = repo.read_image(mine[0]), _make_template(task, rest, repo)
    _check_overlap(science, template, chosen.min_template_coverage, task.params["exposure"])
    psfs = [measure_psf(image, _fwhm_px(image)) for image in (science, template)]
    limits = KernelLimits(chosen.kernel_order, chosen.background_order, chosen.max_stamps, chosen.min_stamp_snr)
    covariances = tuple(float(image.header["NOISECOV"]) for image in (science, template))
    difference = subtract_images(science, template, psfs[0].fwhm_px, psfs[1].fwhm_px, limits, covariances)
    psf = psfs[0] if difference.convolved == "template" else psfs[1]
    cuts = SourceLimits(snr=chosen.source_snr, bright_fraction=chosen.bright_fraction)
    sources = detect_sources(difference, template, psf, science.wcs, cuts)
    image = difference.image
    image.header = _describe(task, science, difference, psf, len(rest))
    metrics = {
        "sky_chi": round(difference.sky_chi, 4),
        "stamp_chi2": round(difference.stamp_chi2, 3),
        "kernel_sum": round(difference.kernel_sum, 5),
        "n_stamps": difference.n_stamps,
        "n_template_inputs": len(rest),
        "fwhm_px": round(psf.fwhm_px, 3),
        "usable_fraction": round(float(image.usable.mean()), 4),
        "n_sources": len(sources),
        "n_clean_sources": int((sources["flags"] == 0).sum()),
    }
    return Output(
        {"image.fits": image, "sources.parquet": sources, "preview.png": thumbnail(image.sci, image.mask)}, metrics
    )


def _make_template(task: Task, pins: list[Pin], repo: Repo) -> MaskedImage:
    """The companion's warp, or a stack of the other nights'; raises `NoWork` where they are too few."""
    companion, needed = task.params.get("companion"), task.settings.diffs.min_template_inputs
    if companion and not pins:
        raise NoWork(f"the companion {companion} has no warp here")
    if companion:
        return repo.read_image(pins[0])
    if len(pins) < needed:
        raise NoWork(f"no template: {len(pins)} warps of other nights than {task.params['night']}, {needed} needed")
    return combine_warps([repo.read_image(pin) for pin in pins], task.settings.stacks)[0]


def _check_overlap(science: MaskedImage, template: MaskedImage, least: float, exposure: str) -> None:
    good = ((science.mask & int(NO_WEIGHT)) == 0) & (science.var > 0)
    both = good & ((template.mask & int(NO_WEIGHT)) == 0) & (template.var > 0)
    share = both.sum() / max(int(good.sum()), 1)
    if share < least:
        raise NoWork(f"the template covers {share:.0%} of {exposure} here, {least:.0%} needed")


def _fwhm_px(image: MaskedImage) -> float:
    return float(image.header["FWHM"]) / (abs(float(image.header["CD1_1"])) * 3600.0)


def _describe(task: Task, science: MaskedImage, difference: Difference, psf: MoffatPsf, n_template: int) -> fits.Header:
    """Cards of a difference: WCS, what was subtracted, the PSF and the noise (read back by `read_psf`)."""
    header = select_wcs_cards(science.header)
    header["BUNIT"] = "nJy"
    header["EXPOSURE"], header["BAND"], header["NIGHT"] = (task.params[key] for key in ("exposure", "band", "night"))
    header["MJD"] = task.params["mjd"]
    header["CONVOLVE"] = (difference.convolved, "image convolved with the kernel")
    header["KSUM"] = (round(difference.kernel_sum, 6), "sum of the kernel")
    header["NTEMPL"] = (n_template, "warps in the template")
    header["SKYCHI"] = (round(difference.sky_chi, 5), "scatter of the sky / sqrt(VAR)")
    header["NOISECOV"] = (round(difference.noisecov, 5), "variance of large sums / sum of VAR")
    header["PSFFWHM"] = (round(psf.fwhm_px, 5), "px, Moffat")
    header["PSFBETA"] = (round(psf.beta, 5), "Moffat")
    header["PSFRESP"] = (round(psf.response, 6), "flux the filter gives a unit star")
    gain = correlated_gain(psf.draw(), difference.correlation)
    header["PSFCOV"] = (round(gain, 5), "variance of PSF-weighted sums / that of VAR")
    header["FWHM"] = (round(psf.fwhm_px * abs(float(np.asarray(header["CD1_1"]))) * 3600.0, 4), "arcsec")
    return header


def read_psf(header: fits.Header) -> tuple[MoffatPsf, float]:
    """PSF of a published difference, and the factor of the variance of PSF-weighted sums."""
    psf = MoffatPsf(float(header["PSFFWHM"]), float(header["PSFBETA"]), float(header["PSFRESP"]))
    return psf, float(header["PSFCOV"])
