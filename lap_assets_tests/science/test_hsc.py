"""Real data: 102 CCDs of an HSC exposure from their rough headers to Gaia, judged on stars held out.

Measured before on the same data: independent quadratics per chip leave 20 / 13 mas on left-out stars, with 92 chips
matched; one rigid degree-9 model 42 / 41.
"""

import numpy as np
import pytest
from astropy.wcs import WCS

from lap_assets.science.astrometry import solve_exposure
from lap_assets.science.tan_sip import grid_points
from lap_assets_tests.science.hsc_visit import EPOCH_YR, MAX_ORDER, SHAPE, hold_out, mad_sigma, read_gaia, read_visit

DISPLACED = {"shift_arcsec": (48.0, 36.0), "turn_deg": 1.0}  # 60 arcsec and 1 degree
GOAL_MAS = (15.0, 10.0)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::astropy.wcs.FITSFixedWarning")]


@pytest.fixture(scope="module")
def folder(shared_data):
    place = shared_data / "hsc_astrometry"
    if not place.is_dir():
        pytest.skip(f"real data are not here: {place} is absent")
    return place


@pytest.fixture(scope="module")
def gaia(folder):
    return read_gaia(folder)


@pytest.fixture(scope="module")
def solved(folder, gaia):
    return solve_exposure(read_visit(folder), gaia, EPOCH_YR, trusted=False, max_order=MAX_ORDER)


def test_a_quarter_of_the_stars_held_out_is_met_to_15_and_10_mas_on_all_chips(folder, gaia):
    """LV-11: everything from the search of the pointing on is done without the stars that judge."""
    offsets, n_solved = hold_out(read_visit(folder), gaia, 4)
    assert n_solved == 102
    assert len(offsets) > 1800
    assert np.all(mad_sigma(offsets) <= GOAL_MAS)


@pytest.mark.slow
@pytest.mark.parametrize("displaced", [{}, DISPLACED], ids=["rough headers", "60 arcsec and 1 degree off"])
def test_a_tenth_of_the_stars_held_out_is_met_to_15_and_10_mas_on_all_chips(folder, gaia, displaced):
    """LV-11: ten folds; the same from a pointing off by a minute and a degree."""
    offsets, n_solved = hold_out(read_visit(folder, **displaced), gaia, 10)
    assert n_solved == 102
    assert len(offsets) > 1800
    assert np.all(mad_sigma(offsets) <= GOAL_MAS)


def test_the_solution_does_not_remember_where_the_headers_pointed(folder, gaia, solved):
    """LV-11: from a pointing off by 60 arcsec and 1 degree, the same sky positions to a few mas on every chip."""
    again = solve_exposure(read_visit(folder, **DISPLACED), gaia, EPOCH_YR, trusted=False, max_order=MAX_ORDER)
    assert len(again) == len(solved) == 102
    assert all(one.order >= 1 for one in again.values())
    x, y = grid_points(SHAPE, 5)
    apart = []
    for name, one in solved.items():
        ra, dec = WCS(one.header).all_pix2world(x, y, 0)
        ra2, dec2 = WCS(again[name].header).all_pix2world(x, y, 0)
        apart.append(np.hypot((ra - ra2) * np.cos(np.radians(dec)), dec - dec2) * 3.6e6)
    assert np.median(apart) < 3.0
    assert np.percentile(apart, 95) < 15.0


def test_all_chips_are_solved_with_what_little_gaia_has_on_them(solved):
    assert len(solved) == 102
    assert all(one.order >= 3 and one.n_matched >= 5 for one in solved.values())
    assert sum(one.n_matched for one in solved.values()) > 1600


def test_the_rough_headers_were_far_off(folder, solved):
    """Without the solution the same chips are off by 0.3 arcsec and more: it is not the headers that were good."""
    x, y = grid_points(SHAPE, 5)
    apart = []
    for name, chip in read_visit(folder).items():
        ra, dec = WCS(chip.header).all_pix2world(x, y, 0)
        ra2, dec2 = WCS(solved[name].header).all_pix2world(x, y, 0)
        apart.append(np.hypot((ra - ra2) * np.cos(np.radians(dec)), dec - dec2) * 3600.0)
    assert np.median(apart) > 0.3


def test_the_epoch_that_the_positions_speak_for_is_told(folder, gaia, solved):
    """LV-07: the table says 2016.0; its positions fit those of 2014.24 + 0.80 yr, the same on both axes.

    Found from the residuals alone, which grow with the proper motions; with it the residuals halve.
    """
    told = "check the epoch of the catalogue"
    assert all(told in one.note for one in solved.values())
    again = solve_exposure(
        read_visit(folder), gaia, EPOCH_YR, trusted=False, max_order=MAX_ORDER, fit_epoch=True
    )  # fmt: skip
    assert all("should be in 2015.2" in one.note for one in again.values())
    rms = [np.median([one.rms_mas for one in some.values()], axis=0) for some in (solved, again)]
    assert np.all(rms[1] < 0.6 * rms[0])


@pytest.mark.slow
def test_at_that_epoch_held_out_stars_are_met_to_6_mas(folder, gaia):
    """LV-07: what the stated epoch costs, by the same cross-validation."""
    offsets, n_solved = hold_out(read_visit(folder), gaia, 10, EPOCH_YR + 0.96)
    assert n_solved == 102
    assert mad_sigma(offsets).max() <= 6.0
