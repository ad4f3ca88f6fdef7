"""`lap run --show plan`: what would be made, and what is missing for it. Writes nothing.

Finds what `lap/plan.py` asks for: files that are gone, masters and reference catalogues there are none of, the chips
that work, the skycells that footprints fall on.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lap_assets.errors import BadInput
from lap_assets.lap.judge import find_held
from lap_assets.lap.plan import Lacks, Plan, Units, plan_work
from lap_assets.model.camera import Camera, load_camera
from lap_assets.model.decisions import Snapshot
from lap_assets.model.ids import JOIN
from lap_assets.model.products import MASTERS, get_product
from lap_assets.model.sphere import grow_polygons
from lap_assets.model.states import PartitionState
from lap_assets.model.survey import CalibrationSet, ChipFile, Exposure, PartitionRef, Survey
from lap_assets.model.tessellation import ProjectionCell, load_tessellation
from lap_assets.operations.define import RINGS_V3, pick_tessellation
from lap_assets.operations.drive import name_tessellations, resolve
from lap_assets.operations.workspace import Workspace

NOTHING: Mapping[PartitionRef, PartitionState] = {}


def make_plan(
    space: Workspace,
    collection: str | None,
    select: Sequence[str] = (),
    to: str | None = None,
    tessellation: str | None = None,
) -> Plan:
    """The plan of what `lap run` would make of a collection, or of a selection of it."""
    survey = foresee_survey(space, collection, tessellation)
    targets = frozenset(resolve(survey, select, to)) if select or to else None
    if targets is not None and not targets:
        raise BadInput(f"nothing matches {' '.join(select)!r}; `lap ls` shows what there is")
    states = space.ledger.partition_states(survey.collection)
    snapshot = Snapshot(survey, states, space.configs(), targets)
    cameras = load_cameras(space, survey)
    find_units = UnitFinder(survey, cameras, space.settings.warps.footprint_margin_arcsec / 3600.0)
    lacks = find_lacks(survey, cameras, space.settings.calibrations.min_frames, states)
    return plan_work(snapshot, lacks, find_units, space.settings.stacks.min_inputs)


def foresee_survey(space: Workspace, collection: str | None, tessellation: str | None) -> Survey:
    """The survey with the runs that `lap run` would define first, or complete; none of them is."""
    name = collection or space.settings.collections[0]
    names = name_tessellations(space, name, tessellation, pick_tessellation)
    defined = space.ledger.tessellations()
    skies = [space.ledger.tessellation(one) if one in defined else load_tessellation(RINGS_V3) for one in names]
    return space.complete(space.ledger.foresee_runs(name, skies)) if skies else space.survey(name)


def load_cameras(space: Workspace, survey: Survey) -> dict[str, Camera | str]:
    """The cameras of a survey by name, or why there is none."""
    names = {one.camera for one in (*survey.exposures.values(), *survey.calibrations.values())}
    cameras: dict[str, Camera | str] = {}
    for name in sorted(names):
        try:
            cameras[name] = load_camera(name, space.repo.cameras)
        except BadInput as error:
            cameras[name] = str(error)
    return cameras


# ---- what is missing


def find_lacks(
    survey: Survey,
    cameras: dict[str, Camera | str],
    min_frames: int,
    states: Mapping[PartitionRef, PartitionState] = NOTHING,
) -> Lacks:
    """What cannot be made, or not of everything, and why: files, cameras, masters, reference catalogues."""
    lacks = Lacks({}, {})
    there: dict[str, bool] = {}
    for key, one in survey.calibrations.items():
        camera = cameras[one.camera]
        reason = camera if isinstance(camera, str) else find_few_frames(one, camera, min_frames)
        note_files(lacks, (MASTERS[one.kind], key), reason, one.frames, there)
    for name, one in survey.exposures.items():
        camera = cameras[one.camera]
        reason = camera if isinstance(camera, str) else find_lost_master(survey, one, states)
        note_files(lacks, ("chips", name), reason, one.chips, there)
        if one.kind == "raw" and (reason := find_lost_catalog(survey, one.band)):
            lacks.all["solutions", name] = reason
    return lacks


def find_few_frames(one: CalibrationSet, camera: Camera, min_frames: int) -> str:
    """Why no chip of a master can be made; empty if some can."""
    frames = [frame.chip for frame in one.frames]
    most = max((frames.count(chip) for chip in camera.good_chips), default=0)
    return f"{most} frames, {min_frames} needed (calibrations.min_frames)" if most < min_frames else ""


def find_lost_master(survey: Survey, one: Exposure, states: Mapping[PartitionRef, PartitionState]) -> str:
    """Why an exposure cannot be calibrated now; empty if it can, or need not be."""
    lacks = survey.find_lacks(one, {survey.calibrations[key].kind for _, key in survey.associations.get(one.id, ())})
    return lacks[0] if lacks else find_held(survey, states, ("chips", one.id))


def find_lost_catalog(survey: Survey, band: str) -> str:
    """Why there is nothing to find the astrometry of a band with; empty if there is."""
    name = survey.reference_catalogs.get(band, survey.reference_catalogs.get("*", ""))
    if not name:
        return f"no reference catalogue for band {band}: ingest one with --kind refcat"
    return "" if f"refcat/{name}" in survey.outside else f"reference catalogue {name} is gone: ingest it again"


def note_files(lacks: Lacks, ref: PartitionRef, reason: str, files: Iterable[ChipFile], there: dict[str, bool]) -> None:
    """Note the reason why nothing can come of a partition, or which of its files are gone.

    A chip without one of its files is lost, and so is a partition without such a chip. `there` remembers which files
    were looked for.
    """
    gone: dict[str, str] = {}
    chips: set[str] = set()
    for file in files:
        chips.add(file.chip)
        for path in (file.path, file.variance_path, file.mask_path):
            if path and not there.setdefault(path, there.get(path) or Path(path).is_file()):
                gone.setdefault(file.chip, path)
    if reason or (gone and len(gone) == len(chips)):
        lacks.all[ref] = reason or f"{next(iter(gone.values()))} is gone"
    elif gone:
        lacks.some[ref] = tuple(f"chip {chip}: {path} is gone" for chip, path in sorted(gone.items()))


# ---- what there is of each partition


class UnitFinder:
    """Names the units of a partition: chips that work, skycells that the chips of an exposure fall on.

    Parameters
    ----------
    margin_deg : float
        Footprints are trusted this far (`warps.footprint_margin_arcsec`).
    """

    def __init__(self, survey: Survey, cameras: dict[str, Camera | str], margin_deg: float) -> None:
        self.survey, self.cameras, self.margin_deg = survey, cameras, margin_deg
        self._grids: dict[str, SkycellGrid] = {}
        self._found: dict[tuple[str, str], Units] = {}

    def __call__(self, ref: PartitionRef) -> Units:
        product = get_product(ref[0])
        keys = dict(zip(product.keys, ref[1].split(JOIN), strict=False))
        if product.unit == "chip":
            return self._find_chips(ref[1], "exposure" in keys)
        if product.unit == "skycell":  # without an exposure: of one that is made from nothing
            return self._find_skycells(keys["exposure"], keys["cell"]) if "exposure" in keys else ()
        return ("",)

    def _find_chips(self, key: str, is_exposure: bool) -> Units:
        one = self.survey.exposures[key] if is_exposure else self.survey.calibrations[key]
        camera = self.cameras[one.camera]
        files = one.chips if isinstance(one, Exposure) else one.frames
        broken = set() if isinstance(camera, str) else {name for name, chip in camera.chips.items() if chip.broken}
        return tuple(sorted({file.chip for file in files} - broken))

    def _find_skycells(self, exposure: str, cell: str) -> Units:
        if cell not in self._grids:
            self._grids[cell] = SkycellGrid(self.survey.cells[cell])
        if (exposure, cell) not in self._found:
            footprints = [file.footprint for file in self.survey.exposures[exposure].chips if file.footprint]
            self._found[exposure, cell] = self._grids[cell].find(footprints, self.margin_deg)
        return self._found[exposure, cell]


class SkycellGrid:
    """The skycells of a projection cell as boxes, to see quickly which ones an exposure falls on."""

    def __init__(self, cell: ProjectionCell) -> None:
        self.cell = cell
        rows = sorted(cell.skycells.values(), key=lambda one: one.name)
        self.names = np.array([one.name for one in rows])
        low = np.array([(one.x0, one.y0) for one in rows], float) - 0.5
        self.half = np.array([(one.nx, one.ny) for one in rows], float) / 2.0
        self.centre = low + self.half

    def find(self, footprints: Sequence[Sequence[tuple[float, float]]], margin_deg: float) -> Units:
        """Names of the skycells that share area with any of these convex polygons, grown by a margin; sorted."""
        if not footprints:
            return ()
        most = max(map(len, footprints))
        # a corner given twice makes a side of no length, which tells nothing apart
        filled = np.array([[*one, *[one[-1]] * (most - len(one))] for one in footprints], float)
        corners = grow_polygons(filled, margin_deg)
        at = np.stack(self.cell.sky_to_pixel(corners[..., 0], corners[..., 1]), axis=-1)
        middle, reach = (at.max(axis=1) + at.min(axis=1)) / 2.0, (at.max(axis=1) - at.min(axis=1)) / 2.0
        near = (np.abs(self.centre - middle[:, None]) < self.half + reach[:, None]).all(axis=2)
        chips, boxes = np.nonzero(near)
        sides = np.roll(at, -1, axis=1) - at
        normals = np.stack([-sides[..., 1], sides[..., 0]], axis=-1)
        spans = np.einsum("nkd,njd->nkj", normals, at)
        places = np.einsum("pkd,pd->pk", normals[chips], self.centre[boxes])
        widths = np.einsum("pkd,pd->pk", np.abs(normals[chips]), self.half[boxes])
        apart = (places + widths <= spans.min(axis=2)[chips]) | (places - widths >= spans.max(axis=2)[chips])
        apart &= np.abs(normals[chips]).sum(axis=2) > 0.0
        return tuple(self.names[np.unique(boxes[~apart.any(axis=1)])].tolist())


# ---- showing it


def describe_plan(plan: Plan) -> list[str]:
    """The plan as lines for a terminal: a table by product, then every missing input with its reason.

    What is lost only because of something above it in the list is not listed itself.
    """
    lines = [f"{'product':<16} {'partitions':>10} {'units':>8} {'incomplete':>10} {'impossible':>10}"]
    for product, (partitions, units, incomplete, lost) in plan.count().items():
        lines.append(f"{product:<16} {partitions:>10} {units:>8} {incomplete:>10} {lost:>10}")
    lost = sum(len(row.units) for row in plan.rows if row.lost)
    lines.append(f"{plan.n_units} units to make" + (f", {lost} more that nothing can come of" if lost else ""))
    for row in plan.rows:
        if row.problem:
            lines.append(f"{row.product} {row.partition}: {row.problem}")
        if not row.lost:
            lines += [f"{row.product} {row.partition}: goes without {text}" for text in row.missing]
    return lines


def show_plan(
    space: Workspace,
    collection: str | None,
    select: Sequence[str] = (),
    to: str | None = None,
    tessellation: str | None = None,
) -> str:
    """What `lap run --show plan` prints."""
    return "\n".join(describe_plan(make_plan(space, collection, select, to, tessellation)))
