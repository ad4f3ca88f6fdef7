"""Passes over the pixels of a plane: byte order, the sum FITS calls DATASUM, values that are not finite.

What the sums mean for a file is `fits_headers.py`'s; Rice coding is `rice.py`'s, quantisation
`quantisation.py`'s, and the compiled loops of all three are in `pixel_kernels.py`.
"""

from collections.abc import Callable
from types import ModuleType

import numpy as np

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
# all bits of the exponent are set in what is not finite
_EXPONENTS = {4: np.uint64(0x7F800000), 8: np.uint64(0x7FF0000000000000)}


def load_kernels() -> ModuleType:
    """The module of the compiled kernels."""
    from lap_assets.store import pixel_kernels  # numba is slow to import, and needed for pixels only

    return pixel_kernels


def measure_plane(array: np.ndarray, first: int = 0) -> tuple[int, int]:
    """What must be known of a plane before it is published, from one pass over it.

    Parameters
    ----------
    array : contiguous array in the machine's byte order
        The plane, or a stretch of it.
    first : int
        Number of the stretch's first pixel in the plane.

    Returns
    -------
    total : int
        As of `sum_pixels`.
    n_not_finite : int
        Pixels that are NaN or infinite; 0 for integers.
    """
    if array.dtype.kind != "f":
        return sum_pixels(array, first), 0
    total, count = load_kernels().measure(_view_bits(array), _EXPONENTS[array.itemsize])
    return int(total), int(count)


def sum_pixels(array: np.ndarray, first: int = 0) -> int:
    """Sum of the 32-bit words that the big-endian bytes of a plane make up, padded with zeros.

    Parameters
    ----------
    array : contiguous array in the machine's byte order
        The plane, or a stretch of it: the sums of stretches add up.
    first : int
        Number of the stretch's first pixel in the plane.
    """
    bits, kernels = _view_bits(array), load_kernels()
    words, rest = _split_words(bits, first)
    if words.size == 0:
        return int(kernels.sum_words(rest, first))
    total = int((kernels.sum_bytes if bits.itemsize == 1 else kernels.sum_pairs)(words))
    return total + (int(kernels.sum_words(rest, first + bits.size - rest.size)) if rest.size else 0)


def turn_and_sum(pixels: np.ndarray, first: int = 0) -> int:
    """Reverse the bytes of each pixel in place, as after reading them; the sum as of `sum_pixels`, in the same pass.

    Parameters
    ----------
    pixels : contiguous array in the machine's byte order
        A stretch that fits into the processor's cache: from memory this takes three times as long.
    first : int
        Number of the stretch's first pixel in the plane.
    """
    bits = _view_bits(pixels)
    if bits.itemsize == 4:
        return int(load_kernels().turn_quads(bits))
    words, rest = _split_words(bits, first)
    if bits.itemsize == 2 and words.size:
        total = int(load_kernels().turn_pairs(words))
        rest.byteswap(inplace=True)
        return total + (sum_pixels(rest, first + bits.size - rest.size) if rest.size else 0)
    bits.byteswap(inplace=True)
    return sum_pixels(bits, first)


def choose_turn(pixels: np.ndarray, first: int = 0) -> Callable[[int, int], int]:
    """`turn_and_sum` for many stretches of `pixels`, told by their ends; what is common to them is done once.

    Parameters
    ----------
    pixels, first
        As of `turn_and_sum`. A stretch begins at a multiple of four, and ends at one or beyond the last pixel.
    """
    bits, kernels = _view_bits(pixels), load_kernels()
    words, rest = _split_words(bits, first)
    if bits.itemsize == 4:
        return lambda begin, end: int(kernels.turn_quads(bits[begin:end]))
    if bits.itemsize == 2 and words.size and not rest.size:
        return lambda begin, end: int(kernels.turn_pairs(words[begin // 2 : end // 2]))
    return lambda begin, end: turn_and_sum(pixels[begin:end], first + begin)


def copy_turned(source: np.ndarray, target: np.ndarray) -> None:
    """Copy flat `source` to `target`, another array of the same type, each pixel's bytes reversed."""
    if source.itemsize in (2, 4):  # numpy takes two to four times as long
        load_kernels().copy_turned(_view_bits(source), _view_bits(target))
    else:
        np.copyto(target, source.view(source.dtype.newbyteorder()))


def _split_words(bits: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of one or two bytes as the words of the sum, which vectors are made of, and those that fill none.

    No words: the pixels are longer, or begin within a word of the sum or of the memory.
    """
    per_word = 4 // bits.itemsize if bits.itemsize < 4 else 0
    n = bits.size // per_word * per_word if per_word and first % per_word == 0 else 0
    words = bits[:n].view(np.uint32)
    return (words, bits[n:]) if words.flags.aligned else (words[:0], bits)


def _view_bits(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(_WORDS[array.itemsize])
