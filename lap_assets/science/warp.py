"""Resampling of chips onto a skycell: value, variance and mask in one pass.

Here: the resampling itself, and what it does to noise. Not here: geometry (`pixel_map`), interpolation kernels
(`warp_kernels`), which chips belong to which skycell, zero points and headers (`pipeline/warps`), combining several
warps (`stack`).
"""

import numpy as np
from astropy.io import fits
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from lap_assets.model.image import NO_WEIGHT, Mask, MaskedImage
from lap_assets.science.pixel_map import PixelMap
from lap_assets.science.warp_kernels import PHASES, ROW, TAPS, kernel_power, kernel_table

_HARD = int(NO_WEIGHT)
_SOFT = int(Mask.SATURATED | Mask.BLEED)
_EDGE = int(Mask.EDGE)
_NO_DATA = int(Mask.NO_DATA)
_LARGEST, _LEAST = 1e20, 1e-20  # of values and variances; beyond them there are no data, and no float32 weights
_FELT = 1e-3  # weight from which a central pixel's flags count
_MIN_WEIGHT = 0.25  # of the kernel that must lie on good pixels, else there is no value
_OUTSIDE = -9  # base pixel of what does not lie on the chip
_SAMPLE_ROWS, _SAMPLE_COLUMNS = 31, 11  # of the skycell, at which phases are looked at


def covariance_factor(pixel_map: PixelMap, kernel: str = "lanczos3") -> float:
    """True variance of a large sum of pixels over the sum of their VAR values, for white noise on the chip.

    Resampling moves noise between neighbours: a sum over N skycell pixels covers N·J chip pixels and keeps their
    variance, while VAR holds J² Σw² per pixel. The ratio is ⟨J⟩ / ⟨J² Σw²⟩ over the phases this map really has.
    """
    power = kernel_power(kernel)
    rows = np.arange(pixel_map.y0, pixel_map.y1, _SAMPLE_ROWS)
    columns = np.arange(pixel_map.x0, pixel_map.x1, _SAMPLE_COLUMNS)
    gx, gy = np.meshgrid(columns, rows)
    x, y, area = (pixel_map.interpolate(nodes, gx, gy) for nodes in (pixel_map.x, pixel_map.y, pixel_map.jacobian))
    good = np.isfinite(x) & np.isfinite(y)
    x, y, area = x[good], y[good], area[good]
    if area.size == 0:
        return 1.0
    phase_x, phase_y = ((z - np.floor(z)) * PHASES + 0.5 for z in (x, y))
    return float(area.mean() / (area**2 * power[phase_x.astype(int)] * power[phase_y.astype(int)]).mean())


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
    scale: float | np.ndarray = 1.0,
    kernel: str = "lanczos3",
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
    sci, mask, var : (cy, cx) arrays
        Chip planes; mask holds bits of `Mask`; what is not finite (or beyond 1e20), and variances that are not positive
        (or below 1e-20), count as NO_DATA.
    pixel_map : PixelMap
    background : (ngy, ngx) or None
        Sky of the chip at the nodes of the map; it is smooth over a step of the grid.
    scale : float or (ngy, ngx)
        Factor of unit conversion (nJy per chip unit), the same everywhere or at the nodes of the map.
    kernel : str
        One of `warp_kernels.KERNELS`.
    max_bad_weight : float
        Sum of |w| of bad pixels above which an output pixel is masked (a flat kernel has 1).

    Returns
    -------
    int
        Number of skycell pixels that got a value free of NO_WEIGHT bits.
    """
    sci, var = np.ascontiguousarray(sci, np.float32), np.ascontiguousarray(var, np.float32)
    mask = np.ascontiguousarray(mask, np.int16)
    first, last = _find_rows(pixel_map, sci.shape[0])
    if first >= last:
        return 0
    part = np.s_[first:last]
    sky = np.zeros(pixel_map.x.shape) if background is None else background
    gain = pixel_map.jacobian * scale
    return int(
        _warp_kernel(
            sci, mask, var, _mark_unclean(sci[part], mask[part], var[part]), first, kernel_table(kernel).ravel(),
            pixel_map.x, pixel_map.y, gain, np.ascontiguousarray(sky, np.float64), pixel_map.step_px,
            pixel_map.x0, pixel_map.x1, pixel_map.y0, pixel_map.y1, np.float32(max_bad_weight),
            into.sci, into.mask, into.var,
        )
    )  # fmt: skip


def resample_stamps(
    stamps: np.ndarray, matrices: np.ndarray, centre: tuple[float, float], size: int, kernel: str = "lanczos3"
) -> np.ndarray:
    """Stamps of stars, resampled as a chip is, with the star on the middle pixel; surface brightness is kept.

    Parameters
    ----------
    stamps : (n, s, s) float
        s odd; beyond their edges there is nothing.
    matrices : (n, 2, 2) float
        Change of the stamp's (x, y) per output pixel along x and y.
    centre : (dx, dy)
        Of the stars, from the stamps' middle pixels.
    size : int
        Side of the output, odd.
    kernel : str

    Returns
    -------
    (n, size, size) float32
    """
    padded = np.pad(stamps.astype(np.float32), ((0, 0), (ROW, ROW), (ROW, ROW)))
    middle = padded.shape[1] // 2
    table = kernel_table(kernel).ravel()
    return _resample_stamps(padded, np.ascontiguousarray(matrices), middle + centre[0], middle + centre[1], size, table)


def _find_rows(pixel_map: PixelMap, ny: int) -> tuple[int, int]:
    """Half-open rows of the chip that the map can ask for."""
    y = pixel_map.y[np.isfinite(pixel_map.y)]
    if not y.size:
        return 0, 0
    return int(np.clip(np.floor(y.min()) - TAPS, 0, ny)), int(np.clip(np.ceil(y.max()) + TAPS, 0, ny))


_FLOAT, _INT16, _INT32 = ir.FloatType(), ir.IntType(16), ir.IntType(32)
_VECTOR, _BITS, _TRUTH = ir.VectorType(_FLOAT, ROW), ir.VectorType(_INT16, ROW), ir.VectorType(ir.IntType(1), ROW)


def _shuffle(builder, one, two, lanes):
    index = ir.Constant(ir.VectorType(_INT32, len(lanes)), lanes)
    return builder.shuffle_vector(one, two, index)


def _spread(builder, number):
    """A vector with the number in every lane."""
    lane = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, _INT32(0))
    return _shuffle(builder, lane, lane, [0] * ROW)


def _load(builder, pointer, kind=_VECTOR):
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=2 if kind is _BITS else 4)


def _fuse(builder, one, two, three):
    """one · two + three, rounded once."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{ROW}f32"), [one, two, three])


def _add_lanes(builder, one, two):
    """Sums over the lanes of two vectors, side by side: half the steps."""
    halves = [
        builder.fadd(_shuffle(builder, v, v, [0, 1, 2, 3]), _shuffle(builder, v, v, [4, 5, 6, 7])) for v in (one, two)
    ]
    pairs = builder.fadd(*(_shuffle(builder, *halves, lanes) for lanes in ([0, 1, 4, 5], [2, 3, 6, 7])))
    sums = builder.fadd(*(_shuffle(builder, pairs, pairs, lanes) for lanes in ([0, 2], [1, 3])))
    return [builder.extract_element(sums, _INT32(k)) for k in (0, 1)]


@intrinsic
def _separable_sums(typing, source, noise, start, stride, table, at_x, at_y):
    """Σ_j v_j Σ_i u_i source[start + j·stride + i], and the same of noise with squared weights; 6×8 taps.

    u = table[at_x:], v = table[at_y:]. Written as LLVM vectors because numba's vectoriser leaves the short inner loops
    scalar (3× slower). Fused multiply-adds in fixed order: the same bits on any processor.
    """
    signature = types.UniTuple(types.float32, 2)(source, noise, start, stride, table, at_x, at_y)

    def codegen(context, builder, sig, args):
        data = [context.make_array(sig.args[k])(context, builder, args[k]).data for k in (0, 1, 4)]
        pointers = [builder.gep(plane, [args[2]]) for plane in data[:2]]
        totals = [ir.Constant(_VECTOR, [0.0] * ROW)] * 2
        for row in range(TAPS):
            down = _spread(builder, builder.load(builder.gep(data[2], [builder.add(args[6], args[6].type(row))])))
            for k, factor in enumerate((down, builder.fmul(down, down))):
                totals[k] = _fuse(builder, factor, _load(builder, pointers[k]), totals[k])
                pointers[k] = builder.gep(pointers[k], [args[3]])
        across = _load(builder, builder.gep(data[2], [args[5]]))
        squares = builder.fmul(across, across)
        sums = _add_lanes(builder, builder.fmul(totals[0], across), builder.fmul(totals[1], squares))
        return cgutils.pack_array(builder, sums)

    return signature, codegen


@intrinsic
def _masked_sums(typing, source, noise, bits, start, stride, table, at_x, at_y):
    """`_separable_sums` where pixels are flagged: (value, variance, weight, bad weight, central flags, hard flags).

    Pixels with hard bits, or without a finite value and a finite positive variance, do not enter; neither do soft ones
    but for the central four. None of it is normalised.
    """
    floats, flags = [types.float32] * 4, [types.int16] * 2
    signature = types.Tuple((*floats, *flags))(source, noise, bits, start, stride, table, at_x, at_y)

    def codegen(context, builder, sig, args):
        data = [context.make_array(sig.args[k])(context, builder, args[k]).data for k in (0, 1, 2, 5)]
        pointers = [builder.gep(plane, [args[3]]) for plane in data[:3]]
        across = _load(builder, builder.gep(data[3], [args[6]]))
        zero, nothing = ir.Constant(_VECTOR, [0.0] * ROW), ir.Constant(_BITS, [0] * ROW)
        most, least = (ir.Constant(_VECTOR, [np.float32(limit)] * ROW) for limit in (_LARGEST, _LEAST))
        value, variance, weight, bad, central_flags, hard_flags = zero, zero, zero, zero, nothing, nothing
        for row in range(TAPS):
            down = _spread(builder, builder.load(builder.gep(data[3], [builder.add(args[7], args[7].type(row))])))
            w = builder.fmul(down, across)
            size = builder.select(builder.fcmp_ordered("<", w, zero), builder.fsub(zero, w), w)
            pixels, noises, here = (
                _load(builder, at, kind) for at, kind in zip(pointers, (_VECTOR, _VECTOR, _BITS), strict=True)
            )
            pointers = [builder.gep(at, [args[4]]) for at in pointers]
            known = builder.fcmp_ordered("<=", pixels, most)
            for relation, number, limit in ((">=", pixels, builder.fsub(zero, most)), (">=", noises, least),
                                            ("<=", noises, most)):  # fmt: skip
                known = builder.and_(known, builder.fcmp_ordered(relation, number, limit))
            here = builder.or_(here, builder.select(known, nothing, ir.Constant(_BITS, [_NO_DATA] * ROW)))
            hard, soft = (
                builder.icmp_signed("!=", builder.and_(here, ir.Constant(_BITS, [mask] * ROW)), nothing)
                for mask in (_HARD, _SOFT)
            )
            if row in (2, 3):
                # the two nearest columns and rows, less one the kernel does not reach (whole-pixel shift)
                felt = builder.fcmp_ordered(">", size, ir.Constant(_VECTOR, [_FELT] * ROW))
                central = builder.and_(felt, ir.Constant(_TRUTH, [k in (2, 3) for k in range(ROW)]))
                central_flags = builder.or_(central_flags, builder.select(central, here, nothing))
                soft = builder.and_(soft, builder.not_(central))
            within = builder.and_(hard, ir.Constant(_TRUTH, [k < TAPS for k in range(ROW)]))
            hard_flags = builder.or_(hard_flags, builder.select(within, here, nothing))
            bad = builder.fadd(bad, builder.select(hard, size, zero))
            left_out = builder.or_(hard, soft)
            w, pixels, noises = (builder.select(left_out, zero, one) for one in (w, pixels, noises))
            value, weight = _fuse(builder, w, pixels, value), builder.fadd(weight, w)
            variance = _fuse(builder, builder.fmul(w, w), noises, variance)
        flags = [central_flags, hard_flags]
        for half in (4, 2, 1):
            flags = [
                builder.or_(*(_shuffle(builder, one, one, list(range(k, k + half))) for k in (0, half)))
                for one in flags
            ]
        flags = [builder.extract_element(one, _INT32(0)) for one in flags]
        sums = [*_add_lanes(builder, value, variance), *_add_lanes(builder, weight, bad)]
        return context.make_tuple(builder, sig.return_type, [*sums, *flags])

    return signature, codegen


@njit(cache=True, nogil=True)
def _mark_unclean(sci, mask, var):
    """(ny, nx) uint8: 0 where all pixels that `_separable_sums` reads for this base pixel are without flags and finite.

    These are columns x−2…x+5, rows y−2…y+3: two columns more than the kernel has, whose weight is zero, but zero times
    NaN is not.
    """
    ny, nx = sci.shape
    most, least = np.float32(_LARGEST), np.float32(_LEAST)
    out = np.ones((ny, nx), np.uint8)
    across = np.ones((TAPS, nx), np.uint8)
    one, two, four = np.ones(nx + 8, np.uint8), np.ones(nx + 8, np.uint8), np.ones(nx + 8, np.uint8)
    for y in range(ny):
        sci_row, mask_row, var_row = sci[y], mask[y], var[y]
        for x in range(nx):
            # not finite ones fail the comparisons
            good = (abs(sci_row[x]) <= most) & (var_row[x] >= least) & (var_row[x] <= most)
            one[x] = (mask_row[x] != 0) | (not good)
        for x in range(nx):
            two[x] = one[x] | one[x + 1]
        for x in range(nx):
            four[x] = two[x] | two[x + 2]
        sums = across[y % TAPS]
        for x in range(2, nx):
            sums[x] = four[x - 2] | four[x + 2]
        if y >= TAPS - 1:
            out_row = out[y - 3]
            a, b, c, d, e, f = across[0], across[1], across[2], across[3], across[4], across[5]
            for x in range(nx):
                out_row[x] = a[x] | b[x] | c[x] | d[x] | e[x] | f[x]
    return out


@njit(cache=True, nogil=True)
def _resample_edge(sci, mask, var, table, at_x, at_y, x0, y0):
    """What `_masked_sums` gives, where the footprint reaches beyond the chip; EDGE is set in the central flags."""
    ny, nx = sci.shape
    value, variance, weight, bad = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    flags, hard_flags = 0, 0
    for j in range(TAPS):
        y = y0 - 2 + j
        for i in range(TAPS):
            x = x0 - 2 + i
            w = table[at_x + i] * table[at_y + j]
            if x < 0 or y < 0 or x >= nx or y >= ny:
                if w != 0:
                    flags |= _EDGE
                    bad += abs(w)
                continue
            here = np.int64(mask[y, x])
            if not (abs(sci[y, x]) <= np.float32(_LARGEST) and np.float32(_LEAST) <= var[y, x] <= np.float32(_LARGEST)):
                here |= _NO_DATA
            central = 2 <= i <= 3 and 2 <= j <= 3 and abs(w) > np.float32(_FELT)
            if central:
                flags |= here
            if here & _HARD:
                bad += abs(w)
                hard_flags |= here
            elif central or here & _SOFT == 0:
                value += w * sci[y, x]
                variance += w * w * var[y, x]
                weight += w
    return value, variance, weight, bad, np.int16(flags), np.int16(hard_flags)


@njit(cache=True, nogil=True)
def _judge_masked(value, variance, weight, bad, flags, hard_flags, limit):
    """(value, variance, flags) of an output pixel some of whose footprint is missing."""
    if bad > limit:
        flags |= hard_flags
    if weight < np.float32(_MIN_WEIGHT):
        return np.float32(0), np.float32(0), np.int16(flags | hard_flags | _NO_DATA)
    return value / weight, variance / (weight * weight), np.int16(flags)


@njit(cache=True, nogil=True)
def _warp_kernel(
    source, bits, noise, unclean, first_row, table, gx, gy, gain, sky, step, x0, x1, y0, y1, limit,
    sci, mask, var,
):  # fmt: skip
    ny, nx = source.shape
    pixels, noises, flat_bits, marks = source.reshape(-1), noise.reshape(-1), bits.reshape(-1), unclean.reshape(-1)
    # of the pixels of a cell in a row: base pixel, and where its phases stand in the table
    bases_x, bases_y = np.empty(step, np.int32), np.empty(step, np.int32)
    phases_x, phases_y = np.empty(step, np.int32), np.empty(step, np.int32)
    values, variances = np.empty(step, np.float32), np.empty(step, np.float32)
    written = 0
    for row in range(y0, y1):
        node = (row - y0) // step
        t = (row - y0 - node * step) / step
        for cell in range(gx.shape[1] - 1):
            xa, xb = _blend(gx, node, cell, t), _blend(gx, node, cell + 1, t)
            ya, yb = _blend(gy, node, cell, t), _blend(gy, node, cell + 1, t)
            ga, gb = _blend(gain, node, cell, t), _blend(gain, node, cell + 1, t)
            sa, sb = _blend(sky, node, cell, t), _blend(sky, node, cell + 1, t)
            if not np.isfinite(xa + xb + ya + yb + ga + gb + sa + sb):
                continue
            first = x0 + cell * step
            n = min(step, x1 - first)
            dx, dy = (xb - xa) / step, (yb - ya) / step
            reach = _locate_pixels(xa, dx, ya, dy, n, nx, ny, bases_x, bases_y, phases_x, phases_y)
            if reach == 0:
                continue
            smooth = np.float32(ga), np.float32((gb - ga) / step), np.float32(sa), np.float32((sb - sa) / step)
            if reach == 2 and _is_plain(marks, bases_x, bases_y, first_row, nx, mask, row, first, n):
                for k in range(n):
                    start = np.int64(bases_y[k] - 2) * nx + np.int64(bases_x[k] - 2)
                    values[k], variances[k] = _separable_sums(
                        pixels, noises, start, nx, table, np.int64(phases_x[k]), np.int64(phases_y[k])
                    )
                _write_plain(values, variances, smooth, row, first, n, sci, mask, var)
                written += n
            else:
                written += _resample_flagged(
                    source, bits, noise, pixels, flat_bits, noises, marks, first_row, table, bases_x, bases_y, phases_x,
                    phases_y, smooth, limit, row, first, n, sci, mask, var,
                )  # fmt: skip
    return written


@njit(cache=True, nogil=True, inline="always")
def _blend(nodes, row, column, t):
    return nodes[row, column] * (1 - t) + nodes[row + 1, column] * t


@njit(cache=True, nogil=True)
def _locate_pixels(xa, dx, ya, dy, n, nx, ny, bases_x, bases_y, phases_x, phases_y):
    """Fill the last four for n pixels from (xa, ya) on the chip; how many of them lie on it: 0 none, 1 some, 2 all."""
    end_x, end_y = xa + (n - 1) * dx, ya + (n - 1) * dy
    if max(xa, end_x) < -0.5 or max(ya, end_y) < -0.5 or min(xa, end_x) >= nx or min(ya, end_y) >= ny:
        return 0
    for k in range(n):
        px, py = xa + k * dx, ya + k * dy
        ix, iy = np.int32(px + 1.0) - np.int32(1), np.int32(py + 1.0) - np.int32(1)  # floor, for px > −1
        bases_x[k], bases_y[k] = ix, iy
        phases_x[k] = np.int32((px - ix) * PHASES + 0.5) * np.int32(ROW)
        phases_y[k] = np.int32((py - iy) * PHASES + 0.5) * np.int32(ROW)
    if min(xa, end_x) >= 0 and min(ya, end_y) >= 0 and max(xa, end_x) < nx - 1 and max(ya, end_y) < ny - 1:
        return 2
    for k in range(n):
        px, py = xa + k * dx, ya + k * dy
        if px < -0.5 or py < -0.5 or px >= nx - 0.5 or py >= ny - 0.5:
            bases_x[k] = _OUTSIDE
    return 1


@njit(cache=True, nogil=True, inline="always")
def _is_plain(marks, bases_x, bases_y, first_row, nx, mask, row, first, n):
    """Whether n pixels of a row have clean footprints and no data yet: nothing has to be asked pixel by pixel."""
    unclean, free = 0, _NO_DATA
    for k in range(n):
        unclean |= marks[np.uint64((bases_y[k] - first_row) * nx + bases_x[k])]
    for k in range(n):
        free &= mask[row, np.uint64(first + k)]
    return unclean == 0 and free != 0


@njit(cache=True, nogil=True, inline="always")
def _write_plain(values, variances, smooth, row, first, n, sci, mask, var):
    g0, dg, s0, ds = smooth
    for k in range(n):
        here = np.uint64(first + k)
        g = g0 + np.float32(k) * dg
        sci[row, here] = (values[k] - (s0 + np.float32(k) * ds)) * g
        var[row, here] = variances[k] * (g * g)
        mask[row, here] = 0


@njit(cache=True, nogil=True)
def _resample_flagged(
    source, bits, noise, pixels, flat_bits, noises, marks, first_row, table, bases_x, bases_y, phases_x, phases_y,
    smooth, limit, row, first, n, sci, mask, var,
):  # fmt: skip
    """Pixels of a row near flagged ones, the chip's edge or another chip; how many got a good value."""
    ny, nx = source.shape
    g0, dg, s0, ds = smooth
    written = 0
    for k in range(n):
        here = np.uint64(first + k)
        if bases_x[k] == _OUTSIDE or mask[row, here] & _HARD == 0:
            continue
        ix, iy = np.int64(bases_x[k]), np.int64(bases_y[k])
        at_x, at_y = np.int64(phases_x[k]), np.int64(phases_y[k])
        start = (iy - 2) * nx + ix - 2
        if ix < 2 or iy < 2 or ix >= nx - 6 or iy >= ny - 3:
            parts = _resample_edge(source, bits, noise, table, at_x, at_y, ix, iy)
            value, variance, flags = _judge_masked(*parts, limit)
        elif marks[np.uint64((iy - first_row) * nx + ix)]:
            parts = _masked_sums(pixels, noises, flat_bits, start, nx, table, at_x, at_y)
            value, variance, flags = _judge_masked(*parts, limit)
        else:
            value, variance = _separable_sums(pixels, noises, start, nx, table, at_x, at_y)
            flags = np.int16(0)
        # an earlier chip's masked pixel is only replaced by a good one
        if flags & _HARD and mask[row, here] & _NO_DATA == 0:
            continue
        if flags & _NO_DATA == 0:
            value -= s0 + np.float32(k) * ds
        g = g0 + np.float32(k) * dg
        sci[row, here], var[row, here], mask[row, here] = value * g, variance * (g * g), flags
        if flags & _HARD == 0:
            written += 1
    return written


@njit(cache=True, nogil=True)
def _resample_stamps(stamps, matrices, x0, y0, size, table):
    n, s, _ = stamps.shape
    out = np.zeros((n, size, size), np.float32)
    half = size // 2
    for k in range(n):
        pixels, m = stamps[k].reshape(-1), matrices[k]
        for v in range(size):
            for u in range(size):
                px = x0 + m[0, 0] * (u - half) + m[0, 1] * (v - half)
                py = y0 + m[1, 0] * (u - half) + m[1, 1] * (v - half)
                if px < 2 or py < 2 or px >= s - 6 or py >= s - 4:
                    continue
                ix, iy = int(px), int(py)
                at_x, at_y = int((px - ix) * PHASES + 0.5) * ROW, int((py - iy) * PHASES + 0.5) * ROW
                out[k, v, u] = _separable_sums(pixels, pixels, (iy - 2) * s + ix - 2, s, table, at_x, at_y)[0]
    return out
