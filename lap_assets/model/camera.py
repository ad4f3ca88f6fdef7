"""Cameras as data: the chips of a mosaic, their amplifiers and nominal places, and how its files and headers read.

One YAML file per camera in `lap_assets/cameras/`; a new camera needs no code. Values are *nominal*: what the pipeline
believes before it has measured anything. Loading the YAML is the one reading of a file in `model/`; opening images and
calibrating them belong elsewhere (`pipeline/ingest.py`, `pipeline/chips.py`, `science/`).

Conventions: pixel ranges are half-open and 0-based, `[x0, x1, y0, y1]`; `crpix` is that of FITS (1-based, in the
trimmed frame); `cd_deg` is the FITS CD matrix `[[CD1_1, CD1_2], [CD2_1, CD2_2]]` in degrees per pixel.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from astropy.coordinates import Angle
from astropy.io import fits
from astropy.wcs import WCS
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lap_assets.errors import BadInput
from lap_assets.model.ids import check_name
from lap_assets.model.image import Mask

CAMERAS_DIR = Path(__file__).resolve().parent.parent / "cameras"
# the effects `pipeline/chips.py` knows how to remove; a camera lists those it needs, in order
STAGES = ("saturation", "overscan", "bias", "gain", "flat", "defects", "cosmic_rays")
_MJD_EPOCH = datetime(1858, 11, 17, tzinfo=UTC)

Box = tuple[int, int, int, int]  # x0, x1, y0, y1: half-open, 0-based


class _Model(BaseModel):
    """Immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Amplifier(_Model):
    """One amplifier of a chip.

    Attributes
    ----------
    name : str
    data, overscan : Box
        Ranges in the raw frame; `overscan` may be None (none there).
    target : Box
        Where `data` goes in the trimmed frame.
    gain : float
        Electrons per ADU.
    read_noise_e : float
        Electrons.
    saturation_adu : float
        Raw ADU (bias included) from which a pixel is saturated.
    """

    name: str
    data: Box
    target: Box
    overscan: Box | None = None
    gain: float = 1.0
    read_noise_e: float = 0.0
    saturation_adu: float = 65535.0

    @model_validator(mode="after")
    def _check(self) -> "Amplifier":
        boxes = [("data", self.data), ("target", self.target)]
        boxes += [("overscan", self.overscan)] if self.overscan else []
        for what, (x0, x1, y0, y1) in boxes:
            if not (0 <= x0 < x1 and 0 <= y0 < y1):
                raise ValueError(f"{what} of amplifier {self.name} is empty or negative: {[x0, x1, y0, y1]}")
        if _box_shape(self.data) != _box_shape(self.target):
            raise ValueError(f"data and target of amplifier {self.name} have different shapes")
        if self.overscan and self.overscan[2:] != self.data[2:]:
            raise ValueError(f"overscan and data of amplifier {self.name} cover different rows")
        if self.gain <= 0 or self.read_noise_e < 0:
            raise ValueError(f"gain of amplifier {self.name} must be > 0 and read_noise_e >= 0")
        return self


class Chip(_Model):
    """One chip of the mosaic, trimmed to `ny` rows of `nx` pixels; `hdu` is its EXTNAME in raw files."""

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

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) of the trimmed frame."""
        return self.ny, self.nx

    @property
    def raw_shape(self) -> tuple[int, int] | None:
        """(ny, nx) of the raw frame, None where the camera does not say."""
        return (self.raw_ny, self.raw_nx) if self.raw_nx and self.raw_ny else None

    @model_validator(mode="after")
    def _check(self) -> "Chip":
        check_name(self.name, "chip")
        (a, b), (c, d) = self.cd_deg
        if abs(a * d - b * c) == 0.0:
            raise ValueError(f"cd_deg of chip {self.name} is singular")
        covered = np.zeros((self.ny, self.nx) if self.amplifiers else 0, np.int8)
        for amp in self.amplifiers:
            x0, x1, y0, y1 = amp.target
            if x1 > self.nx or y1 > self.ny:
                raise ValueError(f"target of amplifier {amp.name} lies outside chip {self.name}")
            covered[y0:y1, x0:x1] += 1
            self._check_raw(amp)
        if self.amplifiers and not np.all(covered == 1):
            raise ValueError(f"the targets of the amplifiers of chip {self.name} must cover it exactly once")
        return self

    def _check_raw(self, amp: Amplifier) -> None:
        for box in (amp.data, amp.overscan):
            if box and self.raw_shape and (box[1] > self.raw_shape[1] or box[3] > self.raw_shape[0]):
                raise ValueError(f"amplifier {amp.name} of chip {self.name} reaches outside its raw frame")


class HeaderMap(_Model):
    """Which header key holds what, in the primary header unless said otherwise (then the chip's own).

    An empty string means the camera has no such key. `kinds` maps values of `kind` (lower case) to object, bias, flat.
    Without a `night` key the night is the date of the start shifted by `night_shift_h` (noon to noon, local time).
    """

    exposure: str = "EXPNUM"
    kind: str = "OBSTYPE"
    kinds: dict[str, Literal["object", "bias", "flat"]] = {"object": "object", "bias": "bias", "flat": "flat"}
    filter: str = "FILTER"
    exptime_s: str = "EXPTIME"
    mjd: str = "MJD-OBS"
    night: str = ""
    night_shift_h: float = -12.0
    ra: str = "RA"
    dec: str = "DEC"
    ra_unit: Literal["deg", "hourangle"] = "deg"
    airmass: str = "AIRMASS"
    object: str = "OBJECT"
    comment: str = ""
    obs_mode: str = ""
    instrument: str = "INSTRUME"
    instruments: tuple[str, ...] = ()

    def read_angles(self, header: fits.Header) -> tuple[float, float]:
        """Right ascension and declination of the telescope in degrees; raises `BadInput` naming the key at fault."""
        values = []
        for key, unit in ((self.ra, self.ra_unit), (self.dec, "deg")):
            try:
                values.append(float(Angle(header[key], unit=unit).deg))
            except KeyError:
                raise BadInput(f"header key {key} is missing; map it in the camera file") from None
            except (ValueError, TypeError):
                raise BadInput(f"header key {key} = {header[key]!r} is no angle in {unit}") from None
        ra, dec = values
        if not (np.isfinite(ra) and np.isfinite(dec) and -90.0 <= dec <= 90.0):
            raise BadInput(f"pointing {self.ra} = {ra}, {self.dec} = {dec} is not on the sky")
        return ra % 360.0, dec

    def night_of(self, mjd: float) -> str:
        """ISO date of the night to which a start at `mjd` (UTC) belongs."""
        return (_MJD_EPOCH + timedelta(days=mjd, hours=self.night_shift_h)).date().isoformat()


class CalibratedLayout(_Model):
    """How calibrated exposures (image + inverse variance + mask) of this camera are named and coded.

    Attributes
    ----------
    image_tag, inverse_variance_tag, mask_tag : str
        The piece of the file name that tells the three apart (`ooi`, `oow`, `ood`).
    mask_codes : dict of int to tuple of str
        Names of `Mask` bits for a value of the mask plane.
    mask_is_bits : bool
        The plane holds bits (codes are OR-ed) rather than one code per pixel.
    """

    image_tag: str
    inverse_variance_tag: str
    mask_tag: str
    mask_codes: dict[int, tuple[str, ...]]
    mask_is_bits: bool = False

    @model_validator(mode="after")
    def _check(self) -> "CalibratedLayout":
        unknown = {name for names in self.mask_codes.values() for name in names} - set(Mask.__members__)
        if unknown:
            raise ValueError(f"unknown mask names {sorted(unknown)}; there are: {', '.join(Mask.__members__)}")
        return self

    def sibling_name(self, image_name: str, tag: str) -> str:
        """File name of the variance or mask file (`tag`) that belongs to the image file `image_name`."""
        return image_name.replace(self.image_tag, tag, 1)


class Camera(_Model):
    """A mosaic camera; see the module's text for conventions."""

    name: str
    title: str = ""
    pixel_scale_arcsec: float
    chips: dict[str, Chip]
    filters: dict[str, str]
    header: HeaderMap = HeaderMap()
    stages: tuple[str, ...] = STAGES
    calibrated: CalibratedLayout | None = None
    min_good_chips: int = 1

    @model_validator(mode="before")
    @classmethod
    def _spread_defaults(cls, values: Any) -> Any:
        """`chip_defaults` holds what the chips share; a chip's name and HDU default to its key."""
        if not isinstance(values, dict) or not isinstance(values.get("chips"), dict):
            return values
        shared = values.get("chip_defaults") or {}
        chips = {}
        for name, own in values["chips"].items():
            if isinstance(own, dict):
                own = {"name": str(name), "hdu": str(name), **shared, **own}
            chips[str(name)] = own
        return {key: value for key, value in values.items() if key != "chip_defaults"} | {"chips": chips}

    @model_validator(mode="after")
    def _check(self) -> "Camera":
        check_name(self.name, "camera")
        if not self.chips or self.pixel_scale_arcsec <= 0:
            raise ValueError("a camera needs chips and a pixel_scale_arcsec > 0")
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages must be different ones of {', '.join(STAGES)}, not {list(self.stages)}")
        for band in self.filters.values():
            check_name(band, "band")
        return self

    @property
    def good_chips(self) -> tuple[str, ...]:
        """Names of the chips that are not broken, sorted."""
        return tuple(sorted(name for name, chip in self.chips.items() if not chip.broken))

    @cached_property
    def sha256(self) -> str:
        """Hash of all that the file says: part of the recipe of what is made with this camera."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def chip(self, name: str) -> Chip:
        """The chip called `name`; raises `BadInput`."""
        if name not in self.chips:
            raise BadInput(f"camera {self.name} has no chip {name!r}; it has: {', '.join(sorted(self.chips))}")
        return self.chips[name]

    def band_of(self, physical: str) -> str:
        """Band of the filter header value `physical` (white space collapsed); raises `BadInput`."""
        value = " ".join(str(physical).split())
        if value not in self.filters:
            raise BadInput(f"camera {self.name} has no filter {value!r}; add it under filters: in its camera file")
        return self.filters[value]

    def nominal_wcs(self, chip: str, ra_deg: float, dec_deg: float) -> fits.Header:
        """Nominal TAN header of a chip when the telescope points at (ra, dec) in degrees."""
        one = self.chip(chip)
        header = fits.Header()
        header["NAXIS"] = 2
        header["NAXIS1"], header["NAXIS2"] = one.nx, one.ny
        header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
        header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
        header["CRVAL1"], header["CRVAL2"] = float(ra_deg), float(dec_deg)
        header["CRPIX1"], header["CRPIX2"] = one.crpix
        for i in (0, 1):
            for j in (0, 1):
                header[f"CD{i + 1}_{j + 1}"] = one.cd_deg[i][j]
        header["RADESYS"] = "ICRS"
        return header

    def footprint(self, chip: str, ra_deg: float, dec_deg: float) -> tuple[tuple[float, float], ...]:
        """The four outer corners of a chip as ((ra, dec), …) in degrees, counter-clockwise in pixels from (0, 0)."""
        return header_footprint(self.nominal_wcs(chip, ra_deg, dec_deg))


def header_footprint(header: fits.Header) -> tuple[tuple[float, float], ...]:
    """The four outer corners ((ra, dec), …) in degrees of an image with a celestial WCS and NAXIS1, NAXIS2."""
    nx, ny = int(header["NAXIS1"]), int(header["NAXIS2"])
    x = np.array([-0.5, nx - 0.5, nx - 0.5, -0.5])
    y = np.array([-0.5, -0.5, ny - 0.5, ny - 0.5])
    ra, dec = WCS(header).all_pix2world(x, y, 0)
    return tuple((float(a) % 360.0, float(d)) for a, d in zip(ra, dec, strict=True))


def load_camera(name: str | Path, folder: Path | None = None) -> Camera:
    """The camera called `name` in `folder` or else in `lap_assets/cameras/`, or that of a YAML file given by its path.

    Parameters
    ----------
    folder : Path, optional
        Where a repository keeps the files of its own cameras.

    Raises
    ------
    BadInput
        Unknown camera, unreadable YAML, YAML with tags of Python, unknown or wrong keys; one line.
    """
    is_path = str(name).endswith((".yaml", ".yml"))
    file = "" if is_path else f"{check_name(str(name), 'camera')}.yaml"
    path = Path(name) if is_path else CAMERAS_DIR / file
    if not is_path and folder is not None and (folder / file).is_file():
        path = folder / file
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in CAMERAS_DIR.glob("*.yaml")))
        raise BadInput(f"unknown camera {str(name)!r}: use one of {known}, or the path of a camera file (.yaml)")
    status = path.stat()
    return _read_camera(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=16)
def _read_camera(path: Path, *_stamp: int) -> Camera:
    """The camera of a file, read once as long as the file is the same: a tick of a sensor asks for it, too."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"camera file {path} is no plain YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise BadInput(f"camera file {path} must be a mapping with name, chips, filters, …")
    try:
        return Camera(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInput(f"camera file {path}: {where}: {first['msg']}") from None
    except BadInput as error:
        raise BadInput(f"camera file {path}: {error}") from None


def _box_shape(box: Box) -> tuple[int, int]:
    return box[3] - box[2], box[1] - box[0]
