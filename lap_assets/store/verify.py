"""Checking what is on disk against its manifests: quarantine for what is broken, removal of what is left over.

Nothing is repaired here: a quarantined unit is missing, and a run makes it again from its inputs. Publishing is
`publish.py`'s.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lap_assets.errors import IntegrityError, NotFound
from lap_assets.model.ids import DataId
from lap_assets.model.products import get_product
from lap_assets.model.states import CLEANED, CORRUPT
from lap_assets.store import refcat
from lap_assets.store.configs import find_configs, read_config
from lap_assets.store.files import check_size, open_member, verify_member
from lap_assets.store.fits_format import MalformedFile
from lap_assets.store.layout import MANIFEST, Layout, find_content_dirs, is_temporary
from lap_assets.store.manifest import Manifest, OtherFormat, decode_manifest
from lap_assets.store.publish import check_inside, create_folders, sync_folder, write_synced
from lap_assets.store.repo import Repo
from lap_assets.store.table_format import encode_json
from lap_assets.store.versions import is_current, read_current, remove_version

KEEP_SECONDS = 3600.0  # replaced versions and files being written are left alone this long
NOTE = "corrupt.json"  # beside a quarantined version: what it was and why it is here


@dataclass
class FsckReport:
    """What `fsck` found.

    Attributes
    ----------
    units, bytes : int
        Units with a manifest that were looked at, and the size of their members.
    broken : dict of DataId to str
        Units that were quarantined, and why.
    orphans : list of Path
        Versions no manifest names: replaced ones, and those of a writer that was killed. `sweep` removes them.
    removed : list of Path
        Temporary files and folders of writers that are gone.
    damaged : list of str
        What cannot be set aside, one line each with what to do: reference catalogues, kept settings and the journal
        that are broken, units whose manifests another version of this package wrote.
    cleaned : int
        Units whose files were removed on purpose: nothing is wrong with them.
    """

    units: int = 0
    bytes: int = 0
    broken: dict[DataId, str] = field(default_factory=dict)
    orphans: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    cleaned: int = 0

    @property
    def lines(self) -> list[str]:
        """The report as lines for a terminal."""
        lines = [f"{data_id}: {problem}" for data_id, problem in self.broken.items()] + self.damaged
        lines.append(
            f"{self.units} units, {self.bytes / 1e6:.1f} MB: {len(self.broken)} broken and quarantined, "
            f"{self.cleaned} cleaned, {len(self.removed)} left-over temporary files removed, "
            f"{len(self.orphans)} replaced versions kept"
        )
        return lines


def fsck(repo: Repo, full: bool = False, now: float | None = None, keep_seconds: float = KEEP_SECONDS) -> FsckReport:
    """Check every unit of the store; what is broken is quarantined and so is missing for the next run.

    Parameters
    ----------
    full : bool
        Read every byte and compare hashes and decoded content; otherwise manifests, presence and sizes.
    now : float, optional
        Seconds since the epoch; the clock if not given.
    keep_seconds : float
        Age from which temporary files are taken for left over.
    """
    before = (time.time() if now is None else now) - keep_seconds
    report, layout = FsckReport(), repo.layout
    for data_id in layout.find_all_units():
        _check_unit(layout, data_id, full, report)
        report.removed += remove_temporary(layout.unit_dir(data_id), before)
    for name in layout.refcats():
        report.removed += remove_temporary(layout.refcat_dir(name), before)
    if layout.configs.is_dir():
        report.removed += remove_temporary(layout.configs, before)
    report.damaged += find_damage(repo, full)
    return report


def find_damage(repo: Repo, full: bool) -> list[str]:
    """What is wrong with reference catalogues (all rows only if `full`), kept settings and journal; a line each."""
    check = refcat.check_refcat if full else refcat.describe_refcat
    checks = [lambda name=name: check(repo.layout, name) for name in repo.layout.refcats()]
    checks += [lambda name=name: read_config(repo.layout, name) for name in find_configs(repo.layout)]
    damaged = []
    for one in (*checks, repo.read_journal):
        try:
            one()
        except (IntegrityError, NotFound) as error:
            damaged.append(str(error))
    return damaged


def _check_unit(layout: Layout, data_id: DataId, full: bool, report: FsckReport) -> None:
    try:
        manifest, problem = _find_problem(layout, data_id, full)
        if problem:
            # a writer may have replaced it meanwhile: only what is still so is set aside
            manifest, problem = _find_problem(layout, data_id, full)
    except OtherFormat as error:  # sound, as far as can be told: it stays where it is
        report.units += 1
        report.damaged.append(f"{data_id}: {layout.manifest(data_id)}: {error}")
        return
    if problem:
        place = quarantine_unit(layout, data_id, manifest, problem)
        report.broken[data_id] = f"{problem}; quarantined in {place}"
    current = manifest.directory if manifest else ""
    report.orphans += [entry for entry in layout.find_versions(data_id) if entry.name != current]
    if manifest or problem:
        report.units += 1
        report.cleaned += bool(manifest and manifest.state == CLEANED)
        report.bytes += manifest.bytes if manifest else 0


def _find_problem(layout: Layout, data_id: DataId, full: bool) -> tuple[Manifest | None, str]:
    """The manifest of a unit, as far as it can be read, and what is wrong (or nothing). Raises `OtherFormat`."""
    path = layout.manifest(data_id)
    manifest = None
    try:
        check_inside(path.parent)
        with open_member(path) as stream:
            manifest = decode_manifest(stream.read(), data_id)
        path = layout.content_dir(data_id, manifest.directory) if manifest.directory else path
        check_inside(path)
        for name, record in manifest.members.items() if manifest.directory else ():
            path = layout.member(data_id, manifest.directory, name)
            with open_member(path) as stream:
                if full:
                    known = {member.name: member for member in get_product(data_id.product).members}
                    verify_member(stream, record, known.get(name))
                else:
                    check_size(stream, record)
    except OtherFormat:
        raise
    except FileNotFoundError:
        return manifest, "" if manifest is None else f"{path} is missing"
    except (MalformedFile, IntegrityError, OSError) as error:
        return manifest, f"{path}: {error}"
    return manifest, ""


def quarantine_unit(layout: Layout, data_id: DataId, manifest: Manifest | None, problem: str) -> Path:
    """Move the current version of a unit, then its manifest, out of the way, bytes kept; returns the new folder.

    In this order: killed before the last move, the unit is found broken again the next time.
    """
    place = _make_place(layout, data_id)
    write_synced(place / NOTE, encode_json({"data_id": str(data_id), "state": CORRUPT, "reason": problem}))
    if manifest and manifest.directory:
        with contextlib.suppress(FileNotFoundError):
            layout.content_dir(data_id, manifest.directory).rename(place / manifest.directory)
    with contextlib.suppress(FileNotFoundError):
        layout.manifest(data_id).rename(place / MANIFEST)
    for folder in (place, place.parent, layout.unit_dir(data_id)):
        sync_folder(folder)
    return place


def _make_place(layout: Layout, data_id: DataId) -> Path:
    folder = layout.quarantine_dir(data_id)
    create_folders(layout.root, folder)
    number = 1
    while True:
        try:
            (folder / str(number)).mkdir()
            return folder / str(number)
        except FileExistsError:
            number += 1


def remove_temporary(folder: Path, before: float) -> list[Path]:
    """Remove what writers left in `folder` and did not touch since `before` (seconds since the epoch)."""
    removed = []
    for entry in sorted(folder.iterdir()):
        if is_temporary(entry.name) and _newest(entry) < before:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            removed.append(entry)
    return removed


def _newest(entry: Path) -> float:
    times = [entry.lstat().st_mtime]
    if entry.is_dir() and not entry.is_symlink():
        times += [one.lstat().st_mtime for one in entry.iterdir()]
    return max(times)


def sweep(
    repo: Repo,
    now: float | None = None,
    keep_seconds: float = KEEP_SECONDS,
    leased: frozenset[DataId] = frozenset(),
) -> list[Path]:
    """Remove versions replaced more than `keep_seconds` ago; returns what was removed.

    Parameters
    ----------
    now : float, optional
        Seconds since the epoch; the clock if not given.
    leased : set of DataId
        Units someone holds a lease on: left alone.
    """
    found = find_replaced(repo, now, keep_seconds, leased)
    return [entry for entry, current in found if remove_version(entry, current) is not None]


def find_replaced(
    repo: Repo,
    now: float | None = None,
    keep_seconds: float = KEEP_SECONDS,
    leased: frozenset[DataId] = frozenset(),
) -> Iterator[tuple[Path, Callable[[], str]]]:
    """What `sweep` would remove, each with the function that tells the current version's name (`remove_version`)."""
    before, layout = (time.time() if now is None else now) - keep_seconds, repo.layout
    for data_id in layout.find_all_units():
        if data_id not in leased:
            yield from _find_old(layout.manifest(data_id), before, lambda d=data_id: read_current(layout, d))
    for name in layout.refcats():
        description = layout.refcat_dir(name) / refcat.DESCRIPTION
        yield from _find_old(description, before, lambda n=name: refcat.describe_refcat(layout, n)["version"])


def _find_old(document: Path, before: float, current: Callable[[], str]) -> Iterator[tuple[Path, Callable[[], str]]]:
    """The versions beside `document` that it does not name, but for those that may have been current since `before`."""
    for entry in find_content_dirs(document.parent):
        if _last_used(document, entry) <= before and not is_current(entry, current):
            yield entry, current


def _last_used(document: Path, entry: Path) -> float:
    """Time until which a version may have been the current one: when the document was replaced, or it was written."""
    times = [entry.stat().st_mtime]
    with contextlib.suppress(FileNotFoundError):
        times.append(document.stat().st_mtime)
    return max(times)
