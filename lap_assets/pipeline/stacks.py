"""Stage `stacks`: the first-pass stacks of a cell in a band, for skycells with enough inputs.

Planning, weights from headers, cards; the combination itself is `science/stack.py`. `combine_warps` also serves
templates and final stacks.
"""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
from astropy.io import fits

from lap_assets.errors import NoWork
from lap_assets.model.ids import DataId
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.model.survey import Survey
from lap_assets.pipeline.task import Output, Task
from lap_assets.pipeline.warps import depth_mag, find_warps
from lap_assets.qa.pictures import thumbnail
from lap_assets.science.stack import ClipLimits, choose_weights, combine_covariance, combine_images, typical_variance
from lap_assets.settings import Settings, StackSettings
from lap_assets.store.fits_format import select_wcs_cards
from lap_assets.store.repo import Repo

log = logging.getLogger(__name__)

_CLIPPED = int(Mask.CLIPPED)


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
    images = [repo.read_image(pin) for pin in pins]
    stack, inputs = combine_warps(images, task.settings.stacks)
    return describe_stack(stack, inputs)


def combine_warps(images: Sequence[MaskedImage], settings: StackSettings) -> tuple[MaskedImage, pd.DataFrame]:
    """Clipped, inverse-variance weighted stack of warps of one skycell, and the table of its inputs.

    The header of the stack holds FWHM (weighted mean, arcsec) and NOISECOV besides the WCS.

    Raises
    ------
    NoWork
        If no input has a usable pixel.
    """
    variances = [typical_variance(image) for image in images]
    weights = choose_weights(variances)
    if not weights.any():
        raise NoWork(f"none of {len(images)} inputs has a usable pixel")
    headers = [image.header for image in images]
    fwhm = [float(header.get("FWHM", np.nan)) for header in headers]
    limits = ClipLimits(settings.clip_sigma, settings.clip_amplitude, settings.clip_grow_sigma)
    stack = combine_images(images, weights, limits, fwhm)
    factors = [float(header.get("NOISECOV", 1.0)) for header in headers]
    inputs = pd.DataFrame(
        {
            "exposure": [str(header.get("EXPOSURE", "")) for header in headers],
            "night": [str(header.get("NIGHT", "")) for header in headers],
            "mjd": [float(header.get("MJD", np.nan)) for header in headers],
            "weight": weights,
            "fwhm_arcsec": fwhm,
            "variance_njy2": variances,
            "noise_covariance": factors,
        }
    )
    inputs.attrs["units"] = {"mjd": "d", "fwhm_arcsec": "arcsec", "variance_njy2": "nJy2"}
    header = select_wcs_cards(headers[0])
    header["BUNIT"] = "nJy"
    header["BAND"] = headers[0].get("BAND", "")
    used = weights > 0
    known = used & np.isfinite(fwhm)
    seeing = float(np.average(np.array(fwhm)[known], weights=weights[known])) if known.any() else 1.0
    header["FWHM"] = (round(seeing, 4), "arcsec, weighted mean of the inputs")
    covariance = combine_covariance(factors, weights, np.nan_to_num(variances, nan=1.0))
    header["NOISECOV"] = (round(covariance, 5), "variance of large sums / sum of VAR")
    header["NINPUTS"] = int(used.sum())
    stack.header = fits.Header(header)
    return stack, inputs


def describe_stack(stack: MaskedImage, inputs: pd.DataFrame) -> Output:
    """Members and metrics of a stack."""
    header, count = stack.header, stack.planes["NINPUT"]
    covered = count > 0
    if not covered.any():
        raise NoWork(f"no pixel is left of {len(inputs)} inputs")
    scale = abs(header["CD1_1"]) * 3600.0
    clipped = float(((stack.mask & _CLIPPED) != 0)[covered].mean())
    metrics = {
        "n_inputs": int(header["NINPUTS"]),
        "covered_fraction": round(float(covered.mean()), 4),
        "inputs_median": float(np.median(count[covered])),
        "limit_mag_5sigma": round(depth_mag(stack, header["NOISECOV"], header["FWHM"] / scale), 3),
        "fwhm_arcsec": header["FWHM"],
        "clipped_fraction": round(clipped, 5),
        "noise_covariance": header["NOISECOV"],
    }
    return Output(
        {"image.fits": stack, "inputs.parquet": inputs, "preview.png": thumbnail(stack.sci, stack.mask)}, metrics
    )
