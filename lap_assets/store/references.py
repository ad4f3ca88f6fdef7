"""Members of a unit that refers to another one: taken over as they are, or compressed on the way.

A final stack that would be the first-pass stack again is published so. Which unit refers to which is `pipeline/`'s to
say; making the new version visible is `publish.py`'s.
"""

import os
import shutil
from pathlib import Path

from lap_assets.errors import Conflict, IntegrityError, PermanentFailure
from lap_assets.model.ids import DataId, Pin
from lap_assets.model.products import get_product
from lap_assets.model.states import CLEANED, DONE
from lap_assets.store.files import (
    MemberRecord,
    check_members,
    check_size,
    compress_members,
    open_member,
    write_members,
)
from lap_assets.store.fits_format import ImageHdu, MalformedFile, decode_planes
from lap_assets.store.layout import Layout
from lap_assets.store.manifest import Manifest, decode_manifest
from lap_assets.store.provenance import make_cards


def take_members(layout: Layout, data_id: DataId, source: Pin, folder: Path) -> dict[str, MemberRecord]:
    """Put the members of the unit `source` into `folder`, for the unit `data_id`.

    They are hard links where the file system has them. A compressed product that refers to one that is not has the
    same images, compressed.

    Raises
    ------
    Conflict
        The source was replaced or cleaned since it was pinned.
    IntegrityError
        A member of it is missing or damaged.
    """
    manifest = _read_source(layout, source)
    compress = get_product(data_id.product).compressed and not get_product(source.data_id.product).compressed
    images = [name for name in manifest.members if compress and name.endswith(".fits")]
    records = {}
    for name, record in manifest.members.items():
        if name not in images:
            _link_member(source, layout.member(source.data_id, manifest.directory, name), folder / name)
            records[name] = record
    # one image at a time is in memory
    values = compress_members((name, _read_image(layout, manifest, data_id, name)) for name in images)
    records |= write_members(folder, values, make_cards(data_id))
    return {name: records[name] for name in manifest.members}


def _read_source(layout: Layout, source: Pin) -> Manifest:
    path = layout.manifest(source.data_id)
    try:
        manifest = decode_manifest(path.read_bytes(), source.data_id)
    except FileNotFoundError:
        raise Conflict(f"{source.data_id}: no manifest, so nothing can refer to it; plan again") from None
    except MalformedFile as error:
        raise IntegrityError(f"{source.data_id}: {path}: {error}") from None
    if manifest.content_sha256 != source.content:
        raise Conflict(f"{source.data_id}: was replaced since it was pinned; plan again")
    if manifest.state == CLEANED:
        raise Conflict(f"{source.data_id}: was cleaned, so nothing can refer to it; it is re-created when asked for")
    if manifest.state != DONE:
        raise PermanentFailure(f"{source.data_id}: is {manifest.state}, so nothing can refer to it")
    return manifest


def _read_image(layout: Layout, manifest: Manifest, data_id: DataId, name: str) -> dict[str, ImageHdu]:
    """A FITS member of the unit `manifest` is of, checked and ready to be written for `data_id`."""
    path = layout.member(manifest.data_id, manifest.directory, name)
    try:
        with open_member(path) as stream:
            check_size(stream, manifest.members[name])
            planes = decode_planes(stream)
    except (MalformedFile, OSError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise IntegrityError(f"{manifest.data_id}: {path}: {problem}; run `lap fsck --full`") from None
    return check_members(get_product(data_id.product), {name: planes}, complete=False)[name]


def _link_member(source: Pin, original: Path, link: Path) -> None:
    try:
        os.link(original, link, follow_symlinks=False)
    except (PermissionError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise IntegrityError(f"{source.data_id}: {original} is missing; run `lap fsck`") from None
        _copy_synced(original, link)


def _copy_synced(original: Path, copy: Path) -> None:
    with open_member(original) as source, copy.open("xb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())
