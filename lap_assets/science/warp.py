"""Resampling of chips onto a skycell: pixel map on a coarse grid, Lanczos-3 kernel with variance and mask in one pass.

Here: geometry of the resampling, the kernels, and what they do to noise. Not here: which chips belong to which
skycell, zero points and headers (`pipeline/warps`), combining several warps (`stack`).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, NoConvergence
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from lap_assets.errors import UnprocessableData
from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage

PHASES = 4096  # sub-pixel phases of the kernel table: position rounded to ≤ 1.3e-4 px
_TAPS = 6
_HARD = int(NO_WEIGHT)
_SOFT = int(Mask.SATURATED | Mask.BLEED)
_EDGE = int(Mask.EDGE)
_NO_DATA = int(Mask.NO_DATA)


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


@cache
def lanczos_table() -> tuple[np.ndarray, np.ndarray]:
    """Kernel values and their squares, (PHASES + 1, 8) float32; taps −2…3 about the pixel below, two zeros to pad.

    Lanczos-3 with its moments put right: Σw = 1 and Σw dᵏ = 0 for k = 1, 2, 3 at every phase (d: distance of the
    tap), by adding the window sinc(d/3) times a cubic, at most 0.01 anywhere. Bare Lanczos-3 makes a flat sky ripple
    by 1 % and, normalised, still moves stars by 8 mpx per axis and their fluxes by 1.5e-4; this leaves 0.6 mpx and
    6e-6 (FWHM 3.8 px, turned by 3°).
    """
    phase = np.arange(PHASES + 1)[:, None] / PHASES
    offset = phase - np.arange(-2, 4)[None, :]
    window = np.sinc(offset / 3.0)
    kernel = np.sinc(offset) * window
    powers = offset[:, :, None] ** np.arange(4)
    missing = np.array([1.0, 0.0, 0.0, 0.0]) - np.einsum("nk,nkp->np", kernel, powers)
    gram = np.einsum("nk,nkp,nkq->npq", window, powers, powers)
    cubic = np.linalg.solve(gram, missing[:, :, None])[:, :, 0]
    kernel += window * np.einsum("nkp,np->nk", powers, cubic)
    table = np.zeros((PHASES + 1, 8), np.float32)
    table[:, :_TAPS] = kernel
    squares = np.zeros_like(table)
    squares[:, :_TAPS] = kernel**2
    return table, squares


@cache
def noise_correlation() -> np.ndarray:
    """(11,) correlation of resampled white noise at lags −5…5 px along one axis, averaged over phases."""
    kernel = lanczos_table()[0][:-1, :_TAPS].astype(np.float64)
    lags = [np.mean(np.sum(kernel[:, lag:] * kernel[:, : _TAPS - lag], axis=1)) for lag in range(_TAPS)]
    return np.array(lags[:0:-1] + lags) / lags[0]


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


def covariance_factor(pixel_map: PixelMap) -> float:
    """True variance of a large sum of pixels over the sum of their VAR values, for white noise on the chip.

    Resampling moves noise between neighbours: a sum over N skycell pixels covers N·J chip pixels and keeps their
    variance, while VAR holds J² Σw² per pixel. The ratio is ⟨J⟩ / ⟨J² Σw²⟩ over the phases this map really has.
    """
    squares = lanczos_table()[1].sum(axis=1).astype(np.float64)
    rows = np.arange(pixel_map.y0, pixel_map.y1, 7)
    columns = np.arange(pixel_map.x0, pixel_map.x1, 3)
    gx, gy = np.meshgrid((columns - pixel_map.x0) / pixel_map.step_px, (rows - pixel_map.y0) / pixel_map.step_px)
    x, y, area = (_bilinear(plane, gx, gy) for plane in (pixel_map.x, pixel_map.y, pixel_map.jacobian))
    good = np.isfinite(x) & np.isfinite(y)
    x, y, area = x[good], y[good], area[good]
    if area.size == 0:
        return 1.0
    phase_x, phase_y = ((z - np.floor(z)) * PHASES + 0.5 for z in (x, y))
    power = squares[phase_x.astype(int)] * squares[phase_y.astype(int)]
    return float(area.mean() / (area**2 * power).mean())


def _bilinear(plane: np.ndarray, gx: np.ndarray, gy: np.ndarray) -> np.ndarray:
    ix, iy = gx.astype(int), gy.astype(int)
    tx, ty = gx - ix, gy - iy
    lower = plane[iy, ix] * (1 - tx) + plane[iy, ix + 1] * tx
    upper = plane[iy + 1, ix] * (1 - tx) + plane[iy + 1, ix + 1] * tx
    return lower * (1 - ty) + upper * ty


def make_empty_warp(shape: tuple[int, int], header: fits.Header | None = None) -> MaskedImage:
    """An image of `shape` (ny, nx) without data: everything zero, NO_DATA set."""
    return MaskedImage(
        sci=np.zeros(shape, np.float32),
        mask=np.full(shape, _NO_DATA, np.int16),
        var=np.zeros(shape, np.float32),
        header=fits.Header() if header is None else header,
    )


def warp_chip(
    into: MaskedImage,
    sci: np.ndarray,
    mask: np.ndarray,
    var: np.ndarray,
    pixel_map: PixelMap,
    *,
    background: np.ndarray | None = None,
    scale: float = 1.0,
    max_bad_weight: float = 0.1,
) -> int:
    """Resample one chip into a skycell image, in place, where that has no data yet.

    Output = scale · J · Σ w (sci − background), with J the local pixel-area ratio, so that fluxes are conserved. Pixels
    with NO_WEIGHT bits never enter: their kernel weights are dropped and the rest renormalised while they are few,
    else the output is masked. Saturated pixels enter (and flag) only where they are among the four central ones: no
    ringing from them either. Flags of the four central pixels propagate. Output nearer than a kernel to the chip's
    edge: EDGE.

    Parameters
    ----------
    into : MaskedImage
        (ny, nx), from `make_empty_warp`.
    sci, mask, var, background : (cy, cx) arrays
        Chip planes; mask holds bits of `Mask`; values or variances that are not finite or not positive count as
        NO_DATA.
    pixel_map : PixelMap
    scale : float
        Factor of unit conversion (nJy per chip unit).
    max_bad_weight : float
        Sum of |w| of bad pixels above which an output pixel is masked (a flat kernel has 1).

    Returns
    -------
    int
        Number of skycell pixels that got a value free of NO_WEIGHT bits.
    """
    table, squares = lanczos_table()
    sci, var = np.ascontiguousarray(sci, np.float32), np.ascontiguousarray(var, np.float32)
    bits = _flag_no_data(sci, np.ascontiguousarray(mask, np.int16), var)
    sky = np.zeros((0, 0), np.float32) if background is None else np.ascontiguousarray(background, np.float32)
    return int(
        _warp_kernel(
            sci.ravel(), var.ravel(), sky, bits, _or_footprints(bits).ravel(), table.ravel(), squares.ravel(),
            pixel_map.x, pixel_map.y, pixel_map.jacobian, pixel_map.step_px,
            pixel_map.x0, pixel_map.x1, pixel_map.y0, pixel_map.y1, scale, np.float32(max_bad_weight),
            into.sci, into.mask, into.var,
        )
    )  # fmt: skip


_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, 8)


def _shuffle(builder, vector, lanes):
    index = ir.Constant(ir.VectorType(_INT32, len(lanes)), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), index)


@intrinsic
def _separable_sum(typing, source, start, stride, table, at_x, at_y):
    """Σ_j table[at_y + j] Σ_i table[at_x + i] source[start + j·stride + i], 6×8 taps, in vector registers.

    Written as LLVM vectors because numba's vectoriser leaves the short inner loops scalar (3× slower). Plain multiply
    and add in fixed order: the same bits on any processor.
    """
    signature = types.float32(source, start, stride, table, at_x, at_y)

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        weights = context.make_array(sig.args[3])(context, builder, args[3]).data
        pointer = builder.gep(data, [args[1]])
        total = ir.Constant(_VECTOR, [0.0] * 8)
        for row in range(_TAPS):
            pixels = builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)
            weight = builder.load(builder.gep(weights, [builder.add(args[5], ir.Constant(args[5].type, row))]))
            lane = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), weight, _INT32(0))
            total = builder.fadd(total, builder.fmul(_shuffle(builder, lane, [0] * 8), pixels))
            pointer = builder.gep(pointer, [args[2]])
        across = builder.load(builder.bitcast(builder.gep(weights, [args[4]]), _VECTOR.as_pointer()), align=4)
        total = builder.fmul(total, across)
        total = builder.fadd(_shuffle(builder, total, [0, 1, 2, 3]), _shuffle(builder, total, [4, 5, 6, 7]))
        total = builder.fadd(_shuffle(builder, total, [0, 1]), _shuffle(builder, total, [2, 3]))
        return builder.fadd(builder.extract_element(total, _INT32(0)), builder.extract_element(total, _INT32(1)))

    return signature, codegen


@njit(cache=True, nogil=True)
def _flag_no_data(sci, mask, var):
    """The mask, with NO_DATA where value or variance is not finite or the variance not positive."""
    ny, nx = sci.shape
    bits = np.empty((ny, nx), np.int16)
    for y in range(ny):
        for x in range(nx):
            # a number minus itself is 0 unless it is not finite (vectorises, unlike isfinite)
            good = (sci[y, x] - sci[y, x] == 0) & (var[y, x] - var[y, x] == 0) & (var[y, x] > 0)
            bits[y, x] = mask[y, x] if good else mask[y, x] | np.int16(_NO_DATA)
    return bits


@njit(cache=True, nogil=True)
def _or_footprints(bits):
    """OR of the bits over the pixels that `_separable_sum` reads (columns x−2…x+5, rows y−2…y+3) for base pixel x, y.

    Two columns more than the kernel has: their weight is zero, but zero times NaN is not.
    """
    ny, nx = bits.shape
    pairs, across = np.zeros(nx, np.int16), np.zeros((ny, nx), np.int16)
    for y in range(ny):
        for x in range(nx - 1):
            pairs[x] = bits[y, x] | bits[y, x + 1]
        for x in range(2, nx - 5):
            across[y, x] = pairs[x - 2] | pairs[x] | pairs[x + 2] | pairs[x + 4]
    both = np.empty((ny, nx), np.int16)
    for y in range(2, ny - 3):
        for x in range(nx):
            both[y, x] = (
                across[y - 2, x]
                | across[y - 1, x]
                | across[y, x]
                | across[y + 1, x]
                | across[y + 2, x]
                | across[y + 3, x]
            )
    return both


@njit(cache=True, nogil=True)
def _resample_masked(source, noise, bits, table, at_x, at_y, x0, y0, limit):
    """One output pixel with flagged or missing pixels in its footprint: (value, variance, flags)."""
    ny, nx = bits.shape
    total, variance, weight, bad = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    flags, hard_flags = 0, 0
    for j in range(_TAPS):
        y = y0 - 2 + j
        for i in range(_TAPS):
            x = x0 - 2 + i
            w = table[at_x + i] * table[at_y + j]
            if x < 0 or y < 0 or x >= nx or y >= ny:
                if w != 0:
                    flags |= _EDGE
                    bad += abs(w)
                continue
            here = bits[y, x]
            # the two nearest columns and rows, less one the kernel does not reach (whole-pixel shift)
            central = 2 <= i <= 3 and 2 <= j <= 3 and abs(w) > np.float32(1e-3)
            if here & _HARD:
                bad += abs(w)
                hard_flags |= here
                if central:
                    flags |= here
                continue
            if central:
                flags |= here
            elif here & _SOFT:
                continue
            at = y * nx + x
            total += w * source[at]
            variance += w * w * noise[at]
            weight += w
    if bad > limit:
        flags |= hard_flags
    if weight < np.float32(0.25):
        return np.float32(0), np.float32(0), flags | hard_flags | _NO_DATA
    return total / weight, variance / (weight * weight), flags


@njit(cache=True, nogil=True)
def _warp_kernel(
    source, noise, sky, bits, footprints, table, squares, gx, gy, area, step, x0, x1, y0, y1, scale, limit,
    sci, mask, var,
):  # fmt: skip
    ny, nx = bits.shape
    ngx = gx.shape[1]
    written = 0
    for row in range(y0, y1):
        node = (row - y0) // step
        ty = (row - y0 - node * step) / step
        sci_row, mask_row, var_row = sci[row], mask[row], var[row]
        for cell in range(ngx - 1):
            first = x0 + cell * step
            xa = gx[node, cell] * (1 - ty) + gx[node + 1, cell] * ty
            xb = gx[node, cell + 1] * (1 - ty) + gx[node + 1, cell + 1] * ty
            ya = gy[node, cell] * (1 - ty) + gy[node + 1, cell] * ty
            yb = gy[node, cell + 1] * (1 - ty) + gy[node + 1, cell + 1] * ty
            ja = area[node, cell] * (1 - ty) + area[node + 1, cell] * ty
            jb = area[node, cell + 1] * (1 - ty) + area[node + 1, cell + 1] * ty
            if not np.isfinite(xa + xb + ya + yb + ja + jb):
                continue
            dx, dy, dj = (xb - xa) / step, (yb - ya) / step, (jb - ja) / step
            for column in range(first, min(first + step, x1)):
                k = column - first
                px, py = xa + k * dx, ya + k * dy
                if px < -0.5 or py < -0.5 or px >= nx - 0.5 or py >= ny - 0.5:
                    continue
                here = np.uint64(column)
                if mask_row[here] & _HARD == 0:
                    continue
                ix, iy = int(px + 1.0) - 1, int(py + 1.0) - 1  # floor, for px > −1
                at_x, at_y = int((px - ix) * PHASES + 0.5) * 8, int((py - iy) * PHASES + 0.5) * 8
                flags = 0
                if ix >= 2 and iy >= 2 and ix < nx - 5 and iy < ny - 3 and footprints[np.uint64(iy * nx + ix)] == 0:
                    start = (iy - 2) * nx + ix - 2
                    value = _separable_sum(source, start, nx, table, at_x, at_y)
                    variance = _separable_sum(noise, start, nx, squares, at_x, at_y)
                else:
                    value, variance, flags = _resample_masked(source, noise, bits, table, at_x, at_y, ix, iy, limit)
                    # an earlier chip's masked pixel is only replaced by a good one
                    if flags & _HARD and mask_row[here] & _NO_DATA == 0:
                        continue
                if sky.size and flags & _NO_DATA == 0:
                    # smooth, so the nearest pixel will do
                    value -= sky[np.uint64(py + 0.5), np.uint64(px + 0.5)]
                j = np.float32((ja + k * dj) * scale)
                sci_row[here] = value * j
                var_row[here] = variance * j * j
                mask_row[here] = flags
                if flags & _HARD == 0:
                    written += 1
    return written
