"""Where the pixels of a skycell lie on a chip: positions and area ratios on a coarse grid, refined to a stated error.

Here: geometry between two world coordinate systems. Not here: what is done with it (`warp.py`, `warped_psf.py`), which
chips belong to which skycell (`pipeline/warps`).
"""

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS, NoConvergence

from lap_assets.errors import UnprocessableData


@dataclass(frozen=True)
class PixelMap:
    """Where the pixels of a box of the skycell lie on a chip, at nodes every `step_px`; bilinear in between.

    Attributes
    ----------
    x0, x1, y0, y1 : int
        Half-open box of the skycell that the chip can reach.
    step_px : int
    x, y : (ngy, ngx) float64
        Chip pixel of each node; NaN where the sky does not project onto the chip's plane.
    jacobian : (ngy, ngx) float64
        Chip pixels per skycell pixel (area).
    error_px : float
        Largest error of the interpolation, measured at all cell centres.
    """

    x0: int
    x1: int
    y0: int
    y1: int
    step_px: int
    x: np.ndarray
    y: np.ndarray
    jacobian: np.ndarray
    error_px: float

    def interpolate(self, nodes: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Values at skycell pixels (x, y) within the box, from values at the nodes (ngy, ngx); bilinear."""
        gx, gy = (np.asarray(x) - self.x0) / self.step_px, (np.asarray(y) - self.y0) / self.step_px
        ix, iy = (np.clip(np.floor(g).astype(int), 0, n - 2) for g, n in zip((gx, gy), nodes.shape[::-1], strict=True))
        tx, ty = gx - ix, gy - iy
        lower = nodes[iy, ix] * (1 - tx) + nodes[iy, ix + 1] * tx
        upper = nodes[iy + 1, ix] * (1 - tx) + nodes[iy + 1, ix + 1] * tx
        return lower * (1 - ty) + upper * ty

    def locate(
        self, x: np.ndarray, y: np.ndarray, chip_shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The places on a chip (ny, nx) nearest to skycell pixels, and how far off they are, px: 0 on the chip.

        Infinite where the sky does not project onto the chip's plane.
        """
        bx, by = np.clip(x, self.x0, self.x1 - 1), np.clip(y, self.y0, self.y1 - 1)
        cx, cy = self.interpolate(self.x, bx, by), self.interpolate(self.y, bx, by)
        px, py = np.clip(cx, 0, chip_shape[1] - 1), np.clip(cy, 0, chip_shape[0] - 1)
        away = np.hypot(cx - px, cy - py) + np.hypot(x - bx, y - by)
        return np.nan_to_num(px), np.nan_to_num(py), np.where(np.isfinite(away), away, np.inf)

    def derivatives(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n, 2, 2) change of the chip's x, y per skycell pixel along x and y, at n places within the box."""
        slopes = [np.gradient(nodes, self.step_px, axis=axis) for nodes in (self.x, self.y) for axis in (1, 0)]
        bx, by = np.clip(x, self.x0, self.x1 - 1), np.clip(y, self.y0, self.y1 - 1)
        return np.stack([self.interpolate(slope, bx, by) for slope in slopes], axis=-1).reshape(-1, 2, 2)

    @property
    def node_places(self) -> tuple[np.ndarray, np.ndarray]:
        """Skycell pixels (x, y) of the nodes, (ngy, ngx) each."""
        rows, columns = np.indices(self.x.shape) * float(self.step_px)
        return columns + self.x0, rows + self.y0


def map_pixels(
    source: WCS,
    source_shape: tuple[int, int],
    target: WCS,
    target_shape: tuple[int, int],
    step_px: int = 32,
    tolerance_px: float = 5e-4,
) -> PixelMap | None:
    """Pixel map from a skycell to a chip, on a grid refined until its error is within tolerance.

    Inverting SIP or TPV is the slow part of a resampling, so it is done at the nodes only.

    Parameters
    ----------
    source, target : WCS
        Of the chip (any distortion astropy knows) and of the skycell.
    source_shape, target_shape : (ny, nx)
    step_px : int
        First grid step, halved down to 4 px.
    tolerance_px : float

    Returns
    -------
    PixelMap or None
        None where the chip does not reach the skycell.

    Raises
    ------
    UnprocessableData
        If even a 4 px grid misses the tolerance: the WCS is not smooth.
    """
    box = _reach(source, source_shape, target, target_shape)
    if box is None:
        return None
    while True:
        x, y, area = _evaluate_nodes(source, target, box, step_px)
        error = _interpolation_error(source, source_shape, target, box, step_px, x, y)
        if error <= tolerance_px:
            return PixelMap(*box, step_px, x, y, area, error)
        if step_px <= 4:
            raise UnprocessableData(
                f"pixel map wrong by {error:.2g} px on a {step_px} px grid (limit {tolerance_px:g}): "
                "check the chip's WCS"
            )
        step_px //= 2


def _reach(source: WCS, source_shape, target: WCS, target_shape) -> tuple[int, int, int, int] | None:
    """Half-open box (x0, x1, y0, y1) of the target that the source's outline spans, or None."""
    ny, nx = source_shape
    along_x, along_y = np.linspace(-0.5, nx - 0.5, 33), np.linspace(-0.5, ny - 0.5, 33)
    low, high_x, high_y = np.full(33, -0.5), np.full(33, nx - 0.5), np.full(33, ny - 0.5)
    x = np.concatenate([along_x, along_x, low, high_x])
    y = np.concatenate([low, high_y, along_y, along_y])
    sky = source.all_pix2world(x, y, 0)
    # a tangent plane shows the far half of the sphere mirrored: leave out what is not before it
    near = _cos_distance(sky, target.wcs.crval) > 0.1
    if not near.all():
        return None
    tx, ty = target.all_world2pix(*sky, 0)
    x0, x1 = max(0, int(np.floor(tx.min())) - 1), min(target_shape[1], int(np.ceil(tx.max())) + 2)
    y0, y1 = max(0, int(np.floor(ty.min())) - 1), min(target_shape[0], int(np.ceil(ty.max())) + 2)
    return (x0, x1, y0, y1) if x0 < x1 and y0 < y1 else None


def _cos_distance(sky, centre) -> np.ndarray:
    """Cosine of the angle between positions and a centre, all in degrees."""
    ra, dec = np.radians(sky[0]), np.radians(sky[1])
    ra0, dec0 = np.radians(centre)
    return np.sin(dec) * np.sin(dec0) + np.cos(dec) * np.cos(dec0) * np.cos(ra - ra0)


def _source_pixels(source: WCS, target: WCS, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Source pixel of target pixels; NaN where the inversion of the distortion does not converge."""
    sky = target.all_pix2world(x.ravel(), y.ravel(), 0)
    try:
        sx, sy = source.all_world2pix(*sky, 0, tolerance=1e-5, maxiter=40)
    except NoConvergence as failure:
        sx, sy = failure.best_solution.T.copy()
        for bad in (failure.divergent, failure.slow_conv):
            if bad is not None:
                sx[bad], sy[bad] = np.nan, np.nan
    return np.reshape(sx, x.shape), np.reshape(sy, x.shape)


def _evaluate_nodes(source: WCS, target: WCS, box, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source pixel and area ratio at the nodes; one more ring of nodes is evaluated for the derivatives."""
    x0, x1, y0, y1 = box
    columns = x0 + step * np.arange(-1, -(-(x1 - x0) // step) + 2)
    rows = y0 + step * np.arange(-1, -(-(y1 - y0) // step) + 2)
    gx, gy = np.meshgrid(columns.astype(float), rows.astype(float))
    x, y = _source_pixels(source, target, gx, gy)
    x_y, x_x = np.gradient(x, step)
    y_y, y_x = np.gradient(y, step)
    area = np.abs(x_x * y_y - x_y * y_x)
    inner = np.s_[1:-1, 1:-1]
    return np.ascontiguousarray(x[inner]), np.ascontiguousarray(y[inner]), np.ascontiguousarray(area[inner])


def _interpolation_error(source: WCS, source_shape, target: WCS, box, step: int, x: np.ndarray, y: np.ndarray) -> float:
    """Largest distance between map and truth at the centres of the cells, where bilinear interpolation is worst."""
    ngy, ngx = x.shape
    cx, cy = np.meshgrid(box[0] + step * (np.arange(ngx - 1) + 0.5), box[2] + step * (np.arange(ngy - 1) + 0.5))
    true_x, true_y = _source_pixels(source, target, cx, cy)
    mean_x = 0.25 * (x[:-1, :-1] + x[1:, :-1] + x[:-1, 1:] + x[1:, 1:])
    mean_y = 0.25 * (y[:-1, :-1] + y[1:, :-1] + y[:-1, 1:] + y[1:, 1:])
    error = np.hypot(mean_x - true_x, mean_y - true_y)
    ny, nx = source_shape
    on_chip = (true_x > -step) & (true_x < nx + step) & (true_y > -step) & (true_y < ny + step) & np.isfinite(error)
    return float(error[on_chip].max()) if on_chip.any() else 0.0
