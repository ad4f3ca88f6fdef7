"""Headers of the store's FITS files: which cards are content, the checksums of an HDU, what a header says of its data.

Every HDU carries DATASUM and CHECKSUM, so that reading detects a flipped bit at the price of one pass over the data.
Headers are text here, cards of 80 characters one after the other: astropy's headers, which callers give and get, take
as long to build as a plane of a million pixels to write. The data themselves are `fits_format.py`'s and
`fits_tiles.py`'s.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, BinaryIO

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


_STRING = re.compile(r"'((?:[^']|'')*)'")
_CARD = 80


class MalformedFile(Exception):
    """A file is not what its format asks for; the readers above add product, path and the cure."""


def select_wcs_cards(header: fits.Header) -> fits.Header:
    """The cards of `header` that make up its world coordinate system."""
    return fits.Header([card for card in header.cards if _WCS.fullmatch(card.keyword)])


def split_cards(text: str) -> Iterator[tuple[str, str]]:
    """Keyword and card of each 80 characters of a header; what continues a long text has the keyword of its card."""
    keyword = ""
    for i in range(0, len(text), _CARD):
        own = text[i : i + 8].rstrip()
        keyword = keyword if own == "CONTINUE" else own
        yield keyword, text[i : i + _CARD]


def select_content(text: str) -> str:
    """The cards of a header, given as its text, that say what the data are: those that count in the content hash."""
    return "".join(card for keyword, card in split_cards(text) if not STRUCTURAL.fullmatch(keyword))


def select_wcs(text: str) -> str:
    """The cards of a header, given as its text, that make up its world coordinate system."""
    return "".join(card for keyword, card in split_cards(text) if _WCS.fullmatch(keyword))


def select_for_readers(text: str) -> str:
    """The content cards and NAXISn, which tell a WCS the shape."""
    kept = (c for k, c in split_cards(text) if k.startswith("NAXIS") or not STRUCTURAL.fullmatch(k))
    return "".join(kept)


@lru_cache(maxsize=1024, typed=True)
def write_card(keyword: str, value: bool | int | str, comment: str = "") -> str:
    """Text of a card; many planes have the same."""
    return str(fits.Card(keyword, value, comment))


def write_content(header: fits.Header | str) -> str:
    """Text of the cards of `header` that are content; raises `PermanentFailure` where one cannot be written."""
    if isinstance(header, str):
        return select_content(header)
    try:
        text = "".join(str(card) for card in header.cards if not STRUCTURAL.fullmatch(card.keyword))
        text.encode("ascii")
    except (ValueError, VerifyError) as error:
        raise PermanentFailure(f"a header card cannot be written to FITS: {error}") from None
    return text


def write_image_cards(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """Text of the cards that describe the array of the image HDU called `name`."""
    cards: list[tuple[str, bool | int | str]] = [("XTENSION", "IMAGE"), ("BITPIX", BITPIX[dtype.str[1:]])]
    cards += [("NAXIS", len(shape)), *((f"NAXIS{i}", int(n)) for i, n in enumerate(reversed(shape), start=1))]
    cards += [("PCOUNT", 0), ("GCOUNT", 1), ("EXTNAME", name)]
    return "".join(write_card(*card) for card in cards)


# ---- checksums (FITS standard 4.0, section 4.4.2.7 and appendix J)


def encode_header(header: fits.Header | str, datasum: int) -> bytes:
    """The header as bytes, with DATASUM and CHECKSUM; raises `PermanentFailure` where a card cannot be written."""
    blank = write_card("CHECKSUM", "0" * 16)
    try:
        cards = header if isinstance(header, str) else header.tostring(endcard=False, padding=False)
        text = cards + blank + str(fits.Card("DATASUM", str(datasum))) + "END".ljust(_CARD)
        data = text.ljust(measure_header(cards)).encode("ascii")
    except (ValueError, VerifyError) as error:
        raise PermanentFailure(f"a header card cannot be written to FITS: {error}") from None
    place, total = len(cards), fold_sum(_sum_bytes(data) + datasum)
    sealed = blank.encode().replace(b"0" * 16, _encode_sum(~total & 0xFFFFFFFF))
    return data[:place] + sealed + data[place + _CARD :]


def measure_header(cards: str) -> int:
    """Bytes of the header that `encode_header` makes of these cards."""
    return -(-(len(cards) + 3 * _CARD) // BLOCK) * BLOCK


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


def parse_cards(text: str) -> dict[str, Any]:
    """Values of the cards of a header by keyword, the first of each; raises `MalformedFile`.

    Only what the store itself looks at is read so: what describes data.
    """
    values: dict[str, Any] = {}
    for keyword, card in split_cards(text):
        if keyword not in values and card[8:10] == "= " and STRUCTURAL.fullmatch(keyword):
            values[keyword] = _parse_value(card[10:])
    return values


def _parse_value(field: str) -> bool | int | float | str:
    field = field.strip()
    if text := _STRING.match(field):
        return text[1].replace("''", "'").rstrip()
    number = field.partition("/")[0].strip()
    if number in ("T", "F"):
        return number == "T"
    try:
        return int(number) if number.lstrip("+-").isdigit() else float(number)
    except ValueError:
        raise MalformedFile(f"unreadable header: {field[:40]!r} is no value") from None


def parse_header(text: str) -> fits.Header:
    """The header with this text; raises `MalformedFile`."""
    try:
        return fits.Header.fromstring(text)
    except (ValueError, VerifyError) as error:
        raise MalformedFile(f"unreadable header: {error}") from None


def read_structure(cards: Mapping[str, Any], primary: bool) -> tuple[str, np.dtype, tuple[int, ...]]:
    """Name, type and shape of an image HDU; shape () for an empty primary. Raises `MalformedFile`."""
    try:
        first, value = next(iter(cards.items()))
        if (first, value) != (("SIMPLE", True) if primary else ("XTENSION", "IMAGE")):
            raise MalformedFile(f"an HDU begins with {first} = {value!r}")
        naxis = int(cards["NAXIS"])
        shape = tuple(int(cards[f"NAXIS{i}"]) for i in range(naxis, 0, -1))
        dtype = DTYPES[int(cards["BITPIX"])]
        name = "" if primary else str(cards["EXTNAME"])
    except (KeyError, ValueError, StopIteration, TypeError) as error:
        raise MalformedFile(f"a header lacks what describes its data: {error}") from None
    if bool(shape) is primary or any(n <= 0 for n in shape):
        raise MalformedFile(f"HDU {name or 'PRIMARY'} has the shape {shape}")
    return name, dtype, shape
