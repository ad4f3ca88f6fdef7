"""A stack without some of its inputs, by arithmetic on its planes: which inputs entered where is known from its bits.

Here: the sums of what stays. Not here: combining inputs (`stack`), the PSF of what stays (`stack_psf.reduce_psf`),
which inputs have to go (`pipeline/templates`).
"""

from collections.abc import Sequence

import numpy as np
from numba import njit

from lap_assets.model.image import Mask, MaskedImage
from lap_assets.science.stack import INPUTS_PER_PLANE

_NO_DATA = np.int16(Mask.NO_DATA)
_ROWS_AT_ONCE = 256


def remove_inputs(
    stack: MaskedImage, used: np.ndarray, weights: np.ndarray, gone: Sequence[int], images: Sequence[MaskedImage],
    levels: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Take inputs out of a stack, in place: equal to combining the others anew with the same rejections.

    Sums in float64; what differs is the rounding of the stack's float32 planes (half an ulp of its value and variance,
    times Σw / Σw left). NO_DATA where nothing is left; flags that only an input taken out had set remain.

    Parameters
    ----------
    stack : MaskedImage
        As published; its plane NINPUT, where it has one, counts what is left.
    used : (p, ny, nx) uint8, int16 or int32
        Bit k of plane p: input 31·p + k entered.
    weights : (n,) float
        Of all inputs.
    gone : sequence of int
        Inputs to take out.
    images : sequence of MaskedImage
        Their warps, of the stack's shape.
    levels : (m, 3) float
        Planes c0 + c1 x + c2 y to take off them, as `stack.subtract_level` does; none by default.
    """
    gone = np.asarray(gone, np.int64)
    levels = np.zeros((gone.size, 3)) if levels is None else np.asarray(levels, float)
    tables = _sum_weights(np.asarray(weights, float), gone, used)
    count = stack.planes.get("NINPUT", np.zeros((0, stack.shape[1]), np.int16))
    taken = np.asarray(weights, float)[gone]
    for first in range(0, stack.shape[0], _ROWS_AT_ONCE):
        rows = np.s_[first : first + _ROWS_AT_ONCE]
        lines = [_join([getattr(image, name)[rows] for image in images]) for name in ("sci", "var")]
        _subtract_rows(
            stack.sci[rows], stack.var[rows], stack.mask[rows], count[rows], used, first, tables, gone, taken, levels,
            *lines,
        )  # fmt: skip


def _join(planes: list[np.ndarray]) -> np.ndarray:
    return planes[0][None] if len(planes) == 1 else np.stack(planes)


def _sum_weights(weights: np.ndarray, gone: np.ndarray, used: np.ndarray) -> np.ndarray:
    """(p, bytes, 256, 2) sums of weight, of all and of those that stay, for each value of each byte of the bits."""
    staying = weights.copy()
    staying[gone] = 0.0
    tables = np.zeros((len(used), used.dtype.itemsize, 256, 2))
    bits = np.arange(256)[:, None] >> np.arange(8) & 1
    for plane, byte in np.ndindex(tables.shape[:2]):
        first = INPUTS_PER_PLANE * plane + 8 * byte
        end = min(first + 8, INPUTS_PER_PLANE * (plane + 1))
        for column, values in enumerate((weights, staying)):
            here = values[first:end]
            tables[plane, byte, :, column] = bits[:, : here.size] @ here
    return tables


@njit(cache=True, nogil=True)
def _subtract_rows(sci, var, flags, count, used, first, tables, gone, weight, levels, lines, line_vars):
    """Rows of a stack from row `first` on, in place; `gone` (m,), `weight` (m,), `lines` and `line_vars` (m, r, nx)."""
    rows, nx = sci.shape
    ny = used.shape[1]
    total, left, mean, scatter = np.empty(nx), np.empty(nx), np.empty(nx), np.empty(nx)
    taken = np.empty(nx, np.int16)
    middle = np.float32(0.5 * (nx - 1))
    for y in range(rows):
        value, noise, flag = sci[y], var[y], flags[y]
        total[:], left[:] = 0.0, 0.0
        for plane in range(tables.shape[0]):
            bits = used[plane, first + y]
            for byte in range(tables.shape[1]):
                table = tables[plane, byte]
                for x in range(nx):
                    at = (bits[x] >> (8 * byte)) & 255
                    total[x] += table[at, 0]
                    left[x] += table[at, 1]
        for x in range(nx):
            mean[x] = value[x] * total[x]
            scatter[x] = noise[x] * total[x] * total[x]
            taken[x] = 0
        v = (first + y - 0.5 * (ny - 1)) / (0.5 * ny)
        for i in range(gone.size):
            bits, shift, w = used[gone[i] // INPUTS_PER_PLANE, first + y], gone[i] % INPUTS_PER_PLANE, weight[i]
            line, line_var = lines[i, y], line_vars[i, y]
            base, slope = np.float32(levels[i, 0] + levels[i, 2] * v), np.float32(levels[i, 1] / (0.5 * nx))
            for x in range(nx):
                here = (bits[x] >> shift) & 1
                level = base + slope * (np.float32(x) - middle)
                mean[x] -= w * (line[x] - level) if here else 0.0
                scatter[x] -= w * w * line_var[x] if here else 0.0
                taken[x] += here
        for x in range(nx):
            some, rest = taken[x] > 0, left[x] > 0.0
            inverse = 1.0 / (left[x] if rest else 1.0)
            fresh, spread = np.float32(mean[x] * inverse), np.float32(scatter[x] * inverse * inverse)
            value[x] = (fresh if rest else np.float32(0)) if some else value[x]
            noise[x] = (spread if rest else np.float32(0)) if some else noise[x]
            flag[x] |= _NO_DATA if some and not rest else np.int16(0)
        if count.shape[0]:
            number = count[y]
            for x in range(nx):
                number[x] -= taken[x]
