"""How the sky is cut into projection cells: the PS1 RINGS.V3 tessellation, and local ones.

Here belong which cells there are, who owns a point, and which cells a footprint overlaps; one cell's own geometry is
`cells.py`'s.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lap_assets.errors import BadInput, NotFound
from lap_assets.model.cells import Outlines, ProjectionCell, Skycell
from lap_assets.model.ids import check_name
from lap_assets.model.sphere import Polygon, unit_vectors

__all__ = [
    "LocalTessellation",
    "ProjectionCell",
    "RingsTessellation",
    "Skycell",
    "Tessellation",
    "load_tessellation",
]

_MOST_CELLS = 1000  # of a local tessellation
_LARGEST_RADIUS_DEG = 20.0  # of a local cell: beyond it pixels grow by more than 13 % (tangent projection)


class Tessellation(abc.ABC):
    """A named set of projection cells."""

    name: str

    @abc.abstractmethod
    def definition(self) -> dict[str, Any]:
        """What `load_tessellation` makes this one from."""

    @property
    @abc.abstractmethod
    def cell_names(self) -> tuple[str, ...]:
        """Names of all cells, in order of their numbers."""

    @abc.abstractmethod
    def cell(self, name: str) -> ProjectionCell:
        """The cell of this name; raises `NotFound`."""

    def cells_overlapping(self, polygon: Polygon) -> list[str]:
        """Names of the cells that share area with a polygon of (ra_deg, dec_deg), sorted."""
        return self.cells_overlapping_any([polygon])

    @abc.abstractmethod
    def cells_overlapping_any(self, polygons: Sequence[Polygon]) -> list[str]:
        """Names of the cells that share area with at least one polygon (the chips of an exposure), sorted."""

    @abc.abstractmethod
    def owners(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(cell names, skycell names) that own positions (n,); empty strings where nothing does."""

    def owner(self, ra_deg: float, dec_deg: float) -> tuple[str, str] | None:
        """(cell, skycell) that owns a position, None outside the tessellation."""
        cells, skycells = self.owners(np.array([ra_deg], float), np.array([dec_deg], float))
        return (str(cells[0]), str(skycells[0])) if cells[0] else None


# RINGS.V3, north of the equator: centre in Dec, upper edge, XCELL, YCELL, CRPIX1, CRPIX2 of the zone (STScI, "PS1 Sky
# tessellation patterns", table ps1grid.fits); mirrored southward
_RINGS_NORTH = np.array([
    (2, 3.998086931795508, 6240, 6243, 240.0, 242.0),
    (6, 7.997014822849273, 6291, 6247, 237.5, 240.0),
    (10, 11.995671545879146, 6248, 6250, 240.0, 242.0),
    (14, 15.994464100667857, 6242, 6254, 240.5, 239.5),
    (18, 19.99333106003115, 6274, 6258, 241.5, 238.0),
    (22, 23.991856317278298, 6279, 6261, 241.0, 242.0),
    (26, 27.990585819085737, 6255, 6265, 241.5, 240.5),
    (30, 31.988947843740302, 6274, 6269, 239.5, 241.5),
    (34, 35.98748871852416, 6265, 6274, 237.5, 237.5),
    (38, 39.98569922229713, 6305, 6279, 239.5, 238.0),
    (42, 43.98384988850235, 6320, 6284, 239.5, 240.0),
    (46, 47.98179099058205, 6307, 6289, 238.0, 242.0),
    (50, 51.97972846465295, 6261, 6295, 241.0, 239.5),
    (54, 55.97676677254534, 6283, 6302, 239.0, 242.0),
    (58, 59.97411834356914, 6278, 6311, 238.5, 237.5),
    (62, 63.97005521318337, 6240, 6319, 240.0, 241.0),
    (66, 67.96475284198297, 6307, 6333, 239.5, 240.0),
    (70, 71.95817764373305, 6365, 6350, 238.5, 240.0),
    (74, 75.94974140116577, 6413, 6371, 240.5, 242.0),
    (78, 79.93968190571101, 6452, 6398, 240.0, 242.0),
    (82, 83.93610604798963, 6481, 6429, 241.0, 242.0),
    (86, 87.96940975734594, 6501, 6419, 239.0, 239.5),
    (90, 90.0, 6240, 6240, 239.5, 240.0),
])  # fmt: skip
_RINGS_OVERLAP_PX = 480  # shared by neighbouring skycells: 240 of each


class RingsTessellation(Tessellation):
    """PS1 RINGS.V3: 46 zones of declination, 2644 cells of about 4°, 10 × 10 skycells of 0.25″ pixels each."""

    def __init__(self, name: str = "rings.v3") -> None:
        self.name = check_name(name, "tessellation")
        mirrored = np.vstack([_RINGS_NORTH[::-1], _RINGS_NORTH])
        self._dec = np.concatenate([-_RINGS_NORTH[::-1, 0], _RINGS_NORTH[:, 0]])
        self._upper = np.concatenate([-_RINGS_NORTH[-2::-1, 1], [0.0], _RINGS_NORTH[:-1, 1]])  # edges between zones
        self._size = mirrored[:, 2:4].astype(int)
        self._margin = mirrored[:, 4:6]
        count = np.floor(90.0 * np.cos(np.radians(np.abs(self._dec) - 2.0)) + 1e-9).astype(int)
        count[[0, -1]] = 1
        self._count = count
        self._first = np.concatenate([[0], np.cumsum(count)])
        zones = np.repeat(np.arange(len(count)), count)
        self._zone = zones
        self._ra = 360.0 * (np.arange(len(zones)) - self._first[zones]) / count[zones]

    def definition(self) -> dict[str, Any]:
        return {"kind": "rings", "name": self.name}

    @cached_property
    def cell_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}.{number:04d}" for number in range(len(self._zone)))

    def cell(self, name: str) -> ProjectionCell:
        number = self._numbers.get(name)
        if number is None:
            raise NotFound(
                f"no cell {name!r} in tessellation {self.name}: it has {self.cell_names[0]} to {self.cell_names[-1]}"
            )
        return self._cell(number)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.cell_names)}

    @cached_property
    def _made(self) -> dict[int, ProjectionCell]:
        return {}

    def _cell(self, number: int) -> ProjectionCell:
        if number not in self._made:
            zone = self._zone[number]
            nx, ny = (int(v) for v in self._size[zone])
            self._made[number] = ProjectionCell(
                self.cell_names[number], float(self._ra[number]), float(self._dec[zone]), 0.25, (10, 10), (nx, ny),
                (nx - _RINGS_OVERLAP_PX, ny - _RINGS_OVERLAP_PX),
                (float(self._margin[zone, 0]), float(self._margin[zone, 1])),
            )  # fmt: skip
        return self._made[number]

    @cached_property
    def _caps(self) -> tuple[np.ndarray, np.ndarray]:
        """Centres (2644, 3) and radii in degrees (2644,) of all cells."""
        centres = unit_vectors(self._ra, self._dec[self._zone])
        by_zone = np.array([self._cell(int(first)).radius_deg for first in self._first[:-1]])
        return centres, by_zone[self._zone]

    def cells_overlapping_any(self, polygons: Sequence[Polygon]) -> list[str]:
        if not polygons:
            return []
        centres, radii = self._caps
        outlines = Outlines(polygons)
        reach = np.minimum(radii + outlines.radii_deg.max() + 1e-4, 180.0)
        near = (outlines.centres @ centres.T).max(axis=0) >= np.cos(np.radians(reach))
        return [
            self.cell_names[number] for number in np.flatnonzero(near) if self._cell(int(number)).overlaps_any(outlines)
        ]

    def owners(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ra, dec = _checked_positions(ra_deg, dec_deg)
        numbers = self._owning_cells(ra, dec)
        cells = np.array(self.cell_names)[numbers].astype(object)
        skycells = np.empty(len(ra), object)
        for number, here in _group(numbers):
            skycells[here] = _owning_names(self._cell(number), ra[here], dec[here])
        return cells, skycells

    def _owning_cells(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Cell numbers (n,): by zone and the nearest centre in RA; near a pole the cell whose edge is farther."""
        last = len(self._count) - 1
        zone = np.searchsorted(self._upper, dec, side="left")
        near_pole = (zone <= 1) | (zone >= last - 1)
        zone = np.clip(zone, 1, last - 1)
        count = self._count[zone]
        numbers = self._first[zone] + np.floor(ra * count / 360.0 + 0.5).astype(int) % count
        near = np.flatnonzero(near_pole)
        for number, here in _group(numbers[near]):
            pole = int(self._first[last if number >= self._first[last - 1] else 0])
            chosen = near[here]
            places = ra[chosen], dec[chosen]
            farther = _depth_px(self._cell(number), *places) < _depth_px(self._cell(pole), *places)
            numbers[chosen[farther]] = pole
        return numbers


class LocalTessellation(Tessellation):
    """Projection cells anywhere, all cut into the same grid of skycells; `overlap_px` of each side of one is shared.

    Neighbouring skycells share `2 * overlap_px` pixels, as in RINGS.V3; a cell's outer rim is `overlap_px` wide too.
    Cells may overlap: a point belongs to the one whose edge is farther.
    """

    def __init__(
        self, name: str, centres: Sequence[tuple[float, float]], pixel_scale_arcsec: float, skycell_px: int,
        grid: Sequence[int], overlap_px: int,
    ) -> None:  # fmt: skip
        self.name = check_name(name, "tessellation")
        _check_local(name, centres, pixel_scale_arcsec, skycell_px, grid, overlap_px)
        pitch, margin = skycell_px - 2 * overlap_px, overlap_px + 0.5
        self._overlap_px = overlap_px
        self.cells = tuple(
            ProjectionCell(
                f"{name}.{number}", float(ra) % 360.0, float(dec), float(pixel_scale_arcsec), (grid[0], grid[1]),
                (skycell_px, skycell_px), (pitch, pitch), (margin, margin),
            )
            for number, (ra, dec) in enumerate(centres)
        )  # fmt: skip
        if self.only.radius_deg > _LARGEST_RADIUS_DEG:
            raise BadInput(
                f"tessellation {name}: its corners lie {self.only.radius_deg:.1f}° from the centre; at most "
                f"{_LARGEST_RADIUS_DEG:.0f}°, use fewer or smaller skycells, or the rings tessellation"
            )
        if len({(cell.ra_deg, cell.dec_deg) for cell in self.cells}) < len(self.cells):
            raise BadInput(f"tessellation {name}: two of its centres are the same; give each cell a place of its own")

    @property
    def only(self) -> ProjectionCell:
        """The first cell; the only one of most."""
        return self.cells[0]

    def definition(self) -> dict[str, Any]:
        cell = self.only
        several = {"centres": [[one.ra_deg, one.dec_deg] for one in self.cells]}
        return {
            "kind": "local", "name": self.name,
            **(several if len(self.cells) > 1 else {"ra_deg": cell.ra_deg, "dec_deg": cell.dec_deg}),
            "pixel_scale_arcsec": cell.pixel_scale_arcsec, "skycell_px": cell.skycell_px[0], "grid": list(cell.grid),
            "overlap_px": self._overlap_px,
        }  # fmt: skip

    @property
    def cell_names(self) -> tuple[str, ...]:
        return tuple(cell.name for cell in self.cells)

    def cell(self, name: str) -> ProjectionCell:
        for cell in self.cells:
            if cell.name == name:
                return cell
        has = f"its only cell is {self.only.name}" if len(self.cells) == 1 else f"it has {', '.join(self.cell_names)}"
        raise NotFound(f"no cell {name!r} in tessellation {self.name}: {has}")

    def cells_overlapping_any(self, polygons: Sequence[Polygon]) -> list[str]:
        if not polygons:
            return []
        outlines = Outlines(polygons)
        return sorted(cell.name for cell in self.cells if cell.overlaps_any(outlines))

    def owners(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ra, dec = _checked_positions(ra_deg, dec_deg)
        depths = np.array([_measure_depth(cell, ra, dec) for cell in self.cells])
        numbers = np.where(depths.max(axis=0) >= 0.0, depths.argmax(axis=0), -1)
        cells, skycells = np.full(len(ra), "", object), np.full(len(ra), "", object)
        for number, here in _group(numbers):
            if number >= 0:
                cells[here] = self.cells[number].name
                skycells[here] = _owning_names(self.cells[number], ra[here], dec[here])
        return cells, skycells


def load_tessellation(definition: Mapping[str, Any]) -> Tessellation:
    """The tessellation of a definition, see `Tessellation.definition`.

    Parameters
    ----------
    definition : mapping
        `{"kind": "rings", "name": "rings.v3"}`, or `{"kind": "local", "name", "ra_deg", "dec_deg",
        "pixel_scale_arcsec", "skycell_px", "grid": [columns, rows], "overlap_px"}`, where `"centres": [[ra_deg,
        dec_deg], ...]` instead of the one centre makes several cells `NAME.0`, `NAME.1`, ….

    Raises
    ------
    BadInput
        Unknown kind, missing or unknown keys, values out of range.
    """
    keys = {
        "rings": {"name"},
        "local": {"name", "centres", "pixel_scale_arcsec", "skycell_px", "grid", "overlap_px"},
    }
    kind = definition.get("kind")
    if kind not in keys:
        raise BadInput(f"tessellation of unknown kind {kind!r}: use 'rings' or 'local'")
    values = {key: value for key, value in definition.items() if key != "kind"}
    if kind == "local" and "centres" not in values:
        keys["local"] |= {"ra_deg", "dec_deg"}
        keys["local"] -= {"centres"}
    wrong = sorted(set(values) ^ keys[kind])
    if wrong:
        raise BadInput(
            f"tessellation of kind {kind}: unknown or missing {', '.join(wrong)}; "
            f"it needs {', '.join(sorted(keys[kind]))}"
        )
    if kind == "rings":
        return RingsTessellation(**values)
    if "centres" not in values:
        values["centres"] = [[values.pop("ra_deg"), values.pop("dec_deg")]]
    return LocalTessellation(**values)


def _check_local(name: str, centres: Any, pixel_scale_arcsec: Any, skycell_px: Any, grid: Any, overlap_px: Any) -> None:
    what = f"tessellation {name}"
    if not isinstance(centres, list | tuple) or not 1 <= len(centres) <= _MOST_CELLS:
        raise BadInput(f"{what}: centres must be a list of 1 to {_MOST_CELLS} pairs [ra_deg, dec_deg]")
    if not all(isinstance(one, list | tuple) and len(one) == 2 for one in centres):
        raise BadInput(f"{what}: each of centres must be a pair [ra_deg, dec_deg]")
    numbers = [pair for one in centres for pair in zip(("ra_deg", "dec_deg"), one, strict=True)]
    for label, value in (*numbers, ("pixel_scale_arcsec", pixel_scale_arcsec)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
            raise BadInput(f"{what}: {label} {value!r} is no finite number")
    if max(abs(dec) for _, dec in centres) > 90.0 or pixel_scale_arcsec <= 0.0:
        raise BadInput(f"{what}: dec_deg must lie within ±90 and pixel_scale_arcsec be > 0")
    if not isinstance(grid, list | tuple) or len(grid) != 2 or not all(type(n) is int and 1 <= n <= 1000 for n in grid):
        raise BadInput(f"{what}: grid {grid!r} must be two whole numbers, columns and rows, from 1 to 1000")
    if type(skycell_px) is not int or type(overlap_px) is not int or overlap_px < 0 or skycell_px <= 2 * overlap_px:
        raise BadInput(
            f"{what}: skycell_px {skycell_px!r} must exceed twice overlap_px {overlap_px!r} (whole numbers, >= 0)"
        )


def _checked_positions(ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ra, dec = np.atleast_1d(np.asarray(ra_deg, float)), np.atleast_1d(np.asarray(dec_deg, float))
    if not (np.isfinite(ra).all() and np.isfinite(dec).all()) or (dec.size and np.abs(dec).max() > 90.0):
        raise BadInput("not a position: RA and Dec must be finite degrees, |Dec| at most 90")
    return ra % 360.0, dec


def _group(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each number that occurs, with the indices where it does."""
    order = np.argsort(numbers, kind="stable")
    for here in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
        if here.size:
            yield int(numbers[here[0]]), here


def _owning_names(cell: ProjectionCell, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    columns, rows = cell.owning_skycells(*cell.sky_to_pixel(ra, dec))
    found, place = np.unique(cell.grid[0] * rows + columns, return_inverse=True)
    names = [cell.skycell_name(int(number % cell.grid[0]), int(number // cell.grid[0])) for number in found]
    return np.array(names, object)[place]


def _measure_depth(cell: ProjectionCell, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
    """Distance in pixels of positions (n,) to the nearest outer edge of the cell; -1 outside."""
    x, y = cell.sky_to_pixel(ra_deg, dec_deg)
    inside = (x >= -0.5) & (x < cell.nx - 0.5) & (y >= -0.5) & (y < cell.ny - 0.5)
    return np.where(inside, np.min([x + 0.5, cell.nx - 0.5 - x, y + 0.5, cell.ny - 0.5 - y], axis=0), -1.0)


def _depth_px(cell: ProjectionCell, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
    """Distance in pixels to the nearest edge of the cell, < 0 outside (the rule of STScI's ps1skycell.py)."""
    x, y = cell.sky_to_pixel(ra_deg, dec_deg)
    u, v = x + 1.0 - cell.crpix[0], y + 1.0 - cell.crpix[1]
    half_x, half_y = cell.nx // 2, cell.ny // 2
    return np.min([half_x + u, half_x - 1 - u, half_y + v, half_y - 1 - v], axis=0)
