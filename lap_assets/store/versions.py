"""Versions of a unit: the content directories beside its manifest. Finding one that was replaced, removing one.

When a version may go is the business of who calls (`cleaning.py`, `verify.py`); how a new one is made, `publish.py`'s.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from lap_assets.errors import Conflict, IntegrityError, NotFound
from lap_assets.model.ids import DataId, Pin
from lap_assets.model.products import get_product
from lap_assets.store.files import MemberRecord, combine_members, describe_folder, open_member
from lap_assets.store.fits_format import MalformedFile
from lap_assets.store.layout import DIGITS, Layout, temporary_beside
from lap_assets.store.manifest import decode_manifest
from lap_assets.store.publish import check_inside


def find_version(layout: Layout, pin: Pin) -> tuple[str, dict[str, MemberRecord]]:
    """A replaced version that is still there; without a manifest, it counts only if its content is the pin's.

    Raises
    ------
    Conflict
        If there is none.
    """
    product = get_product(pin.data_id.product)
    for folder in layout.find_versions(pin.data_id):
        if not folder.name.startswith(pin.content[:DIGITS]):
            continue
        try:
            check_inside(folder)
            records = describe_folder(folder, product)
        except (MalformedFile, OSError):
            continue
        if combine_members(records.values()) == pin.content:
            return folder.name, records
    raise Conflict(f"{pin.data_id} was replaced since it was pinned as {pin.content[:12]}; plan again")


def read_current(layout: Layout, data_id: DataId) -> str:
    """Name of the content directory a unit has now; empty where it has no files."""
    with open_member(layout.manifest(data_id)) as stream:
        return decode_manifest(stream.read(), data_id).directory


def remove_version(entry: Path, current: Callable[[], str]) -> int | None:
    """Remove a content directory unless it is the current one; returns the bytes that are free now, None if it stays.

    `current` tells the name of the current one.
    """
    if is_current(entry, current):
        return None
    scratch = temporary_beside(entry.parent)
    entry.rename(scratch)
    # a writer may have taken it up again between the two looks
    if is_current(entry, current):
        scratch.rename(entry)
        return None
    freed = measure_version(scratch)
    shutil.rmtree(scratch)
    return freed


def measure_version(entry: Path) -> int:
    """Bytes that removing a content directory sets free: files that another unit shares stay."""
    return sum(found.st_size for found in (one.lstat() for one in entry.iterdir()) if found.st_nlink == 1)


def is_current(entry: Path, current: Callable[[], str]) -> bool:
    """Whether a content directory is the one its document names; where that cannot be told it is, and `fsck` looks."""
    try:
        return current() == entry.name
    except (FileNotFoundError, NotFound):
        return False
    except (MalformedFile, IntegrityError, OSError):
        return True
