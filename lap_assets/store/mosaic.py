"""Skycells put together on the grid of their projection cell, for people who ask for a whole cell.

Skycells of one cell share projection and grid and differ by whole pixels of CRPIX, so nothing is resampled. Where
two overlap, the first with data counts. Warping onto another grid is `science/`'s.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from astropy.io import fits

from lap_assets.errors import BadInput
from lap_assets.model.image import Mask, MaskedImage
from lap_assets.store.fits_format import select_wcs_cards

MAX_PIXELS = 1_000_000_000
_MAX_OFFSET = 1e-6  # px: skycells are whole pixels apart
_SHIFTED = frozenset({"CRPIX1", "CRPIX2"})


@dataclass(frozen=True)
class Grid:
    """Shape and header of a mosaic, and where pixel (0, 0) of each of its images falls: (x, y)."""

    shape: tuple[int, int]
    header: fits.Header
    corners: tuple[tuple[int, int], ...]


def plan_mosaic(headers: Sequence[fits.Header]) -> Grid:
    """The smallest grid that holds images with these headers.

    Raises `BadInput` if they are not on one grid or the mosaic would be larger than a thousand million pixels.
    """
    first = headers[0]
    corners = []
    for header in headers:
        if _fixed_cards(header) != _fixed_cards(first):
            raise BadInput("these images are not on one grid; give skycell=")
        offset = [float(first[key]) - float(header[key]) for key in ("CRPIX1", "CRPIX2")]
        if any(abs(one - round(one)) > _MAX_OFFSET for one in offset):
            raise BadInput("these images are not whole pixels apart; give skycell=")
        corners.append((round(offset[0]), round(offset[1])))
    x0, y0 = (min(corner[i] for corner in corners) for i in (0, 1))
    nx = max(x + int(h["NAXIS1"]) for (x, _), h in zip(corners, headers, strict=True)) - x0
    ny = max(y + int(h["NAXIS2"]) for (_, y), h in zip(corners, headers, strict=True)) - y0
    if nx * ny > MAX_PIXELS:
        raise BadInput(f"the whole cell has {nx} × {ny} pixels, too many for one image; give skycell=")
    header = fits.Header(first, copy=True)
    header["NAXIS1"], header["NAXIS2"] = nx, ny
    header["CRPIX1"], header["CRPIX2"] = float(first["CRPIX1"]) - x0, float(first["CRPIX2"]) - y0
    return Grid((ny, nx), header, tuple((x - x0, y - y0) for x, y in corners))


def mosaic_images(grid: Grid, images: Iterable[MaskedImage]) -> MaskedImage:
    """Put images on a grid, in the order of its corners; pixels of no image have NO_DATA, variance 0."""
    whole = MaskedImage(
        sci=np.zeros(grid.shape, np.float32),
        mask=np.full(grid.shape, int(Mask.NO_DATA), np.int16),
        var=np.zeros(grid.shape, np.float32),
        header=grid.header,
    )
    for (x, y), image in zip(grid.corners, images, strict=True):
        ny, nx = image.shape
        here = np.s_[y : y + ny, x : x + nx]
        free = (whole.mask[here] & int(Mask.NO_DATA)) != 0
        pairs = [(whole.sci, image.sci), (whole.mask, image.mask), (whole.var, image.var)]
        for name, plane in image.planes.items():
            pairs.append((whole.planes.setdefault(name, np.zeros(grid.shape, plane.dtype)), plane))
        for target, source in pairs:
            np.copyto(target[here], source, where=free)
    return whole


def _fixed_cards(header: fits.Header) -> dict[str, object]:
    cards = {card.keyword: card.value for card in select_wcs_cards(header).cards if card.keyword not in _SHIFTED}
    return cards | {"BUNIT": header.get("BUNIT")}
