"""Sums over the pixels around given positions: windowed centroids, aperture fluxes, half-light radii.

Each source is one short loop over its own pixels, with the mask looked up on the way, so that no plane of the image is
copied. Which positions are looked at, and what is made of the numbers, is `science/detection.py`'s.
"""

import numpy as np
from numba import njit

from lap_assets.model.image import NO_WEIGHT

_STEPS = 30  # of the centroid, at most
_CONVERGED_PX = 1e-4
_WINDOW_SIGMAS = 4.0
_SUBPIXELS = 7  # per axis of a pixel that an aperture's edge crosses
_GROWTH_BINS = 64
_FINE_SHARE, _FINE_PARTS = 0.3, 3  # of the reach within which pixels are split in parts per axis


def measure_centroids(
    image: np.ndarray, var: np.ndarray, mask: np.ndarray, x: np.ndarray, y: np.ndarray, sigma_px: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centroids under a Gaussian window that moves with them (SExtractor's XWIN_IMAGE and ERRXWIN).

    Parameters
    ----------
    image, var : (ny, nx) float32
        Without sky, and its variance.
    mask : (ny, nx) int16
        Pixels of `NO_WEIGHT` are left out.
    x, y : (n,) float64
        First positions.
    sigma_px : float
        Of the window.

    Returns
    -------
    x, y : (n,) float64
    error : (n,) float64
        Per axis, propagated from the variance of the pixels.
    converged : (n,) bool
        False where it ran off, out of the image or round in circles.
    """
    return _find_centroids(
        image, var, mask, np.int32(NO_WEIGHT), np.asarray(x, np.float64), np.asarray(y, np.float64), float(sigma_px)
    )


def sum_apertures(
    image: np.ndarray, var: np.ndarray, mask: np.ndarray, x: np.ndarray, y: np.ndarray, radius_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fluxes and their errors, (n,) float64 each, in circles of `radius_px`.

    Pixels that the circle crosses count by their part inside. A pixel of `NO_WEIGHT` counts as the one opposite the
    centre, stars being symmetric, or, if that is lost too, as the mean of the others; where none is left, or the circle
    misses the image, the flux is 0 and its error infinite.
    """
    return _sum_circles(
        image, var, mask, np.int32(NO_WEIGHT), np.asarray(x, np.float64), np.asarray(y, np.float64), float(radius_px)
    )


def find_half_light(image: np.ndarray, mask: np.ndarray, x: np.ndarray, y: np.ndarray, reach_px: float) -> np.ndarray:
    """Radii (n,) float64 that hold half of the flux within `reach_px` (FLUX_RADIUS); 0 where that flux is not > 0."""
    return _find_half_light(
        image, mask, np.int32(NO_WEIGHT), np.asarray(x, np.float64), np.asarray(y, np.float64), float(reach_px)
    )


@njit(cache=True, nogil=True)
def _find_centroids(image, var, mask, skip, x, y, sigma):
    ny, nx = image.shape
    n = len(x)
    x_out, y_out, error, converged = x.copy(), y.copy(), np.full(n, 10.0), np.zeros(n, np.bool_)
    reach = _WINDOW_SIGMAS * sigma
    half = 0.5 / sigma**2
    for k in range(n):
        cx, cy = x[k], y[k]
        for _ in range(_STEPS):
            total, sum_x, sum_y, noise = 0.0, 0.0, 0.0, 0.0
            for j in range(max(0, int(np.ceil(cy - reach))), min(ny, int(cy + reach) + 1)):
                for i in range(max(0, int(np.ceil(cx - reach))), min(nx, int(cx + reach) + 1)):
                    dx, dy = i - cx, j - cy
                    square = dx * dx + dy * dy
                    if square > reach * reach or mask[j, i] & skip:
                        continue
                    weight = np.exp(-half * square)
                    signal = weight * image[j, i]
                    total += signal
                    sum_x += signal * dx
                    sum_y += signal * dy
                    noise += weight * weight * var[j, i] * square
            if not total > 0.0:
                break
            # a Gaussian window halves the way to the centroid of a Gaussian source: twice the step
            step_x, step_y = 2.0 * sum_x / total, 2.0 * sum_y / total
            cx += step_x
            cy += step_y
            if not (abs(cx - x[k]) < reach and abs(cy - y[k]) < reach):
                break
            if step_x * step_x + step_y * step_y < _CONVERGED_PX**2:
                x_out[k], y_out[k] = cx, cy
                error[k] = 2.0 * np.sqrt(0.5 * noise) / total
                converged[k] = True
                break
    return x_out, y_out, error, converged


@njit(cache=True, nogil=True)
def _cover(dx, dy, radius):
    """Part of the pixel centred at (dx, dy) that lies within `radius` of the origin."""
    distance = np.sqrt(dx * dx + dy * dy)
    if distance < radius - 0.7072:
        return 1.0
    if distance > radius + 0.7072:
        return 0.0
    inside = 0
    for b in range(_SUBPIXELS):
        v = dy + (b + 0.5) / _SUBPIXELS - 0.5
        for a in range(_SUBPIXELS):
            u = dx + (a + 0.5) / _SUBPIXELS - 0.5
            if u * u + v * v < radius * radius:
                inside += 1
    return inside / _SUBPIXELS**2


@njit(cache=True, nogil=True)
def _sum_circles(image, var, mask, skip, x, y, radius):
    ny, nx = image.shape
    flux, error = np.zeros(len(x)), np.full(len(x), np.inf)
    for k in range(len(x)):
        total, noise, area, lost = 0.0, 0.0, 0.0, 0.0
        for j in range(max(0, int(np.floor(y[k] - radius))), min(ny, int(np.ceil(y[k] + radius)) + 1)):
            for i in range(max(0, int(np.floor(x[k] - radius))), min(nx, int(np.ceil(x[k] + radius)) + 1)):
                part = _cover(i - x[k], j - y[k], radius)
                if part == 0.0:
                    continue
                a, b = i, j
                if mask[j, i] & skip or not var[j, i] > 0.0:
                    a, b = int(np.rint(2.0 * x[k])) - i, int(np.rint(2.0 * y[k])) - j
                    if not (0 <= a < nx and 0 <= b < ny) or mask[b, a] & skip or not var[b, a] > 0.0:
                        lost += part
                        continue
                    # its noise now counts twice, in step
                    noise += 2.0 * part * var[b, a]
                total += part * image[b, a]
                noise += part * var[b, a]
                area += part
        if area > 0.0:
            scale = (area + lost) / area
            flux[k], error[k] = scale * total, scale * np.sqrt(noise)
    return flux, error


@njit(cache=True, nogil=True)
def _find_half_light(image, mask, skip, x, y, reach):
    """Curve of growth in rings of equal width, read off by interpolation.

    Half of the light lies near the centre, where pixels are split in parts; further out only the total is wanted, but
    for sources so wide that whole pixels do.
    """
    radii = np.zeros(len(x))
    rings = np.zeros(_GROWTH_BINS)
    for k in range(len(x)):
        near = _FINE_SHARE * reach
        inner = _grow_rings(image, mask, skip, x[k], y[k], near, _FINE_PARTS, rings)
        outer = _sum_annulus(image, mask, skip, x[k], y[k], near, reach)
        wanted = 0.5 * (inner + outer)
        if not wanted > 0.0:
            continue
        width = near / _GROWTH_BINS
        if wanted > inner:
            _grow_rings(image, mask, skip, x[k], y[k], reach, 1, rings)
            width = reach / _GROWTH_BINS
        grown = 0.0
        for place in range(_GROWTH_BINS):
            if grown + rings[place] >= wanted:
                radii[k] = width * (place + (wanted - grown) / rings[place])
                break
            grown += rings[place]
    return radii


@njit(cache=True, nogil=True)
def _grow_rings(image, mask, skip, x, y, outer, parts, rings):
    """Fill `rings` with the flux of equal steps in radius from 0 to `outer`, pixels split in parts; and its sum."""
    ny, nx = image.shape
    rings[:] = 0.0
    scale = len(rings) / outer
    for j in range(max(0, int(np.floor(y - outer))), min(ny, int(np.ceil(y + outer)) + 1)):
        for i in range(max(0, int(np.floor(x - outer))), min(nx, int(np.ceil(x + outer)) + 1)):
            if mask[j, i] & skip:
                continue
            value = image[j, i] / parts**2
            for b in range(parts):
                v = j - y + (b + 0.5) / parts - 0.5
                for a in range(parts):
                    u = i - x + (a + 0.5) / parts - 0.5
                    place = int(np.sqrt(u * u + v * v) * scale)
                    if place < len(rings):
                        rings[place] += value
    return rings.sum()


@njit(cache=True, nogil=True)
def _sum_annulus(image, mask, skip, x, y, inner, outer):
    """Sum of the pixels whose centres lie between two radii."""
    ny, nx = image.shape
    total = 0.0
    for j in range(max(0, int(np.floor(y - outer))), min(ny, int(np.ceil(y + outer)) + 1)):
        v = (j - y) * (j - y)
        for i in range(max(0, int(np.floor(x - outer))), min(nx, int(np.ceil(x + outer)) + 1)):
            square = v + (i - x) * (i - x)
            if inner * inner <= square < outer * outer and not mask[j, i] & skip:
                total += image[j, i]
    return total
