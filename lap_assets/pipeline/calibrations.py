"""Master calibrations of a camera, chip by chip, from the frames of a calibration set, and how they compare.

Which frames belong together is decided at ingest; reading them is `pipeline/calibration_sets.py`'s and how they are
combined `science/`'s. Which masters an exposure is calibrated with does not belong here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from astropy.io import fits

from lap_assets.errors import UnprocessableData
from lap_assets.model.camera import load_camera
from lap_assets.model.ids import DataId
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.model.products import CALIBRATION_COLLECTION, MASTERS
from lap_assets.model.survey import ChipFile, Survey
from lap_assets.pipeline import calibration_sets as sets
from lap_assets.pipeline.calibration_frames import read_bands
from lap_assets.pipeline.calibration_sets import FrameSet
from lap_assets.pipeline.task import Output, Task
from lap_assets.qa.pictures import thumbnail
from lap_assets.science import bias, defects, flat, master_checks, master_dark, master_fringe, master_sky, source_mask
from lap_assets.science.frame_combination import measure_frame_noise
from lap_assets.science.master_checks import MasterComparison, MasterLimits
from lap_assets.settings import CalibrationSettings, Settings
from lap_assets.store.repo import Repo

_UNITS = {"bias": "adu", "dark": "electron/s", "flat": "", "sky": "", "fringe": ""}
_NEUTRAL = {"bias": 0.0, "dark": 0.0, "flat": 0.0, "sky": 1.0, "fringe": 0.0}


# ---- planning


def plan_biases(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per chip of the calibration set `partition`."""
    return _plan_chips("master_biases", survey, repo, settings, collection, partition)


def plan_darks(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per chip, with the master bias of that chip pinned."""
    return _plan_chips("master_darks", survey, repo, settings, collection, partition)


def plan_flats(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per chip, with the masters of that chip pinned that flats are made with."""
    return _plan_chips("master_flats", survey, repo, settings, collection, partition)


def plan_skies(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per chip, with the masters of all chips pinned: the sky of a chip is relative to that of the mosaic."""
    return _plan_chips("master_skies", survey, repo, settings, collection, partition)


def plan_fringes(survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str) -> list[Task]:
    """One task per chip, with the masters of that chip pinned that object frames are calibrated with."""
    return _plan_chips("master_fringes", survey, repo, settings, collection, partition)


def _plan_chips(
    product: str, survey: Survey, repo: Repo, settings: Settings, collection: str, partition: str
) -> list[Task]:
    one = survey.calibrations[partition]
    camera = load_camera(one.camera, repo.cameras)
    frames = sorted(one.frames, key=lambda frame: (frame.path, frame.chip))
    numbered = list(enumerate(frames))
    names = sorted({frame.chip for frame in frames} & set(camera.good_chips))
    upstream = survey.upstream(product, partition)
    tasks = []
    for name in names:
        own = [(place, frame) for place, frame in numbered if frame.chip == name]
        params: dict[str, Any] = {
            "camera": camera.name,
            "camera_sha256": camera.sha256,
            "band": one.band,
            "frames": [_describe(place, frame) for place, frame in own],
        }
        if product in ("master_flats", "master_skies"):
            params["reference"] = _describe_mosaic(numbered, name)
        inputs = []
        for kind, key in upstream:
            for chip in names if product == "master_skies" else [name]:
                data_id = DataId(CALIBRATION_COLLECTION, kind, key, chip)
                pin = repo.pin(data_id)
                if pin is not None:
                    inputs.append(pin)
                elif chip == name:
                    params["missing"] = f"no {data_id}"
        places = {str(place): frame.path for place, frame in numbered}
        data_id = DataId(collection, product, partition, name)
        tasks.append(Task(data_id, tuple(sorted(inputs)), settings, params, places))
    return tasks


def _describe(place: int, frame: ChipFile) -> dict[str, str]:
    return {"place": str(place), "chip": frame.chip, "hdu": frame.hdu, "sha256": frame.sha256}


def _describe_mosaic(numbered: list[tuple[int, ChipFile]], name: str) -> list[dict[str, str]]:
    """The frames of the other chips among which those of the same exposures are: in the same files, where there are."""
    files = {frame.path for _, frame in numbered if frame.chip == name}
    others = [(place, frame) for place, frame in numbered if frame.chip != name]
    same = [(place, frame) for place, frame in others if frame.path in files]
    return [_describe(place, frame) for place, frame in (same or others)]


# ---- building


def make_biases(task: Task, repo: Repo) -> Output:
    """Master bias of one chip, ADU, with hot pixels flagged."""
    found = sets.open_set(task, repo, "bias")
    chosen = task.settings.calibrations
    noise = measure_frame_noise(np.stack([one.sample(found.steps, found.masters) for one in found.frames]))
    image, variance = _combine(found, lambda _, band: bias.build_bias(band, chosen.clip_sigma, noise)[:2])
    bad = defects.find_hot_pixels(image, chosen.hot_pixel_sigma, noise / np.sqrt(len(found.frames)))
    return _publishable("bias", found, image, variance, bad, task, {"read_noise_adu": round(noise, 4)})


def make_darks(task: Task, repo: Repo) -> Output:
    """Master dark of one chip, electrons per second, with hot pixels flagged."""
    found = sets.open_set(task, repo, "dark", check=sets.check_exptime)
    chosen = task.settings.calibrations
    times = [one.exptime_s for one in found.frames]
    noise = found.read_noise
    image, variance = _combine(
        found, lambda rows, band: master_dark.build_dark(band, times, noise[rows], chosen.clip_sigma)
    )
    if found.masters.bias_variance is not None:
        electrons = flat.apply_gain(
            flat.apply_gain(found.masters.bias_variance, found.chip.amplifiers), found.chip.amplifiers
        )
        variance += master_dark.carry_bias_noise(electrons, times)
    known = np.isfinite(variance)
    spread = float(np.sqrt(np.median(variance[known]))) if known.any() else 0.0
    bad = defects.find_hot_pixels(np.where(known, image, 0.0), chosen.hot_pixel_sigma, spread)
    return _publishable("dark", found, image, variance, bad, task, {"exptime_s": round(float(np.sum(times)), 3)})


def make_flats(task: Task, repo: Repo) -> Output:
    """Master flat of one chip, relative to the mean of the mosaic, with dead pixels flagged."""
    found = sets.open_set(task, repo, "flat")
    chosen = task.settings.calibrations
    found, levels = sets.measure_flat_levels(found, chosen)
    relative = sets.relate_chips(found, task, repo, 1, flat.measure_sample_level)
    noise = found.read_noise
    image, variance = _combine(
        found, lambda rows, band: flat.build_flat(band, noise[rows], relative, chosen.clip_sigma, levels)
    )
    bad = defects.find_dead_pixels(image, chosen.dead_pixel_tolerance, chosen.dead_pixel_sigma)
    metrics = {"relative_level": round(relative, 5), "light_e": round(levels[0], 1)}
    return _publishable("flat", found, image, variance, bad, task, metrics)


def make_skies(task: Task, repo: Repo) -> Output:
    """Sky frame of one chip: its sky behind the flat, relative to the mean of the mosaic, on large scales."""
    found = sets.open_set(task, repo, "sky")
    chosen = task.settings.calibrations
    found, skies = sets.measure_skies(found, chosen)
    relative = sets.relate_chips(found, task, repo, chosen.reference_frames, master_sky.measure_sky_level)
    noise, levels, nx = found.read_noise, [one.level for one in skies], found.chip.nx

    def combine(rows: slice, band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for image, sky in zip(band, skies, strict=True):
            image[source_mask.spread_blocks(sky.sources, rows.start, len(image), nx)] = np.nan
        return master_sky.build_sky(band, levels, relative, noise[rows], chosen.clip_sigma)

    image, variance = master_sky.smooth_illumination(*_combine(found, combine), chosen.sky_mesh_px)
    metrics = {
        "relative_level": round(relative, 5),
        "sky_e": round(float(np.median(levels)), 2),
        "span": round(float(np.ptp(image)), 5),
    }
    return _publishable("sky", found, image, variance, np.zeros(image.shape, bool), task, metrics)


def make_fringes(task: Task, repo: Repo) -> Output:
    """Fringe pattern of one chip, mean zero, unit robust amplitude."""
    found = sets.open_set(task, repo, "fringe")
    chosen = task.settings.calibrations
    found, skies = sets.measure_skies(found, chosen, chosen.fringe_mesh_px)
    residuals = np.stack([one.residual for one in skies])
    skies = [replace(one, residual=None) for one in skies]
    amplitudes, _ = master_fringe.measure_fringe_amplitudes(
        residuals, [one.level for one in skies], chosen.fringe_min_correlation
    )
    del residuals
    shown = [k for k, amplitude in enumerate(amplitudes) if amplitude > 0]
    found = found.keep(shown, "it does not show the fringes of the others", chosen.min_frames)
    noise, levels, nx = found.read_noise, [skies[k].level for k in shown], found.chip.nx

    def combine(rows: slice, band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for image, k in zip(band, shown, strict=True):
            image -= source_mask.spread_blocks(skies[k].smooth, rows.start, len(image), nx)
            image[source_mask.spread_blocks(skies[k].sources, rows.start, len(image), nx)] = np.nan
        return master_fringe.build_fringe(band, amplitudes[shown], levels, noise[rows], chosen.clip_sigma)

    image, variance = _combine(found, combine)
    image -= np.float32(np.nanmean(image, dtype=np.float64))
    metrics = {
        "amplitude_e": round(float(np.median(amplitudes[shown])), 3),
        "sky_e": round(float(np.median(levels)), 2),
    }
    return _publishable("fringe", found, image, variance, np.zeros(image.shape, bool), task, metrics)


def _combine(
    found: FrameSet, combine: Callable[[slice, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Master and variance, a stretch of rows after the other."""
    image, variance = np.empty(found.chip.shape, np.float32), np.empty(found.chip.shape, np.float32)
    for rows, band in read_bands(found.frames, found.steps, found.masters):
        image[rows], variance[rows] = combine(rows, band)
    return image, variance


def _publishable(
    kind: str,
    found: FrameSet,
    image: np.ndarray,
    variance: np.ndarray,
    bad: np.ndarray,
    task: Task,
    metrics: dict[str, Any],
) -> Output:
    """The master with its mask; pixels that no frame knows are neutral, and BAD where a detector's defect is meant."""
    level = master_checks.require_sound(image, kind, f"chip {task.data_id.unit}: the master {kind}")
    header = fits.Header()
    if _UNITS[kind]:
        header["BUNIT"] = _UNITS[kind]
    header["CHIP"], header["NFRAMES"] = task.data_id.unit, len(found.frames)
    header["BAND"] = task.params["band"]
    unknown = ~np.isfinite(image)
    of_detector = kind in ("bias", "dark", "flat")
    mask = np.where(bad, np.int16(Mask.BAD), np.int16(0))
    mask[unknown] |= int(Mask.BAD if of_detector else Mask.INTERPOLATED)
    image[unknown], variance[unknown] = _NEUTRAL[kind], 0.0
    metrics = {
        "n_frames": len(found.frames),
        "n_left_out": len(found.refused),
        "left_out": "; ".join(found.refused)[:400],
        "level": round(level, 5),
        **metrics,
        "bad_fraction": round(float((mask & int(Mask.BAD) != 0).mean()), 6),
    }
    master = MaskedImage(image, mask, variance, header)
    return Output({"image.fits": master, "preview.png": thumbnail(master.sci, mask)}, metrics)


# ---- comparing


@dataclass(frozen=True)
class MasterReport:
    """A new master against the one before it, over its chips.

    Attributes
    ----------
    previous : str
        Key of the master before; empty: this is the first of its kind.
    chips : mapping of chip to MasterComparison
    reasons : tuple of str
        Why it should not be used unseen, one line each; empty: it may.
    """

    product: str
    partition: str
    previous: str = ""
    chips: Mapping[str, MasterComparison] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.reasons

    @property
    def metrics(self) -> dict[str, float]:
        """The worst of the chips, for the UI and the ledger."""
        if not self.chips:
            return {}
        ones = self.chips.values()
        return {
            "fraction_beyond_6sigma": max(one.fraction_beyond_6sigma for one in ones),
            "level_change": max((one.level_change for one in ones), key=abs),
            "new_defects": float(sum(one.new_defects for one in ones)),
        }


def check_master(
    repo: Repo, product: str, partition: str, previous: str | None, chosen: CalibrationSettings | None = None
) -> MasterReport:
    """Compare a published master with the one before it, chip by chip.

    Parameters
    ----------
    product, partition : str
        What was made, e.g. `master_flats` and `simcam|flat|r|2024-03-01`.
    previous : str or None
        Partition key of the master before; None: there is none, and only what was made is looked at.
    chosen : CalibrationSettings, optional
        Limits.
    """
    chosen = chosen or CalibrationSettings()
    kind = next(kind for kind, name in MASTERS.items() if name == product)
    limits = MasterLimits(
        chosen.stability.get(kind, 0.0),
        chosen.max_level_change.get(kind, float("inf")),
        chosen.max_fraction_beyond,
        chosen.max_new_defects,
    )
    made, before = _find_chips(repo, product, partition), _find_chips(repo, product, previous) if previous else []
    reasons = [] if made else [f"{product} {partition} has no chip"]
    reasons += [f"chip {chip}: not made, but the master before has it" for chip in before if chip not in made]
    chips = {}
    for chip in made:
        new = repo.read_image(DataId(CALIBRATION_COLLECTION, product, partition, chip))
        try:
            master_checks.require_sound(new.sci, kind, f"chip {chip}: the master {kind}")
            if chip in before:
                old = repo.read_image(DataId(CALIBRATION_COLLECTION, product, previous, chip))
                chips[chip] = master_checks.compare_masters(new, old, kind, limits)
        except UnprocessableData as error:
            reasons.append(str(error))
            continue
        reasons += [f"chip {chip}: {text}" for text in (chips[chip].reasons if chip in chips else ())]
    return MasterReport(product, partition, previous or "", chips, tuple(reasons))


def _find_chips(repo: Repo, product: str, partition: str) -> list[str]:
    """Chips of a master that have files, sorted."""
    units = repo.units(CALIBRATION_COLLECTION, product, partition)
    return [one.unit for one in units if repo.has_files(one)]
