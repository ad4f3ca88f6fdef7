"""The settings products were made with, one file per hash: what a re-creation needs besides the pinned inputs.

What the settings mean is `pipeline/`'s; here they are bytes whose SHA-256 is their name, so that each file proves
itself.
"""

import hashlib
from pathlib import Path

from lap_assets.errors import IntegrityError
from lap_assets.store.files import open_member
from lap_assets.store.layout import Layout
from lap_assets.store.publish import create_folders, replace_file


def keep_config(layout: Layout, document: bytes) -> str:
    """Keep settings, durably and once; returns their hash."""
    name = hashlib.sha256(document).hexdigest()
    path = layout.config(name)
    if _read(path) != document:
        create_folders(layout.root, path.parent)
        replace_file(path, document)
    return name


def read_config(layout: Layout, sha256: str) -> bytes | None:
    """The settings of this hash, or None; raises `IntegrityError` for a damaged file."""
    path = layout.config(sha256)
    document = _read(path)
    if document is not None and hashlib.sha256(document).hexdigest() != sha256:
        raise IntegrityError(f"{path}: the bytes differ from the hash in its name; restore it from a backup")
    return document


def find_configs(layout: Layout) -> list[str]:
    """Hashes of all settings kept, sorted."""
    return sorted(path.stem for path in layout.configs.glob("*.json"))


def _read(path: Path) -> bytes | None:
    try:
        with open_member(path) as stream:
            return stream.read()
    except FileNotFoundError:
        return None
