"""Camera files: listed, checked, tried out on a raw frame, and completed by an observatory's table of crosstalk.

What a camera file may say is `model/camera.py`'s, and what a raw frame must be to be taken is decided by the same
functions that ingest it; here both are told to a person.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits

from lap_assets.errors import BadInput, UnprocessableData
from lap_assets.model.camera import CAMERAS_DIR, Amplifier, Box, Camera, Chip, find_problems, load_camera
from lap_assets.model.focal_plane import describe_orientation, find_geometry_problems, measure_gaps
from lap_assets.pipeline import foreign_frames
from lap_assets.pipeline.raw_files import read_frame
from lap_assets.pipeline.signature import list_steps
from lap_assets.science.overscan import check_overscan
from lap_assets.settings import ChipSettings

TEMPLATE = CAMERAS_DIR / "template.yaml.txt"
_NOISE_RATIO = 1.3  # by which a read noise may depart from the nominal one
_CLIP_SIGMA, _CLIP_ROUNDS = 4.0, 3


@dataclass
class CameraCheck:
    """What was found of a camera file: the camera, None where it cannot be used, and all that is wrong with it."""

    camera: Camera | None
    problems: list[str]


@dataclass
class DryRun:
    """What an ingest would make of a raw frame.

    Attributes
    ----------
    facts : list of str
        What its header says, one line each.
    refused : list of str
        Why it would be set aside, one line each; empty: it would be taken.
    notes : list of str
        What would be taken, but departs from the camera file.
    amplifiers : DataFrame
        One row per amplifier: sections (FITS), overscan level and noise measured, nominal values, share of saturated
        pixels.
    """

    facts: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    amplifiers: pd.DataFrame = field(default_factory=pd.DataFrame)


def check_camera(path: Path) -> CameraCheck:
    """All that is wrong with a camera file, one line each with the path of its key; raises `BadInput` if no YAML."""
    camera, problems = find_problems(path)
    if camera is None:
        return CameraCheck(None, problems)
    try:
        list_steps(camera, ChipSettings())
    except BadInput as error:
        problems.append(f"stages: {error}")
    return CameraCheck(camera, problems + find_geometry_problems(camera))


def list_cameras(folder: Path | None = None) -> pd.DataFrame:
    """The cameras that come with the package, and those that a repository keeps in `folder`."""
    places = {path.stem: (path, "package") for path in sorted(CAMERAS_DIR.glob("*.yaml"))}
    if folder is not None:
        places |= {path.stem: (path, "repository") for path in sorted(folder.glob("*.yaml"))}
    rows = []
    for name, (path, origin) in sorted(places.items()):
        camera = load_camera(path)
        rows.append((name, len(camera.good_chips), camera.pixel_scale_arcsec, origin, camera.title))
    return pd.DataFrame(rows, columns=["camera", "chips", "arcsec", "from", "title"])


def describe_chips(camera: Camera) -> pd.DataFrame:
    """One row per chip: size, amplifiers, gaps to its neighbours in pixels, orientation."""
    gaps = measure_gaps(camera)
    rows = [
        {
            "chip": name,
            "hdu": chip.hdu,
            "size": f"{chip.nx} x {chip.ny}",
            "raw": f"{chip.raw_nx} x {chip.raw_ny}" if chip.raw_shape else "",
            "amplifiers": " ".join(amp.name for amp in chip.amplifiers),
            "gap_x": _number(gaps[name].x),
            "gap_y": _number(gaps[name].y),
            "orientation": describe_orientation(chip),
            "state": "broken" if chip.broken else "",
        }
        for name, chip in camera.chips.items()
    ]
    return pd.DataFrame(rows)


def describe_amplifiers(camera: Camera) -> pd.DataFrame:
    """One row for every kind of amplifier in the camera, with the chips that have it."""
    chips_of: dict[Amplifier, list[str]] = {}
    for name, chip in camera.chips.items():
        for amp in chip.amplifiers:
            chips_of.setdefault(amp, []).append(name)
    rows = [
        {
            "amplifier": amp.name,
            "data": amp.data_key or format_section(amp.data),
            "overscan": amp.overscan_key or format_section(amp.overscan),
            "gain": amp.gain_key or f"{amp.gain:g}",
            "noise_e": amp.read_noise_key or f"{amp.read_noise_e:g}",
            "saturation_adu": amp.saturation_key or f"{amp.saturation_adu:g}",
            "read_first": " ".join(amp.readout),
            "chips": names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})",
        }
        for amp, names in chips_of.items()
    ]
    return pd.DataFrame(rows)


def format_section(box: Box | None) -> str:
    """A box as FITS writes it: `[1:2048,1:4096]`; `none` for None."""
    return "none" if box is None else f"[{box[0] + 1}:{box[1]},{box[2] + 1}:{box[3]}]"


def try_frame(camera: Camera, path: Path) -> DryRun:
    """What an ingest would make of a raw frame, with all reasons at once; nothing is registered."""
    run = DryRun()
    try:
        primary, frames = foreign_frames.verify_file(path)
    except BadInput as error:
        run.refused.append(str(error))
        return run
    header = foreign_frames.complete_header(camera, primary, frames)
    _read_facts(camera, header, run)
    found: dict[str, foreign_frames.Frame] = {}
    for frame in frames:
        try:
            matched = foreign_frames.match_chips(camera, [frame])
        except BadInput as error:
            run.refused.append(str(error))
            continue
        twice = sorted(set(matched) & set(found))
        run.refused += [f"holds chip {name} twice" for name in twice]
        found |= matched
    missing = [name for name in camera.good_chips if name not in found]
    if missing and not camera.header.chip:
        run.refused.append(f"has no HDU for chip {', '.join(missing)}")
    run.facts.append(f"chips      {len(found)} of {len(camera.good_chips)} working ones: {', '.join(sorted(found))}")
    rows: list[dict] = []
    for name, frame in sorted(found.items()):
        rows += _try_chip(camera, name, frame, path, run)
    run.amplifiers = pd.DataFrame(rows)
    return run


def _read_facts(camera: Camera, header: fits.Header, run: DryRun) -> None:
    """Every fact by itself, so that one that is missing does not hide the others."""
    keys = camera.header
    kind = _tell(run, "kind", lambda: foreign_frames.read_kind(camera, header)) or "object"
    _tell(run, "instrument", lambda: foreign_frames.check_instrument(camera, header) or keys.instruments or "any")
    _tell(run, "night", lambda: "{1} (MJD {0:.5f})".format(*foreign_frames.read_night(camera, header)))
    if kind in ("object", "flat", "sky", "fringe"):
        _tell(run, "band", lambda: camera.band_of(foreign_frames.read_text(header, keys.filter)))
    if kind != "bias":
        _tell(run, "exptime_s", lambda: foreign_frames.read_number(header, keys.exptime_s))
    if keys.temperature_c:
        _tell(run, "temperature", lambda: foreign_frames.read_number(header, keys.temperature_c))
    if kind == "object":
        _tell(run, "exposure", lambda: foreign_frames.read_exposure_id(camera, header))
        _tell(run, "pointing", lambda: "ra {:.5f}, dec {:.5f} deg".format(*keys.read_angles(header)))
        _tell(run, "mode", lambda: foreign_frames.read_mode(camera, header))


def _tell(run: DryRun, what: str, read: Callable[[], object]) -> str:
    try:
        value = str(read())
    except BadInput as error:
        run.refused.append(str(error))
        return ""
    run.facts.append(f"{what:10} {value}")
    return value


def _try_chip(camera: Camera, name: str, frame: foreign_frames.Frame, path: Path, run: DryRun) -> list[dict]:
    """Sections, levels and noises of the amplifiers of one chip; what is wrong goes to `run`."""
    chip = camera.chip(name)
    try:
        foreign_frames.check_raw_frame(chip, frame)
        chip = chip.resolve(frame.header)
        raw, _ = read_frame(str(path), foreign_frames.locate_hdu(camera, name, frame))
    except (BadInput, UnprocessableData) as error:
        run.refused.append(str(error))
        return []
    if not chip.amplifiers:
        run.notes.append(f"chip {name}: the camera file gives no amplifiers; its raw frames cannot be calibrated")
        return []
    try:
        check_overscan(raw, chip)
    except UnprocessableData as error:
        run.notes.append(f"{error} (its chip would fail)")
    return [_try_amplifier(chip, amp, raw, run) for amp in chip.amplifiers]


def _try_amplifier(chip: Chip, amp: Amplifier, raw: np.ndarray, run: DryRun) -> dict:
    level = noise = float("nan")
    if amp.overscan is not None:
        level, spread = measure_strip(_cut(raw, amp.overscan))
        noise = spread * amp.gain
        off = amp.read_noise_e > 0 and not 1 / _NOISE_RATIO < noise / amp.read_noise_e < _NOISE_RATIO
        if off:
            run.notes.append(
                f"chip {chip.name}, amplifier {amp.name}: read noise {noise:.1f} e measured in the overscan, "
                f"{amp.read_noise_e:g} e nominal"
            )
    pixels = _cut(raw, amp.data)
    return {
        "chip": chip.name,
        "amp": amp.name,
        "data": format_section(amp.data),
        "overscan": format_section(amp.overscan),
        "target": format_section(amp.target),
        "level_adu": _number(level),
        "noise_e": _number(noise, 2),
        "nominal_e": f"{amp.read_noise_e:.2f}",
        "gain": f"{amp.gain:.3f}",
        "median_adu": _number(float(np.median(pixels))),
        "saturated": f"{float(np.mean(pixels >= amp.saturation_adu)):.3%}",
    }


def measure_strip(strip: np.ndarray) -> tuple[float, float]:
    """Level and noise in ADU of an overscan strip (ny, nx).

    The noise is that of neighbours in a row over √2, clipped: the level may drift from row to row.
    """
    values = np.asarray(strip, np.float64)
    steps = np.diff(values, axis=1).ravel()
    for _ in range(_CLIP_ROUNDS):
        spread = float(steps.std()) if steps.size else 0.0
        steps = steps[np.abs(steps) <= _CLIP_SIGMA * spread]
    return float(np.median(values)), (float(steps.std()) if steps.size else 0.0) / np.sqrt(2.0)


def _cut(raw: np.ndarray, box: Box) -> np.ndarray:
    return raw[box[2] : box[3], box[0] : box[1]]


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def import_crosstalk(camera: Camera, table: Path) -> list[str]:
    """The section `crosstalk:` of a camera file, from a table of an observatory, line by line.

    A row of the table holds victim, source and coefficient, blanks between them, and more that is not read; an
    amplifier is called by its chip (name, HDU or alias) and its own name behind it: `ccd25B`, `S1/B`. Chips that are
    broken are left out.

    Raises
    ------
    BadInput
        A row that cannot be read, or a chip or amplifier that the camera does not have; with its line.
    """
    names: dict[str, str] = {}
    for chip in camera.chips.values():
        for amp in chip.amplifiers:
            for called in {chip.name, chip.hdu, chip.alias} - {""}:
                names[f"{called}{amp.name}".lower()] = f"{chip.name}/{amp.name}"
    sources: dict[str, dict[str, float]] = {}
    for number, line in enumerate(table.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        victim, source, coefficient = _read_coupling(words, names, f"{table}, line {number}", camera.name)
        if victim == source or source in sources.get(victim, {}):
            raise BadInput(f"{table}, line {number}: {source} in {victim} makes no sense, or was there before")
        if not any(camera.chip(one.partition("/")[0]).broken for one in (victim, source)):
            sources.setdefault(victim, {})[source] = coefficient
    if not sources:
        raise BadInput(f"{table} holds no row with victim, source and coefficient")
    rows = [
        f"  {victim}: {{{', '.join(f'{source}: {value:.3e}' for source, value in found.items())}}}"
        for victim, found in sources.items()
    ]
    return ["crosstalk:", *rows]


def _read_coupling(words: Sequence[str], names: dict[str, str], where: str, camera: str) -> tuple[str, str, float]:
    if len(words) < 3:
        raise BadInput(f"{where}: expected victim, source and coefficient, found {' '.join(words)!r}")
    strangers = [word for word in words[:2] if word.replace("/", "").lower() not in names]
    if strangers:
        raise BadInput(
            f"{where}: {strangers[0]!r} is no amplifier of camera {camera}; give its chips an alias, such as ccd25"
        )
    try:
        coefficient = float(words[2])
    except ValueError:
        raise BadInput(f"{where}: coefficient {words[2]!r} is no number") from None
    if not abs(coefficient) < 1.0:
        raise BadInput(f"{where}: coefficient {words[2]} is not below 1")
    victim, source = (names[word.replace("/", "").lower()] for word in words[:2])
    return victim, source, coefficient
