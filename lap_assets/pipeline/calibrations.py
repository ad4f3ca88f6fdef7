"""Master biases and master flats of a camera, chip by chip, from the frames of a calibration set.

Which frames belong together is decided at ingest; how they are combined is `science/bias.py` and `science/flat.py`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from astropy.io import fits

from lap_assets.errors import UnprocessableData
from lap_assets.model.camera import Camera, Chip, load_camera
from lap_assets.model.ids import DataId
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.model.products import CALIBRATION_COLLECTION
from lap_assets.model.survey import ChipFile, Survey
from lap_assets.pipeline.raw_files import read_frame
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.pictures import thumbnail
from lap_assets.science import bias as bias_science
from lap_assets.science import defects, flat, overscan
from lap_assets.settings import CalibrationSettings, Settings
from lap_assets.store.repo import Repo


def plan_biases(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per chip of the calibration set `partition`."""
    return _plan_chips("master_biases", survey, repo, settings, collection, partition)


def plan_flats(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per chip, with the master bias of that chip pinned."""
    tasks = []
    for task in _plan_chips("master_flats", survey, repo, settings, collection, partition):
        inputs, params = [], dict(task.params)
        for product, key in survey.upstream("master_flats", partition):
            data_id = DataId(CALIBRATION_COLLECTION, product, key, task.data_id.unit)
            pin = repo.pin(data_id)
            if pin is None:
                params["missing"] = f"no master bias {data_id}"
            else:
                inputs.append(pin)
        tasks.append(replace(task, inputs=tuple(inputs), params=params))
    return tasks


def make_biases(task: Task, repo: Repo) -> Output:
    """Master bias of one chip, ADU, with hot pixels flagged."""
    chosen = task.settings.calibrations
    camera = load_camera(task.params["camera"], repo.cameras)
    chip = camera.chip(task.data_id.unit)
    frames = np.stack([_read_trimmed(task, one, chip) for one in _frames_of(task, chosen)])
    image, variance, noise = bias_science.build_bias(frames, chosen.clip_sigma)
    bad = defects.find_hot_pixels(image, chosen.hot_pixel_sigma, noise / np.sqrt(len(frames)))
    metrics = {
        "n_frames": len(frames),
        "read_noise_adu": round(noise, 4),
        "level_adu": round(float(np.median(image)), 4),
        "bad_fraction": round(float(bad.mean()), 6),
    }
    return _publishable(image, variance, bad, "adu", task, metrics)


def make_flats(task: Task, repo: Repo) -> Output:
    """Master flat of one chip, relative to the mean of the mosaic, with dead pixels flagged."""
    if "missing" in task.params:
        raise UnprocessableData(f"chip {task.data_id.unit}: {task.params['missing']}")
    chosen = task.settings.calibrations
    camera = load_camera(task.params["camera"], repo.cameras)
    chip = camera.chip(task.data_id.unit)
    pins = task.pins("master_biases")
    master = repo.read_image(pins[0]) if pins else None
    frames = []
    for one in _frames_of(task, chosen):
        image = _read_trimmed(task, one, chip)
        image = image if master is None else bias_science.subtract_bias(image, master.sci)
        frames.append(flat.apply_gain(image, chip.amplifiers))
    relative = flat.relate_chip(_measure_levels(task, camera, chosen), chip.name)
    image, variance = flat.build_flat(
        np.stack(frames), flat.read_noise_map(chip.amplifiers, chip.shape), relative, chosen.clip_sigma
    )
    bad = defects.find_dead_pixels(image, chosen.dead_pixel_tolerance, chosen.dead_pixel_sigma)
    metrics = {
        "n_frames": len(frames),
        "relative_level": round(relative, 5),
        "light_e": round(flat.measure_level(frames[0]), 1),
        "bad_fraction": round(float(bad.mean()), 6),
    }
    return _publishable(image, variance, bad, "", task, metrics)


def _plan_chips(
    product: str, survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str
) -> list[Task]:
    one = survey.calibrations[partition]
    camera = load_camera(one.camera, repo.cameras)
    frames = sorted(one.frames, key=lambda frame: (frame.path, frame.chip))
    tasks = []
    for name in sorted({frame.chip for frame in frames} & set(camera.good_chips)):
        params: dict[str, Any] = {
            "camera": camera.name,
            "camera_sha256": camera.sha256,
            "band": one.band,
            "frames": [_describe(place, frame) for place, frame in enumerate(frames) if frame.chip == name],
        }
        if product == "master_flats":
            # one frame, the same for all chips, tells how bright the chips are relative to each other
            first = frames[0].path
            params["reference"] = [_describe(n, frame) for n, frame in enumerate(frames) if frame.path == first]
        places = {str(place): frame.path for place, frame in enumerate(frames)}
        tasks.append(Task(DataId(collection, product, partition, name), (), settings, params, places))
    return tasks


def _describe(place: int, frame: ChipFile) -> dict[str, str]:
    return {"place": str(place), "chip": frame.chip, "hdu": frame.hdu, "sha256": frame.sha256}


def _frames_of(task: Task, chosen: CalibrationSettings) -> list[dict[str, str]]:
    frames = task.params["frames"]
    if len(frames) < chosen.min_frames:
        raise UnprocessableData(
            f"chip {task.data_id.unit}: {len(frames)} frames, at least {chosen.min_frames} are needed "
            "(calibrations.min_frames); ingest more"
        )
    return list(frames)


def _read_trimmed(task: Task, frame: dict[str, str], chip: Chip) -> np.ndarray:
    """Trimmed frame in ADU, overscan removed."""
    raw, _ = read_frame(task.places[frame["place"]], frame["hdu"])
    image = overscan.assemble_chip(raw, chip)
    smooth = task.settings.calibrations.overscan_smooth_rows
    return overscan.subtract_overscan(image, raw, chip.amplifiers, smooth)


def _measure_levels(task: Task, camera: Camera, chosen: CalibrationSettings) -> dict[str, float]:
    """Level in electrons of each good chip in the reference frame."""
    levels = {}
    for frame in task.params["reference"]:
        chip = camera.chip(frame["chip"])
        if not chip.broken:
            image = flat.apply_gain(_read_trimmed(task, frame, chip), chip.amplifiers)
            levels[chip.name] = flat.measure_level(image)
    return levels


def _publishable(
    image: np.ndarray, variance: np.ndarray, bad: np.ndarray, unit: str, task: Task, metrics: dict[str, Any]
) -> Output:
    header = fits.Header()
    if unit:
        header["BUNIT"] = unit
    header["CHIP"], header["NFRAMES"] = task.data_id.unit, metrics["n_frames"]
    mask = np.where(bad, np.int16(Mask.BAD), np.int16(0))
    master = MaskedImage(image.astype(np.float32), mask, variance, header)
    return Output({"image.fits": master, "preview.png": thumbnail(master.sci, mask)}, metrics)
