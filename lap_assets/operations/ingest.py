"""Ingest: files opened and verified by `pipeline/ingest.py`, then registered in the ledger; and the ledger rebuilt.

One bad file never keeps the others out: it is set aside with its reason, noted in the journal, and the rest goes on.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lap_assets.errors import BadInput
from lap_assets.ledger.ledger import Ledger
from lap_assets.ledger.records import ManifestRow
from lap_assets.model.camera import CAMERAS_DIR, Camera, load_camera
from lap_assets.model.ids import check_name
from lap_assets.model.survey import Exposure
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline import ingest as inspecting
from lap_assets.pipeline.ingest import Rejected
from lap_assets.store.refcat import describe_refcat

SUFFIXES = (".fits", ".fits.fz", ".fits.gz", ".fit", ".fts")


@dataclass
class Outcome:
    """What an ingest did: lines for a person, and the files set aside."""

    lines: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def find_files(paths: Sequence[Path], suffixes: tuple[str, ...] = SUFFIXES) -> tuple[list[Path], list[Rejected]]:
    """Files named, and those with known suffixes in folders named, sorted; and paths that do not exist.

    Raises `BadInput` where there is no file at all.
    """
    found: list[Path] = []
    absent: list[Rejected] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.name.lower().endswith(suffixes) and p.is_file())
        elif path.is_file():
            found.append(path)
        else:
            absent.append(Rejected(str(path), "it does not exist"))
    if absent and not found:
        raise BadInput(f"{absent[0].path} does not exist")
    if not found:
        raise BadInput(f"no files ending in {', '.join(suffixes)} in {', '.join(map(str, paths))}")
    return [path.absolute() for path in found], absent


def ingest_frames(
    space: Workspace,
    paths: Sequence[Path],
    camera_name: str,
    kind: str,
    zero_points: Path | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
    given: str = "",
) -> Outcome:
    """Register raw or calibrated exposures, or calibration frames. Files stay where they are.

    Parameters
    ----------
    kind : "raw", "calibrated" or "calibration"
    zero_points : Path, optional
        Table of given zero points for calibrated exposures.
    tell : callable
        Called with files done and in all.
    given : str
        What the frames are (object, bias, dark, flat, sky, fringe), whatever their headers say.
    """
    if given and (kind == "calibrated" or (given == "object") == (kind == "calibration")):
        raise BadInput(f"frames ingested with --kind {kind} cannot be taken as {given} frames; change one of the two")
    camera = keep_camera(space, camera_name)
    files, absent = find_files(paths)
    outcome = Outcome()
    if kind == "calibration":
        sets, outcome.rejected = inspecting.inspect_calibrations(files, camera, tell, given)
        added = space.ledger.add_calibrations(sets)
        outcome.lines.append(f"{len(sets)} master calibrations to build from {len(files)} frames: {added.added} new")
    else:
        if kind == "calibrated":
            exposures, outcome.rejected = inspecting.inspect_calibrated(files, camera, zero_points, tell)
        else:
            exposures, outcome.rejected = inspecting.inspect_raw(files, camera, tell, given)
        added = space.ledger.add_exposures(exposures)
        outcome.lines.append(f"{added.added} exposures ingested, {added.unchanged} known already")
        outcome.lines.append(estimate(space, camera, exposures))
    outcome.rejected += [Rejected(path, reason) for path, reason in added.conflicts] + absent
    for rejected in outcome.rejected:
        space.repo.append_journal({"kind": "rejected", "path": str(rejected.path), "reason": rejected.reason})
    return outcome


def keep_camera(space: Workspace, name: str) -> Camera:
    """The camera of a name, or of a file, whose copy the repository keeps; raises `BadInput` where they contradict."""
    given = Path(name).expanduser()
    if given.suffix not in (".yaml", ".yml"):
        return load_camera(name, space.repo.cameras)
    camera = load_camera(given)
    if (CAMERAS_DIR / f"{camera.name}.yaml").is_file():
        raise BadInput(f"{given}: a camera called {camera.name!r} comes with the package; choose another name")
    kept = space.repo.cameras / f"{check_name(camera.name, 'camera')}.yaml"
    if kept.is_file() and load_camera(kept).sha256 != camera.sha256 and uses_camera(space, camera.name):
        raise BadInput(f"{given} differs from {kept}, which exposures were ingested with; edit that one instead")
    kept.parent.mkdir(exist_ok=True)
    shutil.copyfile(given, kept)
    return camera


def uses_camera(space: Workspace, name: str) -> bool:
    """Whether exposures of a camera are known."""
    return any(one.camera == name for one in space.ledger.exposures().values())


def estimate(space: Workspace, camera: Camera, exposures: Sequence[Exposure]) -> str:
    """Preflight: disk and time that exposures will roughly take, and what is free.

    10 bytes per pixel for each of chip, warp and difference (float32 SCI and VAR, int16 MASK) and a few for the rest;
    3 s of one core per million pixels for all stages, as in the demo.
    """
    areas_deg2 = [measure_area_deg2(file.footprint) for one in exposures for file in one.chips]
    pixels = sum(areas_deg2) / (camera.pixel_scale_arcsec / 3600.0) ** 2
    disk, free = 32e-9 * pixels, 1e-9 * shutil.disk_usage(space.root).free
    text = f"estimate: {disk:.2f} GB of disk, {3e-6 * pixels / 60:.1f} minutes of one core; {free:.0f} GB free"
    return f"{text}: NOT ENOUGH DISK" if disk > free else text


def measure_area_deg2(footprint: Sequence[tuple[float, float]]) -> float:
    """Area of a small polygon on the sky, square degrees."""
    ra, dec = np.transpose(footprint)
    x = ((ra - ra[0] + 180.0) % 360.0 - 180.0) * np.cos(np.radians(dec.mean()))
    return float(abs(np.dot(x, np.roll(dec, 1)) - np.dot(dec, np.roll(x, 1))) / 2)


def ingest_refcat(
    space: Workspace, paths: Sequence[Path], name: str, bands: Sequence[str], replace: bool = False
) -> Outcome:
    """Keep a reference catalogue in the store, sharded by HEALPix, and name it in the ledger for its bands.

    One of the same name with another number of rows is refused unless `replace`.
    """
    if not name:
        raise BadInput("--name is missing: what to call the reference catalogue, e.g. gaia")
    check_name(name, "reference catalogue")
    files, absent = find_files(paths, (*SUFFIXES, ".parquet", ".csv"))
    tables, dropped = zip(*(inspecting.inspect_refcat(path) for path in files), strict=True)
    table = pd.concat(tables, ignore_index=True).drop_duplicates("source_id")
    if name in space.ledger.survey().reference_catalogs.values() and not replace:
        known = describe_refcat(space.repo.layout, name)["rows"]
        if len(table) != known:
            raise BadInput(
                f"a reference catalogue {name!r} of {known} rows is there already and these have {len(table)}: "
                "give all its files at once with --replace, or another --name"
            )
    content = space.repo.write_refcat(name, table)
    space.ledger.add_reference_catalog(name, [band.strip() for band in bands], content, len(table))
    line = f"reference catalogue {name}: {len(table)} rows kept, {sum(dropped)} without a position left out"
    return Outcome([line], absent)


def rebuild_ledger(space: Workspace) -> tuple[int, int]:
    """Make a lost ledger again from the journal and the manifests.

    An embedded one is made beside the old one, which is kept as `NAME.old-N`, and takes its place only when it is
    whole; another database must be empty. Returns how many definitions and partitions were restored.
    """
    entries = space.repo.read_journal()
    embedded = None if space.settings.ledger_url else space.root / "ledger.db"
    fresh = space.root / "ledger.db.new"
    for suffix in ("", "-wal", "-shm"):
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    # no journal: what is restored stands there already
    ledger = Ledger.create(f"sqlite:///{fresh}" if embedded else space.ledger_url)
    try:
        counts = ledger.rebuild(entries, read_manifests(space))
    finally:
        ledger.close()
    if embedded:
        set_aside(embedded)
        fresh.rename(embedded)
    return counts


def set_aside(path: Path) -> None:
    """Rename a database, and what SQLite keeps beside it, to the first free `NAME.old-N`."""
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.old-{n}").exists())
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(path.with_name(f"{path.name}.old-{number}{suffix}"))


def read_manifests(space: Workspace) -> Iterator[ManifestRow]:
    """What the ledger wants to know of every manifest in the store."""
    for data_id in space.repo.all_units():
        found = space.repo.manifest(data_id)
        if found is None:
            continue  # taken away since it was listed
        yield ManifestRow(
            data_id,
            found.state,
            found.content_sha256,
            found.bytes,
            found.reason,
            found.seconds,
            found.run_id,
            found.fence,
            metrics=found.metrics,
        )


def upgrade_ledger(space: Workspace) -> None:
    """Bring the tables of an older ledger up to date."""
    Ledger.create(space.ledger_url, journal=space.repo.append_journal).close()
