"""Projection cells and skycells: one tangent plane each, its grid of images, and what a footprint overlaps.

Here belong names, sizes, headers and pixel geometry of one cell; how cells tile the sky is `tessellation.py`'s,
resampling is `science/warp.py`'s, geometry without cells is `sphere.py`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy.io import fits

from lap_assets.model.sphere import (
    Polygon,
    bounding_cap,
    clip_polygon,
    deproject_tan,
    planar_area,
    positions,
    project_tan,
    separation_deg,
    tangent_basis,
    unit_vectors,
)

# an overlap of less area than this (square pixels) is a touch
_TOUCH_PX2 = 1e-6


@dataclass(frozen=True)
class Skycell:
    """One image of a projection cell.

    Attributes
    ----------
    name : str
        Row then column: `"53"` is row 5 (counted to the north), column 3 (counted to the west).
    cell : str
        Name of its projection cell.
    x0, y0 : int
        Pixel of the projection cell that is this image's pixel (0, 0).
    nx, ny : int
    inner : (x0, x1, y0, y1)
        Half-open region in this image's pixels that no other skycell of the cell owns.
    ra_deg, dec_deg, pixel_scale_arcsec, crpix
        Tangent point, scale, and the tangent point's FITS pixel (1-based) in this image.
    """

    name: str
    cell: str
    x0: int
    y0: int
    nx: int
    ny: int
    inner: tuple[int, int, int, int]
    ra_deg: float
    dec_deg: float
    pixel_scale_arcsec: float
    crpix: tuple[float, float]

    def header(self) -> fits.Header:
        """TAN header of the image, NAXIS cards included."""
        return _tan_header(self.ra_deg, self.dec_deg, self.pixel_scale_arcsec, self.crpix, self.nx, self.ny)


@dataclass(frozen=True)
class ProjectionCell:
    """One tangent plane with its grid of skycells; x counts to the west, y to the north.

    Attributes
    ----------
    name : str
        `"rings.v3.1405"`, `"demo.0"`.
    ra_deg, dec_deg : float
        Tangent point.
    pixel_scale_arcsec : float
    grid : (columns, rows)
    skycell_px, pitch_px : (x, y)
        Size of a skycell, and the step from one to the next.
    margin_px : (x, y)
        FITS pixel (1-based) of skycell (0, 0) at which the region it owns begins: CRPIX of the tessellation's table.
    """

    name: str
    ra_deg: float
    dec_deg: float
    pixel_scale_arcsec: float
    grid: tuple[int, int]
    skycell_px: tuple[int, int]
    pitch_px: tuple[int, int]
    margin_px: tuple[float, float]

    @property
    def nx(self) -> int:
        return self.pitch_px[0] * (self.grid[0] - 1) + self.skycell_px[0]

    @property
    def ny(self) -> int:
        return self.pitch_px[1] * (self.grid[1] - 1) + self.skycell_px[1]

    @property
    def crpix(self) -> tuple[float, float]:
        """FITS pixel (1-based) of the tangent point in the whole cell."""
        x, y = (m + p * g / 2 for m, p, g in zip(self.margin_px, self.pitch_px, self.grid, strict=True))
        return x, y

    @cached_property
    def _basis(self) -> np.ndarray:
        return tangent_basis(self.ra_deg, self.dec_deg)

    @property
    def _scale_rad(self) -> float:
        return float(np.radians(self.pixel_scale_arcsec / 3600.0))

    @cached_property
    def radius_deg(self) -> float:
        """Distance of the farthest corner from the tangent point."""
        dx = max(self.crpix[0] - 0.5, self.nx + 0.5 - self.crpix[0])
        dy = max(self.crpix[1] - 0.5, self.ny + 0.5 - self.crpix[1])
        return float(np.degrees(np.arctan(np.hypot(dx, dy) * self._scale_rad)))

    @cached_property
    def skycells(self) -> Mapping[str, Skycell]:
        """Skycells by name, row by row."""
        return {
            one.name: one
            for one in (self._make_skycell(k, j) for j in range(self.grid[1]) for k in range(self.grid[0]))
        }

    def skycell_name(self, column: int, row: int) -> str:
        """Name of the skycell in this column and row: its number, `columns * row + column`, two digits or more."""
        width = max(2, len(str(self.grid[0] * self.grid[1] - 1)))
        return f"{self.grid[0] * row + column:0{width}d}"

    def _make_skycell(self, column: int, row: int) -> Skycell:
        inner: list[int] = []
        for index, n, p, size, margin in zip(
            (column, row), self.grid, self.pitch_px, self.skycell_px, self.margin_px, strict=True
        ):
            first = int(np.ceil(margin - 1.0))
            inner += [0 if index == 0 else first, size if index == n - 1 else first + p]
        x0, y0 = column * self.pitch_px[0], row * self.pitch_px[1]
        crpix = (self.crpix[0] - x0, self.crpix[1] - y0)
        return Skycell(
            self.skycell_name(column, row), self.name, x0, y0, *self.skycell_px,
            (inner[0], inner[1], inner[2], inner[3]), self.ra_deg, self.dec_deg, self.pixel_scale_arcsec, crpix,
        )  # fmt: skip

    def header(self) -> fits.Header:
        """TAN header of the whole cell, NAXIS cards included."""
        return _tan_header(self.ra_deg, self.dec_deg, self.pixel_scale_arcsec, self.crpix, self.nx, self.ny)

    def sky_to_pixel(self, ra_deg: np.ndarray | float, dec_deg: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """(x, y) 0-based pixels of the whole cell; NaN on the far hemisphere."""
        xi, eta = project_tan(unit_vectors(ra_deg, dec_deg), self._basis)
        return self.crpix[0] - 1.0 - xi / self._scale_rad, self.crpix[1] - 1.0 + eta / self._scale_rad

    def pixel_to_sky(self, x: np.ndarray | float, y: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """(ra_deg, dec_deg) of 0-based pixels of the whole cell."""
        xi = -(np.asarray(x, float) - self.crpix[0] + 1.0) * self._scale_rad
        eta = (np.asarray(y, float) - self.crpix[1] + 1.0) * self._scale_rad
        return positions(deproject_tan(xi, eta, self._basis))

    def footprint(self, skycell: str | None = None) -> tuple[tuple[float, float], ...]:
        """The four outer pixel corners of the cell, or of one skycell, as (ra_deg, dec_deg)."""
        box = self.skycells[skycell] if skycell else None
        x0, y0, nx, ny = (box.x0, box.y0, box.nx, box.ny) if box else (0, 0, self.nx, self.ny)
        x = np.array([x0, x0 + nx, x0 + nx, x0]) - 0.5
        y = np.array([y0, y0, y0 + ny, y0 + ny]) - 0.5
        return tuple((float(a), float(d)) for a, d in zip(*self.pixel_to_sky(x, y), strict=True))

    def owning_skycells(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(column, row) of the skycells that own pixels of the cell; what lies outside goes to the nearest."""
        index = []
        for value, centre, p, n in zip((x, y), self.crpix, self.pitch_px, self.grid, strict=True):
            step = np.floor((np.asarray(value, float) + 1.0 - centre) / p + n / 2)
            index.append(np.clip(step, 0, n - 1).astype(int))
        return index[0], index[1]

    def overlaps(self, polygon: Polygon) -> bool:
        """Whether a polygon of (ra_deg, dec_deg) covers any area of the cell."""
        return self.overlaps_any(Outlines([polygon]))

    def overlaps_any(self, outlines: "Outlines") -> bool:
        """Whether any of several polygons covers any area of the cell."""
        heights = outlines.vectors @ self._sides.T
        beyond = np.logical_and.reduceat(heights <= 0.0, outlines.starts).any(axis=1)  # all of it beyond one side
        within = np.logical_and.reduceat((heights > 0.0).all(axis=1), outlines.starts)
        # those that lie within first: one look at them is enough
        order = (*np.flatnonzero(within), *np.flatnonzero(~within & ~beyond))
        return any(self._covers(outlines.corners(int(i))) for i in order)

    def _covers(self, vectors: list[np.ndarray]) -> bool:
        x, y = self._clip(vectors)
        return x.size >= 3 and planar_area(x, y) > _TOUCH_PX2

    def skycells_overlapping(self, polygon: Polygon) -> list[str]:
        """Names of the skycells that share area with a polygon of (ra_deg, dec_deg), sorted."""
        vectors = _polygon_vectors(polygon)
        x, y = self._clip(vectors)
        if x.size < 3 or planar_area(x, y) <= _TOUCH_PX2:
            return []
        columns, rows = (
            range(max(0, int((v.min() + 0.5 - size) // p)), min(n, int((v.max() + 0.5) // p) + 1))
            for v, p, size, n in zip((x, y), self.pitch_px, self.skycell_px, self.grid, strict=True)
        )
        return [
            self.skycell_name(column, row)
            for row in rows
            for column in columns
            if self._shares_area(vectors, column * self.pitch_px[0], row * self.pitch_px[1])
        ]

    def _shares_area(self, vectors: list[np.ndarray], x0: int, y0: int) -> bool:
        x, y = self._clip(vectors, (x0, x0 + self.skycell_px[0], y0, y0 + self.skycell_px[1]))
        return x.size >= 3 and planar_area(x, y) > _TOUCH_PX2

    def _clip(
        self, vectors: list[np.ndarray], box: tuple[int, int, int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(x, y) corners, in cell pixels, of the part of a polygon inside a half-open pixel box (default: all)."""
        clipped = clip_polygon(vectors, list(self._find_sides(box) if box else self._sides))
        if len(clipped) < 3:
            return np.empty(0), np.empty(0)
        xi, eta = project_tan(np.array(clipped), self._basis)
        return self.crpix[0] - 1.0 - xi / self._scale_rad, self.crpix[1] - 1.0 + eta / self._scale_rad

    @cached_property
    def _sides(self) -> np.ndarray:
        return self._find_sides((0, self.nx, 0, self.ny))

    def _find_sides(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """Inward normals (5, 3) of a half-open pixel box: the near hemisphere, and a plane for each side."""
        x0, x1, y0, y1 = box
        east, north, centre = self._basis
        s, (cx, cy) = self._scale_rad, self.crpix
        # x >= a  <=>  -xi >= (a - crpix + 1) s, times the (positive) depth: a plane through the origin
        return np.array([
            centre,
            -east - (x0 + 0.5 - cx) * s * centre,
            east + (x1 + 0.5 - cx) * s * centre,
            north - (y0 + 0.5 - cy) * s * centre,
            -north + (y1 + 0.5 - cy) * s * centre,
        ])  # fmt: skip


class Outlines:
    """Polygons of (ra_deg, dec_deg), such as the chips of an exposure, made ready to be compared with many cells.

    Raises `BadInput` as `bounding_cap` does.

    Attributes
    ----------
    vectors : array (n, 3)
        Corners of all of them.
    starts : array (m,)
        Index of each one's first corner.
    centres : array (m, 3)
    radii_deg : array (m,)
        Caps that hold each.
    """

    def __init__(self, polygons: Sequence[Polygon]) -> None:
        counts = np.array([len(polygon) for polygon in polygons])
        corners = np.array([corner for polygon in polygons for corner in polygon], float)
        if counts.min() < 3 or not np.isfinite(corners).all() or np.abs(corners[:, 1]).max() > 90.0:
            for polygon in polygons:
                bounding_cap(polygon)  # says which and why
        self.vectors = unit_vectors(corners[:, 0], corners[:, 1])
        self.starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self._ends = np.cumsum(counts)
        sums = np.add.reduceat(self.vectors, self.starts)
        self.centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
        apart = separation_deg(self.vectors, np.repeat(self.centres, counts, axis=0))
        self.radii_deg = np.maximum.reduceat(apart, self.starts)
        for i in np.flatnonzero(self.radii_deg >= 89.9):
            bounding_cap(polygons[i])

    def corners(self, number: int) -> list[np.ndarray]:
        """Unit vectors of the corners of one polygon."""
        return list(self.vectors[self.starts[number] : self._ends[number]])


def _polygon_vectors(polygon: Polygon) -> list[np.ndarray]:
    bounding_cap(polygon)  # refuses what is no polygon
    corners = np.asarray(polygon, float)
    return list(unit_vectors(corners[:, 0], corners[:, 1]))


def _tan_header(
    ra_deg: float, dec_deg: float, pixel_scale_arcsec: float, crpix: tuple[float, float], nx: int, ny: int
) -> fits.Header:
    scale = pixel_scale_arcsec / 3600.0
    header = fits.Header()
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, nx, ny
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    header["CRVAL1"], header["CRVAL2"] = ra_deg, dec_deg
    header["CRPIX1"], header["CRPIX2"] = crpix
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -scale, 0.0, 0.0, scale
    # the default turns the cell at the north pole by 180°
    header["LONPOLE"] = 180.0
    header["RADESYS"] = "ICRS"
    return header
