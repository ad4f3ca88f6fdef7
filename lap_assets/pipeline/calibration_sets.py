"""The frames of one chip of a calibration set: which of them can be used, with which masters, and how bright they are.

A frame that is damaged or dark is left out and named, and the others go on, as long as enough are left. How one frame
is read is `pipeline/calibration_frames.py`'s, what becomes of them all `pipeline/calibrations.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lap_assets.errors import UnprocessableData
from lap_assets.model.camera import Camera, Chip, load_camera
from lap_assets.model.image import MaskedImage
from lap_assets.model.products import MASTERS
from lap_assets.pipeline.calibration_frames import (
    CalibrationFrame,
    FrameMasters,
    choose_steps,
    open_frame,
    require_exptime,
    sample_rows,
)
from lap_assets.pipeline.frame_rows import FrameRows, open_rows
from lap_assets.pipeline.task import Task
from lap_assets.science import flat, source_mask
from lap_assets.science.master_checks import require_sound
from lap_assets.settings import CalibrationSettings
from lap_assets.store.repo import Repo

_FAINT = 0.1  # of the level of the others, below which a flat frame was hardly lit
_SPARE = 5  # exposures looked at beyond those wanted, where frames of some chips cannot be read
_PASS_ROWS = 512  # a multiple of the blocks that sources are found on


@dataclass(frozen=True)
class FrameSet:
    """Frames of one chip that are to be combined.

    Attributes
    ----------
    camera : Camera
    frames : tuple of CalibrationFrame
    steps : tuple of str
        What each goes through first.
    masters : FrameMasters
        What these steps use.
    refused : tuple of str
        Why other frames were left out.
    """

    camera: Camera
    frames: tuple[CalibrationFrame, ...]
    steps: tuple[str, ...]
    masters: FrameMasters
    refused: tuple[str, ...] = ()

    @property
    def chip(self) -> Chip:
        """With the sections and numbers of the first frame."""
        return self.frames[0].chip

    @property
    def read_noise(self) -> np.ndarray:
        """Electrons, (ny, nx) float32."""
        return flat.read_noise_map(self.chip.amplifiers, self.chip.shape)

    def keep(self, places: Sequence[int], reason: str, least: int) -> "FrameSet":
        """The set with the frames at `places` only; raises `UnprocessableData` if these are fewer than `least`."""
        dropped = [f"{one.rows.path}: {reason}" for k, one in enumerate(self.frames) if k not in places]
        refused = (*self.refused, *dropped)
        _require_enough(self.frames[0].chip.name, len(places), least, refused)
        return replace(self, frames=tuple(self.frames[k] for k in places), refused=refused)


@dataclass(frozen=True)
class FrameSky:
    """Sky of one object frame.

    Attributes
    ----------
    level : float
        In the middle of the chip, electrons.
    sources : (my, mx) bool
        Blocks to leave out.
    smooth : (my, mx) float32 or None
        Its smooth part on the same blocks, electrons.
    residual : (my, mx) float32 or None
        What is left without it, NaN under sources.
    """

    level: float
    sources: np.ndarray
    smooth: np.ndarray | None = None
    residual: np.ndarray | None = None


def open_set(task: Task, repo: Repo, kind: str, check: Callable[[CalibrationFrame], Any] | None = None) -> FrameSet:
    """The usable frames of a task, and the masters they are calibrated with.

    Parameters
    ----------
    kind : str
    check : callable, optional
        Raises `UnprocessableData` for a frame that cannot be used.

    Raises
    ------
    UnprocessableData
        A master is missing or unfit, or fewer frames are usable than are needed; names the chip.
    """
    unit, chosen = task.data_id.unit, task.settings.calibrations
    if "missing" in task.params:
        raise UnprocessableData(f"chip {unit}: {task.params['missing']}")
    camera = load_camera(task.params["camera"], repo.cameras)
    _require_enough(unit, len(task.params["frames"]), chosen.min_frames, ())
    frames, refused = [], []
    for one in task.params["frames"]:
        path = task.places[one["place"]]
        try:
            frame = open_frame(path, one["hdu"], camera.chip(unit), camera, chosen)
            if check is not None:
                check(frame)
            frames.append(frame)
        except UnprocessableData as error:
            refused.append(str(error) if path in str(error) else f"{path}: {error}")
    _require_enough(unit, len(frames), chosen.min_frames, refused)
    steps = choose_steps(camera, kind)
    masters = _read_masters(task, repo, unit, steps, camera.chip(unit).shape, with_variance=kind == "dark")
    return FrameSet(camera, tuple(frames), steps, masters, tuple(refused))


def measure_flat_levels(found: FrameSet, chosen: CalibrationSettings) -> tuple[FrameSet, list[float]]:
    """The flat frames that are lit and not saturated, and their levels in electrons.

    Raises `UnprocessableData` if fewer are left than are needed.
    """
    samples = [one.sample(found.steps, found.masters) for one in found.frames]
    levels = np.array([flat.measure_sample_level(sample) for sample in samples])
    full = np.array([float(np.mean(~np.isfinite(sample))) for sample in samples])
    even = full <= chosen.max_saturated_fraction
    lit = even & (levels > 0)
    if lit.any():
        lit &= levels > _FAINT * np.max(levels[lit])
    found = found.keep(np.flatnonzero(even).tolist(), "it is saturated", chosen.min_frames)
    found = found.keep(np.flatnonzero(lit[even]).tolist(), "it holds no light", chosen.min_frames)
    return found, [float(level) for level in levels[lit]]


def measure_skies(
    found: FrameSet, chosen: CalibrationSettings, mesh_px: int | None = None
) -> tuple[FrameSet, list[FrameSky]]:
    """The object frames that show sky, and that sky with the sources left out, one whole frame after the other.

    With `mesh_px` also its smooth part on scales above that, and what is left. Raises `UnprocessableData` if fewer are
    left than are needed.
    """
    skies = []
    for frame in found.frames:
        ny = frame.chip.ny
        parts = [
            source_mask.bin_rows(frame.read(y0, min(y0 + _PASS_ROWS, ny), found.steps, found.masters))
            for y0 in range(0, ny, _PASS_ROWS)
        ]
        binned = np.concatenate(parts)
        sources = source_mask.find_sources(binned, chosen.source_sigma, chosen.source_grow_px)
        my, mx = binned.shape
        middle = (slice(my // 4, my - my // 4), slice(mx // 4, mx - mx // 4))
        free = binned[middle][~sources[middle]]
        level = float(np.median(free)) if free.size >= 0.05 * sources[middle].size else float("nan")
        smooth = residual = None
        if mesh_px is not None:
            smooth = source_mask.measure_smooth(binned, ~sources, mesh_px // source_mask.BIN_PX)
            residual = np.where(sources, np.float32(np.nan), binned - smooth)
        skies.append(FrameSky(level, sources, smooth, residual))
    kept = [k for k, one in enumerate(skies) if one.level > 0]
    found = found.keep(kept, "it shows no sky above zero between its sources", chosen.min_frames)
    return found, [skies[k] for k in kept]


def relate_chips(found: FrameSet, task: Task, repo: Repo, count: int, measure: Callable[[np.ndarray], float]) -> float:
    """Level of the chip relative to the mean over the chips, from the first exposures that the others have, too.

    The median over `count` exposures, complete ones where there are some: all chips are to be compared with the same
    mean. Of the others' frames some rows are read. See `flat.relate_chip`.
    """
    others = _Others(found.camera, task, repo, found.steps)
    measured: list[dict[str, float]] = []
    for frame in found.frames[: count + _SPARE]:
        levels = others.measure(frame, measure)
        measured.append(levels | {found.chip.name: measure(frame.sample(found.steps, found.masters))})
        if sum(len(one) == len(others.described) + 1 for one in measured) == count:
            break
    most = max(len(one) for one in measured)
    fullest = [one for one in measured if len(one) == most][:count]
    return float(np.median([flat.relate_chip(one, found.chip.name) for one in fullest]))


class _Others:
    """The frames of the other chips, and what they are calibrated with."""

    def __init__(self, camera: Camera, task: Task, repo: Repo, steps: Sequence[str]) -> None:
        self.camera, self.task, self.repo, self.steps = camera, task, repo, steps
        self.described: dict[str, list[Mapping[str, str]]] = {}
        for one in task.params.get("reference", ()):
            if not camera.chip(one["chip"]).broken:
                self.described.setdefault(one["chip"], []).append(one)
        self.opened: dict[tuple[str, str], FrameRows] = {}
        self.masters: dict[str, FrameMasters] = {}

    def measure(self, frame: CalibrationFrame, measure: Callable[[np.ndarray], float]) -> dict[str, float]:
        """Level of each other chip in the exposure of `frame`; those that cannot be read are left out."""
        levels = {}
        for name in sorted(self.described):
            chip = self.camera.chip(name)
            try:
                found = self._find(frame.rows, name)
                if found is not None:
                    chosen = self.task.settings.calibrations
                    other = open_frame(found.path, found.hdu, chip, self.camera, chosen, whole=False)
                    levels[name] = measure(other.sample(self.steps, self._read_masters(name)))
            except UnprocessableData:
                continue  # its own unit says why
        return levels

    def _find(self, rows: FrameRows, name: str) -> FrameRows | None:
        """The frame of a chip in the same file, or else in the file of the same exposure."""
        candidates = [(self.task.places[one["place"]], one["hdu"]) for one in self.described[name]]
        for path, hdu in candidates:
            if path == rows.path:
                return self._open(path, hdu)
        wanted = rows.value(self.camera.header.exposure)
        for path, hdu in candidates if wanted is not None else ():
            try:
                one = self._open(path, hdu)
            except UnprocessableData:
                continue  # its own unit says why
            if one.value(self.camera.header.exposure) == wanted:
                return one
        return None

    def _open(self, path: str, hdu: str) -> FrameRows:
        if (path, hdu) not in self.opened:
            self.opened[path, hdu] = open_rows(path, hdu)
        return self.opened[path, hdu]

    def _read_masters(self, name: str) -> FrameMasters:
        if name not in self.masters:
            shape = self.camera.chip(name).shape
            self.masters[name] = _read_masters(self.task, self.repo, name, self.steps, shape, sampled=True)
        return self.masters[name]


def check_exptime(frame: CalibrationFrame) -> None:
    """Raise `UnprocessableData` for a frame without an exposure time."""
    require_exptime(frame)


def _read_masters(
    task: Task,
    repo: Repo,
    chip: str,
    steps: Sequence[str],
    shape: tuple[int, int],
    sampled: bool = False,
    with_variance: bool = False,
) -> FrameMasters:
    """The masters of a chip that are pinned and that `steps` use; `sampled`: the rows that stand for a frame alone."""
    planes = {}
    for kind, product in MASTERS.items():
        pins = [pin for pin in task.pins(product) if pin.data_id.unit == chip]
        if kind not in steps or not pins:
            continue
        if sampled:
            rows = open_rows(str(repo.path(pins[0], "image.fits")), "SCI")
            if rows.shape != shape:
                continue
            # pages that are never written take no memory
            planes[kind] = np.zeros(shape, np.float32)
            for y0, y1 in sample_rows(shape[0]):
                planes[kind][y0:y1] = rows.read(y0, y1)
            continue
        names = ("SCI", "VAR") if with_variance and kind == "bias" else ("SCI",)
        master = repo.read_image(pins[0], planes=names)
        planes[kind] = _require_fit(master, kind, chip, shape, task.params["band"])
        if master.var is not None:
            planes["bias_variance"] = master.var
    return FrameMasters(**planes)


def _require_fit(master: MaskedImage, kind: str, chip: str, shape: tuple[int, int], band: str) -> np.ndarray:
    """The pixels of a master, fit to calibrate frames of this chip and band with; raises `UnprocessableData`."""
    where = f"chip {chip}: the master {kind}"
    if master.sci.shape != shape:
        raise UnprocessableData(f"{where} has shape {master.sci.shape}, the chip {shape}; reject it and build it again")
    named = str(master.header.get("BAND", band))
    if kind in ("flat", "sky") and named != band:
        raise UnprocessableData(f"{where} is of band {named}, but {band} is wanted; reject it")
    require_sound(master.sci, kind, where)
    return master.sci


def _require_enough(chip: str, number: int, least: int, refused: Sequence[str]) -> None:
    if number < least:
        why = f"; {len(refused)} left out, the first: {refused[0]}" if refused else "; ingest more"
        raise UnprocessableData(
            f"chip {chip}: {number} frames, at least {least} are needed (calibrations.min_frames){why}"
        )
