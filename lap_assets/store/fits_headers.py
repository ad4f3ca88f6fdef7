"""Headers of the store's FITS files: which cards are content, the checksums of an HDU, what a header says of its data.

Every HDU carries DATASUM and CHECKSUM, so that reading detects a flipped bit at the price of one pass over the data.
The data themselves are `fits_format.py`'s and `fits_tiles.py`'s.
"""

import re
from typing import BinaryIO

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError

from lap_assets.errors import PermanentFailure

BLOCK = 2880
BITPIX = {"u1": 8, "i2": 16, "i4": 32, "i8": 64, "f4": -32, "f8": -64}
DTYPES = {bitpix: np.dtype(code) for code, bitpix in BITPIX.items()}
_MAX_HEADER_BLOCKS = 1000
# cards that describe the file, not its content
STRUCTURAL = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|GROUPS|EXTNAME|EXTVER|EXTLEVEL|BSCALE|BZERO|BLANK"
    r"|CHECKSUM|DATASUM|ZHECKSUM|ZDATASUM|END|DATE|HISTORY|COMMENT|ORIGIN|INHERIT|"
    r"|TFIELDS|TTYPE\d+|TFORM\d+|THEAP|ZIMAGE|ZSIMPLE|ZTENSION|ZEXTEND|ZBITPIX|ZNAXIS\d*|ZPCOUNT|ZGCOUNT"
    r"|ZTILE\d+|ZCMPTYPE|ZNAME\d+|ZVAL\d+|ZQUANTIZ|ZDITHER0|ZBLANK|ZSCALE|ZZERO|ZMASKCMP"
)
_DATASUM = re.compile(rb"DATASUM = '(\d{1,10}) *'")
_WCS = re.compile(
    r"WCSAXES|WCSNAME|CTYPE\d|CRVAL\d|CRPIX\d|CDELT\d|CUNIT\d|CROTA\d|CD\d_\d|PC\d_\d|PV\d_\d+"
    r"|(A|B|AP|BP)_(ORDER|DMAX|\d_\d)|LONPOLE|LATPOLE|RADESYS|EQUINOX|MJDREF"
)


class MalformedFile(Exception):
    """A file is not what its format asks for; the readers above add product, path and the cure."""


def select_wcs_cards(header: fits.Header) -> fits.Header:
    """The cards of `header` that make up its world coordinate system."""
    return fits.Header([card for card in header.cards if _WCS.fullmatch(card.keyword)])


def select_content(text: str) -> str:
    """The cards of a header, given as its text, that say what the data are: those that count in the content hash."""
    cards = (text[i : i + 80] for i in range(0, len(text), 80))
    return "".join(card for card in cards if not STRUCTURAL.fullmatch(card[:8].strip()))


def make_image_header(name: str, array: np.ndarray, header: fits.Header) -> fits.Header:
    """Header of the image HDU called `name`: what describes the array, then the cards of `header` that are content."""
    cards = [("XTENSION", "IMAGE"), ("BITPIX", BITPIX[array.dtype.str[1:]]), ("NAXIS", array.ndim)]
    cards += [(f"NAXIS{i}", n) for i, n in enumerate(reversed(array.shape), start=1)]
    cards += [("PCOUNT", 0), ("GCOUNT", 1), ("EXTNAME", name)]
    kept = [card for card in header.cards if not STRUCTURAL.fullmatch(card.keyword)]
    return fits.Header([*cards, *kept])


def strip_header(header: fits.Header) -> fits.Header:
    """The header without structural cards, but with NAXISn, which tell a WCS the shape."""
    kept = (c for c in header.cards if c.keyword.startswith("NAXIS") or not STRUCTURAL.fullmatch(c.keyword))
    return fits.Header(list(kept))


# ---- checksums (FITS standard 4.0, section 4.4.2.7 and appendix J)


def encode_header(header: fits.Header, datasum: int) -> bytes:
    """The header as bytes, with DATASUM and CHECKSUM; raises `PermanentFailure` where a card cannot be written."""
    header["CHECKSUM"] = "0" * 16
    header["DATASUM"] = str(datasum)
    try:
        text = header.tostring().encode("ascii")
    except (ValueError, VerifyError) as error:
        raise PermanentFailure(f"a header card cannot be written to FITS: {error}") from None
    total = fold_sum(_sum_bytes(text) + datasum)
    return text.replace(b"CHECKSUM= '0000000000000000'", b"CHECKSUM= '" + _encode_sum(~total & 0xFFFFFFFF) + b"'")


def _encode_sum(value: int) -> bytes:
    """ASCII form of a 32-bit checksum (appendix J)."""
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


def _sum_bytes(text: bytes) -> int:
    return int(np.frombuffer(text + bytes(-len(text) % 4), dtype=">u4").sum(dtype=np.uint64))


def fold_sum(total: int) -> int:
    """Ones' complement sum of 32-bit words from their plain sum: the value of DATASUM."""
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    return total


# ---- from bytes


def read_header(stream: BinaryIO, block: bytes) -> tuple[str, int]:
    """Text of a header, whose first block was read, and its DATASUM; verified by CHECKSUM before anything is parsed.

    Raises `MalformedFile` where the file ends within the header or the header is not what CHECKSUM says.
    """
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
    if match is None or fold_sum(_sum_bytes(data) + int(match[1])) != 0xFFFFFFFF:
        raise MalformedFile("a header differs from its CHECKSUM")
    try:
        return data.decode("ascii"), int(match[1])
    except UnicodeDecodeError:
        raise MalformedFile("a header holds bytes that are not ASCII") from None


def parse_header(text: str) -> fits.Header:
    """The header with this text; raises `MalformedFile`."""
    try:
        return fits.Header.fromstring(text)
    except (ValueError, VerifyError) as error:
        raise MalformedFile(f"unreadable header: {error}") from None


def read_structure(header: fits.Header, primary: bool) -> tuple[str, np.dtype, tuple[int, ...]]:
    """Name, type and shape of an image HDU; shape () for an empty primary. Raises `MalformedFile`."""
    try:
        first, value = header.cards[0].keyword, header.cards[0].value
        if (first, value) != (("SIMPLE", True) if primary else ("XTENSION", "IMAGE")):
            raise MalformedFile(f"an HDU begins with {first} = {value!r}")
        naxis = int(header["NAXIS"])
        shape = tuple(int(header[f"NAXIS{i}"]) for i in range(naxis, 0, -1))
        dtype = DTYPES[int(header["BITPIX"])]
        name = "" if primary else str(header["EXTNAME"])
    except (KeyError, ValueError, IndexError, TypeError, VerifyError) as error:
        raise MalformedFile(f"a header lacks what describes its data: {error}") from None
    if bool(shape) is primary or any(n <= 0 for n in shape):
        raise MalformedFile(f"HDU {name or 'PRIMARY'} has the shape {shape}")
    return name, dtype, shape
