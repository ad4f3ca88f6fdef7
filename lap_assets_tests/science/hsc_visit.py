"""HSC visit 1180 of `../shared/data/hsc_astrometry`: star tables, rough headers and Gaia, and how solutions are judged.

Shared by the test of the proof and by the benchmark.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS
from scipy.spatial import cKDTree

from lap_assets.science.astrometry import ChipStars, solve_exposure
from lap_assets.science.reference_epoch import propagate_positions
from lap_assets.science.tan_sip import deproject_tan, project_tan

SHAPE = (4176, 2048)
POINTING = (150.2105, 2.2308)
EPOCH_YR = 2000.0 + (56744.2909 - 51544.5) / 365.25
MAX_ORDER = 7
_MAS_PER_RADIAN = np.degrees(1.0) * 3.6e6
_MATCH_DEG = 0.5 / 3600.0


def read_visit(
    folder: Path, shift_arcsec: tuple[float, float] = (0.0, 0.0), turn_deg: float = 0.0
) -> dict[str, ChipStars]:
    """The 102 chips, their headers' pointing displaced and rotated about the middle of the field."""
    chips = {}
    for path in sorted(folder.glob("1180_*.fits")):
        with fits.open(path) as hdus:
            header, table = hdus[0].header.copy(), hdus[1].data
            x, y, x_err, y_err = (np.asarray(table[name], float) for name in ("x", "y", "xErr", "yErr"))
        error = np.sqrt(0.5 * (x_err**2 + y_err**2))
        chips[f"{int(path.stem[5:]):03d}"] = ChipStars(
            x, y, error, 1.0 / error**2, displace(header, shift_arcsec, turn_deg), SHAPE
        )
    return chips


def displace(header: fits.Header, shift_arcsec: tuple[float, float], turn_deg: float) -> fits.Header:
    """A header whose pointing is off: its tangent point moved and its axes turned."""
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    turn = np.array([[c, -s], [s, c]])
    place = turn @ np.array(project_tan(header["CRVAL1"], header["CRVAL2"], *POINTING)) + np.array(shift_arcsec) / 3600
    header["CRVAL1"], header["CRVAL2"] = (float(one) for one in deproject_tan(*place, *POINTING))
    cd = turn @ np.array([[header["CD1_1"], header["CD1_2"]], [header["CD2_1"], header["CD2_2"]]])
    (header["CD1_1"], header["CD1_2"]), (header["CD2_1"], header["CD2_2"]) = cd.tolist()
    return header


def read_gaia(folder: Path) -> pd.DataFrame:
    """The reference catalogue in the columns of ours; 2,727 of its rows have no position."""
    table = pd.read_parquet(folder / "gaia_refCat.parquet")
    return pd.DataFrame(
        {
            "ra": np.degrees(table.coord_ra), "dec": np.degrees(table.coord_dec),
            "pmra": table.pm_ra * _MAS_PER_RADIAN, "pmdec": table.pm_dec * _MAS_PER_RADIAN, "ref_epoch_yr": 2016.0,
            "ra_err_mas": table.coord_raErr * _MAS_PER_RADIAN, "dec_err_mas": table.coord_decErr * _MAS_PER_RADIAN,
        }
    )  # fmt: skip


def split_folds(catalog: pd.DataFrame, n_folds: int) -> np.ndarray:
    """Fold of each row, fixed; −1 for rows without a position."""
    known = np.nonzero(np.isfinite(catalog.ra.to_numpy()) & np.isfinite(catalog.dec.to_numpy()))[0]
    fold = np.full(len(catalog), -1)
    fold[known] = np.random.default_rng(1180).permutation(len(known)) % n_folds
    return fold


def hold_out(
    chips: dict[str, ChipStars], catalog: pd.DataFrame, n_folds: int, epoch_yr: float = EPOCH_YR
) -> tuple[np.ndarray, int]:
    """Cross-validation: every Gaia star against a solution (search, matching, orders, priors, fit) made without it.

    Returns
    -------
    offsets : (n, 2) array
        Gaia minus the nearest centroid within 0.5 arcsec as the header written places it, mas, RA·cos δ and Dec;
        nothing is rejected.
    n_solved : int
        Fewest chips solved in any fold.
    """
    ra, dec = propagate_positions(catalog, epoch_yr)
    fold = split_folds(catalog, n_folds)
    offsets, solved = [], []
    for number in range(n_folds):
        solutions = solve_exposure(
            chips, catalog[fold != number], epoch_yr, trusted=False, max_order=MAX_ORDER
        )  # fmt: skip
        solved.append(sum(one.order >= 1 for one in solutions.values()))
        left = fold == number
        offsets += [compare(chips[name], one.header, ra[left], dec[left]) for name, one in sorted(solutions.items())]
    return np.concatenate(offsets), min(solved)


def compare(chip: ChipStars, header: fits.Header, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Offsets of reference positions from their nearest centroids, (n, 2) mas."""
    sky = WCS(header).all_pix2world(chip.x, chip.y, 0)
    middle = float(np.mean(sky[0])), float(np.mean(sky[1]))
    stars, refs = (np.stack(project_tan(*one, *middle), axis=1) for one in (sky, (ra, dec)))
    distance, index = cKDTree(stars).query(refs, distance_upper_bound=_MATCH_DEG)
    near = np.isfinite(distance)
    return (refs[near] - stars[index[near]]) * 3.6e6


def mad_sigma(values: np.ndarray) -> np.ndarray:
    """Robust standard deviation of each column: 1.4826 times the median absolute deviation."""
    return 1.4826 * np.median(np.abs(values - np.median(values, axis=0)), axis=0)
