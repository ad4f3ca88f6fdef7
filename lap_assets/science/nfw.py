"""The NFW halo as a lens: convergence and shear, and how concentrated haloes of a mass are.

Here: formulas of a single spherical halo. Fitting them to data is `massfit.py`'s, distances are `cosmology.py`'s.
"""

import numpy as np

from lap_assets.science.cosmology import LensGeometry

_SERIES = 1e-3  # so near the scale radius the closed forms lose digits; the series is good to 1e-10 there


def convergence(radius_mpc: np.ndarray, m200c_msun: float, c200c: float, geometry: LensGeometry) -> np.ndarray:
    """Convergence at projected radii (> 0, proper Mpc); Wright & Brainerd (2000), eq. 11."""
    x, amplitude = _scale_halo(radius_mpc, m200c_msun, c200c, geometry)
    return 2.0 * amplitude * _surface_density(x)


def shear(radius_mpc: np.ndarray, m200c_msun: float, c200c: float, geometry: LensGeometry) -> np.ndarray:
    """Tangential shear at projected radii (> 0, proper Mpc); Wright & Brainerd (2000), eqs. 12-16."""
    x, amplitude = _scale_halo(radius_mpc, m200c_msun, c200c, geometry)
    mean = 4.0 * amplitude * (np.log(x / 2.0) + _arc_term(x)) / x**2
    return mean - 2.0 * amplitude * _surface_density(x)


def reduced_shear(radius_mpc: np.ndarray, m200c_msun: float, c200c: float, geometry: LensGeometry) -> np.ndarray:
    """What galaxies show: shear / (1 - convergence), tangential. Meaningful outside the Einstein radius."""
    gamma = shear(radius_mpc, m200c_msun, c200c, geometry)
    return gamma / (1.0 - convergence(radius_mpc, m200c_msun, c200c, geometry))


def r200c_mpc(m200c_msun: float, geometry: LensGeometry) -> float:
    """Radius within which the mean density is 200 times critical."""
    return float((3.0 * m200c_msun / (800.0 * np.pi * geometry.rho_crit_msun_mpc3)) ** (1.0 / 3.0))


def mean_concentration(m200c_msun: float, z: float, h: float = 0.7) -> float:
    """Mean c200c of relaxed haloes of a mass: Dutton & Maccio (2014), eqs. 7, 10 and 11 (Planck cosmology, NFW)."""
    slope = -0.101 + 0.026 * z
    norm = 0.520 + (0.905 - 0.520) * np.exp(-0.617 * z**1.21)
    return float(10.0 ** (norm + slope * np.log10(m200c_msun * h / 1e12)))


def _scale_halo(radius_mpc: np.ndarray, m200c: float, c200c: float, geometry: LensGeometry) -> tuple[np.ndarray, float]:
    """Radii in scale radii, and r_s rho_s / Sigma_crit."""
    r_scale = r200c_mpc(m200c, geometry) / c200c
    delta = 200.0 / 3.0 * c200c**3 / (np.log1p(c200c) - c200c / (1.0 + c200c))
    amplitude = r_scale * delta * geometry.rho_crit_msun_mpc3 / geometry.sigma_crit_msun_mpc2
    return np.asarray(radius_mpc, dtype=np.float64) / r_scale, float(amplitude)


def _arc_term(x: np.ndarray) -> np.ndarray:
    """C(x) = arccosh(1/x)/sqrt(1-x^2) below 1, arccos(1/x)/sqrt(x^2-1) above; its power series about 1."""
    d = x - 1.0
    near = np.abs(d) < _SERIES
    safe = np.where(near, 2.0, x)
    root = np.sqrt(np.abs(safe**2 - 1.0))
    inner = np.arccosh(np.maximum(1.0 / safe, 1.0)) / root
    outer = np.arccos(np.minimum(1.0 / safe, 1.0)) / root
    series = 1.0 + d * (-2.0 / 3.0 + d * (7.0 / 15.0 - d * 12.0 / 35.0))
    return np.where(near, series, np.where(safe < 1.0, inner, outer))


def _surface_density(x: np.ndarray) -> np.ndarray:
    """Sigma / (2 r_s rho_s) = (1 - C(x)) / (x^2 - 1), with the series of C about 1."""
    d = x - 1.0
    near = np.abs(d) < _SERIES
    safe = np.where(near, 2.0, x)
    series = (2.0 / 3.0 - d * (7.0 / 15.0 - d * 12.0 / 35.0)) / (2.0 + d)
    return np.where(near, series, (1.0 - _arc_term(safe)) / (safe**2 - 1.0))
