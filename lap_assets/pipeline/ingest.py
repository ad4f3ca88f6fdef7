"""Ingest: files from outside are opened, verified to the last byte, and turned into records of the survey.

Files stay where they are and are not changed. One that cannot be used is set aside with one line that says why; the
others go on. Nothing is registered here (the ledger is not known), nothing calibrated.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lap_assets.errors import BadInput
from lap_assets.model.camera import CalibratedLayout, Camera
from lap_assets.model.ids import join_key
from lap_assets.model.survey import CalibrationSet, ChipFile, Exposure
from lap_assets.pipeline.foreign_frames import (
    Frame,
    check_instrument,
    check_raw_frame,
    complete_header,
    hash_file,
    locate_hdu,
    match_chips,
    measure_footprint,
    read_exposure_id,
    read_kind,
    read_mode,
    read_night,
    read_number,
    read_text,
    verify_file,
)
from lap_assets.pipeline.foreign_tables import inspect_refcat, read_zero_points

__all__ = ["Rejected", "inspect_calibrated", "inspect_calibrations", "inspect_raw", "inspect_refcat"]

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Rejected:
    """A file set aside, and why, in one line."""

    path: str
    reason: str


def _quiet(done: int, total: int) -> None:
    """Progress that nobody wants to hear of."""


def inspect_raw(
    paths: Iterable[Path], camera: Camera, tell: Tell = _quiet, given: str = ""
) -> tuple[list[Exposure], list[Rejected]]:
    """Raw exposures, sorted by id, and the files set aside.

    One multi-extension file each; or one file per chip where the camera has a key that names the chip. Such an exposure
    may come in parts: what is here of it is returned, and whether it is enough is asked when it is processed.

    Parameters
    ----------
    paths : iterable of Path
    camera : Camera
    tell : callable
        Called with files done and in all.
    given : str
        What the frames are, whatever their headers say.
    """
    found: dict[str, Exposure] = {}
    rejected: list[Rejected] = []
    files = sorted(set(paths))
    for i, path in enumerate(files):
        try:
            one = _inspect_raw_file(path, camera, given)
            found[one.id] = _add_file(camera, found[one.id], one) if one.id in found else one
        except BadInput as error:
            rejected.append(Rejected(str(path), str(error)))
        tell(i + 1, len(files))
    return [found[id_] for id_ in sorted(found)], rejected


def _add_file(camera: Camera, first: Exposure, one: Exposure) -> Exposure:
    """The exposure with what one more file holds of it; raises `BadInput`."""
    if not camera.header.chip or {chip.chip for chip in first.chips} & {chip.chip for chip in one.chips}:
        raise BadInput(_describe_double(one, first))
    return _join_files(first, one)


def _inspect_raw_file(path: Path, camera: Camera, given: str) -> Exposure:
    header, frames = _open_frames(path, camera)
    kind = read_kind(camera, header, given)
    if kind != "object":
        raise BadInput(f"is a {kind} frame, no exposure of the sky; ingest it with --kind calibration")
    exposure = _read_exposure(camera, header, "raw")
    chips = _match_all_chips(camera, frames)
    sha256, place = hash_file(path), str(path.absolute())
    files = tuple(
        ChipFile(name, place, locate_hdu(camera, name, frame), _nominal_corners(camera, name, exposure), sha256)
        for name, frame in sorted(chips.items())
    )
    return replace(exposure, chips=files)


def _open_frames(path: Path, camera: Camera) -> tuple[Mapping, list[Frame]]:
    """What a verified file of this camera says, and its images; raises `BadInput`."""
    primary, frames = verify_file(path)
    header = complete_header(camera, primary, frames)
    check_instrument(camera, header)
    return header, frames


def _nominal_corners(camera: Camera, chip: str, exposure: Exposure) -> tuple[tuple[float, float], ...]:
    return camera.footprint(chip, exposure.ra_deg, exposure.dec_deg)


def _match_all_chips(camera: Camera, frames: list[Frame]) -> dict[str, Frame]:
    """Frame of every working chip, each checked; raises `BadInput` if one is missing."""
    chips = match_chips(camera, frames)
    missing = [name for name in camera.good_chips if name not in chips]
    if missing and not camera.header.chip:
        raise BadInput(f"has no HDU for chip {', '.join(missing)} of camera {camera.name}; fetch it again")
    if not chips:
        raise BadInput(f"holds no working chip of camera {camera.name}; leave it out")
    for name, frame in chips.items():
        check_raw_frame(camera.chip(name), frame)
    return chips


def _read_exposure(camera: Camera, header: Mapping, kind: str) -> Exposure:
    """What the primary header says of an exposure, without chips; raises `BadInput`."""
    keys = camera.header
    id_ = read_exposure_id(camera, header)
    filter_ = read_text(header, keys.filter)
    exptime = read_number(header, keys.exptime_s)
    if exptime <= 0.0:
        raise BadInput(
            f"header key {keys.exptime_s} = {exptime:g}: an exposure of the sky needs a time > 0; leave it out"
        )
    mjd, night = read_night(camera, header)
    ra, dec = keys.read_angles(header)
    return Exposure(
        id=id_, camera=camera.name, band=camera.band_of(filter_), filter=filter_, night=night, mjd=mjd,
        exptime_s=exptime, ra_deg=ra, dec_deg=dec, airmass=read_number(header, keys.airmass, 1.0),
        object=read_text(header, keys.object, ""), comment=read_text(header, keys.comment, ""),
        obs_mode=read_mode(camera, header), kind=kind, temperature_c=_read_temperature(camera, header),
    )  # fmt: skip


def _read_temperature(camera: Camera, header: Mapping) -> float | None:
    """Of the detector, degrees Celsius; None where the header does not say."""
    value = read_number(header, camera.header.temperature_c, math.nan)
    return value if math.isfinite(value) else None


def _average(temperatures: Iterable[float | None]) -> float | None:
    told = [one for one in temperatures if one is not None]
    return round(math.fsum(told) / len(told), 3) if told else None


def _describe_double(one: Exposure, first: Exposure) -> str:
    mine = {chip.chip: chip for chip in one.chips}
    other = next((chip for chip in first.chips if chip.chip in mine), first.chips[0])
    same = other.chip in mine and mine[other.chip].sha256 == other.sha256
    what = "is a copy of" if same else "has other bytes but the same exposure number as"
    return f"{what} {other.path} (exposure {one.id}); leave one of them out"


def inspect_calibrated(
    paths: Iterable[Path], camera: Camera, zero_points: Path | None = None, tell: Tell = _quiet
) -> tuple[list[Exposure], list[Rejected]]:
    """Calibrated exposures: image, inverse variance and mask files side by side, told apart by their names.

    A file may hold all chips of an exposure or one; files of one exposure are joined. Files may be cut-outs, smaller
    than the camera's chips.

    Parameters
    ----------
    paths : iterable of Path
        Images; inverse variances and masks among them are found from the image's name and may be left out.
    zero_points : Path, optional
        Table of given zero points, see `read_zero_points`.

    Raises
    ------
    BadInput
        The camera has no calibrated layout, or the table of zero points cannot be used.
    """
    layout = camera.calibrated
    if layout is None:
        raise BadInput(
            f"camera {camera.name} does not say how its calibrated files are named: add calibrated: to its file"
        )
    given = read_zero_points(zero_points, camera.name) if zero_points else {}
    found: dict[str, Exposure] = {}
    rejected: list[Rejected] = []
    files = [path for path in sorted(set(paths)) if not _is_companion(path, layout)]
    for i, path in enumerate(files):
        try:
            one = _inspect_calibrated_file(path, camera, layout, given)
            found[one.id] = _join_files(found[one.id], one) if one.id in found else one
        except BadInput as error:
            rejected.append(Rejected(str(path), str(error)))
        tell(i + 1, len(files))
    return [found[id_] for id_ in sorted(found)], rejected


def _is_companion(path: Path, layout: CalibratedLayout) -> bool:
    """Whether a file is the inverse variance or mask of an image that is there too."""
    for tag in (layout.inverse_variance_tag, layout.mask_tag):
        if layout.image_tag not in path.name and tag in path.name:
            return path.with_name(path.name.replace(tag, layout.image_tag, 1)).exists()
    return False


def _inspect_calibrated_file(
    path: Path, camera: Camera, layout: CalibratedLayout, zero_points: Mapping[tuple[str, str], float]
) -> Exposure:
    if layout.image_tag not in path.name:
        raise BadInput(f"is no calibrated image: its name has no {layout.image_tag!r}; leave it out")
    header, frames = _open_frames(path, camera)
    kind = read_kind(camera, header)
    if kind != "object":
        raise BadInput(f"is a calibrated {kind} frame, no exposure of the sky; leave it out")
    exposure = _read_exposure(camera, header, "calibrated")
    chips = match_chips(camera, frames)
    if not chips:
        raise BadInput(f"holds no working chip of camera {camera.name}; leave it out")
    variance = _open_companion(path, layout, layout.inverse_variance_tag, "inverse variance")
    mask = _open_companion(path, layout, layout.mask_tag, "mask")
    for name, frame in chips.items():
        _check_calibrated_frame(camera, name, frame, variance[1].get(frame.hdu), mask[1].get(frame.hdu))
    hashes = [hash_file(one) for one in (path, variance[0], mask[0])]
    sha256 = hashlib.sha256("".join(hashes).encode()).hexdigest()
    number = read_text(header, camera.header.exposure)
    files = []
    for name, frame in sorted(chips.items()):
        per_second = zero_points.get((number, name))
        zero_point = None if per_second is None else per_second + 2.5 * math.log10(exposure.exptime_s)
        places = [str(one.absolute()) for one in (path, variance[0], mask[0])]
        corners = measure_footprint(frame)
        hdu = locate_hdu(camera, name, frame)
        files.append(ChipFile(name, places[0], hdu, corners, sha256, places[1], places[2], zero_point))
    return replace(exposure, chips=tuple(files))


def _open_companion(path: Path, layout: CalibratedLayout, tag: str, what: str) -> tuple[Path, dict[str, Frame]]:
    """Path and frames by HDU name of the file that belongs to an image; raises `BadInput` naming it."""
    place = path.with_name(layout.sibling_name(path.name, tag))
    if not place.exists():
        raise BadInput(f"has no {what} beside it: {place.name} is missing; put it there")
    try:
        _, frames = verify_file(place)
    except BadInput as error:
        raise BadInput(f"its {what} {place.name} {error}") from None
    return place, {frame.hdu: frame for frame in frames}


def _check_calibrated_frame(
    camera: Camera, name: str, frame: Frame, variance: Frame | None, mask: Frame | None
) -> None:
    chip = camera.chip(name)
    if frame.shape[0] > chip.ny or frame.shape[1] > chip.nx:
        raise BadInput(
            f"HDU {frame.hdu} is {frame.shape_text} pixels, more than chip {name} has ({chip.nx} x {chip.ny})"
        )
    for what, other in (("inverse variance", variance), ("mask", mask)):
        if other is None:
            raise BadInput(f"HDU {frame.hdu} is missing in its {what} file; fetch that again")
        if other.shape != frame.shape:
            raise BadInput(
                f"HDU {frame.hdu}: image {frame.shape_text}, {what} {other.shape_text} pixels; they must agree"
            )
    if frame.is_blank:
        raise BadInput(f"HDU {frame.hdu} has no finite pixel (all NaN); fetch it again or leave it out")
    if mask is not None and not mask.is_integer:
        raise BadInput(f"HDU {frame.hdu}: its mask does not hold whole numbers; fetch that file again")


def _join_files(first: Exposure, more: Exposure) -> Exposure:
    """An exposure with the chips of both files; raises `BadInput` if they contradict each other.

    Each chip may have a thermometer of its own: their mean is the exposure's temperature.
    """
    if replace(first, chips=(), temperature_c=None) != replace(more, chips=(), temperature_c=None):
        raise BadInput(
            f"says other things of exposure {more.id} than {first.chips[0].path} (filter, time, …); leave one out"
        )
    double = sorted({chip.chip for chip in first.chips} & {chip.chip for chip in more.chips})
    if double:
        where = next(chip.path for chip in first.chips if chip.chip == double[0])
        raise BadInput(f"holds chip {double[0]} of exposure {more.id} once more after {where}; leave one out")
    temperature = _average(one.temperature_c for one in (first, more) for _ in one.chips)
    chips = tuple(sorted(first.chips + more.chips, key=lambda chip: chip.chip))
    return replace(first, chips=chips, temperature_c=temperature)


@dataclass(frozen=True)
class _CalibrationFile:
    """One calibration frame: (kind, band, night), a record per chip, and the detector's temperature."""

    group: tuple[str, str, str]
    chips: tuple[ChipFile, ...]
    temperature_c: float | None


def inspect_calibrations(
    paths: Iterable[Path], camera: Camera, tell: Tell = _quiet, given: str = ""
) -> tuple[list[CalibrationSet], list[Rejected]]:
    """Calibration frames, grouped into one set per kind, band and night; and the files set aside.

    A set is in force from its night on, until a later one of its kind and band begins. `given` is what the frames are,
    whatever their headers say: exposures of the sky serve as sky or fringe frames.
    """
    found: dict[tuple[str, str, str], list[_CalibrationFile]] = {}
    known: dict[str, Path] = {}
    rejected: list[Rejected] = []
    files = sorted(set(paths))
    for i, path in enumerate(files):
        try:
            one = _inspect_calibration_file(path, camera, given)
            first = known.setdefault(one.chips[0].sha256, path)
            if first != path:
                raise BadInput(f"is a copy of {first}; leave one of them out")
            found.setdefault(one.group, []).append(one)
        except BadInput as error:
            rejected.append(Rejected(str(path), str(error)))
        tell(i + 1, len(files))
    return [_join_calibrations(camera, group, found[group]) for group in sorted(found)], rejected


def _join_calibrations(camera: Camera, group: tuple[str, str, str], frames: list[_CalibrationFile]) -> CalibrationSet:
    kind, band, night = group
    return CalibrationSet(
        join_key(camera.name, kind, band, night), camera.name, kind, band, night,
        tuple(chip for one in frames for chip in one.chips),
        temperature_c=_average(one.temperature_c for one in frames),
    )  # fmt: skip


def _inspect_calibration_file(path: Path, camera: Camera, given: str) -> _CalibrationFile:
    keys = camera.header
    header, frames = _open_frames(path, camera)
    kind = read_kind(camera, header, given)
    if kind == "object":
        raise BadInput(
            "is an exposure of the sky, no calibration frame; ingest it with --kind raw, or --as sky or --as fringe"
        )
    if kind in ("dark", "sky", "fringe") and read_number(header, keys.exptime_s) <= 0.0:
        raise BadInput(f"header key {keys.exptime_s}: a {kind} frame needs a time > 0; leave it out")
    band = "all" if kind in ("bias", "dark") else camera.band_of(read_text(header, keys.filter))
    _, night = read_night(camera, header)
    chips = _match_all_chips(camera, frames)
    sha256, place = hash_file(path), str(path.absolute())
    records = [
        ChipFile(name, place, locate_hdu(camera, name, frame), (), sha256) for name, frame in sorted(chips.items())
    ]
    return _CalibrationFile((kind, band, night), tuple(records), _read_temperature(camera, header))
