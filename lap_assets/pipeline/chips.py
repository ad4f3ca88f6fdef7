"""Calibrated chips of an exposure: raw frames through the steps its camera lists, or calibrated files read as they are.

Each step is one call of a module of `science/`; their order is data (`Camera.stages`), and each can be left out
(`chips.skip_steps`). Sky, sources and astrometry come later (`pipeline/solutions.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.io import fits

from lap_assets.errors import UnprocessableData
from lap_assets.model.camera import Chip, load_camera
from lap_assets.model.ids import DataId
from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage
from lap_assets.model.products import CALIBRATION_COLLECTION
from lap_assets.model.survey import Survey
from lap_assets.pipeline.raw_files import read_frame
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.pictures import thumbnail
from lap_assets.science import bias, cosmic_rays, defects, flat, foreign_images, overscan, saturation, variance
from lap_assets.settings import ChipSettings, Settings
from lap_assets.store.repo import Repo


def plan(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per working chip of the exposure, with its masters pinned."""
    exposure = survey.exposures[partition]
    camera = load_camera(exposure.camera, repo.cameras)
    tasks = []
    for file in sorted(exposure.chips, key=lambda one: one.chip):
        if camera.chip(file.chip).broken:
            continue
        params: dict[str, Any] = {
            "camera": camera.name, "camera_sha256": camera.sha256, "kind": exposure.kind, "band": exposure.band,
            "night": exposure.night,
            "mjd": exposure.mjd, "exptime_s": exposure.exptime_s,
            "ra_deg": exposure.ra_deg, "dec_deg": exposure.dec_deg,
            "hdu": file.hdu, "sha256": file.sha256,
        }  # fmt: skip
        places = {"image": file.path, "variance": file.variance_path, "mask": file.mask_path}
        inputs = []
        masters = survey.upstream("chips", partition) if exposure.kind == "raw" else ()
        for product, key in masters:
            data_id = DataId(CALIBRATION_COLLECTION, product, key, file.chip)
            pin = repo.pin(data_id)
            if pin is None:
                params["missing"] = f"no {data_id}"
            else:
                inputs.append(pin)
        data_id = DataId(collection, "chips", partition, file.chip)
        tasks.append(Task(data_id, tuple(sorted(inputs)), settings, params, places))
    return tasks


def make(task: Task, repo: Repo) -> Output:
    """One calibrated chip: electrons (raw) or the unit of the file (calibrated), sky included."""
    if "missing" in task.params:
        raise UnprocessableData(f"chip {task.data_id.unit}: {task.params['missing']}")
    image = _read_calibrated(task, repo) if task.params["kind"] == "calibrated" else _calibrate_raw(task, repo)
    good = image.usable
    least = task.settings.chips.min_good_fraction
    if good.mean() < least:
        raise UnprocessableData(f"chip {task.data_id.unit}: {good.mean():.1%} usable pixels, {least:.0%} are needed")
    values = image.sci[good]
    sky = float(np.median(values))
    metrics = {
        "sky": round(sky, 3),
        "sky_rms": round(float(1.4826 * np.median(np.abs(values - sky))), 4),
        "n_saturated_px": _count(image.mask, Mask.SATURATED),
        "n_cosmic_ray_px": _count(image.mask, Mask.COSMIC_RAY),
        "n_bad_px": _count(image.mask, Mask.BAD | Mask.NO_DATA),
    }
    return Output({"image.fits": image, "preview.png": thumbnail(image.sci, image.mask)}, metrics)


def _count(mask: np.ndarray, bits: Mask) -> int:
    return int(np.count_nonzero(mask & int(bits)))


# ---- raw frames


@dataclass
class _Frame:
    """What the steps work on: trimmed image, mask and variance, and what they need to know."""

    raw: np.ndarray
    image: np.ndarray
    mask: np.ndarray
    var: np.ndarray
    chip: Chip
    masters: dict[str, MaskedImage]
    chosen: ChipSettings


def _calibrate_raw(task: Task, repo: Repo) -> MaskedImage:
    camera = load_camera(task.params["camera"], repo.cameras)
    chip = camera.chip(task.data_id.unit)
    raw, _ = read_frame(task.places["image"], task.params["hdu"])
    trimmed = overscan.assemble_chip(raw, chip)
    finite = np.isfinite(trimmed)
    if not finite.any() or float(trimmed[finite].min()) == float(trimmed[finite].max()):
        raise UnprocessableData(f"chip {chip.name}: {task.places['image']}[{task.params['hdu']}] holds no data")
    masters = {
        product: repo.read_image(pin) for product in ("master_biases", "master_flats") for pin in task.pins(product)
    }
    mask = np.where(finite, np.int16(0), np.int16(Mask.NO_DATA))
    frame = _Frame(
        raw,
        np.where(finite, trimmed, 0.0).astype(np.float32),
        mask,
        np.ones_like(trimmed),
        chip,
        masters,
        task.settings.chips,
    )
    for step in camera.stages:
        if step not in frame.chosen.skip_steps:
            _STEPS[step](frame)
    empty = (frame.mask & int(Mask.NO_DATA)) != 0
    header = camera.nominal_wcs(chip.name, task.params["ra_deg"], task.params["dec_deg"])
    _describe(header, task, "electron")
    return MaskedImage(
        np.where(empty, 0.0, frame.image).astype(np.float32),
        frame.mask,
        np.where(empty, 0.0, frame.var).astype(np.float32),
        header,
    )


def _flag_saturation(frame: _Frame) -> None:
    counts = overscan.assemble_chip(frame.raw, frame.chip)
    frame.mask |= saturation.flag_saturation(
        counts, frame.chip.amplifiers, frame.chosen.saturation_trail_ratio, frame.chosen.saturation_grow_px
    )


def _remove_overscan(frame: _Frame) -> None:
    frame.image = overscan.subtract_overscan(
        frame.image, frame.raw, frame.chip.amplifiers, frame.chosen.overscan_smooth_rows
    )


def _remove_bias(frame: _Frame) -> None:
    frame.image = bias.subtract_bias(frame.image, _master(frame, "master_biases").sci)


def _apply_gain(frame: _Frame) -> None:
    """To electrons; from here on the variance is known."""
    frame.image = flat.apply_gain(frame.image, frame.chip.amplifiers)
    frame.var = variance.estimate_variance(frame.image, flat.read_noise_map(frame.chip.amplifiers, frame.chip.shape))


def _divide_flat(frame: _Frame) -> None:
    master = _master(frame, "master_flats")
    dead = master.sci < flat.MIN_RESPONSE
    frame.image = flat.divide_flat(frame.image, master.sci)
    frame.var = flat.divide_flat(frame.var, np.where(dead, 0.0, master.sci**2))
    frame.mask = frame.mask | np.where(dead, np.int16(Mask.BAD | Mask.NO_DATA), np.int16(0))


def _flag_defects(frame: _Frame) -> None:
    for product in sorted(frame.masters):
        frame.mask = defects.flag_defects(frame.mask, (frame.masters[product].mask & int(Mask.BAD)) != 0)


def _flag_cosmic_rays(frame: _Frame) -> None:
    chosen = frame.chosen
    saturated = (frame.mask & int(Mask.SATURATED | Mask.BLEED)) != 0
    broken = (frame.mask & int(NO_WEIGHT)) != 0
    noise = float(np.mean([amp.read_noise_e for amp in frame.chip.amplifiers]))
    hits = cosmic_rays.find_cosmic_rays(
        frame.image, broken, saturated, noise, sigma=chosen.cosmic_ray_sigma, fraction=chosen.cosmic_ray_fraction,
        contrast=chosen.cosmic_ray_contrast, iterations=chosen.cosmic_ray_iterations,
    )  # fmt: skip
    frame.mask = cosmic_rays.flag_cosmic_rays(frame.mask, hits)


_STEPS: dict[str, Callable[[_Frame], None]] = {
    "saturation": _flag_saturation,
    "overscan": _remove_overscan,
    "bias": _remove_bias,
    "gain": _apply_gain,
    "flat": _divide_flat,
    "defects": _flag_defects,
    "cosmic_rays": _flag_cosmic_rays,
}


def _master(frame: _Frame, product: str) -> MaskedImage:
    if product not in frame.masters:
        raise UnprocessableData(
            f"chip {frame.chip.name}: no calibration of kind {product} is associated; ingest its frames "
            "(--kind calibration) or leave the step out (chips.skip_steps)"
        )
    return frame.masters[product]


# ---- calibrated files


def _read_calibrated(task: Task, repo: Repo) -> MaskedImage:
    camera = load_camera(task.params["camera"], repo.cameras)
    if camera.calibrated is None:
        raise UnprocessableData(f"camera {camera.name} has no section `calibrated`, which calibrated exposures need")
    sci, header = read_frame(task.places["image"], task.params["hdu"])
    ivar, _ = read_frame(task.places["variance"], task.params["hdu"])
    codes, _ = read_frame(task.places["mask"], task.params["hdu"])
    if not sci.shape == ivar.shape == codes.shape:
        raise UnprocessableData(
            f"chip {task.data_id.unit}: shapes differ: image {sci.shape}, inverse variance {ivar.shape}, "
            f"mask {codes.shape}; fetch the files again and ingest them"
        )
    if not np.isfinite(sci).any():
        raise UnprocessableData(f"chip {task.data_id.unit}: {task.places['image']} holds no finite pixel")
    mask = foreign_images.translate_mask(codes, camera.calibrated.mask_codes, camera.calibrated.mask_is_bits)
    sci, mask, var = foreign_images.complete_variance(sci, ivar, mask)
    kept = _wcs_cards(header)
    _describe(kept, task, str(header.get("BUNIT", "adu")).strip() or "adu")
    return MaskedImage(sci, mask, var, kept)


def _wcs_cards(header: fits.Header) -> fits.Header:
    """NAXISn and the cards of the celestial WCS, TPV included."""
    wanted = ("CTYPE", "CRVAL", "CRPIX", "CUNIT", "CD1_", "CD2_", "CDELT", "PC1_", "PC2_", "PV1_", "PV2_", "RADESYS",
              "EQUINOX", "A_", "B_", "AP_", "BP_", "LONPOLE", "LATPOLE", "NAXIS")  # fmt: skip
    kept = fits.Header([card for card in header.cards if card.keyword.startswith(wanted)])
    return kept


def _describe(header: fits.Header, task: Task, unit: str) -> None:
    header["BUNIT"] = unit
    header["EXPOSURE"], header["CHIP"] = task.data_id.partition, task.data_id.unit
    header["BAND"], header["EXPTIME"], header["MJD"] = (task.params[key] for key in ("band", "exptime_s", "mjd"))
