"""Where on a difference a point source may stand, and how bright it is there: a coarse search, then the exact filter.

Here: the kernels that look at every pixel once, and those that weigh pixels with the PSF about a candidate. Not here:
which of the found are to be believed, and the table of them (`diff_sources`), fits of two sources (`dipole`).

A separable filter (the PSF's best product of a row and a column) over the image in units of its noise keeps all but a
few per cent of the signal to noise and costs two one-dimensional passes; what it shows is measured with the PSF itself.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from lap_assets.model.image import UNUSABLE, Mask, MaskedImage
from lap_assets.science.difference import Psf

_SATURATED = int(Mask.SATURATED | Mask.BLEED)
_MISSING = int(Mask.EDGE | Mask.NO_DATA)
_UNUSABLE = int(UNUSABLE)
_PIECE_PX = 64  # of a row, looked at together
_CELL_PX, _MIN_CELLS = 200, 3  # side of the cells in which one stamp stands for the PSF; their least number along it


@dataclass(frozen=True)
class LocalPsf:
    """The PSF in cells of an image.

    Attributes
    ----------
    stamps : (rows, columns, s, s) float64
        Sum 1.
    step_y, step_x : float
        Size of a cell, px.
    """

    stamps: np.ndarray
    step_y: float
    step_x: float

    def locate(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(n,) int64: index of the cell of each place in the flat list of cells."""
        rows, columns = self.stamps.shape[:2]
        row = np.clip((y + 0.5) / self.step_y, 0, rows - 1).astype(np.int64)
        column = np.clip((x + 0.5) / self.step_x, 0, columns - 1).astype(np.int64)
        return row * columns + column

    @property
    def flat(self) -> np.ndarray:
        """(rows · columns, s, s) stamps."""
        return self.stamps.reshape(-1, *self.stamps.shape[2:])


def tabulate_psf(psf: Psf, shape: tuple[int, int], reach_fwhm: float = 2.2) -> LocalPsf:
    """The PSF in the middle of cells of about 200 px, cut to `reach_fwhm` FWHM (at least 5 px) to each side.

    The stamps keep their normalisation: what lies beyond the cut is missing from their sum.
    """
    rows, columns = (max(_MIN_CELLS, round(n / _CELL_PX)) for n in shape)
    step_y, step_x = shape[0] / rows, shape[1] / columns
    y, x = (np.arange(rows) + 0.5) * step_y - 0.5, (np.arange(columns) + 0.5) * step_x - 0.5
    stamps = psf.evaluate_many(np.tile(x, rows), np.repeat(y, columns))
    half = stamps.shape[-1] // 2
    radius = min(half, max(5, int(np.ceil(reach_fwhm * psf.fwhm_px))))
    cut = np.s_[:, half - radius : half + radius + 1, half - radius : half + radius + 1]
    return LocalPsf(np.ascontiguousarray(stamps[cut]).reshape(rows, columns, 2 * radius + 1, 2 * radius + 1),
                    step_y, step_x)  # fmt: skip


def correlated_gain(profile: np.ndarray, correlation: np.ndarray) -> float:
    """Σ PᵢPⱼρ(i−j) / Σ P²: by how much correlated noise raises the variance of a PSF-weighted sum."""
    full = 2 * profile.shape[0] - 1
    auto = np.fft.fftshift(np.fft.irfft2(np.abs(np.fft.rfft2(profile, (full, full))) ** 2, (full, full)))
    reach = min(full // 2, correlation.shape[0] // 2)
    near = np.s_[full // 2 - reach : full // 2 + reach + 1]
    middle = correlation.shape[0] // 2
    there = np.s_[middle - reach : middle + reach + 1]
    return float(np.sum(auto[near, near] * correlation[there, there]) / np.sum(profile**2))


def filter_coarsely(image: MaskedImage, psf: LocalPsf, correlation: np.ndarray) -> np.ndarray:
    """(ny, nx) float32 signal to noise of a point source at each pixel, a few per cent below that of the exact filter.

    The filter is the rank-one part of the mean PSF's singular value decomposition; the image is divided by √VAR
    first, and bad pixels count as zero.
    """
    mean = psf.flat.mean(axis=0)
    left, _, right = np.linalg.svd(mean)
    half = mean.shape[0] // 2
    column, row = left[:, 0] * np.sign(left[half, 0]), right[0] * np.sign(right[0, half])
    wide = np.flatnonzero(np.maximum(column / column[half], row / row[half]) > 0.02)
    side = max(half - wide[0], wide[-1] - half)
    column, row = column[half - side : half + side + 1], row[half - side : half + side + 1]
    product = column[:, None] * row[None, :]
    noise = np.sqrt(np.sum(product**2) * correlated_gain(product, correlation))
    return _filter_rows(
        image.sci, image.mask, image.var, column.astype(np.float32), (row / noise).astype(np.float32)
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _filter_rows(sci, mask, var, column, row):
    """Correlation of the image in units of its noise with column ⊗ row; a ring of filtered rows serves both passes."""
    ny, nx = sci.shape
    taps, side = row.size, row.size // 2
    out = np.zeros((ny, nx), np.float32)
    line = np.zeros(nx + 2 * side, np.float32)
    ring = np.zeros((taps, nx), np.float32)
    zero, one = np.float32(0), np.float32(1)
    for y in range(ny + side):
        into = ring[y % taps]
        into[:] = zero
        if y < ny:
            values, flags, variance = sci[y], mask[y], var[y]
            for x in range(nx):
                good = (flags[x] & _UNUSABLE == 0) & (variance[x] > zero)
                noise = np.sqrt(variance[x] if good else one)
                line[x + side] = (values[x] if good else zero) / noise
            for k in range(taps):
                tap = row[k]
                for x in range(nx):
                    into[x] += tap * line[x + k]
        if y >= side:
            result = out[y - side]
            for k in range(taps):
                at = y - taps + 1 + k
                if at < 0:
                    continue
                tap, held = column[k], ring[at % taps]
                for x in range(nx):
                    result[x] += tap * held[x]
    return out


@njit(cache=True, nogil=True)
def _is_extremum(snr, y, x):
    """Whether a pixel is the largest of its 5×5 neighbours (of its sign); of equal ones the first is."""
    value, sign = abs(snr[y, x]), np.float32(1.0) if snr[y, x] > 0 else np.float32(-1.0)
    for v in range(y - 2, y + 3):
        for u in range(x - 2, x + 3):
            other = sign * snr[v, u]
            if other > value or (other == value and (v < y or (v == y and u < x))):
                return False
    return True


@njit(cache=True, nogil=True)
def find_extrema(snr, limit):
    """Pixels (x, y) with |snr| ≥ limit that are the largest of their 5×5 neighbours (of one sign); by y, then x."""
    ny, nx = snr.shape
    xs, ys = [0][:0], [0][:0]
    for y in range(2, ny - 2):
        for left in range(2, nx - 2, _PIECE_PX):
            piece = snr[y, left : min(left + _PIECE_PX, nx - 2)]
            some = np.uint8(0)
            # most pieces hold nothing: found out in vector registers
            for k in range(piece.size):
                some |= np.uint8(abs(piece[k]) >= limit)
            if some == 0:
                continue
            for k in range(piece.size):
                if abs(piece[k]) >= limit and _is_extremum(snr, y, left + k):
                    xs.append(left + k)
                    ys.append(y)
    return np.array(xs), np.array(ys)


@njit(cache=True, nogil=True)
def weigh_taps(t, weights):
    """Weights of the six pixels −2…3 about a place t in 0…1: cubic convolution of fourth order (Keys 1981, eq. 25)."""
    for k in range(6):
        s = abs(t - (k - 2))
        if s < 1.0:
            weights[k] = (4.0 / 3.0 * s - 7.0 / 3.0) * s * s + 1.0
        elif s < 2.0:
            weights[k] = ((-7.0 / 12.0 * s + 3.0) * s - 59.0 / 12.0) * s + 2.5
        else:
            weights[k] = ((s / 12.0 - 2.0 / 3.0) * s + 1.75) * s - 1.5


@njit(cache=True, nogil=True)
def shift_stamp(stamp, dx, dy, out):
    """`stamp` moved by (dx, dy) px, by cubic convolution, into `out` (of its shape); zero beyond its edges."""
    size = stamp.shape[0]
    # a source at +dx shows at pixel u what the centred stamp has at u − dx
    ix, iy = int(np.floor(-dx)), int(np.floor(-dy))
    wx, wy = np.empty(6), np.empty(6)
    weigh_taps(-dx - ix, wx)
    weigh_taps(-dy - iy, wy)
    across = np.zeros((size, size))
    for v in range(size):
        for u in range(size):
            for i in range(6):
                x = u + ix + i - 2
                if 0 <= x < size:
                    across[v, u] += wx[i] * stamp[v, x]
    out[:] = 0.0
    for v in range(size):
        for j in range(6):
            y = v + iy + j - 2
            if 0 <= y < size:
                for u in range(size):
                    out[v, u] += wy[j] * across[y, u]


@njit(cache=True, nogil=True)
def _weigh(sci, mask, var, stamp, x, y):
    """PSF flux and its variance (white noise) about pixel (x, y), and which part of Σ P² is on usable pixels."""
    ny, nx = sci.shape
    radius = stamp.shape[0] // 2
    top, bottom, noise, whole = 0.0, 0.0, 0.0, 0.0
    for v in range(stamp.shape[0]):
        for u in range(stamp.shape[1]):
            p = stamp[v, u]
            whole += p * p
            yy, xx = y + v - radius, x + u - radius
            if 0 <= yy < ny and 0 <= xx < nx and mask[yy, xx] & _UNUSABLE == 0 and var[yy, xx] > 0:
                top += p * sci[yy, xx]
                bottom += p * p
                noise += p * p * var[yy, xx]
    if bottom <= 0.0 or noise <= 0.0:
        return 0.0, 1.0, 0.0
    return top / bottom, noise / (bottom * bottom), bottom / whole


@njit(cache=True, nogil=True)
def _rise(sci, mask, var, stamp, x, y, sign, gain):
    """Signal to noise (of one sign) of the PSF at a pixel; −1 where less than 60 % of it is usable."""
    flux, variance, share = _weigh(sci, mask, var, stamp, x, y)
    return sign * flux / np.sqrt(variance * gain) if share > 0.6 else -1.0


@njit(cache=True, nogil=True)
def _vertex(before, here, after):
    """Offset of the extremum of the parabola through three values, at most half a step; 0 where one is missing."""
    curvature = before - 2.0 * here + after
    if before < 0.0 or after < 0.0 or curvature >= 0.0:
        return 0.0
    return min(max(0.5 * (before - after) / curvature, -0.5), 0.5)


@njit(cache=True, nogil=True)
def measure_peaks(sci, mask, var, stamps, cells, xs, ys, signs, gain):
    """Climb from each candidate to the nearest maximum of the exact filter; position, flux, error, usable part of it.

    The place is that of parabolas through the neighbouring values; flux = Σ P D / Σ P² with the PSF moved there, and
    its variance Σ P² V / (Σ P²)² times `gain`. (n, 5) float64: x, y [px], flux, flux_err, share of the PSF.
    """
    ny, nx = sci.shape
    out = np.zeros((xs.size, 5), np.float64)
    moved = np.empty_like(stamps[0])
    for s in range(xs.size):
        stamp, sign, x, y = stamps[cells[s]], signs[s], xs[s], ys[s]
        here = _rise(sci, mask, var, stamp, x, y, sign, gain)
        for _ in range(4):
            best, bx, by = here, x, y
            for v in range(max(y - 1, 0), min(y + 2, ny)):
                for u in range(max(x - 1, 0), min(x + 2, nx)):
                    value = _rise(sci, mask, var, stamp, u, v, sign, gain)
                    if value > best:
                        best, bx, by = value, u, v
            if bx == x and by == y:
                break
            here, x, y = best, bx, by
        dx = _vertex(
            _rise(sci, mask, var, stamp, x - 1, y, sign, gain), here, _rise(sci, mask, var, stamp, x + 1, y, sign, gain)
        )
        dy = _vertex(
            _rise(sci, mask, var, stamp, x, y - 1, sign, gain), here, _rise(sci, mask, var, stamp, x, y + 1, sign, gain)
        )
        shift_stamp(stamp, dx, dy, moved)
        flux, variance, share = _weigh(sci, mask, var, moved, x, y)
        out[s, 0], out[s, 1], out[s, 2], out[s, 3], out[s, 4] = x + dx, y + dy, flux, np.sqrt(variance * gain), share
    return out


@njit(cache=True, nogil=True)
def weigh_places(sci, mask, var, stamps, cells, xs, ys):
    """PSF-weighted flux Σ P S / Σ P² at some pixels; 0 where no pixel is usable."""
    ny, nx = sci.shape
    radius = stamps.shape[1] // 2
    fluxes = np.zeros(xs.size, np.float64)
    for s in range(xs.size):
        stamp, top, bottom = stamps[cells[s]], 0.0, 0.0
        for y in range(max(ys[s] - radius, 0), min(ys[s] + radius + 1, ny)):
            for x in range(max(xs[s] - radius, 0), min(xs[s] + radius + 1, nx)):
                if mask[y, x] & _UNUSABLE == 0 and var[y, x] > 0:
                    weight = stamp[y - ys[s] + radius, x - xs[s] + radius]
                    top += weight * sci[y, x]
                    bottom += weight * weight
        if bottom > 0:
            fluxes[s] = top / bottom
    return fluxes


@njit(cache=True, nogil=True)
def measure_shapes(sci, var, mask, snr, stamps, cells, xs, ys, fluxes, fwhm, saturated_radius):
    """Aperture flux and variance, sharpness, χ², moments, opposite residual with its place, and flags of each source.

    (n, 11) float64: aperture flux, its variance (white), sharpness, reduced χ², major and minor axis [px], angle [deg],
    largest signal to noise of the other sign, its x and y [px], error of the sharpness; (n,) int64 `SourceFlag`.
    """
    ny, nx = sci.shape
    out = np.zeros((xs.size, 11), np.float64)
    bits = np.zeros(xs.size, np.int64)
    moved = np.empty_like(stamps[0])
    radius = stamps.shape[1] // 2
    window = 4.0 * (fwhm / 2.3548) ** 2
    reach = int(max(2.0, saturated_radius) * fwhm) + 1
    for s in range(xs.size):
        sign = 1.0 if fluxes[s] > 0 else -1.0
        ix, iy = int(np.floor(xs[s] + 0.5)), int(np.floor(ys[s] + 0.5))
        shift_stamp(stamps[cells[s]], xs[s] - ix, ys[s] - iy, moved)
        chi2, count = 0.0, 0
        m0, mxx, mxy, myy = 0.0, 0.0, 0.0, 0.0
        for y in range(max(iy - reach, 0), min(iy + reach + 1, ny)):
            for x in range(max(ix - reach, 0), min(ix + reach + 1, nx)):
                u, v = x - xs[s], y - ys[s]
                r = np.sqrt(u * u + v * v)
                here = mask[y, x]
                if here & _SATURATED and r < saturated_radius * fwhm:
                    bits[s] |= 2
                if here & _MISSING and r < fwhm:
                    bits[s] |= 4
                if here & _UNUSABLE and r < 0.6 * fwhm:
                    bits[s] |= 32
                if here & _UNUSABLE or var[y, x] <= 0:
                    continue
                if r < 2.0 * fwhm and -sign * snr[y, x] > out[s, 7]:
                    out[s, 7], out[s, 8], out[s, 9] = -sign * snr[y, x], x, y
                if r < 1.5 * fwhm:
                    out[s, 0] += sci[y, x]
                    out[s, 1] += var[y, x]
                    w = np.exp(-r * r / window) * sign * sci[y, x]
                    m0 += w
                    mxx += w * u * u
                    mxy += w * u * v
                    myy += w * v * v
                if r < fwhm:
                    model = fluxes[s] * moved[y - iy + radius, x - ix + radius]
                    chi2 += (sci[y, x] - model) ** 2 / var[y, x]
                    count += 1
        core = fluxes[s] * moved[radius, radius]
        if 0 <= iy < ny and 0 <= ix < nx and core != 0.0:
            out[s, 2] = sci[iy, ix] / core
            out[s, 10] = np.sqrt(max(var[iy, ix], 0.0)) / abs(core)
        out[s, 3] = chi2 / max(count, 1)
        if m0 > 0:
            half, spread = 0.5 * (mxx + myy) / m0, np.sqrt(0.25 * (mxx - myy) ** 2 + mxy**2) / m0
            out[s, 4], out[s, 5] = np.sqrt(max(half + spread, 0.0)), np.sqrt(max(half - spread, 0.0))
            out[s, 6] = np.degrees(0.5 * np.arctan2(2.0 * mxy, mxx - myy))
    return out, bits
