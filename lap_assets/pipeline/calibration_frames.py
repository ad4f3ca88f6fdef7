"""The frames of a calibration set, calibrated as far as their kind asks for, a stretch of rows at a time.

A light first pass over each frame finds its sections, exposure time and overscan levels; from then on any rows can be
had, so that fifty frames of a chip are combined in bounded memory. Crosstalk is left in: of evenly lit frames it is
part of the response, of a star it is a ghost that the combination rejects. Combining is `pipeline/calibrations.py`'s.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lap_assets.errors import UnprocessableData
from lap_assets.model.camera import Amplifier, Camera, Chip
from lap_assets.pipeline.frame_rows import FrameRows, open_rows
from lap_assets.science import flat, linearity, overscan
from lap_assets.science.frame_combination import fill_rows
from lap_assets.settings import CalibrationSettings

_BAND_BYTES = 160 << 20  # of the rows of all frames that are held at a time
_PASS_ROWS = 512
_SAMPLE_BLOCKS, _SAMPLE_ROWS = 8, 16  # stretches of rows that stand for a frame


@dataclass(frozen=True)
class FrameMasters:
    """The planes a frame is calibrated with, (ny, nx) float32 each; None where a master is not used.

    Attributes
    ----------
    bias : ADU
    dark : electrons per second
    flat, sky : relative response
    bias_variance : ADU²
        Read for darks alone, in which the noise of the bias stays.
    """

    bias: np.ndarray | None = None
    bias_variance: np.ndarray | None = None
    dark: np.ndarray | None = None
    flat: np.ndarray | None = None
    sky: np.ndarray | None = None


@dataclass(frozen=True)
class CalibrationFrame:
    """One frame of one chip.

    Attributes
    ----------
    rows : FrameRows
    chip : Chip
        With the sections and numbers of the frame's own header.
    exptime_s : float
    levels : mapping of amplifier to (rows,) float32
        Overscan, ADU.
    """

    rows: FrameRows
    chip: Chip
    exptime_s: float
    levels: Mapping[str, np.ndarray] = field(default_factory=dict)

    def read(
        self, y0: int, y1: int, steps: Sequence[str], masters: FrameMasters, image: np.ndarray | None = None
    ) -> np.ndarray:
        """Rows y0 to y1 of the trimmed chip after `steps`, (y1 - y0, nx) float32; NaN where it is saturated.

        They are put into `image` where one is given, if the steps allow.
        """
        image = np.empty((y1 - y0, self.chip.nx), np.float32) if image is None else image
        stretches: dict[tuple[int, int], np.ndarray] = {}
        for amp in self.chip.amplifiers:
            x0, x1, top, end = amp.target
            first, last = max(y0, top), min(y1, end)
            if first >= last:
                continue
            place = (amp.data[2] + first - top, amp.data[2] + last - top)
            if place not in stretches:
                stretches[place] = self.rows.read(*place)
            raw = stretches[place][:, amp.data[0] : amp.data[1]]
            levels = self.levels.get(amp.name)
            levels = np.zeros(last - first, np.float32) if levels is None else levels[first - top : last - top]
            fill_rows(raw, levels, np.float32(amp.saturation_adu), image[first - y0 : last - y0, x0:x1])
        for step in steps:
            image = _STEPS[step](self, image, y0, masters)
        return image

    def sample(self, steps: Sequence[str], masters: FrameMasters) -> np.ndarray:
        """The middle columns of some rows of the middle half, (n, nx / 2) float32."""
        nx = self.chip.nx
        parts = [self.read(y0, y1, steps, masters) for y0, y1 in sample_rows(self.chip.ny)]
        return np.concatenate([part[:, nx // 4 : nx - nx // 4] for part in parts])


def open_frame(
    path: str, hdu: str, chip: Chip, camera: Camera, chosen: CalibrationSettings, whole: bool = True
) -> CalibrationFrame:
    """A frame with its overscan levels; without `whole` they are those of the sampled rows alone, one per amplifier.

    Raises
    ------
    UnprocessableData
        The file is damaged, has another shape than the chip, lacks a promised section or overscan.
    """
    rows = open_rows(path, hdu)
    one = chip.resolve(rows.header)
    _check_shape(rows, one)
    value = rows.value(camera.header.exptime_s)
    exptime = float(value) if isinstance(value, int | float) and np.isfinite(value) else float("nan")
    find = _measure_levels if whole else _sample_levels
    return CalibrationFrame(rows, one, exptime, find(rows, one, chosen))


def sample_rows(ny: int) -> list[tuple[int, int]]:
    """Stretches of rows, evenly over the middle half of `ny`, that stand for a frame."""
    first, last = ny // 4, ny - ny // 4
    blocks = min(_SAMPLE_BLOCKS, max(1, (last - first) // _SAMPLE_ROWS))
    starts = np.linspace(first, max(last - _SAMPLE_ROWS, first), blocks).astype(int)
    return [(int(y0), int(min(y0 + _SAMPLE_ROWS, last))) for y0 in starts]


def read_bands(
    frames: Sequence[CalibrationFrame], steps: Sequence[str], masters: FrameMasters
) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of all frames, stretch by stretch: place and (n, rows, nx) float32, valid until the next is asked for."""
    ny, nx = frames[0].chip.shape
    height = int(np.clip(_BAND_BYTES // (4 * nx * len(frames)), 1, ny))
    band = np.empty((len(frames), height, nx), np.float32)
    for y0 in range(0, ny, height):
        y1 = min(y0 + height, ny)
        for k, frame in enumerate(frames):
            place = band[k, : y1 - y0]
            image = frame.read(y0, y1, steps, masters, place)
            if image is not place:
                place[...] = image
        # a last, shorter stretch is still one block of memory
        yield slice(y0, y1), band[:, : y1 - y0]


def _check_shape(rows: FrameRows, chip: Chip) -> None:
    # a view of one number has the frame's shape and no size
    overscan.check_raw_shape(np.broadcast_to(np.uint16(0), rows.shape), chip)


def _measure_levels(rows: FrameRows, chip: Chip, chosen: CalibrationSettings) -> dict[str, np.ndarray]:
    """Overscan level of each row of each amplifier, from one pass that keeps the overscan columns alone."""
    amplifiers = [amp for amp in chip.amplifiers if amp.overscan is not None]
    if not amplifiers:
        return {}
    strips = {amp.name: np.empty(_shape(amp), np.float32) for amp in amplifiers}
    low, high = min(amp.overscan[2] for amp in amplifiers), max(amp.overscan[3] for amp in amplifiers)
    for y0 in range(low, high, _PASS_ROWS):
        y1 = min(y0 + _PASS_ROWS, high)
        raw = rows.read(y0, y1)
        for amp in amplifiers:
            left, right, bottom, top = amp.overscan
            first, last = max(y0, bottom), min(y1, top)
            if first < last:
                strips[amp.name][first - bottom : last - bottom] = raw[first - y0 : last - y0, left:right]
    return {amp.name: _measure_strip(strips[amp.name], amp, chip, chosen) for amp in amplifiers}


def _sample_levels(rows: FrameRows, chip: Chip, chosen: CalibrationSettings) -> dict[str, np.ndarray]:
    """One overscan level per amplifier from the sampled rows."""
    levels = {}
    for amp in chip.amplifiers:
        if amp.overscan is None:
            continue
        top, end = amp.target[2:]
        inside = [(max(y0, top), min(y1, end)) for y0, y1 in sample_rows(chip.ny) if y0 < end and y1 > top]
        shift = amp.data[2] - amp.target[2]
        parts = [rows.read(y0 + shift, y1 + shift)[:, amp.overscan[0] : amp.overscan[1]] for y0, y1 in inside]
        if parts:
            level = _measure_strip(np.concatenate(parts).astype(np.float32), amp, chip, chosen)
            levels[amp.name] = np.full(amp.target[3] - amp.target[2], np.mean(level), np.float32)
    return levels


def _measure_strip(strip: np.ndarray, amp: Amplifier, chip: Chip, chosen: CalibrationSettings) -> np.ndarray:
    if not np.isfinite(strip).all() or strip.min() == strip.max():
        raise UnprocessableData(
            f"chip {chip.name}, amplifier {amp.name}: the overscan {list(amp.overscan)} that the camera promises is "
            "empty; correct the sections in the camera file"
        )
    alone = amp.model_copy(update={"overscan": (0, strip.shape[1], 0, strip.shape[0])})
    return overscan.measure_overscan(
        strip, alone, chosen.overscan_smooth_rows, chosen.overscan_mode, chosen.overscan_knot_rows
    )


def _shape(amp: Amplifier) -> tuple[int, int]:
    return amp.overscan[3] - amp.overscan[2], amp.overscan[1] - amp.overscan[0]


# ---- steps, on a stretch of rows that begins at y0


def _subtract_bias(frame: CalibrationFrame, image: np.ndarray, y0: int, masters: FrameMasters) -> np.ndarray:
    if masters.bias is not None:
        image -= masters.bias[y0 : y0 + len(image)]
    return image


def _linearize(frame: CalibrationFrame, image: np.ndarray, y0: int, masters: FrameMasters) -> np.ndarray:
    if all(not amp.linearity and amp.linearity_max_adu is None for amp in frame.chip.amplifiers):
        return image
    linear, suspect = linearity.linearize(image, _cut_amplifiers(frame.chip, y0, len(image)))
    linear[suspect != 0] = np.nan
    return linear


def _apply_gain(frame: CalibrationFrame, image: np.ndarray, y0: int, masters: FrameMasters) -> np.ndarray:
    for amp in _cut_amplifiers(frame.chip, y0, len(image)):
        x0, x1, first, last = amp.target
        image[first:last, x0:x1] *= np.float32(amp.gain)
    return image


def _subtract_dark(frame: CalibrationFrame, image: np.ndarray, y0: int, masters: FrameMasters) -> np.ndarray:
    if masters.dark is not None:
        image -= np.float32(require_exptime(frame)) * masters.dark[y0 : y0 + len(image)]
    return image


def _divide_flat(frame: CalibrationFrame, image: np.ndarray, y0: int, masters: FrameMasters) -> np.ndarray:
    return _divide(image, y0, masters.flat)


def _divide_sky(frame: CalibrationFrame, image: np.ndarray, y0: int, masters: FrameMasters) -> np.ndarray:
    return _divide(image, y0, masters.sky)


def _divide(image: np.ndarray, y0: int, response: np.ndarray | None) -> np.ndarray:
    if response is None:
        return image
    part = response[y0 : y0 + len(image)]
    return np.where(part >= flat.MIN_RESPONSE, image / np.maximum(part, flat.MIN_RESPONSE), np.float32(np.nan))


_STEPS: dict[str, Callable[[CalibrationFrame, np.ndarray, int, FrameMasters], np.ndarray]] = {
    "bias": _subtract_bias,
    "linearity": _linearize,
    "gain": _apply_gain,
    "dark": _subtract_dark,
    "flat": _divide_flat,
    "sky": _divide_sky,
}


def choose_steps(camera: Camera, kind: str) -> tuple[str, ...]:
    """The steps that frames of this kind go through before they are combined, in the camera's order."""
    before = {
        "bias": (),
        "dark": ("bias", "linearity", "gain"),
        "flat": ("bias", "linearity", "gain", "dark"),
        "sky": ("bias", "linearity", "gain", "dark", "flat"),
        "fringe": ("bias", "linearity", "gain", "dark", "flat", "sky"),
    }[kind]
    return tuple(step for step in camera.stages if step in before)


def require_exptime(frame: CalibrationFrame) -> float:
    """Exposure time of a frame in seconds; raises `UnprocessableData` unless it is above zero."""
    if not frame.exptime_s > 0:
        raise UnprocessableData(
            f"{frame.rows.path}: exposure time {frame.exptime_s} s, but it must be > 0 here; correct the header or "
            "map the key in the camera file"
        )
    return frame.exptime_s


def _cut_amplifiers(chip: Chip, y0: int, rows: int) -> list[Amplifier]:
    """The amplifiers with their targets relative to a stretch of rows; those outside it left out."""
    cut = []
    for amp in chip.amplifiers:
        x0, x1, top, end = amp.target
        first, last = max(top - y0, 0), min(end - y0, rows)
        if first < last:
            cut.append(amp.model_copy(update={"target": (x0, x1, first, last)}))
    return cut
