"""Cutting an image into overlapping square blocks, on which Fourier filters may differ from block to block.

A block is filtered at a time: it stays in the cache, and memory does not grow with the image. Here: the cut, and
kernels as transfer functions of a block. Not here: which filters (`alard_lupton`, `decorrelation`, `zogy`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit
from scipy import fft

# even sides of small prime factors, quick to transform
_SIDES = tuple(n for n in range(96, 722, 2) if fft.next_fast_len(n, real=True) == n)


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of `side` px that overlap by 2·`halo`, and whose inner parts cover an image of `shape` (ny, nx)."""

    shape: tuple[int, int]
    side: int
    halo: int

    @property
    def inner(self) -> int:
        """Side of the part of a block that is its own."""
        return self.side - 2 * self.halo

    @property
    def n_rows(self) -> int:
        return -(-self.shape[0] // self.inner)

    @property
    def n_columns(self) -> int:
        return -(-self.shape[1] // self.inner)

    def bounds(self, row: int) -> tuple[int, int]:
        """Half-open image rows that the inner parts of a row of blocks cover."""
        return row * self.inner, min((row + 1) * self.inner, self.shape[0])

    def columns(self, column: int) -> tuple[int, int]:
        """Half-open image columns that the inner part of a block covers."""
        return column * self.inner, min((column + 1) * self.inner, self.shape[1])

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """(n_columns,) and (n_rows,) pixel coordinates x, y of the middles of the inner parts within the image."""
        x, y = (
            np.array([0.5 * (first + last - 1) for first, last in map(one, range(n))])
            for one, n in ((self.columns, self.n_columns), (self.bounds, self.n_rows))
        )
        return x, y

    def cut(self, planes: Sequence[np.ndarray], row: int, column: int, block: np.ndarray) -> None:
        """Fill `block` (len(planes), side, side) float32 with one block of each plane; zero beyond the image."""
        _cut_block(tuple(planes), row, column, self.inner, self.halo, block)

    def paste(self, block: np.ndarray, planes: Sequence[np.ndarray], row: int, column: int) -> None:
        """Write the inner part of one block into each plane."""
        _paste_block(block, tuple(planes), row, column, self.inner, self.halo)

    def join(self, times: int) -> "BlockGrid":
        """The grid of cells of `times` × `times` blocks, from the same corner."""
        return BlockGrid(self.shape, times * self.inner + 2 * self.halo, self.halo)


@njit(cache=True, nogil=True)
def _copy(source, to):
    # several times faster than an assignment of slices
    for x in range(source.size):
        to[x] = source[x]


@njit(cache=True, nogil=True)
def _cut_block(planes, row, column, inner, halo, block):
    ny, nx = planes[0].shape
    side = block.shape[1]
    top, left = row * inner - halo, column * inner - halo
    begin, end = max(-left, 0), min(nx - left, side)
    for number, plane in enumerate(planes):
        for v in range(side):
            line, y = block[number, v], top + v
            if y < 0 or y >= ny:
                line[:] = 0
                continue
            line[:begin], line[end:] = 0, 0
            _copy(plane[y, left + begin : left + end], line[begin:end])


@njit(cache=True, nogil=True)
def _paste_block(block, planes, row, column, inner, halo):
    ny, nx = planes[0].shape
    left = column * inner
    width = min(inner, nx - left)
    for number, plane in enumerate(planes):
        for y in range(row * inner, min((row + 1) * inner, ny)):
            _copy(block[number, y - row * inner + halo, halo : halo + width], plane[y, left : left + width])


def lay_blocks(shape: tuple[int, int], halo: int, about: int = 256) -> BlockGrid:
    """The grid of least work among blocks up to about twice and down to half of `about` px."""
    allowed = [side for side in _SIDES if about / 2 <= side <= 2 * about and side >= 4 * halo]
    allowed = allowed or [fft.next_fast_len(4 * halo, real=True)]
    work = [np.prod([-(-n // (side - 2 * halo)) for n in shape]) * side**2 * np.log(side) for side in allowed]
    return BlockGrid(tuple(shape), allowed[int(np.argmin(work))], halo)


def transfer_functions(kernels: np.ndarray, side: int) -> np.ndarray:
    """(n, side, side // 2 + 1) complex64 transforms of (n, s, s) centred kernels, for convolution on blocks.

    Only the rows that hold something are transformed along x.
    """
    size = kernels.shape[-1]
    middle = size // 2
    rows = fft.rfft(kernels.astype(np.float32), side, axis=2, workers=1)
    turns = _turns(side, middle)
    padded = np.empty((len(kernels), side, rows.shape[2]), np.complex64)
    np.multiply(rows[:, middle:], turns, out=padded[:, : size - middle])
    padded[:, size - middle : side - middle] = 0
    np.multiply(rows[:, :middle], turns, out=padded[:, side - middle :])
    return fft.fft(padded, axis=1, overwrite_x=True, workers=1)


@cache
def _turns(side: int, middle: int) -> np.ndarray:
    """Factors that bring pixel `middle` to the first place."""
    return np.exp(2j * np.pi * middle * np.arange(side // 2 + 1) / side).astype(np.complex64)
