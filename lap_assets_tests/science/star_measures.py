"""Fluxes and shapes of drawn stars by plain sums, for tests of what an effect does to them ."""

import numpy as np


def cut_stamp(image: np.ndarray, x: float, y: float, half: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels around a star as float64, and their offsets from it in x and y."""
    ix, iy = round(x), round(y)
    stamp = np.asarray(image[iy - half : iy + half + 1, ix - half : ix + half + 1], np.float64)
    v, u = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
    return stamp, u - (x - ix), v - (y - iy)


def sum_flux(image: np.ndarray, x: float, y: float, sky: float = 0.0, radius: float = 12.0) -> float:
    """Sum over a round aperture, less `sky` per pixel."""
    stamp, u, v = cut_stamp(image, x, y, int(radius) + 2)
    inside = np.hypot(u, v) <= radius
    return float(np.sum(stamp[inside] - sky))


def measure_shape(image: np.ndarray, x: float, y: float, sky: float = 0.0, sigma: float = 4.0) -> tuple[float, float]:
    """Size T = Ixx + Iyy [px²] and ellipticity e1 = (Ixx − Iyy) / T with a round Gaussian weight."""
    stamp, u, v = cut_stamp(image, x, y, int(3 * sigma))
    weight = np.exp(-0.5 * (u**2 + v**2) / sigma**2) * (stamp - sky)
    total = weight.sum()
    xx, yy = np.sum(weight * u**2) / total, np.sum(weight * v**2) / total
    return float(xx + yy), float((xx - yy) / (xx + yy))


def to_mmag(measured: float, true: float) -> float:
    """How much too faint, in millimagnitudes."""
    return float(-2500.0 * np.log10(measured / true))
