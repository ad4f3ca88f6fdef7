"""Reading stretches of rows of a FITS image: of raw frames, plain or tile-compressed, and of published masters.

What holds fifty frames of a chip side by side can only hold some rows of each; a whole image is read by
`pipeline/raw_files.py`. What the rows mean (sections, overscan) does not belong here.
"""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from lap_assets.errors import UnprocessableData
from lap_assets.store.rice import decode_rows

_DTYPES = {8: "u1", 16: ">i2", 32: ">i4", -32: ">f4", -64: ">f8"}
# cards that describe the table of a compressed image, not the image
_TABLE_CARDS = re.compile(r"XTENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TFIELDS|T(TYPE|FORM|UNIT)\d+|THEAP|Z[A-Z]+\d*")


@dataclass(frozen=True)
class _RiceRows:
    """Where each compressed row lies in the file, and the parameters of the method."""

    starts: np.ndarray
    sizes: np.ndarray
    width: int
    block: int


@dataclass(frozen=True)
class FrameRows:
    """One image HDU of a file, opened anew for each stretch of rows: any number of frames needs no open files.

    Attributes
    ----------
    path, hdu : str
    header : fits.Header
        Of the HDU, as that of an image.
    primary : fits.Header
    shape : (ny, nx)
    offset : int
        Of the first pixel in the file; -1: the image is compressed.
    """

    path: str
    hdu: str
    header: fits.Header
    primary: fits.Header
    shape: tuple[int, int]
    offset: int = -1
    rice: _RiceRows | None = None

    def value(self, key: str) -> Any:
        """Value of a key of the primary header or, where that lacks it, of the HDU's own; None: neither has it."""
        return self.primary.get(key, self.header.get(key)) if key else None

    def read(self, y0: int, y1: int) -> np.ndarray:
        """Rows y0 to y1 (exclusive), (y1 - y0, nx) in the machine's byte order, scaled as the header says.

        Raises
        ------
        OSError
            The file is not there or cannot be read: a later try may cure it.
        UnprocessableData
            The file is damaged.
        """
        if not 0 <= y0 < y1 <= self.shape[0]:
            raise ValueError(f"rows {y0}:{y1} of {self.path}[{self.hdu}], which has {self.shape[0]}")
        if self.offset >= 0:
            return self._read_plain(y0, y1)
        return self._read_tiles(y0, y1) if self.rice is None else self._read_rice(self.rice, y0, y1)

    def _read_plain(self, y0: int, y1: int) -> np.ndarray:
        dtype, nx = np.dtype(_DTYPES[int(self.header["BITPIX"])]), self.shape[1]
        values = self._read_bytes(self.offset + y0 * nx * dtype.itemsize, (y1 - y0) * nx * dtype.itemsize)
        return _scale_values(values.view(dtype).reshape(-1, nx), self.header)

    def _read_rice(self, rice: _RiceRows, y0: int, y1: int) -> np.ndarray:
        starts, sizes = rice.starts[y0:y1], rice.sizes[y0:y1]
        first = int(starts.min())
        data = self._read_bytes(first, int((starts + sizes).max()) - first)
        try:
            values = decode_rows(data, starts - first, sizes, self.shape[1], rice.width, rice.block)
        except ValueError as error:
            raise _damaged(self.path, self.hdu, error) from None
        return _scale_values(values, self.header)

    def _read_tiles(self, y0: int, y1: int) -> np.ndarray:
        """By astropy, which knows all methods and tilings."""
        try:
            with Path(self.path).open("rb") as stream, fits.open(stream, memmap=False) as hdus:
                return np.ascontiguousarray(hdus[_find_hdu(self.hdu)].section[y0:y1, :])
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise _damaged(self.path, self.hdu, error) from None

    def _read_bytes(self, start: int, size: int) -> np.ndarray:
        with Path(self.path).open("rb") as stream:
            stream.seek(start)
            data = np.fromfile(stream, np.uint8, size)
        if data.size < size:
            raise UnprocessableData(f"{self.path}[{self.hdu}] is cut short; fetch the file again and ingest it")
        return data


def open_rows(path: str, hdu: str) -> FrameRows:
    """Header and place of the image in the HDU called (or numbered) `hdu`; no pixel is read.

    Raises
    ------
    OSError
        The file is not there.
    UnprocessableData
        It is no FITS file, lacks the HDU, or that holds no image.
    """
    with Path(path).open("rb") as stream, warnings.catch_warnings():
        # what is cut short raises when its rows are read
        warnings.filterwarnings("ignore", message="File may have been truncated", category=AstropyUserWarning)
        try:
            with fits.open(stream, memmap=False, disable_image_compression=True) as hdus:
                header, primary = hdus[_find_hdu(hdu)].header.copy(), hdus[0].header.copy()
                place = hdus[_find_hdu(hdu)].fileinfo()["datLoc"]
        except (KeyError, IndexError):
            raise UnprocessableData(f"{path} has no HDU {hdu!r}; ingest the exposure again from its source") from None
        except (OSError, TypeError, ValueError) as error:
            raise _damaged(path, hdu, error) from None
    table, compressed = header, bool(header.get("ZIMAGE", False))
    header = _restore_header(table) if compressed else header
    if header.get("NAXIS") != 2 or int(header.get("BITPIX", 0)) not in _DTYPES:
        raise UnprocessableData(f"{path}[{hdu}] holds no image; fetch the file again and ingest it")
    frame = FrameRows(path, hdu, header, primary, (int(header["NAXIS2"]), int(header["NAXIS1"])), place)
    if not compressed:
        return frame
    return FrameRows(path, hdu, header, primary, frame.shape, -1, _locate_rows(frame, table))


def _locate_rows(frame: FrameRows, table: fits.Header) -> _RiceRows | None:
    """Where the rows are, if this is integers compressed row by row with RICE_1, as `fpack` does; else None."""
    named = {str(table.get(f"ZNAME{i}", "")).strip(): table.get(f"ZVAL{i}") for i in range(1, 10)}
    width, block, nx = int(named.get("BYTEPIX") or 4), int(named.get("BLOCKSIZE") or 32), frame.shape[1]
    form = re.match(r"1?([PQ])B", str(table.get("TFORM1", "")))
    usual = (
        table.get("ZCMPTYPE") == "RICE_1" and table.get("TFIELDS") == 1 and form is not None
        and table.get("ZBITPIX", -32) > 0 and width in (1, 2, 4)
        and table.get("ZTILE1", nx) == nx and table.get("ZTILE2", 1) == 1
    )  # fmt: skip
    if not usual:
        return None
    size = int(table["NAXIS1"])
    dtype = np.dtype(">i4" if form.group(1) == "P" else ">i8")
    pairs = frame._read_bytes(frame.offset, size * frame.shape[0]).view(dtype).reshape(frame.shape[0], -1)
    heap = frame.offset + int(table.get("THEAP", size * frame.shape[0]))
    sizes, starts = pairs[:, 0].astype(np.int64), heap + pairs[:, 1].astype(np.int64)
    return _RiceRows(starts, sizes, width, block) if (sizes > width).all() else None


def _restore_header(table: fits.Header) -> fits.Header:
    """The image's own header from that of the table it is compressed in."""
    header = fits.Header([card for card in table.cards if not _TABLE_CARDS.fullmatch(card.keyword)])
    for key in ("BITPIX", "NAXIS", "NAXIS1", "NAXIS2"):
        if f"Z{key}" in table:
            header[key] = table[f"Z{key}"]
    return header


def _find_hdu(hdu: str) -> int | str:
    return int(hdu) if str(hdu).isdigit() else str(hdu)


def _damaged(path: str, hdu: str, error: Exception) -> UnprocessableData:
    text = " ".join(str(error).split())
    return UnprocessableData(f"{path}[{hdu}] is damaged ({text}); fetch the file again and ingest it")


def _scale_values(values: np.ndarray, header: fits.Header) -> np.ndarray:
    """Stored values to physical ones (FITS standard 4.0, section 4.4.2.5); unsigned 16-bit integers stay integers."""
    scale, zero = float(header.get("BSCALE", 1.0)), float(header.get("BZERO", 0.0))
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    if scale == 1.0 and zero == 0.0:
        return native
    if scale == 1.0 and zero == 32768.0 and native.dtype == np.int16:
        return native.view(np.uint16) ^ np.uint16(0x8000)
    return native.astype(np.float32) * np.float32(scale) + np.float32(zero)
