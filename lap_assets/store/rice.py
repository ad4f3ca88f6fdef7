"""Rice coding of the rows of a tile-compressed image (FITS standard 4.0, section 10.4.1).

Bytes to integers and integers to bytes; where the bytes stand in a file is the caller's, how floats become integers
`quantisation.py`'s. The method is that of R. White's `ricecomp` in CFITSIO: differences of successive pixels, folded to
be positive, each as a unary high part and `split` low bits, `split` chosen per block of pixels.
"""

import numpy as np

from lap_assets.store.plane_passes import load_kernels

BLOCK = 32  # pixels per block, as everybody writes it
# bits of the split's code, its value for a block stored plainly, and bits of a pixel; by bytes per pixel
_CODES = {1: (3, 6, 8), 2: (4, 14, 16), 4: (5, 25, 32)}
_DTYPES = {1: np.uint8, 2: np.int16, 4: np.int32}


def encode_rows(rows: np.ndarray, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Rows compressed one by one with RICE_1.

    Parameters
    ----------
    rows : (ny, nx) uint8, int16 or int32
        Contiguous.
    block : int
        Pixels per block.

    Returns
    -------
    data : (m,) uint8
        The compressed rows, one after the other.
    sizes : (ny,) int64
        Bytes of each row.
    """
    ny, nx = rows.shape
    width = rows.itemsize
    # a block is never longer than plain pixels after a code; the last word of a row is written whole
    longest = width + nx * width + -(-nx // block) + 8
    data, sizes = np.empty(ny * longest, np.uint8), np.empty(ny, np.int64)
    end = load_kernels().encode_rows(rows, block, *_CODES[width], data, sizes)
    return data[:end], sizes


def decode_rows(data: np.ndarray, starts: np.ndarray, sizes: np.ndarray, nx: int, width: int, block: int) -> np.ndarray:
    """Rows that were compressed one by one with RICE_1.

    Parameters
    ----------
    data : (m,) uint8
        Compressed bytes; where `count_spare` bytes follow the last row, no copy is made.
    starts, sizes : (ny,) int64
        Where in `data` each row begins and how long it is.
    nx : int
        Pixels of a row.
    width : int
        Bytes per pixel: 1, 2 or 4 (BYTEPIX).
    block : int
        Pixels per block (BLOCKSIZE).

    Returns
    -------
    (ny, nx) uint8, int16 or int32

    Raises
    ------
    ValueError
        A row needs more bytes than it has.
    """
    rows = np.empty((len(starts), nx), _DTYPES[width])
    ends = starts + sizes
    if len(starts) and (int(starts.min()) < 0 or int(sizes.min()) <= width or int(ends.max()) > data.size):
        raise ValueError("a compressed row lies outside the data")
    spare = count_spare(nx, block)
    if len(starts) and int(ends.max()) + spare > data.size:
        data = np.concatenate([data, np.zeros(spare, np.uint8)])
    if not load_kernels().decode_rows(data, starts, sizes, width, block, *_CODES[width], rows):
        raise ValueError("a compressed row is cut short")
    return rows


def count_spare(nx: int, block: int) -> int:
    """Bytes that a damaged row may be read beyond its end before that is noticed."""
    return 8 * min(nx, block) + 64
