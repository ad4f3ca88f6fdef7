"""The steps that take the signature of an instrument off one chip, as one short function per effect, by name.

Each step is a call of one module of `science/` with its settings; `run_steps` takes them in the camera's order. Which
files are read, what a chip is made from and what it publishes is `pipeline/chips.py`'s.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from lap_assets.errors import BadInput, UnprocessableData
from lap_assets.model.camera import Camera, Chip
from lap_assets.model.image import NO_WEIGHT, UNUSABLE, Mask, MaskedImage
from lap_assets.model.products import MASTERS
from lap_assets.science import (
    bias,
    brighter_fatter,
    cosmic_rays,
    crosstalk,
    dark,
    defects,
    flat,
    fringe,
    gain,
    linearity,
    overscan,
    saturation,
    sky_frame,
    trails,
    variance,
)
from lap_assets.settings import ChipSettings

NEEDED_MASTERS = ("bias", "flat")  # the others are taken only where there are some
_BEFORE_GAIN = ("saturation", "crosstalk", "overscan", "bias", "linearity")
_AFTER_GAIN = ("dark", "brighter_fatter", "flat", "sky", "fringe", "cosmic_rays", "trails")
_BAND_ROWS, _OVERLAP_ROWS = 2048, 64
_SAMPLE = 4  # every so many rows and columns tell the level of a master

SourceReader = Callable[[str], tuple[Chip, np.ndarray] | None]


@dataclass
class Frame:
    """What the steps work on and what they need to know.

    Attributes
    ----------
    raw : (raw_ny, raw_nx) array
        As read, ADU.
    image : (ny, nx) float32
        Trimmed; ADU, from `gain` on electrons.
    mask : (ny, nx) int16
    chip : Chip
        With fixed sections, gains, …
    masters : mapping of kind to MaskedImage
        Read when asked for, one at a time.
    read_source : callable
        Chip and raw frame of another chip of the exposure, None where there is none.
    var : (ny, nx) float32 or None
        Electrons²; None before `gain`.
    master_var : (ny, nx) float32 or None
        What masters in ADU add to the variance, ADU².
    bad : (ny, nx) bool or None
        Defects of the masters used so far.
    metrics : dict
    """

    raw: np.ndarray
    image: np.ndarray
    mask: np.ndarray
    chip: Chip
    camera: Camera
    masters: Mapping[str, MaskedImage]
    chosen: ChipSettings
    exptime_s: float
    read_source: SourceReader
    var: np.ndarray | None = None
    master_var: np.ndarray | None = None
    bad: np.ndarray | None = None
    opened: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)

    def flag(self, where: np.ndarray, bits: Mask) -> None:
        """Set mask bits where `where` (bool) is true."""
        self.mask |= np.where(where, np.int16(bits), np.int16(0))

    def note_bad(self, master: MaskedImage) -> None:
        """Remember the defects of a master for the step `defects`."""
        found = (master.mask & np.int16(Mask.BAD)) != 0
        self.bad = found if self.bad is None else self.bad | found

    @property
    def meaningless(self) -> np.ndarray:
        """(ny, nx) bool: pixels without data, and defects known so far."""
        empty = (self.mask & np.int16(Mask.NO_DATA | Mask.BAD)) != 0
        return empty if self.bad is None else empty | self.bad


def list_steps(camera: Camera, chosen: ChipSettings) -> tuple[str, ...]:
    """Steps of a camera in order, without those that are switched off.

    Raises
    ------
    BadInput
        A step works in units that are not there yet, or no more; or an unknown one is to be skipped.
    """
    unknown = sorted(set(chosen.skip_steps) - set(STEPS))
    if unknown:
        raise BadInput(f"chips.skip_steps: there is no step {unknown[0]!r}; there are: {', '.join(STEPS)}")
    steps = [step for step in camera.stages if step not in chosen.skip_steps]
    place = {step: k for k, step in enumerate(steps)}
    if "gain" in place:
        late = [s for s in _BEFORE_GAIN if place.get(s, -1) > place["gain"]]
        early = [s for s in _AFTER_GAIN if place.get(s, len(steps)) < place["gain"]]
        if late or early:
            said = f"{late[0]} must come before gain" if late else f"{early[0]} must come after gain"
            raise BadInput(f"camera {camera.name}: stages: {said}; correct its order in the camera file")
    elif "dark" in place or ("brighter_fatter" in place and camera.brighter_fatter is not None):
        raise BadInput("chips.skip_steps: dark and brighter_fatter need electrons; skip them too when gain is skipped")
    if chosen.match_amplifiers:
        # once the flat has taken its part of the step away, not before
        last = max((place[s] for s in ("overscan", "gain", "flat", "sky") if s in place), default=-1)
        steps.insert(last + 1, MATCHING)
    return tuple(steps)


def run_steps(frame: Frame, steps: tuple[str, ...]) -> None:
    """Take the steps one after the other; without `gain` the image stays in ADU, its variance in ADU²."""
    left_out = []
    for step in steps:
        if step in MASTERS and step not in frame.masters and step not in NEEDED_MASTERS:
            left_out.append(step)
            continue
        if frame.var is None and step in _AFTER_GAIN:
            _estimate_in_adu(frame)
        STEPS[step](frame)
    if frame.var is None:
        _estimate_in_adu(frame)
    if left_out:
        frame.metrics["steps_without_master"] = ", ".join(left_out)


def check_master(kind: str, master: MaskedImage, chip: Chip) -> MaskedImage:
    """The master, fit for use: pixels without a number are neutral and BAD.

    Raises
    ------
    UnprocessableData
        It has another shape, another chip's name, no number at all, or a level that nothing can be divided by.
    """
    where = f"chip {chip.name}: the master {kind}"
    cure = "reject it (lap calibration reject) or build it from other frames"
    if master.sci.shape != chip.shape:
        raise UnprocessableData(f"{where} has shape {master.sci.shape}, the chip {chip.shape}; {cure}")
    named = str(master.header.get("CHIP", chip.name))
    if named != chip.name:
        raise UnprocessableData(f"{where} is that of chip {named}; {cure}")
    sample = master.sci[::_SAMPLE, ::_SAMPLE]
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        raise UnprocessableData(f"{where} holds no number; {cure}")
    divides = kind in ("flat", "sky")
    if divides and not float(np.median(sample)) > 0:
        raise UnprocessableData(f"{where} has a level of {float(np.median(sample)):g}, which is not > 0; {cure}")
    if not divides and not sample.any():
        raise UnprocessableData(f"{where} is zero everywhere; {cure}")
    known = np.isfinite(master.sci) & np.isfinite(master.var)
    if known.all():
        return master
    neutral = np.float32(1.0 if divides else 0.0)
    return MaskedImage(
        np.where(known, master.sci, neutral),
        np.where(known, master.mask, master.mask | np.int16(Mask.BAD)),
        np.where(known, master.var, np.float32(0.0)),
        master.header,
    )


# ---- one function per effect


def _flag_saturation(frame: Frame) -> None:
    counts = overscan.assemble_chip(frame.raw, frame.chip)
    frame.mask |= saturation.flag_saturation(
        counts, frame.chip.amplifiers, frame.chosen.saturation_trail_ratio, frame.chosen.saturation_grow_px
    )


def _remove_crosstalk(frame: Frame) -> None:
    factors = crosstalk.invert_couplings(frame.camera.crosstalk)
    wanted = crosstalk.list_source_chips(factors, frame.chip.name)
    if not wanted:
        return
    missing: list[str] = []
    frame.image, flags = crosstalk.subtract_crosstalk(
        frame.image, frame.chip, factors, _read_sources(frame, wanted, missing)
    )
    frame.mask |= flags
    frame.metrics["n_crosstalk_px"] = int(np.count_nonzero(flags))
    if missing:
        frame.metrics["crosstalk_missing"] = ", ".join(missing)


def _read_sources(frame: Frame, wanted: tuple[str, ...], missing: list[str]) -> Iterator[tuple[Chip, np.ndarray]]:
    """Source chips with their raw frames, one after the other; names of those that are not there go to `missing`."""
    for name in wanted:
        source = (frame.chip, frame.raw) if name == frame.chip.name else frame.read_source(name)
        if source is None:
            missing.append(name)
        else:
            yield source


def _remove_overscan(frame: Frame) -> None:
    chosen = frame.chosen
    overscan.check_overscan(frame.raw, frame.chip)
    frame.image = overscan.subtract_overscan(
        frame.image, frame.raw, frame.chip.amplifiers, chosen.overscan_smooth_rows, chosen.overscan_mode,
        chosen.overscan_knot_rows,
    )  # fmt: skip


def _remove_bias(frame: Frame) -> None:
    master = _open_master(frame, "bias")
    frame.image = bias.subtract_bias(frame.image, master.sci)
    frame.master_var = master.var


def _linearize(frame: Frame) -> None:
    frame.image, flags = linearity.linearize(frame.image, frame.chip.amplifiers)
    frame.mask |= flags


def _apply_gain(frame: Frame) -> None:
    """To electrons; from here on the variance is known."""
    amplifiers = frame.chip.amplifiers
    frame.image = flat.apply_gain(frame.image, amplifiers)
    frame.var = variance.estimate_variance(frame.image, flat.read_noise_map(amplifiers, frame.chip.shape))
    if frame.master_var is not None:
        frame.var += gain.scale_variance(frame.master_var, amplifiers)
        frame.master_var = None


def _estimate_in_adu(frame: Frame) -> None:
    """The variance of an image that stays in ADU: that of its electrons over the gain squared."""
    adu = frame.image
    _apply_gain(frame)
    frame.image = adu
    frame.var /= gain.scale_variance(np.ones(frame.chip.shape, np.float32), frame.chip.amplifiers)


def _subtract_dark(frame: Frame) -> None:
    master = _open_master(frame, "dark")
    frame.image, frame.var = dark.subtract_dark(frame.image, frame.var, master.sci, master.var, frame.exptime_s)


def _restore_charge(frame: Frame) -> None:
    if frame.camera.brighter_fatter is None:
        return
    kernel = np.array(frame.camera.brighter_fatter.kernel)
    frame.image, frame.metrics["brighter_fatter_iterations"] = brighter_fatter.restore_charge(
        frame.image, kernel, frame.meaningless, frame.chosen.brighter_fatter_tolerance_e,
        frame.chosen.brighter_fatter_iterations,
    )  # fmt: skip


def _divide_flat(frame: Frame) -> None:
    master = _open_master(frame, "flat")
    frame.image, frame.var, dead = flat.divide_response(frame.image, frame.var, master.sci, master.var, in_place=True)
    frame.flag(dead, Mask.BAD | Mask.NO_DATA)


def _correct_illumination(frame: Frame) -> None:
    master = _open_master(frame, "sky")
    frame.image, frame.var, dead = sky_frame.correct_illumination(
        frame.image, frame.var, master.sci, master.var, in_place=True
    )
    frame.flag(dead, Mask.BAD | Mask.NO_DATA)


def _match_amplifiers(frame: Frame) -> None:
    usable = ((frame.mask & np.int16(UNUSABLE)) == 0) & ~frame.meaningless
    factors = gain.measure_amplifier_steps(frame.image, usable, frame.chip.amplifiers)
    frame.image, frame.var = gain.match_amplifiers(frame.image, frame.var, frame.chip.amplifiers, factors)
    frame.metrics["amplifier_step_max"] = round(max(abs(factor - 1.0) for factor in factors.values()), 5)


def _subtract_fringe(frame: Frame) -> None:
    master = _open_master(frame, "fringe")
    usable = ((frame.mask & np.int16(UNUSABLE)) == 0) & ~frame.meaningless
    amplitude, error = fringe.fit_fringe(frame.image, usable, master.sci)
    frame.metrics["fringe_amplitude_e"], frame.metrics["fringe_error_e"] = round(amplitude, 4), round(error, 4)
    if amplitude > frame.chosen.fringe_min_snr * error:
        frame.image, frame.var = fringe.subtract_fringe(frame.image, frame.var, master.sci, master.var, amplitude)


def _flag_defects(frame: Frame) -> None:
    for kind in sorted(frame.masters):
        if kind not in frame.opened:
            _open_master(frame, kind)
    if frame.bad is not None:
        frame.mask = defects.flag_defects(frame.mask, frame.bad)
        frame.bad = None


def _flag_cosmic_rays(frame: Frame) -> None:
    """In bands of rows, overlapping by more than a hit reaches: the finder's own planes would be half of the memory."""
    chosen, ny = frame.chosen, frame.chip.ny
    noise = float(np.mean([amp.read_noise_e for amp in frame.chip.amplifiers]))
    number = -(-ny // _BAND_ROWS)
    edges = [ny * k // number for k in range(number + 1)]
    found = np.zeros(frame.chip.shape, bool)
    for y0, y1 in pairwise(edges):
        low, high = max(y0 - _OVERLAP_ROWS, 0), min(y1 + _OVERLAP_ROWS, ny)
        mask = frame.mask[low:high]
        hits = cosmic_rays.find_cosmic_rays(
            frame.image[low:high], (mask & np.int16(NO_WEIGHT)) != 0,
            (mask & np.int16(Mask.SATURATED | Mask.BLEED)) != 0, noise, sigma=chosen.cosmic_ray_sigma,
            fraction=chosen.cosmic_ray_fraction, contrast=chosen.cosmic_ray_contrast,
            iterations=chosen.cosmic_ray_iterations, min_snr=chosen.cosmic_ray_min_snr,
        )  # fmt: skip
        found[y0:y1] = hits[y0 - low : y1 - low]
    frame.mask = cosmic_rays.flag_cosmic_rays(frame.mask, found)


def _flag_trails(frame: Frame) -> None:
    chosen = frame.chosen
    limits = trails.TrailLimits(
        chosen.trail_snr, chosen.trail_min_length_px, chosen.trail_min_evenness, chosen.trail_bin_px
    )
    found = trails.find_trails(frame.image, frame.mask, frame.var, limits)
    frame.mask = trails.flag_trails(frame.mask, found, chosen.trail_margin_px)
    frame.metrics["n_trails"] = len(found)


MATCHING = "match_amplifiers"  # no stage of a camera: switched on in the settings
STEPS: dict[str, Callable[[Frame], None]] = {
    "saturation": _flag_saturation,
    "crosstalk": _remove_crosstalk,
    "overscan": _remove_overscan,
    "bias": _remove_bias,
    "linearity": _linearize,
    "gain": _apply_gain,
    "dark": _subtract_dark,
    "brighter_fatter": _restore_charge,
    "flat": _divide_flat,
    "sky": _correct_illumination,
    MATCHING: _match_amplifiers,
    "fringe": _subtract_fringe,
    "defects": _flag_defects,
    "cosmic_rays": _flag_cosmic_rays,
    "trails": _flag_trails,
}


def _open_master(frame: Frame, kind: str) -> MaskedImage:
    if kind not in frame.masters:
        raise UnprocessableData(
            f"chip {frame.chip.name}: no calibration of kind {kind} is associated; ingest its frames "
            "(--kind calibration) or leave the step out (chips.skip_steps)"
        )
    master = check_master(kind, frame.masters[kind], frame.chip)
    if kind not in frame.opened:
        frame.opened.append(kind)
        frame.note_bad(master)
    return master
