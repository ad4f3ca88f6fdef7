"""The PSF of a resampled image as stamps at the nodes of a regular grid, bilinear in between.

Here: the grid, its value anywhere, weighted means of several grids. How a chip's PSF gets onto the nodes is
`warped_psf.py`'s, what is done with it `psf_matching.py`'s, files are `pipeline/psf_members.py`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from lap_assets.errors import NoWork
from lap_assets.science.psf import measure_shape


@dataclass(frozen=True, eq=False)
class PsfGrid:
    """PSFs at nodes.

    Attributes
    ----------
    x, y : (nx,), (ny,) float64
        Pixel coordinates of the nodes, 0-based, ascending, equally spaced.
    stamps : (ny, nx, s, s) float32
        Each of sum 1 and centred on its middle pixel, or zero where the PSF is not known; s is odd.
    """

    x: np.ndarray
    y: np.ndarray
    stamps: np.ndarray

    @cached_property
    def known(self) -> np.ndarray:
        """(ny, nx) bool: nodes at which the PSF is known."""
        return self.stamps[:, :, self.stamp_px // 2, self.stamp_px // 2] > 0

    @property
    def stamp_px(self) -> int:
        """Side of the stamps."""
        return int(self.stamps.shape[-1])

    @cached_property
    def mean(self) -> np.ndarray:
        """(s, s) float64: mean of the known nodes; raises `NoWork` where there is none."""
        self._require_known()
        total = self.stamps[self.known].sum(axis=0, dtype=np.float64)
        return total / total.sum()

    @cached_property
    def fwhm_px(self) -> float:
        """FWHM of the mean PSF."""
        return measure_shape(self.mean).fwhm_px

    def evaluate(self, x: float, y: float) -> np.ndarray:
        """The PSF at (x, y), (s, s) float64 of sum 1, centred on the middle pixel."""
        return self.evaluate_many(np.array([x]), np.array([y]))[0]

    def evaluate_many(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """PSFs at n places, (n, s, s) float64 of sum 1 each; beyond the nodes that of the border.

        Raises
        ------
        NoWork
            If no node is known.
        """
        nodes, weights = self._weigh_nodes(x, y)
        return _blend_stamps(np.ascontiguousarray(self.stamps).reshape(-1, self.stamp_px**2), nodes, weights).reshape(
            len(nodes), self.stamp_px, self.stamp_px
        )

    def _weigh_nodes(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The four nodes (n, 4) int64, as indices into the flat grid, that make up the PSF at n places, and weights.

        An unknown node is stood in for by the nearest known one, so that the PSF has no jumps. Raises `NoWork` as
        `evaluate_many` does.
        """
        self._require_known()
        column, right = _locate(self.x, x)
        row, lower = _locate(self.y, y)
        ny, nx = self.known.shape
        next_row, next_column = np.minimum(row + 1, ny - 1), np.minimum(column + 1, nx - 1)
        corners = np.stack(
            [row * nx + column, row * nx + next_column, next_row * nx + column, next_row * nx + next_column], axis=1
        )
        weights = np.stack([(1 - lower) * (1 - right), (1 - lower) * right, lower * (1 - right), lower * right], axis=1)
        return self._stand_ins[corners], weights

    @cached_property
    def _stand_ins(self) -> np.ndarray:
        """(ny · nx,) for each node the nearest known one: itself where it is known."""
        row, column = np.nonzero(self.known)
        rows, columns = np.indices(self.known.shape)
        step_y, step_x = (np.ptp(z) / max(len(z) - 1, 1) or 1.0 for z in (self.y, self.x))
        away = ((rows.reshape(-1, 1) - row) * step_y) ** 2 + ((columns.reshape(-1, 1) - column) * step_x) ** 2
        nearest = np.argmin(away, axis=1)
        return row[nearest] * self.known.shape[1] + column[nearest]

    def _require_known(self) -> None:
        if not self.known.any():
            raise NoWork("the PSF is known at no node of its grid")


@njit(cache=True, nogil=True)
def _blend_stamps(stamps, nodes, weights):
    """(n, s²) sums of stamps (m, s²), each of sum 1; `nodes` and `weights` (n, 4)."""
    blends = np.zeros((nodes.shape[0], stamps.shape[1]))
    for n in range(nodes.shape[0]):
        blend = blends[n]
        for corner in range(nodes.shape[1]):
            weight, stamp = weights[n, corner], stamps[nodes[n, corner]]
            for k in range(blend.size):
                blend[k] += weight * stamp[k]
        total = blend.sum()
        for k in range(blend.size):
            blend[k] /= total
    return blends


def _locate(nodes: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the node below and distance from it in steps, clipped to the grid."""
    at = np.asarray(at, np.float64)
    if len(nodes) < 2:
        return np.zeros(at.shape, np.int64), np.zeros(at.shape)
    place = np.clip((at - nodes[0]) / (nodes[1] - nodes[0]), 0.0, len(nodes) - 1.0)
    below = np.minimum(place.astype(np.int64), len(nodes) - 2)
    return below, place - below


def lay_nodes(shape: tuple[int, int], step_px: float = 512.0) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (x, y) from edge to edge of an image of `shape` (ny, nx), about `step_px` apart, at least two per axis."""
    y, x = (np.linspace(0.0, n - 1.0, max(2, round(n / step_px) + 1)) for n in shape)
    return x, y


def average_grids(grids: Sequence[PsfGrid], weights: np.ndarray) -> PsfGrid:
    """The PSF of a weighted mean of images: at each node the weighted mean of the grids that know it there.

    Parameters
    ----------
    grids : sequence of PsfGrid
        On the same nodes; smaller stamps are padded with zeros.
    weights : (n,) or (n, ny, nx) float
        Of the images, or of each at each node (0 where it did not enter).

    Raises
    ------
    NoWork
        If there is no grid.
    """
    if not len(grids):
        raise NoWork("no PSF to average")
    size = max(grid.stamp_px for grid in grids)
    weights = np.asarray(weights, np.float64)
    total = np.zeros((*grids[0].known.shape, size, size))
    for grid, weight in zip(grids, weights, strict=True):
        wing = (size - grid.stamp_px) // 2
        inner = np.s_[:, :, wing : size - wing, wing : size - wing]
        total[inner] += np.broadcast_to(weight, grid.known.shape)[:, :, None, None] * grid.stamps
    sums = total.sum(axis=(2, 3), keepdims=True)
    stamps = np.divide(total, sums, out=np.zeros_like(total), where=sums > 0)
    return PsfGrid(grids[0].x, grids[0].y, stamps.astype(np.float32))
