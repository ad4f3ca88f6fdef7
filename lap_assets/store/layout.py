"""Where everything lies on disk: every path of a repository is built here, and read back here.

    ROOT/store/COLLECTION/PRODUCT/KEY PARTS…/UNIT/manifest.json
    ROOT/store/COLLECTION/PRODUCT/KEY PARTS…/UNIT/CONTENT HASH/MEMBER
    ROOT/store/COLLECTION/logs/PRODUCT/KEY PARTS…/UNIT.log
    ROOT/store/quarantine/COLLECTION/PRODUCT/KEY PARTS…/UNIT/N/
    ROOT/store/refcats/NAME/{refcat.json, PIXEL.parquet}
    ROOT/store/configs/CONFIG HASH.json
    ROOT/store/journal.jsonl

A unit that is its whole partition is called `_`. Names starting with a dot are never products: they are being
written. What the files contain does not belong here.
"""

import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lap_assets.errors import BadInput
from lap_assets.model.ids import JOIN, DataId, check_name
from lap_assets.model.products import KEY_PARTS, PRODUCTS, get_product

MANIFEST = "manifest.json"
WHOLE = "_"  # the unit that is its whole partition
TEMPORARY = ".tmp-"
QUARANTINE, REFCATS, LOGS, CONFIGS = "quarantine", "refcats", "logs", "configs"
RESERVED = frozenset({QUARANTINE, REFCATS, LOGS, CONFIGS})
DIGITS = 32  # hexadecimal digits of the content hash that name a content directory
_CONTENT = re.compile(rf"[0-9a-f]{{{DIGITS}}}(\.[0-9]+)?")


@dataclass(frozen=True)
class Layout:
    """Paths of the repository at `root`; builds and parses them, touches no content."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def cameras(self) -> Path:
        """Folder of the repository's own camera files, one YAML each."""
        return self.root / "cameras"

    @property
    def journal(self) -> Path:
        return self.store / "journal.jsonl"

    @property
    def quarantine(self) -> Path:
        return self.store / QUARANTINE

    def unit_dir(self, data_id: DataId) -> Path:
        """Directory of one unit: its manifest and its content directories."""
        return self.store.joinpath(data_id.collection, data_id.product, *_folders(data_id))

    def manifest(self, data_id: DataId) -> Path:
        return self.unit_dir(data_id) / MANIFEST

    def content_dir(self, data_id: DataId, directory: str) -> Path:
        """Directory of one version of a unit; `directory` as recorded in the manifest."""
        if not is_content_name(directory):
            raise BadInput(f"{data_id}: {directory!r} is no name of a content directory")
        return self.unit_dir(data_id) / directory

    def member(self, data_id: DataId, directory: str, name: str) -> Path:
        return self.content_dir(data_id, directory) / check_name(name, "member")

    def log(self, data_id: DataId) -> Path:
        """Log file of one unit."""
        *parents, unit = _folders(data_id)
        return self.store.joinpath(data_id.collection, LOGS, data_id.product, *parents, f"{unit}.log")

    def quarantine_dir(self, data_id: DataId) -> Path:
        """Directory that takes the quarantined versions of one unit, one numbered folder each."""
        return self.quarantine.joinpath(data_id.collection, data_id.product, *_folders(data_id))

    def refcat_dir(self, name: str) -> Path:
        return self.store / REFCATS / check_name(name, "reference catalogue")

    def refcat_shard(self, name: str, version: str, pixel: int) -> Path:
        return self.refcat_dir(name) / check_name(version, "version") / f"{int(pixel)}.parquet"

    @property
    def configs(self) -> Path:
        return self.store / CONFIGS

    def config(self, sha256: str) -> Path:
        """File of the settings that have this hash."""
        return self.configs / f"{check_name(sha256, 'hash of settings')}.json"

    def product_dir(self, collection: str, product: str) -> Path:
        return self.store / check_collection(collection) / get_product(product).name

    def parse(self, path: Path) -> DataId:
        """The data id whose unit directory is `path`; raises `BadInput` for any other path."""
        try:
            collection, product, *parts, unit = Path(path).relative_to(self.store).parts
        except ValueError:
            raise BadInput(f"{path} is not the directory of a unit under {self.store}") from None
        data_id = DataId(collection, product, JOIN.join(parts), "" if unit == WHOLE else unit)
        _folders(data_id)
        return data_id

    def collections(self) -> list[str]:
        """Collections that have a folder, sorted."""
        return [name for name in _subfolders(self.store) if name not in RESERVED]

    def find_units(self, collection: str, product: str, partition: str | None = None) -> Iterator[DataId]:
        """Data ids of the unit directories that exist (with or without manifest), sorted by path."""
        base = self.product_dir(collection, product)
        if partition is not None:
            parts = DataId(collection, product, partition).parts
            folders = [base.joinpath(*parts)]
        else:
            folders = [base]
            for _ in KEY_PARTS[get_product(product).partitions]:
                folders = [folder / name for folder in folders for name in _subfolders(folder)]
        for folder in folders:
            for name in _subfolders(folder):
                yield self.parse(folder / name)

    def find_versions(self, data_id: DataId) -> list[Path]:
        """Content directories of a unit, the current one or not, sorted by name."""
        return find_content_dirs(self.unit_dir(data_id))

    def find_all_units(self) -> Iterator[DataId]:
        """Data ids of all unit directories of the repository."""
        for collection in self.collections():
            for product in _subfolders(self.store / collection):
                if product in PRODUCTS:
                    yield from self.find_units(collection, product)

    def refcats(self) -> list[str]:
        """Names of the reference catalogues, sorted."""
        return _subfolders(self.store / REFCATS)


def check_collection(name: str) -> str:
    """Return the name of a collection that may have a folder; raises `BadInput` for reserved names."""
    if check_name(name, "collection") in RESERVED:
        raise BadInput(f"collection {name!r} is not allowed: the name is used by the store itself")
    return name


def find_content_dirs(folder: Path) -> list[Path]:
    """Folders in `folder` that hold one version of something, sorted by name."""
    return [folder / name for name in _subfolders(folder) if is_content_name(name)]


def is_content_name(name: str) -> bool:
    """Whether a folder of this name holds one version of a unit."""
    return _CONTENT.fullmatch(name) is not None


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name was being written."""
    return name.startswith(TEMPORARY)


def temporary_beside(folder: Path) -> Path:
    """A new path for something to be written inside `folder` and renamed there."""
    return folder / f"{TEMPORARY}{uuid.uuid4().hex[:16]}"


def _folders(data_id: DataId) -> tuple[str, ...]:
    """Folders of a data id below its product; checks that the key has the parts its product asks for."""
    check_collection(data_id.collection)
    product = get_product(data_id.product)
    expected = KEY_PARTS[product.partitions]
    if len(data_id.parts) != len(expected):
        raise BadInput(f"{data_id}: the partition key of {product.name} is {JOIN.join(expected).upper()}")
    if data_id.unit == WHOLE:
        raise BadInput(f"{data_id}: a unit cannot be called {WHOLE!r}")
    return (*data_id.parts, data_id.unit or WHOLE)


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder` that pass the allow-list, sorted; symbolic links are not followed."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if not name.startswith("."))
