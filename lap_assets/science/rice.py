"""Rice decompression of the rows of a tile-compressed image (FITS standard 4.0, section 10.4.1).

Bytes in, integers out; finding the bytes in a file is the caller's. Compressing does not belong here: astropy does it.
"""

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

# bits of the split's code, its value for a block stored plainly, and bits of a pixel; by bytes per pixel
_CODES = {1: (3, 6, 8), 2: (4, 14, 16), 4: (5, 25, 32)}
_DTYPES = {1: np.uint8, 2: np.int16, 4: np.int32}


def decode_rows(data: np.ndarray, starts: np.ndarray, sizes: np.ndarray, nx: int, width: int, block: int) -> np.ndarray:
    """Rows that were compressed one by one with RICE_1.

    The method is that of R. White's `ricecomp` in CFITSIO: differences of successive pixels, folded to be positive,
    each as a unary high part and `fs` low bits, `fs` chosen per block of pixels.

    Parameters
    ----------
    data : (m,) uint8
        Compressed bytes.
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
    code_bits, plain_code, pixel_bits = _CODES[width]
    if len(starts) and (int(starts.min()) < 0 or int(sizes.min()) <= width or int((starts + sizes).max()) > data.size):
        raise ValueError("a compressed row lies outside the data")
    # what a damaged row may be read beyond its end
    padded = np.concatenate([data, np.zeros(8 * nx + 64, np.uint8)])
    if not _decode_rows(padded, starts, sizes, width, block, code_bits, plain_code, pixel_bits, rows):
        raise ValueError("a compressed row is cut short")
    return rows


@intrinsic
def _count_leading_zeros(typingctx, value):
    """Zeros before the highest bit of a uint64; 64 for 0."""

    def generate(context, builder, signature, args):
        return builder.ctlz(args[0], context.get_constant(types.boolean, False))

    return types.uint64(types.uint64), generate


@njit(cache=True, nogil=True)
def _decode_rows(data, starts, sizes, width, block, code_bits, plain_code, pixel_bits, rows):
    """All rows; False where one runs out of bytes.

    The next `held` bits of a row stand at the upper end of `bits`; there are always 32 before a pixel is read.
    """
    ny, nx = rows.shape
    full = np.uint64(64)
    pixel_mask = np.int64((1 << pixel_bits) - 1)
    half = np.int64(1) << (pixel_bits - 1)
    for y in range(ny):
        place, end = starts[y], starts[y] + sizes[y] + 8
        last = np.int64(0)
        for _ in range(width):
            last = (last << 8) | np.int64(data[place])
            place += 1
        bits, held = np.uint64(0), 0
        for x0 in range(0, nx, block):
            if held < 32:
                bits |= _read_word(data, place) << np.uint64(32 - held)
                place, held = place + 4, held + 32
            split = np.int64(bits >> np.uint64(64 - code_bits)) - 1
            bits, held = bits << np.uint64(code_bits), held - code_bits
            for x in range(x0, min(x0 + block, nx)):
                folded = np.int64(0)
                if split >= 0:
                    if held < 32:
                        bits |= _read_word(data, place) << np.uint64(32 - held)
                        place, held = place + 4, held + 32
                    taken = pixel_bits
                    if split < plain_code:
                        high = np.int64(0)
                        zeros = np.int64(_count_leading_zeros(bits))
                        while zeros >= held:  # rare: longer than what is held
                            high, bits, held = high + held, _read_word(data, place) << np.uint64(32), 32
                            place += 4
                            if place > end:
                                return False
                            zeros = np.int64(_count_leading_zeros(bits))
                        high += zeros
                        bits, held = (bits << np.uint64(zeros)) << np.uint64(1), held - zeros - 1
                        if held < 32:
                            bits |= _read_word(data, place) << np.uint64(32 - held)
                            place, held = place + 4, held + 32
                        folded, taken = high << split, split
                    if taken > 0:
                        folded |= np.int64(bits >> (full - np.uint64(taken)))
                        bits, held = bits << np.uint64(taken), held - taken
                change = ~(folded >> 1) if folded & 1 else folded >> 1
                last = (last + change) & pixel_mask
                # bytes are unsigned, longer integers have a sign
                rows[y, x] = last if width == 1 or last < half else last - pixel_mask - 1
            if place > end:
                return False
    return True


@njit(cache=True, nogil=True, inline="always")
def _read_word(data, place):
    return (
        (np.uint64(data[place]) << np.uint64(24))
        | (np.uint64(data[place + 1]) << np.uint64(16))
        | (np.uint64(data[place + 2]) << np.uint64(8))
        | np.uint64(data[place + 3])
    )
