"""Astrometry: pointing, rotation, chip places and distortion are recovered against a truth the fit does not know."""

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.errors import UnprocessableData
from lap_assets.science.astrometry import ChipStars, propagate_positions, solve_exposure
from lap_assets.science.tan_sip import deproject_tan, grid_points

N, SCALE = 512, 0.4 / 3600
CRPIX = {"c0": (530.0, 530.0), "c1": (-15.0, 530.0), "c2": (530.0, -15.0), "c3": (-15.0, -15.0)}


def nominal_header(chip, ra0, dec0):
    header = fits.Header({"NAXIS": 2, "NAXIS1": N, "NAXIS2": N, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    header.update({"CRVAL1": ra0, "CRVAL2": dec0, "CRPIX1": CRPIX[chip][0], "CRPIX2": CRPIX[chip][1]})
    header.update({"CD1_1": -SCALE, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": SCALE})
    return header


class Telescope:
    """The true map of an exposure: chips misplaced and turned, cubic distortion, rotation, pointing error."""

    def __init__(self, rng, ra0, dec0, offset_arcsec=(0.0, 0.0), rotation_deg=0.0, distortion=3e-3):
        self.ra0, self.dec0, self.offset, self.k = ra0, dec0, np.array(offset_arcsec) / 3600, distortion
        self.angle = np.radians(rotation_deg)
        self.places = {chip: (rng.normal(0, 2.0, 2), np.radians(rng.normal(0, 0.03))) for chip in CRPIX}

    def sky(self, chip, x, y):
        (dx, dy), turn = self.places[chip]
        u, v = x - N / 2, y - N / 2
        px = N / 2 + u * np.cos(turn) - v * np.sin(turn) + dx - (CRPIX[chip][0] - 1)
        py = N / 2 + u * np.sin(turn) + v * np.cos(turn) + dy - (CRPIX[chip][1] - 1)
        p, q = -px * SCALE, py * SCALE
        r2 = (p**2 + q**2) / 0.08**2
        p, q = p * (1 + self.k * r2) + 0.02 * self.k * p * q, q * (1 + self.k * r2)
        c, s = np.cos(self.angle), np.sin(self.angle)
        return deproject_tan(c * p - s * q + self.offset[0], s * p + c * q + self.offset[1], self.ra0, self.dec0)


def observe(rng, telescope, per_chip, ref_err_mas=20.0, galaxies=40):
    """Star tables of the chips and a reference catalogue with 10 % missing, 50 extra rows and scattered positions."""
    chips, rows = {}, []
    for chip in CRPIX:
        x, y = rng.uniform(4, N - 5, (2, per_chip))
        err = 10 ** rng.uniform(-2.3, -1.2, per_chip)
        sky = np.array(telescope.sky(chip, x, y))
        rows.append(sky[:, rng.random(per_chip) < 0.9])
        fake = rng.uniform(4, N - 5, (2, galaxies))
        chips[chip] = ChipStars(
            np.concatenate([x + rng.normal(0, err), fake[0]]),
            np.concatenate([y + rng.normal(0, err), fake[1]]),
            np.concatenate([err, np.full(galaxies, 0.05)]),
            np.concatenate([1.0 / err, rng.uniform(5, 50, galaxies)]),
            nominal_header(chip, telescope.ra0, telescope.dec0),
            (N, N),
        )
    ra, dec = np.concatenate(rows, axis=1)
    extra = rng.uniform(-0.08, 0.08, (2, 50))
    ra = np.concatenate([ra, telescope.ra0 + extra[0] / np.cos(np.radians(telescope.dec0))])
    dec = np.concatenate([dec, telescope.dec0 + extra[1]])
    err = ref_err_mas / 3.6e6
    catalog = pd.DataFrame(
        {
            "ra": (ra + rng.normal(0, err, len(ra)) / np.cos(np.radians(dec))) % 360,
            "dec": dec + rng.normal(0, err, len(ra)), "pmra": 0.0, "pmdec": np.nan, "ref_epoch_yr": 2016.0,
            "ra_err_mas": ref_err_mas, "dec_err_mas": ref_err_mas,
        }
    )  # fmt: skip
    return chips, catalog


def errors_mas(telescope, solutions):
    """Rms per axis of solution minus truth over all chips, corners included."""
    x, y = grid_points((N, N), 15)
    pieces = []
    for chip, one in solutions.items():
        ra, dec = WCS(one.header).all_pix2world(x, y, 0)
        true_ra, true_dec = telescope.sky(chip, x, y)
        east = ((ra - true_ra + 180) % 360 - 180) * np.cos(np.radians(true_dec))
        pieces.append(np.stack([east, dec - true_dec], axis=1) * 3.6e6)
    return np.sqrt(np.mean(np.concatenate(pieces) ** 2, axis=0))


@pytest.mark.parametrize(
    ("ra0", "dec0", "offset", "rotation"),
    [(150.0, 2.0, (12.0, -9.0), 0.05), (0.01, -70.0, (-18.0, 15.0), -0.2), (210.0, 54.0, (0.0, 0.0), 0.0)],
)
def test_truth_is_met_within_10_mas_per_axis_despite_20_mas_reference_scatter(ra0, dec0, offset, rotation):
    rng = np.random.default_rng(7)
    telescope = Telescope(rng, ra0, dec0, offset, rotation)
    chips, catalog = observe(rng, telescope, per_chip=80)
    solutions = solve_exposure(chips, catalog, 2016.0, trusted=False)
    assert errors_mas(telescope, solutions).max() < 10.0
    assert all(one.order == 3 and one.n_matched > 60 for one in solutions.values())
    assert all(17.0 < value < 32.0 for one in solutions.values() for value in one.rms_mas)


def test_without_distortion_terms_the_same_field_is_far_off():
    rng = np.random.default_rng(7)
    telescope = Telescope(rng, 150.0, 2.0, (12.0, -9.0), 0.05)
    chips, catalog = observe(rng, telescope, per_chip=80)
    assert errors_mas(telescope, solve_exposure(chips, catalog, 2016.0, trusted=False, max_order=1)).max() > 30.0


def test_terms_the_stars_do_not_ask_for_are_left_out():
    rng = np.random.default_rng(8)
    telescope = Telescope(rng, 150.0, 2.0, (3.0, 2.0), 0.02, distortion=0.0)
    chips, catalog = observe(rng, telescope, per_chip=60)
    solutions = solve_exposure(chips, catalog, 2016.0, trusted=False)
    assert {one.order for one in solutions.values()} == {1}
    assert errors_mas(telescope, solutions).max() < 10.0


def test_a_pointing_beyond_the_search_radius_is_refused_not_guessed():
    rng = np.random.default_rng(9)
    telescope = Telescope(rng, 150.0, 2.0, (200.0, 0.0))
    chips, catalog = observe(rng, telescope, per_chip=40)
    with pytest.raises(UnprocessableData, match="no match"):
        solve_exposure(chips, catalog, 2016.0, trusted=False)


def test_a_catalogue_of_unrelated_stars_is_refused():
    rng = np.random.default_rng(10)
    telescope = Telescope(rng, 150.0, 2.0)
    chips, catalog = observe(rng, telescope, per_chip=40)
    elsewhere = rng.uniform(-0.08, 0.08, (2, len(catalog)))
    catalog = catalog.assign(ra=150.0 + elsewhere[0], dec=2.0 + elsewhere[1])
    with pytest.raises(UnprocessableData):
        solve_exposure(chips, catalog, 2016.0, trusted=False)


def test_trusted_headers_with_three_stars_are_shifted_and_with_one_kept():
    rng = np.random.default_rng(11)
    telescope = Telescope(rng, 150.0, 2.0, (0.15, -0.1), distortion=0.0)
    telescope.places = {chip: (np.zeros(2), 0.0) for chip in CRPIX}
    chips, catalog = observe(rng, telescope, per_chip=3, ref_err_mas=1.0, galaxies=0)
    chips = {"c0": chips["c0"]}
    catalog = catalog.iloc[:-50]
    shifted = solve_exposure(chips, catalog, 2016.0, trusted=True)
    assert shifted["c0"].order == 0 and shifted["c0"].n_matched >= 2
    assert errors_mas(telescope, shifted).max() < 40.0  # centroids of up to 0.06 px
    kept = solve_exposure(chips, catalog.iloc[:1], 2016.0, trusted=True)
    assert kept["c0"].order == -1
    assert errors_mas(telescope, kept)[0] == pytest.approx(150.0, abs=3.0)


def test_proper_motion_is_applied_with_the_cosine_of_declination():
    catalog = pd.DataFrame(
        {"ra": [10.0, 20.0], "dec": [60.0, -30.0], "pmra": [100.0, np.nan], "pmdec": [-50.0, np.nan]}
    ).assign(ref_epoch_yr=2016.0)
    ra, dec = propagate_positions(catalog, 2026.0)
    assert (ra[0] - 10.0) * 3.6e6 * np.cos(np.radians(60)) == pytest.approx(1000.0)
    assert (dec[0] - 60.0) * 3.6e6 == pytest.approx(-500.0)
    assert (ra[1], dec[1]) == (20.0, -30.0)


def test_the_solution_does_not_depend_on_the_order_of_the_chips():
    rng = np.random.default_rng(12)
    telescope = Telescope(rng, 150.0, 2.0, (5.0, 5.0))
    chips, catalog = observe(rng, telescope, per_chip=50)
    first = solve_exposure(chips, catalog, 2016.0, trusted=False)
    second = solve_exposure(dict(reversed(chips.items())), catalog, 2016.0, trusted=False)
    assert all(first[name].header.tostring() == second[name].header.tostring() for name in chips)
