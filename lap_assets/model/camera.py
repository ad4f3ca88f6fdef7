"""Cameras as data: the chips of a mosaic, their amplifiers and nominal places, and how its files and headers read.

One YAML file per camera in `lap_assets/cameras/`; a new camera needs no code. Values are *nominal*: what the pipeline
believes before it has measured anything. Loading the YAML is the one reading of a file in `model/`; opening images and
calibrating them belong elsewhere (`pipeline/ingest.py`, `pipeline/chips.py`, `science/`).

A chip by itself, with the conventions for its sections, is `model/chip.py`.
"""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from astropy.coordinates import Angle
from astropy.io import fits
from astropy.wcs import WCS
from pydantic import Field, ValidationError, field_validator, model_validator

from lap_assets.errors import BadInput
from lap_assets.model.chip import Amplifier, Box, Chip, FrozenModel, require_name
from lap_assets.model.ids import check_name
from lap_assets.model.image import Mask

__all__ = [
    "CAMERAS_DIR",
    "STAGES",
    "Amplifier",
    "Box",
    "BrighterFatter",
    "CalibratedLayout",
    "Camera",
    "Chip",
    "ColourTerm",
    "Crosstalk",
    "HeaderMap",
    "find_camera_file",
    "find_problems",
    "header_footprint",
    "load_camera",
]

CAMERAS_DIR = Path(__file__).resolve().parent.parent / "cameras"
# the steps from a raw chip to a calibrated one, in the default order; a camera lists those it needs, in its own order
STAGES = (
    "saturation",
    "crosstalk",
    "overscan",
    "bias",
    "linearity",
    "gain",
    "dark",
    "brighter_fatter",
    "flat",
    "sky",
    "fringe",
    "defects",
    "cosmic_rays",
    "trails",
)
_Kind = Literal["object", "bias", "dark", "flat", "sky", "fringe"]
_MJD_EPOCH = datetime(1858, 11, 17, tzinfo=UTC)


class HeaderMap(FrozenModel):
    """Which header key holds what, in the primary header or, where that lacks it, in the chip's own.

    An empty string means the camera has no such key. `kinds` maps values of `kind` (lower case) to what a frame is;
    without a `kind` key every frame is an object, unless whoever ingests it says otherwise. `chip` is the key of the
    chip's own header whose value is the `hdu` of a chip: for files whose HDUs have no telling name. Without a `night`
    key the night is the date of the start shifted by `night_shift_h` (noon to noon, local time).
    """

    exposure: str = "EXPNUM"
    kind: str = "OBSTYPE"
    kinds: dict[str, _Kind] = Field(default_factory=lambda: {kind: kind for kind in get_args(_Kind)})
    chip: str = ""
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
    temperature_c: str = ""
    obs_mode: str = ""
    instrument: str = "INSTRUME"
    instruments: tuple[str, ...] = ()

    @field_validator("kinds", mode="before")
    @classmethod
    def _lower(cls, kinds: Any) -> Any:
        """Header values are compared in lower case, white space collapsed."""
        return {_collapse(key).lower(): kind for key, kind in kinds.items()} if isinstance(kinds, dict) else kinds

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


class CalibratedLayout(FrozenModel):
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


class Crosstalk(FrozenModel):
    """How much of one amplifier's signal appears in another, pixel by pixel in the order of read-out.

    Attributes
    ----------
    victim, source : str
        `CHIP/AMPLIFIER`.
    coefficient : float
        ADU in the victim per ADU in the source.
    """

    victim: str
    source: str
    coefficient: float

    @property
    def victim_chip(self) -> str:
        return self.victim.partition("/")[0]

    @property
    def victim_amplifier(self) -> str:
        return self.victim.partition("/")[2]

    @property
    def source_chip(self) -> str:
        return self.source.partition("/")[0]

    @property
    def source_amplifier(self) -> str:
        return self.source.partition("/")[2]

    @model_validator(mode="after")
    def _check(self) -> "Crosstalk":
        if self.victim == self.source or not abs(self.coefficient) < 1.0:
            raise ValueError(f"crosstalk from {self.source} to {self.victim} of {self.coefficient:g} makes no sense")
        return self


class BrighterFatter(FrozenModel):
    """How charge already collected deflects charge that comes: the kernel of Coulton et al. (2018, AJ 155, 258).

    Attributes
    ----------
    kernel : tuple of tuple of float
        (n, n) with n odd, centred, per electron; of the order of 1e-7 in its middle.
    """

    kernel: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _check(self) -> "BrighterFatter":
        size = len(self.kernel)
        if size % 2 == 0 or any(len(row) != size for row in self.kernel):
            raise ValueError("kernel must be a square with an odd number of rows")
        return self


class ColourTerm(FrozenModel):
    """What a band's natural magnitude has beyond the reference one: `coefficient` times the colour of two `bands`."""

    bands: tuple[str, str]
    coefficient: float


class Camera(FrozenModel):
    """A mosaic camera.

    Attributes
    ----------
    name, title : str
    pixel_scale_arcsec : float
    chips : dict of str to Chip
    filters : dict of str to str
        Band of each value of the filter key.
    header : HeaderMap
    stages : tuple of str
        Steps from a raw chip to a calibrated one, out of `STAGES`, in order; dark, sky and fringe do nothing where
        there is no master.
    crosstalk : tuple of Crosstalk
    brighter_fatter : BrighterFatter or None
    colour_terms : dict of str to ColourTerm
        By band.
    certified_modes : tuple of str
        Observing modes whose exposures are processed (PHX-03); empty: all.
    ignored_hdus : tuple of str
        HDUs of its raw files that are no chips of the mosaic: focus and guide chips.
    calibrated : CalibratedLayout or None
    min_good_chips : int
        So many chips an exposure needs.
    """

    name: str
    title: str = ""
    pixel_scale_arcsec: float
    chips: dict[str, Chip]
    filters: dict[str, str]
    header: HeaderMap = HeaderMap()
    stages: tuple[str, ...] = STAGES
    crosstalk: tuple[Crosstalk, ...] = ()
    brighter_fatter: BrighterFatter | None = None
    colour_terms: dict[str, ColourTerm] = Field(default_factory=dict)
    certified_modes: tuple[str, ...] = ()
    ignored_hdus: tuple[str, ...] = ()
    calibrated: CalibratedLayout | None = None
    min_good_chips: int = 1

    @model_validator(mode="before")
    @classmethod
    def _spread_defaults(cls, values: Any) -> Any:
        """`chip_defaults` holds what the chips share; a chip's name and HDU default to its key.

        Crosstalk may be given as `{victim: {source: coefficient}}`.
        """
        if not isinstance(values, dict) or not isinstance(values.get("chips"), dict):
            return values
        table = values.get("crosstalk")
        if isinstance(table, dict) and all(isinstance(sources, dict) for sources in table.values()):
            rows = [(victim, source, value) for victim, sources in table.items() for source, value in sources.items()]
            keys = ("victim", "source", "coefficient")
            values = values | {"crosstalk": [dict(zip(keys, row, strict=True)) for row in rows]}
        shared = values.get("chip_defaults") or {}
        chips = {}
        for name, own in values["chips"].items():
            if isinstance(own, dict):
                own = {"name": str(name), "hdu": str(name), **shared, **own}
            chips[str(name)] = own
        return {key: value for key, value in values.items() if key != "chip_defaults"} | {"chips": chips}

    @field_validator("filters", mode="before")
    @classmethod
    def _collapse_filters(cls, filters: Any) -> Any:
        return {_collapse(key): band for key, band in filters.items()} if isinstance(filters, dict) else filters

    @model_validator(mode="after")
    def _check(self) -> "Camera":
        require_name(self.name, "camera")
        if not self.chips or self.pixel_scale_arcsec <= 0:
            raise ValueError("a camera needs chips and a pixel_scale_arcsec > 0")
        unknown = [stage for stage in self.stages if stage not in STAGES]
        if unknown or len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages must be different ones of {', '.join(STAGES)}, not {list(self.stages)}")
        for band in self.filters.values():
            require_name(band, "band")
        self._check_chips()
        self._check_crosstalk()
        strangers = set(self.colour_terms) - set(self.filters.values())
        if strangers:
            raise ValueError(f"colour_terms of bands without a filter: {', '.join(sorted(strangers))}")
        return self

    def _check_chips(self) -> None:
        hdus: dict[str, str] = {}
        for key, chip in self.chips.items():
            if chip.name != key:
                raise ValueError(f"chip {key} calls itself {chip.name}; leave the name out")
            first = hdus.setdefault(chip.hdu.upper(), key)  # EXTNAME knows no case
            if first != key:
                raise ValueError(f"chips {first} and {key} have the same hdu {chip.hdu}")

    def _check_crosstalk(self) -> None:
        known = {f"{chip.name}/{amp.name}" for chip in self.chips.values() for amp in chip.amplifiers}
        pairs = set()
        for one in self.crosstalk:
            strangers = {one.victim, one.source} - known
            if strangers:
                raise ValueError(f"crosstalk names {sorted(strangers)[0]!r}, which is no CHIP/AMPLIFIER of the camera")
            if (one.victim, one.source) in pairs:
                raise ValueError(f"crosstalk from {one.source} to {one.victim} is given twice")
            pairs.add((one.victim, one.source))

    def crosstalk_of(self, chip: str) -> tuple[Crosstalk, ...]:
        """What the amplifiers of a chip receive from others."""
        return tuple(one for one in self.crosstalk if one.victim_chip == chip)

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
        value = _collapse(physical)
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
    path = find_camera_file(name, folder)
    status = path.stat()
    return _read_camera(path, status.st_mtime_ns, status.st_size, status.st_ino)


def find_camera_file(name: str | Path, folder: Path | None = None) -> Path:
    """The file that `load_camera` reads; raises `BadInput` where there is none."""
    is_path = str(name).endswith((".yaml", ".yml"))
    file = "" if is_path else f"{check_name(str(name), 'camera')}.yaml"
    path = Path(name) if is_path else CAMERAS_DIR / file
    if not is_path and folder is not None and (folder / file).is_file():
        path = folder / file
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in CAMERAS_DIR.glob("*.yaml")))
        raise BadInput(f"unknown camera {str(name)!r}: use one of {known}, or the path of a camera file (.yaml)")
    return path


def find_problems(path: Path) -> tuple[Camera | None, list[str]]:
    """The camera of a YAML file and all that is wrong with it, one line each with the path of its key.

    What all chips have in common is said once. Raises `BadInput` if the file is no plain YAML.
    """
    values = _read_values(path)
    try:
        return Camera(**values), []
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for one in error.errors():
            where = [str(part) for part in one["loc"]]
            text = one["msg"].removeprefix("Value error, ")
            chip = where[1] if where[0:1] == ["chips"] and len(where) > 1 else ""
            line = f"{'.'.join(['chips', '*', *where[2:]] if chip else where) or 'the file'}: {text}"
            problems.setdefault(line.replace(f"chip {chip}", "chip *") if chip else line, []).append(chip)
        return None, [_name_chips(line, chips) for line, chips in problems.items()]


def _name_chips(line: str, chips: list[str]) -> str:
    if len(chips) == 1:
        return line.replace("chips.*", f"chips.{chips[0]}", 1).replace("chip *", f"chip {chips[0]}")
    return f"{line} (so {len(chips)} chips, the first {chips[0]}; see chip_defaults, too)"


@lru_cache(maxsize=16)
def _read_camera(path: Path, *_stamp: int) -> Camera:
    """The camera of a file, read once as long as the file is the same: a tick of a sensor asks for it, too."""
    camera, problems = find_problems(path)
    if camera is None:
        more = f" (and {len(problems) - 1} more: lap camera check {path})" if len(problems) > 1 else ""
        raise BadInput(f"camera file {path}: {problems[0]}{more}")
    return camera


def _read_values(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        doubles = list(_find_doubles(yaml.compose(text, Loader=yaml.SafeLoader), set()))
        values = yaml.safe_load(text)
    except FileNotFoundError:
        raise BadInput(f"camera file {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"camera file {path} is no plain YAML: {_collapse(error)}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise BadInput(f"camera file {path} must be a mapping with name, chips, filters, …")
    if doubles:
        raise BadInput(f"camera file {path}: {doubles[0]}; of two, YAML would silently take the last")
    return values


def _find_doubles(node: yaml.Node | None, seen: set[int]) -> Iterator[str]:
    """Keys that a mapping has twice, with their lines; aliases are followed once."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                yield f"key {key.value} is there twice, again in line {key.start_mark.line + 1}"
            keys.add(str(key.value))
            yield from _find_doubles(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _find_doubles(one, seen)


def _collapse(text: object) -> str:
    """Text with white space collapsed, as header values are compared."""
    return " ".join(str(text).split())
