"""Members: one file of a unit, written with its hashes and read back with its structure checked.

Joins the formats (`fits_format.py`, `table_format.py`) and the product table. Which directory a member lies in and
when it becomes visible is `publish.py`'s.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from lap_assets.errors import PermanentFailure
from lap_assets.model.ids import check_name
from lap_assets.model.image import MaskedImage
from lap_assets.model.products import Member, Product
from lap_assets.store import fits_format, table_format
from lap_assets.store.fits_format import FilePart, ImageHdu, MalformedFile
from lap_assets.store.plane_passes import measure_plane
from lap_assets.store.side_by_side import map_planes

NOT_CONTENT = frozenset({"preview.png"})  # pictures for people: listed and hashed, but no part of the content
_STRETCH = 1 << 22  # bytes after which the kernel is told to begin with writing them
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class MemberRecord:
    """What a manifest says of one member.

    Attributes
    ----------
    name : str
    bytes : int
        Size of the file.
    parts_sha256 : str
        Over every byte of the file. Of a FITS file it is the SHA-256 over the SHA-256 of each of its parts (header,
        data and padding of each HDU), which is not what `sha256sum` tells: so pixels are hashed once, for this and
        for the content. Of any other file, it is its SHA-256.
    content_sha256 : str
        Over what it decodes to.
    """

    name: str
    bytes: int
    parts_sha256: str
    content_sha256: str


# ---- writing


def check_members(product: Product, members: Mapping[str, Any], complete: bool = True) -> dict[str, Any]:
    """The members ready to be written, in the order of their names; `complete`: no other members come besides.

    Raises
    ------
    PermanentFailure
        A member the product table asks for is missing, one is not in it, planes are missing or differ in shape,
        columns are missing, or a type cannot be stored. Whether pixels are finite is looked at later, while they are
        in the processor's cache.
    """
    known = {member.name: member for member in product.members}
    missing = [name for name, member in known.items() if name not in members and not member.optional]
    if missing and complete:
        raise PermanentFailure(f"member {', '.join(missing)} is missing; the product table asks for it")
    ready = {}
    for name in sorted(members):
        if name not in known:
            raise PermanentFailure(f"member {name} is not in the product table, which has: {', '.join(known)}")
        ready[name] = _check_value(known[name], members[name])
    return ready


def _check_value(member: Member, value: Any) -> Any:
    kind = Path(check_name(member.name, "member")).suffix
    if kind == ".fits":
        return _check_planes(member, value)
    if kind == ".parquet" and isinstance(value, pd.DataFrame):
        _check_columns(member, list(value.columns))
        return value
    if kind == ".json" and isinstance(value, Mapping):
        return table_format.encode_json(value)
    if kind not in (".fits", ".parquet", ".json") and isinstance(value, bytes):
        if kind == ".png" and not value.startswith(_PNG):
            raise PermanentFailure(f"{member.name}: these bytes are no PNG picture")
        return value
    raise PermanentFailure(f"{member.name}: cannot be written from {type(value).__name__}")


def _check_planes(member: Member, value: Any) -> dict[str, ImageHdu]:
    if isinstance(value, MaskedImage):
        value = fits_format.planes_of_image(value)
    if not isinstance(value, Mapping):
        raise PermanentFailure(f"{member.name}: cannot be written from {type(value).__name__}")
    hdus: dict[str, ImageHdu] = {}
    for name, plane in value.items():
        array, header = plane if isinstance(plane, tuple) else (plane, fits_format.fits.Header())
        if check_name(name, "plane") != name.upper():
            raise PermanentFailure(f"{member.name}: plane {name} must be written in capitals")
        hdus[name] = fits_format.prepare_plane(name, array, header)
    check_structure(member, {name: hdu.array for name, hdu in hdus.items()})
    return hdus


def check_structure(member: Member, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise `PermanentFailure` unless the planes of a FITS member are those of the product table."""
    missing = [name for name in member.planes if name not in arrays]
    if missing or not arrays:
        raise PermanentFailure(f"{member.name}: plane {', '.join(missing) or 'of any name'} is missing")
    shapes = {name: array.shape for name, array in arrays.items()}
    if member.planes and len(set(shapes.values())) > 1:
        raise PermanentFailure(f"{member.name}: planes differ in shape: {shapes}")


def check_finite(member: str, name: str, array: np.ndarray, n_not_finite: int) -> None:
    """Raise `PermanentFailure` if `n_not_finite` pixels of a plane of a member are not."""
    if n_not_finite:
        where = ", ".join(str(int(i)) for i in np.argwhere(~np.isfinite(array))[0])
        raise PermanentFailure(f"{member}: plane {name} is not finite in {n_not_finite} pixels, first [{where}]")


def _check_columns(member: Member, columns: Sequence[str]) -> None:
    missing = [name for name in member.columns if name not in columns]
    if missing:
        raise PermanentFailure(f"{member.name}: column {', '.join(missing)} is missing")


def compress_members(ready: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield members as `check_members` made them, the planes of FITS members tile-compressed, one member at a time.

    The noise of images that come without a variance is that of `image.fits`, which stands before them.
    """
    variance = None
    for name, value in ready:
        if isinstance(value, dict):
            _check_all_finite(name, value)  # what is not cannot be rounded
            variance = value["VAR"].array if name == "image.fits" and "VAR" in value else variance
            value = fits_format.compress_hdus(value, variance)
        yield name, value


def write_members(
    folder: Path, values: Iterable[tuple[str, Any]], provenance: Mapping[str, str]
) -> dict[str, MemberRecord]:
    """Write what `check_members` returned to new files in `folder`, each hashed while it is written.

    All are fsynced at the end: one is on its way to the disk while the next is encoded. They stay open until then, so
    that no error of the disk is missed. Raises `PermanentFailure` for pixels that are not finite.
    """
    records, streams = {}, []
    with ExitStack() as stack:
        for name, value in values:
            streams.append(stack.enter_context((folder / name).open("xb", buffering=0)))
            records[name] = _write_member(streams[-1], name, value, provenance)
        for stream in streams:
            os.fsync(stream.fileno())
    return records


def _write_member(stream: BinaryIO, name: str, value: Any, provenance: Mapping[str, str]) -> MemberRecord:
    if isinstance(value, dict):
        return _write_planes(stream, name, value, provenance)
    data, content = table_format.encode_table(value) if isinstance(value, pd.DataFrame) else (value, "")
    digest = _write_part(stream.fileno(), FilePart(len(data), lambda: [data]), 0).hex()
    return MemberRecord(name, len(data), digest, content or digest)


def _write_planes(stream: BinaryIO, name: str, hdus: Mapping[str, Any], provenance: Mapping[str, str]) -> MemberRecord:
    """Write a FITS member, every byte hashed once."""
    parts = list(fits_format.encode_hdus(hdus, provenance))
    places, handle = [0, *accumulate(part.size for part in parts)], stream.fileno()
    # the data first: their sums, which the headers hold, are taken while they are written
    data = map_planes(
        lambda k: _write_part(handle, parts[k], places[k]),
        range(len(parts))[fits_format.DATA],
        [part.size for part in parts[fits_format.DATA]],
    )
    _check_all_finite(name, hdus)
    digests = [b"" if k % 3 == 2 else _write_part(handle, part, places[k]) for k, part in enumerate(parts)]
    digests[fits_format.DATA] = data
    return MemberRecord(name, places[-1], *fits_format.hash_written(hdus, digests))


def _check_all_finite(member: str, hdus: Mapping[str, Any]) -> None:
    for name, hdu in hdus.items():
        if isinstance(hdu, ImageHdu):
            check_finite(member, name, hdu.array, hdu.n_not_finite)


def _write_part(handle: int, part: FilePart, place: int) -> bytes:
    """Write a part of a file where it belongs, piece by piece while each is in the processor's cache; its SHA-256.

    The kernel is told to begin with each stretch at once: fsync then waits for the last ones only.
    """
    digest, begun = hashlib.sha256(), place
    for piece in part:
        digest.update(piece)
        view = memoryview(piece)
        while view:
            count = os.pwrite(handle, view, place)
            view, place = view[count:], place + count
        if place - begun >= _STRETCH:
            os.posix_fadvise(handle, begun, place - begun, os.POSIX_FADV_DONTNEED)
            begun = place
    return digest.digest()


def combine_members(records: Iterable[MemberRecord]) -> str:
    """Content hash of a unit from those of its members."""
    counted = sorted((record.name, record.content_sha256) for record in records if record.name not in NOT_CONTENT)
    lines = (f"{name} {content}\n" for name, content in counted)
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()


# ---- reading


def open_member(path: Path) -> BinaryIO:
    """Open a member for reading; a symbolic link in its place is an error (`OSError`)."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)


def check_size(stream: BinaryIO, record: MemberRecord) -> None:
    """Raise `MalformedFile` if an open member has not the size its manifest says."""
    size = os.fstat(stream.fileno()).st_size
    if size != record.bytes:
        raise MalformedFile(f"{size} bytes on disk, the manifest says {record.bytes}")


def hash_file(stream: BinaryIO) -> str:
    """SHA-256 of an open member from its beginning."""
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_member(stream: BinaryIO, name: str) -> tuple[str, dict[str, bytes]]:
    """`parts_sha256` of an open member, from its beginning, and of a FITS file the SHA-256 of the data of each HDU.

    Raises `MalformedFile` where a header of a FITS file cannot be read.
    """
    if not name.endswith(".fits"):
        return hash_file(stream), {}
    stream.seek(0)
    return fits_format.hash_parts(stream)


def check_hash(stream: BinaryIO, record: MemberRecord) -> dict[str, bytes]:
    """Raise `MalformedFile` if the size or any byte of an open member differs; returns data as of `hash_member`."""
    check_size(stream, record)
    digest, data = hash_member(stream, record.name)
    if digest != record.parts_sha256:
        raise MalformedFile("the bytes differ from the parts_sha256 in the manifest")
    return data


def verify_member(stream: BinaryIO, record: MemberRecord, member: Member | None) -> None:
    """Read an open member to the last byte; raises `MalformedFile` unless size, hash, structure and content agree."""
    data = check_hash(stream, record)
    stream.seek(0)
    if decode_content(stream, record.name, member, data) != record.content_sha256:
        raise MalformedFile("the decoded content differs from the content_sha256 in the manifest")


def describe_folder(folder: Path, product: Product) -> dict[str, MemberRecord]:
    """Records of all members in a content directory, from reading them to the last byte."""
    known = {member.name: member for member in product.members}
    records = {}
    for path in sorted(folder.iterdir()):
        with open_member(path) as stream:
            digest, data = hash_member(stream, path.name)
            size = os.fstat(stream.fileno()).st_size
            stream.seek(0)
            content = decode_content(stream, path.name, known.get(path.name), data)
            records[path.name] = MemberRecord(path.name, size, digest, content)
    return records


def decode_content(stream: BinaryIO, name: str, member: Member | None, hashed: Mapping[str, bytes]) -> str:
    """Content hash of an open member, from what it decodes to; checks the structure on the way.

    `hashed` is what `hash_member` told of it.
    """
    kind = Path(name).suffix
    if kind == ".fits":
        arrays, content = fits_format.hash_decoded(stream, hashed)
        if member:
            _as_malformed(check_structure, member, arrays)
            for plane, array in arrays.items():
                _as_malformed(check_finite, member.name, plane, array, measure_plane(array)[1])
        return content
    data = stream.read()
    if kind == ".parquet":
        table, content = table_format.decode_table(data)
        if member:
            _as_malformed(_check_columns, member, list(table.columns))
        return content
    if kind == ".json":
        table_format.decode_json(data)
    return hashlib.sha256(data).hexdigest()


def _as_malformed(check: Any, *arguments: Any) -> None:
    try:
        check(*arguments)
    except PermanentFailure as error:
        raise MalformedFile(str(error)) from None
