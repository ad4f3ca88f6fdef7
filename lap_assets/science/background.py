"""Sky background of an image as a small mesh, and its evaluation at every pixel.

The mesh divides the image exactly (cells of nearly equal size), so that mesh and image shape alone define the sky; what
is published is the mesh. Sky subtraction that preserves extended haloes does not belong here.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import generic_filter, map_coordinates, median_filter

from lap_assets.errors import UnprocessableData
from lap_assets.science.sky_cells import clip_cells, spline_matrix

_SAMPLE_PX = 16.0  # a mesh cell is several times wider
_MIN_FRACTION = 0.2  # of a cell's pixels that must be usable


@dataclass(frozen=True)
class Background:
    """Sky level and sky noise (per pixel) in cells, both (my, mx) float32, for an image of `shape`."""

    mesh: np.ndarray
    rms: np.ndarray
    shape: tuple[int, int]

    @property
    def level(self) -> float:
        """Median sky level."""
        return float(np.median(self.mesh))

    @property
    def noise(self) -> float:
        """Median sky noise per pixel."""
        return float(np.median(self.rms))


def measure_background(sci: np.ndarray, usable: np.ndarray, mesh_px: int = 128, filter_cells: int = 3) -> Background:
    """Clipped sky level in cells of about `mesh_px` pixels.

    Pixels are clipped at 3 sigma around the median until nothing changes; the level is the mean of the rest, or the
    mode 2.5·median − 1.5·mean where the cell is crowded (Bertin & Arnouts 1996, A&AS 117, 393). Cells with too few
    usable pixels take the median of their neighbours; the mesh is median-filtered.

    Parameters
    ----------
    sci : (ny, nx) float32
    usable : (ny, nx) bool
        Pixels that may be used; leave out detected sources for an unbiased sky.
    mesh_px, filter_cells : int

    Raises
    ------
    UnprocessableData
        If no cell has enough usable pixels.
    """
    ny, nx = sci.shape
    rows, columns = _cell_edges(ny, mesh_px), _cell_edges(nx, mesh_px)
    mesh, rms = clip_cells(sci, usable, rows, columns, _MIN_FRACTION)
    if not np.isfinite(mesh).any():
        raise UnprocessableData("no part of the image is free enough of masks and sources to measure the sky")
    mesh, rms = _fill_cells(mesh), _fill_cells(rms)
    if filter_cells > 1 and min(mesh.shape) >= filter_cells:
        mesh, rms = _filter_cells(mesh, filter_cells), _filter_cells(rms, filter_cells)
    return Background(mesh.astype(np.float32), rms.astype(np.float32), (ny, nx))


def evaluate_background(mesh: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The sky at every pixel, (ny, nx) float32: a spline through the cell centres, continued linearly to the edges.

    Parameters
    ----------
    mesh : (my, mx) array
        Of `measure_background`, or read back from `backgrounds.fits`.
    shape : (ny, nx)
        Of the image the mesh was measured on.
    """
    ny, nx = shape
    if np.size(mesh) == 1:
        return np.full(shape, np.ravel(mesh)[0], np.float32)
    mesh, y, x = _lay_mesh(mesh, shape)
    middle = mesh.mean()
    rows, columns = spline_matrix(y, np.arange(ny)), spline_matrix(x, np.arange(nx))
    return rows @ (mesh - middle).astype(np.float32) @ columns.T + np.float32(middle)


def sample_background(mesh: np.ndarray, shape: tuple[int, int], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The sky of `evaluate_background` at places (x, y) of any shape, float64; half a cell beyond the edges at most.

    Between points 16 px apart it is taken to be linear, at all places further out, or not known (NaN), to be that of
    the nearest one.
    """
    if np.size(mesh) == 1:
        return np.full(np.shape(x), float(np.ravel(mesh)[0]))
    mesh, rows, columns = _lay_mesh(mesh, shape)
    fine = [np.linspace(at[0], at[-1], max(2, int(np.ptp(at) / _SAMPLE_PX) + 1)) for at in (rows, columns)]
    middle = mesh.mean()
    values = spline_matrix(rows, fine[0]) @ (mesh - middle) @ spline_matrix(columns, fine[1]).T
    places = [(np.nan_to_num(z) - at[0]) / (at[1] - at[0]) for z, at in zip((y, x), fine, strict=True)]
    return map_coordinates(values, places, order=1, mode="nearest") + middle


def _lay_mesh(mesh: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mesh continued by a cell on all sides, and the rows and columns on which its values lie."""
    mesh = np.asarray(mesh, np.float64)
    y, x = _cell_centres(shape[0], mesh.shape[0]), _cell_centres(shape[1], mesh.shape[1])
    mesh, y = _extend(mesh, y)
    transposed, x = _extend(mesh.T, x)
    return transposed.T, y, x


def _cell_edges(n: int, mesh_px: int) -> np.ndarray:
    cells = max(1, round(n / mesh_px))
    return np.round(np.linspace(0, n, cells + 1)).astype(int)


def _cell_centres(n: int, cells: int) -> np.ndarray:
    edges = np.round(np.linspace(0, n, cells + 1))
    return 0.5 * (edges[:-1] + edges[1:]) - 0.5


def _extend(mesh: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One more row at each end, on the line through the two outer ones (a single row is repeated)."""
    if len(positions) == 1:
        step = positions[0] + 0.5
        return np.repeat(mesh, 3, axis=0), np.array([positions[0] - step, positions[0], positions[0] + step])
    first, last = 2 * mesh[0] - mesh[1], 2 * mesh[-1] - mesh[-2]
    ends = 2 * positions[0] - positions[1], 2 * positions[-1] - positions[-2]
    return np.vstack([first[None], mesh, last[None]]), np.concatenate([[ends[0]], positions, [ends[1]]])


def _filter_cells(mesh: np.ndarray, cells: int) -> np.ndarray:
    """Median filter; the mesh is continued linearly beyond its edges, so that a plane stays a plane."""
    wing = cells // 2
    padded = np.pad(mesh, wing, mode="reflect", reflect_type="odd")
    return median_filter(padded, size=cells)[wing:-wing, wing:-wing]


def _fill_cells(mesh: np.ndarray) -> np.ndarray:
    """Empty cells from the median of their neighbours, repeated until none is left."""
    while np.isnan(mesh).any():
        padded = np.pad(mesh, 1, constant_values=np.nan)
        filled = generic_filter(padded, _median_finite, size=3, mode="constant", cval=np.nan)[1:-1, 1:-1]
        mesh = np.where(np.isnan(mesh), filled, mesh)
    return mesh


def _median_finite(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")
