"""What is where on the benchmark skycell, by the truth: stars, empty sky, and the pixels that were hit.

Positions are 0-based pixels of the 6000 × 6000 skycell. What images are judged by them is the other modules'.
"""

from functools import cache

import numpy as np
import pandas as pd
import sep
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from lap_assets_tests.benchmarks import engine_data
from lap_assets_tests.benchmarks.exposures import CHIPS, find_data

TRAIL_EXPOSURE, TRAIL_HALF_WIDTH_PX = 2, 4.4  # two sigma of its profile
GAPS_PX, CHIP_PX = (40, 80), (2048, 4096)
STAR, GALAXY, TRANSIENT = 0, 1, 2


@cache
def locate_sources() -> pd.DataFrame:
    """x, y, mag and kind of all true sources on the skycell."""
    truth = engine_data.read_truth()
    header = next(iter(engine_data.CELLS[engine_data.ONE].skycells.values())).header()
    x, y = WCS(header).all_world2pix(truth["ra"].astype(float), truth["dec"].astype(float), 0)
    columns = {name: truth[name].astype(float) for name in ("mag", "re")}
    table = pd.DataFrame({"x": x, "y": y, "kind": truth["kind"].astype(int), **columns})
    side = engine_data.SIDE_PX
    return table[(table.x > -50) & (table.y > -50) & (table.x < side + 50) & (table.y < side + 50)].reset_index(
        drop=True
    )


def choose_stars(bright: float, faint: float, alone_px: float = 0.0, most: float = 5e-4) -> pd.DataFrame:
    """Stars of a range of magnitudes; with `alone_px`, those whose neighbours so near have less than `most` of their
    flux.
    """
    table = locate_sources()
    side = engine_data.SIDE_PX
    inside = (table.x > 60) & (table.y > 60) & (table.x < side - 61) & (table.y < side - 61)
    stars = table[(table.kind == STAR) & (table.mag > bright) & (table.mag < faint) & inside]
    if not alone_px:
        return stars
    flux = 10.0 ** (-0.4 * table.mag.to_numpy())
    near = cKDTree(table[["x", "y"]]).query_ball_point(stars[["x", "y"]], alone_px)
    own = flux[stars.index]
    others = np.array([flux[list(ids)].sum() for ids in near]) - own
    return stars[others < most * own]


@cache
def find_empty_sky(radius_px: float) -> np.ndarray:
    """(n, 2) places of apertures that no true source reaches: bright ones keep them farther off."""
    table, side = locate_sources(), engine_data.SIDE_PX
    rng = np.random.default_rng(5)
    places = rng.uniform(40, side - 40, (60_000, 2))
    kept = np.ones(len(places), bool)
    reach = radius_px + 7.0 * 10.0 ** (0.12 * np.clip(23.0 - table.mag.to_numpy(), 0.0, None))
    tree = cKDTree(places)
    for near in tree.query_ball_point(table[["x", "y"]].to_numpy(), reach):
        kept[near] = False
    return places[kept]


@cache
def locate_hits(exposure: int) -> np.ndarray:
    """(n, 2) places of the true cosmic-ray pixels of an exposure, all chips, on the skycell."""
    return _to_skycell(exposure, _read_hits)


@cache
def locate_trail() -> np.ndarray:
    """(n, 2) places of the chip pixels within two sigma of the middle of the satellite's trail."""
    return _to_skycell(TRAIL_EXPOSURE, _draw_trail)


def _to_skycell(exposure: int, list_pixels) -> np.ndarray:
    header = next(iter(engine_data.CELLS[engine_data.ONE].skycells.values())).header()
    target, places = WCS(header), []
    for chip in CHIPS:
        y, x = list_pixels(exposure, chip)
        sky = engine_data.find_true_wcs(exposure, chip).all_pix2world(x, y, 0)
        places.append(np.column_stack(target.all_world2pix(*sky, 0)))
    found = np.concatenate(places)
    return found[((found > 5) & (found < engine_data.SIDE_PX - 6)).all(axis=1)]


def _read_hits(exposure: int, chip: int) -> tuple[np.ndarray, np.ndarray]:
    packed = np.load(find_data() / "truth" / "cr" / f"e{exposure}_c{chip}.npz")["cr"]
    y, x = np.nonzero(np.unpackbits(packed).reshape(CHIP_PX[::-1]))
    return y, x


def _draw_trail(exposure: int, chip: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the trail on a chip, as make_bench.py draws it."""
    y, x = np.mgrid[0 : CHIP_PX[1], 0 : CHIP_PX[0]]
    mosaic_x = ((chip % 4) - 2) * (CHIP_PX[0] + GAPS_PX[0]) + x
    mosaic_y = ((chip // 4) - 1) * (CHIP_PX[1] + GAPS_PX[1]) + y
    away = (mosaic_y - 0.45 * mosaic_x - 500) / np.hypot(1, 0.45)
    return np.nonzero(np.abs(away) < TRAIL_HALF_WIDTH_PX)


def sum_apertures(plane: np.ndarray, places: np.ndarray, radius_px: float) -> np.ndarray:
    """Sums of a plane in circles, exact at their rims."""
    pixels = np.ascontiguousarray(plane, np.float32)
    return sep.sum_circle(pixels, places[:, 0], places[:, 1], radius_px, subpix=0)[0]


def measure_stars(plane: np.ndarray, places: np.ndarray, radius_px: float, ring_px: tuple[float, float]) -> np.ndarray:
    """Fluxes of stars in circles, the median of a ring taken off."""
    half = int(ring_px[1]) + 1
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1]
    ring = (np.hypot(dx, dy) > ring_px[0]) & (np.hypot(dx, dy) < ring_px[1])
    levels = []
    for x, y in places.round().astype(int):
        levels.append(np.median(plane[y - half : y + half + 1, x - half : x + half + 1][ring]))
    return sum_apertures(plane, places, radius_px) - np.array(levels) * np.pi * radius_px**2
