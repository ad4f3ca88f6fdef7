"""Stretches of rows of a member's planes, for what holds many images side by side and none of them whole.

Where the member lies is `repo.py`'s, what a file looks like `fits_format.py`'s. Members of compressed products are
read whole.
"""

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import BinaryIO

import numpy as np
from astropy.io import fits

from lap_assets.errors import IntegrityError
from lap_assets.store.fits_format import PIECE, MalformedFile, find_planes
from lap_assets.store.fits_headers import fold_sum
from lap_assets.store.plane_passes import choose_turn, sum_pixels


class RowReader:
    """The rows of some planes of an open member, in any order; a context manager that closes it.

    What was read of a plane is checked against its DATASUM at the end, if that was every row.

    Attributes
    ----------
    shape : (ny, nx)
    header : fits.Header
        Of the first plane.
    """

    def __init__(
        self, stream: BinaryIO, member: str, names: Sequence[str], explain: Callable[[str], IntegrityError]
    ) -> None:
        """Read the headers of an open member, which may be closed afterwards.

        Parameters
        ----------
        names : sequence of str
            The planes, in the order in which they are handed out.
        member : str
            Its name, for messages.
        explain : callable
            Makes an error of a problem: says in which unit it is and what to do.

        Raises
        ------
        MalformedFile
            A plane is missing, compressed, not of two axes or not of the shape of the others.
        """
        found = {one.name: one for one in find_planes(stream)}
        missing = [name for name in names if name not in found]
        if missing or not names:
            raise MalformedFile(f"no HDU {', '.join(missing) or 'was asked for'}")
        self._explain = lambda problem: explain(f"{member}: {problem}")
        self._planes = [found[name] for name in names]
        self.shape: tuple[int, int] = self._planes[0].shape  # type: ignore[assignment]
        for one in self._planes:
            if one.tiling is not None or len(one.shape) != 2 or one.shape != self.shape:
                raise MalformedFile(f"HDU {one.name} is compressed or has the shape {one.shape}: no rows to read")
        self.header: fits.Header = self._planes[0].make_header()
        self._file = os.dup(stream.fileno())
        self._seen = np.zeros((len(names), self.shape[0]), bool)
        self._totals = [0] * len(names)

    def read(self, first: int, last: int, out: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """Rows `first` to `last` (exclusive) of each plane, (last - first, nx) in the machine's byte order.

        Parameters
        ----------
        out : sequence of array, optional
            Contiguous arrays of that shape and of the planes' types, in their order, to be filled and returned.

        Raises
        ------
        ValueError
            There are no such rows, or `out` does not fit them.
        IntegrityError
            The file ends before them.
        """
        if not 0 <= first < last <= self.shape[0]:
            raise ValueError(f"rows {first}:{last} of a plane that has {self.shape[0]}")
        shape = (last - first, self.shape[1])
        if out is None:
            out = [np.empty(shape, one.dtype) for one in self._planes]
        for rows, one in zip(out, self._planes, strict=True):
            if rows.shape != shape or rows.dtype != one.dtype or not rows.flags.c_contiguous:
                raise ValueError(f"rows of {one.name} do not fit into {rows.dtype} of shape {rows.shape}")
        for k, rows in enumerate(out):
            self._read_plane(k, rows, first)
        return list(out)

    def _read_plane(self, k: int, rows: np.ndarray, first: int) -> None:
        """Fill the rows piece by piece: while one is in the processor's cache it is turned round and summed."""
        plane, number, pixels = self._planes[k], first * self.shape[1], rows.reshape(-1)
        size, step, total = rows.itemsize, PIECE // rows.itemsize, 0
        whole, turn = memoryview(pixels).cast("B"), choose_turn(pixels, number)
        place = plane.offset + number * size
        for begin in range(0, pixels.size, step):
            view, here = whole[begin * size : (begin + step) * size], place + begin * size
            while view:
                count = os.preadv(self._file, [view], here)
                if not count:
                    raise self._explain(f"the file ends within HDU {plane.name}")
                view, here = view[count:], here + count
            total += turn(begin, begin + step)
        self._add_new(k, rows, first, total)

    def _add_new(self, k: int, rows: np.ndarray, first: int, total: int) -> None:
        """Add what was not read before to the plane's sum; `total` is that of all the rows."""
        seen = self._seen[k, first : first + len(rows)]
        if seen.any():
            total = sum(sum_pixels(rows[y], (first + int(y)) * self.shape[1]) for y in np.flatnonzero(~seen))
        self._totals[k] += total
        seen[:] = True

    def check(self) -> None:
        """Raise `IntegrityError` if a plane that was read to the last row is not what its DATASUM says."""
        for k, plane in enumerate(self._planes):
            if self._seen[k].all() and fold_sum(self._totals[k]) != plane.datasum:
                raise self._explain(f"HDU {plane.name}: the data differ from DATASUM")

    def close(self) -> None:
        """Close the file, unchecked."""
        os.close(self._file)

    def __enter__(self) -> "RowReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None:
            self.check()
