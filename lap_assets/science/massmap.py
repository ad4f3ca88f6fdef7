"""Aperture-mass maps from shapes: filters, the maps on a grid by FFT, the direct estimator, and peaks.

Here: from a table of shears on a tangent plane to E and B maps, their S/N, and the peaks of a map. Measuring shapes is
`shear.py`'s, going from the sky to a plane and back is `plane.py`'s, fitting haloes is `massfit.py`'s.

The estimator (Schneider 1996; Schirmer et al. 2007) at a point: with g_t and g_x the tangential and cross components
of each galaxy about it, M = pi R^2 sum(w Q g_t) / sum(w), the sums over the aperture R; its noise is
pi R^2 sqrt(sum(w^2 Q^2 |g|^2) / 2) / sum(w), so that S/N does not depend on how much of the aperture is covered.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import fft, ndimage

from lap_assets.errors import BadInput, NoWork
from lap_assets.science.cosmology import LensGeometry
from lap_assets.science.nfw import reduced_shear


@dataclass(frozen=True)
class ShearSample:
    """Shears on a tangent plane.

    Attributes
    ----------
    x, y : (n,) float64
        East and north of the tangent point, arcmin.
    g1, g2 : (n,) float64
        Calibrated shear in the plane's frame: g1 > 0 along x (east-west), g2 > 0 along x = y (north-east).
    weight : (n,) float64
    """

    x: np.ndarray
    y: np.ndarray
    g1: np.ndarray
    g2: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class MapGrid:
    """A grid of points on the tangent plane: pixel (i, j) lies at (x0 + i step, y0 + j step), arcmin, x to the EAST."""

    x0: float
    y0: float
    step: float
    nx: int
    ny: int


@dataclass(frozen=True)
class MassMap:
    """Aperture-mass maps of one radius, all (ny, nx) float64 and finite; 0 where the aperture is not covered."""

    radius_arcmin: float
    e_mode: np.ndarray
    b_mode: np.ndarray
    snr: np.ndarray
    snr_b: np.ndarray
    coverage: np.ndarray  # weight in the aperture, as a fraction of that of a fully covered one


def weigh_schirmer(r: np.ndarray, radius: float) -> np.ndarray:
    """Q of Schirmer et al. (2007), eq. 15, x_c = 0.15: near optimal for NFW haloes; ends at the radius."""
    x = np.asarray(r, dtype=np.float64) / radius
    safe = np.maximum(x, 1e-6)
    cut = 1.0 + np.exp(6.0 - 150.0 * x) + np.exp(-47.0 + 50.0 * np.minimum(x, 2.0))
    q = np.tanh(safe / 0.15) / (safe / 0.15) / cut
    return np.where(x <= 1.0, q, 0.0) / (np.pi * radius**2)


def weigh_gaussian(r: np.ndarray, radius: float) -> np.ndarray:
    """Q whose aperture mass is the convergence smoothed by exp(-r^2/R^2) / (pi R^2); ends at four radii."""
    r = np.asarray(r, dtype=np.float64)
    x2 = (r / radius) ** 2
    small = x2 / (2.0 * np.pi * radius**2)  # limit for x -> 0
    q = -(np.expm1(-x2) + x2 * np.exp(-x2)) / (np.pi * np.maximum(r, 1e-12) ** 2)
    return np.where(x2 < 1e-4, small, np.where(x2 <= 16.0, q, 0.0))


def weigh_polynomial(r: np.ndarray, radius: float, order: int = 1) -> np.ndarray:
    """Q of Schneider et al. (1998), eq. 32: (l+1)(l+2) x^2 (1-x^2)^l / (pi R^2)."""
    x2 = np.minimum((np.asarray(r, dtype=np.float64) / radius) ** 2, 1.0)
    return (order + 1) * (order + 2) * x2 * (1.0 - x2) ** order / (np.pi * radius**2)


@dataclass(frozen=True)
class ApertureFilter:
    """A filter Q(r, radius), where it ends, and the size of its sharpest feature, in radii."""

    weigh: Callable[[np.ndarray, float], np.ndarray]
    extent: float
    finest: float


FILTERS = {
    "schirmer": ApertureFilter(weigh_schirmer, 1.0, 1 / 80),  # cut off within 0.04 radii of the centre
    "gaussian": ApertureFilter(weigh_gaussian, 4.0, 1 / 30),
    "polynomial": ApertureFilter(weigh_polynomial, 1.0, 1 / 30),
}


def get_filter(name: str) -> ApertureFilter:
    """The filter of this name; raises `BadInput` that lists the names there are."""
    if name not in FILTERS:
        raise BadInput(f"unknown aperture-mass filter {name!r}; there are: {', '.join(FILTERS)}")
    return FILTERS[name]


def make_grid(sample: ShearSample, step_arcmin: float) -> MapGrid:
    """The smallest grid that covers all galaxies, its points at multiples of the step (so that it does not jitter)."""
    if not len(sample.x):
        raise NoWork("no background galaxy to map; see the cuts of shear_catalogs")
    i0, j0 = (int(np.floor(v.min() / step_arcmin)) for v in (sample.x, sample.y))
    i1, j1 = (int(np.ceil(v.max() / step_arcmin)) for v in (sample.x, sample.y))
    return MapGrid(i0 * step_arcmin, j0 * step_arcmin, step_arcmin, i1 - i0 + 1, j1 - j0 + 1)


def map_aperture(
    sample: ShearSample, grid: MapGrid, radius_arcmin: float, filter_name: str = "schirmer", min_coverage: float = 0.0
) -> MassMap:
    """Maps of one aperture radius by FFT, equal to the direct sums to 1 %; 0 where coverage is below `min_coverage`.

    Galaxies are shared among the points of a grid fine enough for the filter's sharpest feature, a multiple of `grid`.
    """
    one = get_filter(filter_name)
    refine = max(1, int(np.ceil(grid.step / (one.finest * radius_arcmin))))
    fine = MapGrid(grid.x0, grid.y0, grid.step / refine, (grid.nx - 1) * refine + 1, (grid.ny - 1) * refine + 1)
    margin = int(np.ceil(one.extent * radius_arcmin / fine.step)) + 1
    shape = tuple(fft.next_fast_len(n + margin) for n in (fine.ny, fine.nx))
    distance, turn = _polar_grid(shape, fine.step)
    q = one.weigh(distance, radius_arcmin)
    w = sample.weight
    planes = {
        "shear": spread_bilinear(sample.x, sample.y, w * (sample.g1 + 1j * sample.g2), fine),
        "power": spread_bilinear(sample.x, sample.y, w**2 * (sample.g1**2 + sample.g2**2) / 2.0, fine),
        "weight": spread_bilinear(sample.x, sample.y, w, fine),
    }
    inside = (distance <= radius_arcmin).astype(float)
    shear = fft.ifft2(fft.fft2(planes["shear"], shape) * fft.fft2(-q * turn))
    power = fft.irfft2(fft.rfft2(planes["power"], shape) * fft.rfft2(q * q), shape)
    weight = fft.irfft2(fft.rfft2(planes["weight"], shape) * fft.rfft2(inside), shape)
    sums = (v[: fine.ny, : fine.nx][::refine, ::refine] for v in (shear, power, weight))
    occupied = spread_bilinear(sample.x, sample.y, w, grid) > 0
    return _normalise_map(*sums, occupied, radius_arcmin, min_coverage)


def _normalise_map(
    shear: np.ndarray, power: np.ndarray, weight: np.ndarray, occupied: np.ndarray, radius: float, min_coverage: float
) -> MassMap:
    coverage = np.clip(weight / np.percentile(weight[occupied], 95.0), 0.0, None)
    # round-off of the transforms leaves tiny values where there is nothing
    good = (coverage > max(min_coverage, 1e-6)) & (power > 1e-9 * power.max())
    norm = np.where(good, np.pi * radius**2 / np.where(good, weight, 1.0), 0.0)
    inverse_noise = np.where(good, 1.0 / np.sqrt(np.where(good, power, 1.0)), 0.0)
    e, b = shear.real, shear.imag
    return MassMap(radius, e * norm, b * norm, e * inverse_noise, b * inverse_noise, coverage)


def _polar_grid(shape: tuple[int, ...], step: float) -> tuple[np.ndarray, np.ndarray]:
    """Distance (arcmin) and exp(-2 i phi) of each offset of a periodic grid from its origin."""
    dy, dx = (fft.fftfreq(n, 1.0 / n) * step for n in shape)
    offset = dx[None, :] + 1j * dy[:, None]
    distance = np.abs(offset)
    return distance, (offset.conj() / np.where(distance > 0, distance, 1.0)) ** 2


def spread_bilinear(x: np.ndarray, y: np.ndarray, value: np.ndarray, grid: MapGrid) -> np.ndarray:
    """(ny, nx) sums of values shared among the four points around each position; positions must lie on the grid."""
    u, v = (x - grid.x0) / grid.step, (y - grid.y0) / grid.step
    i = np.clip(np.floor(u).astype(np.int64), 0, max(grid.nx - 2, 0))
    j = np.clip(np.floor(v).astype(np.int64), 0, max(grid.ny - 2, 0))
    fx, fy = u - i, v - j
    plane = np.zeros(grid.ny * grid.nx, dtype=value.dtype)
    parts = (value.real, value.imag) if np.iscomplexobj(value) else (value,)
    for factor, part in zip((1.0, 1j), parts, strict=False):
        for dj, wy in ((0, 1.0 - fy), (1, fy)):
            for di, wx in ((0, 1.0 - fx), (1, fx)):
                index = np.minimum(j + dj, grid.ny - 1) * grid.nx + np.minimum(i + di, grid.nx - 1)
                plane += factor * np.bincount(index, wx * wy * part, minlength=plane.size)
    return plane.reshape(grid.ny, grid.nx)


def measure_apertures(
    sample: ShearSample, x: np.ndarray, y: np.ndarray, radius_arcmin: float, filter_name: str = "schirmer"
) -> pd.DataFrame:
    """The direct estimator at given points: columns e_mode, b_mode, snr, snr_b and n (galaxies in the aperture)."""
    one = get_filter(filter_name)
    rows = []
    for x0, y0 in zip(np.atleast_1d(x), np.atleast_1d(y), strict=True):
        dx, dy = sample.x - x0, sample.y - y0
        near = dx**2 + dy**2 <= (one.extent * radius_arcmin) ** 2
        tangential, cross = rotate_shears(dx[near], dy[near], sample.g1[near], sample.g2[near])
        r, w = np.hypot(dx[near], dy[near]), sample.weight[near]
        wq = w * one.weigh(r, radius_arcmin)
        inside = w[r <= radius_arcmin].sum()
        noise = np.sqrt(np.sum(wq**2 * (tangential**2 + cross**2)) / 2.0)
        e, b = np.sum(wq * tangential), np.sum(wq * cross)
        if inside <= 0 or noise <= 0:
            rows.append((0.0, 0.0, 0.0, 0.0, 0))
            continue
        norm = np.pi * radius_arcmin**2 / inside
        rows.append((e * norm, b * norm, e / noise, b / noise, int(np.sum(r <= radius_arcmin))))
    return pd.DataFrame(rows, columns=["e_mode", "b_mode", "snr", "snr_b", "n"])


def rotate_shears(dx: np.ndarray, dy: np.ndarray, g1: np.ndarray, g2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tangential and cross shear about the origin of the offsets (east, north): -Re, -Im of g exp(-2 i phi)."""
    offset = dx + 1j * dy
    distance = np.abs(offset)
    turned = -(g1 + 1j * g2) * (offset.conj() / np.where(distance > 0, distance, 1.0)) ** 2
    return turned.real, turned.imag


def expected_aperture_snr(
    radius_arcmin: float,
    m200c_msun: float,
    c200c: float,
    geometry: LensGeometry,
    density_per_arcmin2: float,
    shape_noise: float,
    filter_name: str = "schirmer",
) -> float:
    """Mean S/N of the aperture mass centred on an NFW halo in an unbounded field of equally weighted galaxies.

    `shape_noise` is the standard deviation of one component of a galaxy's shear estimate. S/N = sqrt(n) /
    sigma int(2 pi r Q g_t dr) / sqrt(int(2 pi r Q^2 dr)).
    """
    one = get_filter(filter_name)
    step = one.extent * radius_arcmin / 4000
    r = (np.arange(4000) + 0.5) * step
    q = one.weigh(r, radius_arcmin)
    signal = np.sum(r * q * reduced_shear(r * geometry.mpc_per_arcmin, m200c_msun, c200c, geometry))
    noise = np.sqrt(np.sum(r * q * q))
    return float(np.sqrt(2.0 * np.pi * step * density_per_arcmin2) * signal / (noise * shape_noise))


def find_peaks(snr: np.ndarray, threshold: float, separation_px: float) -> pd.DataFrame:
    """Local maxima of a S/N map above a threshold, highest first.

    A maximum is the highest point within `separation_px`; its place is refined by a parabola per axis. Columns x, y
    (0-based pixels, float) and snr (of the highest pixel).
    """
    reach = max(round(separation_px), 1)
    yy, xx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    highest = ndimage.maximum_filter(snr, footprint=xx**2 + yy**2 <= reach**2, mode="constant", cval=-np.inf)
    j, i = np.nonzero((snr == highest) & (snr > threshold))
    order = np.lexsort((i, j, -snr[j, i]))
    i, j = i[order], j[order]
    return pd.DataFrame({"x": i + _vertex(snr, j, i, 1), "y": j + _vertex(snr, j, i, 0), "snr": snr[j, i]})


def _vertex(plane: np.ndarray, j: np.ndarray, i: np.ndarray, axis: int) -> np.ndarray:
    """Offset (-0.5..0.5) of the vertex of the parabola through a pixel and its two neighbours; 0 at the border."""
    lines = plane if axis == 1 else plane.T
    line, place = (j, i) if axis == 1 else (i, j)
    last = lines.shape[1] - 1
    below, above = lines[line, np.maximum(place - 1, 0)], lines[line, np.minimum(place + 1, last)]
    curve = below - 2.0 * lines[line, place] + above
    sharp = (place > 0) & (place < last) & (curve < 0)
    return np.where(sharp, np.clip(0.5 * (below - above) / np.where(sharp, curve, 1.0), -0.5, 0.5), 0.0)
