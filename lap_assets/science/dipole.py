"""A source of one sign beside one of the other: two PSFs fitted to a difference at once.

What a star leaves that stands elsewhere on the template (misregistration, refraction, a moving object) is a dipole;
its fluxes, separation and orientation are measured here. Which sources are tried and what is said of them is
`diff_sources.py`'s.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from scipy import fft

_ROUNDS = 30  # at most, of Levenberg–Marquardt


@dataclass(frozen=True)
class DipoleFits:
    """Two PSFs at each of n places; NaN where too few pixels are usable.

    Attributes
    ----------
    positive, negative : (n, 3) float64
        x, y [px], flux [nJy; ≥ 0 and ≤ 0].
    chi2 : (n,) float64
        Reduced.
    """

    positive: np.ndarray
    negative: np.ndarray
    chi2: np.ndarray

    @property
    def separation_px(self) -> np.ndarray:
        """Distance of the two, px."""
        return np.hypot(*(self.positive[:, :2] - self.negative[:, :2]).T)

    @property
    def angle_deg(self) -> np.ndarray:
        """Direction from the negative to the positive one, degrees from +x towards +y."""
        dx, dy = (self.positive[:, :2] - self.negative[:, :2]).T
        return np.degrees(np.arctan2(dy, dx))


def fit_dipoles(
    sci: np.ndarray,
    var: np.ndarray,
    usable: np.ndarray,
    stamps: np.ndarray,
    cells: np.ndarray,
    starts: np.ndarray,
    standing: np.ndarray,
    fwhm_px: float,
) -> DipoleFits:
    """Least squares for two PSFs of opposite sign, by Levenberg–Marquardt over the pixels within 2 FWHM of either.

    Two PSFs nearer than their width are degenerate: only flux times separation is known. As Reiss (DMTN-007) uses the
    images themselves for that, the negative flux is held near what stands there on the template, to 10 % of it.

    Parameters
    ----------
    sci, var, usable : (ny, nx)
        The difference.
    stamps : (m, s, s) float64
        PSFs of sum 1, centred.
    cells : (n,) int64
        Which of them.
    starts : (n, 6) float64
        x, y, flux of the positive one, then of the negative one, to begin with.
    standing : (n,) float64
        Flux on the template at the negative one; 0: not known.
    """
    wanted, cells = np.unique(cells, return_inverse=True)
    fitted, chi2 = _fit(
        sci, var, usable, _double(stamps[wanted.astype(np.int64)]), cells.astype(np.int64),
        np.ascontiguousarray(starts, np.float64), np.asarray(standing, np.float64), float(fwhm_px),
    )  # fmt: skip
    return DipoleFits(fitted[:, :3], fitted[:, 3:], chi2)


def _double(stamps: np.ndarray) -> np.ndarray:
    """(m, 2 s, 2 s): the stamps at twice as many points, by padding their transforms; the middle is at 2·(s // 2)."""
    size = stamps.shape[-1]
    return fft.irfft2(_pad_transform(fft.rfft2(stamps), size), (2 * size, 2 * size)) * 4.0


def _pad_transform(transform: np.ndarray, size: int) -> np.ndarray:
    padded = np.zeros((len(transform), 2 * size, size + 1), complex)
    half = size // 2 + 1
    padded[:, :half, : transform.shape[-1]] = transform[:, :half]
    padded[:, half - size :, : transform.shape[-1]] = transform[:, half:]
    return padded


@njit(cache=True, nogil=True)
def _weigh_taps(t, weights, slopes):
    """Weights of the six pixels −2…3 about a place t in 0…1, and their derivatives: cubic convolution of fourth order
    (Keys 1981, eq. 25).
    """
    for k in range(6):
        away = t - (k - 2)
        s, sign = abs(away), 1.0 if away > 0 else -1.0
        if s < 1.0:
            weights[k] = (4.0 / 3.0 * s - 7.0 / 3.0) * s * s + 1.0
            slopes[k] = sign * (4.0 * s - 14.0 / 3.0) * s
        elif s < 2.0:
            weights[k] = ((-7.0 / 12.0 * s + 3.0) * s - 59.0 / 12.0) * s + 2.5
            slopes[k] = sign * ((-1.75 * s + 6.0) * s - 59.0 / 12.0)
        else:
            weights[k] = ((s / 12.0 - 2.0 / 3.0) * s + 1.75) * s - 1.5
            slopes[k] = sign * ((0.25 * s - 4.0 / 3.0) * s + 1.75)


@njit(cache=True, nogil=True)
def _sample(stamp, x, y, taps, out):
    """Value of a doubled stamp at (x, y) px from its middle and its derivatives there: `out` (3,); `taps` (4, 6) is
    room for weights.
    """
    size = stamp.shape[0]
    middle = 2 * (size // 4)
    px, py = 2.0 * x + middle, 2.0 * y + middle
    ix, iy = int(np.floor(px)), int(np.floor(py))
    _weigh_taps(px - ix, taps[0], taps[1])
    _weigh_taps(py - iy, taps[2], taps[3])
    out[:] = 0.0
    for j in range(6):
        v = iy + j - 2
        if v < 0 or v >= size:
            continue
        value, slope = 0.0, 0.0
        for i in range(6):
            u = ix + i - 2
            if 0 <= u < size:
                value += taps[0, i] * stamp[v, u]
                slope += taps[1, i] * stamp[v, u]
        out[0] += taps[2, j] * value
        out[1] += 2.0 * taps[2, j] * slope
        out[2] += 2.0 * taps[3, j] * value


@njit(cache=True, nogil=True)
def _normal_equations(sci, var, usable, stamp, p, box, reach, centres, prior, width, matrix, side):
    """Fill JᵀJ and Jᵀr at parameters p; returns χ² and the number of pixels."""
    matrix[:] = 0.0
    side[:] = 0.0
    one, two, slope, taps = np.empty(3), np.empty(3), np.empty(6), np.empty((4, 6))
    chi2, count = 0.0, 0
    for y in range(box[2], box[3]):
        for x in range(box[0], box[1]):
            near = (x - centres[0]) ** 2 + (y - centres[1]) ** 2 <= reach**2
            near |= (x - centres[2]) ** 2 + (y - centres[3]) ** 2 <= reach**2
            if not near or not usable[y, x] or var[y, x] <= 0:
                continue
            weight = 1.0 / var[y, x]
            _sample(stamp, x - p[0], y - p[1], taps, one)
            _sample(stamp, x - p[3], y - p[4], taps, two)
            rest = sci[y, x] - p[2] * one[0] - p[5] * two[0]
            slope[0], slope[1], slope[2] = -p[2] * one[1], -p[2] * one[2], one[0]
            slope[3], slope[4], slope[5] = -p[5] * two[1], -p[5] * two[2], two[0]
            for i in range(6):
                side[i] += weight * slope[i] * rest
                for j in range(i + 1):
                    matrix[i, j] += weight * slope[i] * slope[j]
            chi2 += weight * rest * rest
            count += 1
    if width > 0.0:
        away = -prior - p[5]
        matrix[5, 5] += 1.0 / width**2
        side[5] += away / width**2
        chi2 += (away / width) ** 2
    for i in range(6):
        for j in range(i):
            matrix[j, i] = matrix[i, j]
    return chi2, count


@njit(cache=True, nogil=True)
def _to_moment(p):
    """Parameters (x, y, flux) twice as middle, dipole moment (flux times separation), mean flux and excess.

    Of a close dipole the data tell the moment; in these variables the valley they leave is straight.
    """
    flux = 0.5 * (p[2] - p[5])
    return np.array(
        [0.5 * (p[0] + p[3]), 0.5 * (p[1] + p[4]), (p[0] - p[3]) * flux, (p[1] - p[4]) * flux, flux, p[2] + p[5]]
    )


@njit(cache=True, nogil=True)
def _from_moment(q, change):
    """The inverse, and its derivatives into `change` (6, 6)."""
    half = 0.5 / q[4]
    change[:] = 0.0
    for i in range(2):
        change[i, i], change[3 + i, i] = 1.0, 1.0
        change[i, 2 + i], change[3 + i, 2 + i] = half, -half
        change[i, 4], change[3 + i, 4] = -q[2 + i] * half / q[4], q[2 + i] * half / q[4]
    change[2, 4], change[2, 5], change[5, 4], change[5, 5] = 1.0, 0.5, -1.0, 0.5
    return np.array(
        [q[0] + q[2] * half, q[1] + q[3] * half, q[4] + 0.5 * q[5],
         q[0] - q[2] * half, q[1] - q[3] * half, 0.5 * q[5] - q[4]]
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _fit(sci, var, usable, stamps, cells, starts, standing, fwhm):
    """(n, 6) parameters and (n,) reduced χ²."""
    ny, nx = sci.shape
    n = starts.shape[0]
    fitted, quality = np.full((n, 6), np.nan), np.full(n, np.nan)
    matrix, side, change = np.empty((6, 6)), np.empty(6), np.empty((6, 6))
    next_matrix, next_side, next_change = np.empty((6, 6)), np.empty(6), np.empty((6, 6))
    reach = 2.0 * fwhm
    for s in range(n):
        stamp, q = stamps[cells[s]], _to_moment(starts[s])
        p = _from_moment(q, change)
        centres = np.array([p[0], p[1], p[3], p[4]])
        box = (
            max(int(min(p[0], p[3]) - reach), 0), min(int(max(p[0], p[3]) + reach) + 2, nx),
            max(int(min(p[1], p[4]) - reach), 0), min(int(max(p[1], p[4]) + reach) + 2, ny),
        )  # fmt: skip
        width = 0.1 * standing[s]
        chi2, count = _normal_equations(
            sci, var, usable, stamp, p, box, reach, centres, standing[s], width, matrix, side
        )
        if count < 20:
            continue
        damping = 1e-3
        for _ in range(_ROUNDS):
            damped = change.T @ matrix @ change
            for i in range(6):
                damped[i, i] += damping * damped[i, i] + 1e-30
            step = np.linalg.solve(damped, change.T @ side)
            inside = q[4] + step[4] > 0.0
            found = chi2
            if inside:
                trial = _from_moment(q + step, next_change)
                inside = trial[2] > 0.0 and trial[5] < 0.0
                for i in range(2):
                    inside &= abs(trial[i] - centres[i]) < reach and abs(trial[3 + i] - centres[2 + i]) < reach
            if inside:
                found, _count = _normal_equations(
                    sci, var, usable, stamp, trial, box, reach, centres, standing[s], width, next_matrix, next_side
                )
            if inside and found <= chi2:
                gained = chi2 - found
                q, p, chi2, damping = q + step, trial, found, max(0.2 * damping, 1e-9)
                matrix[:], side[:], change[:] = next_matrix, next_side, next_change
                if gained < 1e-5 * max(chi2, 1.0):
                    break
            else:
                damping *= 8.0
                if damping > 1e8:
                    break
        fitted[s] = p
        quality[s] = chi2 / max(count - 6, 1)
    return fitted, quality
