"""FITS files of the store: an empty primary HDU and named image planes, to bytes and back.

The bytes depend on the planes, their headers and the provenance cards alone (no clock, path or library version in
them). Every HDU carries DATASUM and CHECKSUM, so that reading detects a flipped bit at the price of one pass over
the data. What a product must contain is checked in `files.py`, not here.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError

from lap_assets.errors import PermanentFailure
from lap_assets.model.image import Mask, MaskedImage

Plane = tuple[np.ndarray, fits.Header]

BLOCK = 2880
_CHUNK = 1 << 18  # elements swapped at a time: stays in the processor's cache
_BITPIX = {"u1": 8, "i2": 16, "i4": 32, "i8": 64, "f4": -32, "f8": -64}
_DTYPE = {bitpix: np.dtype(code) for code, bitpix in _BITPIX.items()}
_MAX_HEADER_BLOCKS = 1000
# cards that describe the file, not its content
_STRUCTURAL = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|EXTNAME|EXTVER|EXTLEVEL|BSCALE|BZERO|BLANK"
    r"|CHECKSUM|DATASUM|ZHECKSUM|ZDATASUM|END|DATE|HISTORY|COMMENT|ORIGIN|INHERIT|"
)
_DATASUM = re.compile(rb"DATASUM = '(\d{1,10}) *'")
_WCS = re.compile(
    r"WCSAXES|WCSNAME|CTYPE\d|CRVAL\d|CRPIX\d|CDELT\d|CUNIT\d|CROTA\d|CD\d_\d|PC\d_\d|PV\d_\d+"
    r"|(A|B|AP|BP)_(ORDER|DMAX|\d_\d)|LONPOLE|LATPOLE|RADESYS|EQUINOX|MJDREF"
)


class MalformedFile(Exception):
    """A file is not what its format asks for; the readers above add product, path and the cure."""


# ---- to bytes


def planes_of_image(image: MaskedImage) -> dict[str, Plane]:
    """Planes SCI, MASK, VAR and further ones of an image; its header goes to SCI, its WCS to all."""
    wcs = select_wcs_cards(image.header)
    unit = image.header.get("BUNIT")
    variance_header = wcs.copy()
    if unit:
        variance_header["BUNIT"] = f"({unit})2"
    mask_header = wcs.copy()
    for bit in Mask:
        mask_header[f"MB{bit.bit_length() - 1:02d}"] = (bit.name, "name of this mask bit")
    planes = {
        "SCI": (image.sci, image.header),
        "MASK": (image.mask, mask_header),
        "VAR": (image.var, variance_header),
    }
    return planes | {name: (plane, wcs.copy()) for name, plane in image.planes.items()}


def image_of_planes(planes: Mapping[str, Plane]) -> MaskedImage:
    """The image whose planes were read; planes left out are `None`."""
    header = next((planes[name][1] for name in ("SCI", *planes) if name in planes), fits.Header())
    arrays = {name: array for name, (array, _) in planes.items()}
    sci, mask, var = (arrays.pop(name, None) for name in ("SCI", "MASK", "VAR"))
    return MaskedImage(sci=sci, mask=mask, var=var, header=header, planes=arrays)


def select_wcs_cards(header: fits.Header) -> fits.Header:
    """The cards of `header` that make up its world coordinate system."""
    return fits.Header([card for card in header.cards if _WCS.fullmatch(card.keyword)])


def normalise_plane(name: str, array: np.ndarray) -> np.ndarray:
    """`array` contiguous and in the machine's byte order; raises `PermanentFailure` for types FITS does not have."""
    array = np.asarray(array)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.str[1:] not in _BITPIX or array.ndim == 0 or array.size == 0:
        raise PermanentFailure(f"plane {name}: cannot store type {array.dtype} of shape {array.shape} in FITS")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def encode_planes(planes: Mapping[str, Plane], provenance: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the file piece by piece; a yielded buffer is valid until the next one is asked for.

    Parameters
    ----------
    planes : mapping of HDU name to (array, header)
        Arrays as `normalise_plane` returns them.
    provenance : mapping of keyword to value
        Cards of the primary HDU; no part of the content hash.
    """
    primary = fits.Header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True), *provenance.items()])
    yield _finish_header(primary, 0)
    for name, (array, header) in planes.items():
        yield _finish_header(_extension_header(name, array, header), sum_words(array))
        yield from _swap_chunks(array)
        yield bytes(-array.nbytes % BLOCK)


def hash_planes(planes: Mapping[str, Plane]) -> str:
    """Content hash of a FITS member from what is to be written: equal to that of what will be read."""
    digests = []
    for name, (array, header) in planes.items():
        text = _extension_header(name, array, header).tostring(endcard=False, padding=False)
        digests.append(_hash_plane(name, array, _select_content(text)))
    return _combine_digests(digests)


def _hash_plane(name: str, array: np.ndarray, cards: str) -> bytes:
    """Digest of one decoded plane: name, type, shape, the cards that say what it is, little-endian pixels."""
    digest = hashlib.sha256(f"{name} {array.dtype.str[1:]} {array.shape}\n{cards}\n".encode("ascii"))
    digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")))
    return digest.digest()


def _combine_digests(digests: list[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _select_content(text: str) -> str:
    cards = (text[i : i + 80] for i in range(0, len(text), 80))
    return "".join(card for card in cards if not _STRUCTURAL.fullmatch(card[:8].strip()))


def _extension_header(name: str, array: np.ndarray, header: fits.Header) -> fits.Header:
    cards = [("XTENSION", "IMAGE"), ("BITPIX", _BITPIX[array.dtype.str[1:]]), ("NAXIS", array.ndim)]
    cards += [(f"NAXIS{i}", n) for i, n in enumerate(reversed(array.shape), start=1)]
    cards += [("PCOUNT", 0), ("GCOUNT", 1), ("EXTNAME", name)]
    kept = [card for card in header.cards if not _STRUCTURAL.fullmatch(card.keyword)]
    return fits.Header([*cards, *kept])


def _finish_header(header: fits.Header, datasum: int) -> bytes:
    """The header as bytes, with DATASUM and CHECKSUM (FITS standard 4.0, section 4.4.2.7 and appendix J)."""
    header["CHECKSUM"] = "0" * 16
    header["DATASUM"] = str(datasum)
    try:
        text = header.tostring().encode("ascii")
    except (ValueError, VerifyError) as error:
        raise PermanentFailure(f"a header card cannot be written to FITS: {error}") from None
    total = _fold(_sum_bytes(text) + datasum)
    return text.replace(b"CHECKSUM= '0000000000000000'", b"CHECKSUM= '" + _encode_sum(~total & 0xFFFFFFFF) + b"'")


def _encode_sum(value: int) -> bytes:
    """ASCII form of a 32-bit checksum (FITS standard 4.0, appendix J)."""
    characters = bytearray(16)
    for i in range(4):
        quotient, remainder = divmod((value >> (24 - 8 * i)) & 0xFF, 4)
        four = [quotient + 48] * 4
        four[0] += remainder
        while any(58 <= c <= 64 or 91 <= c <= 96 for c in four):  # punctuation is not allowed
            for j in (0, 2):
                if any(58 <= c <= 64 or 91 <= c <= 96 for c in four[j : j + 2]):
                    four[j] += 1
                    four[j + 1] -= 1
        for j in range(4):
            characters[4 * j + i] = four[j]
    return bytes(characters[-1:] + characters[:-1])


def _swap_chunks(array: np.ndarray) -> Iterator[memoryview]:
    flat = array.reshape(-1)
    buffer = np.empty(min(flat.size, _CHUNK), dtype=flat.dtype)
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK]
        out = buffer[: piece.size]
        out[:] = piece
        yield memoryview(out.byteswap(inplace=True)).cast("B")


def sum_words(array: np.ndarray) -> int:
    """Ones' complement sum of the big-endian 32-bit words of a native array, zero-padded: the value of DATASUM."""
    flat = array.reshape(-1)
    if flat.dtype.itemsize == 1:
        return _fold(_sum_bytes(flat.tobytes()))
    words = flat.view(f"u{flat.dtype.itemsize}")
    if words.itemsize == 2:
        total = (int(words[0::2].sum(dtype=np.uint64)) << 16) + int(words[1::2].sum(dtype=np.uint64))
    elif words.itemsize == 4:
        total = int(words.sum(dtype=np.uint64))
    else:
        halves = words.view(np.uint32)
        total = int(halves[0::2].sum(dtype=np.uint64)) + int(halves[1::2].sum(dtype=np.uint64))
    return _fold(total)


def _sum_bytes(text: bytes) -> int:
    return int(np.frombuffer(text + bytes(-len(text) % 4), dtype=">u4").sum(dtype=np.uint64))


def _fold(total: int) -> int:
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


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
    planes: dict[str, Plane] = {}
    seen = set()
    for name, header, _, array in _read_hdus(stream, names):
        seen.add(name)
        if array is not None:
            planes[name] = (array, _strip_header(header))
    missing = [name for name in (*(names or ()), *needed) if name not in seen]
    if missing:
        raise MalformedFile(f"no HDU {', '.join(missing)}")
    return planes


def decode_first_header(stream: BinaryIO) -> fits.Header:
    """Header of the first image plane, without reading any pixels."""
    for name, header, _, _ in _read_hdus(stream, ()):
        if name:
            return _strip_header(header)
    raise MalformedFile("there is no image HDU")


def hash_decoded(stream: BinaryIO) -> tuple[dict[str, np.ndarray], str]:
    """All planes of a file and the content hash of the file, computed from what was read."""
    arrays, digests = {}, []
    for name, _, text, array in _read_hdus(stream, None):
        if array is not None:
            arrays[name] = array
            digests.append(_hash_plane(name, array, _select_content(text)))
    return arrays, _combine_digests(digests)


def _read_hdus(
    stream: BinaryIO, names: tuple[str, ...] | None
) -> Iterator[tuple[str, fits.Header, str, np.ndarray | None]]:
    """Yield (name, header, header text, array) of each HDU; the array is None for the primary and unwanted ones."""
    seen: set[str] = set()
    while block := stream.read(BLOCK):
        text, datasum = _read_header(stream, block)
        header = _parse_header(text)
        name, dtype, shape = _read_structure(header, primary=not seen)
        if name in seen:
            raise MalformedFile(f"two HDUs called {name or 'PRIMARY'}")
        seen.add(name)
        if not shape:
            yield name, header, text, None
        elif names is None or name in names:
            array = _read_array(stream, name, dtype, shape)
            if sum_words(array) != datasum:
                raise MalformedFile(f"HDU {name}: the data differ from DATASUM")
            yield name, header, text, array
        else:
            size = math.prod(shape) * dtype.itemsize
            stream.seek(size + -size % BLOCK, 1)
            yield name, header, text, None
    if not seen:
        raise MalformedFile("the file is empty")


def _read_header(stream: BinaryIO, block: bytes) -> tuple[str, int]:
    """Text of a header, whose first block was read, and its DATASUM; verified by CHECKSUM before anything is parsed."""
    blocks = []
    while True:
        if len(block) < BLOCK or len(blocks) > _MAX_HEADER_BLOCKS:
            raise MalformedFile("the file ends within a header")
        blocks.append(block)
        if any(block[i : i + 80] == b"END".ljust(80) for i in range(0, BLOCK, 80)):
            break
        block = stream.read(BLOCK)
    data = b"".join(blocks)
    match = _DATASUM.search(data)
    # the sum over the whole HDU is all ones; that of the data stands in DATASUM
    if match is None or _fold(_sum_bytes(data) + int(match[1])) != 0xFFFFFFFF:
        raise MalformedFile("a header differs from its CHECKSUM")
    return data.decode("ascii", errors="replace"), int(match[1])


def _parse_header(text: str) -> fits.Header:
    try:
        return fits.Header.fromstring(text)
    except (ValueError, VerifyError) as error:
        raise MalformedFile(f"unreadable header: {error}") from None


def _read_structure(header: fits.Header, primary: bool) -> tuple[str, np.dtype, tuple[int, ...]]:
    """Name, type and shape of an HDU; shape () for an empty primary."""
    try:
        first, value = header.cards[0].keyword, header.cards[0].value
        if (first, value) != (("SIMPLE", True) if primary else ("XTENSION", "IMAGE")):
            raise MalformedFile(f"an HDU begins with {first} = {value!r}")
        naxis = int(header["NAXIS"])
        shape = tuple(int(header[f"NAXIS{i}"]) for i in range(naxis, 0, -1))
        dtype = _DTYPE[int(header["BITPIX"])]
        name = "" if primary else str(header["EXTNAME"])
    except (KeyError, ValueError, IndexError, TypeError, VerifyError) as error:
        raise MalformedFile(f"a header lacks what describes its data: {error}") from None
    if bool(shape) is primary or any(n <= 0 for n in shape):
        raise MalformedFile(f"HDU {name or 'PRIMARY'} has the shape {shape}")
    return name, dtype, shape


def _read_array(stream: BinaryIO, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    _check_remaining(stream, name, size)
    array = np.empty(math.prod(shape), dtype=dtype)
    padding = bytes(-size % BLOCK)
    if stream.readinto(memoryview(array).cast("B")) != size or stream.read(len(padding)) != padding:
        raise MalformedFile(f"HDU {name} is cut short or not padded with zeros")
    return array.byteswap(inplace=True).reshape(shape)


def _check_remaining(stream: BinaryIO, name: str, size: int) -> None:
    """Refuse sizes beyond the end of the file before memory is asked for."""
    here = stream.tell()
    if stream.seek(0, 2) - here < size:
        raise MalformedFile(f"the file ends within HDU {name}")
    stream.seek(here)


def _strip_header(header: fits.Header) -> fits.Header:
    """The header without structural cards, but with NAXISn, which tell a WCS the shape."""
    kept = (c for c in header.cards if c.keyword.startswith("NAXIS") or not _STRUCTURAL.fullmatch(c.keyword))
    return fits.Header(list(kept))
