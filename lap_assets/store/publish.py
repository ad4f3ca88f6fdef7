"""Publishing one unit: from members in memory to a version readers see, whole or not at all.

The order of the steps is the promise: members into a temporary directory beside their final place, each fsynced;
rename to the content directory; parents fsynced; then the manifest, replaced atomically. Killed between any two, the
old version is intact or the new one complete; what is left over is swept by `verify.py`. One writer per unit is the
ledger's lease; here its fencing number is checked.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lap_assets.errors import Conflict, IntegrityError, PermanentFailure
from lap_assets.model.ids import DataId
from lap_assets.model.products import get_product
from lap_assets.model.states import DONE, RESULTS
from lap_assets.store.files import (
    MemberRecord,
    check_hash,
    check_members,
    combine_members,
    compress_members,
    open_member,
    write_members,
)
from lap_assets.store.fits_format import MalformedFile
from lap_assets.store.layout import DIGITS, MANIFEST, Layout, temporary_beside
from lap_assets.store.manifest import Manifest, decode_manifest, encode_manifest
from lap_assets.store.provenance import make_cards
from lap_assets.store.references import take_members


def publish_unit(layout: Layout, manifest: Manifest, members: Mapping[str, Any]) -> Manifest:
    """Write the members of one unit and its manifest; returns the manifest as published.

    Parameters
    ----------
    manifest : Manifest
        All that is known beforehand; directory, members and hashes are filled in here.
    members : mapping of name to content
        As in `pipeline.task.Output`; empty for a result without members, and of one that refers to another unit those
        that it has besides that one's.

    Raises
    ------
    PermanentFailure
        The members are not what the product table asks for.
    Conflict
        A manifest with a higher fence is on disk already.
    OSError
        The disk is full or fails; nothing is changed.
    """
    data_id = manifest.data_id
    folder = layout.unit_dir(data_id)
    check_fence(folder, manifest)
    if manifest.state not in RESULTS:
        raise PermanentFailure(f"{data_id}: cannot publish the state {manifest.state!r}")
    if manifest.state != DONE and (members or not manifest.reason):
        raise PermanentFailure(f"{data_id}: state {manifest.state} needs a reason and has no members")
    create_folders(layout.root, folder)
    if manifest.state == DONE:
        with _temporary_folder(folder) as scratch:
            records = {}
            if manifest.refers_to:
                records = take_members(layout, data_id, manifest.refers_to, scratch)
            records |= _write_members(data_id, members, scratch, complete=not manifest.refers_to)
            content = combine_members(records.values())
            sync_folder(scratch)
            directory = _settle(folder, scratch, content, records)
        manifest = replace(manifest, directory=directory, content_sha256=content, members=records)
    replace_manifest(folder, manifest)
    if manifest.directory and not (folder / manifest.directory).is_dir():
        raise Conflict(f"{data_id}: its content directory was removed meanwhile; publish again")
    return manifest


def _write_members(
    data_id: DataId, members: Mapping[str, Any], scratch: Path, complete: bool
) -> dict[str, MemberRecord]:
    try:
        product, cards = get_product(data_id.product), make_cards(data_id)
        ready = check_members(product, members, complete)
        values = compress_members(ready.items()) if product.compressed else ready.items()
        return write_members(scratch, values, cards)
    except PermanentFailure as error:
        raise PermanentFailure(f"{data_id}: {error}") from None


def _settle(folder: Path, scratch: Path, content: str, records: Mapping[str, MemberRecord]) -> str:
    """Rename `scratch` to the content directory, or find that the same bytes are there; returns the directory's name.

    Where the content is there in other bytes (a damaged file, another version of a library), a number is appended:
    readers may be in the old one.
    """
    name, number = content[:DIGITS], 0
    while True:
        final = folder / name
        if _holds(final, records):
            break
        try:
            scratch.rename(final)
            break
        except OSError:
            if not final.exists():
                raise
        number += 1
        name = f"{content[:DIGITS]}.{number}"
    sync_folder(folder)
    return name


def _holds(final: Path, records: Mapping[str, MemberRecord]) -> bool:
    """Whether a content directory holds exactly these bytes; if so it counts as new again."""
    try:
        os.utime(final)  # before looking: from here on `sweep` leaves it alone
        if sorted(entry.name for entry in final.iterdir()) != sorted(records):
            return False
        for name, record in records.items():
            with open_member(final / name) as stream:
                check_hash(stream, record)
    except (OSError, MalformedFile):
        return False
    return True


def check_fence(folder: Path, manifest: Manifest) -> None:
    """Raise `Conflict` if the manifest on disk carries a higher fence; an unreadable one does not protect itself."""
    try:
        present = decode_manifest((folder / MANIFEST).read_bytes(), manifest.data_id)
    except (FileNotFoundError, MalformedFile):
        return
    if present.fence > manifest.fence:
        raise Conflict(
            f"{manifest.data_id}: a later writer (fence {present.fence}) has published; "
            f"this one (fence {manifest.fence}) lost its lease"
        )


def replace_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of a unit atomically, unless a later writer was faster (`Conflict`)."""
    replace_file(folder / MANIFEST, encode_manifest(manifest), lambda: check_fence(folder, manifest))


def replace_file(path: Path, data: bytes, check: Callable[[], None] = lambda: None) -> None:
    """Replace a small file atomically and durably; `check` is asked last and may refuse by raising."""
    scratch = temporary_beside(path.parent)
    try:
        write_synced(scratch, data)
        check()
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_folder(parent: Path, name: str, files: Mapping[str, bytes]) -> None:
    """Make `parent/name` with these files, whole or not at all; nothing is done if it exists."""
    if (parent / name).is_dir():
        return
    with _temporary_folder(parent) as scratch:
        for one, data in files.items():
            write_synced(scratch / one, data)
        sync_folder(scratch)
        scratch.rename(parent / name)
    sync_folder(parent)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and fsync it."""
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def create_folders(root: Path, folder: Path) -> None:
    """Make `folder` and its parents below `root`, each entry fsynced; `IntegrityError` if a link leads elsewhere."""
    missing, made = [], folder
    while folder != root and not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True, parents=one.parent == root)
        sync_folder(one.parent)
    check_inside(made)


def check_inside(folder: Path) -> None:
    """Raise `IntegrityError` if a symbolic link leads from `folder` (below a resolved root) to somewhere else."""
    if folder.resolve() != folder:
        raise IntegrityError(f"{folder}: a symbolic link leads elsewhere; remove it, then run `lap fsck`")


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    scratch = temporary_beside(folder)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
