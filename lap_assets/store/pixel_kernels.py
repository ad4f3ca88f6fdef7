"""The numba kernels of the store, all in this module: passes over planes, Rice coding, quantisation.

Imported at first use by `plane_passes.py`, `rice.py` and `quantisation.py`, which say what they do and check what they
are given: numba takes a third of a second to import, and who asks for no pixel need not wait for it.
"""

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

ZERO = -2147483646  # what stands for an exact zero where floats are integers


# ---- passes over planes


@njit(cache=True, nogil=True)
def measure(pixels, exponent):
    """The sum, and the number of pixels all bits of whose exponent are set."""
    total, count, low = np.uint64(0), np.uint64(0), np.uint64(0xFFFFFFFF)
    for i in range(pixels.size):
        bits = np.uint64(pixels[i])
        total += (bits & low) + (bits >> np.uint64(32))
        count += np.uint64((bits & exponent) == exponent)
    return total, count


@njit(cache=True, nogil=True)
def sum_words(pixels, first):
    """The sum; pixels of less than four bytes stand in their word where their number says."""
    total, low = np.uint64(0), np.uint64(0xFFFFFFFF)
    if pixels.itemsize >= 4:
        for i in range(pixels.size):
            bits = np.uint64(pixels[i])
            total += (bits & low) + (bits >> np.uint64(32))
    elif pixels.itemsize == 2:
        for i in range(pixels.size):
            total += np.uint64(pixels[i]) << np.uint64(16 - 16 * ((first + i) % 2))
    else:
        for i in range(pixels.size):
            total += np.uint64(pixels[i]) << np.uint64(24 - 8 * ((first + i) % 4))
    return total


@njit(cache=True, nogil=True)
def sum_bytes(words):
    """The sum of pixels of one byte, four of them to a little-endian word."""
    total = np.uint64(0)
    for i in range(words.size):
        total += np.uint64(_turn_quad(words[i]))
    return total


@njit(cache=True, nogil=True)
def sum_pairs(words):
    """The sum of pixels of two bytes, two of them to a little-endian word."""
    total = np.uint64(0)
    for i in range(words.size):
        total += np.uint64(_swap_pair(words[i]))
    return total


@njit(cache=True, nogil=True)
def turn_pairs(words):
    """Reverse the bytes of pixels of two, two of them to a word, in place; the sum."""
    total, odd = np.uint64(0), np.uint32(0x00FF00FF)
    for i in range(words.size):
        word = words[i]
        word = np.uint32(((word & odd) << np.uint32(8)) | ((word >> np.uint32(8)) & odd))
        words[i] = word
        total += np.uint64(_swap_pair(word))
    return total


@njit(cache=True, nogil=True)
def turn_quads(pixels):
    """Reverse the bytes of pixels of four, in place (one array: only so is the loop made of vectors); the sum."""
    total = np.uint64(0)
    for i in range(pixels.size):
        pixels[i] = _turn_quad(pixels[i])
        total += np.uint64(pixels[i])
    return total


@njit(cache=True, nogil=True)
def copy_turned(source, target):
    """Copy pixels of two or four bytes to another array, each one's bytes reversed."""
    if source.itemsize == 2:
        for i in range(source.size):
            target[i] = _turn_pair(source[i])
    else:
        for i in range(source.size):
            target[i] = _turn_quad(source[i])


@njit(cache=True, nogil=True, inline="always")
def _turn_pair(bits):
    return np.uint16((bits << np.uint16(8)) | (bits >> np.uint16(8)))


@njit(cache=True, nogil=True, inline="always")
def _swap_pair(word):
    return np.uint32((word << np.uint32(16)) | (word >> np.uint32(16)))


@njit(cache=True, nogil=True, inline="always")
def _turn_quad(bits):
    inner = ((bits & np.uint32(0xFF00)) << np.uint32(8)) | ((bits >> np.uint32(8)) & np.uint32(0xFF00))
    return np.uint32((bits << np.uint32(24)) | inner | (bits >> np.uint32(24)))


# ---- Rice coding


@intrinsic
def _count_leading_zeros(typingctx, value):
    """Zeros before the highest bit of a uint64; 64 for 0."""

    def generate(context, builder, signature, args):
        return builder.ctlz(args[0], context.get_constant(types.boolean, False))

    return types.uint64(types.uint64), generate


@njit(cache=True, nogil=True)
def encode_rows(rows, block, code_bits, plain_code, pixel_bits, data, sizes):
    """All rows; returns the number of bytes. The last `held` bits of `bits` are those not yet written."""
    ny, nx = rows.shape
    width = pixel_bits >> 3
    mask = np.int64((1 << pixel_bits) - 1)
    folded = np.empty(block, np.int64)
    place = 0
    for y in range(ny):
        begin, last = place, np.int64(rows[y, 0])
        for k in range(width):
            data[place] = (last >> (pixel_bits - 8 - 8 * k)) & 0xFF
            place += 1
        bits, held = np.uint64(0), 0
        for x0 in range(0, nx, block):
            count = min(block, nx - x0)
            total = np.int64(0)
            for k in range(count):
                value = np.int64(rows[y, x0 + k])
                # the change as a signed number of pixel_bits bits, folded: 0, -1, 1, -2 ... become 0, 1, 2, 3 ...
                change = (value - last) << (64 - pixel_bits)
                folded[k] = ((change >> (63 - pixel_bits)) ^ (change >> 63)) & mask
                total += folded[k]
                last = value
            half = max(total - count // 2 - 1, 0) // count >> 1
            split = np.int64(64) - np.int64(_count_leading_zeros(np.uint64(half)))
            code = 0 if total == 0 else min(split, plain_code) + 1
            bits, held = (bits << np.uint64(code_bits)) | np.uint64(code), held + code_bits
            if held >= 32:
                place, held = _write_word(data, place, bits, held)
            if code == 0:
                continue
            for k in range(count):
                high, low = np.int64(0), pixel_bits
                if split < plain_code:
                    high, low = folded[k] >> split, split + 1
                    while high + low > 32:  # rare: zeros that fill a word
                        zeros = min(high, 32)
                        bits, held, high = bits << np.uint64(zeros), held + zeros, high - zeros
                        if held >= 32:
                            place, held = _write_word(data, place, bits, held)
                    value = (np.int64(1) << split) | (folded[k] & ((np.int64(1) << split) - 1))
                else:
                    value = folded[k]
                bits, held = (bits << np.uint64(high + low)) | np.uint64(value), held + high + low
                if held >= 32:
                    place, held = _write_word(data, place, bits, held)
        if held > 0:
            _write_word(data, place, bits << np.uint64(32 - held), 32)
            place += (held + 7) >> 3
        sizes[y] = place - begin
    return place


@njit(cache=True, nogil=True, inline="always")
def _write_word(data, place, bits, held):
    word = bits >> np.uint64(held - 32)
    data[place] = np.uint8(word >> np.uint64(24))
    data[place + 1] = np.uint8(word >> np.uint64(16))
    data[place + 2] = np.uint8(word >> np.uint64(8))
    data[place + 3] = np.uint8(word)
    return place + 4, held - 32


@njit(cache=True, nogil=True)
def decode_rows(data, starts, sizes, width, block, code_bits, plain_code, pixel_bits, rows):
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


# ---- quantisation


@njit(cache=True, nogil=True)
def find_least(bits, least):
    """Least positive float32 of each row, given and told by its bits as an int32; the largest int32 for none."""
    for y in range(bits.shape[0]):
        found = np.int32(0x7FFFFFFF)
        for x in range(bits.shape[1]):
            value = bits[y, x]
            found = min(found, value if value > 0 else np.int32(0x7FFFFFFF))
        least[y] = found


@njit(cache=True, nogil=True)
def find_ranges(bits, low, high):
    """Least and largest float32 of each row but for zeros, by their bits; the other way round where there is none.

    As integers, floats are in order once the bits of negative ones are turned over; integers are compared many at once.
    """
    rest = np.int32(0x7FFFFFFF)
    for y in range(bits.shape[0]):
        least, most = rest, np.int32(~rest)
        for x in range(bits.shape[1]):
            value = bits[y, x]
            place = np.int32(value ^ ((value >> np.int32(31)) & rest))
            some = (value & rest) != 0
            least = min(least, place if some else rest)
            most = max(most, place if some else np.int32(~rest))
        low[y] = np.int32(least ^ ((least >> np.int32(31)) & rest))
        high[y] = np.int32(most ^ ((most >> np.int32(31)) & rest))


@njit(cache=True, nogil=True)
def quantise(rows, steps, zeros, dither, randoms, starts, integers):
    """All rows."""
    ny, nx = rows.shape
    n_random = len(randoms)
    for y in range(ny):
        zero, per_unit = zeros[y], 1.0 / steps[y]
        seed, start, x0 = (dither + y) % n_random, starts[(dither + y) % n_random], 0
        while x0 < nx:
            count = min(nx - x0, n_random - start)
            for k in range(count):
                value = rows[y, x0 + k]
                level = np.floor((value - zero) * per_unit + randoms[start + k])
                integers[y, x0 + k] = np.int32(level) if value != 0 else np.int32(ZERO)
            seed, x0 = (seed + 1) % n_random, x0 + count
            start = starts[seed]


@njit(cache=True, nogil=True)
def restore(integers, steps, zeros, dither, randoms, starts, rows):
    """All rows as floats again, operation for operation as CFITSIO does it."""
    ny, nx = rows.shape
    n_random = len(randoms)
    for y in range(ny):
        step, zero = steps[y], zeros[y]
        seed, start, x0 = (dither + y) % n_random, starts[(dither + y) % n_random], 0
        while x0 < nx:
            count = min(nx - x0, n_random - start)
            for k in range(count):
                level = integers[y, x0 + k]
                value = (np.float64(level) - np.float64(randoms[start + k]) + 0.5) * step + zero
                rows[y, x0 + k] = np.float32(value) if level != ZERO else np.float32(0.0)
            seed, x0 = (seed + 1) % n_random, x0 + count
            start = starts[seed]
