"""Sizes and shapes of stars: adaptive moments, and the Moffat profile that the seeing is quoted by.

Pure measurement of single stamps. Which stars are measured and what their shapes are compared with is `psf.py`'s and
`chip_catalog.py`'s; shapes of galaxies, which have to be corrected for the PSF, are `shear.py`'s.
"""

import numpy as np
from numba import njit

_STEPS = 200  # of the adaptive moments, at most
_CONVERGED = 1e-6
_MIN_VARIANCE_PX2 = 0.05
_FIT_STEPS = 40
_BETA_RANGE = (1.2, 100.0)  # beyond, a Moffat profile is not told from a Gaussian


def measure_moments(stamps: np.ndarray, variances: np.ndarray | None = None) -> np.ndarray:
    """Adaptive moments: those under the elliptical Gaussian weight that matches the star.

    After Bernstein & Jarvis (2002, AJ 123, 583) and Hirata & Seljak (2003, MNRAS 343, 459): the weight is given twice
    the weighted second moments, and centred anew, until nothing changes.

    Parameters
    ----------
    stamps : (n, s, s) array
        Stars without sky, near the middle pixel.
    variances : (n, s, s) array, optional
        Of the pixels; without them the errors are 0.

    Returns
    -------
    (n, 7) float64
        Centre x, y from the middle pixel [pix]; T = a² + b² [pix²]; e1, e2 = (a² − b²)/(a² + b²) along x and diagonal;
        errors of T / T and of each e. NaN where it does not converge.
    """
    stamps = np.ascontiguousarray(stamps, np.float64)
    with_noise = variances is not None
    noise = np.ascontiguousarray(variances, np.float64) if with_noise else stamps
    return _adapt_moments(stamps, noise, with_noise)


def fit_moffat(stamp: np.ndarray) -> tuple[float, float]:
    """FWHM [pix, geometric mean of the axes] and β of the Moffat profile (1969, A&A 3, 455) that fits a star best.

    The profile is elliptical with the axis ratio of the adaptive moments; amplitude, width and β are fitted to the
    pixels by least squares (Levenberg–Marquardt).

    Parameters
    ----------
    stamp : (s, s) array
        A star without sky, e.g. a PSF model.

    Returns
    -------
    (NaN, NaN) where there is nothing like a star.
    """
    moments = measure_moments(stamp[None])[0]
    if not np.isfinite(moments).all():
        return np.nan, np.nan
    dx, dy, trace, e1, e2 = moments[:5]
    offset = np.arange(stamp.shape[0]) - stamp.shape[0] // 2
    xx, yy = np.meshgrid(offset - dx, offset - dy)
    # elliptical radius that keeps areas
    squeeze = 1.0 / np.sqrt(max(1.0 - e1**2 - e2**2, 1e-6))
    square = squeeze * ((1.0 - e1) * xx**2 - 2.0 * e2 * xx * yy + (1.0 + e1) * yy**2)
    peak = float(stamp.max())
    # log(amplitude), log(alpha²), log(beta − 1)
    values = np.array([np.log(peak), np.log(2.0 * trace), np.log(2.0)])
    damping, (model, slopes) = 1e-2, _moffat_slopes(square, values)
    cost = float(np.sum((stamp - model) ** 2))
    for _ in range(_FIT_STEPS):
        jacobian = slopes.reshape(3, -1)
        normal = jacobian @ jacobian.T
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), jacobian @ (stamp - model).ravel())
        trial = values + np.clip(step, -0.5, 0.5)
        trial[2] = np.clip(trial[2], *np.log(np.array(_BETA_RANGE) - 1.0))
        fresh, fresh_slopes = _moffat_slopes(square, trial)
        fresh_cost = float(np.sum((stamp - fresh) ** 2))
        if fresh_cost < cost:
            done = cost - fresh_cost < 1e-9 * cost
            values, model, slopes, cost, damping = trial, fresh, fresh_slopes, fresh_cost, damping / 5.0
            if done:
                break
        else:
            damping *= 5.0
            if damping > 1e8:
                break
    beta = 1.0 + float(np.exp(values[2]))
    return float(2.0 * np.exp(0.5 * values[1]) * np.sqrt(2.0 ** (1.0 / beta) - 1.0)), beta


def _moffat_slopes(square: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moffat profile at squared radii, and its derivatives by the three parameters of `fit_moffat`."""
    width, excess = np.exp(values[1]), np.exp(values[2])
    ratio = square / width
    model = np.exp(values[0]) * (1.0 + ratio) ** -(1.0 + excess)
    return model, np.stack([
        model, model * (1.0 + excess) * ratio / (1.0 + ratio), -model * excess * np.log1p(ratio),
    ])  # fmt: skip


@njit(cache=True, nogil=True)
def _adapt_moments(stamps, noise, with_noise):
    n, s, _ = stamps.shape
    out = np.full((n, 7), np.nan)
    middle = s // 2
    for k in range(n):
        x, y, xx, xy, yy = 0.0, 0.0, 2.0, 0.0, 2.0
        for _ in range(_STEPS):
            det = xx * yy - xy * xy
            if not (det > _MIN_VARIANCE_PX2**2 and xx > 0.0 and xx + yy < s * s):
                break
            ia, ib, ic = yy / det, -xy / det, xx / det
            total, mx, my, mxx, mxy, myy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for j in range(s):
                dy = j - middle - y
                for i in range(s):
                    dx = i - middle - x
                    signal = stamps[k, j, i] * np.exp(-0.5 * (ia * dx * dx + 2.0 * ib * dx * dy + ic * dy * dy))
                    total += signal
                    mx += signal * dx
                    my += signal * dy
                    mxx += signal * dx * dx
                    mxy += signal * dx * dy
                    myy += signal * dy * dy
            if not total > 0.0:
                break
            step_x, step_y = 2.0 * mx / total, 2.0 * my / total
            fresh_xx, fresh_xy, fresh_yy = 2.0 * mxx / total, 2.0 * mxy / total, 2.0 * myy / total
            change = max(abs(fresh_xx - xx), abs(fresh_xy - xy), abs(fresh_yy - yy))
            x += step_x
            y += step_y
            if not (abs(x) < middle and abs(y) < middle):
                break
            if max(change, abs(step_x), abs(step_y)) < _CONVERGED * (xx + yy):
                trace = xx + yy
                out[k, 0], out[k, 1], out[k, 2] = x, y, trace
                out[k, 3], out[k, 4] = (xx - yy) / trace, 2.0 * xy / trace
                out[k, 5], out[k, 6] = 0.0, 0.0
                if with_noise:
                    out[k, 5], out[k, 6] = _moment_errors(noise[k], x, y, xx, xy, yy, total)
                break
            # twice the step: each round halves what a Gaussian star still lacks
            xx, xy, yy = 2.0 * fresh_xx - xx, 2.0 * fresh_xy - xy, 2.0 * fresh_yy - yy
    return out


@njit(cache=True, nogil=True)
def _moment_errors(noise, x, y, xx, xy, yy, total):
    """Errors of T / T and of e per component: the weighted moments', times the response of the adaptive ones (4)."""
    s = noise.shape[0]
    middle = s // 2
    det = xx * yy - xy * xy
    ia, ib, ic = yy / det, -xy / det, xx / det
    trace = xx + yy
    size, shape = 0.0, 0.0
    for j in range(s):
        dy = j - middle - y
        for i in range(s):
            dx = i - middle - x
            weight = np.exp(-0.5 * (ia * dx * dx + 2.0 * ib * dx * dy + ic * dy * dy))
            power = weight * weight * noise[j, i]
            size += power * (dx * dx + dy * dy - 0.5 * trace) ** 2
            plus = dx * dx - dy * dy - 0.5 * (xx - yy)
            cross = 2.0 * dx * dy - xy
            shape += power * 0.5 * (plus * plus + cross * cross)
    return 4.0 * np.sqrt(size) / (total * trace), 4.0 * np.sqrt(shape) / (total * trace)
