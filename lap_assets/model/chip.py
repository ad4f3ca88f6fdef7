"""One chip of a mosaic and its amplifiers: where they lie in the raw frame, how they are read out, what they count.

Sections and numbers are fixed in the camera file, or named there by the header keys that hold them (DATASECA, GAINA,
…); `Chip.resolve` turns the latter into the former. No file is opened here; `model/camera.py` joins chips to cameras.

Conventions: pixel ranges are half-open and 0-based, `[x0, x1, y0, y1]`; header sections are those of FITS, 1-based and
inclusive, `[x0+1:x1,y0+1:y1]`, `*` for a whole side.
"""

import math
import re
from collections.abc import Mapping
from itertools import combinations
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lap_assets.errors import BadInput, UnprocessableData
from lap_assets.model.ids import check_name

Box = tuple[int, int, int, int]  # x0, x1, y0, y1: half-open, 0-based

_RANGE = r"\s*(?:(\d+)\s*:\s*(\d+)|\*)\s*"
_SECTION = re.compile(rf"\s*\[{_RANGE},{_RANGE}\]\s*")
# which field of an amplifier each header key replaces
_NUMBER_KEYS = {"gain_key": "gain", "read_noise_key": "read_noise_e", "saturation_key": "saturation_adu"}
_SECTION_KEYS = ("data_key", "overscan_key", "target_key")


class FrozenModel(BaseModel):
    """Immutable; unknown keys and numbers that are not finite are refused, a number serves as a text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


class Amplifier(FrozenModel):
    """One amplifier of a chip.

    Attributes
    ----------
    name : str
    data, overscan : Box
        Ranges in the raw frame; `overscan` may be None (none there). After `Chip.resolve` `data` is never None.
    target : Box
        Where `data` goes in the trimmed frame. After `Chip.resolve` never None.
    data_key, overscan_key, target_key : str
        Keys of the chip's own header that hold these sections instead. With a `data_key` and neither `target` nor
        `target_key`, the data sections of the chip are laid out as they lie in the raw frame.
    gain : float
        Electrons per ADU.
    read_noise_e : float
        Electrons.
    saturation_adu : float
        Raw ADU (bias included) from which a pixel is saturated.
    gain_key, read_noise_key, saturation_key : str
        Keys of the chip's own header whose values replace these numbers. Where a header lacks the key the number of
        the camera file serves, if the file gives one.
    readout : (left or right, bottom or top)
        Corner of `target` that is read first.
    linearity : tuple of float
        c2, c3, … of true = m (1 + c2 m + c3 m² + …), m in ADU above the overscan.
    linearity_max_adu : float or None
        ADU above the overscan up to which `linearity` is trusted; None: everywhere.
    """

    name: str
    data: Box | None = None
    target: Box | None = None
    overscan: Box | None = None
    data_key: str = ""
    overscan_key: str = ""
    target_key: str = ""
    gain: float = 1.0
    read_noise_e: float = 0.0
    saturation_adu: float = 65535.0
    gain_key: str = ""
    read_noise_key: str = ""
    saturation_key: str = ""
    readout: tuple[Literal["left", "right"], Literal["bottom", "top"]] = ("left", "bottom")
    linearity: tuple[float, ...] = ()
    linearity_max_adu: float | None = None

    @property
    def header_keys(self) -> tuple[str, ...]:
        """The header keys it is to be resolved from."""
        return tuple(getattr(self, key) for key in (*_SECTION_KEYS, *_NUMBER_KEYS) if getattr(self, key))

    @model_validator(mode="after")
    def _check(self) -> "Amplifier":
        require_name(self.name, "amplifier")
        if self.data is None and not self.data_key:
            raise ValueError(f"amplifier {self.name} needs data or data_key")
        if self.data is not None and self.target is None and not (self.data_key or self.target_key):
            raise ValueError(f"amplifier {self.name} needs target: where its data go in the trimmed frame")
        for what in ("data", "target", "overscan"):
            box = getattr(self, what)
            if box is not None and not (0 <= box[0] < box[1] and 0 <= box[2] < box[3]):
                raise ValueError(f"{what} of amplifier {self.name} is empty or negative: {list(box)}")
        if self.data and self.target and box_shape(self.data) != box_shape(self.target):
            raise ValueError(f"data and target of amplifier {self.name} have different shapes")
        if self.data and self.overscan and self.overscan[2:] != self.data[2:]:
            raise ValueError(f"overscan and data of amplifier {self.name} cover different rows")
        self._check_numbers()
        return self

    def _check_numbers(self) -> None:
        if self.gain <= 0 or self.read_noise_e < 0:
            raise ValueError(f"gain of amplifier {self.name} must be > 0 and read_noise_e >= 0")
        if self.saturation_adu <= 0 or (self.linearity_max_adu is not None and self.linearity_max_adu <= 0):
            raise ValueError(f"saturation_adu and linearity_max_adu of amplifier {self.name} must be > 0")


class Chip(FrozenModel):
    """One chip of the mosaic, trimmed to `ny` rows of `nx` pixels; `hdu` is its EXTNAME in raw files.

    `crpix` is that of FITS (1-based, in the trimmed frame), `cd_deg` the CD matrix `[[CD1_1, CD1_2], [CD2_1, CD2_2]]`
    in degrees per pixel. Where the camera has a key that names the chip (`header.chip`), `hdu` is its value. `alias`
    is what tables of the observatory call it.
    """

    name: str
    hdu: str
    nx: int
    ny: int
    crpix: tuple[float, float]
    cd_deg: tuple[tuple[float, float], tuple[float, float]]
    amplifiers: tuple[Amplifier, ...] = ()
    raw_nx: int | None = None
    raw_ny: int | None = None
    broken: bool = False
    alias: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) of the trimmed frame."""
        return self.ny, self.nx

    @property
    def raw_shape(self) -> tuple[int, int] | None:
        """(ny, nx) of the raw frame, None where the camera does not say."""
        return (self.raw_ny, self.raw_nx) if self.raw_nx and self.raw_ny else None

    @property
    def is_resolved(self) -> bool:
        """Whether nothing of it is left to the header."""
        return not any(amp.header_keys for amp in self.amplifiers)

    def amplifier(self, name: str) -> Amplifier:
        """The amplifier called `name`; raises `UnprocessableData`."""
        for amp in self.amplifiers:
            if amp.name == name:
                return amp
        raise UnprocessableData(f"chip {self.name} has no amplifier {name!r}; correct the camera file")

    def resolve(self, header: Mapping[str, Any]) -> "Chip":
        """This chip with sections and numbers as the header of its raw frame gives them; itself if none is asked for.

        Parameters
        ----------
        header : mapping
            The chip's own header (a `fits.Header` serves); NAXIS1 and NAXIS2 say how large the frame is.

        Raises
        ------
        UnprocessableData
            A section that the camera file promises is missing, cannot be read, or lies outside the frame; the sections
            do not make up the chip; a gain <= 0. The text names chip and key.
        """
        if self.is_resolved:
            return self
        shape = self._frame_shape(header)
        values = [_read_amplifier(amp, header, shape, f"chip {self.name}") for amp in self.amplifiers]
        if any(one["target"] is None for one in values):
            values = _lay_out(values)
        try:
            return Chip(**{**dict(self), "amplifiers": tuple(Amplifier(**one) for one in values)})
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            keys = ", ".join(dict.fromkeys(key for amp in self.amplifiers for key in amp.header_keys))
            raise UnprocessableData(f"chip {self.name}: {said} (header keys {keys}); is --camera right?") from None

    def _frame_shape(self, header: Mapping[str, Any]) -> tuple[int, int]:
        """(ny, nx) of the raw frame: as its header says, else the camera file."""
        try:
            return int(header["NAXIS2"]), int(header["NAXIS1"])
        except (KeyError, TypeError, ValueError):
            if self.raw_shape is None:
                raise UnprocessableData(f"chip {self.name}: header keys NAXIS1, NAXIS2 are missing") from None
            return self.raw_shape

    @model_validator(mode="after")
    def _check(self) -> "Chip":
        require_name(self.name, "chip")
        if self.nx <= 0 or self.ny <= 0:
            raise ValueError(f"nx and ny of chip {self.name} must be > 0")
        (a, b), (c, d) = self.cd_deg
        if abs(a * d - b * c) == 0.0:
            raise ValueError(f"cd_deg of chip {self.name} is singular")
        names = [amp.name for amp in self.amplifiers]
        if len(set(names)) != len(names):
            raise ValueError(f"two amplifiers of chip {self.name} have the same name")
        for amp in self.amplifiers:
            self._check_inside(amp)
        self._check_cover()
        return self

    def _check_inside(self, amp: Amplifier) -> None:
        if amp.target and (amp.target[1] > self.nx or amp.target[3] > self.ny):
            raise ValueError(f"target of amplifier {amp.name} lies outside chip {self.name}")
        for box in (amp.data, amp.overscan):
            if box and self.raw_shape and (box[1] > self.raw_shape[1] or box[3] > self.raw_shape[0]):
                raise ValueError(f"amplifier {amp.name} of chip {self.name} reaches outside its raw frame")

    def _check_cover(self) -> None:
        """Every pixel of the chip from one amplifier, every raw pixel used once."""
        for what in ("data", "target"):
            for one, two in combinations([amp for amp in self.amplifiers if getattr(amp, what)], 2):
                if boxes_overlap(getattr(one, what), getattr(two, what)):
                    raise ValueError(
                        f"{what} of amplifiers {one.name} and {two.name} of chip {self.name} cover the same pixels; "
                        "each must come from one amplifier exactly once"
                    )
        for amp in self.amplifiers:
            if amp.overscan and any(one.data and boxes_overlap(amp.overscan, one.data) for one in self.amplifiers):
                raise ValueError(f"overscan of amplifier {amp.name} of chip {self.name} lies on exposed pixels")
        targets = [amp.target for amp in self.amplifiers]
        if targets and all(targets):
            area = sum((x1 - x0) * (y1 - y0) for x0, x1, y0, y1 in targets)
            if area != self.nx * self.ny:
                raise ValueError(f"the targets of the amplifiers of chip {self.name} must cover it exactly once")


def require_name(name: str, what: str) -> str:
    """`check_name` for a field of a model: raises `ValueError`, which pydantic gathers with what else is wrong."""
    try:
        return check_name(name, what)
    except BadInput as error:
        raise ValueError(str(error)) from None


def box_shape(box: Box) -> tuple[int, int]:
    """(rows, columns) of a box."""
    return box[3] - box[2], box[1] - box[0]


def boxes_overlap(one: Box, two: Box) -> bool:
    """Whether two boxes share a pixel."""
    return one[0] < two[1] and two[0] < one[1] and one[2] < two[3] and two[2] < one[3]


def parse_section(text: str, shape: tuple[int, int]) -> Box:
    """A FITS section such as `[57:1080,51:4146]` or `[1:32,*]` as a box.

    Parameters
    ----------
    text : str
    shape : (ny, nx)
        Of the frame that it is a section of.

    Raises
    ------
    ValueError
        No section, a reversed or empty one, or one outside the frame.
    """
    found = _SECTION.fullmatch(str(text))
    if not found:
        raise ValueError("is no section like [1:2048,1:4096]")
    x0, x1, y0, y1 = (int(number) if number else None for number in found.groups())
    box = ((x0 or 1) - 1 if x1 else 0, x1 or shape[1], (y0 or 1) - 1 if y1 else 0, y1 or shape[0])
    if (x1 and not x0) or (y1 and not y0):
        raise ValueError("begins before the first pixel, which is 1")
    if not (box[0] < box[1] and box[2] < box[3]):
        raise ValueError("is empty or reversed")
    if box[1] > shape[1] or box[3] > shape[0]:
        raise ValueError(f"lies outside the frame of {shape[1]} x {shape[0]} pixels")
    return box


def _read_amplifier(amp: Amplifier, header: Mapping[str, Any], shape: tuple[int, int], where: str) -> dict[str, Any]:
    """The fields of a resolved amplifier; its target may still be missing."""
    values = dict(amp)
    for key in _SECTION_KEYS:
        if getattr(amp, key):
            # a target is a section of the trimmed chip, whose size is checked with the chip
            frame = shape if key != "target_key" else (10**9, 10**9)
            values[key.removesuffix("_key")] = _read_section(header, getattr(amp, key), frame, where)
        values[key] = ""
    data, strip = values["data"], values["overscan"]
    if amp.overscan_key:
        if strip[2] > data[2] or strip[3] < data[3]:
            raise UnprocessableData(
                f"{where}: header key {amp.overscan_key} covers rows {strip[2] + 1} to {strip[3]}, the data of "
                f"amplifier {amp.name} rows {data[2] + 1} to {data[3]}; the overscan must cover all of them"
            )
        values["overscan"] = (strip[0], strip[1], data[2], data[3])
    for key, name in _NUMBER_KEYS.items():
        if getattr(amp, key):
            values[name] = _read_positive(header, amp, key, name, where)
        values[key] = ""
    return values


def _read_section(header: Mapping[str, Any], key: str, shape: tuple[int, int], where: str) -> Box:
    text = header.get(key)
    if not isinstance(text, str) or not text.strip():
        raise UnprocessableData(
            f"{where}: header key {key}, which the camera file says holds a section, is missing; is --camera right?"
        )
    try:
        return parse_section(text, shape)
    except ValueError as error:
        raise UnprocessableData(f"{where}: header key {key} = {text.strip()!r} {error}; is --camera right?") from None


def _read_positive(header: Mapping[str, Any], amp: Amplifier, field: str, name: str, where: str) -> float:
    key = getattr(amp, field)
    value = header.get(key)
    if value is None and name in amp.model_fields_set:
        return getattr(amp, name)
    if value is None:
        raise UnprocessableData(
            f"{where}: header key {key}, which the camera file says holds {name}, is missing; add it, or give "
            f"{name} of amplifier {amp.name} in the camera file"
        )
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and (number > 0 or (number == 0 and name == "read_noise_e"))):
        raise UnprocessableData(f"{where}: header key {key} = {value!r} is no {name} > 0; correct it")
    return number


def _lay_out(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Targets as the data sections lie in the raw frame, the corner of them all at (0, 0)."""
    x0 = min(one["data"][0] for one in values)
    y0 = min(one["data"][2] for one in values)
    laid = []
    for one in values:
        box = one["data"]
        place = (box[0] - x0, box[1] - x0, box[2] - y0, box[3] - y0)
        laid.append(one | {"target": one["target"] or place})
    return laid
