"""Planes as tile-compressed images (FITS standard 4.0, section 10): a table of rows, each coded with RICE_1.

Integers come back to the bit, floats within half a step of `quantisation.py`. Other programs (astropy, CFITSIO) read
the same values. The dither is seeded from the plane's name and place on the sky: the same plane gives the same bytes
everywhere, and one that differs in a last bit differs in few pixels.
Compressed images of others are `pipeline/frame_rows.py`'s.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lap_assets.store import rice
from lap_assets.store.fits_headers import (
    BITPIX,
    DTYPES,
    MalformedFile,
    fold_sum,
    select_content,
    select_wcs,
    write_card,
    write_image_cards,
)
from lap_assets.store.plane_passes import sum_pixels
from lap_assets.store.quantisation import quantise_rows, restore_rows

_BAND = 32  # rows coded at a time: their integers stay in the processor's cache
_MAX_HEAP = 2**31 - 1
_MOST_PIXELS = 86  # a byte stands for: a code of three bits for a block of 32
_DITHER = "SUBTRACTIVE_DITHER_2"
_WIDTHS = {"u1": 1, "i2": 2, "i4": 4, "f4": 4}  # bytes of the integers that are coded
_PLAIN = np.dtype([("size", ">i4"), ("start", ">i4")])
_SCALED = np.dtype([*_PLAIN.descr, ("scale", ">f8"), ("zero", ">f8")])


@dataclass(frozen=True)
class TiledHdu:
    """A compressed plane, ready to be written.

    Attributes
    ----------
    cards : str
        Of the header of the table, without checksums.
    data : (m,) uint8
        Table and compressed rows.
    datasum : int
    digest : bytes
        Digest of the decoded plane (`fits_format.digest_plane`).
    """

    cards: str
    data: np.ndarray
    datasum: int
    digest: bytes

    @property
    def size(self) -> int:
        return self.data.size

    def make_digest(self, data: bytes) -> bytes:
        """Digest of the plane, whatever the SHA-256 of its bytes in the file."""
        return self.digest

    def make_pieces(self) -> Iterator[memoryview]:
        """The bytes of the data."""
        yield memoryview(self.data)


@dataclass(frozen=True)
class Tiling:
    """What the header of a compressed plane says: type and shape of the plane, size of the data, seed of the dither."""

    name: str
    dtype: np.dtype
    shape: tuple[int, int]
    size: int
    seed: int


def can_compress(array: np.ndarray, steps: np.ndarray | None) -> bool:
    """Whether a plane can be compressed: two-dimensional integers, or float32 with a step for each row."""
    known = array.dtype.str[1:] in _WIDTHS and array.ndim == 2
    return known and (array.dtype.kind != "f" or (steps is not None and bool((steps > 0).all())))


def compress_plane(
    name: str, array: np.ndarray, content: str, seal: Callable[[bytes], bytes], steps: np.ndarray | None
) -> TiledHdu | None:
    """Compress a plane that `can_compress` allows.

    Parameters
    ----------
    content : str
        Cards that are content.
    seal : callable
        Makes the digest of the plane of the SHA-256 of the decoded pixels.
    steps : (ny,) float64, optional
        Of floats; see `quantisation.py`.

    Returns
    -------
    TiledHdu or None
        None: the plane has to stay as it is, since its values are too far apart for the steps.
    """
    seed, pieces, digest = choose_seed(name, content), [], hashlib.sha256()
    table = np.zeros(len(array), _PLAIN if steps is None else _SCALED)
    for first in range(0, len(array), _BAND):
        here = slice(first, first + _BAND)
        rows = array[here]
        if steps is not None:
            found = quantise_rows(rows, steps[here], first, seed)
            if found is None:
                return None
            rows, zeros = found
            table["scale"][here], table["zero"][here] = steps[here], zeros
            digest.update(_as_big_endian(restore_rows(rows, steps[here], zeros, first, seed)))
        else:
            digest.update(_as_big_endian(rows))
        data, table["size"][here] = rice.encode_rows(rows)
        pieces.append(data.copy())
    starts = np.concatenate([[0], np.cumsum(table["size"], dtype=np.int64)])
    if starts[-1] > _MAX_HEAP:
        return None
    table["start"] = starts[:-1]
    whole = np.concatenate([table.view(np.uint8), *pieces])
    cards = _write_table_cards(name, array, table, int(starts[-1]), seed) + content
    return TiledHdu(cards, whole, _sum_data(whole), seal(digest.digest()))


def choose_seed(name: str, cards: str) -> int:
    """Seed of a plane's dither, 1 to 10000, from its name and its place on the sky."""
    text = name + select_wcs(cards)
    return 1 + int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8]) % 10_000


def _as_big_endian(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder(">"))


def hash_pixels(plane: np.ndarray) -> bytes:
    """SHA-256 of the pixels of a decoded plane, as big-endian numbers."""
    digest = hashlib.sha256()
    for first in range(0, len(plane), _BAND):
        digest.update(_as_big_endian(plane[first : first + _BAND]))
    return digest.digest()


def _sum_data(data: np.ndarray) -> int:
    words = np.frombuffer(np.concatenate([data, np.zeros(-data.size % 4, np.uint8)]), ">u4")
    return fold_sum(sum_pixels(words.astype(np.uint32)))


def _write_table_cards(name: str, array: np.ndarray, table: np.ndarray, n_heap: int, seed: int) -> str:
    """Cards that describe the table (section 10.1.1)."""
    columns = [("COMPRESSED_DATA", f"1PB({int(table['size'].max())})"), ("ZSCALE", "1D"), ("ZZERO", "1D")]
    columns = columns[: len(table.dtype.names) - 1]
    cards: list[Any] = [("XTENSION", "BINTABLE"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", table.itemsize)]
    cards += [("NAXIS2", len(table)), ("PCOUNT", n_heap), ("GCOUNT", 1), ("TFIELDS", len(columns))]
    for i, (column, form) in enumerate(columns, start=1):
        cards += [(f"TTYPE{i}", column), (f"TFORM{i}", form)]
    kind = array.dtype.str[1:]
    cards += [("ZIMAGE", True), ("ZTENSION", "IMAGE"), ("ZBITPIX", BITPIX[kind]), ("ZNAXIS", 2)]
    cards += [("ZNAXIS1", array.shape[1]), ("ZNAXIS2", array.shape[0]), ("ZPCOUNT", 0), ("ZGCOUNT", 1)]
    cards += [("ZTILE1", array.shape[1]), ("ZTILE2", 1), ("ZCMPTYPE", "RICE_1")]
    cards += [("ZNAME1", "BLOCKSIZE"), ("ZVAL1", rice.BLOCK)]
    cards += [("ZNAME2", "BYTEPIX"), ("ZVAL2", _WIDTHS[kind])]
    if len(columns) > 1:
        cards += [("ZQUANTIZ", _DITHER), ("ZDITHER0", seed)]
    return "".join(write_card(*card) for card in (*cards, ("EXTNAME", name)))


# ---- from bytes


def is_tiled(cards: Mapping[str, Any]) -> bool:
    """Whether this is the header of a compressed image."""
    return next(iter(cards.values()), None) == "BINTABLE" and cards.get("ZIMAGE") is True


def read_tiling(cards: Mapping[str, Any]) -> Tiling:
    """What the header of a compressed plane says; raises `MalformedFile` unless it is as `compress_plane` makes it."""
    try:
        dtype = DTYPES[int(cards["ZBITPIX"])]
        shape = (int(cards["ZNAXIS2"]), int(cards["ZNAXIS1"]))
        kind = np.dtype(_SCALED if dtype.kind == "f" else _PLAIN)
        size = kind.itemsize * shape[0] + int(cards["PCOUNT"])
        seed = int(cards.get("ZDITHER0", 1))
        expected = {
            "ZCMPTYPE": "RICE_1", "ZNAXIS": 2, "ZTILE1": shape[1], "ZTILE2": 1,
            "NAXIS": 2, "NAXIS1": kind.itemsize, "NAXIS2": shape[0], "TFIELDS": len(kind.names) - 1,
            "ZNAME1": "BLOCKSIZE", "ZVAL1": rice.BLOCK, "ZNAME2": "BYTEPIX", "ZVAL2": _WIDTHS[dtype.str[1:]],
        }  # fmt: skip
        if dtype.kind == "f":
            expected["ZQUANTIZ"] = _DITHER
        found = {key: cards[key] for key in expected}
        name = str(cards["EXTNAME"])
    except (KeyError, ValueError, TypeError) as error:
        raise MalformedFile(f"a header lacks what describes its compressed data: {error}") from None
    wrong = [f"{key} = {found[key]!r}" for key in expected if found[key] != expected[key]]
    if wrong or min(shape) <= 0 or size < 0 or not 1 <= seed <= 10_000:
        raise MalformedFile(f"HDU {name} is compressed in a way that is not read here ({', '.join(wrong) or shape})")
    return Tiling(name, dtype, shape, size, seed)


def count_spare(tiling: Tiling) -> int:
    """Bytes to keep free behind the data, so that `decompress_plane` needs no copy."""
    return rice.count_spare(tiling.shape[1], rice.BLOCK)


def decompress_plane(tiling: Tiling, data: np.ndarray, datasum: int) -> np.ndarray:
    """The plane from its data (`tiling.size` bytes and `count_spare` more).

    Raises
    ------
    MalformedFile
        The data differ from DATASUM, or rows are cut short or lie outside them.
    """
    name, (ny, nx), size = tiling.name, tiling.shape, tiling.size
    if _sum_data(data[:size]) != datasum:
        raise MalformedFile(f"HDU {name}: the data differ from DATASUM")
    kind = _SCALED if tiling.dtype.kind == "f" else _PLAIN
    table = data[: ny * kind.itemsize].view(kind)
    heap = ny * kind.itemsize
    if nx * ny > _MOST_PIXELS * (size - heap):
        raise MalformedFile(f"HDU {name}: {size - heap} bytes cannot hold {nx} x {ny} pixels")
    starts, sizes = heap + table["start"].astype(np.int64), table["size"].astype(np.int64)
    if int(starts.min()) < heap or int((starts + sizes).max()) > size:
        raise MalformedFile(f"HDU {name}: a compressed row lies outside the data")
    width = _WIDTHS[tiling.dtype.str[1:]]
    plane = np.empty(tiling.shape, tiling.dtype)
    try:
        for first in range(0, ny, _BAND):
            here = slice(first, first + _BAND)
            rows = rice.decode_rows(data, starts[here], sizes[here], nx, width, rice.BLOCK)
            if kind is _SCALED:
                scales, zeros = (table[one][here].astype(np.float64) for one in ("scale", "zero"))
                rows = restore_rows(rows, scales, zeros, first, tiling.seed)
            plane[here] = rows
    except ValueError as error:
        raise MalformedFile(f"HDU {name}: {error}") from None
    return plane


def restore_cards(text: str, tiling: Tiling) -> str:
    """Text of the header of the plane's image HDU from that of the table it is compressed in."""
    return write_image_cards(tiling.name, tiling.dtype, tiling.shape) + select_content(text)
