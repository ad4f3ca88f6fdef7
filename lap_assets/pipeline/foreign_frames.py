"""Opening FITS files from outside and verifying them to the last byte; reading the facts of a frame from its header.

What is wrong with a file is raised as `BadInput`, one line that says what and what to do; which file it was is added
by `pipeline/ingest.py`, which also decides what the frames are good for.
"""

import gzip
import hashlib
import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning, AstropyWarning
from astropy.wcs import WcsError

from lap_assets.errors import BadInput, UnprocessableData
from lap_assets.model.camera import Camera, Chip, header_footprint
from lap_assets.model.ids import check_name
from lap_assets.model.sphere import bounding_cap

# what reading a damaged FITS file raises, from astropy, zlib and numpy
DAMAGE = (
    OSError,
    EOFError,
    zlib.error,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AstropyUserWarning,
    fits.VerifyError,
)
_MJD_RANGE = (10000.0, 200000.0)  # 1886 to 2406
_BLOCK, _PIECE = 2880, 1 << 20  # bytes
# fields of a header map that name no key
_NO_KEYS = ("ra_unit", "chip")
_NO_AREA = 1e-12  # of a WCS matrix, relative to the square of its largest element


@dataclass(frozen=True)
class Frame:
    """One image HDU of a verified file: its name, header, shape and type. The pixels were read and let go."""

    hdu: str
    header: fits.Header
    shape: tuple[int, int]
    is_integer: bool
    is_blank: bool  # no finite pixel
    number: int = 0  # of the HDU in its file

    @property
    def shape_text(self) -> str:
        """Columns × rows."""
        return f"{self.shape[1]} x {self.shape[0]}"


@contextmanager
def refusing_damage() -> Iterator[None]:
    """Turn what a damaged file raises into `BadInput`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            # only warnings for astropy, which then reads what is left
            for word in ("truncated", "corrupted"):
                warnings.filterwarnings("error", message=f"(?s).*{word}", category=AstropyUserWarning)
            yield
    except FileNotFoundError:
        raise BadInput("does not exist") from None
    except PermissionError:
        raise BadInput("cannot be read (permission denied); make it readable") from None
    except DAMAGE as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"is no whole FITS file ({text}); fetch it again") from None


def hash_file(path: Path) -> str:
    """SHA-256 of the bytes of a file; raises `BadInput`."""
    with refusing_damage(), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_length(path: Path) -> None:
    """Read a file to its end, unpacked if it is gzipped; raises `BadInput` unless it is whole blocks of 2880 bytes.

    Astropy is content with less: it pads what is missing of the last block, and stops unpacking when it has its pixels.
    """
    with refusing_damage():
        with path.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        size = path.stat().st_size
        if packed:
            with gzip.open(path, "rb") as stream:
                size = sum(len(piece) for piece in iter(lambda: stream.read(_PIECE), b""))
    if size == 0 or size % _BLOCK:
        raise BadInput(f"is no whole FITS file ({size} bytes are not whole blocks of {_BLOCK}); fetch it again")


def verify_file(path: Path) -> tuple[fits.Header, list[Frame]]:
    """The primary header and all images of a FITS file, every HDU read to its last byte; raises `BadInput`."""
    check_length(path)
    frames = []
    with refusing_damage(), fits.open(path, memmap=False, lazy_load_hdus=False) as hdus:
        primary = hdus[0].header.copy()
        for number, hdu in enumerate(hdus):
            data = hdu.data
            if not hdu.is_image or data is None:
                continue
            if data.ndim != 2 or 0 in data.shape:
                raise BadInput(f"HDU {hdu.name or number} is no two-dimensional image; leave the file out")
            name = str(hdu.name or number)
            integer = bool(np.issubdtype(data.dtype, np.integer))
            blank = not integer and not np.isfinite(data).any()
            frames.append(Frame(name, hdu.header.copy(), data.shape, integer, blank, number))
            del hdu.data, data
    if not frames:
        raise BadInput("holds no image; leave it out")
    return primary, frames


def complete_header(camera: Camera, primary: fits.Header, frames: list[Frame]) -> fits.Header:
    """The primary header with the keys that the camera maps and only images have, from the first that has one."""
    header = primary.copy()
    keys = {value for field, value in dict(camera.header).items() if isinstance(value, str) and field not in _NO_KEYS}
    for key in sorted(keys - {""}):
        source = next((frame.header for frame in frames if key in frame.header), None)
        if key not in header and source is not None:
            header[key] = source[key]
    return header


def match_chips(camera: Camera, frames: list[Frame]) -> dict[str, Frame]:
    """Frame of each working chip of the camera by chip name, for those in the file; raises `BadInput` for strangers."""
    by_hdu = {chip.hdu.upper(): chip for chip in camera.chips.values()}  # EXTNAME knows no case
    ignored = {name.upper() for name in camera.ignored_hdus}
    found: dict[str, Frame] = {}
    for frame in frames:
        if frame.hdu.upper() in ignored:
            continue
        name, called = frame.hdu, f"HDU {frame.hdu}"
        if key := camera.header.chip:
            name = read_text(frame.header, key)
            called = f"HDU {frame.hdu}: header key {key} = {name!r}"
        chip = by_hdu.get(name.upper())
        if chip is None:
            raise BadInput(f"{called} is no chip of camera {camera.name}; is --camera right?")
        if chip.name in found:
            raise BadInput(f"holds chip {chip.name} twice; fetch it again")
        if not chip.broken:
            found[chip.name] = frame
    return found


def locate_hdu(camera: Camera, chip: str, frame: Frame) -> str:
    """Name of a chip's HDU in its file; its number where the name of the HDU does not tell the chip."""
    return str(frame.number) if camera.header.chip else camera.chip(chip).hdu


def check_raw_frame(chip: Chip, frame: Frame) -> None:
    """Refuse a raw chip of another shape than the camera's, or without a finite pixel; raises `BadInput`.

    So is one whose header lacks, or has no sense in, the sections and numbers that the camera file promises.
    """
    expected = chip.raw_shape or (None if chip.amplifiers else chip.shape)
    if expected is not None and frame.shape != expected:
        raise BadInput(
            f"HDU {frame.hdu} is {frame.shape_text} pixels, chip {chip.name} has {expected[1]} x {expected[0]}; "
            "is --camera right?"
        )
    try:
        resolved = chip.resolve(frame.header)
    except UnprocessableData as error:
        raise BadInput(f"HDU {frame.hdu}: {error}") from None
    if expected is None:
        boxes = [box for amp in resolved.amplifiers for box in (amp.data, amp.overscan) if box]
        if any(x1 > frame.shape[1] or y1 > frame.shape[0] for _, x1, _, y1 in boxes):
            raise BadInput(
                f"HDU {frame.hdu} is {frame.shape_text} pixels, too small for the amplifiers of chip {chip.name}"
            )
    if frame.is_blank:
        raise BadInput(f"HDU {frame.hdu} has no finite pixel (all NaN); fetch it again or leave it out")
    if "CTYPE1" in frame.header:
        check_matrix(frame)


def check_matrix(frame: Frame) -> None:
    """Refuse a WCS whose matrix is singular or not finite; raises `BadInput`.

    From the cards themselves: wcslib silently replaces a row of zeros by that of the unit matrix.
    """
    header = frame.header
    try:
        if "CD1_1" in header or "CD2_2" in header:
            rows = [[float(header.get(f"CD{i}_{j}", 0.0)) for j in (1, 2)] for i in (1, 2)]
        else:
            scales = [float(header.get(f"CDELT{i}", 1.0)) for i in (1, 2)]
            rows = [[scales[i - 1] * float(header.get(f"PC{i}_{j}", i == j)) for j in (1, 2)] for i in (1, 2)]
    except (TypeError, ValueError) as error:
        raise BadInput(f"HDU {frame.hdu}: its WCS matrix holds what is no number ({error}); correct it") from None
    matrix = np.array(rows)
    largest = float(np.abs(matrix).max())
    if not np.isfinite(largest) or abs(float(np.linalg.det(matrix))) <= _NO_AREA * largest**2:
        raise BadInput(f"HDU {frame.hdu}: its WCS matrix (CD or PC and CDELT) is singular; solve its astrometry again")


def measure_footprint(frame: Frame) -> tuple[tuple[float, float], ...]:
    """Corners on the sky from the frame's own WCS; raises `BadInput` where it has none that can be used."""
    if not str(frame.header.get("CTYPE1", "")).startswith(("RA--", "DEC-")):
        raise BadInput(f"HDU {frame.hdu} has no celestial WCS (CTYPE1); solve its astrometry first")
    check_matrix(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            corners = header_footprint(frame.header)
        except (WcsError, ValueError, TypeError, KeyError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise BadInput(f"HDU {frame.hdu}: its WCS cannot be used ({text}); solve its astrometry again") from None
    try:
        _, radius = bounding_cap(corners)
    except BadInput:
        raise BadInput(f"HDU {frame.hdu}: its WCS puts it nowhere on the sky; solve its astrometry again") from None
    if radius > 20.0:
        raise BadInput(
            f"HDU {frame.hdu}: its WCS spreads it over {radius:.0f} degrees of the sky; solve its astrometry again"
        )
    return corners


def read_number(header: fits.Header, key: str, default: float | None = None) -> float:
    """A number from a header key; a missing or undefined one gives `default`, or `BadInput` where there is none."""
    value = header.get(key) if key else None
    if value is None or isinstance(value, fits.card.Undefined):
        if default is None:
            raise BadInput(f"header key {key} is missing; add it, or map it in the camera file")
        return default
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        raise BadInput(f"header key {key} = {value!r} is no number; correct it") from None
    if not math.isfinite(number):
        if default is None:
            raise BadInput(f"header key {key} = {value!r} is no finite number; correct it")
        return default
    return number


def read_text(header: fits.Header, key: str, default: str | None = None) -> str:
    """Text of a header key with white space collapsed; as for numbers where it is missing or empty."""
    value = header.get(key) if key else None
    text = "" if value is None or isinstance(value, fits.card.Undefined) else " ".join(str(value).split())
    if text:
        return text
    if default is None:
        raise BadInput(f"header key {key} is missing or empty; add it, or map it in the camera file")
    return default


def check_instrument(camera: Camera, header: fits.Header) -> None:
    """Refuse a frame of another instrument, where the camera says which are its own; raises `BadInput`."""
    keys = camera.header
    if keys.instruments:
        found = read_text(header, keys.instrument)
        if found not in keys.instruments:
            raise BadInput(
                f"header key {keys.instrument} says {found!r}, which is not camera {camera.name}; use its --camera"
            )


def read_kind(camera: Camera, header: fits.Header, given: str = "") -> str:
    """What the frame is: `given`, or as its header says: object, or a kind of master; raises `BadInput`."""
    keys = camera.header
    if given or not keys.kind:
        return given or "object"
    value = read_text(header, keys.kind)
    kind = keys.kinds.get(value.lower())
    if kind is None:
        raise BadInput(
            f"header key {keys.kind} = {value!r} is none of {', '.join(keys.kinds)}; leave the file out or map it"
        )
    return kind


def read_mode(camera: Camera, header: fits.Header) -> str:
    """Observing mode; raises `BadInput` for one that the camera has not certified (PHX-03)."""
    mode = read_text(header, camera.header.obs_mode, "3PI")
    if camera.certified_modes and mode not in camera.certified_modes:
        raise BadInput(
            f"observing mode {mode!r} of camera {camera.name} is not certified "
            f"(certified_modes: {', '.join(camera.certified_modes)}); leave it out"
        )
    return mode


def read_exposure_id(camera: Camera, header: fits.Header) -> str:
    """`CAMERA-NUMBER` with six digits or more, or `CAMERA-NAME`; raises `BadInput` for what is no safe key."""
    key = camera.header.exposure
    text = read_text(header, key)
    try:
        return check_name(
            f"{camera.name}-{int(text):06d}" if text.isdecimal() else f"{camera.name}-{text}", "exposure id"
        )
    except BadInput as error:
        raise BadInput(f"header key {key}: {error}") from None


def read_night(camera: Camera, header: fits.Header) -> tuple[float, str]:
    """(MJD of the start, ISO date of the night); raises `BadInput`."""
    keys = camera.header
    mjd = read_number(header, keys.mjd)
    if not _MJD_RANGE[0] < mjd < _MJD_RANGE[1]:
        raise BadInput(f"header key {keys.mjd} = {mjd} is no modified Julian date; correct it")
    if not keys.night:
        return mjd, keys.night_of(mjd)
    text = read_text(header, keys.night)
    try:
        return mjd, date.fromisoformat(text).isoformat()
    except ValueError:
        raise BadInput(f"header key {keys.night} = {text!r} is no date like 2026-01-31; correct it") from None
