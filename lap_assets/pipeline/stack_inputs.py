"""The inputs of a stack: published warps opened for streaming, or warps in memory, behind one interface.

Here: reading and what is known of each input. How they are combined is `pipeline/stacks.py`'s.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from astropy.io import fits

from lap_assets.errors import NotFound
from lap_assets.model.ids import Pin
from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage
from lap_assets.pipeline.psf_members import read_psf_grid
from lap_assets.science.psf_grid import PsfGrid
from lap_assets.science.stack import typical_variance
from lap_assets.science.streaks import draw_streaks
from lap_assets.store.repo import Repo

_HARD = int(NO_WEIGHT)
_STREAK = int(Mask.STREAK)
_SAMPLED_ROWS = 128

# (first row, last row + 1, arrays to be filled if there are any) -> sci, mask, var of these rows
Read = Callable[[int, int, Sequence[np.ndarray] | None], Sequence[np.ndarray]]


@dataclass
class StackInput:
    """One offered warp.

    Attributes
    ----------
    header : astropy.io.fits.Header
    shape : (ny, nx)
    read : callable
        Rows of sci [nJy], mask and var [nJy²].
    psf : PsfGrid or None
    levels : dict of str to (by, bx) array, or None
        Planes LEVEL, COUNT, SKY of the warp's blocks.
    stars : (m, 3) float or None
        x, y [px] and flux [nJy].
    streaks : DataFrame or None
        Trails to be masked while reading.
    margin_px : float
        Added on both sides of a trail.
    """

    header: fits.Header
    shape: tuple[int, int]
    read: Read
    psf: PsfGrid | None = None
    levels: Mapping[str, np.ndarray] | None = None
    stars: np.ndarray | None = None
    streaks: pd.DataFrame | None = None
    margin_px: float = 0.0
    _trails: np.ndarray | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The exposure."""
        return str(self.header.get("EXPOSURE", ""))

    @property
    def n_streaks(self) -> int:
        return 0 if self.streaks is None else len(self.streaks)

    @cached_property
    def variance(self) -> float:
        """Typical variance of a pixel, nJy²: from the header, else from a sample of rows; NaN without a good pixel."""
        known = self.header.get("MEDVAR")
        if known is not None:
            return float(known)
        step = max(self.shape[0] // _SAMPLED_ROWS, 1)
        rows = [self.read(row, row + 1, None) for row in range(0, self.shape[0], step)]
        sci, mask, var = (np.concatenate([one[plane] for one in rows]) for plane in range(3))
        return typical_variance(MaskedImage(sci, mask, var))

    def fill(self, first: int, last: int, sci: np.ndarray, mask: np.ndarray, var: np.ndarray) -> None:
        """Read rows into the given arrays, trails masked."""
        self.read(first, last, (sci, mask, var))
        if self.n_streaks:
            trails = np.unpackbits(self._draw()[first:last], axis=1, count=self.shape[1])
            mask |= trails.astype(np.int16) * np.int16(_STREAK)

    def _draw(self) -> np.ndarray:
        """Trails, eight pixels to a byte."""
        if self._trails is None:
            self._trails = np.packbits(draw_streaks(self.shape, self.streaks, self.margin_px), axis=1)
        return self._trails

    def read_image(self) -> MaskedImage:
        """All rows in memory, trails masked."""
        image = MaskedImage(
            np.empty(self.shape, np.float32), np.empty(self.shape, np.int16), np.empty(self.shape, np.float32),
            self.header,
        )  # fmt: skip
        self.fill(0, self.shape[0], image.sci, image.mask, image.var)
        return image


@contextmanager
def open_inputs(
    repo: Repo, pins: Sequence[Pin], streaks: Mapping[str, pd.DataFrame] | None = None, margin_px: float = 0.0
) -> Iterator[list[StackInput]]:
    """Published warps, opened; what was read in full is checked against its checksums at the end.

    Parameters
    ----------
    streaks : mapping of exposure to DataFrame
        Trails to be masked.

    Raises
    ------
    IntegrityError
        When a warp's bytes are not what was published.
    """
    with ExitStack() as stack:
        inputs = []
        for pin in pins:
            rows = stack.enter_context(repo.open_rows(pin, "image.fits", ("SCI", "MASK", "VAR")))
            inputs.append(
                StackInput(
                    rows.header, tuple(rows.shape), rows.read, read_psf_grid(repo, pin), _read_levels(repo, pin),
                    _read_stars(repo, pin), (streaks or {}).get(pin.data_id.parts[0]), margin_px,
                )
            )  # fmt: skip
        yield inputs


def wrap_images(images: Sequence[MaskedImage]) -> list[StackInput]:
    """Warps that lie in memory, of which nothing else is known."""

    def make_reader(image: MaskedImage) -> Read:
        def read(first: int, last: int, out: Sequence[np.ndarray] | None) -> Sequence[np.ndarray]:
            rows = [plane[first:last] for plane in (image.sci, image.mask, image.var)]
            for into, one in zip(out or (), rows, strict=False):
                into[...] = one
            return out or rows

        return read

    return [StackInput(image.header, image.shape, make_reader(image)) for image in images]


def _read_levels(repo: Repo, pin: Pin) -> dict[str, np.ndarray] | None:
    try:
        return {name: array for name, (array, _) in repo.read_planes(pin, "levels.fits").items()}
    except NotFound:
        return None


def _read_stars(repo: Repo, pin: Pin) -> np.ndarray | None:
    try:
        return repo.read_table(pin, "stars.parquet", ["x", "y", "flux_njy"]).to_numpy(float)
    except NotFound:
        return None


def read_used(repo: Repo, pin: Pin) -> np.ndarray:
    """(p, ny, nx) integers: which inputs entered each pixel of a stack."""
    planes = repo.read_planes(pin, "used.fits")
    return np.stack([planes[f"USED{k}"][0] for k in range(len(planes))])
