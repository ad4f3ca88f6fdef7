"""The repository: reading and publishing products by data id, for stages and for people.

Every read follows a manifest, checks structure and names product, path and cure when something is wrong. Paths are
`layout.py`'s, formats `files.py`'s, mosaics of skycells `mosaic.py`'s.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pandas as pd
from astropy.io import fits

from lap_assets.errors import BadInput, Cleaned, Conflict, IntegrityError, NotFound
from lap_assets.model.ids import DataId, Pin, join_key
from lap_assets.model.image import MaskedImage
from lap_assets.model.products import CALIBRATION_COLLECTION, CALIBRATIONS, KEY_PARTS, PRODUCTS, Product, get_product
from lap_assets.model.states import CLEANED, DONE
from lap_assets.store import (
    cleaning,
    configs,
    files,
    fits_format,
    journal,
    logs,
    publish,
    refcat,
    table_format,
    versions,
)
from lap_assets.store.expressions import Term, match_choices, matches, parse_expression, resolve_key, resolve_terms
from lap_assets.store.fits_format import MalformedFile, Plane
from lap_assets.store.layout import Layout
from lap_assets.store.manifest import Manifest, OtherFormat, decode_manifest
from lap_assets.store.mosaic import mosaic_images, plan_mosaic
from lap_assets.store.provenance import sort_pins, take_fingerprint
from lap_assets.store.rows import RowReader

T = TypeVar("T")
KEY_NAMES = ("exposure", "cell", "band", "chip", "skycell", "camera", "kind", "valid_from")
COLUMNS = (
    "data_id",
    "collection",
    "product",
    "partition",
    "unit",
    *KEY_NAMES,
    "state",
    "reason",
    "bytes",
    "content_sha256",
    "seconds",
)


@dataclass(frozen=True)
class Repo:
    """The products of a repository.

    Attributes
    ----------
    root : Path
        Folder of the repository; products lie in `root/store`.
    collections : tuple of str
        Chain that `get`, `query` and `uri` fall through, first hit wins. Reads by data id are exact.
    """

    root: Path
    collections: tuple[str, ...] = ("main",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root).resolve())
        chain = (self.collections,) if isinstance(self.collections, str) else tuple(self.collections)
        object.__setattr__(self, "collections", chain)

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    @property
    def cameras(self) -> Path:
        """Folder of the repository's own camera files."""
        return self.layout.cameras

    # ---- manifests

    def manifest(self, data_id: DataId) -> Manifest | None:
        """The manifest of a unit, or None; raises `IntegrityError` for a damaged one."""
        path = self.layout.manifest(data_id)
        try:
            with self._open(path) as stream:
                return decode_manifest(stream.read(), data_id)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OtherFormat as error:
            raise IntegrityError(f"{data_id}: {path}: {error}") from None
        except (MalformedFile, IntegrityError, OSError) as error:
            raise self._integrity_error(data_id, path, error) from None

    def pin(self, data_id: DataId) -> Pin | None:
        """The unit pinned by its content, or None if it has none; its files may have been cleaned."""
        manifest = self.manifest(data_id)
        return manifest.pin if manifest and manifest.has_content else None

    def units(self, collection: str, product: str, partition: str) -> list[DataId]:
        """Units of a partition that have a manifest, sorted."""
        found = self.layout.find_units(collection, product, partition)
        return [data_id for data_id in found if self.layout.manifest(data_id).is_file()]

    def all_units(self, collection: str | None = None, product: str | None = None) -> list[DataId]:
        """Units of a collection and product (or of all) that have a manifest, sorted."""
        collections = self.layout.collections() if collection is None else [collection]
        products = sorted(PRODUCTS) if product is None else [product]
        found = (d for c in collections for p in products for d in self.layout.find_units(c, p))
        return [data_id for data_id in found if self.layout.manifest(data_id).is_file()]

    def has_files(self, data_id: DataId) -> bool:
        """Whether the unit has a manifest and all its members are there in full size; reads no pixel."""
        manifest = self.manifest(data_id)
        if manifest is None or manifest.state == CLEANED:
            return False
        paths = [(self.layout.member(data_id, manifest.directory, n), r.bytes) for n, r in manifest.members.items()]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def has_version(self, pin: Pin) -> bool:
        """Whether a unit can be read as it was pinned, replaced since or not."""
        manifest = self.manifest(pin.data_id)
        if manifest is None or manifest.state != DONE:
            return False
        if manifest.content_sha256 == pin.content:
            return self.has_files(pin.data_id)
        try:
            return bool(versions.find_version(self.layout, pin))
        except Conflict:
            return False

    # ---- reading by data id

    def read_image(
        self, unit: DataId | Pin, member: str = "image.fits", planes: Sequence[str] | None = None, full: bool = False
    ) -> MaskedImage:
        """An image; `planes` reads only these (the others are None), `full` also verifies the file's hashes."""
        return self._decode(unit, member, planes, full, fits_format.decode_image)

    def read_planes(
        self, unit: DataId | Pin, member: str, planes: Sequence[str] | None = None, full: bool = False
    ) -> dict[str, Plane]:
        """Planes of a FITS member as (array, header), by HDU name."""
        return self._decode(unit, member, planes, full, fits_format.decode_planes)

    def _decode(
        self, unit: DataId | Pin, member: str, planes: Sequence[str] | None, full: bool, decode: Callable[..., T]
    ) -> T:
        names = None if planes is None else tuple(planes)
        data_id = unit.data_id if isinstance(unit, Pin) else unit
        needed = {one.name: one.planes for one in get_product(data_id.product).members}.get(member, ())
        return self._read(unit, member, lambda stream: decode(stream, names, needed), full)

    def open_rows(self, unit: DataId | Pin, member: str, planes: Sequence[str]) -> RowReader:
        """Stretches of rows of planes of a FITS member: `with repo.open_rows(…) as rows: rows.read(0, 64)`."""
        data_id = unit.data_id if isinstance(unit, Pin) else unit
        explain = partial(self._integrity_error, data_id, self.layout.unit_dir(data_id))
        return self._read(unit, member, lambda stream: RowReader(stream, member, planes, explain), full=False)

    def read_table(self, unit: DataId | Pin, member: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """A table; units of its columns in `df.attrs["units"]`."""
        chosen = None if columns is None else list(columns)
        return table_format.decode_table(self.read_bytes(unit, member), chosen)[0]

    def read_json(self, unit: DataId | Pin, member: str) -> dict[str, Any]:
        """A JSON object."""
        return table_format.decode_json(self.read_bytes(unit, member))

    def read_bytes(self, unit: DataId | Pin, member: str) -> bytes:
        """The bytes of a member, verified by their SHA-256."""
        return self._read(unit, member, lambda stream: stream.read(), full=True)

    def path(self, unit: DataId | Pin, member: str) -> Path:
        """Where a member lies at this moment, for programs that want a file."""
        return self._read(unit, member, lambda stream: Path(stream.name), full=False, locate=True)

    def _read(
        self, unit: DataId | Pin, member: str, action: Callable[[BinaryIO], T], full: bool, locate: bool = False
    ) -> T:
        data_id = unit.data_id if isinstance(unit, Pin) else unit
        for attempt in (1, 2):
            manifest = self._require_done(data_id)
            path, record = self._locate(unit, manifest, member)
            try:
                with self._open(path) as stream:
                    if locate:
                        return path
                    (files.check_hash if full else files.check_size)(stream, record)
                    stream.seek(0)
                    return action(stream)
            except FileNotFoundError:
                # replaced between the two reads: the new manifest tells where
                if attempt == 2:
                    raise self._integrity_error(data_id, path, "the file is missing") from None
            except (MalformedFile, IntegrityError, OSError) as error:
                raise self._integrity_error(data_id, path, error) from None
        raise AssertionError("unreachable")

    def _require_done(self, data_id: DataId) -> Manifest:
        manifest = self.manifest(data_id)
        if manifest is None:
            raise NotFound(f"{data_id} is missing; make it with: {recreate_command(data_id)}")
        if manifest.state == CLEANED:
            raise _explain_cleaned(manifest)
        if manifest.state != DONE:
            reason = f" ({manifest.reason})" if manifest.reason else ""
            raise NotFound(f"{data_id} has no files: it is {manifest.state}{reason}")
        return manifest

    def _locate(self, unit: DataId | Pin, manifest: Manifest, member: str) -> tuple[Path, files.MemberRecord]:
        data_id, directory, members = manifest.data_id, manifest.directory, manifest.members
        if isinstance(unit, Pin) and unit.content != manifest.content_sha256:
            directory, members = versions.find_version(self.layout, unit)
        if member not in members:
            raise NotFound(f"{data_id} has no member {member!r}; there are: {', '.join(members)}")
        return self.layout.member(data_id, directory, member), members[member]

    def _open(self, path: Path) -> BinaryIO:
        publish.check_inside(path.parent)
        return files.open_member(path)

    def _integrity_error(self, data_id: DataId, path: Path, problem: Any) -> IntegrityError:
        return IntegrityError(
            f"{data_id}: {path}: {problem}; set it aside and re-create it with: lap fsck --full && "
            f"{recreate_command(data_id)}"
        )

    # ---- publishing

    def publish(
        self,
        data_id: DataId,
        members: Mapping[str, Any],
        *,
        inputs: Iterable[Pin],
        recipe: str,
        config_sha256: str,
        code: int,
        metrics: Mapping[str, Any],
        state: str = DONE,
        reason: str = "",
        fence: int = 0,
        run_id: str = "",
        seconds: float = 0.0,
        refers_to: Pin | None = None,
    ) -> Manifest:
        """Publish one unit whole or not at all; see `publish.publish_unit` for the errors."""
        manifest = Manifest(
            data_id=data_id,
            state=state,
            reason=reason,
            inputs=sort_pins(tuple(inputs)),
            recipe=recipe,
            config_sha256=config_sha256,
            code=code,
            fingerprint=take_fingerprint(),
            run_id=run_id,
            metrics=table_format.simplify(dict(metrics), f"{data_id}: metrics"),
            fence=fence,
            seconds=seconds,
            refers_to=refers_to,
        )
        return publish.publish_unit(self.layout, manifest, members)

    def clean(self, data_id: DataId, reason: str = "nothing needs it", fence: int | None = None) -> int:
        """Remove the files of a unit and keep its manifest; returns the bytes freed (see `cleaning.clean_unit`)."""
        manifest = self.manifest(data_id)
        return 0 if manifest is None else cleaning.clean_unit(self.layout, manifest, reason, fence)

    # ---- reference catalogues, settings, journal

    def write_refcat(self, name: str, table: pd.DataFrame) -> str:
        """Make `table` the reference catalogue called `name`; returns its content hash."""
        return refcat.write_refcat(self.layout, name, table)

    def read_refcat(self, name: str, ra_deg: float, dec_deg: float, radius_deg: float) -> pd.DataFrame:
        """Rows of a reference catalogue within a cone, sorted by source_id."""
        return refcat.read_refcat(self.layout, name, ra_deg, dec_deg, radius_deg)

    def keep_config(self, document: bytes) -> str:
        """Keep settings that products are made with; returns their SHA-256."""
        return configs.keep_config(self.layout, document)

    def read_config(self, sha256: str) -> bytes | None:
        """The settings of this hash, or None; raises `IntegrityError` for damaged ones."""
        return configs.read_config(self.layout, sha256)

    def append_journal(self, entry: Mapping[str, Any]) -> None:
        """Append one definition to the journal, durably."""
        journal.append_entry(self.layout.journal, entry)

    def read_journal(self) -> list[dict[str, Any]]:
        """All entries of the journal, in order."""
        return list(journal.read_entries(self.layout.journal))

    def keep_log(self, data_id: DataId) -> AbstractContextManager[None]:
        """Keep what the package logs meanwhile as the unit's log."""
        return logs.keep_log(self.layout, data_id)

    def read_log(self, data_id: DataId) -> str:
        """The log of the last attempt at a unit."""
        return logs.read_log(self.layout, data_id)

    # ---- for people

    def get(self, product: str, member: str | None = None, collection: str | None = None, **keys: Any) -> Any:
        """A product by name and keys: `repo.get("stacks", cell="demo.0", band="r", skycell="03")`.

        Keys are those of the product table, their aliases or unambiguous beginnings. Without `skycell=` the images
        of a cell are put together on the cell's grid and tables of all units are concatenated.

        Returns
        -------
        MaskedImage, dict of planes, DataFrame, dict or bytes, after the member's kind.

        Raises
        ------
        NotFound, BadInput, IntegrityError
        """
        name = member or get_product(product).members[0].name
        found = self.find(product, collection, **keys)
        manifests = [self.manifest(data_id) for data_id in found]
        done = [one.data_id for one in manifests if one is not None and one.state == DONE]
        if gone := [one for one in manifests if one is not None and one.state == CLEANED]:
            raise _explain_cleaned(gone[0])  # also where other units are there: a picture of the rest would mislead
        if not done:
            raise self._explain_missing(product, collection, keys, [one for one in manifests if one is not None])
        if len(done) == 1:
            return self._read_any(done[0], name)
        if len({data_id.partition for data_id in done}) > 1:
            raise BadInput(_describe_choice(product, done))
        if name.endswith(".parquet"):
            tables = [self.read_table(data_id, name) for data_id in done]
            return table_format.concatenate_tables(tables, get_product(product).unit, [one.unit for one in done])
        if name.endswith(".fits") and get_product(product).unit == "skycell":
            grid = plan_mosaic([self.read_header(data_id, name) for data_id in done])
            return mosaic_images(grid, (self.read_image(data_id, name) for data_id in done))
        raise BadInput(_describe_choice(product, done))

    def uri(self, product: str, member: str | None = None, collection: str | None = None, **keys: Any) -> Path:
        """Path of one member at this moment (it moves when the product is made again)."""
        name = member or get_product(product).members[0].name
        found = self.find(product, collection, **keys)
        if not found:
            raise self._explain_missing(product, collection, keys, [])
        if len(found) > 1:
            raise BadInput(_describe_choice(product, found))
        return self.path(found[0], name)

    def glob(self, pattern: str) -> list[DataId]:
        """Units whose data id (`main/stacks/demo.0|r/03`) matches a glob, sorted."""
        return [data_id for data_id in self.all_units() if fnmatch.fnmatchcase(str(data_id), pattern)]

    def find(self, product: str, collection: str | None = None, **keys: Any) -> list[DataId]:
        """Units with a manifest that match the keys, from the first collection of the chain that has any."""
        row = get_product(product)
        wanted = {resolve_key(key, row.keys): str(value) for key, value in keys.items() if value is not None}
        for one in self._chain(row.name, collection):
            found = self._find_exact(one, row, wanted)
            if found is None:
                found = [d for d in self.all_units(one, product) if _match_keys(wanted, read_keys(d))]
            if found:
                return found
        return []

    def query(
        self,
        product: str | None = None,
        where: str | None = None,
        collection: str | None = None,
        tags: Callable[[DataId], Mapping[str, Any]] = lambda data_id: {},
    ) -> pd.DataFrame:
        """Units as a table: data id, keys, state, bytes, content and metrics; of each unit the first in the chain.

        Parameters
        ----------
        where : str, optional
            Expression over these columns (`expressions.py`): `band=g^r fwhm_arcsec<1.2`.
        tags : callable
            Further columns of a unit, which the store knows nothing of.
        """
        terms = parse_expression(where)
        products = [get_product(product).name] if product else list(PRODUCTS)
        rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        for name in products:
            for one in self._chain(name, collection):
                for data_id in self.all_units(one, name):
                    key = (name, data_id.partition, data_id.unit)
                    if key not in rows:
                        rows[key] = self._describe(data_id) | tags(data_id)
        chosen = _select_rows(list(rows.values()), terms)
        return pd.DataFrame(chosen) if chosen else pd.DataFrame(columns=list(COLUMNS))

    def _describe(self, data_id: DataId) -> dict[str, Any]:
        keys = read_keys(data_id)
        row: dict[str, Any] = {"data_id": str(data_id)}
        row |= {name: getattr(data_id, name) for name in ("collection", "product", "partition", "unit")}
        row |= {name: keys.get(name) for name in KEY_NAMES}
        try:
            manifest = self.manifest(data_id)
        except IntegrityError as error:
            return row | {"state": "corrupt", "reason": str(error), "bytes": 0, "content_sha256": "", "seconds": 0.0}
        if manifest is None:
            return row | {"state": "missing", "reason": "", "bytes": 0, "content_sha256": "", "seconds": 0.0}
        row |= {"state": manifest.state, "reason": manifest.reason, "bytes": manifest.bytes}
        row |= {"content_sha256": manifest.content_sha256, "seconds": manifest.seconds}
        return row | {name: value for name, value in manifest.metrics.items() if row.get(name) is None}

    def _chain(self, product: str, collection: str | None) -> tuple[str, ...]:
        if get_product(product).partitions == CALIBRATIONS:
            return (CALIBRATION_COLLECTION,)
        return self.collections if collection is None else (collection,)

    def _find_exact(self, collection: str, row: Product, wanted: Mapping[str, str]) -> list[DataId] | None:
        """Units found without looking through the product's folders; None if that takes a look."""
        parts = [wanted.get(key) for key in KEY_PARTS[row.partitions]]
        if None in parts:
            return None
        try:
            partition = join_key(*parts)
            if row.unit and row.unit not in wanted:
                return self.units(collection, row.name, partition) or None
            data_id = DataId(collection, row.name, partition, wanted.get(row.unit, ""))
        except BadInput:
            return None  # a list or range: compared with what there is
        return [data_id] if self.layout.manifest(data_id).is_file() else None

    def _explain_missing(
        self, product: str, collection: str | None, keys: Mapping[str, Any], manifests: Sequence[Manifest]
    ) -> NotFound:
        text = " ".join(f"{key}={value}" for key, value in keys.items() if value is not None)
        if manifests:
            one = manifests[0]
            return NotFound(f"{product} {text}: {one.data_id} has no files, it is {one.state} ({one.reason})")
        chain = ", ".join(self._chain(product, collection))
        command = f"lap run --select '{text}' --to {product}" if text else f"lap run --to {product}"
        return NotFound(f"no {product} for {text or 'any key'} in collection {chain}; make it with: {command}")

    def _read_any(self, data_id: DataId, name: str) -> Any:
        kind = Path(name).suffix
        if kind == ".fits":
            planes = self.read_planes(data_id, name)
            return fits_format.image_of_planes(planes) if {"SCI", "MASK", "VAR"} <= set(planes) else planes
        read = {".parquet": self.read_table, ".json": self.read_json}.get(kind, self.read_bytes)
        return read(data_id, name)

    def read_header(self, data_id: DataId, name: str) -> fits.Header:
        """Header of a member's first image, without its pixels."""
        return self._read(data_id, name, fits_format.decode_first_header, full=False)


def read_keys(data_id: DataId) -> dict[str, str]:
    """Names and values of the keys of a data id: `{"cell": "demo.0", "band": "r", "skycell": "03"}`."""
    row = get_product(data_id.product)
    values = (*data_id.parts, data_id.unit) if row.unit else data_id.parts
    return dict(zip(row.keys, values, strict=True))


def recreate_command(data_id: DataId) -> str:
    """The command that makes a unit again."""
    row = get_product(data_id.product)
    keys = dict(zip(KEY_PARTS[row.partitions], data_id.parts, strict=True))
    return f"lap run --select '{' '.join(f'{key}={value}' for key, value in keys.items())}' --to {row.name}"


def _explain_cleaned(manifest: Manifest) -> Cleaned:
    data_id = manifest.data_id
    return Cleaned(f"{data_id} was cleaned ({manifest.reason}); re-create it with: lap recreate '{data_id}'")


def _match_keys(wanted: Mapping[str, str], keys: Mapping[str, str]) -> bool:
    return all(match_choices(choices, keys.get(key, "")) for key, choices in wanted.items())


def _select_rows(rows: list[dict[str, Any]], terms: tuple[Term, ...]) -> list[dict[str, Any]]:
    if not terms:
        return rows
    known = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
    resolved = resolve_terms(terms, known)
    return [row for row in rows if matches(resolved, row)]


def _describe_choice(product: str, found: Sequence[DataId]) -> str:
    """One line that says which keys tell the units that were found apart."""
    values: dict[str, set[str]] = {}
    for data_id in found:
        for key, value in read_keys(data_id).items():
            values.setdefault(key, set()).add(value)
    shown = {key: "^".join(sorted(some)[:8]) + ("…" if len(some) > 8 else "") for key, some in values.items()}
    open_keys = [f"{key}={shown[key]}" for key, some in values.items() if len(some) > 1]
    return f"{product}: {len(found)} units match; choose one by {' '.join(open_keys)}"
