"""FITS files of the store: an empty primary HDU and named image planes, to bytes and back.

The bytes depend on the planes, their headers and the provenance cards alone (no clock, path or library version in
them). Planes are written as they are, or as compressed images (`fits_tiles.py`); headers and checksums are
`fits_headers.py`'s. What a product must contain is checked in `files.py`, not here.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from typing import BinaryIO

import numpy as np
from astropy.io import fits

from lap_assets.errors import PermanentFailure
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.store import fits_tiles, quantisation
from lap_assets.store.fits_headers import (
    BITPIX,
    BLOCK,
    MalformedFile,
    encode_header,
    fold_sum,
    measure_header,
    parse_cards,
    parse_header,
    read_header,
    read_structure,
    select_content,
    select_for_readers,
    select_wcs,
    select_wcs_cards,
    write_card,
    write_content,
    write_image_cards,
)
from lap_assets.store.fits_tiles import TiledHdu
from lap_assets.store.plane_passes import choose_turn, copy_turned, measure_plane
from lap_assets.store.side_by_side import map_planes

__all__ = ["BLOCK", "MalformedFile", "select_wcs_cards"]

Plane = tuple[np.ndarray, fits.Header]
Reader = Callable[[memoryview, int], int]  # (memory to fill, first byte in the file) -> bytes read

PIECE = 1 << 18  # bytes read and turned round at a time: stays in the processor's cache
DATA = slice(2, None, 3)  # of the parts of a file, those that are the data of a plane
_WRITTEN = 1 << 19  # bytes turned round, hashed and written at a time


@dataclass
class ImageHdu:
    """A plane ready to be written as it is.

    What is known only from looking at its pixels, `datasum` and `n_not_finite`, is found while they are written, or
    when it is asked for.

    Attributes
    ----------
    name : str
    array : array in the machine's byte order, contiguous
    content : str
        Text of the cards that are content.
    """

    name: str
    array: np.ndarray
    content: str
    _measured: tuple[int, int] | None = None

    @property
    def datasum(self) -> int:
        return fold_sum(self._measure()[0])

    @property
    def n_not_finite(self) -> int:
        """Pixels that are NaN or infinite."""
        return self._measure()[1]

    def _measure(self) -> tuple[int, int]:
        if self._measured is None:
            self._measured = measure_plane(self.array)
        return self._measured

    @property
    def size(self) -> int:
        return self.array.nbytes

    @property
    def cards(self) -> str:
        """Text of the header of the HDU, without checksums."""
        return write_image_cards(self.name, self.array.dtype, self.array.shape) + self.content

    def make_digest(self, data: bytes) -> bytes:
        """Digest of the plane, from the SHA-256 of its bytes in the file."""
        return digest_plane(self.name, self.array.dtype, self.array.shape, self.content, data)

    def make_pieces(self) -> Iterator[memoryview]:
        """The big-endian bytes; a piece is valid until the next one is asked for."""
        flat = self.array.reshape(-1)
        step = _WRITTEN // flat.itemsize
        buffer = np.empty(min(flat.size, step), flat.dtype)
        total, n_not_finite = 0, 0
        for start in range(0, flat.size, step):
            piece = flat[start : start + step]
            found = measure_plane(piece, start)
            total, n_not_finite = total + found[0], n_not_finite + found[1]
            out = buffer[: piece.size]
            copy_turned(piece, out)
            yield memoryview(out).cast("B")
        self._measured = total, n_not_finite


@dataclass(frozen=True)
class FilePart:
    """A part of a file that has a SHA-256 of its own; its bytes are made as one iterates, each piece valid until the
    next.
    """

    size: int
    make_pieces: Callable[[], Iterable[bytes | memoryview]]

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return iter(self.make_pieces())


# ---- to bytes


def planes_of_image(image: MaskedImage) -> dict[str, tuple[np.ndarray, str]]:
    """Planes SCI, MASK, VAR and further ones of an image, each with its content cards as text; the image's header goes
    to SCI, its WCS to all.
    """
    content, unit = write_content(image.header), image.header.get("BUNIT")
    wcs = select_wcs(content)
    planes = {
        "SCI": (image.sci, content),
        "MASK": (image.mask, wcs + _write_mask_bits()),
        "VAR": (image.var, wcs + (write_card("BUNIT", f"({unit})2") if unit else "")),
    }
    return planes | {name: (plane, wcs) for name, plane in image.planes.items()}


@cache
def _write_mask_bits() -> str:
    cards = ((f"MB{bit.bit_length() - 1:02d}", str(bit.name)) for bit in Mask)
    return "".join(write_card(key, name, "name of this mask bit") for key, name in cards)


def image_of_planes(planes: Mapping[str, Plane]) -> MaskedImage:
    """The image whose planes were read; planes left out are `None`."""
    header = next((planes[name][1] for name in ("SCI", *planes) if name in planes), fits.Header())
    arrays = {name: array for name, (array, _) in planes.items()}
    sci, mask, var = (arrays.pop(name, None) for name in ("SCI", "MASK", "VAR"))
    return MaskedImage(sci=sci, mask=mask, var=var, header=header, planes=arrays)


def prepare_plane(name: str, array: np.ndarray, header: fits.Header | str) -> ImageHdu:
    """A plane ready to be written; raises `PermanentFailure` for types and cards FITS does not have.

    Of `header`, or its text, the cards that are content count.
    """
    return ImageHdu(name, normalise_plane(name, array), write_content(header))


def normalise_plane(name: str, array: np.ndarray) -> np.ndarray:
    """`array` contiguous and in the machine's byte order; raises `PermanentFailure` for types FITS does not have."""
    array = np.asarray(array)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.str[1:] not in BITPIX or array.ndim == 0 or array.size == 0:
        raise PermanentFailure(f"plane {name}: cannot store type {array.dtype} of shape {array.shape} in FITS")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def compress_hdus(hdus: Mapping[str, ImageHdu], variance: np.ndarray | None) -> dict[str, ImageHdu | TiledHdu]:
    """The planes tile-compressed where that keeps what they say.

    Integers stay as they are to the bit. Floats are rounded: VAR to 1e-3 of its value, SCI to a small fraction of the
    noise that VAR tells, that of the file itself or else `variance`. All other planes are left alone, and those whose
    values are too far apart.
    """
    noise = hdus["VAR"].array if "VAR" in hdus else variance
    made = map_planes(partial(_compress_hdu, noise=noise), list(hdus.values()), [hdu.size for hdu in hdus.values()])
    return dict(zip(hdus, made, strict=True))


def _compress_hdu(hdu: ImageHdu, noise: np.ndarray | None) -> ImageHdu | TiledHdu:
    steps = _choose_steps(hdu, noise) if hdu.array.dtype.kind == "f" else None
    if not fits_tiles.can_compress(hdu.array, steps):
        return hdu
    seal = partial(digest_plane, hdu.name, hdu.array.dtype, hdu.array.shape, hdu.content)
    return fits_tiles.compress_plane(hdu.name, hdu.array, hdu.content, seal, steps) or hdu


def _choose_steps(hdu: ImageHdu, noise: np.ndarray | None) -> np.ndarray | None:
    usable = noise is not None and noise.shape == hdu.array.shape and noise.ndim == 2
    if hdu.array.dtype != np.float32 or not usable or hdu.name not in ("SCI", "VAR"):
        return None
    choose = quantisation.choose_variance_steps if hdu.name == "VAR" else quantisation.choose_image_steps
    return choose(noise)


def encode_hdus(hdus: Mapping[str, ImageHdu | TiledHdu], provenance: Mapping[str, str]) -> Iterator[FilePart]:
    """Yield the parts of the file in order: the header of the primary HDU; header, data and padding of each plane.

    Parameters
    ----------
    hdus : mapping of HDU name to plane
    provenance : mapping of keyword to value
        Cards of the primary HDU; no part of the content hash.
    """
    primary = [("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True), *provenance.items()]
    first = encode_header("".join(write_card(*card) for card in primary), 0)
    yield FilePart(len(first), lambda: [first])
    for hdu in hdus.values():
        yield FilePart(measure_header(hdu.cards), lambda hdu=hdu: [encode_header(hdu.cards, hdu.datasum)])
        yield FilePart(hdu.size, hdu.make_pieces)
        yield FilePart(-hdu.size % BLOCK, lambda hdu=hdu: [bytes(-hdu.size % BLOCK)])


def hash_written(hdus: Mapping[str, ImageHdu | TiledHdu], parts: Sequence[bytes]) -> tuple[str, str]:
    """Hash of a file's bytes (`hash_parts`) and of its content (`hash_decoded`).

    `parts` holds the SHA-256 of each part, in the order of `encode_hdus`.
    """
    planes = [hdu.make_digest(data) for hdu, data in zip(hdus.values(), parts[DATA], strict=True)]
    return _combine_digests(parts), _combine_digests(planes)


def digest_plane(name: str, dtype: np.dtype, shape: tuple[int, ...], content: str, pixels: bytes) -> bytes:
    """Digest of a plane: name, type, shape, the cards that say what it is, and the SHA-256 of its big-endian pixels.

    These are the bytes of a plane that is written as it is: they are hashed once, for its content and for the file.
    """
    facts = f"{name} {dtype.str[1:]} {shape}\n{content}\n"
    return hashlib.sha256(facts.encode("ascii") + pixels).digest()


def _combine_digests(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


# ---- from bytes


def decode_planes(
    stream: BinaryIO, names: tuple[str, ...] | None = None, needed: tuple[str, ...] = ()
) -> dict[str, Plane]:
    """Read the planes of a file (those called `names`, or all), each verified by its checksums.

    Raises
    ------
    MalformedFile
        The file ends early, an HDU is not what its checksums say, or one of `names` or `needed` is missing.
    """
    found = _read_planes(stream, names, needed)
    return {name: (array, plane.make_header()) for name, (plane, array) in found.items()}


def decode_image(stream: BinaryIO, names: tuple[str, ...] | None = None, needed: tuple[str, ...] = ()) -> MaskedImage:
    """As `decode_planes`, put together as `image_of_planes` does it: of one header only more than the text is read."""
    found = _read_planes(stream, names, needed)
    first = next((name for name in ("SCI", *found) if name in found), None)
    headers = {name: plane.make_header() if name == first else fits.Header() for name, (plane, _) in found.items()}
    return image_of_planes({name: (array, headers[name]) for name, (_, array) in found.items()})


def _read_planes(
    stream: BinaryIO, names: tuple[str, ...] | None, needed: tuple[str, ...]
) -> dict[str, tuple["PlaneInFile", np.ndarray]]:
    planes, seen = {}, set()
    for found, array in _read_hdus(stream, names):
        seen.add(found.name)
        if array is not None:
            planes[found.name] = (found, array)
    missing = [name for name in (*(names or ()), *needed) if name not in seen]
    if missing:
        raise MalformedFile(f"no HDU {', '.join(missing)}")
    return planes


def decode_first_header(stream: BinaryIO) -> fits.Header:
    """Header of the first image plane, without reading any pixels."""
    for found in find_planes(stream):
        if found.name:
            return found.make_header()
    raise MalformedFile("there is no image HDU")


def hash_parts(stream: BinaryIO) -> tuple[str, dict[str, bytes]]:
    """Hash the bytes of a file, nothing decoded; raises `MalformedFile` where a header tells no end of its data.

    Returns
    -------
    parts_sha256 : str
        SHA-256 over the SHA-256 of each part, as `encode_hdus` yields them: another one if any byte is.
    data : dict of HDU name to bytes
        The SHA-256 of its data.
    """
    parts, data = [], {}
    for found in find_planes(stream):
        parts.append(hashlib.sha256(found.text.encode("ascii")).digest())
        if found.name:
            _check_remaining(stream, found)
            data[found.name] = _hash_bytes(stream, found.size)
            parts += [data[found.name], hashlib.sha256(stream.read(-found.size % BLOCK)).digest()]
    return _combine_digests(parts), data


def _hash_bytes(stream: BinaryIO, size: int) -> bytes:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(size, PIECE)))
    while size > 0 and (count := stream.readinto(buffer[:size])):
        digest.update(buffer[:count])
        size -= count
    return digest.digest()


def hash_decoded(stream: BinaryIO, data: Mapping[str, bytes]) -> tuple[dict[str, np.ndarray], str]:
    """All planes of a file, each verified by its checksums, and the content hash of the file.

    Parameters
    ----------
    data : mapping of HDU name to bytes
        As of `hash_parts`. Pixels that are compressed in the file are hashed here.
    """
    arrays, digests = {}, []
    for found, array in _read_hdus(stream, None):
        if array is not None:
            arrays[found.name] = array
            pixels = fits_tiles.hash_pixels(array) if found.tiling else data[found.name]
            digests.append(digest_plane(found.name, found.dtype, found.shape, select_content(found.text), pixels))
    return arrays, _combine_digests(digests)


def find_planes(stream: BinaryIO) -> Iterator["PlaneInFile"]:
    """Where the planes of a file are, from its headers alone."""
    seen: set[str] = set()
    while block := stream.read(BLOCK):
        text, datasum = read_header(stream, block)
        cards, tiling = parse_cards(text), None
        if seen and fits_tiles.is_tiled(cards):
            tiling = fits_tiles.read_tiling(cards)
            name, dtype, shape = tiling.name, tiling.dtype, tiling.shape
        else:
            name, dtype, shape = read_structure(cards, primary=not seen)
        if name in seen:
            raise MalformedFile(f"two HDUs called {name or 'PRIMARY'}")
        seen.add(name)
        size = tiling.size if tiling else math.prod(shape) * dtype.itemsize if shape else 0
        found = PlaneInFile(name, text, datasum, dtype, shape, stream.tell(), size, tiling)
        yield found
        stream.seek(found.offset + size + -size % BLOCK)
    if not seen:
        raise MalformedFile("the file is empty")


@dataclass(frozen=True)
class PlaneInFile:
    """What a file says of one HDU.

    Attributes
    ----------
    name : str
        Empty for the primary HDU.
    text : str
        The header as it stands in the file.
    datasum : int
    dtype, shape
        Of the plane; the shape of the primary is empty.
    offset, size : int
        Bytes of the data in the file.
    tiling : Tiling or None
        How the plane is compressed.
    """

    name: str
    text: str
    datasum: int
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    size: int
    tiling: fits_tiles.Tiling | None

    def make_header(self) -> fits.Header:
        """Header of the plane for its readers, also where it is compressed: content and shape."""
        text = fits_tiles.restore_cards(self.text, self.tiling) if self.tiling else self.text
        return parse_header(select_for_readers(text))


def _read_hdus(stream: BinaryIO, names: tuple[str, ...] | None) -> list[tuple["PlaneInFile", np.ndarray | None]]:
    """Each HDU and its array, which is None for the primary and unwanted ones."""
    found = list(find_planes(stream))
    wanted = [one for one in found if one.shape and (names is None or one.name in names)]
    for one in wanted:
        _check_remaining(stream, one)
    arrays = map_planes(partial(_read_plane, _make_reader(stream)), wanted, [one.size for one in wanted])
    read = dict(zip((one.name for one in wanted), arrays, strict=True))
    return [(one, read.get(one.name)) for one in found]


def _make_reader(stream: BinaryIO) -> Reader:
    """Reads a stretch of a stream, whatever other threads read of it meanwhile."""
    if not isinstance(stream, BytesIO):
        return lambda view, place: os.preadv(stream.fileno(), [view], place)

    def read(view: memoryview, place: int) -> int:
        piece = stream.getbuffer()[place : place + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    return read


def _read_plane(read: Reader, found: PlaneInFile) -> np.ndarray:
    array = _read_array(read, found) if found.tiling is None else _read_tiled(read, found, found.tiling)
    padding = bytearray(-found.size % BLOCK)
    _read_exactly(read, memoryview(padding), found.offset + found.size, found.name)
    if any(padding):
        raise MalformedFile(f"HDU {found.name} is not padded with zeros")
    return array


def _read_array(read: Reader, found: PlaneInFile) -> np.ndarray:
    """The pixels, turned round and summed while they are in the processor's cache."""
    array = np.empty(math.prod(found.shape), dtype=found.dtype)
    whole, turn, size = memoryview(array).cast("B"), choose_turn(array), array.itemsize
    step, total = PIECE // size, 0
    for begin in range(0, array.size, step):
        _read_exactly(read, whole[begin * size : (begin + step) * size], found.offset + begin * size, found.name)
        total += turn(begin, begin + step)
    if fold_sum(total) != found.datasum:
        raise MalformedFile(f"HDU {found.name}: the data differ from DATASUM")
    return array.reshape(found.shape)


def _read_tiled(read: Reader, found: PlaneInFile, tiling: fits_tiles.Tiling) -> np.ndarray:
    data = np.zeros(found.size + fits_tiles.count_spare(tiling), np.uint8)
    _read_exactly(read, memoryview(data)[: found.size], found.offset, found.name)
    return fits_tiles.decompress_plane(tiling, data, found.datasum)


def _read_exactly(read: Reader, view: memoryview, place: int, name: str) -> None:
    while view:
        count = read(view, place)
        if not count:
            raise MalformedFile(f"the file ends within HDU {name} or its padding")
        view, place = view[count:], place + count


def _check_remaining(stream: BinaryIO, found: PlaneInFile) -> None:
    """Refuse sizes beyond the end of the file before memory is asked for."""
    if stream.seek(0, 2) - found.offset < found.size:
        raise MalformedFile(f"the file ends within HDU {found.name}")
    stream.seek(found.offset)
